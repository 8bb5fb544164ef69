"""Averages of parameters: profiles against the definition in float64, reconstruction against the true average."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

from scoresde.training import power, reconstruct, reconstruction_weights, warmed
from scoresde.training.average import power_exponent

TOTAL = 1024


def moved(profile, values):
    """The average after every step in float32, as training moves it from an initial value of -50."""

    def step(average, pair):
        n, value = pair
        average = average + (1 - profile(n)) * (value - average)
        return average, average

    start = jnp.full(values.shape[1:], -50, jnp.float32)
    return jax.jit(lambda v: jax.lax.scan(step, start, (jnp.arange(len(v)), v))[1])(jnp.asarray(values, jnp.float32))


def weights_of(gamma, t):
    """The share of every step in the average after t of them, by integrating the profile of the paper's equation 1."""
    return np.append(np.diff((np.arange(t + 1) / t) ** (gamma + 1)), np.zeros(TOTAL - t))


def drift(dimensions=100):
    """Parameters that wander far from zero, as in training."""
    rng = np.random.default_rng(0)
    return 100 + np.cumsum(rng.normal(size=(TOTAL, dimensions)), axis=0)


@pytest.mark.parametrize("sigma_rel", [0.02, 0.05, 0.1, 0.25, 12**-0.5])
def test_the_power_average_is_the_integral_of_its_profile(sigma_rel):
    values, gamma = drift(3), power_exponent(sigma_rel)
    got = moved(power(sigma_rel), values)
    for t in (1, 2, 3, 100, TOTAL):
        np.testing.assert_allclose(got[t - 1], weights_of(gamma, t) @ values, rtol=1e-5)


@pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.1, 0.2, 0.28])
def test_sigma_rel_is_the_standard_deviation_of_the_profile(sigma_rel):
    gamma = power_exponent(sigma_rel)
    moments = [scipy.integrate.quad(lambda s, k=k: (gamma + 1) * s ** (gamma + k), 0, 1)[0] for k in (0, 1, 2)]
    np.testing.assert_allclose(moments[0], 1, rtol=1e-9)
    np.testing.assert_allclose(np.sqrt(moments[2] - moments[1] ** 2), sigma_rel, rtol=1e-6)


def test_the_widest_power_average_is_the_mean_of_all_steps():
    values = drift(3)
    np.testing.assert_allclose(moved(power(12**-0.5), values)[-1], values.mean(0), rtol=1e-5)


def test_late_decays_keep_their_digits():
    """1 - d of a million steps is (gamma + 1)/n, here within the half unit of float32 near one."""
    n = np.array([10**5, 10**6])
    gamma = power_exponent(0.05)
    late = 1 - np.asarray(power(0.05)(jnp.asarray(n)), np.float64)
    np.testing.assert_allclose(late, -np.expm1((gamma + 1) * np.log(n / (n + 1))), atol=4e-8)


def test_the_warmed_average_is_the_running_one():
    values, average = drift(3), np.full(3, -50.0)
    for n, value in enumerate(values):
        decay = min(0.9, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * value
    np.testing.assert_allclose(moved(warmed(0.9), values)[-1], average, rtol=1e-5)


def test_profiles_are_compared_by_value():
    assert power(0.1) == power(0.1) and hash(power(0.1)) == hash(power(0.1)) and power(0.1) != power(0.2)
    assert warmed(0.9) == warmed(0.9) and hash(warmed(0.9)) == hash(warmed(0.9)) and warmed(0.9) != power(0.2)


def snapshots(count, values, lengths=(0.05, 0.10)):
    """``count`` equally spaced snapshots of the true averages of each length."""
    for step in np.arange(1, count + 1) * TOTAL // count:
        for length in lengths:
            mean = weights_of(power_exponent(length), step) @ values
            yield int(step), length, {"w": jnp.asarray(mean, jnp.float32), "deep": {"b": mean[:2].astype("f4")}}


@pytest.mark.parametrize(("count", "at", "between"), [(8, 0.06, 0.2), (32, 0.003, 0.06)])
def test_reconstruction_is_near_the_true_average(count, at, between):
    """Against the true average of the other length, relative to how far apart the averages of the stored lengths are;
    and the profile's error that is reported is the one by brute force over steps."""
    values = drift()
    stored = list(snapshots(count, values))
    apart = np.std(stored[-1][2]["w"] - stored[-2][2]["w"])
    for length in (0.04, 0.07, 0.15, 0.2):
        for step, most in ((TOTAL, at), (3 * TOTAL // 4 + 5, between)):  # at a snapshot and between two
            truth = weights_of(power_exponent(length), step)
            weights, error = reconstruction_weights([s for s, *_ in stored], [r for _, r, _ in stored], length, step)
            np.testing.assert_allclose(weights.sum(), 1, rtol=1e-9)
            profile = sum(w * weights_of(power_exponent(r), s) for w, (s, r, _) in zip(weights, stored, strict=True))
            brute = np.linalg.norm(profile - truth) / np.linalg.norm(truth)
            assert abs(brute - error) < 1e-3, (brute, error)
            got = reconstruct(stored, length, step)
            assert np.std(got["w"] - truth @ values) < most * apart, (length, step)
            np.testing.assert_array_equal(got["deep"]["b"], got["w"][:2])


def test_a_stored_average_is_given_back():
    stored = list(snapshots(8, drift()))
    for step, length, params in stored:
        weights, error = reconstruction_weights([s for s, *_ in stored], [r for _, r, _ in stored], length, step)
        assert error < 1e-6 and np.count_nonzero(np.abs(weights) > 1e-6) == 1
        np.testing.assert_allclose(reconstruct(stored, length, step)["w"], params["w"], rtol=1e-5)


def test_what_does_not_move_stays_and_trees_may_be_read_one_by_one():
    constant = {"a": np.float32([3.25, -1e4])}
    read = [(step, 0.1, lambda: constant) for step in (10, 20, 30)]
    np.testing.assert_array_equal(reconstruct(read, 0.25)["a"], constant["a"])  # far from any stored length
    np.testing.assert_array_equal(reconstruct(read * 2, 0.1)["a"], constant["a"])  # and with every snapshot twice


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: warmed(1.0), r"decay must be in \[0, 1\), got 1\.0"),
        (lambda: power(0.0), r"sigma_rel must be in \(0, 0\.288675\], got 0\.0"),
        (lambda: power(0.3), r"sigma_rel must be in \(0, 0\.288675\], got 0\.3"),
        (lambda: reconstruct([], 0.1), r"expected as many steps as sigma_rels, at least one, got 0 and 0"),
        (lambda: reconstruct([(0, 0.1, {})], 0.1), r"steps of snapshots must be at least 1, got 0"),
        (lambda: reconstruct([(9, 0.1, {})], 0.1, 10), r"step must be in 1\.\.9, the last snapshot's, got 10"),
        (lambda: reconstruct([(9, 0.5, {})], 0.1), r"sigma_rel must be in \(0, 0\.288675\], got 0\.5"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match="^" + message):
        make()
