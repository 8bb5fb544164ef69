"""The U-Nets of the field, for 1-D, 2-D and 3-D data with channels last, event (*sizes, channels).

Level l works at sizes ceil(size / 2^l) with ``channels * multipliers[l]`` channels: ``blocks`` residual blocks down,
two in the middle of the network, and as many up, each of which also reads its mirror image's output (concatenated).
With ``patch`` p the network works on patches: p^d neighbours are the channels of one position, x (*sizes, C) becomes
(*sizes / p, p^d C), and back at the end. The last convolution is zero at the start. Any sizes will do: an odd one is
halved upwards, and cut on the way back.

How DDPM, DDPM++, NCSN++ and ADM differ is a ``Layout`` (module ``blocks``); module ``presets`` has those of the papers.
Its defaults make a small network: adaptive group norm, halving by a convolution of stride 2, doubling by nearest
neighbour and a convolution, as many blocks up as down.

References: Ronneberger et al. (2015); Ho et al. (2020), appendix B; Song et al. (2021), appendix H; Dhariwal and Nichol
(2021).
"""

import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from scoresde.nn.conditions.conditions import Conditions, Given
from scoresde.nn.layers.checks import constant, fraction, levels, positive, whole
from scoresde.nn.layers.embeddings import gaussian_fourier, input_waves
from scoresde.nn.layers.layers import conv, initial_keys, narrow, split
from scoresde.nn.layers.noise import NoiseEmbedding
from scoresde.nn.layers.repeat import through
from scoresde.nn.layers.resample import cut, double, down, folded, halve, unfolded, up
from scoresde.nn.network import Network
from scoresde.nn.unets.blocks import Layout, ResBlock, doubling, entering_channels, halving

Features = Callable[[jax.Array, int], jax.Array]
Resample = Callable[[jax.Array], jax.Array]
After = Callable[..., list[jax.Array]]
"""(blocks, h, what is concatenated to h before each of them) -> h after each of them."""


