"""Sums per noise level against loops and closed forms; the adaptive draw: its density, its mean and its variance."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family import SDES, VP, name, textbook

from scoresde import Preconditioner, log_normal, noise_weight
from scoresde.training import Levels, adaptive, denoising_errors, stratified, uniform_log_snr
from scoresde.training.levels import density
from scoresde.training.loss import Denoising

KEY = jax.random.key(29)
VARIANCE, SHRINK = 0.6, 0.8
IN_TURN = [pytest.param(sde, marks=() if isinstance(sde, VP) else pytest.mark.slow) for sde in SDES]


@partial(jax.jit, static_argnames="weight")
def updated(levels, errors, weight=noise_weight):
    """Levels and curves after one batch."""
    levels = levels.update(errors, weight)
    return levels, levels.curves()


def one_batch(sde, score, n):
    """Errors at uniform log-SNRs for N(0, VARIANCE)."""

    def draw(key):
        x = math.sqrt(VARIANCE) * jax.random.normal(key, (n, 2))
        return denoising_errors(key, sde, score, x, times=uniform_log_snr)

    return jax.jit(draw)(KEY)


def shrunk(sde):
    def score(x, t):
        alpha, sigma2 = sde.alpha(t)[:, None], sde.variance(t)[:, None]
        return -SHRINK * x / (alpha**2 * VARIANCE + sigma2)

    return score


def errors_at(alpha, sigma2):
    """Expected error of the noise for x_0 ~ N(0, VARIANCE)."""
    share = sigma2 / (alpha**2 * VARIANCE + sigma2)
    return share * (SHRINK**2 - 2 * SHRINK) + 1


def measured(sde, *, times=uniform_log_snr, weight=noise_weight, sigma_data=1.0, updates=40, decay=1.0, bins=16):
    def step(levels, key):
        key_x, key_loss = jax.random.split(key)
        x = math.sqrt(VARIANCE) * jax.random.normal(key_x, (512, 2))
        return levels.update(denoising_errors(key_loss, sde, shrunk(sde), x, times=times), weight), None

    start = Levels.start(sde, sigma_data=sigma_data, bins=bins, decay=decay)
    return jax.jit(lambda start: jax.lax.scan(step, start, jax.random.split(KEY, updates))[0])(start)


def test_the_sums_are_those_of_a_loop():
    sde, rng, decay = VP(), np.random.default_rng(0), 0.7
    levels = Levels.start(sde, sigma_data=0.5, bins=5, decay=decay)
    edges = np.linspace(
        *np.log(textbook(sde, [sde.t_max, sde.t_min])[0] ** 2 / textbook(sde, [sde.t_max, sde.t_min])[1]), 6
    )
    sums, slope = np.zeros((4, 5)), lambda sde, t: 1 + t
    for _ in range(3):
        t, e = rng.uniform(sde.t_min, sde.t_max, 20).astype("f4"), rng.exponential(size=20).astype("f4")
        levels, _ = updated(levels, Denoising(jnp.asarray(t), jnp.ones(20), jnp.asarray(e)), slope)
        alpha, sigma2, _, g2 = textbook(sde, t)
        sums *= decay
        for i in range(20):
            b = np.digitize(np.log(alpha[i] ** 2 / sigma2[i]), edges[1:-1])
            loss = (1 + t[i]) * e[i] * (edges[-1] - edges[0]) / (g2[i] / sigma2[i] * (sde.t_max - sde.t_min))
            sums[:, b] += 1, e[i] * (0.25 + sigma2[i] / alpha[i] ** 2) / 0.25, loss, loss**2
    np.testing.assert_allclose(levels.edges(), edges, rtol=1e-4)
    got = np.stack([levels.count, levels.output, levels.loss, levels.square])
    np.testing.assert_allclose(got, sums, rtol=2e-4)


@pytest.mark.parametrize("sde", IN_TURN, ids=name)
def test_the_curves_are_the_closed_form_under_every_draw(sde):
    """Loss and variance explained at each level do not depend on how times were drawn."""
    for times in (stratified, log_normal(0.0, 1.5)):
        curves = jax.jit(Levels.curves)(measured(sde, times=times, sigma_data=1.3))
        enough = np.asarray(curves["count"]) > 500
        assert enough.sum() >= 4
        snr = np.exp(np.asarray(curves["log_snr"], np.float64))
        expected = 1 - errors_at(1.0, 1 / snr) * (1.3**2 + 1 / snr) / 1.3**2
        # within a bin, which is wide, the curve bends: 5 % of its error, and the noise of 1000 squares
        np.testing.assert_allclose((1 - curves["variance_explained"])[enough], (1 - expected)[enough], rtol=0.35)


def test_the_recorded_loss_is_the_one_trained_on():
    """Under uniform log-SNR the mean over all bins is the mean of the losses of the same batch."""
    sde = VP()
    errors = one_batch(sde, shrunk(sde), 2000)
    levels, _ = updated(Levels.start(sde), errors)
    losses = np.asarray(errors.importance * errors.error, np.float64)
    np.testing.assert_allclose(np.sum(levels.loss) / 2000, np.mean(losses), rtol=1e-4)
    np.testing.assert_allclose(np.sum(levels.square) / 2000, np.mean(losses**2), rtol=1e-4)


def test_an_untrained_network_explains_nothing():
    """Zero output behind the preconditioning is the best linear predictor."""
    sde, sigma_data = VP(), math.sqrt(VARIANCE)
    score = Preconditioner(sde, sigma_data).score(lambda u, c: 0 * u)
    errors = one_batch(sde, score, 10_000)
    _, curves = updated(Levels.start(sde, sigma_data=sigma_data, bins=8), errors)
    np.testing.assert_allclose(curves["variance_explained"], 0, atol=0.15)  # five standard errors


def test_bins_that_saw_nothing_have_no_curve():
    levels = Levels.start(VP(), bins=4)
    curves = levels.curves()
    assert np.all(np.isnan(curves["loss"])) and np.all(np.isnan(curves["variance_explained"]))
    _, one = updated(levels, Denoising(jnp.array([0.5]), jnp.ones(1), jnp.ones(1)))
    assert np.sum(np.isfinite(one["loss"])) == 1


@pytest.mark.parametrize("sde", IN_TURN, ids=name)
def test_the_adaptive_draw_has_its_density(sde):
    """Counts of a stratified draw are the density to one part in n, times are inside, 1/q is the inverse in t."""
    levels = measured(sde, updates=4, bins=8)
    root = np.sqrt(np.asarray(levels.square, np.float64) / np.asarray(levels.count))
    share = 0.3 / 8 + 0.7 * root / root.sum()
    t, importance = jax.jit(lambda levels: adaptive(levels, floor=0.3)(KEY, sde, 4000))(levels)
    assert t.shape == importance.shape == (4000,)
    assert np.all((t >= np.float32(sde.t_min)) & (t <= np.float32(sde.t_max)))
    log_snr, edges = np.asarray(sde.log_snr(t), np.float64), np.asarray(levels.edges(), np.float64)
    counts = np.histogram(log_snr, edges)[0]
    np.testing.assert_allclose(counts / 4000, share, atol=2e-3)
    _, sigma2, _, g2 = textbook(sde, np.asarray(t))
    density_in_t = share[np.clip(np.digitize(log_snr, edges) - 1, 0, 7)] / np.diff(edges)[0] * g2 / sigma2
    inner = np.abs(log_snr[:, None] - edges[None]).min(1) > 1e-3
    expected = 1 / (density_in_t * (sde.t_max - sde.t_min))
    np.testing.assert_allclose(np.asarray(importance)[inner], expected[inner], rtol=2e-3)
    np.testing.assert_allclose(np.mean(importance), 1, rtol=5e-3)  # E 1/q


def test_the_density_without_measurements_is_uniform_and_unseen_bins_count_like_the_largest():
    levels = Levels.start(VP(), bins=4)
    share = jax.jit(density, static_argnums=1)
    np.testing.assert_allclose(share(levels, 0.2), 0.25)
    t, importance = jax.jit(lambda levels: adaptive(levels)(KEY, VP(), 64))(levels)
    theirs = jax.jit(lambda: uniform_log_snr(KEY, VP(), 64))()
    np.testing.assert_allclose(t, theirs[0], rtol=1e-4)
    np.testing.assert_allclose(importance, theirs[1], rtol=1e-4)
    some = Levels(*map(jnp.array, ([1.0, 2, 0, 1], [0.0] * 4, [0.0] * 4, [9.0, 2, 0, 4])), VP(), 1.0, 0.9)
    np.testing.assert_allclose(share(some, 0.1), 0.025 + 0.9 * np.array([3, 1, 3, 2]) / 9, rtol=1e-6)


@pytest.mark.slow
def test_the_adaptive_draw_keeps_the_loss_and_lowers_its_variance():
    """A weight that lives on a tenth of the levels: the same expectation as uniform draws, at a fraction of the
    variance, once the levels are measured; while they are measured the estimate is unbiased too."""
    sde = VP()

    def weight(sde, t):
        return jnp.exp(-0.5 * (sde.log_snr(t) - 3.0) ** 2)

    def losses(times, key):
        key_x, key_loss = jax.random.split(key)
        x = math.sqrt(VARIANCE) * jax.random.normal(key_x, (32, 2))
        errors = denoising_errors(key_loss, sde, shrunk(sde), x, times=times)
        return errors, jnp.mean(weight(sde, errors.t) * errors.importance * errors.error)

    def step(levels, key):
        errors, loss = losses(adaptive(levels), key)
        return levels.update(errors, weight), loss

    keys = jax.random.split(KEY, 3000)
    _, adapted = jax.jit(lambda keys: jax.lax.scan(step, Levels.start(sde), keys))(keys)
    plain = {
        times: jax.jit(jax.vmap(lambda k, d=times: losses(d, k)[1]))(keys) for times in (stratified, uniform_log_snr)
    }
    t = np.geomspace(sde.t_min, sde.t_max, 20_001)
    alpha, sigma2, _, _ = textbook(sde, t)
    values = np.exp(-0.5 * (np.log(alpha**2 / sigma2) - 3) ** 2) * errors_at(alpha, sigma2)
    exact = np.trapezoid(values, t) / (sde.t_max - sde.t_min)
    for values in (adapted, *plain.values()):
        values = np.asarray(values, np.float64)
        assert abs(values.mean() - exact) < 5 * values.std() / math.sqrt(len(values))
    variance = np.var(np.asarray(adapted)[500:])
    assert all(variance < 0.6 * np.var(values) for values in plain.values())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Levels.start(VP(), bins=1), r"bins must be a whole number of at least 2, got 1"),
        (lambda: Levels.start(VP(), decay=1.5), r"decay must be in \[0, 1\], got 1\.5"),
        (lambda: Levels.start(VP(), sigma_data=0.0), r"sigma_data must be positive, got 0\.0"),
        (lambda: adaptive(Levels.start(VP()), floor=0.0), r"floor must be in \(0, 1\], got 0\.0"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match="^" + message):
        make()
