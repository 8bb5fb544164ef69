"""The residual block of the U-Nets, and the choices by which the published ones differ.

With e the embedding of the noise level, R a change of the sizes (or nothing), and r the factor of all sums,

    b = conv_1(R silu(norm_1(h)))                                                 (BigGAN's order of norm, R and conv)
    b = (1 + s) norm_2(b) + a,    (s, a) = modulation(e)            adaptive      (Dhariwal and Nichol)
    b = norm_2(b + a),            a = modulation(e)                 otherwise     (Ho et al.)
    h <- r (shortcut(R h) + conv_2(dropout(silu(b)))),              then attention, then attention to the context.

The shortcut is linear where the channels change. At the start branches are small beside what they are added to, or as
large where r = 1/sqrt(2), which keeps the variance at one (Song et al. 2021, appendix H; the zeros with which the
originals start there would halve it block by block).

References: Ho et al. (2020), appendix B (DDPM); Song et al. (2021), appendix H (DDPM++ and NCSN++); Dhariwal and Nichol
(2021) (ADM); Brock et al. (2019), appendix B (BigGAN).
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from scoresde.nn.layers.attention import Attention
from scoresde.nn.layers.layers import conv, dropout, group_norm, layer_norm, linear, modulate
from scoresde.nn.layers.resample import Taps, checked
from scoresde.nn.layers.transformer_blocks import Context, CrossAttention

SILU_RMS = 0.596  # sqrt(E silu(z)^2) for z ~ N(0, 1)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the U-Nets of the literature differ, their sizes apart. The defaults are a small network of this house.

    Attributes:
        all_skips: the way up also reads the first convolution and what each halving gave, in one block a level more;
            doubling then keeps the channels.
        resampling_blocks: sizes change inside a residual block, instead of by a convolution.
        wide_input: the first convolution gives the channels of level 0 already, instead of ``channels``.
        projected: those blocks have weights on their shortcut even where the channels stay.
        taps: the low-pass filter of all resampling, such as (1, 3, 3, 1). None for none: convolutions resample by
            stride and repetition, blocks and pyramids by the mean of neighbours and repetition.
        padding: zeros at both ends for the convolutions of stride 2 without filter; None for what "SAME" means.
        adaptive: the noise level scales and shifts behind the second norm, instead of being added before it.
        rescale: factor of every sum, 1 or 1/sqrt(2) for the originals.
        attention_up: on the way up, attention follows every block of its levels, instead of the last one of each.
        middle: whether attention follows the first and the second middle block; None for both as in the last level.
        head_channels: channels of an attention head; arrays with fewer have no attention. 0 for ``UNet``'s ``heads``.
        embedding_width: width of the noise level's embedding, of two layers then, over ``channels``; 0 for one layer.
        vector_first: classes and vectors enter it before the first layer, with a bias, instead of after the last.
        norm: ``norm(channels, rngs=rngs)``, such as ``partial(group_norm, epsilon=1e-5)``.
        input_pyramid: ``ResidualInput`` or ``SkipInput`` (see ``pyramid``), which show the levels the halved input.
        concatenated: ``SkipInput`` puts its channels beside the level's instead of adding them.
        output_pyramid: ``ResidualOutput`` or ``SkipOutput``, which collect the output over the levels.

    Raises:
        ValueError: a value out of range.
    """

    all_skips: bool = False
    resampling_blocks: bool = False
    wide_input: bool = False
    projected: bool = False
    taps: Taps | None = None
    padding: int | None = None
    adaptive: bool = True
    rescale: float = 1.0
    attention_up: bool = True
    middle: tuple[bool, bool] | None = None
    head_channels: int = 0
    embedding_width: int = 0
    vector_first: bool = False
    norm: Callable[..., nnx.GroupNorm] = group_norm
    input_pyramid: Callable[..., Any] | None = None
    concatenated: bool = False
    output_pyramid: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        if self.taps is not None:
            object.__setattr__(self, "taps", checked(self.taps))
        if not 0 < self.rescale <= 1:
            raise ValueError(f"Layout: rescale must be in (0, 1], got {self.rescale!r}")
        for name in ("head_channels", "embedding_width"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"Layout: {name} must be a whole number of at least 0, got {value!r}")
        if self.padding not in (None, 1):
            raise ValueError(f"Layout: padding must be None or 1, got {self.padding!r}")

    @property
    def filter(self) -> Taps:
        """The taps where something must resample: those given, or the mean of two neighbours."""
        return (0.5, 0.5) if self.taps is None else self.taps

    @property
    def gain(self) -> float:
        """Standard deviation that a branch's last layer gives its (silu'd) input at the start."""
        return 0.5 if self.rescale == 1 else math.sqrt(1 / self.rescale**2 - 1) / SILU_RMS


