"""Directions of attributes among latents (or any vectors): the difference of class means, and Fisher's discriminant.

With d the difference of the means of latents with and without the attribute and S their covariance within the classes,
the linear discriminant (Fisher 1936) is w^T z with w = C^(-1) d. C is S shrunk towards a multiple of the identity,

    C = (1 - g) S + g (tr S/D) I,      S = X^T X/(n - 2), X the latents less the means of their classes,

and the direction is the shortest step that changes w^T z by as much as d does: (w^T d/w^T w) w. At g = 1 it is d.

d moves everything in which the classes differ on average; w leaves alone what varies much within them. With few
latents S is singular and its small eigenvalues far too small, hence g (Friedman 1989; Ledoit and Wolf 2004). C is never
formed: from the singular values of X, C^(-1) d takes O(n^2 D) for n < D.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from scoresde.arrays import expand, flatten, is_concrete, widened


def attribute_direction(latents: ArrayLike, has: ArrayLike, *, shrinkage: float = 1.0) -> jax.Array:
    """The step (*event) that gives latents the attribute: ``z + w * direction[None]``; -1 times it takes it away.

    Args:
        latents: (n, *event), such as ``ss.encode(...).x``.
        has: (n,) booleans, both values in it; at least three latents.
        shrinkage: g in (0, 1]: 1 for the difference of the means, smaller for Fisher's discriminant.

    Raises:
        ValueError: shapes that do not belong together, an attribute that all have or none, shrinkage out of range.
    """
    z = widened(jnp.asarray(latents, jnp.result_type(float, latents)))
    has = jnp.asarray(has)
    if z.ndim < 2 or has.shape != z.shape[:1] or has.dtype != bool:
        expected = f"latents (n, *event) and booleans (n,), got {z.shape} and {has.dtype} {has.shape}"
        raise ValueError(f"attribute_direction takes {expected}")
    if not 0 < shrinkage <= 1:
        raise ValueError(f"shrinkage must be in (0, 1], got {shrinkage!r}")
    if is_concrete(has) and (np.all(has) or not np.any(has) or len(has) < 3):
        raise ValueError(f"has must be true of some latents and not of others, got {np.sum(has)} of {len(has)}")
    means = [jnp.mean(z, axis=0, where=expand(members, z)) for members in (has, ~has)]
    difference = means[0] - means[1]
    if shrinkage == 1:
        return difference
    centred = flatten(jnp.where(expand(has, z), z - means[0][None], z - means[1][None]))
    return _shortest(centred, difference.reshape(-1), shrinkage).reshape(difference.shape)


def _shortest(X: jax.Array, d: jax.Array, shrinkage: float) -> jax.Array:
    """(w^T d/w^T w) w for w = C^(-1) d, up to the factor that cancels."""
    with jax.default_matmul_precision("highest"):
        _, singular, V = jnp.linalg.svd(X, full_matrices=False)
        variances = singular**2 / (len(X) - 2)
        floor = shrinkage * jnp.sum(variances) / X.shape[1]
        spread = (1 - shrinkage) * variances
        w = d - (spread / (spread + floor) * (V @ d)) @ V
        return (w @ d) / (w @ w) * w