class UNet(Network):
    """A U-Net told the noise level in every block.

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
        scan: compile one of several blocks alike that follow each other, and loop over their parameters.
        input_frequencies: frequencies of ``input_waves`` by which the network also sees its input; none by default.
        input_offset: their ``offset``, a scalar or of the event's shape.
        embedding: ``(c, features) -> (B, features)``, such as ``gaussian_fourier`` or ``positional``.
        features: number of features of that embedding.
        labels: length L of the labels (B, L) that the call may be given, 0 for none.
        conditions: what ``cond`` will be, a pytree of descriptions (module ``conditions``), None for nothing. Tokens
            are attended to wherever there is attention.
        outputs: channels of the result, None for those of the event.
        layout: what distinguishes the published networks.
        key: random key of the initial parameters.

    Raises:
        ValueError: an argument out of range; at the call, x, c, labels or cond of another shape.
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
        scan: bool = False,
        input_frequencies: Sequence[float] = (),
        input_offset: ArrayLike = 0.0,
        embedding: Features = gaussian_fourier,
        features: int = 64,
        labels: int = 0,
        conditions: Any = None,
        outputs: int | None = None,
        layout: Layout = Layout(),  # noqa: B008
        key: jax.Array,
    ) -> None:
        self.event_shape = tuple(map(operator.index, event_shape))
        self.patch, self.layout = whole(self, "patch", patch, 1), layout
        self.remat, self.scan = remat, scan
        dims = self._check(multipliers, attention_levels)
        channels, blocks = whole(self, "channels", channels, 1), whole(self, "blocks", blocks, 1)
        widths = [channels * whole(self, "multipliers", m, 1) for m in multipliers]
        heads, rate = whole(self, "heads", heads, 1), fraction(self, "dropout", dropout)
        outputs = self.event_shape[-1] if outputs is None else whole(self, "outputs", outputs, 1)
        e, rngs = layout.embedding_width * channels or 2 * features, initial_keys(key)

        def block(level: int, inputs: int, attention: bool, resample: Resample | None = None) -> ResBlock:
            width = widths[level]
            count = (width // layout.head_channels if layout.head_channels else heads) if attention else 0
            options = {"heads": count, "source": self.conditions.width, "rate": rate, "layout": layout}
            return ResBlock(dims, inputs, width, e, **options, resample=resample, rngs=rngs)

        self.conditions = Conditions("UNet", conditions, width=e, rngs=initial_keys(jax.random.fold_in(key, 1)))
        if self.conditions.width and not (attention_levels or layout.middle):
            raise ValueError("UNet: tokens are attended to where there is attention: give attention_levels, got none")
        sizes, two = (features, e, labels, self.conditions.features), layout.embedding_width > 0
        first = two and layout.vector_first
        self.embedding = NoiseEmbedding(embedding, *sizes, layers=1 + two, vector_first=first, rngs=rngs)
        self.input_frequencies = positive(self, "input_frequencies", input_frequencies)
        self.input_offset = constant(self, "input_offset", input_offset, self.event_shape)
        seen = self.event_shape[-1] * (1 + 2 * len(self.input_frequencies)) + self.conditions.channels
        pixel = seen * self.patch**dims
        first = widths[0] if layout.wide_input else channels
        self.input = conv(dims, pixel, first, rngs=rngs)
        self._build(block, dims, first, widths, blocks, set(attention_levels), rngs)
        self._build_pyramids(dims, pixel, widths, outputs * self.patch**dims, rngs)

    def _build(
        self,
        block: Callable[..., ResBlock],
        dims: int,
        first: int,
        widths: list[int],
        blocks: int,
        attentive: set[int],
        rngs: nnx.Rngs,
    ) -> None:
        layout, last = self.layout, len(widths) - 1
        down_inputs, doubled, up_inputs = entering_channels(first, widths, blocks, layout)
        halves, doubles = (partial(f, taps=layout.filter) for f in (down, up))
        middle = (last in attentive,) * 2 if layout.middle is None else layout.middle
        self.down = nnx.List(
            [nnx.List([block(i, n, i in attentive) for n in inputs]) for i, inputs in enumerate(down_inputs)]
        )
        if layout.resampling_blocks:
            self.halve: Any = nnx.List([block(i, widths[i], False, halves) for i in range(last)])
        else:
            self.halve = nnx.List([halving(dims, w, w, layout, rngs=rngs) for w in widths[:-1]])
        self.middle = nnx.List([block(last, widths[-1], attention) for attention in middle])
        rests = [0 if layout.attention_up else len(inputs) - 1 for inputs in up_inputs]  # blocks up without attention
        self.up = nnx.List(
            [
                nnx.List([block(i, n, i in attentive and k >= rest) for k, n in enumerate(inputs)])
                for i, (inputs, rest) in enumerate(zip(up_inputs, rests, strict=True))
            ]
        )
        if layout.resampling_blocks:
            self.double: Any = nnx.List([block(i + 1, widths[i + 1], False, doubles) for i in range(last)])
        else:
            self.double = nnx.List([doubling(dims, widths[i + 1], doubled[i], layout, rngs=rngs) for i in range(last)])

    def _build_pyramids(self, dims: int, pixel: int, widths: list[int], outputs: int, rngs: nnx.Rngs) -> None:
        layout = self.layout
        self.input_pyramid, self.output_pyramid = nnx.List([]), nnx.List([])
        if layout.input_pyramid:
            for width in widths[:-1]:
                self.input_pyramid.append(layout.input_pyramid(dims, pixel, width, layout, rngs=rngs))
                pixel = self.input_pyramid[-1].outputs
        if layout.output_pyramid:
            for i, width in enumerate(widths):
                below = widths[i + 1] if i + 1 < len(widths) else None
                self.output_pyramid.append(layout.output_pyramid(dims, below, width, outputs, layout, rngs=rngs))
        ends = bool(self.output_pyramid) and self.output_pyramid[0].ends
        self.norm: Any = None if ends else layout.norm(widths[0], rngs=rngs)
        self.output = None if ends else conv(dims, widths[0], outputs, gain=0, rngs=rngs)

    def _check(self, multipliers: Sequence[int], attention_levels: Sequence[int]) -> int:
        shape = self.event_shape
        if len(shape) not in (2, 3, 4) or min(shape) < 1:
            raise ValueError(f"UNet: event_shape must be (*sizes, channels) with 1 to 3 positive sizes, got {shape}")
        levels(self, multipliers, attention_levels)
        if any(size % self.patch for size in shape[:-1]):
            raise ValueError(f"UNet: patch = {self.patch} must divide the sizes {shape[:-1]}")
        if max(shape[:-1]) // self.patch <= 2 ** (len(multipliers) - 2):
            count = len(multipliers)
            raise ValueError(f"UNet: {count} levels are too many for sizes {shape[:-1]}: give fewer multipliers")
        return len(shape) - 1

    def _forward(
        self, x: jax.Array, c: jax.Array, given: Given, labels: jax.Array | None, key: jax.Array | None
    ) -> jax.Array:
        offset = np.reshape(self.input_offset, self.event_shape if len(self.input_offset) > 1 else ())
        waves = input_waves(x, c, self.input_frequencies, offset)
        waves = narrow(given.beside(waves.reshape(*x.shape[:-1], -1)), self.input.kernel[...].dtype)
        e, keys = self.embedding(c, labels, given.vector), iter(split(key, self._count()))

        def call(block: ResBlock, h: jax.Array, key: jax.Array | None, skip: jax.Array | None) -> jax.Array:
            h = h if skip is None else jnp.concatenate([h, skip], axis=-1)
            return block(h, e, key=key, context=given.context)

        def after(blocks: Sequence[ResBlock], h: jax.Array, skips: list[jax.Array] | None = None) -> list[jax.Array]:
            own = [next(keys) for _ in blocks]
            return through(blocks, call, h, own, skips, remat=self.remat, scan=self.scan)

        h, skips = self._descend(after, folded(waves, self.patch))
        *_, h = after(self.middle, h)
        return unfolded(self._ascend(after, h, skips), self.patch)

    def _count(self) -> int:
        resampling = 2 * len(self.halve) if self.layout.resampling_blocks else 0
        return sum(len(level) for level in (*self.down, *self.up)) + len(self.middle) + resampling

    def _descend(self, after: After, x: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        layout, pyramid, h = self.layout, x, self.input(x)
        skips = [h] if layout.all_skips else []
        for i, level in enumerate(self.down):
            skips += after(level, h)
            h = skips[-1]
            if i == len(self.halve):
                break
            h = after([self.halve[i]], h)[0] if layout.resampling_blocks else halve(self.halve[i], h, layout.taps)
            if self.input_pyramid:
                pyramid, h = self.input_pyramid[i](pyramid, h)
            if layout.all_skips:
                skips.append(h)
        return h, skips

    def _ascend(self, after: After, h: jax.Array, skips: list[jax.Array]) -> jax.Array:
        layout = self.layout
        pyramid: Any = None
        for i in reversed(range(len(self.up))):
            sizes = skips[-1].shape[1:-1]
            if i < len(self.double) and layout.resampling_blocks:
                h = cut(after([self.double[i]], h)[0], sizes)
            elif i < len(self.double):
                h = double(self.double[i], h, layout.taps, sizes)
            *_, h = after(self.up[i], h, [skips.pop() for _ in self.up[i]])
            if self.output_pyramid:
                pyramid, h = self.output_pyramid[i](pyramid, h)
        return pyramid if self.output is None else self.output(jax.nn.silu(self.norm(h)))
