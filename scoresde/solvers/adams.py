"""Adams methods in the angle: the multistep solver of the probability flow whose values have the least to say.

With rho = sigma/alpha, u = x/r, r^2 = alpha^2 sigma_d^2 + sigma^2 and phi = arctan(rho/sigma_d), every flow is

    du/dphi = v = cos(phi) eps_hat - sin(phi) x_hat_0/sigma_d,          (see ``scoresde.flow``)

eps_hat the noise and x_hat_0 the data that the score implies. A step integrates the polynomial in phi through the last
values of v, x_s = r_s (x_t/r_t + int v dphi): the rotation is exact, so that Gaussian data of mean 0 and standard
deviation sigma_d have v = 0 and are carried without error in one step. Values of the noise or the data, as in DEIS and
DPM-Solver, are extrapolated over a range of log(sigma/alpha) without bounds, where they are sums of exponentials; v is
bounded and an analytic function of phi on [0, pi/2] with both ends, in which polynomials converge fast.

The predictor is Adams-Bashforth of order p on unequal steps, the corrector Adams-Moulton of order p + 1; as in UniPC
the evaluation at the predicted point corrects it and serves the next step too, so that a step takes one evaluation.
Where the data are nearly points, dv/du = cot(phi): there the predictor is exact, and the corrector multiplies errors by
about (phi_t - phi_s) cot(phi_s). A step on which this exceeds ``LONG`` is not corrected.
"""

import numpy as np
from jax.typing import ArrayLike

from scoresde.sde import SDE
from scoresde.solvers.exponential import check_order, corrected, integrals, predictor
from scoresde.solvers.table import Nodes, Table, single_step

LONG = 0.5


def adams(sde: SDE, grid: ArrayLike, order: int = 4, *, corrector: bool = True, sigma_data: float = 1.0) -> Table:
    """Adams-Bashforth-Moulton in the angle: a predictor of ``order`` p = 1 to 5, corrected; convergence order p + 1.

    One evaluation a step; the last step, which would cost one, and too long ones are not corrected. Best on
    ``angle_grid``.

    Args:
        order: p, from 1 to 5.
        corrector: without it this is Adams-Bashforth, of convergence order p.
        sigma_data: scale of the angle, best the standard deviation of the data; not critical.

    Raises:
        ValueError: order is not a whole number from 1 to 5, or sigma_data is not positive.
    """
    check_order("order", order, 1, 5)
    if not 0 < sigma_data < np.inf:
        raise ValueError(f"sigma_data must be positive and finite, got {sigma_data!r}")
    nodes = Nodes.of(sde, grid)
    phi = np.arctan(np.exp(-nodes.log_snr / 2) / sigma_data)
    r = np.hypot(nodes.alpha * sigma_data, nodes.sigma)
    a = r[1:] / r[:-1]

    def weights(i: int, past: np.ndarray) -> np.ndarray:
        return r[i + 1] * integrals(phi[i], phi[i + 1], past, np.ones_like)

    A = predictor(phi, order, weights)
    if corrector:
        both = corrected(phi, a, A, order, weights)
        long = np.append(0.0, -np.diff(phi[:-1])) / np.tan(phi[:-1]) > LONG
        A = np.where(long[:, None], np.pad(A, ((0, 0), (0, both.shape[1] - order))), both)
    # v = (eps_hat - sin(phi) u)/cos(phi) with eps_hat = -sigma score, cos(phi) = alpha sigma_d/r and sin(phi) = sigma/r
    rate = nodes.sigma[:-1] / (nodes.alpha[:-1] * sigma_data)
    return single_step(nodes, a=a, A=A, s=0.0, c=-rate / r[:-1], d=-rate * r[:-1])
