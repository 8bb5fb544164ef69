"""Denoising score matching: expectations against quadrature and each other, stationarity at the exact score, draws."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from family import SDES, SDES_IN_TURN, VP, name, shifted, textbook, two_modes

from scoresde import VE, Preconditioner, denoising_score_matching, likelihood_weight, log_normal, noise_weight
from scoresde.training import stratified, uniform, uniform_log_snr

KEY = jax.random.key(13)
DRAWS = {"uniform": uniform, "stratified": stratified, "uniform_log_snr": uniform_log_snr, "log_normal": log_normal()}
WEIGHTS = {
    "noise": noise_weight,
    "likelihood": likelihood_weight,
    "karras": lambda sde, t: Preconditioner(sde, 0.7).karras_weight(-0.5, 1.0)(sde, t),
}


def mean_and_error(values):
    values = np.asarray(values, np.float64)
    return values.mean(), values.std(ddof=1) / math.sqrt(len(values))


@pytest.mark.parametrize("sde", SDES_IN_TURN, ids=name)
def test_the_exact_score_is_stationary_and_minimal(sde):
    """Scores s + theta b(u)/sigma, u = x/sqrt(alpha^2 + sigma^2), have a loss a + c theta^2: zero slope at the truth
    within five standard errors, and with the same noise more loss at +-theta, for each of three directions b."""
    mixture = two_modes()
    exact = mixture.score(sde)
    directions = (lambda u: u, jnp.ones_like, lambda u: jnp.sin(3 * u))

    def loss(theta, key):
        key_x, key_loss = jax.random.split(key)

        def score(x, t):
            u = x / jnp.hypot(sde.alpha(t), sde.sigma(t))[:, None]
            bend = sum(p * b(u) for p, b in zip(theta, directions, strict=True))
            return exact(x, t) + bend / sde.sigma(t)[:, None]

        return jnp.mean(denoising_score_matching(key_loss, sde, score, mixture.sample(key_x, 64)))

    thetas = jnp.concatenate([jnp.zeros((1, 3)), 0.3 * jnp.eye(3), -0.3 * jnp.eye(3)])
    draws = jax.jit(jax.vmap(lambda key: (jax.grad(loss)(jnp.zeros(3), key), jax.vmap(loss, (0, None))(thetas, key))))
    gradients, losses = map(np.asarray, draws(jax.random.split(KEY, 256)))
    error = gradients.std(0, ddof=1) / 16
    assert np.all(np.abs(gradients.mean(0)) < 5 * error), (gradients.mean(0), error)
    for moved in losses.T[1:]:
        mean, error = mean_and_error(moved - losses[:, 0])
        assert mean > 5 * error


def expected_loss(sde, weight, variance, shrink):
    """For x_0 ~ N(0, variance) and the score -shrink x/(alpha^2 variance + sigma^2), by quadrature over log t:

    with v = alpha^2 s^2 + sigma^2, E(sigma score + eps)^2 = shrink^2 sigma^2/v - 2 shrink sigma^2/v + 1.
    """

    def integrand(t):
        alpha, sigma2, _, _ = textbook(sde, t)
        share = sigma2 / (alpha**2 * variance + sigma2)
        return weight(t) * (share * (shrink**2 - 2 * shrink) + 1)

    edges = np.concatenate([[sde.t_min], np.geomspace(max(sde.t_min, 1e-4), sde.t_max, 30)[1:]])
    total = sum(scipy.integrate.quad(integrand, a, b, epsrel=1e-9)[0] for a, b in zip(edges, edges[1:], strict=False))
    return total / (sde.t_max - sde.t_min)


@pytest.mark.parametrize("sde", SDES_IN_TURN, ids=name)
def test_the_expected_loss_is_the_quadrature_under_every_time_draw(x64, sde):
    """Three weighted objectives, four draws, one number each: the draws differ in variance alone."""
    variance, shrink = 0.6, 0.8

    def score(x, t):
        alpha, sigma2 = sde.alpha(t)[:, None], sde.variance(t)[:, None]
        return -shrink * x / (alpha**2 * variance + sigma2)

    def karras(t):
        alpha, sigma2, _, g2 = textbook(sde, t)
        rho = np.sqrt(sigma2) / alpha
        density = scipy.stats.norm(-0.5, 1.0).pdf(np.log(rho)) * 0.5 * g2 / sigma2
        return (rho**2 + 0.7**2) / 0.7**2 * density * (sde.t_max - sde.t_min)

    published = {
        "noise": lambda t: 1.0,
        "likelihood": lambda t: textbook(sde, t)[3] / textbook(sde, t)[1],
        "karras": karras,
    }

    @jax.jit
    def batches(keys):
        def batch(key):
            key_x, key_loss = jax.random.split(key)
            x = math.sqrt(variance) * jax.random.normal(key_x, (512, 2))
            return {
                (weight, draw): jnp.mean(
                    denoising_score_matching(key_loss, sde, score, x, weight=WEIGHTS[weight], times=DRAWS[draw])
                )
                for weight in WEIGHTS
                for draw in DRAWS
            }

        return jax.lax.map(batch, keys)

    values = batches(jax.random.split(KEY, 100))
    for weight in WEIGHTS:
        exact = expected_loss(sde, published[weight], variance, shrink)
        for draw in DRAWS:
            if weight == "likelihood" and draw in ("uniform", "stratified") and sde.t_min > 0:
                continue  # 1/t at the data end: an estimate of finite but useless variance
            mean, error = mean_and_error(values[weight, draw])
            assert abs(mean - exact) < 5 * error, (weight, draw, mean, exact, error)
        assert mean_and_error(values["noise", "stratified"])[1] < 0.02 * exact or weight != "noise"
        assert mean_and_error(values["likelihood", "uniform_log_snr"])[1] < 0.02 * exact or weight != "likelihood"


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_every_draw_is_inside_and_its_importance_averages_to_one(sde):
    """E_q[1/q] = 1 over [t_min, t_max]: where a draw has full support the mean importance is one."""
    for draw in DRAWS.values():
        t, importance = draw(KEY, sde, 4096)
        assert t.shape == importance.shape == (4096,) and t.dtype == importance.dtype == jnp.float32
        assert np.all((t >= np.float32(sde.t_min)) & (t <= np.float32(sde.t_max)))
        assert np.all(np.isfinite(importance)) and np.all(importance > 0)
    t, importance = uniform_log_snr(KEY, sde, 4096)  # smooth in log-SNR: stratified sums are almost exact
    np.testing.assert_allclose(np.mean(importance), 1, rtol=1e-3)
    np.testing.assert_array_equal(stratified(KEY, sde, 7)[1], 1)
    np.testing.assert_array_equal(uniform(KEY, sde, 7)[1], 1)


def test_stratified_times_are_evenly_spaced_for_every_batch_size():
    sde = VP()
    for n in (1, 2, 3, 5, 7, 64, 100, 127, 1000, 2047, 2048):
        t = np.sort(np.asarray(stratified(KEY, sde, n)[0], np.float64))
        assert t.shape == (n,) and t[0] >= np.float32(sde.t_min) and t[-1] <= sde.t_max
        np.testing.assert_allclose(np.diff(t), (sde.t_max - sde.t_min) / n, atol=3e-7)


@pytest.mark.slow
def test_stratified_times_are_evenly_spaced_for_all_batch_sizes():
    for n in range(1, 2049):
        t = np.sort(np.asarray(stratified(KEY, VP(), n)[0], np.float64))
        np.testing.assert_allclose(np.diff(t), (VP().t_max - VP().t_min) / n, atol=3e-7)
        assert t.shape == (n,) and t[0] >= np.float32(VP().t_min) and t[-1] <= VP().t_max


@pytest.mark.parametrize("draw", ["uniform", "stratified"])
def test_each_time_alone_is_uniform(draw):
    """Over many keys the first time of a batch is uniform: the shift is random, not only the batch even."""
    sde = VP()
    t = jax.vmap(lambda key: DRAWS[draw](key, sde, 5)[0])(jax.random.split(KEY, 4000))
    for i in (0, 4):
        law = scipy.stats.uniform(sde.t_min, sde.t_max - sde.t_min)
        assert scipy.stats.kstest(np.asarray(t[:, i]), law.cdf).pvalue > 1e-6
    if draw == "uniform":
        assert abs(np.corrcoef(np.asarray(t).T)[0, 1]) < 5 / math.sqrt(4000)


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_uniform_log_snr_follows_the_cdf_of_g2_over_sigma2(sde):
    """The share of times below t is int_tmin^t g^2/sigma^2 over the whole integral, by quadrature of the formulas."""
    t = np.sort(np.asarray(uniform_log_snr(KEY, sde, 2000)[0], np.float64))
    edges = np.quantile(t, [0.05, 0.25, 0.5, 0.75, 0.95])

    def rate(t):
        _, variance, _, g2 = textbook(sde, t)
        return g2 / variance

    knots = np.concatenate([[sde.t_min], edges, [sde.t_max]])
    pieces = [
        scipy.integrate.quad(rate, a, b, epsrel=1e-8, limit=200)[0] for a, b in zip(knots, knots[1:], strict=False)
    ]
    cdf = np.cumsum(pieces) / np.sum(pieces)
    np.testing.assert_allclose(cdf[:-1], [0.05, 0.25, 0.5, 0.75, 0.95], atol=2e-3)


@pytest.mark.parametrize(("p_mean", "p_std"), [(-1.0, 1.5)])
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_log_normal_is_a_cut_normal_in_log_sigma(sde, p_mean, p_std):
    t, _ = jax.jit(jax.vmap(lambda key: log_normal(p_mean, p_std)(key, sde, 4)))(jax.random.split(KEY, 1000))
    alpha, variance, _, _ = textbook(sde, np.asarray(t, np.float64)[:, 0])
    ends = textbook(sde, np.array([sde.t_min, sde.t_max]))
    low, high = (np.log(np.sqrt(ends[1]) / ends[0]) - p_mean) / p_std
    law = scipy.stats.truncnorm(low, high, loc=p_mean, scale=p_std)
    assert scipy.stats.kstest(np.log(np.sqrt(variance) / alpha), law.cdf).pvalue > 1e-6
    together = np.sort(np.asarray(log_normal(p_mean, p_std)(KEY, sde, 512)[0], np.float64))
    alpha, variance, _, _ = textbook(sde, together)
    spacing = np.diff(law.cdf(np.log(np.sqrt(variance) / alpha)))
    np.testing.assert_allclose(spacing, 1 / 512, atol=2e-4)


def test_narrow_and_shifted_log_normal_draws_stay_finite():
    for sde in SDES:
        for p_mean, p_std in ((2.0, 0.1), (-4.0, 0.3), (0.0, 5.0)):
            t, importance = log_normal(p_mean, p_std)(KEY, sde, 4096)
            assert np.all(np.isfinite(t)) and np.all(np.isfinite(importance))


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_weights_are_the_published_ones(x64, sde):
    t = np.linspace(max(sde.t_min, 1e-3), sde.t_max, 30)
    _, variance, _, g2 = textbook(sde, t)
    np.testing.assert_allclose(likelihood_weight(sde, jnp.asarray(t)), g2 / variance, rtol=1e-8)
    np.testing.assert_array_equal(noise_weight(sde, jnp.asarray(t)), 1)


def test_the_loss_is_per_example_and_per_dimension():
    """Constant residual 2 in every coordinate gives 4 w for each example, whatever the event's shape."""
    sde = VP()
    for event in ((3,), (2, 2, 1)):
        x = jnp.ones((5, *event))

        def score(x_t, t, x=x):
            t = t.reshape(-1, *(1,) * (x.ndim - 1))
            return -((x_t - sde.alpha(t) * x) / sde.sigma(t) - 2) / sde.sigma(t)

        got = denoising_score_matching(KEY, sde, score, x, weight=lambda sde, t: 3 * jnp.ones_like(t))
        assert got.shape == (5,)
        np.testing.assert_allclose(got, 12, rtol=2e-3)


