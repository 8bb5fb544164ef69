"""A small U-Net for 1-D, 2-D and 3-D data with channels last, event (*sizes, channels).

Level l works at sizes ceil(size / 2^l) with ``channels * multipliers[l]`` channels. It holds ``blocks`` residual blocks
on the way down and as many on the way up, each of which also reads its mirror image's output (concatenated):

    r = conv(dropout(silu((1 + s) * norm(conv(silu(norm(h)))) + b))),      (s, b) = linear(silu(linear(embedding(c)))).

With ``patch`` p the network works on patches: p^d neighbours are the channels of one position, x (*sizes, C) becomes
(*sizes / p, p^d C), and back at the end. Attention over all positions follows the blocks of the chosen levels. Down: a
convolution of stride 2. Up: nearest neighbour, cut to the sizes of the level above (so that odd sizes work), then a
convolution. The last convolution is zero at the start.

References: Ronneberger et al. (2015); Ho et al. (2020), appendix B; Dhariwal and Nichol (2021), adaptive group norm.
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
from scoresde.nn.layers import Embedding, conv, dropout, group_norm, linear, modulate, narrow, run, split


class UNet(nnx.Module):
    """A U-Net with time modulation.

    Args:
        event_shape: (*sizes, channels) with one, two or three sizes of any parity; halved per level, never below 1.
        channels: channels of level 0.
        multipliers: channels of each level over ``channels``; their number is the number of levels.
        blocks: residual blocks of each level, each way.
        patch: width of the patches that become one position of level 0; must divide the sizes.
        attention_levels: the levels with attention, 0 being full resolution.
        heads: attention heads; must divide the channels of those levels.
        dropout: rate inside the residual blocks, in [0, 1), active where the call is given a key (or (B,) keys).
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
        channels: int = 32,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 1,
        patch: int = 1,
        attention_levels: Sequence[int] = (),
        heads: int = 1,
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
        self.patch = whole(self, "patch", patch, 1)
        dims = self._check(multipliers, attention_levels)
        channels, blocks = whole(self, "channels", channels, 1), whole(self, "blocks", blocks, 1)
        widths = [channels * whole(self, "multipliers", m, 1) for m in multipliers]
        heads, rate, self.remat = whole(self, "heads", heads, 1), fraction(self, "dropout", dropout), remat
        for level in attention_levels:
            if widths[level] % heads:
                raise ValueError(f"UNet: heads = {heads} must divide the {widths[level]} channels of level {level}")
        rngs = nnx.Rngs(key)
        e = 2 * features

        def block(level: int, inputs: int) -> _Block:
            attention = heads if level in attention_levels else 0
            return _Block(dims, inputs, widths[level], e, attention, rate, rngs=rngs)

        depth = range(len(widths))
        self.embedding = Embedding(embedding, features, e, labels, rngs=rngs)
        self.input_frequencies = positive(self, "input_frequencies", input_frequencies)
        self.input_offset = constant(self, "input_offset", input_offset, self.event_shape)
        pixel = self.event_shape[-1] * self.patch**dims
        inputs = pixel * (1 + 2 * len(self.input_frequencies))
        self.input = conv(dims, inputs, channels, rngs=rngs)
        below = [channels, *widths[:-1]]
        self.down = nnx.List(
            [nnx.List([block(i, below[i] if k == 0 else widths[i]) for k in range(blocks)]) for i in depth]
        )
        self.halve = nnx.List([conv(dims, w, w, stride=2, rngs=rngs) for w in widths[:-1]])
        self.middle = nnx.List([block(len(widths) - 1, widths[-1]) for _ in range(2)])
        self.up = nnx.List([nnx.List([block(i, 2 * widths[i]) for _ in range(blocks)]) for i in depth])
        self.double = nnx.List([conv(dims, widths[i + 1], widths[i], rngs=rngs) for i in depth[:-1]])
        self.norm = group_norm(widths[0], rngs=rngs)
        self.output = conv(dims, widths[0], pixel, gain=0, rngs=rngs)

    def _check(self, multipliers: Sequence[int], attention_levels: Sequence[int]) -> int:
        shape = self.event_shape
        if len(shape) not in (2, 3, 4) or min(shape) < 1:
            raise ValueError(f"UNet: event_shape must be (*sizes, channels) with 1 to 3 positive sizes, got {shape}")
        if not multipliers:
            raise ValueError("UNet: multipliers must name at least one level, got none")
        if any(size % self.patch for size in shape[:-1]):
            raise ValueError(f"UNet: patch = {self.patch} must divide the sizes {shape[:-1]}")
        if max(shape[:-1]) // self.patch <= 2 ** (len(multipliers) - 2):
            levels = len(multipliers)
            raise ValueError(f"UNet: {levels} levels are too many for sizes {shape[:-1]}: give fewer multipliers")
        for level in attention_levels:
            if not 0 <= operator.index(level) < len(multipliers):
                raise ValueError(f"UNet: attention_levels must be in 0..{len(multipliers) - 1}, got {level!r}")
        return len(shape) - 1

    def __call__(
        self, x: jax.Array, c: jax.Array, *, key: jax.Array | None = None, labels: jax.Array | None = None
    ) -> jax.Array:
        check_input(self, self.event_shape, x, c)
        count = sum(len(level) for level in (*self.down, *self.up)) + len(self.middle)
        keys = iter(split(key, count))
        waves = input_waves(x, c, self.input_frequencies, np.reshape(self.input_offset, self.event_shape))
        waves = narrow(waves.reshape(*x.shape[:-1], -1), self.input.kernel[...].dtype)
        e, h, skips = self.embedding(c, labels), self.input(folded(waves, self.patch)), []
        for i, level in enumerate(self.down):
            for block in level:
                h = run(block, h, e, next(keys), remat=self.remat)
                skips.append(h)
            if i < len(self.halve):
                h = self.halve[i](h)
        for block in self.middle:
            h = run(block, h, e, next(keys), remat=self.remat)
        for i in reversed(range(len(self.up))):
            if i < len(self.double):
                h = self.double[i](enlarge(h, skips[-1].shape[1:-1]))
            for block in self.up[i]:
                h = run(block, jnp.concatenate([h, skips.pop()], axis=-1), e, next(keys), remat=self.remat)
        h = unfolded(self.output(jax.nn.silu(self.norm(h))), self.patch)
        return h.astype(jnp.promote_types(h.dtype, x.dtype))


