"""Denoising score matching (Vincent 2011; Song et al. 2021, equation 7), with its times and weights kept apart.

With x_t = alpha x_0 + sigma eps the regression target of the score is -eps/sigma, so with eps_hat = -sigma score

    L = E_t~U[t_min, t_max]  w(t) E ||eps_hat(x_t, t) - eps||^2 / D.

The weight w defines the objective. The time draw only its variance: a draw of density q relative to the uniform one
carries the importance 1/q, so that the expectation of the loss is the same under every draw. Since

    g^2/sigma^2 = -d(log-SNR)/dt     for every linear SDE,

drawing times uniformly in the log-SNR is the exact importance sampling of the likelihood weight w = g^2/sigma^2.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr, ndtri
from jax.typing import ArrayLike

from scoresde.arrays import flatten, widened
from scoresde.score import Score, check_score
from scoresde.sde import SDE
from scoresde.training.weights import Weight, likelihood_weight, noise_weight

TimeDraw = Callable[[jax.Array, SDE, int], tuple[jax.Array, jax.Array]]
"""(key, sde, n) -> times (n,) and their importance 1/q (n,)."""


def stratified_units(key: jax.Array, n: int) -> jax.Array:
    """n numbers, each uniform in [0, 1), evenly spaced up to a common random shift (Kingma et al. 2021)."""
    return (jax.random.uniform(key) + jnp.arange(n) / n) % 1.0


def _between(sde: SDE, units: jax.Array) -> jax.Array:
    return jnp.clip(sde.t_min + (sde.t_max - sde.t_min) * units, sde.t_min, sde.t_max)


def uniform(key: jax.Array, sde: SDE, n: int) -> tuple[jax.Array, jax.Array]:
    """Independent times, uniform in [t_min, t_max]."""
    return _between(sde, jax.random.uniform(key, (n,))), jnp.ones(n)


def stratified(key: jax.Array, sde: SDE, n: int) -> tuple[jax.Array, jax.Array]:
    """Uniform times spread evenly over the batch, for any n: the default."""
    return _between(sde, stratified_units(key, n)), jnp.ones(n)


def log_snr_importance(sde: SDE, t: jax.Array) -> jax.Array:
    """1/q of times uniform in the log-SNR."""
    span = sde.log_snr(sde.t_min) - sde.log_snr(sde.t_max)
    return span / (likelihood_weight(sde, t) * (sde.t_max - sde.t_min))


def uniform_log_snr(key: jax.Array, sde: SDE, n: int) -> tuple[jax.Array, jax.Array]:
    """Stratified times, uniform in the log-SNR: the importance sampling of ``likelihood_weight``."""
    high, low = sde.log_snr(sde.t_min), sde.log_snr(sde.t_max)
    t = jnp.clip(sde.time(high + (low - high) * stratified_units(key, n)), sde.t_min, sde.t_max)
    return t, log_snr_importance(sde, t)


def log_normal(p_mean: float = -1.2, p_std: float = 1.2) -> TimeDraw:
    """Stratified times with log(sigma/alpha) ~ N(p_mean, p_std^2), cut to [t_min, t_max] (Karras et al. 2022)."""
    if not p_std > 0:
        raise ValueError(f"p_std must be positive, got {p_std!r}")

    def draw(key: jax.Array, sde: SDE, n: int) -> tuple[jax.Array, jax.Array]:
        low, high = (ndtr((-0.5 * sde.log_snr(t) - p_mean) / p_std) for t in (sde.t_min, sde.t_max))
        log_rho = p_mean + p_std * ndtri(low + (high - low) * stratified_units(key, n))
        t = jnp.clip(sde.time(-2 * log_rho), sde.t_min, sde.t_max)
        log_rho = -0.5 * sde.log_snr(t)
        density = jnp.exp(-0.5 * ((log_rho - p_mean) / p_std) ** 2) / (p_std * jnp.sqrt(2 * jnp.pi) * (high - low))
        return t, 1 / (density * 0.5 * likelihood_weight(sde, t) * (sde.t_max - sde.t_min))

    return draw


class Noised(NamedTuple):
    """A batch with noise added at random times: all that is random in the loss, to be drawn in one piece.

    Attributes:
        x_t: (B, *event) alpha x_0 + sigma eps, 0 where nothing was observed.
        noise: eps, of the same shape.
        t: (B,) the times.
        importance: (B,) 1/q, q their density relative to the uniform one.
        observed: the mask, of the shape of x_t; None where all was observed.
    """

    x_t: jax.Array
    noise: jax.Array
    t: jax.Array
    importance: jax.Array
    observed: jax.Array | None


class Denoising(NamedTuple):
    """What a batch says of the score: errors of the noise at random times.

    Attributes:
        t: (B,) the times.
        importance: (B,) 1/q, q their density relative to the uniform one.
        error: (B,) ||eps_hat - eps||^2 / D.
    """

    t: jax.Array
    importance: jax.Array
    error: jax.Array


def noised(
    key: jax.Array, sde: SDE, x: ArrayLike, *, times: TimeDraw = stratified, mask: ArrayLike | None = None
) -> Noised:
    """Draw times and noise, the random half of ``denoising_errors``: with it as ``Trainer(draw=...)`` and ``errors_of``
    in the loss, a batch worked on in parts has the random numbers of the whole.

    Takes the arguments of ``denoising_score_matching``, and raises its errors.
    """
    x = widened(x)
    if x.ndim < 2 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x must be floating point of shape (B, *event), got {x.dtype} {x.shape}")
    if mask is not None and jnp.shape(mask) != x.shape:
        raise ValueError(f"mask must have the shape of x, {x.shape}, got {jnp.shape(mask)}")
    key_times, key_noise = jax.random.split(key)
    t, importance = times(key_times, sde, x.shape[0])
    x_0 = flatten(x)
    noise = jax.random.normal(key_noise, x_0.shape, x.dtype)
    if mask is None:
        return Noised(sde.perturb(x_0, t, noise).reshape(x.shape), noise.reshape(x.shape), t, importance, None)
    observed = flatten(jnp.asarray(mask, bool))
    x_t = jnp.where(observed, sde.perturb(jnp.where(observed, x_0, 0), t, noise), 0)
    return Noised(x_t.reshape(x.shape), noise.reshape(x.shape), t, importance, observed.reshape(x.shape))


def errors_of(sde: SDE, score: Score, batch: Noised) -> Denoising:
    """Errors of a score on a noised batch: the half of ``denoising_errors`` in which nothing is random.

    Raises:
        ValueError: a score of another shape than x_t.
    """
    x_t, noise, t, importance, observed = batch
    error = (sde.sigma(t)[:, None] * flatten(check_score(score(x_t, t), x_t)) + flatten(noise)) ** 2
    if observed is None:
        return Denoising(t, importance, jnp.mean(error, axis=1))
    observed = flatten(observed)
    total = jnp.sum(jnp.where(observed, error, 0), axis=1)
    return Denoising(t, importance, total / jnp.maximum(1, jnp.sum(observed, axis=1)))


def denoising_errors(
    key: jax.Array,
    sde: SDE,
    score: Score,
    x: ArrayLike,
    *,
    times: TimeDraw = stratified,
    mask: ArrayLike | None = None,
) -> Denoising:
    """Times and unweighted errors of the examples: ``denoising_score_matching`` weighs them, ``Levels`` collects them.

    Takes the arguments of ``denoising_score_matching``.
    """
    return errors_of(sde, score, noised(key, sde, x, times=times, mask=mask))


def denoising_score_matching(
    key: jax.Array,
    sde: SDE,
    score: Score,
    x: ArrayLike,
    *,
    weight: Weight = noise_weight,
    times: TimeDraw = stratified,
    mask: ArrayLike | None = None,
) -> jax.Array:
    """The loss of each example, (B,), per dimension; its mean estimates L.

    Args:
        key: random key for times and noise.
        sde: the SDE.
        score: ``score(x, t)`` with t of shape (B,); for a network, ``Preconditioner.score(network)``.
        x: (B, *event) data.
        weight: ``noise_weight``, ``likelihood_weight``, ``Preconditioner.karras_weight()`` or a function like them.
        times: ``stratified``, ``uniform``, ``uniform_log_snr``, ``log_normal(...)``, ``adaptive(levels)`` or a function
            like them.
        mask: shaped like x, true where a value was observed. The score then sees 0 in x_t where it was not (and may be
            given the mask as well, by closing over it), and an example's loss is the mean over its observed entries: 0
            where there are none. Missing entries of x may be anything, NaN too. With values missing at random the
            network learns the score of the observed part given which part it is.

    Raises:
        ValueError: x or mask of another type or shape; a score of another shape than x.
    """
    t, importance, error = denoising_errors(key, sde, score, x, times=times, mask=mask)
    return weight(sde, t) * importance * error
