"""Estimators of a trace on linear fields, whose trace is known: unbiased, honest, of the variance that is stated."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoresde import hutchinson
from scoresde.likelihood import hutch_pp

DIM, DRAWS = 32, 2000


def matrix(values, skew=0.0, seed=0):
    """A matrix of this spectrum in a random basis, plus something antisymmetric, which no trace sees."""
    rng = np.random.default_rng(seed)
    basis, part = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0], rng.normal(size=(DIM, DIM))
    return basis @ np.diag(values) @ basis.T + skew * (part - part.T)


def estimates(divergence, J):
    """(DRAWS, P) of the linear field with the Jacobian J, and its value is checked."""
    u = jnp.arange(DIM) / DIM

    def one(key):
        return divergence(lambda u: jnp.asarray(J) @ u, u, divergence.draw(key, u))

    value, found = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(4), DRAWS))
    np.testing.assert_allclose(value[0], J @ np.asarray(u), rtol=1e-9)
    assert found.shape == (DRAWS, divergence.count)
    return found


SIGNS, NORMAL = hutchinson(4), hutchinson(4, jax.random.normal)
SPIKED = np.where(np.arange(DIM) < 3, -50.0, -1.0)


@pytest.mark.parametrize("divergence", [SIGNS, NORMAL, hutch_pp(3, 4)], ids=["signs", "normal", "hutch_pp"])
def test_the_estimate_is_unbiased_and_its_standard_error_honest(x64, divergence):
    J = matrix(SPIKED, skew=0.3)
    found = estimates(divergence, J)
    mean = np.mean(found, axis=1)
    spread = np.std(mean, ddof=1)
    assert abs(np.mean(mean) - np.trace(J)) < 5 * spread / math.sqrt(DRAWS)
    reported = np.sqrt(np.mean(np.square(divergence.std_error(found))))
    np.testing.assert_allclose(reported, spread, rtol=0.1)


def test_variances_are_those_stated(x64):
    J = matrix(np.linspace(-3, 1, DIM), skew=0.3)
    S = (J + J.T) / 2
    for divergence, expected in ((NORMAL, np.sum(S**2)), (SIGNS, np.sum(S**2) - np.sum(np.diag(S) ** 2))):
        np.testing.assert_allclose(np.var(estimates(divergence, J)), 2 * expected, rtol=0.1)


def test_hutch_pp_pays_at_equal_cost_where_few_directions_stand_out_of_a_bulk(x64):
    """2 k + P = 16 tangents. Of an even spectrum it is no better than signs."""
    for values, low, high in ((SPIKED, 0.0, 0.7), (np.linspace(-3, 1, DIM), 0.9, 3.0)):
        J = matrix(values)
        signs, sketched = (np.std(np.mean(estimates(d, J), 1)) for d in (hutchinson(16), hutch_pp(6, 4)))
        assert low < sketched / signs < high, (signs, sketched)


def test_a_wrong_sketch_is_refused():
    with pytest.raises(ValueError, match="^sketch must be a whole number of at least 1, got 0"):
        hutch_pp(0)
    with pytest.raises(ValueError, match="^sketch must be below the 32 dimensions of an example, got 32"):
        hutch_pp(32).draw(jax.random.key(0), jnp.zeros(DIM))
    assert np.all(np.isnan(hutch_pp(2, 1).std_error(jnp.zeros((3, 1)))))
