"""The best grid of n steps for a given score and solver, by measurement.

A grid is given by the lengths of its steps in the log-SNR, of which only a few smooth features matter:

    length_i  proportional to  base_i exp(sum_k c_k cos(pi k (i + 1/2)/n)),      i = 0, ..., n - 1,   k = 1, ..., K,

scaled to reach from t_max to t_min. Every c gives a valid grid, c = 0 the base: ``log_snr_grid`` or another. The K
numbers are chosen to bring the solver's end points closest to those of a much finer solve from the same starts. Tables
are made on the host, so no gradient passes through them; the simplex of Nelder and Mead (1965) needs none, and all
tables of one shape share one compiled loop. A grid follows the regions where the score changes fast: it serves other
starts, and other numbers of steps near n, of the same score.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from scoresde.arrays import on_host, widened
from scoresde.checks import whole
from scoresde.grids import log_snr_grid
from scoresde.score import Score
from scoresde.sde import SDE
from scoresde.solvers.table import Table, integrate
from scoresde.solvers.unified import unipc

FIRST_SIZE = 0.3  # of the simplex: a third more or less in the length of some steps
CLOSE = 1e-3  # between its corners in each coefficient: where the search ends


@dataclasses.dataclass(frozen=True)
class OptimisedGrid:
    """A grid and what it is worth.

    Attributes:
        grid: (n + 1,) decreasing times.
        error: the objective with this grid, on the starts that it was chosen for.
        start_error: the objective with the base grid.
        coefficients: (K,) the c_k of the step lengths, for ``smooth_grid``.
    """

    grid: np.ndarray
    error: float
    start_error: float
    coefficients: np.ndarray


Grid = Callable[[SDE, int], np.ndarray]


def smooth_grid(sde: SDE, n: int, coefficients: ArrayLike, *, base: Grid = log_snr_grid) -> np.ndarray:
    """n steps from t_max to t_min whose log-SNR lengths are the base's times exp(sum_k c_k cos(pi k (i + 1/2)/n)).

    Scaled to reach from end to end: (n + 1,). A grid optimised for one n carries over to another:
    ``smooth_grid(sde, 30, optimised.coefficients)``.

    Raises:
        ValueError: n is not a positive whole number, or the coefficients are not finite numbers of shape (K,).
    """
    c, grid = np.asarray(coefficients, np.float64), base(sde, n)
    if c.ndim != 1 or not np.all(np.isfinite(c)):
        raise ValueError(f"coefficients must be finite numbers of shape (K,), got {coefficients}")
    wave = np.cos(np.pi * np.arange(1, len(c) + 1)[:, None] * (np.arange(n) + 0.5)[None] / n)
    log_snr = on_host(sde.log_snr, grid)
    way = np.cumsum(np.diff(log_snr) * np.exp(c @ wave))
    inner = on_host(sde.time, log_snr[0] + (log_snr[-1] - log_snr[0]) * way[:-1] / way[-1])
    return np.concatenate([grid[:1], inner, grid[-1:]])


def mean_distance(x: jax.Array, reference: jax.Array) -> jax.Array:
    """The Euclidean distance between the states (B, *event) of each example, averaged over the examples."""
    return jnp.mean(jnp.linalg.norm((x - reference).reshape(len(x), -1), axis=1))


def optimise_grid(
    sde: SDE,
    score: Score,
    x: ArrayLike,
    solver: Callable[[SDE, np.ndarray], Table],
    n: int,
    *,
    reference: ArrayLike | None = None,
    objective: Callable[[jax.Array, jax.Array], jax.Array] = mean_distance,
    base: Grid = log_snr_grid,
    terms: int = 5,
    evaluations: int = 200,
) -> OptimisedGrid:
    """The n-step grid on which a deterministic solver comes closest to the exact flow.

    Args:
        sde: the SDE.
        score: an exact score or a network; called n times per evaluation of the objective.
        x: (B, *event) starts at t_max, for example 256 of ``sde.prior_sample(key, (256, 2))``. In float32 differences
            below about 1e-6 are rounding: ask for less only with float64 states under ``jax_enable_x64``.
        solver: ``ss.unipc``, or ``functools.partial(ss.deis, order=4)``, ...: any (sde, grid) -> table without noise.
        n: the number of steps.
        reference: (B, *event) the ends at t_min to come close to. By default UniPC-3 in 8 n steps of ``log_snr_grid``:
            of order 4, some thousand times closer to the exact flow.
        objective: (x, reference) -> scalar to minimise; by default ``mean_distance``.
        base: the grid to start from and to change, from t_max to t_min; ``ss.angle_grid`` for ``ss.adams``.
        terms: K, the number of coefficients; at most n - 1 are used.
        evaluations: how often the objective may be computed.

    Raises:
        ValueError: the solver draws noise, the objective is not finite at the start, or a count is not positive.
    """
    from scipy.optimize import minimize  # slow to import

    terms, evaluations = whole("terms", terms), whole("evaluations", evaluations)
    key, x = jax.random.key(0), widened(jnp.asarray(x, jnp.result_type(float, x)))  # no noise is drawn from the key
    if np.any(solver(sde, base(sde, n)).commit.s):
        raise ValueError("solver must draw no noise, such as ss.unipc, ss.deis or ss.ddim with eta = 0")
    if reference is None:
        reference = integrate(key, score, unipc(sde, log_snr_grid(sde, 8 * n), 3), x)
    target = jnp.asarray(reference, x.dtype)

    def error(c: np.ndarray) -> float:
        value = float(objective(integrate(key, score, solver(sde, smooth_grid(sde, n, c, base=base)), x), target))
        return value if np.isfinite(value) else np.inf

    start = np.zeros(min(terms, n - 1))
    start_error = error(start)
    if not np.isfinite(start_error):
        raise ValueError("objective must be finite on the base grid: check the score, the starts and the reference")
    if n == 1:
        return OptimisedGrid(base(sde, n), start_error, start_error, start)
    simplex = np.vstack([start, start + FIRST_SIZE * np.eye(len(start))])
    options = {"initial_simplex": simplex, "maxfev": evaluations, "xatol": CLOSE, "fatol": np.inf}
    best = minimize(error, start, method="Nelder-Mead", options=options)
    return OptimisedGrid(smooth_grid(sde, n, best.x, base=base), float(best.fun), start_error, best.x)
