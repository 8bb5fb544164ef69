"""The input and the output of a U-Net at every level: progressive growing by summation.

On the way down, p is the input halved level by level and h what the level sees; on the way up, p is the output so far,
doubled level by level, and h what the level gave. r is the factor of all sums.

    ResidualInput     p, h <- h', h'       h' = r (conv(halved p) + h)
    SkipInput         p, h <- p', h + W p'                   p' = halved p      (or h and W p' side by side)
    SkipOutput        p <- doubled p + conv(silu(norm(h))),  the network's output after the first level
    ResidualOutput    p, h <- h', h'       h' = r (conv(doubled p) + h);    p = conv(silu(norm(h))) at the last level

Reference: Song et al. (2021), appendix H; Karras et al., StyleGAN2 (2020), figure 7.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from scoresde.nn.layers.layers import conv, linear
from scoresde.nn.layers.resample import cut, double, down, halve, up
from scoresde.nn.unets.blocks import Layout, doubling, halving


class ResidualInput(nnx.Module):
    """(p (B, *sizes, P), h (B, *halved sizes, C)) -> (h', h')."""

    def __init__(self, dims: int, pyramid: int, width: int, layout: Layout, *, rngs: nnx.Rngs) -> None:
        self.outputs, self.layout = width, layout
        self.conv = halving(dims, pyramid, width, layout, rngs=rngs)

    def __call__(self, pyramid: jax.Array, h: jax.Array) -> tuple[jax.Array, jax.Array]:
        h = (halve(self.conv, pyramid, self.layout.taps) + h) * self.layout.rescale
        return h, h


class SkipInput(nnx.Module):
    """(p (B, *sizes, P), h (B, *halved sizes, C)) -> (p', h + W p'), or W p' before h on the last axis."""

    def __init__(self, dims: int, pyramid: int, width: int, layout: Layout, *, rngs: nnx.Rngs) -> None:
        self.outputs, self.layout = pyramid, layout
        self.linear = linear(pyramid, width, rngs=rngs)

    def __call__(self, pyramid: jax.Array, h: jax.Array) -> tuple[jax.Array, jax.Array]:
        pyramid = down(pyramid, self.layout.filter)
        seen = self.linear(pyramid)
        return pyramid, jnp.concatenate([seen, h], axis=-1) if self.layout.concatenated else h + seen


class SkipOutput(nnx.Module):
    """(p (B, *halved sizes, D) or None, h (B, *sizes, C)) -> (p', h)."""

    ends = True

    def __init__(
        self, dims: int, below: int | None, width: int, outputs: int, layout: Layout, *, rngs: nnx.Rngs
    ) -> None:
        self.layout = layout
        self.norm = layout.norm(width, rngs=rngs)
        self.conv = conv(dims, width, outputs, gain=0, rngs=rngs)

    def __call__(self, pyramid: jax.Array | None, h: jax.Array) -> tuple[jax.Array, jax.Array]:
        p = self.conv(jax.nn.silu(self.norm(h)))
        return p if pyramid is None else cut(up(pyramid, self.layout.filter), h.shape[1:-1]) + p, h


class ResidualOutput(nnx.Module):
    """(p (B, *halved sizes, P) or None, h (B, *sizes, C)) -> (p', h'), both the same but at the last level."""

    ends = False

    def __init__(
        self, dims: int, below: int | None, width: int, outputs: int, layout: Layout, *, rngs: nnx.Rngs
    ) -> None:
        self.layout = layout
        self.norm = layout.norm(width, rngs=rngs) if below is None else None
        convolution = partial(conv, dims, width) if below is None else partial(doubling, dims, below, layout=layout)
        self.conv = convolution(outputs=width, rngs=rngs)

    def __call__(self, pyramid: Any, h: jax.Array) -> tuple[jax.Array, jax.Array]:
        if self.norm is not None:
            return self.conv(jax.nn.silu(self.norm(h))), h
        h = (double(self.conv, pyramid, self.layout.taps, h.shape[1:-1]) + h) * self.layout.rescale
        return h, h
