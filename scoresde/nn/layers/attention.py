"""Self-attention over all positions of an array with channels last.

With q, k, v = W_q n, W_k n, W_v n for n = norm(h), each cut into heads of d channels,

    h <- r (h + W_o softmax(q k^T / sqrt(d)) v),

r being the factor ``rescale`` of all sums of the network. The channels of ``qkv`` are ordered (q, k, v), then heads,
then the channels of a head.

References: Vaswani et al. (2017); Ho et al. (2020), appendix B; Dhariwal and Nichol (2021), section 3.
"""

from collections.abc import Callable

import jax
from flax import nnx

from scoresde.nn.layers.flash import attention
from scoresde.nn.layers.layers import group_norm, linear


class Attention(nnx.Module):
    """rescale (h + W_o softmax(q k^T / sqrt(d)) v) over all positions of h (B, *sizes, C).

    Args:
        channels: C.
        heads: number of heads; must divide C.
        norm: the normalisation before it, ``norm(channels, rngs=rngs)``.
        gain: standard deviation of W_o's outputs over that of its inputs, at the start.
        rescale: factor of the sum.

    Raises:
        ValueError: the heads do not divide the channels.
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int = 1,
        norm: Callable[..., nnx.GroupNorm] = group_norm,
        gain: float = 0.5,
        rescale: float = 1.0,
        rngs: nnx.Rngs,
    ) -> None:
        if channels % heads:
            raise ValueError(f"Attention: heads = {heads} must divide channels = {channels}")
        self.heads, self.rescale = heads, rescale
        self.norm = norm(channels, rngs=rngs)
        self.qkv = linear(channels, 3 * channels, rngs=rngs)
        self.output = linear(channels, channels, gain=gain, rngs=rngs)

    def __call__(self, h: jax.Array) -> jax.Array:
        batch, channels = h.shape[0], h.shape[-1]
        qkv = self.qkv(self.norm(h)).reshape(batch, -1, 3, self.heads, channels // self.heads)
        values = attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        return (h + self.output(values.reshape(h.shape))) * self.rescale
