"""SEEDS: single-step exponential integrators of the reverse SDE; see ``exponential`` for its exact solution.

With z_1 and z_2 the noise of the two halves of a step from t to s, r half way in the log-SNR, and one value (the noise,
or D) in each integral, from x_t, from x_t to x_r and then with the value at x_r over the whole step:

    order 1    x_s = a x_t + W v(x_t, t) + s z,
    order 2    x_r = a_1 x_t + W_1 v(x_t, t) + s_1 z_1,     x_s = a x_t + W v(x_r, r) + (a/a_1) s_1 z_1 + s_2 z_2.

z_1 enters both, as one Brownian path does.
"""

import numpy as np
from jax.typing import ArrayLike

from scoresde.sde import SDE
from scoresde.solvers.dpm import between
from scoresde.solvers.exponential import Form, check_order, kept
from scoresde.solvers.table import Commit, Look, Nodes, Table, single_step, stages


def seeds(sde: SDE, grid: ArrayLike, order: int = 2, *, tau: float = 1.0, noise_prediction: bool = True) -> Table:
    """SEEDS-1 or SEEDS-2: ``order`` evaluations a step, of that weak order; at tau = 0 the same for the flow.

    Gonzalez et al., "SEEDS: exponential SDE solvers for fast high-quality sampling from diffusion models" (2023),
    algorithms 1 and 2. In the noise its own noise grows as e^h: it needs small steps.

    Args:
        order: 1 or 2.
        tau: noise level of the reverse SDE, at least 0.
        noise_prediction: integrate the noise, as the paper does; otherwise D, which is stable for large steps:
            order 1 at tau = 1 is then ``ancestral`` and order 2 the two-stage "DPM-Solver++ SDE" of k-diffusion.

    Raises:
        ValueError: order is not 1 or 2, or tau is negative or infinite.
    """
    check_order("order", order, 1, 2)
    if not 0 <= tau < np.inf:
        raise ValueError(f"tau must be at least 0 and finite, got {tau!r}")
    nodes = Nodes.of(sde, grid)
    start, end = nodes[:-1], nodes[1:]
    whole = Form.of(start, end, noise=noise_prediction, tau=tau)
    c, d = kept(start, noise=noise_prediction)
    if order == 1:
        return single_step(nodes, a=whole.a, A=whole.constant(), s=whole.s, c=c, d=d)
    middle = between(sde, start, end, 0.5)
    first = Form.of(start, middle, noise=noise_prediction, tau=tau)
    second = Form.of(middle, end, noise=noise_prediction, tau=tau)
    none = np.zeros(len(start.t))
    # Row 1 commits x_r; the next takes back what v(x_t, t) gave to it, carried by a_2 = a/a_1.
    first_row = np.stack([first.constant(), none], 1)
    second_row = np.stack([whole.constant(), -second.a * first.constant()], 1)
    c_middle, d_middle = kept(middle, noise=noise_prediction)
    look = Look(
        np.stack([start.t, middle.t], 1),
        np.ones((len(none), 2)),
        np.zeros((len(none), 2, 2)),
        np.stack([c, c_middle], 1),
        np.stack([d, d_middle], 1),
    )
    commit = Commit(
        np.stack([middle.t, end.t], 1),
        np.stack([first.a, second.a], 1),
        np.stack([first_row, second_row], 1),
        np.stack([first.s, second.s], 1),
        np.zeros((len(none), 2)),
    )
    return stages(nodes, look, commit)
