"""Raw values and model units: round trips, the Jacobian, densities that integrate to one over raw values."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import scoresde as ss

RNG = np.random.default_rng(0)
W = np.array([[1.5, 0.3], [-0.2, 0.5]])


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Sinh:
    """h(z) = arcsinh(a z)/a in each column."""

    a: float = 0.3

    def forward(self, z):
        return jnp.arcsinh(self.a * z) / self.a

    def inverse(self, y):
        return jnp.sinh(self.a * y) / self.a

    def log_det(self, z):
        return -0.5 * jnp.sum(jnp.log1p((self.a * z) ** 2), axis=1)


MEASURED = (
    ss.Units(np.array(0.5), np.array(3.0)),
    ss.Units(np.array([1.0, -2.0]), np.array(3.0)),
    ss.Units(np.array([1.0, -2.0]), np.array([3.0, 0.2])),
    ss.Units(np.array([1.0, -2.0]), np.array([3.0, 0.2]), whitening=W),
    ss.Units(np.array([1.0, -2.0]), np.array([3.0, 0.2]), maps=Sinh()),
    ss.Units(np.array([1.0, -2.0]), np.array([3.0, 0.2]), maps=Sinh(), whitening=W),
)


@pytest.mark.parametrize("units", MEASURED)
def test_the_determinant_is_that_of_the_jacobian(units, x64):
    x = RNG.normal(size=(5, 2)) * 3
    jacobian = jax.vmap(jax.jacfwd(lambda v: units.to_model(v[None])[0]))(jnp.asarray(x))
    np.testing.assert_allclose(units.log_det(x), np.linalg.slogdet(np.asarray(jacobian))[1], rtol=1e-12)


@pytest.mark.parametrize("units", MEASURED)
def test_measurements_come_back(units):
    x = RNG.normal(size=(50, 2)).astype(np.float32)
    np.testing.assert_allclose(units.from_model(units.to_model(x)), x, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(units.unmixed(units.to_model(x)), units.elements(x), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(units.to_model(x), units.to_model(x, np.ones_like(x)))


@pytest.mark.parametrize("units", MEASURED)
def test_a_density_integrates_to_one_over_raw_values(units, x64):
    """Of a standard normal law in model units, by the trapezoidal rule over a grid of raw values."""
    shift, scale = np.broadcast_to(units.shift, 2), np.broadcast_to(units.scale, 2)
    way = [shift[i] + scale[i] * np.linspace(-60, 60, 1201) for i in (0, 1)]
    x = np.stack(np.meshgrid(*way, indexing="ij"), axis=-1).reshape(-1, 2)
    log_prob = np.sum(norm.logpdf(units.to_model(x)), axis=1) + units.log_det(x)
    cell = (way[0][1] - way[0][0]) * (way[1][1] - way[1][0])
    assert np.sum(np.exp(log_prob)) * cell == pytest.approx(1, abs=1e-6)


def test_levels_come_back_whatever_the_noise():
    units = ss.Units.standardised(RNG.uniform(0, 300, (3, 4)), 70.0, levels=300)
    x, u = RNG.integers(0, 300, (20, 3, 4)), RNG.uniform(1e-3, 1 - 1e-3, (20, 3, 4))
    for noise in (None, u):
        back = units.from_model(units.to_model(x, noise))
        np.testing.assert_array_equal(back, x)
        assert back.dtype == np.uint16
    np.testing.assert_allclose(units.from_model(units.to_model(x), round_levels=False), x, atol=1e-3)
    far = np.full((1, 3, 4), 1e9, np.float32)
    assert [units.from_model(v).max() for v in (far, -far, np.nan * far)] == [299, 0, 0]
    assert ss.Units(np.array(2.0), np.array(1.0), levels=256).from_model([[0.0]]).dtype == np.uint8


def test_bins_are_of_one_width_and_bits_are_those_of_the_levels(x64):
    """A law that is flat over all levels has log2(levels) bits for each dimension."""
    units = ss.Units.standardised(np.full(3, 7.5), 4.6, levels=16)
    x, u = RNG.integers(0, 16, (9, 3)), RNG.random((9, 3))
    np.testing.assert_allclose(units.to_model(x + 1, u) - units.to_model(x, u), units.bin_width, rtol=1e-12)
    flat = -units.log_det(x) - 3 * np.log(16)  # log-density in model units of the uniform law over [0, 16)^3
    np.testing.assert_allclose(ss.bits_per_dim(flat, 3, units.bin_width), 4, rtol=1e-12)


def test_standardised_values_have_mean_zero_and_deviation_one():
    x = RNG.integers(0, 9, (40_000, 2))
    y = ss.Units.standardised(x.mean(axis=0), np.sqrt(x.var(axis=0).mean()), levels=9).to_model(x, RNG.random(x.shape))
    assert np.abs(np.mean(y)) < 5 / np.sqrt(y.size) and np.std(y) == pytest.approx(1, abs=5 / np.sqrt(y.size))
    x = RNG.normal(3, [1.0, 9.0], (100, 2))
    y = np.asarray(ss.Units.standardised(x.mean(axis=0), x.std(axis=0)).to_model(x))
    np.testing.assert_allclose([y.mean(axis=0), y.std(axis=0)], [[0, 0], [1, 1]], atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": 0.0}, "scale must be positive, got 0"),
        ({"shift": [np.nan, 0.0]}, "shift must be finite"),
        ({"scale": [1.0, 2.0, 3.0]}, r"scale must have shape \(\) or that of shift, \(2,\), got \(3,\)"),
        ({"levels": 2.5}, "levels must be a whole number of at least 1, got 2.5"),
        ({"levels": 4, "scale": [1.0, 2.0]}, "integer levels take one scale"),
        ({"levels": 4, "maps": Sinh()}, "integer levels take one scale"),
        ({"levels": 4, "whitening": W}, "integer levels take one scale"),
        ({"maps": "arcsinh"}, "maps must have forward, inverse and log_det, got str"),
        ({"whitening": np.ones((2, 2))}, r"whitening must be a matrix \(2, 2\), not singular"),
        ({"whitening": np.eye(3)}, r"whitening must be a matrix \(2, 2\), not singular, got \(3, 3\)"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ValueError, match=message):
        ss.Units(**{"shift": [1.0, 2.0], "scale": 1.0} | settings)


@pytest.mark.parametrize("method", ["to_model", "from_model", "log_det", "elements"])
def test_a_wrong_shape_is_refused(method):
    with pytest.raises(ValueError, match=r"values must have shape \(n, \*event\) with event \(2,\), got \(4, 3\)"):
        getattr(MEASURED[1], method)(np.ones((4, 3)))