def test_the_likelihood_weighted_loss_bounds_the_likelihood(x64):
    """ScoreFlow, theorem 1, with the exact score is an equality: -E log p = const + half the loss, so the difference of
    half the loss between two scores is the difference of their KL integrals, here in closed form."""
    sde, mixture = VP(), shifted()
    keys = jax.random.split(KEY, 64)
    exact = mixture.score(sde)

    def gap(key):
        key_x, key_loss = jax.random.split(key)
        x = mixture.sample(key_x, 512)

        def loss(score):
            draw = denoising_score_matching(key_loss, sde, score, x, weight=likelihood_weight, times=uniform_log_snr)
            return jnp.mean(draw)

        return loss(lambda x, t: exact(x, t) + 0.1) - loss(exact)

    mean, error = mean_and_error(jax.jit(lambda keys: jax.lax.map(gap, keys))(keys))
    closed, _ = scipy.integrate.quad(lambda t: textbook(sde, t)[3] * 0.01, sde.t_min, sde.t_max)
    assert abs(mean - closed / (sde.t_max - sde.t_min)) < 5 * error


def test_a_mask_averages_over_what_was_observed():
    """The score sees 0 where nothing was observed, whatever lies there, NaN too; the loss is the mean of the rest."""
    sde, rng = VP(), np.random.default_rng(0)
    x = rng.normal(size=(6, 5, 2)).astype("f4")
    mask = rng.random(x.shape) < 0.6
    mask[2], mask[3] = True, False
    seen = []

    def score(x_t, t):
        seen.append(np.asarray(x_t))
        return -0.7 * x_t

    whole = denoising_score_matching(KEY, sde, score, x)
    got = denoising_score_matching(KEY, sde, score, np.where(mask, x, np.nan), mask=mask)
    np.testing.assert_array_equal(seen[1], np.where(mask, seen[0], 0))
    key_times, key_noise = jax.random.split(KEY)
    sigma = np.asarray(sde.sigma(stratified(key_times, sde, 6)[0]))[:, None, None]
    residual = (-0.7 * sigma * seen[0] + np.asarray(jax.random.normal(key_noise, (6, 10))).reshape(x.shape)) ** 2
    expected = [residual[i][mask[i]].mean() if mask[i].any() else 0 for i in range(6)]
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    np.testing.assert_allclose(got[2], whole[2], rtol=1e-6)
    complete = denoising_score_matching(KEY, sde, score, x, mask=np.ones_like(mask))
    np.testing.assert_allclose(complete, whole, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: denoising_score_matching(KEY, VP(), lambda x, t: x, np.ones((3, 2), "f4"), mask=np.ones(3)),
            r"mask must have the shape of x, \(3, 2\), got \(3,\)",
        ),
        (lambda: log_normal(p_std=0.0), r"p_std must be positive, got 0\.0"),
        (
            lambda: denoising_score_matching(KEY, VP(), lambda x, t: x, np.ones(3, "f4")),
            r"x must be floating point of sh",
        ),
        (
            lambda: denoising_score_matching(KEY, VP(), lambda x, t: x, np.ones((3, 2), int)),
            r"x must be floating point",
        ),
        (
            lambda: denoising_score_matching(KEY, VE(), lambda x, t: x[:, :1], np.ones((3, 2), "f4")),
            r"score\(x, t\) must return the shape of x, \(3, 2\), got \(3, 1\)",
        ),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match="^" + message):
        make()
