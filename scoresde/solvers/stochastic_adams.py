"""SA-Solver: stochastic Adams methods for the reverse SDE of any noise level tau(t); see ``exponential``.

Every tau(t) >= 0 gives a reverse SDE with the same marginals. With tau constant in each step the solution in the data
is exact but for D, which the predictor takes from the polynomial through its last values and the corrector from that
through these and the value at the predicted point, with the same noise z in both.
"""

from collections.abc import Callable

import numpy as np
from jax.typing import ArrayLike

from scoresde.sde import SDE
from scoresde.solvers.exponential import Form, check_order, corrected, kept, predictor
from scoresde.solvers.table import Nodes, Table, single_step


def sa_solver(
    sde: SDE,
    grid: ArrayLike,
    order: int = 3,
    *,
    tau: float | Callable[[float], float] = 1.0,
    corrector: int = 3,
) -> Table:
    """SA-Solver, one evaluation a step. Strong error O(tau h + h^p); weak order 2, measured on Gaussians.

    At tau = 0 it has order p = ``order``, or one more with a corrector of the same number (then it is ``unipc``); at
    tau = 1, order 1 and without corrector it is ``ancestral``. The last step is not corrected.
    Xue et al., "SA-Solver: stochastic Adams solver for fast sampling of diffusion models" (2023), algorithm 1.

    Args:
        order: values of D in the predictor, from 1 to 4.
        tau: noise level, at least 0: a number, or a function of t, taken where each step starts.
        corrector: values of D before the new one in the corrector, from 1 to 4, or 0 for none.

    Raises:
        ValueError: an argument is out of range.
    """
    check_order("order", order, 1, 4)
    check_order("corrector", corrector, 0, 4)
    nodes = Nodes.of(sde, grid)
    level = np.array([float(tau(t) if callable(tau) else tau) for t in nodes.t[:-1]])
    wrong = ~(np.isfinite(level) & (level >= 0))
    if np.any(wrong):
        raise ValueError(f"tau must be at least 0 and finite, got {level[wrong][0]}")
    lam = nodes.log_snr / 2
    form = Form.of(nodes[:-1], nodes[1:], tau=level)
    A = predictor(lam, order, form.weights)
    if corrector:
        A = corrected(lam, form.a, A, corrector, form.weights)
    c, d = kept(nodes[:-1])
    return single_step(nodes, a=form.a, A=A, s=form.s, c=c, d=d)
