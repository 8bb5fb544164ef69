"""Editing against closed forms of Gaussians and mixtures, and naive loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family import SDES, assert_moments, float64, gaussian_law, name, score_on, shifted, textbook, two_modes
from jax.tree_util import Partial

import scoresde as ss
from scoresde import editing

KEY = jax.random.key(7)
MEANS, STDS = np.array([[-1.0, 0.5], [2.0, -0.3]]), np.array([[0.4, 0.4], [0.9, 0.3]])
slow = pytest.mark.slow
every_sde = pytest.mark.parametrize("sde", SDES, ids=name)
in_turn = pytest.mark.parametrize(
    "sde", [pytest.param(s, marks=() if isinstance(s, ss.VP) else slow) for s in SDES], ids=name
)


def of_class(sde):
    """score(x, t, cond) of the Gaussian N(MEANS[cond], STDS[cond]^2)."""

    def score(x, t, cond):
        alpha, variance = (jnp.broadcast_to(v, len(x))[:, None] for v in (sde.alpha(t), sde.variance(t)))
        means, stds = (jnp.asarray(v, x.dtype)[cond] for v in (MEANS, STDS))
        return -(x - alpha * means) / (alpha**2 * stds**2 + variance)

    return Partial(score)


def spread(sde, t, std):
    alpha, variance, _, _ = textbook(sde, t)
    return alpha, np.sqrt(alpha**2 * std**2 + variance)


def start_of(sde, t, x):
    """The law (mean, std) of x_t given x at t_min."""
    (alpha, variance, *_), (first, least, *_) = textbook(sde, t), textbook(sde, sde.t_min)
    return alpha / first * x, np.sqrt(variance - (alpha / first) ** 2 * least)


X = np.random.default_rng(1).normal(size=(7, 2)).astype(np.float32)
SHORT = editing.shortened(ss.VP(), editing.noise_time(ss.VP(), 0.8))
BY_NUMBER = {
    "sdedit": lambda y, score, table, first: editing.sdedit(KEY, ss.VP(), score, y, table, first=first),
    "denoised_samples": lambda y, score, table, first: editing.denoised_samples(
        KEY, ss.VP(), score, y, 0.8, table, first=first
    ),
    "denoised_std": lambda y, score, table, first: editing.denoised_std(
        KEY, ss.VP(), score, y, 0.8, probes=1, first=first
    ),
    "noise_level": lambda y, score, table, first: editing.noise_level(
        KEY, ss.VP(), score, y, np.geomspace(0.05, 5, 6), divergence=ss.hutchinson(1, jax.random.normal), first=first
    ).log_likelihood[:, 1:],
}


@pytest.mark.parametrize("method", BY_NUMBER)
def test_each_example_is_edited_by_its_own_number(method):
    """Rows 2..5 are those of the whole, a batch of 7 is one of 3 and one of 4, and other numbers give other noise."""
    score, table = two_modes().score(ss.VP()), ss.ancestral(SHORT, ss.log_snr_grid(SHORT, 4))

    def rows(first, last, number):
        return np.asarray(BY_NUMBER[method](X[first:last], score, table, number))

    whole = rows(0, 7, 0)
    np.testing.assert_allclose(rows(2, 6, 2), whole[2:6], rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(np.concatenate([rows(0, 3, 0), rows(3, 7, 3)]), whole, rtol=2e-4, atol=2e-4)
    assert np.any(np.abs(rows(2, 6, 3) - whole[2:6]) > 1e-3)


@in_turn
def test_sdedit_draws_the_law_of_its_table_given_x(sde):
    mixture, x, share = shifted(), np.array([0.3, 2.0], np.float32), 0.5
    t = float(sde.time((1 - share) * sde.log_snr(sde.t_min) + share * sde.log_snr(sde.t_max)))
    part = editing.shortened(sde, t)
    table = ss.ancestral(part, ss.log_snr_grid(part, 40))
    got = editing.sdedit(KEY, sde, score_on(sde, table, mixture), jnp.tile(x[None], (4000, 1)), table)
    for k in range(2):
        m, s = float(mixture.means[0, k]), float(mixture.stds[0])
        mean, std = gaussian_law(sde, table, m, s, start_of(sde, t, float(x[k])))
        assert_moments(got[:, k : k + 1], mean, std)


@slow
@every_sde
def test_sdedit_tends_to_the_posterior_under_more_noise(sde):
    """x_min given x_t by Bayes' rule, x_t given x: what fine steps of the reverse SDE lead to."""
    m, s, x = 1.5, 0.7, 0.3
    t = float(sde.time(1.0))
    part = editing.shortened(sde, t)
    (a_t, s_t), (a, s_min), (start, noise) = spread(sde, t, s), spread(sde, sde.t_min, s), start_of(sde, t, x)
    gain = a_t / a * s_min**2 / s_t**2
    mean, std = gaussian_law(sde, ss.ancestral(part, ss.log_snr_grid(part, 400)), m, s, (start, noise))
    assert abs(mean - (a * m + gain * (start - a_t * m))) < 0.02 * std
    assert abs(std / np.hypot(gain * noise, s_min * noise / s_t) - 1) < 0.02


