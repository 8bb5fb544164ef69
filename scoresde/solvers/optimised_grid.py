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

from scoresde.arrays import on_host
from scoresde.grids import log_snr_grid
from scoresde.score import Score
from scoresde.sde import SDE
from scoresde.solvers.table import Table, integrate
from scoresde.solvers.unified import unipc

FIRST_SIZE = 0.3  # of the simplex: a third more or less in the length of some steps


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
    solver: Callable[[SDE, np.ndarray], Table],
    n: int,
    x: ArrayLike,
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
        solver: ``ss.unipc``, or ``functools.partial(ss.deis, order=4)``, ...: any (sde, grid) -> table without noise.
        n: the number of steps.
        x: (B, *event) starts at t_max, for example 256 of ``sde.prior_sample(key, (256, 2))``. In float32 differences
            below about 1e-6 are rounding: ask for less only with float64 states under ``jax_enable_x64``.
        reference: (B, *event) the ends at t_min to come close to. By default UniPC-3 in 8 n steps of ``log_snr_grid``:
            of order 4, some thousand times closer to the exact flow.
        objective: (x, reference) -> scalar to minimise; by default ``mean_distance``.
        base: the grid to start from and to change, from t_max to t_min; ``ss.angle_grid`` for ``ss.adams``.
        terms: K, the number of coefficients; at most n - 1 are used.
        evaluations: how often the objective may be computed.

    Raises:
        ValueError: the solver draws noise, the objective is not finite at the start, or a count is not positive.
    """
    for name, value in (("terms", terms), ("evaluations", evaluations)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    key, x = jax.random.key(0), jnp.asarray(x, jnp.result_type(float, x))  # no noise is drawn from the key
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
    best, least = (start, start_error) if n == 1 else _nelder_mead(error, start, start_error, evaluations - 1)
    return OptimisedGrid(smooth_grid(sde, n, best, base=base), least, start_error, best)


def _nelder_mead(
    f: Callable[[np.ndarray], float], start: np.ndarray, start_value: float, evaluations: int
) -> tuple[np.ndarray, float]:
    """The least value of f found by a simplex that starts at ``start`` and moves by the four steps of the paper."""
    left = evaluations

    def value(point: np.ndarray) -> float:
        nonlocal left
        left -= 1
        return f(point) if left >= 0 else np.inf

    points = np.vstack([start, start + FIRST_SIZE * np.eye(len(start))])
    values = np.array([start_value, *map(value, points[1:])])
    while left > 0 and np.ptp(points, axis=0).max() > 1e-3:
        order = np.argsort(values, kind="stable")
        points, values = points[order], values[order]
        centre = points[:-1].mean(axis=0)
        away = centre - points[-1]
        trial, trial_value = centre + away, value(centre + away)
        if trial_value < values[0]:
            further = value(centre + 2 * away)
            if further < trial_value:
                trial, trial_value = centre + 2 * away, further
        elif trial_value >= values[-2]:
            side = 0.5 if trial_value < values[-1] else -0.5
            trial, trial_value = centre + side * away, value(centre + side * away)
        if trial_value < values[-1]:
            points[-1], values[-1] = trial, trial_value
        else:
            points[1:] = (points[:1] + points[1:]) / 2
            values[1:] = [value(point) for point in points[1:]]
    return points[np.argmin(values)], float(np.min(values))
