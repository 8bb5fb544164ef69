"""A set transformer: points (B, N, dim) in, an array like them out, whatever their number; the order means nothing.

    h   = W x,      h <- block(h, e)      ``depth`` times,      out = W_out ((1 + s) norm(h) + b),

as in ``dit.py`` but without positions: every layer treats all points alike and attention sums over them, so that a
permutation of the points permutes the result. Points that are not there (``Present``) are keys of no attention, and
their results are zero: what stands in their place, NaN even, has no influence. With ``inducing`` m > 0 the points
attend to m summaries of themselves and not to each other: N m products for N^2 (``transformers.InducedAttention``).

References: Lee et al. (2019), "Set transformer", induced set attention; Peebles and Xie (2023), adaLN-zero.
"""

import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from scoresde.nn.conditions.conditions import Conditions, Given
from scoresde.nn.conditions.descriptions import Present
from scoresde.nn.layers.checks import divides, fraction, whole
from scoresde.nn.layers.embeddings import gaussian_fourier
from scoresde.nn.layers.layers import linear, narrow, split
from scoresde.nn.layers.noise import NoiseEmbedding
from scoresde.nn.layers.repeat import through
from scoresde.nn.layers.transformer_blocks import ModulatedBlock, ModulatedOutput
from scoresde.nn.network import Network


class SetTransformer(Network):
    """A permutation-equivariant transformer for point clouds.

    Args:
        event_shape: (points, dim); points may be None for any number, and no parameter depends on it.
        width: width of the tokens.
        depth: number of blocks.
        heads: attention heads; must divide ``width``.
        ratio: width inside the feed-forward layers over ``width``.
        inducing: number m of summaries by which the points see each other; 0: each attends to all.
        dropout: rate inside the feed-forward layers, in [0, 1), active where the call is given a key (or (B,) keys).
        remat: compute the blocks again in the backward pass instead of remembering their insides.
        scan: compile one block and loop over their parameters.
        embedding: ``(c, features) -> (B, features)``, such as ``gaussian_fourier`` or ``positional``.
        features: number of features of that embedding.
        labels: length L of the labels (B, L) that the call may be given, 0 for none.
        conditions: what ``cond`` of the call describes: see ``conditions.py``; None for nothing. At most one is
            ``Present()``, the mask; a ``Map`` gives numbers for each point.
        key: random key of the initial parameters.

    Raises:
        ValueError: an argument out of range; at the call, x, c, labels or cond of another shape.
    """

    def __init__(
        self,
        event_shape: Sequence[int | None],
        *,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        ratio: int = 4,
        inducing: int = 0,
        dropout: float = 0.0,
        remat: bool = False,
        scan: bool = False,
        embedding: Callable[[jax.Array, int], jax.Array] = gaussian_fourier,
        features: int = 64,
        labels: int = 0,
        conditions: Any = None,
        key: jax.Array,
    ) -> None:
        shape = tuple(None if n is None else operator.index(n) for n in event_shape)
        if len(shape) != 2 or shape[1] is None or min(shape[0] or 1, shape[1]) < 1 or shape[0] == 0:
            raise ValueError(f"SetTransformer: event_shape must be (points or None, dim), both positive, got {shape}")
        if sum(isinstance(d, Present) for d in jax.tree.leaves(conditions)) > 1:
            raise ValueError(f"SetTransformer: conditions must have Present() at most once, got {conditions}")
        self.event_shape, dim = shape, shape[1]
        width, depth = whole(self, "width", width, 1), whole(self, "depth", depth, 1)
        rngs, more = nnx.Rngs(key), nnx.Rngs(jax.random.fold_in(key, 1))
        self.conditions = Conditions("SetTransformer", conditions, width=width, present=True, rngs=more)
        vector = self.conditions.features
        self.embedding = NoiseEmbedding(embedding, features, width, labels, vector, rngs=rngs)
        self.input = linear(dim + self.conditions.channels, width, rngs=rngs)
        block = partial(
            ModulatedBlock,
            width,
            divides(self, "heads", heads, "width", width),
            ratio=whole(self, "ratio", ratio, 1),
            rate=fraction(self, "dropout", dropout),
            source=self.conditions.width,
            inducing=whole(self, "inducing", inducing, 0),
            rngs=rngs,
        )
        self.remat, self.scan, self.blocks = remat, scan, nnx.List([block() for _ in range(depth)])
        self.output = ModulatedOutput(width, dim, rngs=rngs)

    def _forward(
        self, x: jax.Array, c: jax.Array, given: Given, labels: jax.Array | None, key: jax.Array | None
    ) -> jax.Array:
        there = given.present
        e = self.embedding(c, labels, given.vector)
        points = given.beside(x) if there is None else jnp.where(there[..., None], given.beside(x), 0)
        h = self.input(narrow(points, self.input.kernel[...].dtype))

        def call(block: ModulatedBlock, h: jax.Array, key: jax.Array | None, _: None) -> jax.Array:
            return block(h, e, key, context=given.context, mask=there)

        *_, h = through(self.blocks, call, h, split(key, len(self.blocks)), remat=self.remat, scan=self.scan)
        h = self.output(h, e)
        return h if there is None else jnp.where(there[..., None], h, 0)
