"""The reverse SDE by stochastic Runge-Kutta: strong order, exact laws, the ancestral table, and what it refuses."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family import assert_moments, eightfold, mixture_moments, name, ring, shifted

from scoresde import VE, VP, ancestral, log_snr_grid, reverse_sde, sample

KEY = jax.random.key(5)
MIXTURE = ring(8, 0.3)


def down(sde, mixture, x, **options):
    """From t_max to t_min under the exact score."""
    return reverse_sde(KEY, sde, mixture.score(sde), x, sde.t_max, sde.t_min, **options)


def check_strong_order(sde, solver):
    """Paths of one Brownian tree: the root-mean-square distance from those in four times as many steps."""
    x = sde.prior_sample(KEY, (64, 2))
    reference = down(sde, MIXTURE, x, steps=512, solver=solver).x
    steps = np.array([16, 32, 64, 128])
    results = [down(sde, MIXTURE, x, steps=int(n), solver=solver) for n in steps]
    error = [float(jnp.sqrt(jnp.mean((r.x - reference) ** 2))) for r in results]
    order = -np.polyfit(np.log(steps), np.log(error), 1)[0]
    assert 1.5 < order < 2.3 and error[-1] < 3e-3, (order, error)
    assert [int(r.num_evals[0]) for r in results] == list(2 * steps)


@pytest.mark.parametrize("sde", [pytest.param(VP(), marks=pytest.mark.slow), VE()], ids=name)
def test_strong_order_one_and_a_half(x64, sde):
    """Measured 2 from 16 to 64 steps, where the part of order 1.5 is still the smaller."""
    check_strong_order(sde, diffrax.ShARK())


@pytest.mark.slow
@pytest.mark.parametrize("sde", [VP(), VE()], ids=name)
def test_strong_order_of_sra1(x64, sde):
    check_strong_order(sde, diffrax.SRA1())


@pytest.mark.slow
def test_solvers_and_scales_share_the_path(x64):
    sde = VP()
    x = sde.prior_sample(KEY, (64, 2))
    one = down(sde, MIXTURE, x, steps=128).x
    for options in ({"sigma_data": 0.5}, {"solver": diffrax.SRA1()}):
        other = down(sde, MIXTURE, x, steps=128, **options).x
        assert float(jnp.sqrt(jnp.mean((other - one) ** 2))) < 1e-2, options


@pytest.mark.slow
def test_the_law_is_exact_on_gaussians_and_that_of_fine_ancestral_tables_on_a_mixture():
    """At five standard errors of 1,024 examples."""
    sde, n = VP(), 1024
    x = sde.prior_sample(KEY, (n, 2))
    alpha, sigma = float(sde.alpha(sde.t_min)), float(sde.sigma(sde.t_min))
    for mixture in (eightfold(shifted()), MIXTURE):
        mean, std = mixture_moments(mixture)
        got = np.asarray(down(sde, mixture, x, steps=48).x)
        assert_moments(got, alpha * mean, np.hypot(alpha * std, sigma))
    table = ancestral(sde, log_snr_grid(sde, 200))
    other = np.asarray(sample(jax.random.key(6), MIXTURE.score(sde), table, (n, 2)))

    def features(x):
        radius, angle = np.hypot(*x.T), np.arctan2(*x.T)
        waves = [np.cos(k * angle) for k in (1, 2, 8)]
        return np.stack([radius, radius**2, radius**4, radius < 0.5, radius > 1.3, *waves], 1)

    a, b = features(got), features(other)
    error = np.sqrt(a.var(0) / n + b.var(0) / n)
    assert np.all(np.abs(a.mean(0) - b.mean(0)) < 5 * error), (a.mean(0) - b.mean(0)) / error


def test_examples_depend_on_their_key_alone_and_failures_are_told(x64):
    sde = VP()
    x = sde.prior_sample(KEY, (64, 2))
    every = down(sde, MIXTURE, x, steps=8)
    other = down(sde, MIXTURE, x.at[1].set(0.0).at[2].set(jnp.nan), steps=8)
    np.testing.assert_array_equal(np.flatnonzero(~other.success), [2])
    np.testing.assert_allclose(np.delete(other.x, [1, 2], 0), np.delete(every.x, [1, 2], 0), atol=1e-12)
    assert np.all(np.isnan(other.x[2])) and "1 of 64" in other.message and not every.message
    same = down(sde, MIXTURE, jnp.ones_like(x), steps=8).x
    assert len(np.unique(same[:, 0])) == 64


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"t_start": 0.1, "t_end": 0.5}, "times must descend"),
        ({"t_start": 1.5}, "times must descend"),
        ({"steps": 0}, "steps must be a whole number"),
        ({"steps": 2.0}, "steps must be a whole number"),
        ({"sigma_data": 0.0}, "sigma_data must be positive"),
        ({"solver": diffrax.Tsit5()}, "stochastic Runge-Kutta"),
        ({"x": 1.0}, r"x must have shape"),
        ({"score": lambda x, t: x[:, :1]}, "must return the shape of x"),
    ],
)
def test_bad_input_is_one_line(change, expected):
    arguments = {"score": lambda x, t: -x, "x": np.zeros((2, 2)), "t_start": 1.0, "t_end": 0.1} | change
    with pytest.raises(ValueError, match=expected) as error:
        reverse_sde(KEY, VP(), **arguments)
    assert "\n" not in str(error.value)
