"""A residual multilayer perceptron with time modulation, for events of any shape (flattened inside).

With e = silu(linear(embedding(c))), and (s, b, g) = linear(e) wherever they stand,

    h <- W x,
    h <- h + (1 + g) * W_2 dropout(silu(W_1 ((1 + s) * norm(h) + b)))        in each block,
    F  = W_out silu((1 + s) * norm(h) + b),

norm being layer normalisation without parameters and W_out zero at the start.

References: He et al. (2016), pre-activation residual blocks; Peebles and Xie (2023), adaptive scale, shift and gate.
"""

import operator
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from scoresde.nn.checks import check_input, constant, fraction, positive, whole
from scoresde.nn.embeddings import gaussian_fourier, input_waves
from scoresde.nn.layers import Embedding, dropout, linear, modulate, narrow, run, size, split


class ResidualMLP(nnx.Module):
    """A residual MLP with adaptive scale, shift and gate.

    Args:
        event_shape: shape of one example, any rank.
        width: width of the hidden layers.
        depth: number of residual blocks.
        dropout: rate inside the blocks, in [0, 1), active where the call is given a key (or (B,), one an example).
        remat: compute the blocks again in the backward pass instead of remembering their insides.
        input_frequencies: frequencies of ``input_waves`` by which the network also sees its input; none by default.
        input_offset: their ``offset``, a scalar or of the event's shape.
        embedding: ``(c, features) -> (B, features)``, such as ``gaussian_fourier`` or ``positional``.
        features: number of features of that embedding.
        labels: length L of the labels (B, L) that the call may be given, 0 for none.
        key: random key of the initial parameters.

    Raises:
        ValueError: an argument out of range; at the call, x, c or labels of another shape.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        width: int = 512,
        depth: int = 3,
        dropout: float = 0.0,
        remat: bool = False,
        input_frequencies: Sequence[float] = (),
        input_offset: ArrayLike = 0.0,
        embedding: Callable[[jax.Array, int], jax.Array] = gaussian_fourier,
        features: int = 64,
        labels: int = 0,
        key: jax.Array,
    ) -> None:
        self.event_shape = tuple(map(operator.index, event_shape))
        dim = whole(self, "the product of event_shape", size(self.event_shape), 1)
        width, depth = whole(self, "width", width, 1), whole(self, "depth", depth, 1)
        rngs = nnx.Rngs(key)
        self.embedding = Embedding(embedding, features, 2 * features, labels, rngs=rngs)
        self.input_frequencies = positive(self, "input_frequencies", input_frequencies)
        self.input_offset = constant(self, "input_offset", input_offset, self.event_shape)
        self.input = linear(dim * (1 + 2 * len(self.input_frequencies)), width, rngs=rngs)
        rate, self.remat = fraction(self, "dropout", dropout), remat
        self.blocks = nnx.List([_Block(width, 2 * features, rate, rngs=rngs) for _ in range(depth)])
        self.modulation = linear(2 * features, 2 * width, gain=0.3, rngs=rngs)
        self.output = linear(width, dim, gain=0, rngs=rngs)

    def __call__(
        self, x: jax.Array, c: jax.Array, *, key: jax.Array | None = None, labels: jax.Array | None = None
    ) -> jax.Array:
        check_input(self, self.event_shape, x, c)
        e = self.embedding(c, labels)
        flat = x.reshape(x.shape[0], size(self.event_shape))
        waves = input_waves(flat, c, self.input_frequencies, np.array(self.input_offset))
        h = self.input(narrow(waves.reshape(x.shape[0], size(waves.shape[1:])), self.input.kernel[...].dtype))
        for block, block_key in zip(self.blocks, split(key, len(self.blocks)), strict=True):
            h = run(block, h, e, block_key, remat=self.remat)
        scale, shift = jnp.split(self.modulation(e), 2, axis=-1)
        h = self.output(jax.nn.silu(modulate(layer_norm(h), scale, shift)))
        return h.reshape(x.shape).astype(jnp.promote_types(h.dtype, x.dtype))


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


def layer_norm(h: jax.Array) -> jax.Array:
    """h (..., C) with mean 0 and variance 1 over C; two passes in float32 at least, no parameters."""
    wide = h.astype(jnp.promote_types(h.dtype, jnp.float32))
    wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + 1e-5)).astype(h.dtype)
