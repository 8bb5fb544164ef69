"""UniPC: the multistep predictor in the data, and a corrector that reuses its evaluation; see ``exponential``.

The predictor UniP-p integrates the polynomial through the last p values of D, the corrector UniC-p that through these
and the value at the predicted point. The paper's coefficients solve sum_m r_m^(k-1) c_m = k! h phi_(k+1)/B(h), of which
these exact integrals are the solution: B cancels, and so does the "varying coefficients" form, which inverts the same
system (published codes drop terms of its corrector, which then has order 1). B matters only where one difference
D_m - D_0 at lambda_0 + r h is used and the paper takes its coefficient as B(h)/2r instead: in UniP-2 and UniC-1.
"""

from collections.abc import Callable

import numpy as np
from jax.typing import ArrayLike

from scoresde.sde import SDE
from scoresde.solvers.exponential import Form, check_order, corrected, kept, predictor
from scoresde.solvers.table import Nodes, Table, single_step


def bh1(h: float) -> float:
    """B_1(h) = h of UniPC, for the data."""
    return h


def bh2(h: float) -> float:
    """B_2(h) = 1 - e^(-h) of UniPC, for the data: UniP-2 is then DPM-Solver++(2M)."""
    return -float(np.expm1(-h))


def unipc(
    sde: SDE,
    grid: ArrayLike,
    order: int = 3,
    *,
    B: Callable[[float], float] | None = None,
    corrector: bool = True,
) -> Table:
    """UniPC: a predictor of ``order`` p = 1 to 4 and its corrector; convergence order p + 1, one evaluation a step.

    The last step is not corrected, which would cost an evaluation.
    Zhao et al., "UniPC" (2023), algorithm 1, with the coefficients of the exact integrals.

    Args:
        order: p, from 1 to 4.
        B: ``bh1`` or ``bh2`` (or another function h + O(h^2) of the step h in log(alpha/sigma)) for the paper's
            coefficient of a single difference; the exact integral by default.
        corrector: without it this is UniP, of convergence order p.

    Raises:
        ValueError: order is not a whole number from 1 to 4.
    """
    check_order("order", order, 1, 4)
    nodes = Nodes.of(sde, grid)
    lam = nodes.log_snr / 2
    form = Form.of(nodes[:-1], nodes[1:])

    def weights(i: int, past: np.ndarray) -> np.ndarray:
        if B is None or len(past) != 2:
            return form.weights(i, past)
        h = lam[i + 1] - lam[i]
        coefficient = nodes.alpha[i + 1] * B(h) / 2 * h / (past - lam[i])[past != lam[i]]
        return np.where(past == lam[i], form.weights(i, lam[i : i + 1]) - coefficient, coefficient)

    A = predictor(lam, order, weights)
    if corrector:
        A = corrected(lam, form.a, A, order, weights)
    c, d = kept(nodes[:-1])
    return single_step(nodes, a=form.a, A=A, s=0.0, c=c, d=d)
