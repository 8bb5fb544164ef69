"""The exact mixtures against SciPy, quadrature, automatic differentiation and sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from family import SDES, VP, assert_moments, float64, mixture_moments, name, ring, textbook, two_modes

from scoresde import GaussianMixture

KEY = jax.random.key(5)


def isotropic():
    return GaussianMixture([[-1.0, 0.5, 0.0], [2.0, -1.0, 1.0], [0.3, 0.1, -2.0]], [0.3, 0.8, 1.2], [0.2, 0.5, 0.3])


def diagonal():
    return GaussianMixture([[-1.0, 0.5, 0.0], [2.0, -1.0, 1.0]], [[0.3, 0.8, 1.2], [0.5, 0.1, 2.0]], [3.0, 1.0])


def scipy_log_prob(mixture, x, alpha=1.0, variance=0.0):
    """log sum_k w_k N(x; alpha m_k, alpha^2 s_k^2 + variance), one multivariate normal at a time."""
    weights = np.asarray(mixture.weights) / np.sum(mixture.weights)
    total = 0.0
    for m, s, w in zip(np.asarray(mixture.means), np.asarray(mixture.stds), weights, strict=True):
        covariance = np.diag(np.broadcast_to(alpha**2 * s**2 + variance, m.shape))
        total = total + w * scipy.stats.multivariate_normal(alpha * m, covariance).pdf(x)
    return np.log(total)


@pytest.mark.parametrize("make", [isotropic, diagonal, two_modes, ring])
def test_log_prob_is_scipys(x64, make):
    mixture = make()
    x = np.random.default_rng(0).normal(size=(9, mixture.event_shape[0]))
    np.testing.assert_allclose(mixture.log_prob(x), scipy_log_prob(mixture, x), rtol=1e-10)


@pytest.mark.parametrize("make", [two_modes, lambda: ring(5, 0.2)])
def test_density_and_its_marginals_integrate_to_one(x64, make):
    sde, axis = VP(), np.linspace(-6, 6, 241)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    for mixture in (make(), make().marginal(sde, 0.2), make().marginal(sde, 1.0)):
        np.testing.assert_allclose(np.sum(np.exp(mixture.log_prob(grid))) * (axis[1] - axis[0]) ** 2, 1, rtol=1e-8)


@pytest.mark.parametrize("make", [isotropic, diagonal])
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_marginal_and_score_at_every_time(x64, sde, make):
    """The marginal law is SciPy's mixture, and the score its gradient by automatic differentiation, from end to end."""
    mixture = make()
    times = sde.t_min + (sde.t_max - sde.t_min) * np.array([0.0, 1e-3, 0.1, 0.5, 0.9, 1.0])
    score, x_0 = mixture.score(sde), np.asarray(mixture.sample(KEY, len(times)))
    alpha, variance, _, _ = textbook(sde, times)
    x = alpha[:, None] * x_0 + np.sqrt(variance)[:, None] * np.random.default_rng(1).normal(size=x_0.shape)
    together = score(float64(x), float64(times))
    for i, t in enumerate(times):
        marginal = mixture.marginal(sde, t)
        row = float64(x[i : i + 1])
        np.testing.assert_allclose(
            marginal.log_prob(row)[0], scipy_log_prob(mixture, x[i], alpha[i], variance[i]), rtol=1e-8
        )
        gradient = jax.grad(lambda x, marginal=marginal: marginal.log_prob(x)[0])(row)
        np.testing.assert_allclose(score(row, jnp.asarray(t)), gradient, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(together[i], gradient[0], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("make", [isotropic, diagonal, two_modes])
def test_samples_have_the_moments(make):
    mixture = make()
    mean, std = mixture_moments(mixture)
    assert_moments(jax.jit(mixture.sample, static_argnums=1)(KEY, 20_000), mean, std)


def test_samples_fall_to_the_modes_by_weight():
    mixture = GaussianMixture([[-9.0], [0.0], [9.0]], [0.1, 1.0, 0.1], [1.0, 2.0, 5.0])
    x = np.asarray(mixture.sample(KEY, 8000))[:, 0]
    counts = [np.sum(x < -5), np.sum(np.abs(x) <= 5), np.sum(x > 5)]
    assert scipy.stats.chisquare(counts, 8000 * np.array([1, 2, 5]) / 8).pvalue > 1e-6
    for low, high, law in ((-12, -5, (-9, 0.1)), (-5, 5, (0, 1.0)), (5, 12, (9, 0.1))):
        inside = x[(x > low) & (x < high)]
        assert scipy.stats.kstest(inside, scipy.stats.norm(*law).cdf).pvalue > 1e-6


def test_sample_i_is_independent_of_n():
    mixture = isotropic()
    np.testing.assert_array_equal(mixture.sample(KEY, 9)[:4], mixture.sample(KEY, 4))
    assert not np.array_equal(mixture.sample(KEY, 4), mixture.sample(jax.random.key(6), 4))


def test_image_shaped_events_are_flat_events(x64):
    sde, flat = VP(), diagonal()
    shaped = GaussianMixture(flat.means.reshape(2, 3, 1, 1), flat.stds.reshape(2, 3, 1, 1), flat.weights)
    also = GaussianMixture(isotropic().means.reshape(3, 1, 3), isotropic().stds, isotropic().weights)
    x = np.random.default_rng(2).normal(size=(4, 3))
    t = float64([0.1, 0.3, 0.6, 1.0])
    for image, vector in ((shaped, flat), (also, isotropic())):
        state = float64(x.reshape(4, *image.event_shape))
        np.testing.assert_allclose(image.log_prob(state), vector.log_prob(x), rtol=1e-12)
        got = image.score(sde)(state, t)
        assert got.shape == state.shape
        np.testing.assert_allclose(got.reshape(4, 3), vector.score(sde)(float64(x), t), rtol=1e-12)
        assert image.sample(KEY, 5).shape == (5, *image.event_shape)


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_float32_score_keeps_its_digits_at_both_ends(sde):
    """sigma * score is of order one everywhere, and its float32 error stays at rounding times the distance of modes."""
    mixture = two_modes()
    for t in (sde.t_min, sde.t_max):
        with jax.enable_x64(True):
            double = two_modes()
            x = np.asarray(sde.perturb(double.sample(KEY, 64), t, jax.random.normal(KEY, (64, 2)))).astype("f4")
            exact = np.asarray(double.score(sde)(float64(x), float64(t)) * sde.sigma(t))
        got = np.asarray(mixture.score(sde)(x, jnp.float32(t)) * sde.sigma(t))
        np.testing.assert_allclose(got, exact, atol=3e-5)


def test_the_score_has_the_dtype_of_x(x64):
    x = jnp.zeros((3, 2), jnp.float32)
    assert two_modes().score(VP())(x, jnp.float32(0.5)).dtype == jnp.float32
    assert two_modes().log_prob(x).dtype == jnp.float32


def test_whole_numbers_are_numbers(x64):
    x = np.array([[1, 0], [-1, 2]])
    np.testing.assert_allclose(two_modes().log_prob(x), scipy_log_prob(two_modes(), x), rtol=1e-10)


def test_far_away_the_score_points_back(x64):
    """Where every density underflows the nearest component decides: no NaN, and the exact linear pull."""
    mixture = GaussianMixture([[-1.0], [1.0]], [0.1, 0.1], [0.5, 0.5])
    x = float64([[1e3], [-1e3]])
    np.testing.assert_allclose(
        mixture.score(VP())(x, float64(1e-5)), -(np.asarray(x) - [[1.0], [-1.0]]) / 0.01, rtol=1e-3
    )
    assert np.all(np.isfinite(mixture.log_prob(x)))


def test_a_mixture_is_a_pytree_and_its_score_takes_it_as_an_argument():
    mixture, traces = two_modes(), []

    @jax.jit
    def f(score, x):
        traces.append(1)
        return score(x, jnp.float32(0.3))

    x = jnp.ones((2, 2))
    moved = jax.tree.map(lambda a: a * 1.1, mixture)
    first, second = f(mixture.score(VP()), x), f(moved.score(VP()), x)
    assert len(traces) == 1 and not np.allclose(first, second)
    np.testing.assert_allclose(second, moved.score(VP())(x, 0.3), rtol=1e-5)
    np.testing.assert_allclose(jnp.sum(mixture.weights), 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.0, 1.0], [1.0, 1.0], [1.0, 1.0]), r"means must have shape \(K, \*event\), got \(2,\)"),
        (([[0.0], [1.0]], [1.0], [1.0, 1.0]), r"stds must have shape \(2,\) or \(2, 1\), got \(1,\)"),
        (([[0.0], [1.0]], [1.0, 1.0], [1.0]), r"weights must have shape \(2,\), got \(1,\)"),
        (([[0.0], [1.0]], [1.0, 0.0], [1.0, 1.0]), r"stds must be positive and finite, got \[1\.0, 0\.0\]"),
        (([[0.0], [1.0]], [1.0, 1.0], [1.0, -2.0]), r"weights must be positive and finite, got \[1\.0, -2\.0\]"),
        (([[0.0], [1.0]], [1.0, np.nan], [1.0, 1.0]), r"stds must be positive and finite, got \[1\.0, nan\]"),
        (([[0.0], [np.inf]], [1.0, 1.0], [1.0, 1.0]), r"means must be finite"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match="^" + message):
        GaussianMixture(*arguments)


def test_an_x_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"x must have shape \(B, 2\) like the means, got \(4, 3\)"):
        two_modes().log_prob(jnp.ones((4, 3)))
    with pytest.raises(ValueError, match=r"x must have shape \(B, 2\) like the means, got \(2,\)"):
        two_modes().score(VP())(jnp.ones(2), jnp.float32(0.5))
