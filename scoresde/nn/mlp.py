"""A residual multilayer perceptron with time modulation, for events of any shape (flattened inside).

With e = silu(linear(embedding(c))), and (s, b, g) = linear(e) wherever they stand,

    h <- W x,
    h <- h + (1 + g) * W_2 dropout(silu(W_1 ((1 + s) * norm(h) + b)))        in each block,
    F  = W_out silu((1 + s) * norm(h) + b),

norm being layer normalisation without parameters and W_out zero at the start; F is like x, or ``outputs`` numbers such
as logits. Conditions enter the embedding, stand beside the input, or are tokens to which h attends after each block
(``conditions.py``).

References: He et al. (2016), pre-activation residual blocks; Peebles and Xie (2023), adaptive scale, shift and gate.
"""

import operator
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from scoresde.nn.conditions.conditions import Conditions, Given
from scoresde.nn.layers.checks import constant, divides, fraction, positive, whole
from scoresde.nn.layers.embeddings import gaussian_fourier, input_waves
from scoresde.nn.layers.layers import dropout, layer_norm, linear, modulate, narrow, size, split
from scoresde.nn.layers.noise import NoiseEmbedding
from scoresde.nn.layers.repeat import through
from scoresde.nn.layers.transformer_blocks import CrossAttention
from scoresde.nn.network import Network


class ResidualMLP(Network):
    """A residual MLP with adaptive scale, shift and gate.

    Args:
        event_shape: shape of one example, any rank.
        width: width of the hidden layers.
        depth: number of residual blocks.
        dropout: rate inside the blocks, in [0, 1), active where the call is given a key (or (B,), one an example).
        remat: compute the blocks again in the backward pass instead of remembering their insides.
        scan: compile one block and loop over their parameters.
        input_frequencies: frequencies of ``input_waves`` by which the network also sees its input; none by default.
        input_offset: their ``offset``, a scalar or of the event's shape.
        embedding: ``(c, features) -> (B, features)``, such as ``gaussian_fourier`` or ``positional``.
        features: number of features of that embedding.
        labels: length L of the labels (B, L) that the call may be given, 0 for none.
        conditions: what ``cond`` of the call describes: see ``conditions.py``; None for nothing.
        heads: heads of the attention to conditions with tokens; must divide ``width``.
        outputs: n for a result (B, n), float32 at least; None for one like the input.
        key: random key of the initial parameters.

    Raises:
        ValueError: an argument out of range; at the call, x, c, labels or cond of another shape.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        width: int = 512,
        depth: int = 3,
        dropout: float = 0.0,
        remat: bool = False,
        scan: bool = False,
        input_frequencies: Sequence[float] = (),
        input_offset: ArrayLike = 0.0,
        embedding: Callable[[jax.Array, int], jax.Array] = gaussian_fourier,
        features: int = 64,
        labels: int = 0,
        conditions: Any = None,
        heads: int = 1,
        outputs: int | None = None,
        key: jax.Array,
    ) -> None:
        self.event_shape = tuple(map(operator.index, event_shape))
        dim = whole(self, "the product of event_shape", size(self.event_shape), 1)
        width, depth = whole(self, "width", width, 1), whole(self, "depth", depth, 1)
        heads = divides(self, "heads", heads, "width", width)
        rngs, more = nnx.Rngs(key), nnx.Rngs(jax.random.fold_in(key, 1))
        self.conditions = Conditions("ResidualMLP", conditions, width=width, rngs=more)
        sizes = features, 2 * features, labels, self.conditions.features
        self.embedding = NoiseEmbedding(embedding, *sizes, layers=1, rngs=rngs)
        self.input_frequencies = positive(self, "input_frequencies", input_frequencies)
        self.input_offset = constant(self, "input_offset", input_offset, self.event_shape)
        beside = size(self.event_shape[:-1]) * self.conditions.channels
        self.input = linear(dim * (1 + 2 * len(self.input_frequencies)) + beside, width, rngs=rngs)
        rate, self.remat, self.scan = fraction(self, "dropout", dropout), remat, scan
        self.blocks = nnx.List([_Block(width, 2 * features, rate, rngs=rngs) for _ in range(depth)])
        self.modulation = linear(2 * features, 2 * width, gain=0.3, rngs=rngs)
        self.outputs = None if outputs is None else whole(self, "outputs", outputs, 1)
        self.output = linear(width, self.outputs or dim, gain=0, rngs=rngs)
        attended = range(depth if self.conditions.width else 0)
        self.cross = nnx.List([CrossAttention(width, self.conditions.width, heads, rngs=more) for _ in attended])

    def _forward(
        self, x: jax.Array, c: jax.Array, given: Given, labels: jax.Array | None, key: jax.Array | None
    ) -> jax.Array:
        e = self.embedding(c, labels, given.vector)
        flat = x.reshape(x.shape[0], size(self.event_shape))
        waves = input_waves(flat, c, self.input_frequencies, np.array(self.input_offset))
        h = waves.reshape(x.shape[0], size(waves.shape[1:]))
        if given.channels is not None:
            h = jnp.concatenate([h, given.channels.reshape(x.shape[0], -1)], axis=-1)
        h = self.input(narrow(h, self.input.kernel[...].dtype))

        def call(pair: Any, h: jax.Array, key: jax.Array | None, _: None) -> jax.Array:
            block, cross = pair
            h = block(h, e, key=key)
            return h if cross is None else h + cross(layer_norm(h), given.context)

        pairs = list(zip_longest(self.blocks, self.cross))
        *_, h = through(pairs, call, h, split(key, len(pairs)), remat=self.remat, scan=self.scan)
        scale, shift = jnp.split(self.modulation(e), 2, axis=-1)
        h = jax.nn.silu(modulate(layer_norm(h), scale, shift))
        if self.outputs is not None:
            return self.output(h.astype(jnp.promote_types(h.dtype, jnp.float32)))
        return self.output(h).reshape(x.shape)


class _Block(nnx.Module):
    def __init__(self, width: int, embedding: int, rate: float, *, rngs: nnx.Rngs) -> None:
        self.modulation = linear(embedding, 3 * width, gain=0.3, rngs=rngs)
        self.first = linear(width, width, rngs=rngs)
        self.second = linear(width, width, gain=0.5, rngs=rngs)
        self.rate = rate

    def __call__(self, h: jax.Array, e: jax.Array, *, key: jax.Array | None) -> jax.Array:
        scale, shift, gate = jnp.split(self.modulation(e), 3, axis=-1)
        r = jax.nn.silu(self.first(modulate(layer_norm(h), scale, shift)))
        return h + (1 + gate) * self.second(dropout(r, self.rate, key))
