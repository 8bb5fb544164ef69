"""The circle on which every Gaussian path is one rotation: radius, angle, and the time of an angle.

With rho = sigma/alpha and data of standard deviation sigma_d,

    radius   r = sqrt(alpha^2 sigma_d^2 + sigma^2) = alpha sqrt(sigma_d^2 + rho^2),     the standard deviation of x_t
    state    u = x_t/r = cos(phi) x_0/sigma_d + sin(phi) eps,                           of unit variance
    angle    phi = arctan(rho/sigma_d),     cos(phi) = alpha sigma_d/r,     sin(phi) = sigma/r
    time     the t of log-SNR -2 log rho = -2 log(sigma_d tan phi)

The flow turns u with the velocity du/dphi = cos(phi) eps - sin(phi) x_0/sigma_d = (eps - sin(phi) u)/cos(phi). SDEs
differ only in where they start and stop. cos(phi)^2 is the error of the best linear guess of the noise.

Functions of an SDE and a time are traceable, for t of any shape; those whose names end in ``_of`` take and return
NumPy's arrays.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from scoresde.sde import SDE


def deviation(alpha: ArrayLike, variance: ArrayLike, sigma_data: ArrayLike) -> jax.Array:
    """r of alpha and sigma^2."""
    return jnp.sqrt((jnp.asarray(alpha) * sigma_data) ** 2 + variance)


def cos_sin(alpha: ArrayLike, sigma: ArrayLike, sigma_data: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """cos(phi) and sin(phi) of alpha and sigma, without cancellation."""
    alpha, sigma = jnp.asarray(alpha), jnp.asarray(sigma)
    r = deviation(alpha, sigma**2, sigma_data)
    return alpha * sigma_data / r, sigma / r


def radius(sde: SDE, t: ArrayLike, sigma_data: ArrayLike) -> jax.Array:
    """r(t)."""
    return deviation(sde.alpha(t), sde.variance(t), sigma_data)


def angle(sde: SDE, t: ArrayLike, sigma_data: ArrayLike) -> jax.Array:
    """phi(t) in (0, pi/2)."""
    return jnp.arctan2(sde.sigma(t), sde.alpha(t) * sigma_data)


def time_at(sde: SDE, phi: jax.Array, sigma_data: ArrayLike, span: tuple[jax.Array, jax.Array]) -> jax.Array:
    """The inverse of ``angle``, kept within ``span``.

    Where alpha sigma_d / sigma is below the rounding of pi/2 (a log-SNR below -33 in float32) the angle is one with
    pi/2, whose tangent has either sign: it is taken just below, since all that lies beyond is noise to rounding.
    """
    below = jnp.nextafter(jnp.asarray(jnp.pi / 2, phi.dtype), 0)
    t = sde.time(-2 * jnp.log(sigma_data * jnp.tan(jnp.minimum(phi, below))))
    return jnp.clip(t, min=jnp.minimum(*span), max=jnp.maximum(*span))


def secant_squared(sde: SDE, t: ArrayLike, sigma_data: float) -> jax.Array:
    """1/cos(phi)^2 = 1 + (rho/sigma_d)^2."""
    return 1 + jnp.exp(-sde.log_snr(t)) / sigma_data**2


def rho_of(log_snr: ArrayLike) -> np.ndarray:
    """rho of log-SNRs on the host."""
    return np.exp(-np.asarray(log_snr) / 2)


def radius_of(alpha: np.ndarray, sigma: np.ndarray, sigma_data: float) -> np.ndarray:
    """r of alpha and sigma on the host."""
    return np.hypot(alpha * sigma_data, sigma)


def angle_of(log_snr: ArrayLike, sigma_data: float) -> np.ndarray:
    """phi of log-SNRs on the host."""
    return np.arctan(rho_of(log_snr) / sigma_data)


def squares_of(log_snr: ArrayLike, sigma_data: float) -> tuple[np.ndarray, np.ndarray]:
    """cos(phi)^2 and sin(phi)^2 of log-SNRs on the host, either to all its digits."""
    odds = np.asarray(log_snr, np.float64) + 2 * math.log(sigma_data)
    return np.exp(-np.logaddexp(0, -odds)), np.exp(-np.logaddexp(0, odds))
