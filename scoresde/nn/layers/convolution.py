"""Convolution whose derivatives are convolutions of the same layout on CPUs, and JAX's own elsewhere.

XLA brings a convolution into the one layout that its fast CPU kernel knows, channels last, only outside of loops and
branches; inside, the derivatives that JAX writes (batch and channels exchanged) run twenty to sixty times slower, and a
compiled training step is inside a loop (jax issue 12868). There the exchange is a transposition of the arrays; which of
the two it is, the platform decides that a program is lowered for. Along one axis, with stride s, padding (l, h), the
input of size n dilated by a to N = a(n - 1) + 1, the kernel of size k by b to K = b(k - 1) + 1, and M = s(m - 1) + 1
for the m outputs,

    y[o]      = sum_j  w[j] x'[s o + b j - l]
    dx[i]     = sum_j  w[k - 1 - j] dy'[a i + b j - (K - 1 - l)],      h = N + l - M,       dy' = dy dilated by s
    dw[j]     = sum_o  dy[o] x'[b j + s o - l],                        h = K + M - 1 - N - l.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


def channels_last(x: jax.Array, w: jax.Array, strides: Sequence[int], padding: Any, **options: Any) -> jax.Array:
    """``jax.lax.conv_general_dilated`` for x (B, *sizes, C) and w (*sizes, C, D), as ``nnx.Conv`` calls it."""
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:-1], w.shape[:-2], strides, padding)
    ones = (1,) * len(strides)
    return _conv.bind(
        x, w, strides=tuple(strides), padding=tuple(map(tuple, padding)), input_dilation=ones, kernel_dilation=ones
    )


def _plain(
    x: jax.Array, w: jax.Array, *, strides: Any, padding: Any, input_dilation: Any, kernel_dilation: Any
) -> jax.Array:
    axes = "XYZ"[: x.ndim - 2]
    layout = f"N{axes}C", f"{axes}IO", f"N{axes}C"
    return jax.lax.conv_general_dilated(x, w, strides, padding, input_dilation, kernel_dilation, layout)


def _shape(x: Any, w: Any, **options: Any) -> Any:
    y = jax.eval_shape(partial(_plain, **options), x, w)
    return ShapedArray(y.shape, y.dtype)


def _extents(x: Any, w: Any, y: Any, *, strides: Any, input_dilation: Any, kernel_dilation: Any, padding: Any) -> Any:
    """(N, K, M, l) of each axis."""
    sizes = zip(x.shape[1:-1], w.shape[:-2], y.shape[1:-1], strict=True)
    dilations = zip(input_dilation, kernel_dilation, strides, strict=True)
    for size, dilation, (low, _) in zip(sizes, dilations, padding, strict=True):
        yield *(d * (n - 1) + 1 for n, d in zip(size, dilation, strict=True)), low


def _to_input(dy: Any, x: Any, w: Any, **options: Any) -> Any:
    def here(dy: jax.Array, w: jax.Array) -> jax.Array:
        extents = _extents(x.aval, w, dy, **options)
        turned = options | {"strides": options["input_dilation"], "input_dilation": options["strides"]}
        turned["padding"] = tuple((K - 1 - low, N + low - M) for N, K, M, low in extents)
        return _conv.bind(dy, jnp.flip(jnp.swapaxes(w, -1, -2), range(w.ndim - 2)), **turned)

    def elsewhere(dy: jax.Array, w: jax.Array) -> jax.Array:
        return jax.linear_transpose(lambda x: _plain(x, w, **options), x.aval)(dy)[0]

    return jax.lax.platform_dependent(dy, w, cpu=here, default=elsewhere)


def _to_kernel(dy: Any, x: Any, w: Any, **options: Any) -> Any:
    def here(dy: jax.Array, x: jax.Array) -> jax.Array:
        extents = _extents(x, w.aval, dy, **options)
        turned = options | {"strides": options["kernel_dilation"], "kernel_dilation": options["strides"]}
        turned["padding"] = tuple((low, K + M - 1 - N - low) for N, K, M, low in extents)
        dw = _conv.bind(jnp.swapaxes(x, 0, -1), jnp.moveaxis(dy, 0, -2), **turned)
        return jnp.moveaxis(dw, 0, -2)

    def elsewhere(dy: jax.Array, x: jax.Array) -> jax.Array:
        return jax.linear_transpose(lambda w: _plain(x, w, **options), w.aval)(dy)[0]

    return jax.lax.platform_dependent(dy, x, cpu=here, default=elsewhere)


def _batched(operands: Any, axes: Any, **options: Any) -> Any:
    """A new axis of the inputs alone joins their batch; kernels of a batch go the way of JAX."""
    (x, w), (of_x, of_w) = operands, axes
    if of_w is not None:
        return jax.vmap(partial(_plain, **options), axes)(x, w), 0
    x = jnp.moveaxis(x, of_x, 0)
    y = _conv.bind(x.reshape(-1, *x.shape[2:]), w, **options)
    return y.reshape(*x.shape[:2], *y.shape[1:]), 0


_conv = Primitive("channels_last_conv")
_conv.def_impl(lambda x, w, **options: jax.jit(partial(_plain, **options))(x, w))
_conv.def_abstract_eval(_shape)
mlir.register_lowering(_conv, mlir.lower_fun(_plain, multiple_results=False))
ad.defbilinear(_conv, _to_input, _to_kernel)
batching.primitive_batchers[_conv] = _batched
