"""Profiles of the parameters' moving averages: a profile gives the decay d(n) at step n, and an average moves as

ema <- ema + (1 - d(n)) (params - ema).
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

Profile = Callable[[jax.Array], jax.Array]
"""step n (an integer array) -> decay d in [0, 1); hashable."""


@dataclasses.dataclass(frozen=True)
class _Warmed:
    decay: float

    def __call__(self, n: jax.Array) -> jax.Array:
        return jnp.minimum(self.decay, (1 + n) / (10 + n))


def warmed(decay: float) -> Profile:
    """d(n) = min(decay, (1 + n)/(10 + n)), so that early averages are not noise; ``decay`` in [0, 1)."""
    if not 0 <= decay < 1:
        raise ValueError(f"decay must be in [0, 1), got {decay!r}")
    return _Warmed(decay)
