"""Multistep exponential integrators: DPM-Solver++, UniPC and DEIS, one evaluation a step.

With lambda = log(alpha/sigma) the reverse SDE of noise level tau (tau = 0: the probability flow, tau = 1: the reverse
SDE) has from t to s, with h = lambda_s - lambda_t > 0, the exact solution (Lu et al. 2022b; Xue et al. 2023, prop. 4.2)

    x_s = (sigma_s/sigma_t) e^(-tau^2 h) x_t + alpha_s int (1 + tau^2) e^((1 + tau^2)(lambda - lambda_s)) D dlambda
          + sigma_s sqrt(1 - e^(-2 tau^2 h)) z,                        the integral from lambda_t to lambda_s,

or, for the flow in the noise eps and u = log(sigma/alpha),  x_s = (alpha_s/alpha_t) x_t + alpha_s int e^u eps du.
A method of order p replaces D (or eps) by the polynomial through its last p values. The integrals of exponential times
Lagrange polynomial are taken by Gauss-Legendre quadrature, exact to rounding and free of cancellation for steps of any
size; at order 3 this gives the right coefficient where published codes of DPM-Solver++(3M) halve it and have order 2.

The first steps use the values that there are: orders 1, 2, ... up to p.
"""

from collections.abc import Callable

import numpy as np
from jax.typing import ArrayLike

from scoresde.sde import SDE
from scoresde.solvers.table import Commit, Look, Nodes, Table

_POINTS, _WEIGHTS = np.polynomial.legendre.leggauss(32)


