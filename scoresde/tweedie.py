"""Tweedie's formula: what a score says of the data behind a noisy state x_t = alpha x_0 + sigma eps.

    D(x, t) = E[x_0 | x_t = x] = (x + sigma^2 score(x, t)) / alpha
    Cov[x_0 | x_t = x] = (sigma^2/alpha) dD/dx

Read backwards, a wish about the data is a score: D + change belongs to score + (alpha/sigma^2) change, and where
nothing changes the score keeps its bits.

References: Efron, "Tweedie's formula and selection bias" (2011).
"""

import jax

from scoresde.score import Score, check_score
from scoresde.sde import SDE, expand


def evaluate(sde: SDE, score: Score, x: jax.Array, t: jax.Array, *cond: object) -> tuple[jax.Array, jax.Array]:
    """(score, D) at x of shape (B, *event), t a scalar or (B,); both like x."""
    s = check_score(score(x, t, *cond), x)
    return s, (x + expand(sde.variance(t), x) * s) / expand(sde.alpha(t), x)


def redirected(sde: SDE, s: jax.Array, t: jax.Array, change: jax.Array) -> jax.Array:
    """The score whose denoised data are those of ``s`` plus ``change``; all (B, *event)."""
    return s + expand(sde.alpha(t) / sde.variance(t), s) * change