class _Block(nnx.Module):
    """norm, silu, conv, norm, modulation, silu, dropout, conv; plus a (linear) shortcut; then attention."""

    def __init__(
        self, dims: int, inputs: int, outputs: int, embedding: int, heads: int, rate: float, *, rngs: nnx.Rngs
    ) -> None:
        self.norm_1 = group_norm(inputs, rngs=rngs)
        self.conv_1 = conv(dims, inputs, outputs, rngs=rngs)
        self.modulation = linear(embedding, 2 * outputs, gain=0.3, rngs=rngs)
        self.norm_2 = group_norm(outputs, rngs=rngs)
        self.conv_2 = conv(dims, outputs, outputs, gain=0.5, rngs=rngs)
        self.shortcut = linear(inputs, outputs, rngs=rngs) if inputs != outputs else None
        self.attention = Attention(outputs, heads=heads, rngs=rngs) if heads else None
        self.rate = rate

    def __call__(self, h: jax.Array, e: jax.Array, *, key: jax.Array | None) -> jax.Array:
        scale, shift = jnp.split(self.modulation(e), 2, axis=-1)
        r = self.conv_1(jax.nn.silu(self.norm_1(h)))
        r = dropout(jax.nn.silu(modulate(self.norm_2(r), scale, shift)), self.rate, key)
        h = (h if self.shortcut is None else self.shortcut(h)) + self.conv_2(r)
        return h if self.attention is None else self.attention(h)


class Attention(nnx.Module):
    """h + W_o softmax(q k^T / sqrt(d)) v over all positions of h (B, *sizes, C), in float32 whatever the dtype of h."""

    def __init__(self, channels: int, *, heads: int = 1, rngs: nnx.Rngs) -> None:
        if channels % heads:
            raise ValueError(f"Attention: heads = {heads} must divide channels = {channels}")
        self.heads = heads
        self.norm = group_norm(channels, rngs=rngs)
        self.qkv = linear(channels, 3 * channels, rngs=rngs)
        self.output = linear(channels, channels, gain=0.5, rngs=rngs)

    def __call__(self, h: jax.Array) -> jax.Array:
        batch, channels = h.shape[0], h.shape[-1]
        precise = jnp.promote_types(h.dtype, jnp.float32)
        qkv = self.qkv(self.norm(h)).astype(precise).reshape(batch, -1, 3, self.heads, channels // self.heads)
        values = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        return h + self.output(values.astype(h.dtype).reshape(h.shape))


def enlarge(h: jax.Array, sizes: Sequence[int]) -> jax.Array:
    """Repeat each position of h (B, *smaller, C) twice along every axis, cut to ``sizes``."""
    for axis, size in enumerate(sizes, 1):
        h = jax.lax.slice_in_dim(jnp.repeat(h, 2, axis=axis), 0, size, axis=axis)
    return h


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
