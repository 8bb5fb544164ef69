"""EDM2's magnitude-preserving U-Net for 1-D, 2-D and 3-D data with channels last, event (*sizes, channels).

All layers are those of ``magnitude.py``: no normalisation layers, no biases. Level l has ``channels * multipliers[l]``
channels at sizes halved l times; with e = silu(lerp(W_c waves(c), W_y y; 1/2)), y the conditions' vector,

    h   = conv([x, 1])
    e-block:  h <- unit(W_skip resampled h);      d-block:  h <- resampled h
              r  = conv(dropout(silu((1 + g W e) * conv(silu(h)))))
              h <- lerp(h, r; 0.3)                (d-block: of W_skip h)
              h <- lerp(h, W_o attention(unit q, unit k, unit v); 0.3)    with (q, k, v) = W h, at some levels
    F   = gain conv(h),

the e-blocks on the way down; the d-blocks on the way up, of cat(h, mirror image; 1/2). W_skip is there where the
channels change, the gains are zero at first. All channels that come are made unit along the channels of a position.
Published for images of 64 x 64 x 3 or latents of 64 x 64 x 4, with 1000 classes:

    edm2_xxs, xs, s, m, l, xl, xxl: 31, 125, 280, 498, 777, 1119, 1523 million parameters.

Its noise coordinate is c = log(sigma) / 4, where ours is log(sigma / sigma_data): its waves have frequencies to match.

Reference: Karras et al., "Analyzing and improving the training dynamics of diffusion models" (2024), configuration G,
appendix B and table 6.
"""

import operator
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from scoresde.nn.conditions.conditions import Conditions, Given
from scoresde.nn.layers.checks import check_labels, divides, fraction, grid, whole
from scoresde.nn.layers.flash import attention
from scoresde.nn.layers.layers import dropout, narrow, split
from scoresde.nn.layers.repeat import through
from scoresde.nn.layers.resample import checked, cut, down, up
from scoresde.nn.network import Network
from scoresde.nn.unets.magnitude import Layer, Waves, cat, lerp, silu, unit

_TAPS = checked((1, 1))
_RESIDUAL = 0.3


