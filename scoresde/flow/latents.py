"""Latents: the probability flow as an invertible map between data at t_min and noise at t_max, and the way between two.

encode and decode are each other's inverse up to the tolerance of the solver. In d dimensions the latents of the prior
lie near a sphere of radius sigma(t_max) sqrt(d); the straight line between two of them leaves it, spherical
interpolation (Shoemake 1985) stays: with theta the angle between a and b,

    slerp(a, b, w) = [sin((1 - w) theta) a + sin(w theta) b] / sin(theta).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from scoresde.arrays import expand, flatten, nan_unless, widened
from scoresde.flow.probability import Flow, probability_flow
from scoresde.score import Score
from scoresde.sde import SDE


def encode(sde: SDE, score: Score, x: ArrayLike, **settings: Any) -> Flow:
    """The latents at t_max of data (B, *event) at t_min; ``settings`` as for ``probability_flow``."""
    return probability_flow(sde, score, x, sde.t_min, sde.t_max, **settings)


def decode(sde: SDE, score: Score, latent: ArrayLike, **settings: Any) -> Flow:
    """The data at t_min of latents (B, *event) at t_max; ``settings`` as for ``probability_flow``."""
    return probability_flow(sde, score, latent, sde.t_max, sde.t_min, **settings)


def slerp(a: ArrayLike, b: ArrayLike, weight: ArrayLike) -> jax.Array:
    """Spherical interpolation from a (weight 0) to b (weight 1), example by example.

    For parallel a and b it is the straight line, its limit. Exactly opposite ones have no unique great circle between
    them: NaN.

    Args:
        a: (B, *event).
        b: (B, *event).
        weight: a scalar or (B,), usually in [0, 1].

    Raises:
        ValueError: the shapes do not belong together.
    """
    a, b = (widened(jnp.asarray(v, jnp.result_type(float, a, b))) for v in (a, b))
    if a.shape != b.shape or a.ndim < 2:
        raise ValueError(f"a and b must have one shape (B, *event), got {a.shape} and {b.shape}")
    w = jnp.asarray(weight, a.dtype)
    if w.shape not in ((), a.shape[:1]):
        raise ValueError(f"weight must be a scalar or have shape {a.shape[:1]}, got {w.shape}")

    def length(x: jax.Array) -> jax.Array:
        return jnp.linalg.norm(flatten(x), axis=1)

    def unit(x: jax.Array) -> jax.Array:
        return x / expand(jnp.maximum(length(x), jnp.finfo(x.dtype).tiny), x)

    # Kahan's angle, accurate at both ends; sin(w theta)/sin(theta) = w sinc(w theta)/sinc(theta) is smooth at 0.
    theta = 2 * jnp.arctan2(length(unit(a) - unit(b)), length(unit(a) + unit(b)))
    apart = theta < jnp.pi - 4 * jnp.finfo(a.dtype).eps
    whole = jnp.where(apart, jnp.sinc(theta / jnp.pi), 1)
    from_a, from_b = ((v * jnp.sinc(v * theta / jnp.pi)) / whole for v in (1 - w, w))
    return nan_unless(expand(apart, a), expand(from_a, a) * a + expand(from_b, b) * b)
