"""DDIM and ancestral sampling: the law of x_s given (x_0, x_t), with x_0 replaced by D = E[x_0 | x_t].

    x_s = alpha_s D + sqrt(sigma_s^2 - v) eps_hat + sqrt(v) z,      eps_hat = (x_t - alpha_t D) / sigma_t,
    v = eta^2 sigma_s^2 (1 - alpha_t^2 sigma_s^2 / (alpha_s^2 sigma_t^2)).

eta multiplies the standard deviation of the fresh noise (Song, Meng and Ermon, "Denoising diffusion implicit models",
2021, equations 12 and 16).
"""

import numpy as np
from jax.typing import ArrayLike

from scoresde.sde import SDE
from scoresde.solvers.table import Nodes, Table, single_step


def ddim(sde: SDE, grid: ArrayLike, eta: float = 0.0) -> Table:
    """DDIM(eta): order 1 for the probability flow at eta = 0, ancestral sampling at eta = 1.

    Raises:
        ValueError: eta is negative, or so large that v would exceed sigma_s^2 on this grid.
    """
    nodes = Nodes.of(sde, grid)
    if not eta >= 0:
        raise ValueError(f"eta must be at least 0, got {eta!r}")
    alpha_t, alpha_s = nodes.alpha[:-1], nodes.alpha[1:]
    sigma_t, sigma_s = nodes.sigma[:-1], nodes.sigma[1:]
    fresh = -np.expm1(-np.diff(nodes.log_snr))
    limit = float(1 / np.sqrt(fresh.max()))
    if eta > limit:
        raise ValueError(f"eta must be at most {limit:.4g} on this grid, got {eta!r}")
    share = np.minimum(eta**2 * fresh, 1)  # v / sigma_s^2
    a = sigma_s * np.sqrt(1 - share) / sigma_t
    s = sigma_s * np.sqrt(share)
    return single_step(nodes, a=a, A=alpha_s - alpha_t * a, s=s, c=1 / alpha_t, d=sigma_t**2 / alpha_t)


def ancestral(sde: SDE, grid: ArrayLike) -> Table:
    """The Gaussian posterior of x_s given x_t and x_0 = D (Ho et al. 2020, equation 7). Weak order 1."""
    return ddim(sde, grid, eta=1.0)