@slow
def test_sdedit_keeps_x_at_little_noise_and_forgets_it_at_much():
    sde, score = ss.VP(), shifted().score(ss.VP())
    x = jnp.array([[0.3, 2.0], [1.0, -5.0]])

    def edit(t, x, key=KEY, **options):
        table = ss.ddim(part := editing.shortened(sde, t), ss.log_snr_grid(part, 4))
        return editing.sdedit(key, sde, score, x, table, **options)

    np.testing.assert_allclose(edit(1.001 * sde.t_min, x), x, atol=1e-4)
    np.testing.assert_allclose(edit(1.0, x), edit(1.0, x[::-1]), atol=0.05)
    np.testing.assert_allclose(edit(0.4, x)[1:], edit(0.4, x[1:], first=1), rtol=1e-5)
    assert np.all(np.abs(edit(0.4, x) - edit(0.4, x, jax.random.key(8))) > 1e-3)


@slow
def test_translation_of_gaussians_is_the_optimal_transport_and_returns():
    sde = ss.VP(beta_max=40.0)
    score, x = of_class(sde), MEANS[[0, 0, 1, 0]] + STDS[[0, 0, 1, 0]] * np.random.default_rng(0).normal(size=(4, 2))
    here, there = np.array([0, 0, 1, 0]), np.array([1, 1, 0, 0])
    source, target = (ss.given(score, jnp.asarray(c)) for c in (here, there))
    got = editing.translated(sde, source, target, x, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(got.x, MEANS[there] + STDS[there] / STDS[here] * (x - MEANS[here]), atol=2e-4)
    back = editing.translated(sde, target, source, got.x, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(back.x, x, atol=2e-4)
    assert np.all(got.success) and np.all(got.num_evals > 50) and not np.any(got.at_limit)
    few = editing.translated(sde, source, target, x, max_steps=2)
    assert not np.any(few.success) and np.all(np.isnan(few.x)) and "max_steps = 2" in few.message
    assert np.all(few.time < 0.5)


@slow
def test_interpolation_ends_at_its_ends_and_is_slerp_of_the_latents_between():
    sde = ss.VP(beta_max=40.0)
    score, cond = of_class(sde), np.array([0, 1])
    a, b = MEANS[cond] + STDS[cond] * [[1.0, -0.4], [0.2, 1.5]], MEANS[cond] + STDS[cond] * [[0.7, 1.3], [1.0, 1.0]]
    known = ss.given(score, jnp.asarray(cond))
    got = editing.interpolated(sde, known, a, b, [0.0, 0.3, 1.0], rtol=1e-6, atol=1e-6)
    assert got.shape == (3, 2, 2)
    np.testing.assert_allclose(got[jnp.array([0, 2])], np.stack([a, b]), atol=2e-4)
    za, zb = ((x - MEANS[cond]) / STDS[cond] for x in (a, b))  # the latents, but for 2e-4 of the means
    np.testing.assert_allclose(got[1], MEANS[cond] + STDS[cond] * ss.flow.slerp(za, zb, 0.3), atol=2e-3)
    with pytest.raises(ValueError, match=r"weights must have shape \(n,\)"):
        editing.interpolated(sde, known, a, b, 0.3)


@pytest.mark.parametrize("count", [12, pytest.param(200, marks=slow)])
def test_directions_are_the_means_difference_and_fishers_discriminant(x64, count):
    rng = np.random.default_rng(0)
    z, has = rng.normal(size=(count, 5, 4)) @ rng.normal(size=(4, 4)), rng.random(count) < 0.4
    z[has] += rng.normal(size=(5, 4))
    flat = z.reshape(count, -1)
    d = flat[has].mean(0) - flat[~has].mean(0)
    np.testing.assert_allclose(editing.attribute_direction(z, jnp.asarray(has)), d.reshape(5, 4))
    centred = flat - np.where(has[:, None], flat[has].mean(0), flat[~has].mean(0))
    within = centred.T @ centred / (count - 2)
    for g in (1e-6, 0.1, 0.99):
        w = np.linalg.solve((1 - g) * within + g * np.trace(within) / 20 * np.eye(20), d)
        got = editing.attribute_direction(z, jnp.asarray(has), shrinkage=g)
        assert got.shape == (5, 4)
        np.testing.assert_allclose(got.reshape(-1), (w @ d) / (w @ w) * w, rtol=1e-6, atol=1e-9)


@slow
def test_a_step_along_the_direction_turns_one_class_into_the_other():
    sde, mixture = ss.VP(), two_modes()
    x = mixture.sample(KEY, 300)
    second = x[:, 0] > 0  # ten standard deviations lie between the modes
    score = mixture.score(sde)
    latents = ss.encode(sde, score, x, rtol=1e-3, atol=1e-3).x
    direction = editing.attribute_direction(latents, second)
    moved = editing.edited(
        sde, score, x, lambda z: z + 2 * direction[None] * jnp.where(second, -1, 1)[:, None], rtol=1e-3
    )
    assert np.mean((moved.x[:, 0] > 0) != second) > 0.98


def noisy():
    """A mixture, three observations y and their levels s of noise."""
    return two_modes(), float64([[-1.0, 0.4], [0.1, 0.2], [0.7, -2.0]]), np.array([0.1, 0.6, 2.0])


def log_joint(mixture, y, s):
    """log w_k p(y | k, s) of y (B, D) and s (n,), in NumPy: (B, n, K)."""
    y, means, stds, weights = (np.asarray(v, np.float64) for v in (y, mixture.means, mixture.stds, mixture.weights))
    variances = stds**2 + np.asarray(s)[:, None] ** 2
    squares = np.sum((y[:, None] - means) ** 2, 2)
    return np.log(weights) - 0.5 * (squares[:, None] / variances + y.shape[1] * np.log(2 * np.pi * variances))


@in_turn
def test_denoised_is_the_posterior_mean(x64, sde):
    mixture, y, s = noisy()
    joint = np.stack([log_joint(mixture, y[i : i + 1], s[i : i + 1])[0, 0] for i in range(3)])
    r = np.exp(joint - joint.max(1, keepdims=True))
    centres, stds = np.asarray(mixture.means), np.asarray(mixture.stds)
    kept = (stds**2 / (stds**2 + s[:, None] ** 2))[..., None]
    towards = centres + kept * (np.asarray(y)[:, None] - centres)
    means = np.sum((r / r.sum(1, keepdims=True))[..., None] * towards, 1)
    got = jax.jit(lambda y, s: editing.denoised(sde, mixture.score(sde), y, s))(y, s)
    np.testing.assert_allclose(got, means, rtol=1e-5, atol=1e-6)
    t = editing.noise_time(sde, s)
    np.testing.assert_allclose(np.sqrt(textbook(sde, t)[1]) / textbook(sde, t)[0], s, rtol=1e-6)


@slow
def test_the_spread_of_the_denoised_is_the_posterior_s(x64):
    sde, (mixture, y, s) = ss.VP(), noisy()
    covariances = np.stack([mixture.posterior(np.eye(2), *pair).covariance for pair in zip(y, s.tolist(), strict=True)])
    score, stds = mixture.score(sde), np.sqrt(np.diagonal(covariances, axis1=1, axis2=2))
    np.testing.assert_allclose(editing.denoised_std(KEY, sde, score, y, s), stds, rtol=1e-5)
    many = editing.denoised_std(KEY, sde, score, y, s, probes=4000)  # z_1 (J z)_1 = J_11 + J_12 z_1 z_2
    error = 5 * np.abs(covariances[:, :1, 1]) / np.sqrt(4000)
    assert np.all(np.abs(many**2 - stds**2) < error + 1e-6)


@slow
def test_samples_of_the_denoised_have_the_posterior_law():
    sde, mixture, s, y = ss.VE(), two_modes(), 0.8, np.array([0.1, 0.2])
    part = editing.shortened(sde, editing.noise_time(sde, s))
    table = ss.ancestral(part, ss.log_snr_grid(part, 100))
    got = editing.denoised_samples(KEY, sde, mixture.score(sde), jnp.tile(y[None], (4000, 1)), s, table)
    truth = mixture.posterior(np.eye(2), y, s)
    assert_moments(got, np.asarray(truth.mean), np.sqrt(np.diag(truth.covariance)), bias=0.03)
    jitted = jax.jit(lambda s: editing.denoised(sde, mixture.score(sde), y[None], s))(0.3)
    np.testing.assert_allclose(jitted, editing.denoised(sde, mixture.score(sde), y[None], 0.3), rtol=1e-4)
    with pytest.raises(ValueError, match="the table begins at t = .* make it for shortened"):
        editing.denoised_samples(KEY, sde, mixture.score(sde), y[None], 0.5, table)


def test_noise_outside_the_sde_is_refused_with_its_range():
    sde, score, y = ss.VE(), two_modes().score(ss.VE()), jnp.zeros((2, 2))
    for s in (0.001, 51.0, np.array([0.1, 60.0]), float("nan")):
        with pytest.raises(ValueError, match=r"within \[0.01, 50\], the sigma/alpha of VE from t_min to t_max, got"):
            editing.denoised(sde, score, y, s)
    with pytest.raises(ValueError, match=r"s must be a number or have shape \(2,\), got \(3,\)"):
        editing.denoised(sde, score, y, np.ones(3))
    with pytest.raises(ValueError, match=r"t_max must be one time in \(t_min, t_max\] = \(0, 1\], got 1.5"):
        editing.shortened(sde, 1.5)
    with pytest.raises(ValueError, match="levels must be at least 4 increasing positive"):
        editing.noise_level(KEY, sde, score, y, [0.1, 0.2, 0.2, 0.3])


def log_evidence(mixture, y, s):
    """log p(y | s), (B, n)."""
    return np.logaddexp.reduce(log_joint(mixture, y, s), axis=2)


@slow
def test_what_is_given_of_an_example_goes_with_it():
    sde, cond, y = ss.VP(), np.array([0, 1, 1]), jnp.array([[-1.0, 2.0], [3.0, 0.1], [0.0, 0.0]])
    known, alone = ss.given(of_class(sde), jnp.asarray(cond)), [ss.given(of_class(sde), jnp.array([c])) for c in (0, 1)]
    levels = np.geomspace(0.05, 5, 10)
    whole = editing.noise_level(KEY, sde, known, y, levels)
    std = editing.denoised_std(KEY, sde, known, y, 0.7)
    np.testing.assert_allclose(std, 1 / np.sqrt(1 / STDS[cond] ** 2 + 1 / 0.7**2), rtol=1e-4)
    for i, c in enumerate(cond):
        one = editing.noise_level(KEY, sde, alone[c], y[i : i + 1], levels, first=i)
        np.testing.assert_allclose(one.log_likelihood[0], whole.log_likelihood[i], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(one.s[0], whole.s[i], rtol=1e-4)


@pytest.mark.parametrize("sde", [ss.VP(), pytest.param(ss.VE(), marks=slow)], ids=name)
def test_the_likelihood_of_a_noise_level_is_that_of_the_broadened_law(x64, sde):
    mixture, levels = two_modes(), np.geomspace(0.02, 6.0, 40)
    y = float64([[-1.2, 0.3], [-2.5, 1.0], [4.0, 3.0], [0.1, 0.0]])
    got = editing.noise_level(KEY, sde, mixture.score(sde), y, levels, divergence=ss.exact_divergence)
    exact = log_evidence(mixture, y, levels)
    np.testing.assert_allclose(got.log_likelihood, exact - exact[:, :1], atol=2e-3)
    fine = np.geomspace(0.02, 6.0, 4001)
    exact = log_evidence(mixture, y, fine)
    inside = np.argmax(exact, 1) > 0
    np.testing.assert_array_equal(got.at_edge, ~inside)
    np.testing.assert_allclose(got.s, fine[np.argmax(exact, 1)], rtol=3e-3)
    weight = np.exp(exact - exact.max(1, keepdims=True))
    weight[:, [0, -1]] /= 2
    weight /= weight.sum(1, keepdims=True)
    np.testing.assert_allclose(got.mean, weight @ fine, rtol=3e-3)
    np.testing.assert_allclose(got.std, np.sqrt(weight @ fine**2 - (weight @ fine) ** 2), rtol=5e-3)


@slow
def test_the_level_of_gaussian_data_is_in_closed_form_and_a_prior_moves_its_posterior():
    sde, dims, std = ss.VP(), 40, 0.5
    mixture = ss.GaussianMixture(np.zeros((1, dims)), [std], [1.0])
    truth = np.array([0.2, 0.7, 2.0])
    y = np.hypot(std, truth)[:, None] * np.random.default_rng(0).normal(size=(3, dims))
    levels = np.geomspace(0.02, 6.0, 40)
    got = editing.noise_level(KEY, sde, mixture.score(sde), jnp.asarray(y, jnp.float32), levels)
    np.testing.assert_allclose(got.s, np.sqrt(np.maximum(np.mean(y**2, 1) - std**2, 0.02**2)), rtol=1e-3)
    near = lambda s: -0.5 * ((jnp.log(s) - np.log(1.0)) / 0.01) ** 2  # noqa: E731
    told = editing.noise_level(KEY, sde, mixture.score(sde), jnp.asarray(y, jnp.float32), levels, log_prior=near)
    np.testing.assert_allclose(told.mean, 1.0, rtol=0.03)
    np.testing.assert_array_equal(told.s, got.s)
    alone = editing.noise_level(KEY, sde, mixture.score(sde), jnp.asarray(y[2:], jnp.float32), levels, first=2)
    np.testing.assert_allclose(alone.log_likelihood[0], got.log_likelihood[2], rtol=1e-4)


def in_place(x, t):
    """A score of windows that depends on the place in the window."""
    return -x * (1 + jnp.arange(x.shape[1]))[None, :, None, None] + jnp.sum(x, axis=2, keepdims=True)


@pytest.mark.parametrize("canvas", [pytest.param((3, 4), marks=slow), pytest.param((5, 4), marks=slow), (6, 9)])
def test_a_panorama_is_the_mean_over_the_windows(canvas):
    x = np.random.default_rng(0).normal(size=(2, *canvas, 3)).astype(np.float32)
    total, count = np.zeros_like(x), np.zeros((1, *canvas, 1))
    for i in sorted({min(i, canvas[0] - 3) for i in range(0, canvas[0], 2)}):
        for j in sorted({min(j, canvas[1] - 4) for j in range(0, canvas[1], 3)}):
            if i + 3 <= canvas[0] and j + 4 <= canvas[1]:
                total[:, i : i + 3, j : j + 4] += in_place(x[:, i : i + 3, j : j + 4], 0.5)
                count[:, i : i + 3, j : j + 4] += 1
    got = editing.panorama(in_place, (3, 4), (2, 3))(x, 0.5)
    np.testing.assert_allclose(got, total / count, rtol=1e-5, atol=1e-5)
    if canvas == (3, 4):
        np.testing.assert_array_equal(got, in_place(x, 0.5))


@slow
def test_a_panorama_is_exact_for_independent_places_asks_once_and_knows_its_conditions():
    sde, calls = ss.VP(), []

    def pixels(x, t, cond):
        calls.append(x.shape)
        mean, std = jnp.where(cond == 0, -1.0, 2.0)[:, None], 0.3
        return -(x - sde.alpha(t) * mean) / (sde.alpha(t) ** 2 * std**2 + sde.variance(t))

    cond = jnp.array([0, 1, 1])
    x = jax.random.normal(KEY, (3, 11))
    wide = editing.panorama(ss.given(pixels, cond), (4,), 3)
    got = wide(x, 0.3)
    assert calls == [(3, 4)]
    np.testing.assert_allclose(got, pixels(x, 0.3, cond), rtol=1e-5)
    keep = jnp.arange(11) < 4
    outpainted = ss.inverse.replacement(
        sde, wide, ss.inverse.operators.mask(keep), jnp.where(keep, 2.0, 0.0)[None], 0.1
    )
    drawn = ss.sample(KEY, outpainted, ss.with_denoising(sde, ss.ddim(sde, ss.log_snr_grid(sde, 20))), (3, 11))
    np.testing.assert_allclose(drawn[:, :4], 2.0, atol=1e-4)
    assert np.all(np.abs(drawn[:, 4:] - jnp.where(cond == 0, -1.0, 2.0)[:, None]) < 0.3 * 5)
    for window, stride in (((4,), 5), ((4,), (1, 2)), ((), 1)):
        with pytest.raises(ValueError, match="stride must be one for each axis"):
            editing.panorama(pixels, window, stride)
    with pytest.raises(ValueError, match=r"a canvas of at least \(4,\), got \(3, 2\)"):
        editing.panorama(pixels, (4,), 2)(jnp.zeros((3, 2)), 0.3)
