"""Layers that preserve the magnitude of what goes through them: entries of mean square 1 come out with mean square 1.

With unit(a) = a / (rms(a) + 1e-4), the root of the mean square being taken over the axes that are named,

    layer(h)      = unit(w) h / sqrt(n),       w of an output being its n weights (over all inputs and positions)
    silu(h)       = h / (1 + e^-h) / 0.596,    0.596 its own root mean square for h ~ N(0, 1)
    lerp(a, b; t) = ((1 - t) a + t b) / sqrt((1 - t)^2 + t^2)
    cat(a, b; t)  = sqrt((N_a + N_b) / ((1 - t)^2 + t^2)) [(1 - t) a / sqrt(N_a), t b / sqrt(N_b)],    N channels
    waves(c)      = sqrt(2) cos(2 pi (f c + phi)),    f ~ N(0, 1), phi ~ U(0, 1), fixed.

No sum, layer or activation then needs normalisation layers, biases or careful initialisation. The length of w does
nothing but slow its learning where it grows, so that training sets it back: w <- unit(w) at every step
(``normalise_weights``), on which the learning rate alone decides how fast w turns.

Reference: Karras et al., "Analyzing and improving the training dynamics of diffusion models" (2024), sections 2.2 to
2.4 and appendix B.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from scoresde.nn.layers.convolution import channels_last
from scoresde.nn.layers.layers import trained
from scoresde.nn.pure_function import Params


def unit(a: jax.Array, axes: Sequence[int] = (-1,)) -> jax.Array:
    """a over its root mean square along ``axes``, in float32 at least."""
    wide = a.astype(jnp.promote_types(a.dtype, jnp.float32))
    square = jnp.mean(wide**2, axis=tuple(axes), keepdims=True)
    rms = jnp.sqrt(jnp.maximum(square, jnp.finfo(wide.dtype).tiny))  # has a derivative where all is zero
    return (wide / (rms + 1e-4)).astype(a.dtype)


def silu(h: jax.Array) -> jax.Array:
    """SiLU over its root mean square."""
    return jax.nn.silu(h) / 0.596


def lerp(a: jax.Array, b: jax.Array, t: float) -> jax.Array:
    """The sum of a and b with weights in the ratio (1 - t) : t."""
    return ((1 - t) * a + t * b) / math.hypot(1 - t, t)


def cat(a: jax.Array, b: jax.Array, t: float) -> jax.Array:
    """a and b one after the other along the channels, their contributions to a layer in the ratio (1 - t) : t."""
    n_a, n_b = a.shape[-1], b.shape[-1]
    scale = math.sqrt(n_a + n_b) / math.hypot(1 - t, t)
    return jnp.concatenate([scale * (1 - t) / math.sqrt(n_a) * a, scale * t / math.sqrt(n_b) * b], axis=-1)


class Layer(nnx.Module):
    """unit(w) h / sqrt(n): dense along the last axis of h, or of width 3 along each of its ``dims`` sizes."""

    def __init__(self, inputs: int, outputs: int, *, dims: int = 0, rngs: nnx.Rngs) -> None:
        self.weight = trained((*(3,) * dims, inputs, outputs), gain=1.0, rngs=rngs)

    def __call__(self, h: jax.Array, gain: jax.Array | float = 1.0) -> jax.Array:
        w = self.weight[...]
        w = (unit(w, range(w.ndim - 1)) * (gain / math.sqrt(math.prod(w.shape[:-1])))).astype(w.dtype)
        if w.ndim == 2:
            return h @ w
        axes = "XYZ"[: w.ndim - 2]
        layout = f"N{axes}C", f"{axes}IO", f"N{axes}C"
        return channels_last(h, w, (1,) * len(axes), "SAME", dimension_numbers=layout)


class Waves(nnx.Module):
    """c (B,) -> (B, features) at fixed frequencies and phases: the laws' quantiles, or numbers of a checkpoint."""

    def __init__(self, features: int) -> None:
        n = np.arange(features)
        f = [NormalDist().inv_cdf((i + 0.5) / features) for i in n]
        self.frequencies = nnx.Param(jnp.asarray(f, jnp.float32), fixed=True)
        self.phases = nnx.Param(jnp.asarray(n * (math.sqrt(5) - 1) / 2 % 1, jnp.float32), fixed=True)

    def __call__(self, c: jax.Array) -> jax.Array:
        f, phi = (jax.lax.stop_gradient(a[...])[None, :] for a in (self.frequencies, self.phases))
        return math.sqrt(2) * jnp.cos(2 * math.pi * (f * c[:, None] + phi))


def normalise_weights(params: Params) -> Params:
    """The parameters with every leaf called ``weight`` replaced by unit(w), others as they are.

    To be applied to the parameters of ``EDM2`` at each training step: ``Trainer(loss, projected(optax.adam(rate),
    normalise_weights))`` does. The network's outputs are the same before and after it, up to the 1e-4 in ``unit``.

    Args:
        params: a nested dict of arrays.
    """

    def normalise(path: Any, leaf: jax.Array) -> jax.Array:
        weight = path and getattr(path[-1], "key", None) == "weight"
        return unit(leaf, range(leaf.ndim - 1)) if weight else leaf

    return jax.tree_util.tree_map_with_path(normalise, params)