class ResBlock(nnx.Module):
    """The residual block of the module's head: ``block(h, e, key=key, context=tokens)`` for h (B, *sizes, C), e (B, E).

    Args:
        dims: number of sizes.
        inputs: channels of h.
        outputs: channels of the result.
        embedding: E.
        heads: attention heads behind it, 0 for no attention.
        source: width of the tokens that it then attends to as well, 0 for none.
        rate: dropout.
        layout: ``projected``, ``adaptive``, ``rescale`` and ``norm`` apply.
        resample: R, a function of h, or None.
    """

    def __init__(
        self,
        dims: int,
        inputs: int,
        outputs: int,
        embedding: int,
        *,
        heads: int = 0,
        source: int = 0,
        rate: float = 0.0,
        layout: Layout,
        resample: Callable[[jax.Array], jax.Array] | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        self.adaptive, self.rescale, self.rate, self.resample = layout.adaptive, layout.rescale, rate, resample
        self.norm_1 = layout.norm(inputs, rngs=rngs)
        self.conv_1 = conv(dims, inputs, outputs, rngs=rngs)
        self.modulation = linear(embedding, (2 if self.adaptive else 1) * outputs, gain=0.3, rngs=rngs)
        self.norm_2 = layout.norm(outputs, rngs=rngs)
        self.conv_2 = conv(dims, outputs, outputs, gain=layout.gain, rngs=rngs)
        linked = inputs != outputs or (layout.projected and resample is not None)
        self.shortcut = linear(inputs, outputs, rngs=rngs) if linked else None
        attention = {"norm": layout.norm, "gain": layout.gain, "rescale": layout.rescale}
        self.attention = Attention(outputs, heads=heads, **attention, rngs=rngs) if heads else None
        self.cross = CrossAttention(outputs, source, heads, rngs=rngs) if heads and source else None

    def __call__(
        self, h: jax.Array, e: jax.Array, *, key: jax.Array | None = None, context: Context | None = None
    ) -> jax.Array:
        r = jax.nn.silu(self.norm_1(h))
        if self.resample is not None:
            h, r = self.resample(h), self.resample(r)
        r, modulation = self.conv_1(r), self.modulation(e)
        if self.adaptive:
            scale, shift = jnp.split(modulation, 2, axis=-1)
            r = modulate(self.norm_2(r), scale, shift)
        else:
            r = self.norm_2(r + jnp.expand_dims(modulation, tuple(range(1, r.ndim - 1))))
        r = self.conv_2(dropout(jax.nn.silu(r), self.rate, key))
        h = ((h if self.shortcut is None else self.shortcut(h)) + r) * self.rescale
        h = h if self.attention is None else self.attention(h)
        return h if self.cross is None else h + self.cross(layer_norm(h), context)


def halving(dims: int, inputs: int, outputs: int, layout: Layout, *, rngs: nnx.Rngs) -> nnx.Conv:
    """The convolution that ``resample.halve`` takes."""
    padding = layout.padding if layout.taps is None else 0
    return conv(dims, inputs, outputs, stride=2, padding=padding, rngs=rngs)


def doubling(dims: int, inputs: int, outputs: int, layout: Layout, *, rngs: nnx.Rngs) -> nnx.Conv:
    """The convolution that ``resample.double`` takes."""
    return conv(dims, inputs, outputs, padding=None if layout.taps is None else 0, rngs=rngs)


def entering_channels(
    first: int, widths: list[int], blocks: int, layout: Layout
) -> tuple[list[list[int]], list[int], list[list[int]]]:
    """The channels entering the blocks of each level down, of the doubled arrays, and entering the blocks up."""
    entering = [first, *(w * (2 if layout.concatenated else 1) for w in widths[:-1])]
    kept = [[n] * layout.all_skips + [w] * blocks for n, w in zip(entering, widths, strict=True)]
    doubled = widths[1:] if layout.all_skips else widths[:-1]
    down_inputs = [[n] + [w] * (blocks - 1) for n, w in zip(entering, widths, strict=True)]
    up_inputs = [
        [n + skip for n, skip in zip([d] + [w] * blocks, reversed(skips), strict=False)]
        for d, w, skips in zip([*doubled, widths[-1]], widths, kept, strict=True)
    ]
    return down_inputs, doubled, up_inputs
