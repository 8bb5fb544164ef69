"""A classifier of noisy examples: x (B, *sizes, channels) and the noise level in, logits of the classes (B, K) out.

The encoder half of the U-Net (module ``unet``) under a pooled head:

    h   = W x,      h <- block(h, e)      ``blocks`` times a level, the sizes halved between levels,
    out = W_out mean(silu(norm(h)))       over all positions.

W_out is zero at the start, where every class is as probable as any other. Pooling is the mean, for which any size will
do; where positions should see each other before it, give the last level attention (``attention_levels``). Vectors and
tables take ``ResidualMLP(shape, outputs=K)``, of the same meaning.

Reference: Dhariwal and Nichol (2021), section 4, whose head pools by attention.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from scoresde.nn.conditions.conditions import Conditions, Given
from scoresde.nn.layers.checks import fraction, grid, levels, whole
from scoresde.nn.layers.embeddings import gaussian_fourier
from scoresde.nn.layers.layers import conv, initial_keys, linear, narrow, split
from scoresde.nn.layers.noise import NoiseEmbedding
from scoresde.nn.layers.repeat import through
from scoresde.nn.layers.resample import halve
from scoresde.nn.network import Network
from scoresde.nn.unets.blocks import Layout, ResBlock, halving


class Classifier(Network):
    """Logits (B, classes) of noisy arrays with channels last, in float32 at least.

    Args:
        event_shape: (*sizes, channels) with one, two or three sizes; None for any size.
        classes: K, at least 2.
        channels: channels of level 0.
        multipliers: channels of each level over ``channels``; their number is the number of levels.
        blocks: residual blocks of each level.
        attention_levels: the levels with attention, 0 being full resolution.
        heads: attention heads; must divide the channels of those levels.
        dropout: rate inside the residual blocks, in [0, 1), active where the call is given a key (or (B,) keys).
        remat: compute the blocks again in the backward pass instead of remembering their insides.
        scan: compile one of several blocks alike that follow each other, and loop over their parameters.
        embedding: ``(c, features) -> (B, features)``, such as ``gaussian_fourier`` or ``positional``.
        features: number of features of that embedding.
        key: random key of the initial parameters.

    Raises:
        ValueError: an argument out of range; at the call, x or c of another shape.
    """

    def __init__(
        self,
        event_shape: Sequence[int | None],
        classes: int,
        *,
        channels: int = 32,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 1,
        attention_levels: Sequence[int] = (),
        heads: int = 1,
        dropout: float = 0.0,
        remat: bool = False,
        scan: bool = False,
        embedding: Callable[[jax.Array, int], jax.Array] = gaussian_fourier,
        features: int = 64,
        key: jax.Array,
    ) -> None:
        self.event_shape, inputs = grid(self, event_shape, 1)
        attentive, dims = levels(self, multipliers, attention_levels), len(self.event_shape) - 1
        channels, blocks = whole(self, "channels", channels, 1), whole(self, "blocks", blocks, 1)
        widths = [channels * whole(self, "multipliers", m, 1) for m in multipliers]
        heads, rate = whole(self, "heads", heads, 1), fraction(self, "dropout", dropout)
        self.remat, self.scan, layout, rngs = remat, scan, Layout(), initial_keys(key)
        self.conditions = Conditions("Classifier", None, width=0, rngs=rngs)
        self.embedding = NoiseEmbedding(embedding, features, 2 * features, layers=1, rngs=rngs)
        self.input = conv(dims, inputs, widths[0], rngs=rngs)

        def block(level: int, inputs: int) -> ResBlock:
            options = {"heads": heads if level in attentive else 0, "rate": rate, "layout": layout}
            return ResBlock(dims, inputs, widths[level], 2 * features, **options, rngs=rngs)

        entering = [widths[0], *widths[:-1]]
        self.down = nnx.List(
            [
                nnx.List([block(i, n), *(block(i, w) for _ in range(blocks - 1))])
                for i, (n, w) in enumerate(zip(entering, widths, strict=True))
            ]
        )
        self.halve = nnx.List([halving(dims, w, w, layout, rngs=rngs) for w in widths[:-1]])
        self.norm = layout.norm(widths[-1], rngs=rngs)
        self.output = linear(widths[-1], whole(self, "classes", classes, 2), gain=0, rngs=rngs)

    def _forward(
        self, x: jax.Array, c: jax.Array, given: Given, labels: jax.Array | None, key: jax.Array | None
    ) -> jax.Array:
        e, keys = self.embedding(c, labels), iter(split(key, sum(map(len, self.down))))
        h = self.input(narrow(x, self.input.kernel[...].dtype))

        def call(block: ResBlock, h: jax.Array, key: jax.Array | None, _: None) -> jax.Array:
            return block(h, e, key=key)

        for i, level in enumerate(self.down):
            h = h if i == 0 else halve(self.halve[i - 1], h, None)
            *_, h = through(level, call, h, [next(keys) for _ in level], remat=self.remat, scan=self.scan)
        h = jax.nn.silu(self.norm(h))
        wide = h.astype(jnp.promote_types(h.dtype, jnp.float32))
        return self.output(jnp.mean(wide, axis=tuple(range(1, h.ndim - 1))))
