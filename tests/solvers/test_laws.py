"""Every solver with an exact score: samples have the law of the table and of the data, on every SDE."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family import (
    SDES,
    SDES_IN_TURN,
    assert_moments,
    float64,
    gaussian,
    gaussian_law,
    mixture_moments,
    name,
    score_on,
    shifted,
    two_modes,
)
from solver_family import EVERY, SOLVERS, SWEEP

from scoresde import Cosine, RectifiedFlow, log_snr_grid, uniform_grid
from scoresde.solvers import integrate, padded, sample

KEY = jax.random.key(11)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_the_loop_has_the_law_of_the_table(sde, solver):
    """``integrate`` against the exact law of its own table, by samples, at five standard errors."""
    table = SOLVERS[solver](sde, log_snr_grid(sde, 40))
    mixture = gaussian()
    x = sample(KEY, score_on(sde, table, mixture), table, (8000, 2))
    for i, std in enumerate(np.asarray(mixture.stds)[0]):
        mean, spread = gaussian_law(sde, table, 0.0, std, start=(0.0, float(table.start_std)))
        assert_moments(x[:, i : i + 1], mean, spread)


@pytest.mark.parametrize("make", [pytest.param(shifted, marks=pytest.mark.slow), two_modes])
@pytest.mark.parametrize("sde", SDES_IN_TURN, ids=name)
def test_samples_have_the_moments_of_the_data(sde, make):
    """Every solver of the family with the exact score; 200 steps of order one leave a bias below 2 %, and the prior's
    mean of 0 instead of alpha m an offset that the flow keeps."""
    mixture = make()
    mean, std = mixture_moments(mixture.marginal(sde, sde.t_min))
    offset = float(sde.alpha(sde.t_max) / sde.sigma(sde.t_max)) * np.abs(np.asarray(mixture.means)).max()
    for solver in SOLVERS:
        table = SOLVERS[solver](sde, log_snr_grid(sde, 200))
        x = sample(KEY, score_on(sde, table, mixture), table, (3000, 2))
        assert_moments(x, mean, std, bias=0.02 + offset)
        if make is two_modes:
            left = np.mean(np.asarray(x)[:, 0] < -0.2)
            assert abs(left - 0.35) < 5 * np.sqrt(0.35 * 0.65 / 3000) + 0.01 + offset / 2


@pytest.mark.parametrize("sde", SDES_IN_TURN, ids=name)
@pytest.mark.parametrize("many", ["ten", pytest.param("every", marks=pytest.mark.slow)])
def test_solver_matrix_on_a_mixture(sde, many):
    """Solvers in 5, 6, 17 and 64 evaluations (every solver: steps) of the exact score of two modes, one compilation:
    finite everywhere; at 64 mean, std and the share of each mode, from the exact marginal at t_max."""
    mixture = two_modes()
    mean, std = mixture_moments(mixture.marginal(sde, sde.t_min))
    start = mixture.marginal(sde, sde.t_max).sample(KEY, 2000)
    for make, evals in SWEEP if many == "ten" else [(make, 1) for make in EVERY.values()]:
        for n in (5, 6, 17, 64):
            table = make(sde, log_snr_grid(sde, n // evals))
            table = padded(table, num_evals=64 if many == "ten" else 200, history=4 if many == "ten" else 6)
            x = integrate(KEY, score_on(sde, table, mixture), table, start)
            assert np.all(np.isfinite(x)), n
        left = np.mean(np.asarray(x)[:, 0] < -0.2)
        assert abs(left - 0.35) < 5 * np.sqrt(0.35 * 0.65 / 2000) + 0.02
        assert_moments(x, mean, std, bias=0.08)


@pytest.mark.parametrize("sde", SDES_IN_TURN, ids=name)
def test_no_path_blows_up(sde):
    """max |x| along every path stays within six prior or data standard deviations."""
    bound = 6 * max(float(sde.sigma(sde.t_max)), 1.5)
    grids = [log_snr_grid(sde, 60)]
    if not isinstance(sde, Cosine | RectifiedFlow):  # f is 230 at their t_max: a first uniform step is unstable
        grids.append(uniform_grid(sde, 60))
    for solver in SOLVERS:
        for grid in grids:
            table = SOLVERS[solver](sde, grid)
            path = sample(KEY, score_on(sde, table, two_modes()), table, (512, 2), trajectory=True)
            assert float(jnp.max(jnp.abs(path))) < bound, solver


@pytest.mark.parametrize("solver", ["ddim", "ancestral", "euler_maruyama", "reverse_diffusion", "predictor_corrector"])
@pytest.mark.parametrize("sde", SDES_IN_TURN, ids=name)
def test_float32_runs_follow_float64(sde, solver):
    """The same table, without its noise, in both precisions, from the noise end to the data end."""
    table = SOLVERS[solver](sde, log_snr_grid(sde, 30))
    quiet = dataclasses.replace(table, commit=dataclasses.replace(table.commit, s=np.zeros_like(table.commit.s)))
    start = np.asarray(sde.prior_sample(KEY, (4, 2)))
    single = integrate(KEY, score_on(sde, quiet, gaussian()), quiet, start)
    assert single.dtype == jnp.float32
    with jax.enable_x64(True):
        double = integrate(KEY, score_on(sde, quiet, gaussian()), quiet, float64(start))
    np.testing.assert_allclose(single, double, rtol=2e-4, atol=2e-5)
