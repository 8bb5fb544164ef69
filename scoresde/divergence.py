"""The divergence of a vector field, exactly or by random probes.

    div v = tr J = sum_i e_i^T J e_i = E[z^T J z]     for every law of z with E[z z^T] = I    (Hutchinson 1989).

Value and products J z come from one forward pass of ``jax.jvp``.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

VectorField = Callable[[jax.Array], jax.Array]


def whole(name: str, value: Any) -> int:
    """``value`` if it is a whole number of at least 1, else a ValueError that names it."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    return int(value)


class Divergence(Protocol):
    """A hashable pair of functions that estimate the divergence of a vector field."""

    def draw(self, key: jax.Array, u: jax.Array) -> jax.Array:
        """What stays fixed along the trajectory of one example: (P, *event)."""
        ...

    def __call__(self, field: VectorField, u: jax.Array, probes: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(field(u), P estimates of its divergence) for u of shape ``event``."""
        ...

    def std_error(self, estimates: jax.Array) -> jax.Array:
        """Standard error of the mean of each example's estimates, (B, P) -> (B,)."""
        ...


@dataclasses.dataclass(frozen=True)
class Hutchinson:
    """See ``hutchinson``."""

    probes: int

    def draw(self, key: jax.Array, u: jax.Array) -> jax.Array:
        return jax.random.rademacher(key, (self.probes, *u.shape), u.dtype)

    def __call__(self, field: VectorField, u: jax.Array, probes: jax.Array) -> tuple[jax.Array, jax.Array]:
        value, tangents = jax.vmap(lambda z: jax.jvp(field, (u,), (z,)), out_axes=(None, 0))(probes)
        return value, jnp.sum((probes * tangents).reshape(self.probes, -1), axis=1)

    def std_error(self, estimates: jax.Array) -> jax.Array:
        if self.probes == 1:
            return jnp.full_like(estimates[:, 0], jnp.nan)
        return jnp.std(estimates, axis=1, ddof=1) / math.sqrt(self.probes)


@dataclasses.dataclass(frozen=True)
class ExactDivergence:
    """The trace of the Jacobian, D forward-mode columns taken ``chunk`` at a time to bound the memory."""

    chunk: int = 64

    def __post_init__(self) -> None:
        whole("chunk", self.chunk)

    def draw(self, key: jax.Array, u: jax.Array) -> jax.Array:
        return jnp.zeros((1, *u.shape), u.dtype)

    def __call__(self, field: VectorField, u: jax.Array, probes: jax.Array) -> tuple[jax.Array, jax.Array]:
        value, push = jax.linearize(field, u)

        def diagonal(i: jax.Array) -> jax.Array:
            basis = jax.nn.one_hot(i, u.size, dtype=u.dtype).reshape(u.shape)
            return push(basis).reshape(-1)[i]

        return value, jnp.sum(jax.lax.map(diagonal, jnp.arange(u.size), batch_size=min(self.chunk, u.size)))[None]

    def std_error(self, estimates: jax.Array) -> jax.Array:
        return jnp.zeros_like(estimates[:, 0])


exact_divergence = ExactDivergence()
"""The exact divergence: D tangents an evaluation. ``ExactDivergence(chunk=n)`` bounds the memory differently."""


def hutchinson(probes: int = 1) -> Hutchinson:
    """Hutchinson's estimate from ``probes`` Rademacher vectors an example, fixed along its trajectory."""
    return Hutchinson(whole("probes", probes))
