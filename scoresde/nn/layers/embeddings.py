"""Periodic features at fixed frequencies f_1..f_n: of the noise coordinate c (B,),

    e(c) = [cos(2 pi f_1 c), ..., cos(2 pi f_n c), sin(2 pi f_1 c), ..., sin(2 pi f_n c)],

and of every entry of the input x = cos(phi) x_0 + sin(phi) eps, tan(phi) = e^c, damped by exp(-2 (pi f tan(phi))^2).
Where phi is small this is how the noise damps them in the mean, E exp(2 pi i f x); where x is mostly noise nothing is
left of them. (Waves of x / cos(phi), or damped by sin(phi), carry noise there: measurably worse likelihoods.)

``gaussian_fourier`` takes f distributed as |N(0, scale^2)|, ``positional`` and ``transformer`` take them geometric, the
latter with the constants of the literature for c counted in steps, 0 to 1000. Frequencies are
numbers, not parameters: computed where they are used, never trained or stored. The sign of f only flips the sine, so
absolute values suffice, and they are the law's quantiles at (2i - 1)/2n: no seed is needed.

References: Tancik et al. (2020) and Song et al. (2021), appendix C (Gaussian Fourier features); Vaswani et al. (2017),
section 3.5 (positional); Kingma et al. (2021), "Variational diffusion models", appendix C (waves of the input).
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


def gaussian_fourier(c: jax.Array, features: int, *, scale: float = 0.5) -> jax.Array:
    """Fourier features of c at Gaussian frequencies.

    Args:
        c: (B,) noise coordinates.
        features: width of the result, even and at least 2: half cosines, half sines.
        scale: standard deviation of the frequencies in cycles per unit of c, positive. The kernel between two
            coordinates is exp(-2 (pi scale (c - c'))^2) for many features: they differ from about 1/(3 scale) on.

    Returns:
        (B, features) in [-1, 1].

    Raises:
        ValueError: an argument out of range.
    """
    half = _half(features)
    if not (scale > 0 and math.isfinite(scale)):
        raise ValueError(f"scale must be positive and finite, got {scale!r}")
    normal = NormalDist(0, scale)
    return _waves(c, 2 * np.pi * np.array([normal.inv_cdf(0.5 + (i + 0.5) / (2 * half)) for i in range(half)]))


def positional(c: jax.Array, features: int, *, min_period: float = 0.5, max_period: float = 50.0) -> jax.Array:
    """Sinusoidal position embedding of c, periods geometric from ``min_period`` to ``max_period`` (both reached).

    Args:
        c: (B,) noise coordinates.
        features: width of the result, even and at least 2: half cosines, half sines.
        min_period: shortest period in units of c, positive.
        max_period: longest period in units of c, above ``min_period``.

    Returns:
        (B, features) in [-1, 1].

    Raises:
        ValueError: an argument out of range.
    """
    half = _half(features)
    if not 0 < min_period < max_period < math.inf:
        raise ValueError(f"periods must satisfy 0 < min_period < max_period, got {min_period!r} and {max_period!r}")
    return _waves(c, 2 * np.pi / np.geomspace(min_period, max_period, half))


def transformer(c: jax.Array, features: int, *, shift: int = 1, max_period: float = 10_000.0) -> jax.Array:
    """The Transformer's embedding of c: angular frequencies max_period^(-k / (n - shift)), k < n = features / 2.

    Args:
        c: (B,) noise coordinates; steps of a thousand in DDPM.
        features: width of the result, even and above 2 shift: half cosines, half sines.
        shift: 1 (DDPM, DDPM++) reaches ``max_period``, 0 (ADM, EDM's ADM) stops before it.
        max_period: of the slowest wave, over 2 pi.

    Returns:
        (B, features) in [-1, 1].

    Raises:
        ValueError: an argument out of range.
    """
    half = _half(features)
    if half <= shift:
        raise ValueError(f"features must be above 2 shift = {2 * shift}, got {features!r}")
    return _waves(c, max_period ** (-np.arange(half) / (half - shift)))


def input_waves(x: jax.Array, c: jax.Array, frequencies: Sequence[float], offset: ArrayLike = 0.0) -> jax.Array:
    """The entries of x with their damped waves: fine detail of the values, such as the edges of grey levels.

    Args:
        x: (B, *event) scaled input, cos(phi) x_0 + sin(phi) eps.
        c: (B,) noise coordinates log tan(phi).
        frequencies: n frequencies in cycles per unit of x. For data of standard deviation sigma_d in bins of width w,
            (sigma_d / w) (1/32, 1/16, 1/8, 1/4, 1/2, 1) goes from 32 bins a cycle to one.
        offset: what was subtracted from the data, in the units of x_0: a scalar or (*event,). It puts the waves of
            all entries in phase with the bins.

    Returns:
        (B, *event, 1 + 2n): x, then for each frequency its sine and cosine.
    """
    variance = jnp.exp(2 * c.reshape(c.shape + (1,) * (x.ndim - c.ndim)))
    y, features = x + jnp.broadcast_to(jnp.asarray(offset, x.dtype), x.shape), [x]
    for f in frequencies:
        damping = jnp.exp(-2 * (math.pi * f) ** 2 * variance)
        features += [damping * jnp.sin(2 * math.pi * f * y), damping * jnp.cos(2 * math.pi * f * y)]
    return jnp.stack(features, axis=-1)


def _half(features: int) -> int:
    if isinstance(features, bool) or not isinstance(features, int | np.integer) or features < 2 or features % 2:
        raise ValueError(f"features must be an even whole number of at least 2, got {features!r}")
    return int(features) // 2


def _waves(c: jax.Array, frequencies: np.ndarray) -> jax.Array:
    return cosines_and_sines(c[:, None] * jnp.asarray(frequencies, c.dtype)[None, :])


def cosines_and_sines(angle: jax.Array) -> jax.Array:
    """(B, n) angles -> (B, 2n): their cosines, then their sines."""
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=1)
