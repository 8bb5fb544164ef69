"""The variational bounds against exact laws: identities that hold example by example, naive loops and quadrature."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family import Custom, name, textbook
from jax.tree_util import Partial
from scipy.stats import norm

from scoresde import VE, VP, Cosine, GaussianMixture, RectifiedFlow, SubVP, bits_per_dim, likelihood_bound, log_snr_grid
from scoresde.likelihood import discrete_bound, rate_distortion
from scoresde.likelihood.denoising import continuous_path, grid_path

KEY = jax.random.key(23)
# The ends are cut so that the prior mismatch and the loss of the decoder are large enough to be seen.
CUT = (
    VP(beta_max=5.0, t_min=0.05),
    SubVP(beta_min=1.0, beta_max=6.0, t_min=0.2),
    VE(sigma_min=0.2, sigma_max=9.0),
    RectifiedFlow(t_min=0.15, t_max=0.9),
    pytest.param(Custom(t_min=0.05), marks=pytest.mark.slow),
    pytest.param(Cosine(t_min=0.1, t_max=0.9), marks=pytest.mark.slow),
)
SAMPLING = {"draws": 16, "repeats": 512}
MEANS, STDS, WEIGHTS = np.array([[-1.2, 0.3], [1.0, -0.5]]), np.array([0.3, 0.4]), np.array([0.35, 0.65])
X = np.array([[-1.2, 0.3], [0.8, -0.4], [0.0, 0.0], [2.5, 1.5], [-1.0, -1.0]], "f4")
HERMITE = [a / b for a, b in zip(np.polynomial.hermite_e.hermegauss(80), (1, math.sqrt(2 * math.pi)), strict=True)]


def mixture(means=MEANS, stds=STDS, weights=WEIGHTS):
    return GaussianMixture(means[:, :, None], stds, weights)  # events of shape (2, 1)


def law(y, alpha, variance, means=MEANS, stds=STDS, weights=WEIGHTS):
    """log p_t and the score of the mixture at y (n, 2), in NumPy."""
    spread = alpha**2 * stds**2 + variance
    away = y[:, None] - alpha * means
    log_joint = np.log(weights) - 0.5 * np.sum(away**2, 2) / spread - np.log(2 * np.pi * spread)
    log_p = np.logaddexp.reduce(log_joint, 1)
    return log_p, -np.sum(np.exp(log_joint - log_p[:, None])[..., None] * away / spread[:, None], 1)


def log_normal(y, mean, variance):
    return -0.5 * np.sum((y - mean) ** 2, -1) / variance - 0.5 * y.shape[-1] * np.log(2 * np.pi * variance)


def plane():
    """Nodes (n, 2) and weights (n,) of a quadrature for two standard normal variables."""
    z, w = HERMITE
    return np.stack(np.meshgrid(z, z), -1).reshape(-1, 2), np.outer(w, w).ravel()


def losses(sde, x, **mixture):
    """What the bound loses of log p(x_0) by the prior and by the decoder, for one x (2,), by quadrature."""
    eps, w = plane()
    alpha, variance, _, _ = textbook(sde, sde.t_max)
    y = alpha * x + np.sqrt(variance) * eps
    prior = w @ (law(y, alpha, variance, **mixture)[0] - log_normal(y, 0.0, variance))
    alpha, variance, _, _ = textbook(sde, sde.t_min)
    y = alpha * x + np.sqrt(variance) * eps
    log_p, score = law(y, alpha, variance, **mixture)
    posterior = law(x[None], 1.0, 0.0, **mixture)[0] + log_normal(y, alpha * x, variance) - log_p
    decoder = log_normal(x, (y + variance * score) / alpha, variance / alpha**2)
    return prior, w @ (posterior - decoder)


@pytest.mark.parametrize("sde", CUT, ids=name)
def test_the_bound_of_an_exact_score_loses_the_prior_and_the_decoder_alone(sde):
    """For every x_0, not on average: log p(x_0) - bound = E log p_T/prior + E log posterior/decoder. Gaussians next, in
    the same compiled functions: nothing random is left of them."""
    exact = law(X.astype("f8"), 1.0, 0.0)[0]
    got = likelihood_bound(KEY, sde, mixture().score(sde), X[:, :, None], **SAMPLING)
    lost = np.array([losses(sde, x) for x in X.astype("f8")])
    error = np.asarray(got.bound) - (exact - lost.sum(1))
    assert np.all(np.abs(error) < 5 * got.std_error + 1e-4), (error, got.std_error)
    assert np.all(np.asarray(got.std_error) < 0.12) and np.max(np.abs(lost.sum(1))) > 0.09
    np.testing.assert_allclose(got.bound, -(got.prior + got.diffusion + got.reconstruction), rtol=1e-5)
    assert np.all(got.num_evals == 512 * 17) and np.all(got.success)

    std, same = 0.6, {"means": np.zeros((2, 2)), "stds": np.full(2, 0.6), "weights": np.full(2, 0.5)}
    score = mixture(**same).score(sde)
    got = likelihood_bound(KEY, sde, score, X[:, :, None], sigma_data=std, **SAMPLING)
    exact, lost = log_normal(X.astype("f8"), 0.0, std**2), np.array([losses(sde, x, **same) for x in X.astype("f8")])
    np.testing.assert_allclose(got.bound, exact - lost.sum(1), atol=2e-4)
    np.testing.assert_allclose(got.std_error, 0, atol=1e-5)


def test_the_bound_of_a_score_that_is_none():
    """A score of N(0, s^2) too large by a factor c. The reverse SDE then has a Gaussian law, whose variance P obeys
    dP/dtau = -2 (f + c g^2/v) P + g^2 in backward time; each term of the bound is a quadrature of known squares."""
    sde, c, s = VP(t_min=0.01), 1.3, 0.7
    x = np.array([[0.1], [0.9], [-2.0]])

    def score(c, x, t):
        return -c * x / jnp.broadcast_to(sde.alpha(t) ** 2 * s**2 + sde.variance(t), len(x))[:, None]

    def ends(t):
        alpha, variance, f, g2 = textbook(sde, t)
        return alpha, variance, f, g2, alpha**2 * s**2 + variance

    nodes = np.linspace(sde.t_max, sde.t_min, 4001)
    P, step = float(textbook(sde, sde.t_max)[1]), nodes[0] - nodes[1]
    for middle in (nodes[1:] + nodes[:-1]) / 2:
        _, _, f, g2, v = ends(middle)
        rate = 2 * (f + c * g2 / v)
        P = (P * (1 - rate * step / 2) + g2 * step) / (1 + rate * step / 2)
    alpha, variance, _, _, v = ends(sde.t_min)
    model = ((1 - c * variance / v) / alpha) ** 2 * P + variance / alpha**2
    exact = log_normal(x, 0.0, model)

    alpha, variance, _, g2, v = ends(nodes[:, None])
    square = (1 - c * variance / v) ** 2 + (c * np.sqrt(variance) * alpha / v * x.T) ** 2
    diffusion = -0.5 * np.trapezoid(square * g2 / variance, nodes, axis=0)
    got = likelihood_bound(KEY, sde, Partial(score, jnp.asarray(c)), x.astype("f4"), sigma_data=s, **SAMPLING)
    assert np.all(np.abs(got.diffusion - diffusion) < 5 * got.std_error + 1e-3)
    np.testing.assert_allclose(got.prior, 0.5 * textbook(sde, 1.0)[0] ** 2 / textbook(sde, 1.0)[1] * x[:, 0] ** 2, 1e-3)
    rho2 = variance[-1] / alpha[-1] ** 2
    assert np.all(np.abs(got.reconstruction - 0.5 * (np.log(2 * np.pi * rho2) + square[-1])) < 5 * got.std_error + 1e-3)
    assert np.all(np.asarray(got.bound) < exact - 0.05)  # a strict bound on the law of the reverse SDE


LEVELS, MASS, WIDTH, SHIFT = np.arange(5)[:, None], np.array([0.4, 0.1, 0.05, 0.15, 0.3]), 0.5, 2.25
CENTRES = (np.arange(5) + 0.5 - SHIFT) * WIDTH
SDE = VP()
ATOMS = GaussianMixture(CENTRES[:, None], np.full(5, 1e-4), MASS).score(SDE)


def naive_bound(grid):
    """The T-step bound of the five levels, term by term: (prior, diffusion, reconstruction), each (5,)."""
    z, w = HERMITE
    prior, diffusion, reconstruction = np.zeros(5), np.zeros(5), np.zeros(5)
    for k, x in enumerate(CENTRES):
        a, v, _, _ = textbook(SDE, grid[0])
        prior[k] = w @ (
            norm.logpdf(a * x + np.sqrt(v) * z, a * x, np.sqrt(v)) - norm.logpdf(a * x + np.sqrt(v) * z, 0, v**0.5)
        )
        for t, s in zip(grid[:-1], grid[1:], strict=True):
            (a, v, _, _), (a_s, v_s, _, _) = textbook(SDE, t), textbook(SDE, s)
            y = a * x + np.sqrt(v) * z
            ratio = a / a_s
            jump = v - ratio**2 * v_s  # variance of x_t given x_s
            slope, spread = a_s * jump / v, v_s * jump / v  # posterior of x_s: its slope in x_0, and its variance
            diffusion[k] += w @ ((slope * (x - guess(y, a, v))) ** 2 / (2 * spread))
        a, v, _, _ = textbook(SDE, grid[-1])
        y, rho = a * x + np.sqrt(v) * z, np.sqrt(v) / a
        low, high = (x + side * WIDTH / 2 if 0 <= k + side < 5 else side * np.inf for side in (-1, 1))
        D = guess(y, a, v)
        reconstruction[k] = -w @ np.log(norm.cdf((high - D) / rho) - norm.cdf((low - D) / rho))
    return prior, diffusion, reconstruction


def guess(y, alpha, variance):
    """E[x_0 | x_t = y] of the five levels."""
    weight = MASS * np.exp(-0.5 * (y[:, None] - alpha * CENTRES) ** 2 / variance)
    return weight @ CENTRES / weight.sum(1)


def discrete(**settings):
    arguments = {"bin_width": WIDTH, "shift": SHIFT, "num_levels": 5, "draws": 16, "repeats": 128} | settings
    return discrete_bound(KEY, SDE, ATOMS, LEVELS, **arguments)


def test_the_discrete_bound_is_the_naive_sum_and_falls_to_continuous_time():
    t_data = 0.1  # sigma/alpha = 0.33, two thirds of a bin: all three terms matter
    ends = np.array([SDE.t_max, t_data])
    naive = {}
    for steps in (8, 32, 128):
        log_snr = np.linspace(*np.asarray(jax.jit(SDE.log_snr)(ends), np.float64), steps + 1)
        grid = np.array(SDE.time(log_snr), np.float64)
        grid[0], grid[-1] = ends
        naive[steps] = sum(naive_bound(grid))
        if steps == 8:
            got = discrete(grid=grid)
            terms = naive_bound(grid)
            for value, term in zip((got.prior, got.diffusion, got.reconstruction), terms, strict=True):
                assert np.all(np.abs(value - term) < 5 * got.std_error + 2e-4), (steps, value, term, got.std_error)
    continuous = discrete(t_data=t_data)
    costs, entropy = MASS @ np.stack(list(naive.values()), 1), -MASS @ np.log(MASS)
    assert np.all(np.diff(costs) < 0) and costs[-1] > entropy  # on average over the law (Kingma et al. 2021, section 4)
    limit = naive[128] - (naive[32] - naive[128]) / 3  # first order in 1/T
    assert np.all(np.abs(continuous.bound + limit) < 5 * continuous.std_error + 1e-3), (continuous, limit)
    bits = float(bits_per_dim(MASS @ np.asarray(continuous.bound), 1, 1))
    error = np.sqrt(MASS**2 @ np.square(continuous.std_error)) / math.log(2)
    assert entropy / math.log(2) - 5 * error < bits < costs[0] / math.log(2) + 5 * error
    # trained on the levels themselves: from t_min the bound is the exact log-probability
    sharp = discrete(t_data=SDE.t_min)
    assert np.all(np.abs(sharp.bound - np.log(MASS)) < 5 * sharp.std_error + 1e-3)
    assert np.all(np.asarray(sharp.reconstruction) < 1e-6)


def test_rate_distortion_of_a_gaussian_is_shannons():
    sde, std = VP(), 0.8
    x = std * np.random.default_rng(0).normal(size=(50, 3, 1)).astype("f4")
    x *= std / np.sqrt(np.mean(x**2))
    score = GaussianMixture(np.zeros((1, 3, 1)), np.full(1, std), np.ones(1)).score(sde)
    got = rate_distortion(KEY, sde, score, x, log_snr_grid(sde, 400), sigma_data=std)
    shannon = np.log2(std / got.distortion)
    above = got.rate - shannon
    step = got.log_snr[1] - got.log_snr[0]  # sum expm1(h) f <= (1 + h/2 + ...) int f: first order in the step
    assert np.all(above > -1e-4) and np.all(above < 0.52 * step * shannon + 1e-3), above
    np.testing.assert_allclose(got.std_error, 0, atol=1e-5)
    assert np.all(np.diff(got.rate) > 0) and np.all(np.diff(got.distortion) < 1e-5)
    np.testing.assert_array_equal(got.times[[0, -1]], [sde.t_max, sde.t_min])
    np.testing.assert_allclose(got.log_snr, sde.log_snr(got.times), rtol=1e-4)


def test_rate_and_distortion_are_the_bounds_own_numbers():
    grid = np.array([1.0, 0.7, 0.5, 0.3, 0.2, 0.1])
    got = rate_distortion(KEY, SDE, ATOMS, np.repeat(CENTRES, 20)[:, None].astype("f4"), grid, repeats=64)
    prior, diffusion, _ = naive_bound(grid)
    assert abs(got.rate[-1] - np.mean(prior + diffusion) / math.log(2)) < 5 * got.std_error[-1] + 1e-4
    z, w = HERMITE
    for t, distortion in zip(grid, got.distortion, strict=True):
        a, v, _, _ = textbook(SDE, t)
        square = np.mean([w @ (x - guess(a * x + np.sqrt(v) * z, a, v)) ** 2 for x in CENTRES])
        np.testing.assert_allclose(distortion, np.sqrt(square), rtol=0.04)


@pytest.mark.parametrize("sde", [VP(), VE(), Custom()], ids=name)
def test_draws_are_the_importance_sampling_of_the_likelihood_weight(sde):
    """Midpoints of the units integrate a smooth function of t against -dlambda, as the trapezoidal rule in t does."""
    units = jnp.asarray((np.arange(4000) + 0.5) / 4000, "f4")
    t, weight = continuous_path(sde, sde.t_min).draw(sde, units)
    fine = sde.t_min + (sde.t_max - sde.t_min) * np.linspace(0, 1, 400_001) ** 3
    _, variance, _, g2 = textbook(sde, fine)
    expected = np.trapezoid(np.cos(3 * fine) * g2 / variance, fine)
    np.testing.assert_allclose(np.mean(np.cos(3 * np.asarray(t, "f8")) * weight), expected, rtol=2e-3)
    grid = log_snr_grid(sde, 7)
    t, weight = grid_path(sde, grid).draw(sde, units)
    step = np.diff(np.log(textbook(sde, grid)[0] ** 2 / textbook(sde, grid)[1]))
    for i in range(7):
        hit = np.isclose(t, grid[i], rtol=1e-5)
        np.testing.assert_allclose(np.sum(np.asarray(weight)[hit]) / 4000, np.expm1(step[i]), rtol=1e-2)


def test_a_bad_example_fails_alone_and_one_repeat_has_no_error_bar():
    x = np.array([[[0.1]], [[np.nan]], [[0.3]]], "f4")
    got = likelihood_bound(KEY, SDE, lambda x, t: -x, x, draws=1, repeats=1)
    np.testing.assert_array_equal(np.isnan(got.bound), [False, True, False])
    assert np.all(np.isnan(got.std_error))
    np.testing.assert_array_equal(got.success, [True, False, True])
    assert got.message.startswith("1 of 3 examples (first: 1) met a score that is not finite")
    one = rate_distortion(KEY, SDE, lambda x, t: -x, x[:1], np.array([1.0, 0.5]), repeats=1)
    assert np.all(np.isnan(one.std_error)) and np.all(np.isfinite(one.rate))


def test_a_bound_depends_on_the_key_and_the_place_alone_and_may_be_jitted():
    sde = RectifiedFlow(t_min=0.15, t_max=0.9)
    score = mixture().score(sde)
    full = likelihood_bound(KEY, sde, score, X[:, :, None], **SAMPLING)
    part = jax.jit(lambda x: likelihood_bound(KEY, sde, score, x, **SAMPLING))(X[:2, :, None])
    np.testing.assert_allclose(part.bound, full.bound[:2], rtol=1e-4)
    np.testing.assert_allclose(part.std_error, full.std_error[:2], rtol=1e-3)


def test_the_curve_of_a_batch_is_the_mean_of_those_of_its_halves():
    sde, score, grid = VP(), mixture().score(VP()), log_snr_grid(VP(), 4)
    x = mixture().sample(KEY, 6).astype("f4")
    whole, *halves = (
        rate_distortion(KEY, sde, score, part, grid, repeats=2, first=first).rate
        for part, first in ((x, 0), (x[:3], 0), (x[3:], 3))
    )
    np.testing.assert_allclose(np.mean(halves, axis=0), whole, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"x": np.ones((2, 3), np.uint8)}, r"x must be floating point, got uint8: for integer data use discrete_bound"),
        ({"x": np.ones(3, "f4")}, r"x must be floating point of shape \(B, \*event\) with B >= 1, got float32 \(3,\)"),
        ({"draws": 0}, r"draws must be a whole number of at least 1, got 0"),
        ({"repeats": 1.5}, r"repeats must be a whole number of at least 1, got 1\.5"),
        ({"sigma_data": 0.0}, r"sigma_data must be positive and finite, got 0\.0"),
        ({"score": 3}, r"score must be a function \(x, t\) -> array like x, got int"),
        ({"score": lambda x, t: x[:, :1]}, r"score\(x, t\) must return the shape of x, \(2, 3\), got \(2, 1\)"),
    ],
)
def test_refusals(settings, message):
    arguments = {"score": lambda x, t: -x, "x": np.ones((2, 3), "f4")} | settings
    with pytest.raises(ValueError, match="^" + message) as error:
        likelihood_bound(KEY, VP(), **arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"levels": np.ones((2, 3), "f4")}, r"levels must be integers, got float32: for continuous data use"),
        ({"bin_width": 0.0}, r"bin_width must be positive and finite, got 0\.0"),
        ({"num_levels": 1}, r"levels must lie in 0\.\.num_levels - 1 = 0, got 1\.\.1"),
        ({"num_levels": 0}, r"num_levels must be a whole number of at least 1, got 0"),
        ({"levels": np.full((2, 3), 9), "num_levels": 9}, r"levels must lie in 0\.\.num_levels - 1 = 8, got 9\.\.9"),
        ({"grid": np.array([0.5, 0.1])}, r"the grid must begin at t_max = 1, where the prior is, got 0\.5"),
        ({"grid": np.array([1.0, 0.1]), "t_data": 0.1}, r"t_data must be None with a grid, which ends at its own"),
        ({"t_data": 1.0}, r"t_data must be in \[t_min, t_max\) = \[.*, 1\), got 1\.0"),
    ],
)
def test_the_discrete_bound_refuses(settings, message):
    arguments = {"levels": np.ones((2, 3), np.uint8), "bin_width": 0.1} | settings
    with pytest.raises(ValueError, match="^" + message) as error:
        discrete_bound(KEY, VP(), lambda x, t: -x, **arguments)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="the grid must begin at t_max"):
        rate_distortion(KEY, VP(), lambda x, t: -x, np.ones((2, 3), "f4"), np.array([0.5, 0.1]))
