"""Second-order Runge-Kutta methods with churn: algorithm 2 of Karras et al. (2022), for any SDE.

In y = x/alpha and rho = sigma/alpha the probability flow is dy/drho = eps_hat. A step first raises the noise from rho
to rho_hat = (1 + gamma) rho by fresh noise, gamma = min(churn/n, sqrt 2 - 1) where rho is in [s_min, s_max], then looks
a second time a share ``alpha`` of the way along Euler's step:

    y_hat = y + s_noise sqrt(rho_hat^2 - rho^2) z,            rho_mid = rho_hat + alpha (rho_s - rho_hat),
    y_s = y_hat + (rho_s - rho_hat) [(1 - 1/(2 alpha)) eps_hat(y_hat) + 1/(2 alpha) eps_hat(Euler's y at rho_mid)].
"""

import math

import numpy as np
from jax.typing import ArrayLike

from scoresde.arrays import on_host
from scoresde.sde import SDE
from scoresde.solvers.exponential import kept
from scoresde.solvers.joining import lifted
from scoresde.solvers.table import Commit, Look, Nodes, Table, stages


def heun(
    sde: SDE,
    grid: ArrayLike,
    churn: float = 0.0,
    *,
    s_min: float = 0.0,
    s_max: float = math.inf,
    s_noise: float = 1.0,
    alpha: float = 1.0,
) -> Table:
    """Order 2 for the probability flow at churn = 0; two evaluations a step. rho_hat never exceeds that of t_max.

    Made for many steps of ``karras_grid``. With few, rho falls by large factors in a step and the mean of the slopes at
    its ends is far off, most of all on ``log_snr_grid``: the mean distance from the exact flow of a ring of std 0.3
    (VP) is 79, 1.2 and 0.22 there at 4, 10 and 20 evaluations, 3.4, 0.86 and 0.21 on ``karras_grid``. The midpoint rule
    (alpha = 1/2) gives 0.53, 0.054 and 0.012 on the latter, multistep solvers less: experiments/benchmarks/solvers.md.

    Args:
        churn: S_churn of Karras et al. (2022), at least 0.
        s_min: with ``s_max`` the range of rho = sigma/alpha in which noise is added.
        s_max: see ``s_min``.
        s_noise: factor on the standard deviation of the added noise.
        alpha: 1 for Heun's method, 2/3 for Ralston's, 1/2 for the midpoint rule; in (0, 1] (their appendix B, table 3).

    Raises:
        ValueError: an argument is out of range.
    """
    if not churn >= 0:
        raise ValueError(f"churn must be at least 0, got {churn!r}")
    if not 0 <= s_min <= s_max:
        raise ValueError(f"s_min and s_max must satisfy 0 <= s_min <= s_max, got {s_min!r} and {s_max!r}")
    if not 0 <= s_noise < math.inf:
        raise ValueError(f"s_noise must be at least 0 and finite, got {s_noise!r}")
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha must be in (0, 1], got {alpha!r}")
    nodes = Nodes.of(sde, grid)
    start, end = nodes[:-1], nodes[1:]
    n, rho = len(start.t), nodes.rho
    gain = np.where((rho >= s_min) & (rho <= s_max), min(churn / n, math.sqrt(2) - 1), 0.0)[:-1]
    raised = np.clip(on_host(sde.time, start.log_snr - 2 * np.log1p(gain)), start.t, sde.t_max)
    hat = Nodes.at(sde, np.where(gain > 0, raised, start.t))
    rho_hat = hat.rho
    fresh = s_noise * hat.alpha * np.sqrt(np.maximum(rho_hat**2 - rho[:-1] ** 2, 0))
    delta = rho[1:] - rho_hat
    inner = np.clip(on_host(sde.time, -2 * np.log(rho_hat + alpha * delta)), end.t, hat.t)
    middle = Nodes.at(sde, end.t if alpha == 1 else inner)

    zero, one, none = np.zeros((n, 2)), np.ones(n), np.zeros(n)
    euler = middle.alpha * (middle.rho - rho_hat)
    (c, d), (c_mid, d_mid) = kept(hat, noise=True), kept(middle, noise=True)
    look = Look(
        np.stack([hat.t, middle.t], 1),
        np.stack([one, middle.alpha / hat.alpha], 1),
        np.stack([zero, np.stack([euler, none], 1)], 1),
        np.stack([c, c_mid], 1),
        np.stack([d, d_mid], 1),
    )
    slope = (end.alpha * delta)[:, None] * np.array([1 / (2 * alpha), 1 - 1 / (2 * alpha)])
    commit = Commit(
        np.stack([hat.t, end.t], 1),
        np.stack([one, end.alpha / hat.alpha], 1),
        np.stack([zero, slope], 1),
        zero,
        zero,
    )
    return lifted(stages(nodes, look, commit), np.arange(0, 2 * n, 2), hat.t, hat.alpha / start.alpha, fresh)
