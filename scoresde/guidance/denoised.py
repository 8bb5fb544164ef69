"""Guidance written for the denoised data D = E[x_0 | x_t]: rescaled, projected or clipped, and a temperature."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jax.typing import ArrayLike

from scoresde.arrays import expand, flatten, is_concrete
from scoresde.checks import check_sde, positive, share, weight
from scoresde.guidance.combined import partials, unconditioned, weighted
from scoresde.score import Score, as_partial, check_score, of_rows, redirected, rows, tweedie
from scoresde.sde import SDE


def rescaled(sde: SDE, guided: Score, conditional: Score, phi: ArrayLike = 0.7) -> Score:
    """Guided denoised data brought back towards the standard deviation of the conditional ones.

    D <- phi (std(D_c)/std(D)) D + (1 - phi) D, std over the entries of each example: large weights no longer
    over-expose. Lin et al., "Common diffusion noise schedules and sample steps are flawed" (2024), equations 14 to 16,
    written for D.

    Args:
        sde: the SDE.
        guided: the guided score, such as ``classifier_free`` with a large w.
        conditional: the score with the wanted spread.
        phi: how much, in [0, 1], a number or (B,); 0 changes nothing, the paper takes 0.7.
    """
    check_sde(sde)
    return Partial(_rescaled, sde, *partials(guided, conditional), rows(share("phi", phi)))


def projected(
    sde: SDE,
    conditional: Score,
    unconditional: Score,
    w: ArrayLike,
    *,
    eta: ArrayLike = 0.0,
    radius: float | None = None,
) -> Score:
    """Adaptive projected guidance: of the difference d = D_c - D_u, the part along D_c counts eta times.

    D <- D_c + (w - 1)(d_orthogonal + eta d_parallel), after d is shortened to at most ``radius``, for each example. The
    parallel part is what saturates. Sadat et al., "Eliminating oversaturation and artifacts of high guidance scales in
    diffusion models" (2024), section 4. Their momentum runs over the steps of a solver, is no function of (x, t), and
    is left out. w = 1 is the conditional score; eta = 1 without a radius is ``classifier_free``.

    Args:
        sde: the SDE.
        conditional: the score of p_t(x | c).
        unconditional: the score of p_t(x).
        w: the weight, a number or (B,).
        eta: share of the parallel part, a number or (B,).
        radius: greatest Euclidean norm of d in the units of the data; None for none.
    """
    check_sde(sde)
    radius = None if radius is None else rows(positive("radius", radius))
    pair = as_partial(conditional), unconditioned(unconditional)
    return Partial(_projected, sde, *pair, rows(weight("w", w)), rows(weight("eta", eta)), radius)


def temperature(sde: SDE, score: Score, temperature: ArrayLike, *, sigma_data: float = 1.0) -> Score:
    """Towards p_0(x)^(1/T): bolder below T = 1, more varied above; exact for data N(m, sigma_data^2 I).

    Dividing the score by T would temper the noise too, which the prior does not. The score is multiplied by

        (alpha^2 sigma_data^2 + sigma^2) / (alpha^2 sigma_data^2 T + sigma^2),

    1 at the noise end, 1/T at the data end (Ingraham et al., "Illuminating protein space with a programmable generative
    model" 2023, appendix B). For other laws an approximation.

    Args:
        sde: the SDE.
        score: the score of p_t(x).
        temperature: T > 0, a number or (B,).
        sigma_data: standard deviation of the data.
    """
    check_sde(sde)
    values = rows(positive("temperature", temperature)), rows(positive("sigma_data", sigma_data))
    return Partial(_tempered, sde, as_partial(score), *values)


def clipped(sde: SDE, score: Score, low: float = -1.0, high: float = 1.0) -> Score:
    """Static thresholding: denoised data kept within [low, high] (Ho et al. 2020). Bounded data only.

    Raises:
        ValueError: low is not below high.
    """
    check_sde(sde)
    if is_concrete(low) and is_concrete(high) and not low < high:
        raise ValueError(f"low must be below high, got {low!r} and {high!r}")
    return Partial(_clipped, sde, as_partial(score), low, high)


def dynamically_clipped(sde: SDE, score: Score, quantile: float = 0.995, bound: float = 1.0) -> Score:
    """Dynamic thresholding: D <- clip(D, -q, q) bound/q, q the larger of the bound and a quantile of |D| of an example.

    Saharia et al., "Photorealistic text-to-image diffusion models with deep language understanding" (2022).

    Args:
        sde: the SDE.
        score: the score, usually guided with a large w.
        quantile: in [0, 1], over the entries of each example.
        bound: the data lie in [-bound, bound].
    """
    check_sde(sde)
    values = share("quantile", quantile), positive("bound", bound)
    if any(jnp.ndim(v) for v in values):
        raise ValueError("quantile and bound must be numbers, one for all examples")
    return Partial(_dynamically_clipped, sde, as_partial(score), *values)


def _rescaled(
    sde: SDE, guided: Partial, conditional: Partial, phi: Any, x: jax.Array, t: jax.Array, *cond: Any
) -> jax.Array:
    (s, data), (_, wanted) = (tweedie(sde, score, x, t, *cond) for score in (guided, conditional))
    tiny = jnp.finfo(x.dtype).tiny
    ratio = jnp.std(flatten(wanted), axis=1) / jnp.maximum(jnp.std(flatten(data), axis=1), tiny)
    return redirected(sde, s, t, expand(of_rows(phi, x) * (ratio - 1), x) * data)


def _projected(
    sde: SDE,
    conditional: Partial,
    unconditional: Partial,
    w: Any,
    eta: Any,
    radius: Any,
    x: jax.Array,
    t: jax.Array,
    *cond: Any,
) -> jax.Array:
    (s, data), (_, other) = (tweedie(sde, score, x, t, *cond) for score in (conditional, unconditional))
    tiny, w, eta = jnp.finfo(x.dtype).tiny, of_rows(w, x), of_rows(eta, x)
    difference = data - other
    if radius is not None:
        length = jnp.linalg.norm(flatten(difference), axis=1)
        difference *= expand(jnp.minimum(1, of_rows(radius, x) / jnp.maximum(length, tiny)), x)
    along = jnp.sum(flatten(difference * data), axis=1) / jnp.maximum(jnp.sum(flatten(data**2), axis=1), tiny)
    parallel = expand(along, x) * data
    return redirected(sde, s, t, weighted([(w - 1, difference - parallel), ((w - 1) * eta, parallel)]))


def _tempered(
    sde: SDE, score: Partial, temperature: Any, sigma_data: Any, x: jax.Array, t: jax.Array, *cond: Any
) -> jax.Array:
    data, noise = (sde.alpha(t) * of_rows(sigma_data, x)) ** 2, sde.variance(t)
    s = check_score(score(x, t, *cond), x)
    return expand((data + noise) / (data * of_rows(temperature, x) + noise), x) * s


def _clipped(sde: SDE, score: Partial, low: Any, high: Any, x: jax.Array, t: jax.Array, *cond: Any) -> jax.Array:
    s, data = tweedie(sde, score, x, t, *cond)
    return redirected(sde, s, t, jnp.clip(data, low, high) - data)


def _dynamically_clipped(
    sde: SDE, score: Partial, quantile: Any, bound: Any, x: jax.Array, t: jax.Array, *cond: Any
) -> jax.Array:
    s, data = tweedie(sde, score, x, t, *cond)
    q = jnp.quantile(jnp.abs(flatten(data)), quantile, axis=1)
    limit = expand(jnp.maximum(q, bound), x)
    return redirected(sde, s, t, jnp.clip(data, -limit, limit) * (bound / limit) - data)
