"""The monotone maps of columns: against scikit-learn, their own inverse, the Jacobian, beyond the training range."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import skew
from sklearn.preprocessing import PowerTransformer

from experiments.data.powers import MOST, Powers

NORMAL = np.random.default_rng(0).normal(size=(500, 4))
SKEWED = np.stack([np.exp(NORMAL[:, 0]), -np.exp(0.5 * NORMAL[:, 1]), NORMAL[:, 2] ** 3, NORMAL[:, 3]], axis=1)
Z = (SKEWED - SKEWED.mean(axis=0)) / SKEWED.std(axis=0)


@pytest.fixture(scope="module")
def powers():
    return Powers.fit(Z)


def test_within_the_training_range_it_is_yeo_and_johnsons_map(powers):
    y = np.asarray(powers.forward(jnp.asarray(Z)))
    np.testing.assert_allclose(y, PowerTransformer().fit_transform(Z), atol=2e-5)
    assert np.all(np.abs(skew(Z[:, :2])) > 1) and np.all(np.abs(skew(y[:, :2])) < 0.3)


def test_every_real_number_comes_back(powers, x64):
    """Beyond the range too, where the map is its tangent."""
    y = jnp.asarray(np.linspace(-30, 30, 601))[:, None] * jnp.ones((1, 4))
    z = powers.inverse(y)
    assert np.all(np.diff(z, axis=0) > 0)
    np.testing.assert_allclose(powers.forward(z), y, atol=1e-9)


def test_in_float32_the_training_part_comes_back(powers):
    z = jnp.asarray(Z, jnp.float32)
    np.testing.assert_allclose(powers.inverse(powers.forward(z)), z, rtol=2e-4, atol=2e-5)


def test_log_det_is_that_of_the_jacobian(powers, x64):
    z = jnp.asarray(np.concatenate([Z[:20], 3 * Z[:20], 100 * Z[:5]]))
    jacobian = jax.vmap(jax.jacobian(lambda one: powers.forward(one[None])[0]))(z)
    np.testing.assert_allclose(powers.log_det(z), np.linalg.slogdet(jacobian)[1], rtol=1e-10)


def test_the_record_is_the_whole(powers):
    again = Powers.from_record(json.loads(json.dumps(powers.record())))
    np.testing.assert_array_equal(again.forward(jnp.asarray(Z)), powers.forward(jnp.asarray(Z)))


@pytest.mark.parametrize("singular", [0.0, 2.0])
def test_logarithms_are_the_limits(singular, x64):
    """p = 0 and p = 2 are logarithms on one side."""
    z = np.abs(Z) if singular == 0 else -np.abs(Z)
    one = np.ones(4)
    p = np.full(4, singular + 1e-6)
    powers = Powers(p, z.min(axis=0), z.max(axis=0), 0 * one, one)
    np.testing.assert_allclose(powers.forward(jnp.asarray(z)), np.sign(z) * np.log1p(np.abs(z)), rtol=1e-5)


def test_a_heavy_tail_is_bent_no_more_than_floats_can_tell():
    z = np.random.default_rng(1).pareto(0.3, (400, 1))
    z = (z - z.mean()) / z.std()
    powers = Powers.fit(z)
    assert np.abs(powers.exponent - 1).max() <= MOST
    order = np.sort(np.unique(z))[:, None].astype(np.float32)
    assert np.all(np.diff(np.asarray(powers.forward(jnp.asarray(order))), axis=0) >= 0)
