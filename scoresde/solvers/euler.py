"""First-order discretisations of the reverse SDE dx = [f x - g^2 score] dt + g dw (Anderson 1982), from t to s < t."""

import numpy as np
from jax.typing import ArrayLike

from scoresde.arrays import on_host
from scoresde.sde import SDE
from scoresde.solvers.table import Nodes, Table, single_step


def euler_maruyama(sde: SDE, grid: ArrayLike) -> Table:
    """x_s = x - (f x - g^2 score) Delta + g sqrt(Delta) z with Delta = t - s and f, g at t. Weak order 1.

    f and g grow without bound where alpha vanishes (``Cosine``, ``RectifiedFlow``), so on a uniform grid those need
    about 250 steps before the first is stable: use ``log_snr_grid`` or ``ancestral`` with fewer.
    """
    nodes = Nodes.of(sde, grid)
    delta = -np.diff(nodes.t)
    f, g = on_host(lambda t: (sde.drift(t), sde.diffusion(t)), nodes.t[:-1])
    return single_step(nodes, a=1 - f * delta, A=g**2 * delta, s=g * np.sqrt(delta), c=0.0, d=1.0)


def reverse_diffusion(sde: SDE, grid: ArrayLike) -> Table:
    """The forward discretisation reversed: x_s = (2 - r) x + v score + sqrt(v) z (Song et al. 2021, equation 46).

    The forward step is the exact transition x_t = r x_s + sqrt(v) z with r = alpha_t/alpha_s, v = sigma_t^2 - r^2
    sigma_s^2: for VE Song's own, for VP equal to his sqrt(1 - beta_i) to second order in the step. Weak order 1.
    """
    nodes = Nodes.of(sde, grid)
    r = nodes.alpha[:-1] / nodes.alpha[1:]
    v = -(nodes.sigma[:-1] ** 2) * np.expm1(np.diff(-nodes.log_snr))
    return single_step(nodes, a=2 - r, A=v, s=np.sqrt(v), c=0.0, d=1.0)
