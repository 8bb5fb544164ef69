"""What a network predicts: exact targets give the exact score; EDM's and v-prediction's published formulas; float32."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family import SDES, VE, VP, assert_moments, float64, name, textbook

from scoresde import Cosine, GaussianMixture, Preconditioner, log_normal, precond

PREDICTIONS = (precond.noise, precond.data, precond.velocity, precond.karras, precond.score)
KEY = jax.random.key(2)
MEAN, STD, SIGMA_DATA = np.array([0.5, -1.0, 0.2]), np.array([0.6, 1.4, 0.9]), 1.3


def exact_output(prediction, sde, u, c):
    """The target's conditional mean for x_0 ~ N(MEAN, STD^2), in the VE picture y = x/alpha = x_0 + rho eps."""
    rho = SIGMA_DATA * np.exp(np.asarray(c, np.float64))[:, None]
    y = np.asarray(u, np.float64) * np.sqrt(SIGMA_DATA**2 + rho**2)
    x_0 = (STD**2 * y + rho**2 * MEAN) / (STD**2 + rho**2)
    eps = rho * (y - MEAN) / (STD**2 + rho**2)
    cos, sin = SIGMA_DATA / np.hypot(SIGMA_DATA, rho), rho / np.hypot(SIGMA_DATA, rho)
    v = cos * eps - sin * x_0 / SIGMA_DATA
    with jax.enable_x64(True):
        sigma = np.asarray(sde.sigma(sde.time(-2 * np.log(rho))))
    return {"noise": eps, "data": x_0, "velocity": v, "karras": -v, "score": -eps / sigma}[prediction.__name__]


def states(sde, times):
    rng = np.random.default_rng(4)
    x_0, eps = MEAN + STD * rng.normal(size=(len(times), 3)), rng.normal(size=(len(times), 3))
    alpha, variance, _, _ = textbook(sde, times)
    return alpha[:, None] * x_0 + np.sqrt(variance)[:, None] * eps


def exact_score(sde, x, t):
    alpha, variance, _, _ = textbook(sde, t)
    return -(x - alpha[:, None] * MEAN) / (alpha[:, None] ** 2 * STD**2 + variance[:, None])


