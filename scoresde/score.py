"""What a score is: any function (x, t) -> grad log p_t(x), with x of shape (B, *event) and t a scalar or (B,).

Exact scores, networks behind their preconditioning and guided scores share this one type, so that each of them works
with every solver, the probability flow, the likelihood and the loss.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

Score = Callable[[jax.Array, jax.Array], jax.Array]


def as_partial(score: Callable[..., Any]) -> Partial:
    """A score as a pytree: the arrays of a ``jax.tree_util.Partial`` are leaves, any other function is static."""
    if not callable(score):
        raise ValueError(f"score must be a function (x, t) -> array like x, got {type(score).__name__}")
    return score if isinstance(score, Partial) else Partial(score)


def check_score(value: jax.Array, x: jax.Array) -> jax.Array:
    """The value of a score at ``x``, or a ValueError while tracing if its shape is not that of ``x``."""
    if jnp.shape(value) != x.shape:
        raise ValueError(f"score(x, t) must return the shape of x, {x.shape}, got {jnp.shape(value)}")
    return value


def flatten(x: jax.Array) -> jax.Array:
    """(B, *event) as (B, D), where arithmetic is done: a last axis of 1 or 3 makes it several times slower on CPUs."""
    return x.reshape(x.shape[0], -1)
