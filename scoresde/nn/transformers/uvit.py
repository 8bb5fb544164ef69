"""U-ViT for 1-D, 2-D and 3-D data with channels last, event (*sizes, channels): all is tokens, with long skips.

The noise coordinate, the conditions and the patches of width p are tokens of one sequence,

    h = [context, [W e, W_y y, W_p x_patches] + positions],        e = silu(W_c embedding(c) + W_l labels),

where positions are trained, y holds the classes and vectors, and context tokens carry their own positions. With
n = (depth - 1) / 2,

    h_i <- block(h_{i-1})                                      i = 1..n
    h   <- block(h_n)
    h   <- block(W_i [h, h_{n+1-i}])                           i = 1..n        (the long skips)
    out = conv(patches(W_o norm(h))),                          conv zero at first,
    block(h):  h <- h + attention(norm(h)),        h <- h + W_2 gelu(W_1 norm(h)),

norm being layer normalisation without parameters (those of the original are absorbed by the layer after it).
Published, with ``patch=2``:

    uvit_s (44 M, CIFAR-10), uvit_m (131 M, ImageNet 64 with patch=4), uvit_l (287 M), uvit_h (501 M, latents).

Reference: Bao et al., "All are worth words: a ViT backbone for diffusion models" (2023), section 3 and table 1.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from scoresde.nn.conditions.conditions import Conditions, Given
from scoresde.nn.layers.checks import divides, fraction, grid, whole
from scoresde.nn.layers.embeddings import gaussian_fourier
from scoresde.nn.layers.layers import conv, layer_norm, linear, narrow, size, split, trained
from scoresde.nn.layers.noise import NoiseEmbedding
from scoresde.nn.layers.repeat import through
from scoresde.nn.layers.resample import folded, unfolded
from scoresde.nn.layers.transformer_blocks import FeedForward, SelfAttention
from scoresde.nn.network import Network


class UViT(Network):
    """A transformer on patches, noise and conditions as one sequence, with long skips.

    Args:
        event_shape: (*sizes, channels) with one, two or three sizes, each a multiple of ``patch``.
        patch: width p of a patch along each axis.
        width: width C of the tokens.
        depth: number of blocks, odd: as many before the middle one as after it.
        heads: attention heads; must divide ``width``.
        ratio: width inside the feed-forward layers over ``width``.
        dropout: rate inside the feed-forward layers, in [0, 1), active where the call is given a key (or (B,) keys).
        remat: compute the blocks again in the backward pass instead of remembering their insides.
        scan: compile one block of each half and loop over their parameters.
        embedding: ``(c, features) -> (B, features)``, such as ``gaussian_fourier`` or ``positional``.
        features: number of features of that embedding.
        labels: length L of the labels (B, L) that the call may be given, 0 for none.
        conditions: what ``cond`` of the call describes: see ``conditions.py``; None for nothing.
        key: random key of the initial parameters.

    Raises:
        ValueError: an argument out of range; at the call, x, c, labels or cond of another shape.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        patch: int = 2,
        width: int = 512,
        depth: int = 13,
        heads: int = 8,
        ratio: int = 4,
        dropout: float = 0.0,
        remat: bool = False,
        scan: bool = False,
        embedding: Callable[[jax.Array, int], jax.Array] = gaussian_fourier,
        features: int = 64,
        labels: int = 0,
        conditions: Any = None,
        key: jax.Array,
    ) -> None:
        self.patch = whole(self, "patch", patch, 1)
        self.event_shape, channels = grid(self, event_shape, self.patch)
        if None in self.event_shape:
            raise ValueError(f"UViT: event_shape must be numbers (its positions are trained), got {self.event_shape}")
        width, depth = whole(self, "width", width, 1), whole(self, "depth", depth, 1)
        if depth % 2 == 0:
            raise ValueError(f"UViT: depth must be odd, as many blocks before the middle one as after it, got {depth}")
        heads, dims = divides(self, "heads", heads, "width", width), len(self.event_shape) - 1
        pixels, rngs = self.patch**dims, nnx.Rngs(key)
        self.conditions = Conditions("UViT", conditions, width=width, rngs=nnx.Rngs(jax.random.fold_in(key, 1)))
        self.embedding = NoiseEmbedding(embedding, features, width, labels, layers=1, rngs=rngs)
        self.noise = linear(width, width, rngs=rngs)
        vector = self.conditions.features
        self.vector = linear(vector, width, gain=0, rngs=rngs) if vector else None
        self.input = linear(pixels * (channels + self.conditions.channels), width, rngs=rngs)
        count = size([n // self.patch for n in event_shape[:-1]])
        self.positions = trained((1 + bool(vector) + count, width), gain=0.02, rngs=rngs)
        options = {"ratio": whole(self, "ratio", ratio, 1), "rate": fraction(self, "dropout", dropout)}
        block = partial(_Block, width, heads, gain=(2 * depth) ** -0.5, **options, rngs=rngs)
        half = range(depth // 2)
        self.down = nnx.List([block(skip=False) for _ in half])
        self.middle = block(skip=False)
        self.up = nnx.List([block(skip=True) for _ in half])
        self.remat, self.scan = remat, scan
        self.pixels = linear(width, pixels * channels, rngs=rngs)
        self.output = conv(dims, channels, channels, gain=0, rngs=rngs)

    def _forward(
        self, x: jax.Array, c: jax.Array, given: Given, labels: jax.Array | None, key: jax.Array | None
    ) -> jax.Array:
        dtype = self.input.kernel[...].dtype
        pixels = folded(given.beside(x), self.patch)
        patches = self.input(narrow(pixels, dtype).reshape(len(x), -1, pixels.shape[-1]))
        first = [self.noise(self.embedding(c, labels))[:, None]]
        if self.vector is not None and given.vector is not None:
            first.append(self.vector(narrow(given.vector, dtype))[:, None])
        h = jnp.concatenate([*first, patches], axis=1) + self.positions[...][None]
        mask = None
        if given.context is not None:
            tokens, there = given.context
            mask = jnp.concatenate([there, jnp.ones(h.shape[:2], bool)], axis=1)
            h = jnp.concatenate([tokens, h], axis=1)

        def call(block: _Block, h: jax.Array, key: jax.Array | None, skip: jax.Array | None) -> jax.Array:
            return block(h, key, skip, mask)

        after = partial(through, remat=self.remat, scan=self.scan)
        below, middle, above = split(key, 3)
        states = [h, *after(self.down, call, h, split(below, len(self.down)))]
        h = call(self.middle, states[-1], middle, None)
        *_, h = h, *after(self.up, call, h, split(above, len(self.up)), states[:0:-1])
        h = self.pixels(layer_norm(h[:, -patches.shape[1] :])).reshape(*pixels.shape[:-1], -1)
        return self.output(unfolded(h, self.patch))


class _Block(nnx.Module):
    """The block at the head of the module, after W [h, skip] where there is a skip."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        skip: bool,
        ratio: int,
        rate: float,
        gain: float,
        rngs: nnx.Rngs,
    ) -> None:
        self.skip = linear(2 * width, width, rngs=rngs) if skip else None
        self.attention = SelfAttention(width, heads, gain=gain, rngs=rngs)
        self.feed = FeedForward(width, ratio, rate, gain=gain, rngs=rngs)

    def __call__(
        self, h: jax.Array, key: jax.Array | None, skip: jax.Array | None, mask: jax.Array | None
    ) -> jax.Array:
        h = h if self.skip is None or skip is None else self.skip(jnp.concatenate([h, skip], axis=-1))
        h = h + self.attention(layer_norm(h), mask)
        return h + self.feed(layer_norm(h), key)


uvit_s = partial(UViT, width=512, depth=13, heads=8)
uvit_m = partial(UViT, width=768, depth=17, heads=12)
uvit_l = partial(UViT, width=1024, depth=21, heads=16)
uvit_h = partial(UViT, width=1152, depth=29, heads=16)
