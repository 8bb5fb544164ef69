"""Resampling of h (B, *sizes, C) along every size: by a low-pass filter, by repetition, by patches.

With taps k_0..k_{L-1} (even in number, symmetric, of sum 1 after scaling) and p = L/2 - 1, along one axis

    low_pass(h)[o] = sum_j k_j h[o + j - p],     down(h)[i] = low_pass(h)[2i],     up(h)[o] = 2 sum_i k_{o-2i+p} h[i],

zero outside of h. Taps (1, 1) are the mean of two neighbours and nearest-neighbour repetition, (1, 3, 3, 1) those of
NCSN++. A size that is odd is first made even by repeating its last position, and ``up`` is cut where it is used.

A convolution behind the filter sees the filtered array beyond its borders (``margin``), so that filter and convolution
may be exchanged, as in the fused operations of StyleGAN2.

References: Zhang, "Making convolutional networks shift-invariant again" (2019); Karras et al., StyleGAN2 (2020); Song
et al. (2021), appendix H.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

Taps = tuple[float, ...]
Conv = Callable[[jax.Array], jax.Array]


def checked(taps: Sequence[float]) -> Taps:
    """``taps`` scaled to the sum 1, or a ValueError unless they are an even number of symmetric numbers."""
    array = np.asarray(taps, np.float64)
    if array.ndim != 1 or array.size < 2 or array.size % 2 or not np.array_equal(array, array[::-1]):
        raise ValueError(f"taps must be an even number of symmetric numbers such as (1, 3, 3, 1), got {taps!r}")
    if not (math.isfinite(array.sum()) and array.sum() > 0):
        raise ValueError(f"taps must have a positive finite sum, got {taps!r}")
    return tuple((array / array.sum()).tolist())


def low_pass(h: jax.Array, taps: Taps, *, margin: int = 1, stride: int = 1) -> jax.Array:
    """Every ``stride``-th position of the filtered array, from -margin to size - 2 + margin of the evened size."""
    for axis in range(1, h.ndim - 1):
        pad = [(0, 0)] * h.ndim
        pad[axis] = 0, h.shape[axis] % 2
        h = jnp.pad(h, pad, mode="edge")
        width = len(taps) // 2 - 1 + margin
        pad[axis] = width, width
        padded = jnp.pad(h, pad)
        stop = padded.shape[axis] - len(taps) + 1
        parts = [jax.lax.slice_in_dim(padded, j, stop + j, stride, axis) for j in range(len(taps))]
        h = sum(k * part for k, part in zip(taps[1:], parts[1:], strict=True)) + taps[0] * parts[0]
    return h


def down(h: jax.Array, taps: Taps) -> jax.Array:
    """h at half the sizes, rounded up."""
    return low_pass(h, taps, margin=0, stride=2)


def up(h: jax.Array, taps: Taps, *, margin: int = 0) -> jax.Array:
    """h at twice the sizes, with ``margin`` (0 or 1) positions more at every end."""
    for axis in range(1, h.ndim - 1):
        half = len(taps) // 2
        reach = (half + margin) // 2 + 1
        padded = jnp.pad(h, [(0, 0) if a != axis else (reach, reach) for a in range(h.ndim)])
        count = h.shape[axis] + margin
        phases = []
        for o in (-margin, 1 - margin):  # output o + 2m reads k_{o + p - 2i} h[m + i]
            terms = [
                2 * taps[j] * jax.lax.slice_in_dim(padded, reach + i, reach + i + count, axis=axis)
                for j in range(len(taps))
                if (o + half - 1 - j) % 2 == 0
                for i in [(o + half - 1 - j) // 2]
            ]
            phases.append(sum(terms[1:], terms[0]))
        h = jnp.stack(phases, axis=axis + 1)
        h = h.reshape(*h.shape[:axis], 2 * count, *h.shape[axis + 2 :])
    return h


def halve(conv: Conv, h: jax.Array, taps: Taps | None) -> jax.Array:
    """``conv``, of stride 2, on h; behind the filter if there is one, and then built without padding."""
    return conv(h if taps is None else low_pass(h, taps))


def double(conv: Conv, h: jax.Array, taps: Taps | None, sizes: Sequence[int]) -> jax.Array:
    """``conv`` on h enlarged to ``sizes``; by the filter if there is one, and then built without padding."""
    if taps is None:
        return conv(enlarge(h, sizes))
    return conv(cut(up(h, taps, margin=1), [size + 2 for size in sizes]))


def cut(h: jax.Array, sizes: Sequence[int]) -> jax.Array:
    """The first ``sizes`` positions of h along its axes."""
    return h[(slice(None), *(slice(size) for size in sizes))]


def enlarge(h: jax.Array, sizes: Sequence[int]) -> jax.Array:
    """Repeat each position of h (B, *smaller, C) twice along every axis, cut to ``sizes``."""
    for axis in range(1, h.ndim - 1):
        h = jnp.repeat(h, 2, axis=axis)
    return cut(h, sizes)


def folded(h: jax.Array, patch: int) -> jax.Array:
    """(B, *sizes, C) as (B, *sizes / patch, patch^d C): neighbours become channels."""
    batch, *sizes, channels = h.shape
    d = len(sizes)
    h = h.reshape(batch, *(n for size in sizes for n in (size // patch, patch)), channels)
    order = 0, *range(1, 2 * d, 2), *range(2, 2 * d + 1, 2), 2 * d + 1
    return h.transpose(order).reshape(batch, *(size // patch for size in sizes), -1)


def unfolded(h: jax.Array, patch: int) -> jax.Array:
    """The inverse of ``folded``."""
    batch, *sizes, channels = h.shape
    d = len(sizes)
    h = h.reshape(batch, *sizes, *(patch,) * d, channels // patch**d)
    order = 0, *(axis for i in range(1, d + 1) for axis in (i, d + i)), 2 * d + 1
    return h.transpose(order).reshape(batch, *(size * patch for size in sizes), -1)
