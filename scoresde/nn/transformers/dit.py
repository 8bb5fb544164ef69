"""Diffusion transformer (DiT) for 1-D, 2-D and 3-D data with channels last, event (*sizes, channels).

Patches of width p become tokens, each with its position added; blocks of adaLN-zero follow, then patches again:

    h   = W x_patches + positions,
    e   = silu(W_2 silu(W_1 embedding(c)) + W_y y),         y the classes and vectors that are given (noise.py)
    h   <- block(h, e)                                      ``depth`` times (transformers.py)
    out = W_out ((1 + s) norm(h) + b),                      (b, s) linear in e, W_out zero at first.

No parameter depends on the sizes of the data: sizes of the event may be None, and are then any that p divides. The
published networks for latents of 32 x 32 x 4 (256-pixel images) and 64 x 64 x 4, with 1000 classes, are

    dit_s, dit_b, dit_l, dit_xl (event_shape, patch=2, 4 or 8, outputs=8, conditions=Classes(1000), key=...)

with 33, 130, 458 and 675 million parameters at p = 2; ``outputs`` counts the predicted variances.

Reference: Peebles and Xie, "Scalable diffusion models with transformers" (2023), sections 3.2 and 4, table 1.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
from flax import nnx

from scoresde.nn.conditions.conditions import Conditions, Given
from scoresde.nn.layers.checks import divides, fraction, grid, whole
from scoresde.nn.layers.embeddings import gaussian_fourier
from scoresde.nn.layers.layers import linear, narrow, split
from scoresde.nn.layers.noise import NoiseEmbedding
from scoresde.nn.layers.positions import positions
from scoresde.nn.layers.repeat import through
from scoresde.nn.layers.resample import folded, unfolded
from scoresde.nn.layers.transformer_blocks import ModulatedBlock, ModulatedOutput
from scoresde.nn.network import Network


class DiT(Network):
    """A transformer on patches with adaptive layer normalisation (adaLN-zero).

    Args:
        event_shape: (*sizes, channels) with one, two or three sizes, each a multiple of ``patch``, or None for any.
        patch: width p of a patch along each axis.
        width: width C of the tokens.
        depth: number of blocks.
        heads: attention heads; must divide ``width``.
        ratio: width inside the feed-forward layers over ``width``.
        outputs: channels of the result, those of the event by default.
        dropout: rate inside the feed-forward layers, in [0, 1), active where the call is given a key (or (B,) keys).
        remat: compute the blocks again in the backward pass instead of remembering their insides.
        scan: compile one block and loop over their parameters.
        separate: whether each block has an embedding e of its own, as diffusers' DiTTransformer2DModel allows; the
            output then reads the first one's.
        epsilons: added to the variance in the two norms of each block.
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
        event_shape: Sequence[int | None],
        *,
        patch: int = 2,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        ratio: int = 4,
        outputs: int | None = None,
        dropout: float = 0.0,
        remat: bool = False,
        scan: bool = False,
        separate: bool = False,
        epsilons: tuple[float, float] = (1e-6, 1e-6),
        embedding: Callable[[jax.Array, int], jax.Array] = gaussian_fourier,
        features: int = 256,
        labels: int = 0,
        conditions: Any = None,
        key: jax.Array,
    ) -> None:
        self.patch = whole(self, "patch", patch, 1)
        self.event_shape, channels = grid(self, event_shape, self.patch)
        self.width = whole(self, "width", width, 1)
        depth = whole(self, "depth", depth, 1)
        self.outputs = channels if outputs is None else whole(self, "outputs", outputs, 1)
        options = {
            "heads": divides(self, "heads", heads, "width", width),
            "ratio": whole(self, "ratio", ratio, 1),
            "rate": fraction(self, "dropout", dropout),
            "epsilons": epsilons,
        }
        pixels, rngs = self.patch ** (len(self.event_shape) - 1), nnx.Rngs(key)
        self.conditions = Conditions("DiT", conditions, width=width, rngs=nnx.Rngs(jax.random.fold_in(key, 1)))
        vector = self.conditions.features
        embed = partial(NoiseEmbedding, embedding, features, width, labels, vector, rngs=rngs)
        self.embeddings = nnx.List([embed() for _ in range(depth if separate else 1)])
        self.input = linear(pixels * (channels + self.conditions.channels), width, rngs=rngs)
        block = partial(ModulatedBlock, width, source=self.conditions.width, **options, rngs=rngs)
        self.separate, self.remat, self.scan = separate, remat, scan
        self.blocks = nnx.List([block() for _ in range(depth)])
        self.output = ModulatedOutput(width, pixels * self.outputs, rngs=rngs)

    def _forward(
        self, x: jax.Array, c: jax.Array, given: Given, labels: jax.Array | None, key: jax.Array | None
    ) -> jax.Array:
        grid(self, x.shape[1:], self.patch)
        e = [embedding(c, labels, given.vector) for embedding in self.embeddings]
        pixels = folded(given.beside(x), self.patch)
        h = self.input(narrow(pixels, self.input.kernel[...].dtype).reshape(len(x), -1, pixels.shape[-1]))
        h = h + positions(pixels.shape[1:-1], self.width).astype(h.dtype)[None]

        def call(block: ModulatedBlock, h: jax.Array, key: jax.Array | None, own: jax.Array | None) -> jax.Array:
            return block(h, e[0] if own is None else own, key, context=given.context)

        keys, own = split(key, len(self.blocks)), e if self.separate else None
        *_, h = through(self.blocks, call, h, keys, own, remat=self.remat, scan=self.scan)
        return unfolded(self.output(h, e[0]).reshape(*pixels.shape[:-1], -1), self.patch)


dit_s = partial(DiT, width=384, depth=12, heads=6)
dit_b = partial(DiT, width=768, depth=12, heads=12)
dit_l = partial(DiT, width=1024, depth=24, heads=16)
dit_xl = partial(DiT, width=1152, depth=28, heads=16)
