"""The preconditioners of EDM's networks: what surrounds the bare network F in the denoiser

    D(x, sigma) = c_skip x + c_out F(c_in x, c_noise).

                1 - c_skip              c_out                          c_in                       c_noise
    edm         s^2 / (s^2 + s_d^2)     s s_d / sqrt(s^2 + s_d^2)      1 / sqrt(s^2 + s_d^2)      log(s) / 4
    vp          0                       -s                             1 / sqrt(s^2 + 1)          (M - 1) t(s)
    ve          0                       s                              1                          log(s / 2)
    iddpm       0                       -s                             1 / sqrt(s^2 + 1)          M - 1 - j(s)

s is sigma, t(s) the time at which VP's sigma/alpha is s, and j(s) the place of s in the table u of M + 1 levels.

Reference: Karras et al. (2022), table 1; appendix C.3 for u.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scoresde.sde import VP

Coefficients = tuple[jax.Array, jax.Array, jax.Array, jax.Array]
Preconditioner = Callable[[jax.Array], Coefficients]
"""sigma -> (1 - c_skip, c_out, c_in, c_noise), each like sigma."""


def edm(config: Mapping[str, Any], u: np.ndarray | None) -> Preconditioner:
    """EDM's own, with ``sigma_data``."""
    data = float(config["sigma_data"])

    def coefficients(sigma: jax.Array) -> Coefficients:
        total = sigma**2 + data**2
        c_in = jax.lax.rsqrt(total)
        return sigma**2 / total, data * sigma * c_in, c_in, jnp.log(sigma) / 4

    return coefficients


def vp(config: Mapping[str, Any], u: np.ndarray | None) -> Preconditioner:
    """Song et al.'s VP SDE, with ``beta_min``, ``beta_d`` and ``M`` steps."""
    sde = VP(beta_min=float(config["beta_min"]), beta_max=float(config["beta_min"] + config["beta_d"]))

    def coefficients(sigma: jax.Array) -> Coefficients:
        c_noise = (config["M"] - 1) * sde.time(-2 * jnp.log(sigma))
        return jnp.zeros_like(sigma), -sigma, jax.lax.rsqrt(sigma**2 + 1), c_noise

    return coefficients


def ve(config: Mapping[str, Any], u: np.ndarray | None) -> Preconditioner:
    """Song et al.'s VE SDE."""
    return lambda sigma: (jnp.zeros_like(sigma), sigma, jnp.ones_like(sigma), jnp.log(sigma / 2))


def iddpm(config: Mapping[str, Any], u: np.ndarray | None) -> Preconditioner:
    """Improved DDPM, whose noise levels are the table ``u``."""
    table = np.asarray(u, np.float32)

    def coefficients(sigma: jax.Array) -> Coefficients:
        place = jnp.argmin(jnp.abs(sigma[:, None] - jnp.asarray(table, sigma.dtype)[None, :]), axis=1)
        c_noise = (config["M"] - 1 - place).astype(sigma.dtype)
        return jnp.zeros_like(sigma), -sigma, jax.lax.rsqrt(sigma**2 + 1), c_noise

    return coefficients
