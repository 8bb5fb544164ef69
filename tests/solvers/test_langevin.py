"""Predictor and corrector: the naive loop, its limits, and Langevin's stationary law."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family import SDES, VE, VP, assert_moments, float64, gaussian_law, mixture_moments, name, textbook, two_modes
from solver_family import MEAN, STD, noise_of, stay

from scoresde import SubVP, karras_grid, log_snr_grid
from scoresde.solvers import ancestral, ddim, euler_maruyama, integrate, predictor_corrector, reverse_diffusion

KEY = jax.random.key(11)


@pytest.mark.parametrize("norm_rule", [False, True])
@pytest.mark.parametrize("sde", [VP(), SubVP(), VE()], ids=name)
def test_predictor_corrector_is_the_naive_loop(x64, sde, norm_rule):
    """Langevin steps at t, then the predictor's step from t to s; in 64 dimensions, where the norm rule is sound."""
    grid, snr, batch = karras_grid(sde, 4), 0.16, 3

    def score(x, t):
        return (0.1 * jnp.sin(x) - x) / (1 + sde.variance(t))

    x = start = np.asarray(sde.prior_sample(KEY, (batch, 64)), np.float64)
    row = 0
    for t, s in zip(grid[:-1], grid[1:], strict=True):
        (alpha_t, alpha_s), (var_t, var_s) = (v for v in textbook(sde, np.array([t, s]))[:2])
        for _ in range(2):
            row += 1
            z, gradient = noise_of(KEY, row, batch, (64,)), np.asarray(score(float64(x), float64(t)))
            ratio = np.sqrt(var_t)
            if norm_rule:
                ratio = np.linalg.norm(z, axis=1, keepdims=True) / np.linalg.norm(gradient, axis=1, keepdims=True)
            step = 2 * (snr * ratio) ** 2
            x = x + step * gradient + np.sqrt(2 * step) * z
        row += 1
        r = alpha_t / alpha_s
        v = var_t - r**2 * var_s
        x = (2 - r) * x + v * np.asarray(score(float64(x), float64(t))) + np.sqrt(v) * noise_of(KEY, row, batch, (64,))
    table = predictor_corrector(sde, grid, snr=snr, corrector_steps=2, norm_rule=norm_rule)
    got = integrate(KEY, score, table, float64(start))
    np.testing.assert_allclose(got, x, rtol=1e-6, atol=1e-8)


def test_the_norm_rule_survives_a_vanishing_score():
    sde = VE()
    table = predictor_corrector(sde, karras_grid(sde, 2), norm_rule=True)
    x = integrate(KEY, lambda x, t: jnp.zeros_like(x), table, jnp.ones((2, 3)))
    assert np.all(np.isfinite(x))


@pytest.mark.parametrize("predictor", [reverse_diffusion, ancestral, ddim, euler_maruyama], ids=name)
def test_without_corrector_or_in_the_limit_it_is_the_predictor(predictor):
    sde, grid = SubVP(), log_snr_grid(SubVP(), 20)
    alone = predictor(sde, grid)
    none = predictor_corrector(sde, grid, predictor, corrector_steps=0)
    for mine, theirs in zip(jax.tree.leaves(none), jax.tree.leaves(alone), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    tiny = predictor_corrector(sde, grid, predictor, snr=1e-6)
    np.testing.assert_allclose(gaussian_law(sde, tiny, MEAN, STD), gaussian_law(sde, alone, MEAN, STD), rtol=1e-8)


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize("place", [0.05, 0.5, 1.0])
def test_langevin_leaves_the_marginal_invariant(sde, place):
    """On a Gaussian of variance v the chain's stationary variance is v/(1 - eps/2v), eps = 2 (snr sigma)^2: the std
    drifts by snr^2 sigma^2/2v at most, which vanishes with snr."""
    t = sde.t_min + place * (sde.t_max - sde.t_min)
    alpha, variance, _, _ = textbook(sde, t)
    v = alpha**2 * STD**2 + variance
    for snr, steps in ((0.2, 400), (0.05, 1500)):
        table = predictor_corrector(sde, [t, sde.t_min], stay, snr=snr, corrector_steps=steps)
        assert np.all(table.look.t == t)
        mean, std = gaussian_law(sde, table, MEAN, STD)
        eps = 2 * snr**2 * variance
        left = (1 - eps / v) ** (2 * steps)  # of the start, not yet forgotten
        stationary = v / (1 - eps / (2 * v))
        np.testing.assert_allclose(std**2, stationary + left * (v - stationary), rtol=1e-9)
        np.testing.assert_allclose(mean, alpha * MEAN, rtol=1e-9, atol=1e-12)
        assert 0 <= std / np.sqrt(v) - 1 < 0.51 * snr**2 * variance / v + snr**4


def test_langevin_keeps_the_modes_of_a_mixture():
    """By samples: 100 steps from p_t leave mean, std and the share of each mode (8,000 chains, and one)."""
    sde, mixture, t = SubVP(), two_modes(), 0.3
    start = mixture.marginal(sde, t)
    table = predictor_corrector(sde, [t, sde.t_min], stay, snr=0.1, corrector_steps=100)
    x = integrate(KEY, mixture.score(sde), table, start.sample(KEY, 8000))
    mean, std = mixture_moments(start)
    assert_moments(x, mean, std, bias=0.01)
    one = integrate(KEY, mixture.score(sde), table, start.sample(KEY, 1))
    np.testing.assert_allclose(one, x[:1], rtol=1e-3, atol=1e-4)
