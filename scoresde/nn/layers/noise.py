"""The embedding of the noise level, with labels and conditions, which all blocks of a network share.

    e(c) = silu(W f(c) + A l + V v),                            or by two layers, as DDPM, NCSN++ and ADM have it,
    e(c) = silu(W_2 silu(W_1 (f(c) + A l + V v + b))),          or with V v, without b, added to W_2's output,

f being the features of c, l the labels of the augmentation and v the conditions (a class as its one-hot vector). A and
V are zero at first.

References: Ho et al. (2020), appendix B; Karras et al. (2022), appendix F; Dhariwal and Nichol (2021), section 3.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike

from scoresde.nn.layers.checks import check_labels, whole
from scoresde.nn.layers.embeddings import cosines_and_sines
from scoresde.nn.layers.layers import linear, narrow


class StoredFrequencies(nnx.Module):
    """Features at frequencies that belong to a checkpoint, called ``(c, features)`` like ``gaussian_fourier``.

    They are a parameter that gets no gradient and keeps its dtype where others are narrowed.

    Args:
        frequencies: (n,) in cycles per unit of c.
    """

    def __init__(self, frequencies: ArrayLike) -> None:
        self.frequencies = nnx.Param(jnp.asarray(frequencies, jnp.float32), fixed=True)

    def __call__(self, c: jax.Array, features: int) -> jax.Array:
        """(B, features): the cosines, then the sines; ``features`` must be twice the number of frequencies."""
        frequencies = jax.lax.stop_gradient(self.frequencies[...])
        if 2 * frequencies.size != features:
            raise ValueError(f"features must be twice the {frequencies.size} frequencies, got {features!r}")
        turns = c[:, None] * frequencies[None, :]  # 2 pi comes after: so do the originals round, at hundreds of turns
        return cosines_and_sines(2 * math.pi * turns)


class NoiseEmbedding(nnx.Module):
    """c (B,), labels (B, L) or None, vector (B, V) or None -> (B, width). None is the same as zeros.

    Args:
        function: f, called ``(c, features)``.
        features: number of features.
        width: width of the layers.
        labels: L, 0 for none.
        vector: V, 0 for none.
        layers: 1 or 2; one is called ``linear`` among the parameters, two ``linear_1`` and ``linear_2``.
        vector_first: of two layers, V v is added to the features and has a bias, instead of to the second layer's
            output without one.
    """

    def __init__(
        self,
        function: Callable[[jax.Array, int], jax.Array],
        features: int,
        width: int,
        labels: int = 0,
        vector: int = 0,
        *,
        layers: int = 2,
        vector_first: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        function(jnp.zeros(1), features)
        self.function, self.features, self.vector_first = function, features, vector_first
        self.size, self.two = whole(self, "labels", labels, 0), layers == 2
        if self.two:
            self.linear_1 = linear(features, width, rngs=rngs)
            self.linear_2 = linear(width, width, rngs=rngs)
        else:
            self.linear = linear(features, width, rngs=rngs)
        none = nnx.Rngs(0)  # zero at first, from keys of its own: the other layers begin as they would without it
        entry = features if self.two else width
        self.labels = linear(labels, entry, gain=0, bias=False, rngs=none) if labels else None
        entry = features if vector_first else width
        self.vector = linear(vector, entry, gain=0, bias=vector_first, rngs=none) if vector else None

    def __call__(self, c: jax.Array, labels: jax.Array | None = None, vector: jax.Array | None = None) -> jax.Array:
        check_labels(labels, (*c.shape, self.size))
        dtype = (self.linear_1 if self.two else self.linear).kernel[...].dtype
        e = narrow(self.function(c, self.features), dtype)
        l, v = (  # noqa: E741
            0 if layer is None or value is None else layer(narrow(value, dtype))
            for layer, value in ((self.labels, labels), (self.vector, vector))
        )
        if not self.two:
            return jax.nn.silu(self.linear(e) + l + v)
        e = self.linear_1(e + l + v if self.vector_first else e + l)
        e = self.linear_2(jax.nn.silu(e))
        return jax.nn.silu(e if self.vector_first else e + v)
