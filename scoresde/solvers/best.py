"""A good fixed-step solver of the probability flow for every budget of evaluations, by measurement.

``python -m experiments.benchmarks.best_solver`` measures every deterministic solver of one evaluation a step, on the
usual grids, for five SDEs and four mixtures with exact scores, and prints how the rules below do beside them. There
``adams`` of order 4 is the best from 16 evaluations on, by far. The orders here are lower: a trained network is rougher
than an exact score, and on one (digits, VE) order 4 lost to ``deis``, where these rules held their own.
"""

import numpy as np

from scoresde.grids import angle_grid
from scoresde.sde import SDE
from scoresde.solvers.exponential_adams import adams
from scoresde.solvers.table import Table

# From so many evaluations on: the order of ``adams`` and whether it has a corrector.
BEST = (
    (1, 3, False),
    (8, 3, True),
    (16, 2, True),
    (40, 3, True),
)
RHO, SHARE = 0.3, 0.5  # of ``angle_grid``, for data of scale 1


def best_solver(sde: SDE, num_evals: int, *, sigma_data: float = 1.0) -> Table:
    """A solver and grid that are accurate over SDEs, data and networks, of exactly ``num_evals`` evaluations.

    Deterministic: ``adams`` on ``angle_grid`` by the rules of ``BEST``, from t_max to t_min.

    Args:
        sde: the SDE.
        num_evals: the number of network evaluations, at least 1; the rules were measured from 5 to 50.
        sigma_data: scale of the data, best their standard deviation.

    Raises:
        ValueError: num_evals is not a whole number of at least 1, or sigma_data is not positive.
    """
    if isinstance(num_evals, bool) or not isinstance(num_evals, int | np.integer) or num_evals < 1:
        raise ValueError(f"num_evals must be a whole number of at least 1, got {num_evals!r}")
    if not 0 < sigma_data < np.inf:
        raise ValueError(f"sigma_data must be positive and finite, got {sigma_data!r}")
    _, order, corrector = next(rule for rule in reversed(BEST) if rule[0] <= num_evals)
    grid = angle_grid(sde, num_evals, RHO * sigma_data, SHARE)
    return adams(sde, grid, order, corrector=corrector, sigma_data=sigma_data)