class EDM2(Network):
    """EDM2's U-Net (configuration G).

    Args:
        event_shape: (*sizes, channels) with one, two or three sizes, halved per level (rounded up).
        channels: channels of level 0.
        multipliers: channels of each level over ``channels``; their number is the number of levels.
        blocks: residual blocks of each level on the way down; one more on the way up.
        attention_levels: the levels with attention, 0 being full resolution; the first block up has it always.
        head_channels: channels of an attention head; must divide those of the levels with attention.
        dropout: rate inside the residual blocks, in [0, 1), active where the call is given a key (or (B,) keys).
        remat: compute the blocks again in the backward pass instead of remembering their insides.
        scan: compile one of several blocks alike that follow each other, and loop over their parameters.
        labels: length L of the labels (B, L) that the call may be given, 0 for none.
        conditions: classes, vectors and maps that ``cond`` of the call gives: see ``conditions.py``; None for nothing.
        key: random key of the initial parameters.

    Raises:
        ValueError: an argument out of range; at the call, x, c, labels or cond of another shape.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        channels: int = 128,
        multipliers: Sequence[int] = (1, 2, 3, 4),
        blocks: int = 3,
        attention_levels: Sequence[int] = (2, 3),
        head_channels: int = 64,
        dropout: float = 0.0,
        remat: bool = False,
        scan: bool = False,
        labels: int = 0,
        conditions: Any = None,
        key: jax.Array,
    ) -> None:
        self.event_shape, pixel = grid(self, event_shape, 1)
        channels, blocks = whole(self, "channels", channels, 1), whole(self, "blocks", blocks, 1)
        widths = [channels * whole(self, "multipliers", m, 1) for m in multipliers]
        depth, dims = len(widths), len(self.event_shape) - 1
        attentive = set(map(operator.index, attention_levels))
        if not widths or not attentive <= set(range(depth)):
            raise ValueError(
                f"EDM2: attention_levels must be levels 0..{depth - 1} of multipliers, got {attention_levels}"
            )
        rngs, self.remat, self.scan = nnx.Rngs(key), remat, scan
        self.conditions = Conditions("EDM2", conditions, width=0, rngs=rngs)
        self.labels = whole(self, "labels", labels, 0)
        vector, e = self.labels + self.conditions.features, max(widths)
        options = {"rate": fraction(self, "dropout", dropout), "rngs": rngs}

        def block(inputs: int, width: int, attention: bool, *, up: bool) -> _Block:
            heads = width // divides(self, "head_channels", head_channels, "channels", width) if attention else 0
            return _Block(dims, inputs, width, e, heads, up=up, **options)

        self.waves = Waves(channels)
        self.noise = Layer(channels, e, rngs=rngs)
        self.vector = Layer(vector, e, rngs=rngs) if vector else None
        self.input = Layer(pixel + 1 + self.conditions.channels, widths[0], dims=dims, rngs=rngs)
        self.down, skips, h = nnx.List([]), [widths[0]], widths[0]
        for level, width in enumerate(widths):
            first = [block(h, h, False, up=False)] if level else []
            rest = [block(width if k else h, width, level in attentive, up=False) for k in range(blocks)]
            self.down.append(nnx.List(first + rest))
            skips, h = skips + [h] * len(first) + [width] * blocks, width
        self.up = nnx.List([])
        for level, width in reversed(list(enumerate(widths))):
            first = [
                block(h, h, attention, up=True) for attention in ((True, False) if level == depth - 1 else (False,))
            ]
            inputs = [(width if k else h) + skips.pop() for k in range(blocks + 1)]
            self.up.append(nnx.List(first + [block(n, width, level in attentive, up=True) for n in inputs]))
            h = width
        self.output = Layer(widths[0], pixel, dims=dims, rngs=rngs)
        self.gain = nnx.Param(jnp.zeros(()))

    def _forward(
        self, x: jax.Array, c: jax.Array, given: Given, labels: jax.Array | None, key: jax.Array | None
    ) -> jax.Array:
        e = self._embed(c, labels, given.vector)
        keys = iter(split(key, sum(len(level) for level in (*self.down, *self.up))))

        def call(block: _Block, h: jax.Array, key: jax.Array | None, skip: jax.Array | None) -> jax.Array:
            return block(h if skip is None else cat(h, skip, 0.5), e, key=key)

        def after(blocks: Any, h: jax.Array, skips: list[Any] | None = None) -> list[jax.Array]:
            return through(blocks, call, h, [next(keys) for _ in blocks], skips, remat=self.remat, scan=self.scan)

        ones = jnp.ones((*x.shape[:-1], 1), x.dtype)
        h = self.input(narrow(given.beside(jnp.concatenate([x, ones], axis=-1)), self.input.weight[...].dtype))
        skips = [h]
        for level, blocks in enumerate(self.down):
            h = down(h, _TAPS) if level else h
            skips += after(blocks, h)
            h = skips[-1]
        for level, blocks in enumerate(self.up):
            h = cut(up(h, _TAPS), skips[-1].shape[1:-1]) if level else h
            first = 1 if level else 2
            *_, h = after(blocks, h, [None] * first + [skips.pop() for _ in blocks[first:]])
        return self.output(h, self.gain[...])

    def _embed(self, c: jax.Array, labels: jax.Array | None, vector: jax.Array | None) -> jax.Array:
        """e (B, width); every class and label of mean square 1."""
        check_labels(labels, (*c.shape, self.labels))
        dtype = self.noise.weight[...].dtype
        e = self.noise(narrow(self.waves(c), dtype))
        if self.vector is not None:
            parts = [jnp.zeros((*c.shape, self.labels), c.dtype) if labels is None else labels]
            parts += [] if vector is None else [vector * jnp.asarray(self.conditions.scales, vector.dtype)[None, :]]
            e = lerp(e, self.vector(narrow(jnp.concatenate(parts, axis=-1), dtype)), 0.5)
        return silu(e)


class _Block(nnx.Module):
    """The e-block or, with ``up``, the d-block at the head of the module, without its resampling."""

    def __init__(
        self,
        dims: int,
        inputs: int,
        outputs: int,
        embedding: int,
        heads: int,
        *,
        up: bool,
        rate: float,
        rngs: nnx.Rngs,
    ) -> None:
        self.up, self.rate, self.heads = up, rate, heads
        self.first = Layer(inputs if up else outputs, outputs, dims=dims, rngs=rngs)
        self.embedding = Layer(embedding, outputs, rngs=rngs)
        self.gain = nnx.Param(jnp.zeros(()))
        self.second = Layer(outputs, outputs, dims=dims, rngs=rngs)
        self.skip = Layer(inputs, outputs, rngs=rngs) if inputs != outputs else None
        self.qkv = Layer(outputs, 3 * outputs, rngs=rngs) if heads else None
        self.projection = Layer(outputs, outputs, rngs=rngs) if heads else None

    def __call__(self, h: jax.Array, e: jax.Array, *, key: jax.Array | None) -> jax.Array:
        h = h if self.up else unit(self._skipped(h))
        scale = 1 + self.embedding(e, self.gain[...])
        r = silu(self.first(silu(h)) * jnp.expand_dims(scale, range(1, h.ndim - 1)))
        h = lerp(self._skipped(h) if self.up else h, self.second(dropout(r, self.rate, key)), _RESIDUAL)
        if self.qkv is not None and self.projection is not None:
            qkv = self.qkv(h).reshape(h.shape[0], -1, 3, self.heads, h.shape[-1] // self.heads)
            q, k, v = jnp.moveaxis(unit(qkv), 2, 0)
            h = lerp(h, self.projection(attention(q, k, v).reshape(h.shape)), _RESIDUAL)
        return jnp.clip(h, -256, 256)

    def _skipped(self, h: jax.Array) -> jax.Array:
        return h if self.skip is None else self.skip(h)


edm2_xxs = partial(EDM2, channels=64)
edm2_xs = partial(EDM2, channels=128)
edm2_s = partial(EDM2, channels=192)
edm2_m = partial(EDM2, channels=256)
edm2_l = partial(EDM2, channels=320)
edm2_xl = partial(EDM2, channels=384)
edm2_xxl = partial(EDM2, channels=448)
