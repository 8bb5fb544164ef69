"""Arrays and keys: axes added and flattened, float64 on the host, and what is random for example i."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

SHORTEST = 64  # what on_host lengthens to at least


@dataclasses.dataclass(frozen=True)
class Applied:
    """``function`` whose first arguments are given, hashable values: equal to another such, unlike a ``partial``.

    So functions made anew of the same values, as static parts of a ``jax.tree_util.Partial``, compile once.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]

    def __call__(self, *args: Any) -> Any:
        return self.function(*self.arguments, *args)


def expand(t: jax.Array, x: jax.Array) -> jax.Array:
    """Append axes of length one to ``t`` (scalar or (B,)) so that it multiplies ``x`` of shape (B, *event)."""
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim)) if t.ndim else t


def widened(x: ArrayLike) -> jax.Array:
    """x as an array; bfloat16 and float16, too coarse to solve an equation in, as float32."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32)) if jnp.issubdtype(x.dtype, jnp.floating) else x


def nan_unless(known: ArrayLike, x: ArrayLike) -> jax.Array:
    """x where it is known, else NaN: a value by contract, at which ``jax_debug_nans`` does not stop outside ``jit``."""
    with jax.debug_nans(False):
        return jnp.where(known, x, jnp.nan)


def on_host(function: Callable[..., Any], *arguments: Any) -> Any:
    """Evaluate ``function`` in float64 on the CPU, whatever ``jax_enable_x64`` says; return NumPy arrays.

    Used where tables and grids are built: ``arguments`` are concrete numbers and arrays (n,), never traced, and the
    function acts element by element. It sees them lengthened to a power of two, at least ``SHORTEST``, so that its
    operations compile once for numbers and short arrays, and for few lengths in a sweep over numbers of steps.
    """
    alone = all(np.ndim(v) == 0 for v in arguments)
    arguments = tuple(np.atleast_1d(v) for v in arguments) if alone else arguments
    lengths = {len(v) for v in arguments if np.ndim(v) == 1}
    n = lengths.pop() if len(lengths) == 1 else 0
    if n:
        extra = max(SHORTEST, 1 << (n - 1).bit_length()) - n
        arguments = tuple(np.pad(v, (0, extra), "edge") if np.ndim(v) == 1 else v for v in arguments)
    shown = 0 if alone else slice(n or None)
    with jax.ensure_compile_time_eval(), jax.enable_x64(True), jax.default_device(_host_device()):
        return jax.tree.map(lambda v: np.array(np.array(v)[shown] if np.ndim(v) else v), function(*arguments))


def _host_device() -> Any:
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # the process excludes the CPU backend: the default device computes float64 as well
        return None


def is_concrete(value: object) -> bool:
    """Whether ``value`` is a number now, so that it can be checked, rather than a tracer inside ``jit``."""
    return not isinstance(value, jax.core.Tracer)


def number(first: ArrayLike) -> jax.Array:
    """``first``, the number of a first example, as int32 (): a function compiles once for all kinds of whole numbers.

    Raises:
        ValueError: it is no whole number of at least 0.
    """
    value = first if isinstance(first, jax.Array) else np.asarray(first)
    whole = value.ndim == 0 and value.dtype.kind in "iu"
    if not whole or (is_concrete(value) and value < 0):
        raise ValueError(f"first must be a whole number of at least 0, got {first!r}")
    return jnp.asarray(value, jnp.int32)


def example_keys(key: jax.Array, batch: int, first: ArrayLike = 0) -> jax.Array:
    """Keys of the examples first, ..., first + batch - 1: functions of (key, number) alone, whatever the batch."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, first + jnp.arange(batch))


def normal_per_example(keys: jax.Array, event_shape: tuple[int, ...], dtype: Any = float) -> jax.Array:
    """Standard normal noise of shape (B, *event), row i drawn from ``keys[i]`` alone."""
    flat = jax.vmap(lambda key: jax.random.normal(key, (math.prod(event_shape),), dtype))(keys)
    return flat.reshape(*keys.shape, *event_shape)


def flatten(x: jax.Array) -> jax.Array:
    """(B, *event) as (B, D), where arithmetic is done: a last axis of 1 or 3 makes it several times slower on CPUs."""
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))
