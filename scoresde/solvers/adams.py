"""Adams methods for the probability flow in the angle, downward to samples or upward to latents and likelihoods.

In the coordinates of ``flow`` (r^2 = alpha^2 sigma_d^2 + sigma^2, phi = arctan(sigma/(alpha sigma_d)), u = x/r) the
flow is du/dphi = v with, from v = (eps - sin(phi) u)/cos(phi) and eps = -sigma score,

    v = -sigma/(alpha sigma_d r) x - (r sigma/(alpha sigma_d)) score,        x_s = (r_s/r_t) x_t + r_s int v dphi.

v is replaced by the polynomial through its last p values (Adams-Bashforth), corrected by the one that also passes
through the value at the predicted point (Adams-Moulton, order p + 1; Hairer, Norsett and Wanner 1993, section III.5).
The polynomials are in z = -(phi + delta)^(-3/4), in which the flow is about evenly smooth: structure of data of size
delta sigma_d is resolved where phi is about delta, while the noise end is a slow rotation. Nothing depends on the sign
of the steps: the same formulas go from data to noise.
"""

import numpy as np
from jax.typing import ArrayLike

from scoresde.divergence import whole
from scoresde.grids import check_grid
from scoresde.sde import SDE, on_host
from scoresde.solvers.exponential import check_order, corrected, integrals, predictor
from scoresde.solvers.table import Nodes, Table, single_step

POWER = 3 / 4


def _warped(nodes: Nodes, sigma_data: float, detail: float) -> np.ndarray:
    """-z at the nodes."""
    return (np.arctan2(nodes.sigma, nodes.alpha * sigma_data) + detail) ** -POWER


def _check_scales(**scales: float) -> None:
    for name, value in scales.items():
        if not 0 < value < np.inf:
            raise ValueError(f"{name} must be positive and finite, got {value!r}")


def angle_grid(sde: SDE, n: int, *, sigma_data: float = 1.0, detail: float = 0.15) -> np.ndarray:
    """n steps of equal length in (phi + detail)^(-3/4), phi = arctan(sigma/(alpha sigma_d)): (n + 1,), decreasing.

    Args:
        sde: the SDE.
        n: steps, at least 1.
        sigma_data: the scale of the angle, best the standard deviation of the data.
        detail: the size of the finest structure of the data in units of ``sigma_data``; smaller spends more steps at
            small noise.

    Raises:
        ValueError: n is not a whole number of at least 1, or a scale is not positive and finite.
    """
    n = whole("n", n)
    _check_scales(sigma_data=sigma_data, detail=detail)
    nodes = Nodes.at(sde, np.array([sde.t_max, sde.t_min]))
    start, end = _warped(nodes, sigma_data, detail)
    phi = np.linspace(start, end, n + 1) ** (-1 / POWER) - detail
    grid = on_host(sde.time, -2 * np.log(sigma_data * np.tan(phi)))
    grid[0], grid[-1] = nodes.t
    return grid


def adams(sde: SDE, grid: ArrayLike, order: int = 4, *, sigma_data: float = 1.0, detail: float = 0.15) -> Table:
    """Adams-Bashforth-Moulton in the angle, of n + 1 evaluations for n steps and convergence order ``order`` + 1.

    Every state is corrected, the last one too. The first steps have orders 2, 3, ...: a grid that begins with small
    turns of the angle loses nothing by it (``log_snr_grid`` either way, ``angle_grid`` upward); ``angle_grid`` downward
    is held at order 3 by its first steps.

    Args:
        sde: the SDE.
        grid: times within [t_min, t_max] that decrease to samples, or increase to latents and likelihoods.
        order: values that the predictor uses, from 1 to 6.
        sigma_data: the scale of the angle, best the standard deviation of the data.
        detail: see ``angle_grid``; here it only sets the variable of the polynomials.

    Raises:
        ValueError: a grid that is not monotone or leaves [t_min, t_max], an order or scale out of range.
    """
    check_order("order", order, 1, 6)
    _check_scales(sigma_data=sigma_data, detail=detail)
    t = np.asarray(grid, np.float64)
    upward = t.ndim == 1 and t.size > 1 and t[-1] > t[0]
    nodes = Nodes.at(sde, check_grid(sde, t[::-1])[::-1] if upward else check_grid(sde, t))
    r = np.hypot(nodes.alpha * sigma_data, nodes.sigma)
    z = -_warped(nodes, sigma_data, detail)

    def weights(i: int, values: np.ndarray) -> np.ndarray:
        return integrals(z[i], z[i + 1], values, lambda z: (-z) ** (-1 / POWER - 1) / POWER)

    n = len(t) - 1
    predict = np.concatenate([predictor(z, order, weights), np.zeros((1, order))])  # and a last step of length 0
    A = corrected(z, np.ones(n + 1), predict, order, weights)
    r_next = np.append(r[1:], r[-1])
    slope = nodes.sigma / (nodes.alpha * sigma_data)
    last = Nodes.at(sde, np.append(nodes.t, nodes.t[-1]))
    return single_step(last, a=r_next / r, A=r_next[:, None] * A, s=0.0, c=-slope / r, d=-slope * r)
