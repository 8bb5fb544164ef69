"""The three distances against SciPy, double loops and closed forms of Gaussians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from scoresde.evaluation.metrics import energy_distance, mmd, sliced_wasserstein

KEY = jax.random.key(0)
METRICS = (mmd, lambda x, y: sliced_wasserstein(KEY, x, y), energy_distance)


def pair(n, m, *event, shift=0.5, seed=0):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, *event)), 1.3 * rng.normal(size=(m, *event)) + shift
    return x.astype("f4"), y.astype("f4")


def mmd_loops(x, y, bandwidths):
    def mean(a, b, distinct):
        values = [
            np.mean([np.exp(-np.sum((p - q) ** 2) / (2 * h**2)) for h in bandwidths])
            for i, p in enumerate(a)
            for j, q in enumerate(b)
            if not (distinct and i == j)
        ]
        return np.mean(values)

    return mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)


@pytest.mark.parametrize("bandwidths", [[0.7], [0.3, 1.0, 5.0]])
def test_mmd_is_the_double_loop(bandwidths):
    x, y = pair(23, 31, 2, 3)
    got = mmd(x, y, bandwidth=np.array(bandwidths) if len(bandwidths) > 1 else bandwidths[0])
    np.testing.assert_allclose(got, mmd_loops(x.astype("f8"), y.astype("f8"), bandwidths), rtol=1e-5)


def test_mmd_default_bandwidths_are_multiples_of_the_pooled_median_distance():
    x, y = pair(20, 30, 4)
    median = np.median(scipy.spatial.distance.pdist(np.concatenate([x, y])))
    expected = mmd_loops(x, y, median * np.array([0.25, 0.5, 1, 2, 4]))
    np.testing.assert_allclose(mmd(x, y), expected, rtol=1e-5)


@pytest.mark.parametrize("dim", [1, 5])
def test_mmd_of_gaussians_has_its_closed_form(dim):
    """E exp(-|u|^2 / 2h^2) for u ~ N(mu, v I) is (h^2 / (h^2 + v))^(D/2) exp(-|mu|^2 / 2(h^2 + v))."""
    s, r, shift, h = 1.0, 1.3, 0.5, 0.8

    def expectation(variance, mean2):
        return (h**2 / (h**2 + variance)) ** (dim / 2) * np.exp(-mean2 / (2 * (h**2 + variance)))

    exact = expectation(2 * s**2, 0) + expectation(2 * r**2, 0) - 2 * expectation(s**2 + r**2, dim * shift**2)
    draws = [float(mmd(*pair(1000, 700, dim, seed=seed), bandwidth=h)) for seed in range(30)]
    assert abs(np.mean(draws) - exact) < 4 * np.std(draws, ddof=1) / np.sqrt(30)
    assert np.std(draws) < 0.2 * exact


def test_mmd_is_unbiased_when_the_laws_are_the_same():
    rng = np.random.default_rng(3)
    draws = [float(mmd(*rng.normal(size=(2, 12, 2)).astype("f4"), bandwidth=1.0)) for _ in range(400)]
    assert abs(np.mean(draws)) < 4 * np.std(draws) / 20
    assert min(draws) < 0 < max(draws)


@pytest.mark.parametrize(("n", "m"), [(50, 50), (50, 70), (1, 9), (64, 63)])
@pytest.mark.parametrize("order", [1, 2, 3.5])
def test_one_dimension_has_one_direction_and_equals_the_transport_cost(n, m, order):
    x, y = pair(n, m, 1)
    u, v = np.sort(np.repeat(x[:, 0].astype("f8"), m)), np.sort(np.repeat(y[:, 0].astype("f8"), n))
    expected = np.mean(np.abs(u - v) ** order) ** (1 / order)
    np.testing.assert_allclose(sliced_wasserstein(KEY, x, y, projections=3, order=order), expected, rtol=2e-6)
    if order == 1:
        np.testing.assert_allclose(expected, scipy.stats.wasserstein_distance(x[:, 0], y[:, 0]), rtol=1e-6)


def test_sliced_wasserstein_is_the_mean_of_scipy_over_directions():
    x, y = pair(40, 57, 3)
    theta = np.asarray(jax.random.normal(KEY, (16, 3)))
    theta = theta / np.linalg.norm(theta, axis=1, keepdims=True)
    expected = np.mean([scipy.stats.wasserstein_distance(x @ d, y @ d) for d in theta])
    np.testing.assert_allclose(sliced_wasserstein(KEY, x, y, projections=16, order=1), expected, rtol=1e-5)


@pytest.mark.slow
def test_sliced_w2_of_isotropic_gaussians_has_its_closed_form():
    """In one dimension W2^2 = <theta, a - b>^2 + (s - r)^2, and the mean of the first is |a - b|^2 / D."""
    dim, shift = 6, 0.5
    got = sliced_wasserstein(KEY, *pair(8000, 6000, dim, shift=shift), projections=1000)
    np.testing.assert_allclose(got, np.sqrt(shift**2 + 0.3**2), rtol=0.03)


@pytest.mark.parametrize(("n", "m"), [(40, 60), (1, 5), (1, 1)])
def test_energy_distance_is_scipys_in_one_dimension(n, m):
    x, y = pair(n, m)
    np.testing.assert_allclose(energy_distance(x, y), scipy.stats.energy_distance(x, y), rtol=1e-5)


def test_energy_distance_is_the_double_loop():
    x, y = pair(21, 34, 2, 2)
    a, b = x.reshape(21, -1).astype("f8"), y.reshape(34, -1).astype("f8")

    def mean(p, q):
        return np.mean([[np.linalg.norm(i - j) for j in q] for i in p])

    expected = 2 * mean(a, b) - mean(a, a) - mean(b, b)
    np.testing.assert_allclose(energy_distance(x, y) ** 2, expected, rtol=1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_order_of_points_sides_and_origin_do_not_matter(metric):
    x, y = pair(300, 257, 5)
    rng = np.random.default_rng(1)
    value = float(metric(x, y))
    assert value > 0.01
    np.testing.assert_allclose(metric(rng.permutation(x), rng.permutation(y)), value, rtol=1e-4)
    np.testing.assert_allclose(metric(y, x), value, rtol=1e-4)
    np.testing.assert_allclose(metric(x + 1024, y + 1024), value, rtol=2e-3)


@pytest.mark.parametrize(("metric", "power"), [(METRICS[1], 1.0), (energy_distance, 0.5), (mmd, 0.0)])
def test_units(metric, power):
    x, y = pair(100, 120, 3)
    np.testing.assert_allclose(metric(8 * x, 8 * y), 8**power * metric(x, y), rtol=1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_identical_and_nearly_identical_points_stay_finite(metric):
    """Rounding of |a|^2 + |b|^2 - 2ab would give a negative square and a NaN distance."""
    x = np.tile(pair(1, 1, 64)[0] * 100, (50, 1))
    assert abs(float(metric(x, x))) < 1e-6
    near = x + np.float32(1e-4) * np.arange(50, dtype="f4")[:, None]
    assert np.isfinite(metric(near, near[::-1])) and abs(metric(near, near[::-1])) < 0.05


@pytest.mark.parametrize("metric", METRICS)
def test_integers_and_jit(metric):
    x, y = (np.clip(np.abs(a) * 40, 0, 255).astype("u1") for a in pair(60, 50, 4, 4))
    np.testing.assert_allclose(metric(x, y), metric(x.astype("f4"), y.astype("f4")), rtol=1e-6)
    np.testing.assert_allclose(jax.jit(metric)(x, y), metric(x, y), rtol=1e-5)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.slow
def test_a_scale_change_of_a_fresh_sample_is_seen(metric):
    x, y = pair(2000, 1500, 2, shift=0.0)
    same = metric(x, np.random.default_rng(9).normal(size=(1500, 2)).astype("f4"))
    assert float(metric(x, y)) > 3 * float(same)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (np.ones((3, 2)), np.ones((3, 4)), r"one event shape, got \(3, 2\) and \(3, 4\)"),
        (np.ones((3, 2)), np.ones((3, 2, 1)), "one event shape"),
        (np.ones(()), np.ones(()), "one event shape"),
        (np.ones((0, 2)), np.ones((3, 2)), "at least . point"),
        (np.ones((3, 2), complex), np.ones((3, 2)), "real numbers"),
    ],
)
def test_refusals(metric, x, y, words):
    with pytest.raises(ValueError, match=words):
        metric(x, y)


def test_refused_arguments():
    x = np.ones((3, 2), "f4")
    with pytest.raises(ValueError, match="at least 2"):
        mmd(x[:1], x)
    for bad in (0.0, -1.0, [1.0, np.nan], []):
        with pytest.raises(ValueError, match="bandwidth > 0"):
            mmd(x, x, bandwidth=bad)
    with pytest.raises(ValueError, match="projections >= 1"):
        sliced_wasserstein(KEY, x, x, projections=0)
    for bad in (0.5, float("nan")):
        with pytest.raises(ValueError, match="order >= 1"):
            sliced_wasserstein(KEY, x, x, order=bad)


@pytest.mark.parametrize("metric", [jax.jit(mmd), jax.jit(energy_distance)])
def test_memory_grows_with_the_rows_not_with_the_pairs(metric):
    """The compiler's own count: 10,000 x 10,000 distances would be 400 MB, with D = 48 differences 19 GB."""
    x = jax.ShapeDtypeStruct((10_000, 48), jnp.float32)
    assert metric.lower(x, x).compile().memory_analysis().temp_size_in_bytes < 200e6
