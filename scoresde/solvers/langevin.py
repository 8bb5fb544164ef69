"""Predictor-corrector sampling (Song et al. 2021, algorithm 1): Langevin steps at each time, then a predictor step.

The Langevin step x <- x + eps score + sqrt(2 eps) z leaves p_t invariant as eps -> 0. Its size is

    eps = 2 (snr sigma_t)^2                    from the noise level (annealed Langevin), or
    eps = 2 (snr ||z|| / ||score||)^2          by the norm rule of Song et al., here per example.

Song et al. multiply the second by alpha_t^2/alpha_s^2 for VP, which is 1 up to the step size, and average the norms
over the batch, which ties its examples together; here neither is done. In few dimensions the norms of one example vary
too much for that rule (1/||score||^2 has no mean in two): prefer the first.
"""

from collections.abc import Callable

import jax
import numpy as np
from jax.typing import ArrayLike

from scoresde.sde import SDE
from scoresde.solvers.euler import reverse_diffusion
from scoresde.solvers.table import Commit, Look, Nodes, Table


def predictor_corrector(
    sde: SDE,
    grid: ArrayLike,
    predictor: Callable[[SDE, ArrayLike], Table] = reverse_diffusion,
    snr: float = 0.16,
    corrector_steps: int = 1,
    *,
    norm_rule: bool = False,
) -> Table:
    """``corrector_steps`` Langevin steps before each step of ``predictor``; (1 + corrector_steps) evaluations a step.

    Args:
        predictor: a solver of one evaluation a step: ``reverse_diffusion``, ``euler_maruyama``, ``ancestral``...
        snr: signal-to-noise ratio of the Langevin step, positive; 0.16 for VE images.
        norm_rule: choose the step by Song's rule from the norms of noise and score instead of from sigma_t.

    Raises:
        ValueError: an argument is out of range, or the predictor takes several evaluations a step.
    """
    if not 0 < snr < np.inf:
        raise ValueError(f"snr must be positive and finite, got {snr!r}")
    if not isinstance(corrector_steps, int | np.integer) or corrector_steps < 0:
        raise ValueError(f"corrector_steps must be a whole number of at least 0, got {corrector_steps!r}")
    nodes, table = Nodes.of(sde, grid), predictor(sde, grid)
    if table.num_evals != len(nodes.t) - 1 or table.commit.A.shape[1] != 1 or np.any(table.look.B):
        raise ValueError("predictor must take one evaluation a step, for example reverse_diffusion or ancestral")
    t, sigma = nodes.t[:-1], nodes.sigma[:-1]
    n, one, zero, rows = len(t), np.ones_like(t), np.zeros_like(t), corrector_steps
    # With h = eps_hat = -sigma score: x + eps score = x - (eps/sigma) h.
    eps = 2 * (snr * sigma) ** 2
    langevin = Commit(t, one, -(eps / sigma)[:, None], np.sqrt(2 * eps), norm_rule * one)
    look = Look(t, one, np.zeros((n, 1)), zero, -sigma)

    def interleave(*parts: np.ndarray) -> np.ndarray:
        return np.stack(parts, axis=1).reshape(len(parts) * n, *parts[0].shape[1:])

    step = jax.tree.map(lambda v: v[:-1], table.commit)
    commit = jax.tree.map(interleave, step, *[langevin] * rows)
    commit = jax.tree.map(lambda v, last: np.concatenate([v, last[-1:]]), commit, table.commit)
    return Table(jax.tree.map(interleave, *[look] * rows, table.look), commit, table.start_std)
