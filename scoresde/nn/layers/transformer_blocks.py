"""The parts of transformers on tokens h (B, N, C): attention, cross-attention, feed-forward layer, modulated block.

    attention(q, k, v)_i = sum_j p_ij v_j,      p_i = softmax_j(q_i . k_j / sqrt(d)) over the keys j that are there,

head by head, d = C / heads, the softmax in float32 whatever the dtype of h. Cross-attention to context tokens has one
more key and value, both zero,

    cross(h)_i = sum_j exp(q_i . k_j / sqrt(d)) v_j / (1 + sum_j exp(q_i . k_j / sqrt(d))),

so that it is zero, and nothing is divided by zero, where no token is there. The block of adaLN-zero is, with shifts b,
scales s and gates g linear in the embedding e of the noise coordinate, zero at first (the block is the identity then),

    h <- h + g_1 attention((1 + s_1) norm(h) + b_1),        h <- h + cross(norm(h)),
    h <- h + g_2 W_2 gelu(W_1 ((1 + s_2) norm(h) + b_2)),

norm being layer normalisation without parameters.

References: Vaswani et al. (2017); Peebles and Xie (2023), adaLN-zero.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from scoresde.nn.layers.flash import attention
from scoresde.nn.layers.layers import dropout, layer_norm, linear, modulate, trained

Context = tuple[jax.Array, jax.Array]
"""Tokens (B, N, width) and their mask (B, N), bool."""


class SelfAttention(nnx.Module):
    """W_o attention(q, k, v), (q, k, v) = W h, over the tokens whose ``mask`` (B, N) is True (None: all)."""

    def __init__(self, width: int, heads: int, *, bias: bool = True, gain: float = 1.0, rngs: nnx.Rngs) -> None:
        self.heads = heads
        self.qkv = linear(width, 3 * width, bias=bias, rngs=rngs)
        self.output = linear(width, width, gain=gain, rngs=rngs)

    def __call__(self, h: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        q, k, v = jnp.moveaxis(self.qkv(h).reshape(*h.shape[:2], 3, self.heads, -1), 2, 0)
        return self.output(attention(q, k, v, mask=_keys(mask)).reshape(h.shape))


class CrossAttention(nnx.Module):
    """W_o cross(W_q h, W_k s, W_v s) for h (B, ..., width), any positions, and context tokens s (B, N, source) where
    their mask (B, N) is True; zero where it is nowhere, and for None. W_o is zero at first unless ``gain`` is given."""

    def __init__(
        self,
        width: int,
        source: int,
        heads: int,
        *,
        gain: float = 0.0,
        rngs: nnx.Rngs,
    ) -> None:
        self.heads = heads
        self.query = linear(width, width, rngs=rngs)
        self.key_value = linear(source, 2 * width, bias=False, rngs=rngs)
        self.output = linear(width, width, gain=gain, bias=False, rngs=rngs)

    def __call__(self, h: jax.Array, context: Context | None) -> jax.Array:
        if context is None:
            return jnp.zeros_like(h)
        tokens, mask = context
        q = self.query(h).reshape(h.shape[0], -1, self.heads, h.shape[-1] // self.heads)
        k, v = jnp.moveaxis(self.key_value(tokens).reshape(*mask.shape, 2, *q.shape[2:]), 2, 0)
        k, v = (jnp.pad(a, ((0, 0), (1, 0), (0, 0), (0, 0))) for a in (k, v))
        mask = jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True)
        return self.output(attention(q, k, v, mask=_keys(mask)).reshape(h.shape))


class InducedAttention(nnx.Module):
    """cross(h, norm(I + cross(I, h))): ``count`` trained tokens I attend to those of h whose ``mask`` (B, N) is True
    (None: all), and h to them."""

    def __init__(self, width: int, heads: int, count: int, *, rngs: nnx.Rngs) -> None:
        cross = partial(CrossAttention, width, width, heads, gain=1.0, rngs=rngs)
        self.points = trained((count, width), gain=1.0, rngs=rngs)
        self.gather, self.spread = cross(), cross()

    def __call__(self, h: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        batch, n, _ = h.shape
        points = jnp.broadcast_to(self.points[...], (batch, *self.points.shape)).astype(h.dtype)
        points = points + self.gather(points, (h, jnp.ones((batch, n), bool) if mask is None else mask))
        return self.spread(h, (layer_norm(points), jnp.ones(points.shape[:2], bool)))


def _keys(mask: jax.Array | None) -> jax.Array | None:
    """A mask (B, N) of keys as ``attention`` takes it."""
    return None if mask is None else mask[:, None, None, :]


class FeedForward(nnx.Module):
    """W_2 dropout(gelu(W_1 h)), ``ratio`` times as wide inside; gelu in its tanh form unless ``exact``."""

    def __init__(
        self, width: int, ratio: int, rate: float, *, exact: bool = False, gain: float = 1.0, rngs: nnx.Rngs
    ) -> None:
        self.first = linear(width, ratio * width, rngs=rngs)
        self.second = linear(ratio * width, width, gain=gain, rngs=rngs)
        self.rate, self.exact = rate, exact

    def __call__(self, h: jax.Array, key: jax.Array | None) -> jax.Array:
        return self.second(dropout(jax.nn.gelu(self.first(h), approximate=not self.exact), self.rate, key))


class ModulatedBlock(nnx.Module):
    """The block of adaLN-zero. ``source`` is the width of the context tokens, 0 for none; ``epsilons`` those of the two
    norms, ``inducing`` the number of trained tokens by which tokens see each other, 0 for directly."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        ratio: int,
        rate: float,
        source: int,
        epsilons: tuple[float, float] = (1e-6, 1e-6),
        inducing: int = 0,
        rngs: nnx.Rngs,
    ) -> None:
        self.modulation = linear(width, 6 * width, gain=0, rngs=rngs)
        self.attention = (
            InducedAttention(width, heads, inducing, rngs=rngs) if inducing else SelfAttention(width, heads, rngs=rngs)
        )
        self.cross = CrossAttention(width, source, heads, rngs=rngs) if source else None
        self.feed = FeedForward(width, ratio, rate, rngs=rngs)
        self.epsilons = epsilons

    def __call__(
        self,
        h: jax.Array,
        e: jax.Array,
        key: jax.Array | None,
        *,
        context: Context | None = None,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        b_1, s_1, g_1, b_2, s_2, g_2 = jnp.split(self.modulation(e), 6, axis=-1)
        r = self.attention(modulate(layer_norm(h, self.epsilons[0]), s_1, b_1), mask)
        h = h + g_1[:, None] * r
        h = h if self.cross is None else h + self.cross(layer_norm(h), context)
        return h + g_2[:, None] * self.feed(modulate(layer_norm(h, self.epsilons[1]), s_2, b_2), key)


class ModulatedOutput(nnx.Module):
    """W ((1 + s) norm(h) + b), W zero at first and (b, s) linear in e."""

    def __init__(self, width: int, outputs: int, *, rngs: nnx.Rngs) -> None:
        self.modulation = linear(width, 2 * width, gain=0, rngs=rngs)
        self.linear = linear(width, outputs, gain=0, rngs=rngs)

    def __call__(self, h: jax.Array, e: jax.Array) -> jax.Array:
        b, s = jnp.split(self.modulation(e), 2, axis=-1)
        return self.linear(modulate(layer_norm(h, 1e-6), s, b))
