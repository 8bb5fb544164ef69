"""Exponential integrators: what DPM-Solver, DEIS, UniPC, SA-Solver and SEEDS share.

With lambda = log(alpha/sigma) the reverse SDE of noise level tau (tau = 0: the probability flow, tau = 1: the reverse
SDE) has from t to s, with h = lambda_s - lambda_t > 0 and k = 1 + tau^2, the exact solutions (Lu et al. 2022a, 2022b;
Xue et al. 2023, propositions 4.1 and 4.2)

    in the data D = E[x_0 | x]:     x_s = (sigma_s/sigma_t) e^(-tau^2 h) x_t
                                          + alpha_s k int e^(k (lambda - lambda_s)) D dlambda + s z,
                                    s = sigma_s sqrt(1 - e^(-2 tau^2 h)),
    in the noise eps = -sigma score: x_s = (alpha_s/alpha_t) x_t
                                          - sigma_s k int e^(lambda_s - lambda) eps dlambda + s z,
                                    s = sigma_s tau sqrt(e^(2h) - 1),

the integrals from lambda_t to lambda_s. A method replaces D or eps by a polynomial through values that it has. The
integrals of exponential times Lagrange polynomial are taken by Gauss-Legendre quadrature, exact to rounding and free of
cancellation for steps of any size: no phi function is written out, and no coefficient can be wrong by a factor.

A multistep method of order p starts with orders 1, 2, ... up to p, from the values that there are.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jax.typing import ArrayLike

from scoresde.solvers.table import Nodes

_POINTS, _WEIGHTS = np.polynomial.legendre.leggauss(32)


def integrals(start: float, end: float, nodes: np.ndarray, weight: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """int_start^end weight(u) l_j(u) du for the Lagrange polynomials l_j of ``nodes``: (len(nodes),)."""
    half = (end - start) / 2
    u = start + half * (1 + _POINTS)
    basis = [np.prod([(u - m) / (n - m) for m in np.delete(nodes, j)], axis=0) for j, n in enumerate(nodes)]
    return half * np.array([np.sum(_WEIGHTS * weight(u) * np.broadcast_to(b, u.shape)) for b in basis])


def check_order(name: str, order: int, lowest: int, highest: int) -> None:
    """A ValueError unless ``order`` is a whole number from lowest to highest."""
    if isinstance(order, bool) or not isinstance(order, int | np.integer) or not lowest <= order <= highest:
        raise ValueError(f"{name} must be a whole number from {lowest} to {highest}, got {order!r}")


@dataclasses.dataclass(frozen=True)
class Form:
    """n steps x_s = a x_t + int scale e^(rate (lambda - lambda_s)) value dlambda + s z from ``start`` to ``end``.

    The value is the noise or D; all arrays are (n,).
    """

    start: np.ndarray
    end: np.ndarray
    a: np.ndarray
    s: np.ndarray
    scale: np.ndarray
    rate: np.ndarray

    @classmethod
    def of(cls, start: Nodes, end: Nodes, *, noise: bool = False, tau: ArrayLike = 0.0) -> "Form":
        """In the noise or in the data, of noise level tau, a number or (n,)."""
        lam_t, lam_s = start.log_snr / 2, end.log_snr / 2
        h, tau = lam_s - lam_t, np.broadcast_to(np.asarray(tau, np.float64), lam_t.shape)
        k = 1 + tau**2
        if noise:
            s = end.sigma * tau * np.sqrt(np.expm1(2 * h))
            return cls(lam_t, lam_s, end.alpha / start.alpha, s, -end.sigma * k, -np.ones_like(h))
        s = end.sigma * np.sqrt(-np.expm1(-2 * tau**2 * h))
        return cls(lam_t, lam_s, end.sigma / start.sigma * np.exp(-(tau**2) * h), s, end.alpha * k, k)

    def weights(self, i: int, values: np.ndarray) -> np.ndarray:
        """Step i with the polynomial through values known at these lambda: the coefficient of each."""
        end, rate = self.end[i], self.rate[i]
        return self.scale[i] * integrals(self.start[i], end, values, lambda lam: np.exp(rate * (lam - end)))

    def constant(self) -> np.ndarray:
        """Every step with one value: its coefficients (n,)."""
        return self.scale * np.expm1(self.rate * (self.start - self.end)) / -self.rate


def kept(nodes: Nodes, *, noise: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """(c, d) of rows that look at these nodes and keep the noise, or D by Tweedie's formula."""
    if noise:
        return np.zeros_like(nodes.sigma), -nodes.sigma
    return 1 / nodes.alpha, nodes.sigma**2 / nodes.alpha


Weights = Callable[[int, np.ndarray], np.ndarray]


def predictor(lam: np.ndarray, order: int, weights: Weights) -> np.ndarray:
    """The coefficients (n, order) of the last values, newest first, on the nodes ``lam`` (n + 1,)."""
    A = np.zeros((len(lam) - 1, order))
    for i in range(len(A)):
        now = min(order, i + 1)
        A[i, :now] = weights(i, lam[i - np.arange(now)])
    return A


def corrected(lam: np.ndarray, a: np.ndarray, predict: np.ndarray, order: int, weights: Weights) -> np.ndarray:
    """The coefficients of predictor steps that first correct the state that they start from.

    The evaluation at the predicted node i and the last ``order`` values before it give step i - 1 anew, with the same
    noise. The difference from what was predicted is added to the state and carried through step i at once, so that
    every committed state is a predicted one. The last is not corrected, which would cost an evaluation.
    """
    A = np.zeros((len(a), 1 + max(order, predict.shape[1])))
    A[:, : predict.shape[1]] = predict
    for i in range(1, len(a)):
        now = min(order, i)
        A[i, : now + 1] += a[i] * weights(i - 1, lam[i - np.arange(now + 1)])
        A[i, 1 : 1 + predict.shape[1]] -= a[i] * predict[i - 1]
    return A
