"""What the networks share: dropout with an explicit key, normalisation, modulation, initial weights."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Any, cast

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from scoresde.nn.layers.convolution import channels_last


def narrow(x: jax.Array, dtype: DTypeLike) -> jax.Array:
    """x in ``dtype`` if that is narrower than float32, else x as it is."""
    return x.astype(dtype) if jnp.dtype(dtype).itemsize < 4 else x


def split(key: jax.Array | None, n: int) -> Sequence[jax.Array | None]:
    """n keys, or n times None; of (B,) keys, one for each example, n times (B,)."""
    if key is None:
        return [None] * n
    return list(
        jax.random.split(key, n) if key.ndim == 0 else jax.vmap(lambda k: jax.random.split(k, n), out_axes=1)(key)
    )


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Set entries to zero with probability ``rate`` and scale the others to keep the mean; identity without a key.

    The rate is rounded to a multiple of 1/65536, to which the scale corresponds exactly: 16 random bits an entry.
    ``key`` is one key, or (B,) keys, one for each example.
    """
    threshold = min(round(65536 * rate), 65535)
    if key is None or threshold == 0:
        return x
    draw = partial(jax.random.bits, dtype=jnp.uint16)
    bits = draw(key, x.shape) if key.ndim == 0 else jax.vmap(partial(draw, shape=x.shape[1:]))(key)
    keep = bits >= threshold
    return jnp.where(keep, x * (65536 / (65536 - threshold)), 0)


def modulate(h: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
    """(1 + scale) h + shift for h (B, ..., C) and scale, shift (B, C)."""
    axes = tuple(range(1, h.ndim - 1))
    return h * (1 + jnp.expand_dims(scale, axes)) + jnp.expand_dims(shift, axes)


def initial_keys(key: jax.Array) -> nnx.Rngs:
    """``nnx.Rngs(key)``; while tracing, the same keys from a counter in Python, for each count of a traced one looks
    through the whole program so far."""
    return cast(nnx.Rngs, _Keys(key)) if isinstance(key, jax.core.Tracer) else nnx.Rngs(key)


class _Keys:
    def __init__(self, key: jax.Array) -> None:
        self.keys = (jax.random.fold_in(key, i) for i in count())

    def params(self) -> jax.Array:
        return next(self.keys)


def _normal(gain: float) -> Callable[..., jax.Array]:
    """Initialiser: normal of standard deviation gain/sqrt(fan-in), drawn by NumPy from the key: nothing is compiled."""

    def init(key: jax.Array, shape: Sequence[int], dtype: Any = np.float32) -> jax.Array:
        if isinstance(key, jax.core.Tracer):  # under jax.eval_shape, which asks for the shape alone
            return gain / math.sqrt(size(shape[:-1])) * jax.random.normal(key, shape, dtype)
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        return jnp.asarray(gain / math.sqrt(size(shape[:-1])) * rng.standard_normal(shape), dtype)

    return init


def _constant(value: float) -> Callable[..., jax.Array]:
    def init(key: jax.Array, shape: Sequence[int], dtype: Any = np.float32) -> jax.Array:
        if isinstance(key, jax.core.Tracer):
            return jnp.full(shape, value, dtype)
        return jnp.asarray(np.full(shape, value), dtype)

    return init


def linear(inputs: int, outputs: int, *, gain: float = 1.0, bias: bool = True, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear layer whose output has ``gain`` times the standard deviation of its input; zero bias, or none."""
    kernel, zero = _normal(gain), _constant(0)
    return nnx.Linear(inputs, outputs, use_bias=bias, kernel_init=kernel, bias_init=zero, rngs=rngs)


def conv(
    dims: int,
    inputs: int,
    outputs: int,
    *,
    stride: int = 1,
    padding: int | None = None,
    gain: float = 1.0,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A convolution of width 3 along each of ``dims`` axes, zero-padded: sizes n -> ceil(n / stride).

    With ``padding``, so many zeros at every end instead, whatever the sizes become.
    """
    kernel, bias = _normal(gain), _constant(0)
    layer = partial(nnx.Conv, kernel_init=kernel, bias_init=bias, conv_general_dilated=channels_last, rngs=rngs)
    pads = "SAME" if padding is None else [(padding, padding)] * dims
    return layer(inputs, outputs, (3,) * dims, strides=stride, padding=pads)


def group_norm(
    channels: int, *, rngs: nnx.Rngs, group_size: int = 4, most: int = 32, epsilon: float = 1e-6
) -> nnx.GroupNorm:
    """GroupNorm with the most groups (at most ``most``, of at least ``group_size`` channels) that divide the channels.

    The variance is the mean of squared deviations, not E[h^2] - E[h]^2, which loses all digits where |mean| >> std.
    """
    limit = max(1, min(most, channels // group_size))
    groups = max(g for g in range(1, limit + 1) if channels % g == 0)
    scale, bias = _constant(1), _constant(0)
    return nnx.GroupNorm(
        channels, groups, epsilon=epsilon, use_fast_variance=False, scale_init=scale, bias_init=bias, rngs=rngs
    )


def trained(shape: Sequence[int], *, gain: float, rngs: nnx.Rngs) -> nnx.Param:
    """An array that is a parameter, of independent entries of standard deviation ``gain``."""
    return nnx.Param(linear(1, size(shape), gain=gain, bias=False, rngs=rngs).kernel[...].reshape(shape))


def layer_norm(h: jax.Array, epsilon: float = 1e-5) -> jax.Array:
    """h (..., C) with mean 0 and variance 1 over C; two passes in float32 at least, no parameters."""
    wide = h.astype(jnp.promote_types(h.dtype, jnp.float32))
    wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + epsilon)).astype(h.dtype)


def size(shape: Sequence[int]) -> int:
    """Number of entries of an array of this shape."""
    return math.prod(shape)