@pytest.mark.parametrize("prediction", PREDICTIONS, ids=name)
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_the_exact_target_gives_the_exact_score(x64, sde, prediction):
    t = np.linspace(max(sde.t_min, 1e-2), sde.t_max, 23)
    x = states(sde, t)
    score = Preconditioner(sde, SIGMA_DATA, prediction).score(lambda u, c: float64(exact_output(prediction, sde, u, c)))
    np.testing.assert_allclose(score(float64(x), float64(t)), exact_score(sde, x, t), rtol=1e-7, atol=1e-9)
    one = score(float64(x), float64(t[5]))  # a scalar time
    np.testing.assert_allclose(one, exact_score(sde, x, np.full(23, t[5])), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("prediction", PREDICTIONS, ids=name)
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_float32_at_both_ends_of_time(sde, prediction):
    """With the exact output rounded to float32, noise_hat = -sigma score keeps float32 precision at both ends of time
    for noise, velocity, karras and score. ``data`` keeps it at the noise end only: near the data it divides the
    rounding of x by sigma/alpha, and loses as many digits as the signal-to-noise ratio has."""
    t = np.float32(np.concatenate([np.geomspace(sde.t_min or 1e-6, 0.1, 9), np.linspace(0.2, 1, 9) * sde.t_max]))
    t = np.clip(t, np.float32(sde.t_min), np.float32(sde.t_max)).astype("f4")
    x = states(sde, t).astype("f4")
    seen = {}
    with jax.enable_x64(True):
        pre = Preconditioner(sde, SIGMA_DATA, prediction)
        pre.score(lambda u, c: seen.setdefault("F", exact_output(prediction, sde, u, c)))(float64(x), float64(t))
    output = seen["F"].astype("f4")
    got = np.asarray(pre.score(lambda u, c: jnp.asarray(output))(jnp.asarray(x), jnp.asarray(t)), np.float64)
    alpha, variance, _, _ = textbook(sde, t)
    error = np.max(np.abs(got - exact_score(sde, x, t)), 1) * np.sqrt(variance)
    rho = np.sqrt(variance) / alpha
    if prediction is precond.data:
        assert np.all(error < 3e-6 * (1 + 1 / rho))
        assert error[-1] < 1e-5 < np.max(error[:3]) or sde.t_min == 0
    else:
        assert np.all(error < 3e-6), error


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_which_error_of_the_network_is_amplified_where(x64, sde):
    """An error delta of F moves noise_hat by |q| delta and D = E[x_0 | x] by (sigma/alpha) |q| delta. Only velocity and
    karras keep both bounded (by 1 and sigma_data); noise and score lose D at the noise end, data the noise at the
    data end."""
    t = np.array([sde.t_min, sde.t_max])
    x = float64(states(sde, t))
    alpha, variance, _, _ = textbook(sde, t)
    rho = np.sqrt(variance) / alpha
    amplification = {}
    for prediction in PREDICTIONS:
        pre = Preconditioner(sde, SIGMA_DATA, prediction)
        shift = pre.score(lambda u, c: jnp.ones_like(u))(x, float64(t)) - pre.score(lambda u, c: 0 * u)(x, float64(t))
        amplification[prediction.__name__] = np.abs(np.asarray(shift))[:, 0] * np.sqrt(variance)
    for form in ("velocity", "karras"):
        assert np.all(amplification[form] <= 1 + 1e-9)
        assert np.all(rho * amplification[form] <= SIGMA_DATA * (1 + 1e-9))
    np.testing.assert_allclose(amplification["noise"], 1, rtol=1e-8)
    np.testing.assert_allclose(amplification["data"], 1 / rho, rtol=1e-6)
    np.testing.assert_allclose(amplification["score"], np.sqrt(variance), rtol=1e-6)


def any_network(u, c):
    return jnp.sin(3 * u) + c[:, None] * u**2


@pytest.mark.parametrize("sigma_data", [0.5, 2.0])
def test_karras_on_ve_is_edm(x64, sigma_data):
    """D = c_skip x + c_out F(c_in x, c_noise): Karras et al. (2022), table 1, whose c_noise is (log sigma)/4."""
    sde, rng = VE(0.002, 80.0), np.random.default_rng(0)
    t = np.linspace(0, 1, 11)
    sigma = np.asarray(sde.sigma(t))[:, None]
    x = rng.normal(size=(11, 3)) * np.sqrt(sigma**2 + sigma_data**2)
    c_skip = sigma_data**2 / (sigma**2 + sigma_data**2)
    c_out = sigma * sigma_data / np.sqrt(sigma**2 + sigma_data**2)
    c_in = 1 / np.sqrt(sigma**2 + sigma_data**2)
    denoised = c_skip * x + c_out * np.asarray(any_network(c_in * x, np.log(sigma / sigma_data)[:, 0]))
    score = Preconditioner(sde, sigma_data, precond.karras).score(any_network)
    np.testing.assert_allclose(x + sigma**2 * score(float64(x), float64(t)), denoised, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("sde", [VP(), Cosine()], ids=name)
def test_velocity_on_variance_preserving_is_v_prediction(x64, sde):
    """x_hat = alpha x - sigma v(x): Salimans and Ho (2022), appendix D."""
    rng = np.random.default_rng(0)
    t = np.linspace(0.02, sde.t_max, 11)
    alpha, variance, _, _ = textbook(sde, t)
    alpha, sigma = alpha[:, None], np.sqrt(variance)[:, None]
    x = rng.normal(size=(11, 3))
    v = np.asarray(any_network(x, np.log(sigma / alpha)[:, 0]))
    score = np.asarray(Preconditioner(sde).score(any_network)(float64(x), float64(t)))
    np.testing.assert_allclose((x + sigma**2 * score) / alpha, alpha * x - sigma * v, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(-sigma * score, sigma * x + alpha * v, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("prediction", PREDICTIONS, ids=name)
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_the_network_sees_unit_variance_and_the_log_noise(sde, prediction):
    seen = {}

    def network(u, c):
        seen.update(u=u, c=c)
        return u

    x_0 = 0.3 * jax.random.normal(KEY, (4000, 2))
    noise = jax.random.normal(jax.random.key(9), x_0.shape)
    pre = Preconditioner.from_data(sde, x_0, prediction)
    for t in (sde.t_min, 0.5, sde.t_max):
        pre.score(network)(sde.perturb(x_0, t, noise), jnp.float32(t))
        assert seen["u"].shape == x_0.shape and seen["c"].shape == (4000,)
        assert_moments(seen["u"], 0.0, 1.0)
        alpha, variance, _, _ = textbook(sde, t)
        np.testing.assert_allclose(seen["c"], np.log(np.sqrt(variance) / alpha / pre.sigma_data), atol=2e-5)


@pytest.mark.parametrize("sigma_data", [0.4, 1.0])
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_the_karras_objective_is_edms_under_its_time_draw(x64, sde, sigma_data):
    """EDM weighs ||D - x_0||^2 by (s^2 + d^2)/(s d)^2, so ||noise_hat - noise||^2 = ||D - x_0||^2/s^2 by
    (s^2 + d^2)/d^2: weight times importance of the log-normal draw is that, up to the mass that the draw cuts off."""
    t, importance = log_normal(-1.0, 1.1)(KEY, sde, 257)
    weight = Preconditioner(sde, sigma_data).karras_weight(-1.0, 1.1)(sde, t)
    alpha, variance, _, _ = textbook(sde, np.asarray(t))
    s2 = variance / alpha**2
    ratio = np.asarray(weight * importance) / ((s2 + sigma_data**2) / sigma_data**2)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-6)
    ends = np.log(
        np.sqrt(textbook(sde, np.array([sde.t_min, sde.t_max]))[1]) / textbook(sde, [sde.t_min, sde.t_max])[0]
    )
    mass = np.diff([0.5 * math.erfc(-(e + 1.0) / 1.1 / math.sqrt(2)) for e in ends])
    np.testing.assert_allclose(ratio[0], mass[0], rtol=1e-6)


def test_from_data_is_the_root_mean_square():
    x = np.random.default_rng(0).normal(size=(50, 3, 2)) * 2 + 1
    for data in (x, x.astype("f4"), jnp.asarray(x, jnp.float32)):
        pre = Preconditioner.from_data(VP(), data, precond.karras)
        np.testing.assert_allclose(pre.sigma_data, math.sqrt(np.mean(x**2)), rtol=1e-6)
        assert pre.prediction is precond.karras and pre.sde == VP()
    bytes_ = np.full((4, 8), 200, np.uint8)  # squares must not wrap around
    assert Preconditioner.from_data(VP(), bytes_).sigma_data == 200


def test_a_preconditioned_partial_keeps_its_arrays_traced():
    traces = []

    @jax.jit
    def f(score, x):
        traces.append(1)
        return score(x, jnp.float32(0.5))

    pre, x = Preconditioner(VP()), jnp.ones((2, 3))
    make = lambda w: jax.tree_util.Partial(apply, w)  # noqa: E731
    outputs = [f(pre.score(make(jnp.float32(w))), x) for w in (0.0, 1.0)]
    assert len(traces) == 1 and not np.allclose(*outputs)


def apply(w, u, c):
    return w * u


def test_sigma_data_may_be_any_number():
    """A standard deviation measured with JAX or NumPy serves like a float."""
    x = jnp.ones((2, 3))
    expected = Preconditioner(VP(), 0.5).score(any_network)(x, 0.3)
    for value in (np.float32(0.5), jnp.float32(0.5)):
        score = Preconditioner(VP(), value).score(any_network)
        np.testing.assert_allclose(jax.jit(lambda score, x: score(x, 0.3))(score, x), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Preconditioner("vp"), r"sde must be an SDE, got 'vp'"),
        (lambda: Preconditioner(VP(), 0.0), r"sigma_data must be positive and finite, got 0\.0"),
        (lambda: Preconditioner(VP(), math.nan), r"sigma_data must be positive and finite, got nan"),
        (lambda: Preconditioner(VP(), 1.0, "velocity"), r"prediction must be a function such as precond\.velocity"),
        (lambda: Preconditioner.from_data(VP(), np.zeros((3, 2))), r"sigma_data must be positive and finite, got 0\.0"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match="^" + message) as error:
        make()
    assert "\n" not in str(error.value)


def test_a_network_of_the_oracles_velocity_reproduces_the_oracle(x64):
    """The converter from a score back to each prediction closes the circle on a mixture, at both ends of time."""
    mixture = GaussianMixture([[-1.0, 0.5], [1.0, 0.0]], [0.2, 0.5], [0.4, 0.6])
    for sde in SDES:
        t = np.array([max(sde.t_min, 1e-4), sde.t_max])
        x = float64(sde.perturb(mixture.sample(KEY, 2), t, np.ones((2, 2))))
        exact = mixture.score(sde)(x, float64(t))
        alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
        eps, data = -sigma * exact, (x + sigma**2 * exact) / alpha
        cos, sin = alpha / jnp.hypot(alpha, sigma), sigma / jnp.hypot(alpha, sigma)
        targets = {"noise": eps, "data": data, "velocity": cos * eps - sin * data, "score": exact}
        for prediction in (precond.noise, precond.data, precond.velocity, precond.score):
            score = Preconditioner(sde, 1.0, prediction).score(lambda u, c, F=targets[prediction.__name__]: F)
            np.testing.assert_allclose(score(x, float64(t)), exact, rtol=1e-7, atol=1e-8)