def _integrals(start: float, end: float, nodes: np.ndarray, weight: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """int_start^end weight(u) l_j(u) du for the Lagrange polynomials l_j of ``nodes``: (len(nodes),)."""
    half = (end - start) / 2
    u = start + half * (1 + _POINTS)
    basis = [np.prod([(u - m) / (n - m) for m in np.delete(nodes, j)], axis=0) for j, n in enumerate(nodes)]
    return half * np.array([np.sum(_WEIGHTS * weight(u) * b) for b in basis])


def _check_order(order: int, highest: int) -> None:
    if order not in range(1, highest + 1):
        raise ValueError(f"order must be a whole number from 1 to {highest}, got {order!r}")


def _check_eta(eta: float) -> None:
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in [0, 1], got {eta!r}")


def _table(nodes: Nodes, a: np.ndarray, A: np.ndarray, s: np.ndarray, c: np.ndarray, d: np.ndarray) -> Table:
    """n steps x' = a x + sum_j A_j h_j + s z, each looking where it starts; A is (n, H)."""
    n, history = A.shape
    zero = np.zeros((1, history))
    commit = Commit(nodes.t, np.append(1.0, a), np.vstack([zero, A]), np.append(0.0, s), np.zeros(n + 1))
    return Table(Look(nodes.t[:-1], np.ones(n), np.zeros_like(A), c, d), commit, nodes.sigma[0])


def dpm_solver(sde: SDE, grid: ArrayLike, order: int = 2, eta: float = 0.0) -> Table:
    """DPM-Solver++ multistep in data prediction, of order 1 (DDIM), 2 (2M, midpoint form) or 3 (3M).

    ``eta`` in [0, 1] multiplies the standard deviation of the fresh noise as in ``ddim``: order 1 is ``ddim(eta)``,
    eta = 1 solves the reverse SDE ("SDE-DPM-Solver++"). Lu et al., "DPM-Solver++" (2022b), algorithm 2.

    Raises:
        ValueError: order not 1, 2 or 3, or eta outside [0, 1].
    """
    _check_order(order, 3)
    _check_eta(eta)
    nodes = Nodes.of(sde, grid)
    lam, alpha, sigma = nodes.log_snr / 2, nodes.alpha, nodes.sigma
    h = np.diff(lam)
    share = -(eta**2) * np.expm1(-2 * h)  # of the variance that is fresh: 1 - e^(-2 tau^2 h)
    stretch = 1 - np.log1p(-np.minimum(share, 1)) / (2 * h)  # 1 + tau^2
    A = np.zeros((len(h), order))
    for i in range(len(h)):
        k, now = stretch[i], min(order, i + 1)
        if now == 2:
            total, r = -alpha[i + 1] * np.expm1(-k * h[i]), h[i - 1] / h[i]
            A[i, :2] = total * (1 + 0.5 / r), -total * 0.5 / r
        else:
            past = lam[i - np.arange(now)]
            A[i, :now] = alpha[i + 1] * _integrals(
                lam[i], lam[i + 1], past, lambda u, k=k, end=lam[i + 1]: k * np.exp(k * (u - end))
            )
    a = sigma[1:] / sigma[:-1] * np.sqrt(1 - share)
    c, d = 1 / alpha[:-1], sigma[:-1] ** 2 / alpha[:-1]
    return _table(nodes, a, A, sigma[1:] * np.sqrt(share), c, d)


def deis(sde: SDE, grid: ArrayLike, order: int = 3) -> Table:
    """DEIS: the noise extrapolated through its last ``order`` values as a polynomial in log(sigma/alpha); order 1 to 4.

    Zhang and Chen, "Fast sampling of diffusion models with exponential integrator" (2023), the log-rho variant.
    """
    _check_order(order, 4)
    nodes = Nodes.of(sde, grid)
    u, alpha = -nodes.log_snr / 2, nodes.alpha
    n = len(u) - 1
    A = np.zeros((n, order))
    for i in range(n):
        now = min(order, i + 1)
        A[i, :now] = alpha[i + 1] * _integrals(u[i], u[i + 1], u[i - np.arange(now)], np.exp)
    return _table(nodes, alpha[1:] / alpha[:-1], A, np.zeros(n), np.zeros(n), -nodes.sigma[:-1])


def unipc(sde: SDE, grid: ArrayLike, order: int = 3) -> Table:
    """UniPC: a predictor of ``order`` p = 1 to 4 and a corrector that reuses its evaluation; convergence order p + 1.

    Predictor and corrector integrate the polynomials through the last p values of D, and through these and the value at
    the predicted point. The last step is not corrected, which would cost an evaluation. One evaluation a step.
    Zhao et al., "UniPC" (2023), algorithm 1, with the coefficients of the exact integrals.
    """
    _check_order(order, 4)
    nodes = Nodes.of(sde, grid)
    lam, alpha, sigma = nodes.log_snr / 2, nodes.alpha, nodes.sigma
    n = len(lam) - 1
    ratio = sigma[1:] / sigma[:-1]

    def weights(i: int, past: np.ndarray) -> np.ndarray:
        row = np.zeros(order + 1)
        row[: len(past)] = alpha[i + 1] * _integrals(lam[i], lam[i + 1], past, lambda u: np.exp(u - lam[i + 1]))
        return row

    # Row k looks at the prediction of node k from the corrected state at node k - 1, so the base lags one node behind.
    predict = np.array([weights(i, lam[i - np.arange(min(order, i + 1))]) for i in range(n)])
    correct = np.array([weights(i, lam[i + 1 - np.arange(min(order, i + 1) + 1)]) for i in range(n - 1)])
    none = np.zeros((1, order + 1))
    b, B = np.append(1.0, ratio[:-1]), np.vstack([none, predict[:-1]])
    if n == 1:
        a, A, times = np.append(1.0, ratio), np.vstack([none, predict]), nodes.t
    else:
        # The last commit corrects node n - 1 and steps to node n at once.
        a = np.concatenate([[1.0, 1.0], ratio[: n - 2], [ratio[n - 1] * ratio[n - 2]]])
        A = np.vstack([none, none, correct[: n - 2], ratio[n - 1] * correct[n - 2] + predict[n - 1]])
        times = np.concatenate([nodes.t[:1], nodes.t[: n - 1], nodes.t[n:]])
    commit = Commit(times, a, A, np.zeros(n + 1), np.zeros(n + 1))
    look = Look(nodes.t[:-1], b, B, 1 / alpha[:-1], sigma[:-1] ** 2 / alpha[:-1])
    return Table(look, commit, sigma[0])
