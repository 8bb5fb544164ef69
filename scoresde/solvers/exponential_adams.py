"""Adams methods in the angle: the multistep solver of the probability flow whose values have the least to say.

In the radius r, the angle phi and u = x/r of ``scoresde.angle`` every flow is

    du/dphi = v = cos(phi) eps_hat - sin(phi) x_hat_0/sigma_d,          (see ``scoresde.flow.probability``)

eps_hat the noise and x_hat_0 the data that the score implies. A step integrates a polynomial through the last values of
v, x_s = r_s (x_t/r_t + int v dphi): the rotation is exact, so that Gaussian data of mean 0 and standard deviation
sigma_d have v = 0 and are carried without error in one step. Values of the noise or the data, as in DEIS and
DPM-Solver, are extrapolated over a range of log(sigma/alpha) without bounds, where they are sums of exponentials; v is
bounded and an analytic function of phi on [0, pi/2] with both ends, in which polynomials converge fast.

The predictor is Adams-Bashforth of order p on unequal steps, the corrector Adams-Moulton of order p + 1 (Hairer,
Norsett and Wanner 1993, section III.5); as in UniPC the evaluation at the predicted point corrects it and serves the
next step too, so that a step takes one evaluation. Where the data are nearly points, dv/du = cot(phi): there the
predictor of a descending step is exact, and the corrector multiplies errors by about (phi_t - phi_s) cot(phi_s). A step
on which this exceeds ``LONG`` is not corrected.

The polynomials are in z = -(1 + phi/delta)^(-3/4), which is linear in phi where delta is large. A finite ``detail``
delta suits the way up from data, where structure of size delta sigma_d is met all at once at phi about delta.
"""

import numpy as np
from jax.typing import ArrayLike

from scoresde.angle import angle_of, radius_of
from scoresde.grids import check_grid
from scoresde.sde import SDE
from scoresde.solvers.exponential import check_order, corrected, integrals, predictor
from scoresde.solvers.table import Nodes, Table, single_step

LONG = 0.5
POWER = 3 / 4


def adams(
    sde: SDE,
    grid: ArrayLike,
    order: int = 4,
    *,
    corrector: bool = True,
    correct_last: bool = False,
    sigma_data: float = 1.0,
    detail: float = np.inf,
) -> Table:
    """Adams-Bashforth-Moulton in the angle: a predictor of ``order`` p = 1 to 5, corrected; convergence order p + 1.

    One evaluation a step; the last step, which would cost one more, and too long ones are not corrected. Best on
    ``angle_grid``; order 4 for exact scores, 2 or 3 for a trained network, whose values are rougher than polynomials.

    Args:
        sde: the SDE.
        grid: times within [t_min, t_max] that decrease to samples, or increase to latents and likelihoods.
        order: p, from 1 to 5.
        corrector: without it this is Adams-Bashforth, of convergence order p.
        correct_last: correct the last step too, by one more evaluation at its end.
        sigma_data: scale of the angle, best the standard deviation of the data; not critical.
        detail: size of the finest structure of the data in units of ``sigma_data``; infinite for polynomials in phi.

    Raises:
        ValueError: a grid that is not monotone or leaves [t_min, t_max], an order that is not a whole number from 1 to
            5, or a scale that is not positive.
    """
    check_order("order", order, 1, 5)
    if not 0 < sigma_data < np.inf:
        raise ValueError(f"sigma_data must be positive and finite, got {sigma_data!r}")
    if not detail > 0:
        raise ValueError(f"detail must be positive, got {detail!r}")
    t = np.asarray(grid, np.float64)
    upward = t.ndim == 1 and len(t) > 1 and t[-1] > t[0]
    t = check_grid(sde, t[::-1])[::-1] if upward else check_grid(sde, t)
    nodes = Nodes.at(sde, np.append(t, t[-1]) if corrector and correct_last else t)  # the last step has length 0
    phi = angle_of(nodes.log_snr, sigma_data)
    r = radius_of(nodes.alpha, nodes.sigma, sigma_data)
    z = phi if np.isinf(detail) else -((1 + phi / detail) ** -POWER)

    def slope(z: np.ndarray) -> np.ndarray:
        """dphi/dz."""
        return np.ones_like(z) if np.isinf(detail) else detail / POWER * (-z) ** (-1 / POWER - 1)

    def weights(i: int, past: np.ndarray) -> np.ndarray:
        return r[i + 1] * integrals(z[i], z[i + 1], past, slope)

    a = r[1:] / r[:-1]
    A = predictor(z, order, weights)
    if corrector:
        both = corrected(z, a, A, order, weights)
        long = np.append(0.0, -np.diff(phi[:-1])) / np.tan(phi[:-1]) > LONG
        A = np.where(long[:, None], np.pad(A, ((0, 0), (0, both.shape[1] - order))), both)
    # v = (eps_hat - sin(phi) u)/cos(phi) with eps_hat = -sigma score, cos(phi) = alpha sigma_d/r and sin(phi) = sigma/r
    rate = nodes.sigma[:-1] / (nodes.alpha[:-1] * sigma_data)
    return single_step(nodes, a=a, A=A, s=0.0, c=-rate / r[:-1], d=-rate * r[:-1])
