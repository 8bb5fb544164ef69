"""score_sde's NCSN++ in flax.linen, as far as the names and shapes of its parameters go: what it computes is left out.

The classes and the order in which they are made are the original's (models/ncsnpp.py, layerspp.py); flax numbers them.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

ONES = nn.initializers.ones


def norm(x):
    return nn.GroupNorm(num_groups=1)(x)


def conv(x, channels, size=3):
    return nn.Conv(channels, (size, size))(x)


def halved(x):
    return x[:, ::2, ::2]


class GaussianFourierProjection(nn.Module):
    features: int

    @nn.compact
    def __call__(self, c):
        return jnp.tile(c[:, None] * self.param("W", ONES, (self.features,)), 2)


class NIN(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x @ self.param("W", ONES, (x.shape[-1],) * 2) + self.param("b", ONES, x.shape[-1:])


class AttnBlockpp(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = norm(x)
        h = NIN()(h) + NIN()(h) + NIN()(h)
        return x + NIN()(h)


class Conv2d(nn.Module):
    channels: int

    @nn.compact
    def __call__(self, x):
        w = self.param("weight", ONES, (3, 3, x.shape[-1], self.channels))
        return x @ w[0, 0] + self.param("bias", ONES, (self.channels,))


class Downsample(nn.Module):
    channels: int = 0

    @nn.compact
    def __call__(self, x):
        return halved(Conv2d(self.channels)(x) if self.channels else x)


class Combine(nn.Module):
    @nn.compact
    def __call__(self, x, y):
        return conv(x, y.shape[-1], 1) + y


class ResnetBlockBigGANpp(nn.Module):
    channels: int = 0
    resample: Any = None

    @nn.compact
    def __call__(self, x, temb):
        channels = self.channels or x.shape[-1]
        h, changed = norm(x), channels != x.shape[-1] or self.resample
        h, x = (self.resample(h), self.resample(x)) if self.resample else (h, x)
        h = conv(h, channels) + nn.Dense(channels)(temb)[:, None, None]
        h = conv(norm(h), channels)
        return h + (conv(x, channels, 1) if changed else x)


class NCSNpp(nn.Module):
    config: Any

    @nn.compact
    def __call__(self, x, c):
        k, nf = self.config, self.config["nf"]
        e = GaussianFourierProjection(nf)(c) if "embedding_type" in k else jnp.tile(c[:, None], nf)
        e, last = nn.Dense(4 * nf)(e), len(k["ch_mult"]) - 1
        e = nn.Dense(4 * nf)(e)
        attend = lambda h: AttnBlockpp()(h) if h.shape[1] in k["attn_resolutions"] else h  # noqa: E731
        hs, pyramid = [conv(x, nf)], x
        for i, m in enumerate(k["ch_mult"]):
            for _ in range(k["num_res_blocks"]):
                hs.append(attend(ResnetBlockBigGANpp(m * nf)(hs[-1], e)))
            if i < last:
                h = ResnetBlockBigGANpp(resample=halved)(hs[-1], e)
                if k.get("progressive_input") == "residual":
                    h = pyramid = Downsample(h.shape[-1])(pyramid) + h
                elif k.get("progressive_input") == "input_skip":
                    pyramid = Downsample()(pyramid)
                    h = Combine()(pyramid, h)
                hs.append(h)
        h = AttnBlockpp()(ResnetBlockBigGANpp()(hs[-1], e))
        h = ResnetBlockBigGANpp()(h, e)
        for i in reversed(range(last + 1)):
            for _ in range(k["num_res_blocks"] + 1):
                h = ResnetBlockBigGANpp(k["ch_mult"][i] * nf)(jnp.concatenate([h, hs.pop()], -1), e)
            h = attend(h)
            if k.get("progressive") == "output_skip":
                conv(norm(h), x.shape[-1])
            if i:
                h = ResnetBlockBigGANpp(resample=lambda h: h.repeat(2, 1).repeat(2, 2))(h, e)
        return h if "progressive" in k else conv(norm(h), x.shape[-1])


def shapes(config):
    """The names and shapes of its parameters as flax nests them."""
    x, c = jnp.zeros((1, config["image_size"], config["image_size"], 3)), jnp.zeros(1)
    with jax.numpy_rank_promotion("allow"):
        tree = jax.eval_shape(NCSNpp(config).init, jax.random.key(0), x, c)["params"]
    return jax.tree.map(lambda leaf: leaf.shape, tree)
