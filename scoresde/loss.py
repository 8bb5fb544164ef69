"""Denoising score matching (Vincent 2011; Song et al. 2021, equation 7), with its times and weights kept apart.

With x_t = alpha x_0 + sigma eps the regression target of the score is -eps/sigma, so with eps_hat = -sigma score

    L = E_t~U[t_min, t_max]  w(t) E ||eps_hat(x_t, t) - eps||^2 / D.

The weight w defines the objective. The time draw only its variance: a draw of density q relative to the uniform one
carries the importance 1/q, so that the expectation of the loss is the same under every draw. Since

    g^2/sigma^2 = -d(log-SNR)/dt     for every linear SDE,

drawing times uniformly in the log-SNR is the exact importance sampling of the likelihood weight w = g^2/sigma^2.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr, ndtri
from jax.typing import ArrayLike

from scoresde.score import Score, check_score, flatten
from scoresde.sde import SDE

Weight = Callable[[SDE, jax.Array], jax.Array]
"""(sde, t) -> weight on ||eps_hat - eps||^2 under uniform time."""

TimeDraw = Callable[[jax.Array, SDE, int], tuple[jax.Array, jax.Array]]
"""(key, sde, n) -> times (n,) and their importance 1/q (n,)."""


def noise_weight(sde: SDE, t: jax.Array) -> jax.Array:
    """w = 1: noise prediction (Ho et al. 2020, "simple" loss)."""
    return jnp.ones_like(t)


def likelihood_weight(sde: SDE, t: jax.Array) -> jax.Array:
    """w = g^2/sigma^2, g^2 on the score: half the loss bounds -log p (Song et al. 2021, "ScoreFlow", theorem 1)."""
    return sde.diffusion(t) ** 2 / sde.variance(t)


def _stratified_units(key: jax.Array, n: int) -> jax.Array:
    """n numbers, each uniform in [0, 1), evenly spaced up to a common random shift (Kingma et al. 2021)."""
    return (jax.random.uniform(key) + jnp.arange(n) / n) % 1.0


def _between(sde: SDE, units: jax.Array) -> jax.Array:
    return jnp.clip(sde.t_min + (sde.t_max - sde.t_min) * units, sde.t_min, sde.t_max)


def uniform(key: jax.Array, sde: SDE, n: int) -> tuple[jax.Array, jax.Array]:
    """Independent times, uniform in [t_min, t_max]."""
    return _between(sde, jax.random.uniform(key, (n,))), jnp.ones(n)


def stratified(key: jax.Array, sde: SDE, n: int) -> tuple[jax.Array, jax.Array]:
    """Uniform times spread evenly over the batch, for any n: the default."""
    return _between(sde, _stratified_units(key, n)), jnp.ones(n)


def uniform_log_snr(key: jax.Array, sde: SDE, n: int) -> tuple[jax.Array, jax.Array]:
    """Stratified times, uniform in the log-SNR: the importance sampling of ``likelihood_weight``."""
    high, low = sde.log_snr(sde.t_min), sde.log_snr(sde.t_max)
    t = jnp.clip(sde.time(high + (low - high) * _stratified_units(key, n)), sde.t_min, sde.t_max)
    return t, (high - low) / (likelihood_weight(sde, t) * (sde.t_max - sde.t_min))


def log_normal(p_mean: float = -1.2, p_std: float = 1.2) -> TimeDraw:
    """Stratified times with log(sigma/alpha) ~ N(p_mean, p_std^2), cut to [t_min, t_max] (Karras et al. 2022)."""
    if not p_std > 0:
        raise ValueError(f"p_std must be positive, got {p_std!r}")

    def draw(key: jax.Array, sde: SDE, n: int) -> tuple[jax.Array, jax.Array]:
        low, high = (ndtr((-0.5 * sde.log_snr(t) - p_mean) / p_std) for t in (sde.t_min, sde.t_max))
        log_rho = p_mean + p_std * ndtri(low + (high - low) * _stratified_units(key, n))
        t = jnp.clip(sde.time(-2 * log_rho), sde.t_min, sde.t_max)
        log_rho = -0.5 * sde.log_snr(t)
        density = jnp.exp(-0.5 * ((log_rho - p_mean) / p_std) ** 2) / (p_std * jnp.sqrt(2 * jnp.pi) * (high - low))
        return t, 1 / (density * 0.5 * likelihood_weight(sde, t) * (sde.t_max - sde.t_min))

    return draw


def denoising_score_matching(
    key: jax.Array,
    sde: SDE,
    score: Score,
    x: ArrayLike,
    *,
    weight: Weight = noise_weight,
    times: TimeDraw = stratified,
) -> jax.Array:
    """The loss of each example, (B,), per dimension; its mean estimates L.

    Args:
        key: random key for times and noise.
        sde: the SDE.
        score: ``score(x, t)`` with t of shape (B,); for a network, ``Preconditioner.score(network)``.
        x: (B, *event) data.
        weight: ``noise_weight``, ``likelihood_weight``, ``Preconditioner.karras_weight()`` or a function like them.
        times: ``stratified``, ``uniform``, ``uniform_log_snr``, ``log_normal(...)`` or a function like them.
    """
    x = jnp.asarray(x)
    if x.ndim < 2 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x must be floating point of shape (B, *event), got {x.dtype} {x.shape}")
    key_times, key_noise = jax.random.split(key)
    t, importance = times(key_times, sde, x.shape[0])
    x_0 = flatten(x)
    noise = jax.random.normal(key_noise, x_0.shape, x.dtype)
    x_t = sde.perturb(x_0, t, noise).reshape(x.shape)
    error = sde.sigma(t)[:, None] * flatten(check_score(score(x_t, t), x_t)) + noise
    return weight(sde, t) * importance * jnp.mean(error**2, axis=1)
