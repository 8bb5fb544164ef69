"""Linear operators of measurements: each returns a function of arrays (B, *event), the same for every example.

Images are (B, H, W, C), series (B, T, C), tables (B, D); what is said of images holds for any number of axes between
the first and the last. Adjoints are those of ``jax.linear_transpose``. Where A A^T = c I (mask on what it keeps, grey,
downsample, columns, spans) one iteration of conjugate gradients inverts it.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jax.typing import ArrayLike

from scoresde.arrays import Applied, flatten
from scoresde.checks import whole

Operator = Callable[[jax.Array], jax.Array]


def mask(keep: ArrayLike) -> Operator:
    """x where ``keep`` is true and 0 elsewhere, like x: inpainting and outpainting.

    Args:
        keep: booleans, of the event's shape or one that broadcasts to it, such as (H, W, 1).
    """
    keep = jnp.asarray(keep)
    if keep.dtype != bool or not keep.ndim:
        raise ValueError(f"keep must be an array of booleans like one example, got {keep.dtype} {keep.shape}")
    return Partial(_mask, keep)


def grey() -> Operator:
    """The grey channel of an orthonormal basis of the channels, (B, H, W, 1): their sum over sqrt(C)."""
    return Partial(_grey)


def downsample(factor: int) -> Operator:
    """Means over blocks of ``factor`` pixels a side, (B, H/factor, W/factor, C): super-resolution inverts it."""
    return Partial(Applied(_downsample, (whole("factor", factor),)))


def blur(std: float, radius: int | None = None) -> Operator:
    """Convolution with a Gaussian of ``std`` pixels on every axis between the first and the last, periodic at its ends.

    Args:
        std: in pixels, positive.
        radius: pixels to each side; by default as many as hold 3 std.
    """
    if not 0 < std < math.inf:
        raise ValueError(f"std must be positive and finite, got {std!r}")
    radius = math.ceil(3 * std) if radius is None else whole("radius", radius)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / std) ** 2)
    return Partial(_blur, jnp.asarray(weights / weights.sum(), float))


def fourier(keep: ArrayLike) -> Operator:
    """Some coefficients of the orthonormal Fourier transform over the axes between the first and the last.

    Args:
        keep: booleans (H, W), in the order of ``jnp.fft``; for real data a frequency and its negative say the same.

    Returns:
        a function to (B, F, C, 2): the real and imaginary parts of the F frequencies kept.
    """
    keep = np.asarray(keep)
    if keep.dtype != bool or not keep.any():
        raise ValueError(f"keep must be booleans (H, W) with one that is true, got {keep.dtype} {keep.shape}")
    return Partial(Applied(_fourier, (keep.shape,)), jnp.asarray(np.stack(np.nonzero(keep))))


def matrix(weights: ArrayLike) -> Operator:
    """weights x of the flattened example: (m, D) takes (B, *event) of D entries to (B, m)."""
    weights = jnp.asarray(weights, float)
    if weights.ndim != 2:
        raise ValueError(f"weights must have shape (m, D), got {weights.shape}")
    return Partial(_matrix, weights)


def compressed_sensing(key: jax.Array, count: int, size: int) -> Operator:
    """``count`` random sums of the ``size`` entries of an example, (B, count): a ``matrix`` of N(0, 1/count)."""
    shape = whole("count", count), whole("size", size)
    return matrix(jax.random.normal(key, shape) / math.sqrt(count))


def columns(kept: Sequence[int]) -> Operator:
    """These entries of the last axis, (B, ..., K): a table of which the other columns are missing."""
    kept = tuple(int(k) for k in kept)
    if not kept or min(kept) < 0 or len(set(kept)) < len(kept):
        raise ValueError(f"kept must be different column numbers of at least 0, got {list(kept)}")
    return Partial(Applied(_columns, (kept,)))


def spans(missing: Sequence[tuple[int, int]], length: int) -> Operator:
    """A series (B, T, C) without the spans start <= t < stop: (B, T - what is missing, C).

    Args:
        missing: (start, stop) of each span.
        length: T.
    """
    left = np.ones(whole("length", length), bool)
    for start, stop in missing:
        if not 0 <= start < stop <= length:
            raise ValueError(f"a span must have 0 <= start < stop <= {length}, got ({start}, {stop})")
        left[start:stop] = False
    if not left.any():
        raise ValueError("missing must leave something to measure")
    return Partial(Applied(_spans, (tuple(np.flatnonzero(left).tolist()), length)))


def _inner_axes(x: jax.Array) -> range:
    """The axes between the first and the last."""
    if x.ndim < 3:
        raise ValueError(f"x must have shape (B, ..., C) with axes between the first and the last, got {x.shape}")
    return range(1, x.ndim - 1)


def _mask(keep: jax.Array, x: jax.Array) -> jax.Array:
    if keep.ndim != x.ndim - 1 or any(k not in (1, n) for k, n in zip(keep.shape, x.shape[1:], strict=True)):
        raise ValueError(f"keep {keep.shape} must broadcast to an example of x, {x.shape[1:]}")
    return jnp.where(keep[None], x, 0)


def _grey(x: jax.Array) -> jax.Array:
    return jnp.sum(x, axis=-1, keepdims=True) / math.sqrt(x.shape[-1])


def _downsample(factor: int, x: jax.Array) -> jax.Array:
    axes = _inner_axes(x)
    if any(x.shape[axis] % factor for axis in axes):
        raise ValueError(f"downsample: {factor} must divide the sides of x, {x.shape[1:-1]}")
    blocks = [n for axis in axes for n in (x.shape[axis] // factor, factor)]
    return jnp.mean(x.reshape(x.shape[0], *blocks, x.shape[-1]), axis=tuple(range(2, 2 + 2 * len(axes), 2)))


def _blur(weights: jax.Array, x: jax.Array) -> jax.Array:
    radius = len(weights) // 2
    for axis in _inner_axes(x):
        moved = jnp.stack([jnp.roll(x, k - radius, axis) for k in range(len(weights))])
        x = jnp.tensordot(weights.astype(x.dtype), moved, 1, precision="highest")
    return x


def _fourier(shape: tuple[int, ...], index: jax.Array, x: jax.Array) -> jax.Array:
    axes = tuple(_inner_axes(x))
    if x.shape[1:-1] != shape:
        raise ValueError(f"keep {shape} must have the inner axes of x, {x.shape[1:-1]}")
    coefficients = jnp.fft.fftn(x, axes=axes, norm="ortho")[(slice(None), *index)]
    return jnp.stack([jnp.real(coefficients), jnp.imag(coefficients)], -1)


def _matrix(weights: jax.Array, x: jax.Array) -> jax.Array:
    flat = flatten(x)
    if flat.shape[1] != weights.shape[1]:
        raise ValueError(f"weights {weights.shape} must have a column for each entry of an example, got {x.shape[1:]}")
    return jnp.matmul(flat, weights.T.astype(x.dtype), precision="highest")


def _columns(kept: tuple[int, ...], x: jax.Array) -> jax.Array:
    if max(kept) >= x.shape[-1]:
        raise ValueError(f"kept must be columns of x, below {x.shape[-1]}, got {list(kept)}")
    return x[..., np.array(kept)]


def _spans(left: tuple[int, ...], length: int, x: jax.Array) -> jax.Array:
    if x.ndim < 2 or x.shape[1] != length:
        raise ValueError(f"x must have length {length} on its second axis, got {x.shape}")
    return x[:, np.array(left)]
