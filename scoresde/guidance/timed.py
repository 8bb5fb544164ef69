"""Guidance that changes with time: only within an interval of the log-SNR, or by the steps of a grid."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jax.typing import ArrayLike

from scoresde.arrays import expand, is_concrete, on_host
from scoresde.checks import check_sde, share
from scoresde.grids import check_grid
from scoresde.guidance.combined import partials, unconditioned, weighted
from scoresde.score import Score, as_partial, check_score
from scoresde.sde import SDE


def interval(sde: SDE, guided: Score, plain: Score, low: float, high: float) -> Score:
    """``guided`` where low <= log-SNR(t) <= high, ``plain`` elsewhere.

    Kynkäänniemi et al., "Applying guidance in a limited interval improves sample and distribution quality in diffusion
    models" (2024); their interval in sigma (alpha = 1) is the log-SNR from -2 log sigma_hi to -2 log sigma_lo. At a
    time shared by the batch, as in every table, only one of the two is evaluated. The result jumps in time: adaptive
    solvers take more steps.

    Args:
        sde: the SDE of both.
        guided: the score within.
        plain: the score without, usually the conditional one.
        low: least log-SNR = 2 log(alpha/sigma), the noisier end; ``-jnp.inf`` for none.
        high: greatest log-SNR; ``jnp.inf`` for none.

    Raises:
        ValueError: low is not below high.
    """
    check_sde(sde)
    if is_concrete(low) and is_concrete(high) and not low < high:
        raise ValueError(f"low must be below high in log-SNR (noise is low, data high), got {low!r} and {high!r}")
    return Partial(_interval, *partials(guided, plain), sde, low, high)


def cfg_plus_plus(
    sde: SDE, conditional: Score, unconditional: Score, grid: ArrayLike, strength: float, *, eta: float = 0.0
) -> Score:
    """CFG++ as a score: exact for ``ss.ddim(sde, grid, eta)`` on this very grid, to first order for other solvers.

    CFG++ (Chung et al. 2024, "CFG++: manifold-constrained classifier free guidance", algorithm 2) denoises by the
    guided score and adds noise by the unconditional one: with rho = sigma/alpha and v the variance of the fresh noise,

        x_s = alpha_s (D_u + strength (D_c - D_u)) + sqrt(sigma_s^2 - v) eps_u + sqrt(v) z.

    A step of DDIM is linear in the score, so this is ``classifier_free`` whose weight depends on the step t -> s:

        w = strength / (1 - sqrt(sigma_s^2 - v) / (alpha_s rho_t)),      at eta = 0:   strength / (1 - rho_s/rho_t).

    The weight grows as the grid is refined: there is no limit in continuous time, and no likelihood. Times between the
    nodes take the weight of the nearest node.

    Args:
        sde: the SDE.
        conditional: the score of p_t(x | c).
        unconditional: the score of p_t(x).
        grid: (n + 1,) decreasing times, those of the solver.
        strength: lambda of the paper, in [0, 1].
        eta: that of the solver.

    Raises:
        ValueError: strength outside [0, 1], eta outside [0, 1], or a grid that is none.
    """
    check_sde(sde)
    strength, eta = float(share("strength", strength)), float(share("eta", eta))
    t = check_grid(sde, grid)
    log_snr = on_host(sde.log_snr, t)
    kept = np.sqrt(1 + eta**2 * np.expm1(-np.diff(log_snr)))  # sqrt(sigma_s^2 - v) / sigma_s
    w = strength / (1 - kept * np.exp(-np.diff(log_snr) / 2))
    pair = as_partial(conditional), unconditioned(unconditional)
    return Partial(_per_step, *pair, jnp.asarray(t[:-1], float), jnp.asarray(w, float))


def _interval(
    guided: Partial, plain: Partial, sde: SDE, low: Any, high: Any, x: jax.Array, t: jax.Array, *cond: Any
) -> jax.Array:
    log_snr = sde.log_snr(t)
    inside = (log_snr >= low) & (log_snr <= high)

    def of(score: Partial) -> jax.Array:
        return check_score(score(x, t, *cond), x).astype(x.dtype)

    if inside.ndim:
        return jnp.where(expand(inside, x), of(guided), of(plain))
    return jax.lax.cond(inside, lambda: of(guided), lambda: of(plain))


def _per_step(
    conditional: Partial,
    unconditional: Partial,
    times: jax.Array,
    weights: jax.Array,
    x: jax.Array,
    t: jax.Array,
    *cond: Any,
) -> jax.Array:
    t = jnp.asarray(t)
    nearest = jnp.argmin(jnp.abs(jnp.expand_dims(t, -1) - times.reshape((1,) * t.ndim + (-1,))), axis=-1)
    pair = (check_score(score(x, t, *cond), x) for score in (unconditional, conditional))
    return weighted(list(zip((1 - weights[nearest], weights[nearest]), pair, strict=True)))
