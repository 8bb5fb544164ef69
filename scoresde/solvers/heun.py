"""Heun's method with churn: algorithm 2 of Karras et al. (2022), for any SDE.

In y = x/alpha and rho = sigma/alpha the probability flow is dy/drho = eps_hat. A step first raises the noise from rho
to rho_hat = (1 + gamma) rho by fresh noise, gamma = min(churn/n, sqrt 2 - 1), then takes the trapezoidal rule to rho_s:

    y_hat = y + sqrt(rho_hat^2 - rho^2) z,     y_s = y_hat + (rho_s - rho_hat) (eps_hat(y_hat) + eps_hat(Euler)) / 2.
"""

import math

import numpy as np
from jax.typing import ArrayLike

from scoresde.sde import SDE, on_host
from scoresde.solvers.table import Commit, Look, Nodes, Table


def heun(sde: SDE, grid: ArrayLike, churn: float = 0.0) -> Table:
    """Order 2 for the probability flow at churn = 0; two evaluations a step. rho_hat never exceeds that of t_max.

    Raises:
        ValueError: churn is negative.
    """
    if not churn >= 0:
        raise ValueError(f"churn must be at least 0, got {churn!r}")
    nodes = Nodes.of(sde, grid)
    n, t_hat, log_gain = len(nodes.t) - 1, nodes.t[:-1], math.log1p(min(churn / (len(nodes.t) - 1), math.sqrt(2) - 1))
    if churn:
        raised = on_host(sde.time, nodes.log_snr[:-1] - 2 * log_gain)
        t_hat = np.clip(raised, t_hat, sde.t_max)
    hat, rho = Nodes.at(sde, t_hat), np.exp(-nodes.log_snr / 2)
    rho_hat = np.exp(-hat.log_snr / 2)
    fresh = hat.alpha * np.sqrt(np.maximum(rho_hat**2 - rho[:-1] ** 2, 0))
    delta = rho[1:] - rho_hat

    def rows(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return np.stack([first, second], axis=1).reshape(2 * n, *first.shape[1:])

    one, zero, none = np.ones(n), np.zeros(n), np.zeros((n, 2))
    # The first row of a step looks at x_hat, the second at Euler's prediction; the next step's first row commits the
    # trapezoidal rule and its own fresh noise at once.
    prediction = np.stack([nodes.alpha[1:] * delta, zero], axis=1)
    look = Look(
        rows(t_hat, nodes.t[1:]),
        rows(one, nodes.alpha[1:] / hat.alpha),
        rows(none, prediction),
        np.zeros(2 * n),
        -rows(hat.sigma, nodes.sigma[1:]),
    )
    target = np.append(hat.alpha[1:], nodes.alpha[n])
    a = rows(np.insert(target / hat.alpha, 0, hat.alpha[0] / nodes.alpha[0])[:n], one)
    trapezoid = np.repeat((target * delta / 2)[:, None], 2, axis=1)
    A = rows(np.vstack([none[:1], trapezoid[:-1]]), none)
    commit = Commit(
        np.append(rows(t_hat, t_hat), nodes.t[n]),
        np.append(a, target[-1] / hat.alpha[-1]),
        np.vstack([A, trapezoid[-1:]]),
        np.append(rows(fresh, zero), 0.0),
        np.zeros(2 * n + 1),
    )
    return Table(look, commit, nodes.sigma[0])
