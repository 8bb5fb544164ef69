"""Adams-Bashforth on the noise: DEIS, LMS and iPNDM, one evaluation a step.

In y = x/alpha and rho = sigma/alpha the probability flow is dy/drho = eps. A method of order p integrates in rho the
polynomial through the last p values of eps, as a polynomial

    in log rho (``deis``),   in rho (``lms``),   or with the coefficients of equal steps in rho (``ipndm``).
"""

import numpy as np
from jax.typing import ArrayLike

from scoresde.sde import SDE
from scoresde.solvers.exponential import Form, Weights, check_order, integrals, kept, predictor
from scoresde.solvers.table import Nodes, Table, single_step

# Adams-Bashforth of orders 1 to 4 for equal steps.
_EQUAL = ([1.0], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24])


def _adams(nodes: Nodes, coordinate: np.ndarray, order: int, weights: Weights) -> Table:
    check_order("order", order, 1, 4)
    c, d = kept(nodes[:-1], noise=True)
    a = nodes.alpha[1:] / nodes.alpha[:-1]
    return single_step(nodes, a=a, A=predictor(coordinate, order, weights), s=0.0, c=c, d=d)


def deis(sde: SDE, grid: ArrayLike, order: int = 3) -> Table:
    """DEIS: the noise extrapolated through its last ``order`` values as a polynomial in log(sigma/alpha); order 1 to 4.

    Zhang and Chen, "Fast sampling of diffusion models with exponential integrator" (2023), the log-rho variant.

    Raises:
        ValueError: order is not a whole number from 1 to 4.
    """
    nodes = Nodes.of(sde, grid)
    form = Form.of(nodes[:-1], nodes[1:], noise=True)
    return _adams(nodes, nodes.log_snr / 2, order, form.weights)


def lms(sde: SDE, grid: ArrayLike, order: int = 4) -> Table:
    """The linear multistep method: the noise as a polynomial in rho = sigma/alpha; order 1 to 4.

    The same as the rho variant of DEIS ("rho-AB", Zhang and Chen 2023) and the LMS sampler of k-diffusion.

    Raises:
        ValueError: order is not a whole number from 1 to 4.
    """
    nodes = Nodes.of(sde, grid)
    rho = nodes.rho

    def weights(i: int, past: np.ndarray) -> np.ndarray:
        return nodes.alpha[i + 1] * integrals(rho[i], rho[i + 1], past, np.ones_like)

    return _adams(nodes, rho, order, weights)


def ipndm(sde: SDE, grid: ArrayLike, order: int = 4) -> Table:
    """iPNDM: the noise by the Adams-Bashforth coefficients of equal steps, then a DDIM step; order 1 to 4.

    Its convergence order is 2 for every ``order`` of 2 and above, since no usual grid has equal steps in rho, where
    the coefficients would be right: ``deis`` and ``lms`` are the same with the right ones.
    Liu et al., "Pseudo numerical methods for diffusion models on manifolds" (2022), without the Runge-Kutta start
    (Zhang and Chen 2023, appendix H.2).

    Raises:
        ValueError: order is not a whole number from 1 to 4.
    """
    nodes = Nodes.of(sde, grid)
    rho = nodes.rho

    def weights(i: int, past: np.ndarray) -> np.ndarray:
        return nodes.alpha[i + 1] * (rho[i + 1] - rho[i]) * np.array(_EQUAL[len(past) - 1])

    return _adams(nodes, rho, order, weights)
