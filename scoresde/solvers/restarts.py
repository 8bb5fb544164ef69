"""Tables joined from tables: restart sampling, and ancestral steps of any solver. In y = x/alpha and rho = sigma/alpha

    restart      the flow from rho_max to rho_min; where it reaches rho_low, K times: y <- y + sqrt(rho_high^2 -
                 rho_low^2) z, and the flow again from rho_high to rho_low;
    ancestral    the flow from rho_t to rho_down < rho_s, then y <- y + rho_up z with rho_up^2 + rho_down^2 = rho_s^2,
                 rho_up = min(rho_s, eta rho_s sqrt(1 - rho_s^2/rho_t^2)).

Each addition of noise takes a sample of p_t to one of p_s exactly, so neither changes the law in the limit.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jax.typing import ArrayLike

from scoresde.angle import rho_of
from scoresde.arrays import on_host
from scoresde.grids import check_grid, karras_grid
from scoresde.sde import SDE
from scoresde.solvers.dpm import dpm_solver_single
from scoresde.solvers.edm import heun
from scoresde.solvers.exponential import check_order
from scoresde.solvers.joining import join, lifted
from scoresde.solvers.table import Nodes, Table

Solver = Callable[[SDE, ArrayLike], Table]


def restart(
    sde: SDE,
    grid: ArrayLike,
    intervals: Sequence[tuple[float, float, int, int]],
    solver: Solver = heun,
    *,
    spacing: Callable[[SDE, int], np.ndarray] = karras_grid,
) -> Table:
    """Restart sampling: the grid by ``solver``, with parts of it re-noised and solved again.

    Xu et al., "Restart sampling for improving generative processes" (2023), algorithm 1.

    Args:
        intervals: (rho_low, rho_high, steps, repeats) of each, in sigma/alpha. rho_low stands for the nearest inner
            node of the grid in log rho; rho_high is above that node's and at most that of the grid's first time.
        solver: (sde, grid) -> table.
        spacing: the grid of an interval, (sde, steps) -> times from its t_max to its t_min.

    Raises:
        ValueError: an interval is empty or outside the grid, or two stand for the same node.
    """
    nodes = Nodes.of(sde, grid)
    rho = nodes.rho
    at: dict[int, tuple[Table, np.ndarray, np.ndarray, int]] = {}
    for low, high, steps, repeats in intervals:
        check_order("steps of an interval", steps, 1, 10**6)
        check_order("repeats of an interval", repeats, 1, 10**6)
        if not 0 < low < high <= rho[0] * (1 + 1e-6) or len(rho) < 3:
            raise ValueError(f"an interval must have 0 < rho_low < rho_high <= {rho[0]:.4g}, got ({low!r}, {high!r})")
        k = 1 + int(np.argmin(np.abs(np.log(rho[1:-1] / low))))
        t_high = float(np.minimum(on_host(sde.time, -2 * np.log(high)), nodes.t[0]))
        if not nodes.t[k] < t_high or k in at:
            raise ValueError(f"rho_low stands for the node at {rho[k]:.4g}: it must be below rho_high and taken once")
        again = solver(sde, spacing(dataclasses.replace(sde, t_min=float(nodes.t[k]), t_max=t_high), steps))
        top = Nodes.at(sde, np.array([t_high]))
        gain = top.alpha / nodes.alpha[k]
        at[k] = again, gain, np.sqrt(top.sigma**2 - gain**2 * nodes.sigma[k] ** 2), repeats
    ends = [0, *sorted(at), len(rho) - 1]
    tables: list[Table] = []
    for begin, end in zip(ends[:-1], ends[1:], strict=True):
        tables.append(solver(sde, nodes.t[begin : end + 1]))
        if end in at:
            again, gain, noise, repeats = at[end]
            for _ in range(repeats):
                tables[-1] = lifted(tables[-1], np.array([-1]), again.look.t[0], gain, noise)
                tables.append(again)
    return join(tables)


def ancestral_split(sde: SDE, grid: ArrayLike, solver: Solver = dpm_solver_single, *, eta: float = 1.0) -> Table:
    """A single-step solver made ancestral: each step goes below its target and returns by fresh noise.

    Weak order, measured on Gaussians: 2 with solvers of order 2, 1 with ``ddim``.

    With ``dpm_solver_single`` this is the "DPM++ 2S ancestral" of k-diffusion, with its noise prediction "DPM2
    ancestral", with ``ddim`` its "Euler ancestral". No step goes below t_min: there, the fresh noise is what is left.

    Args:
        solver: (sde, grid) -> table; called on grids of one step.
        eta: factor on the fresh noise, at least 0.

    Raises:
        ValueError: eta is negative.
    """
    if not 0 <= eta < np.inf:
        raise ValueError(f"eta must be at least 0 and finite, got {eta!r}")
    t = check_grid(sde, grid)
    nodes = Nodes.at(sde, t)
    rho = nodes.rho
    up = rho[1:] * np.minimum(1, eta * np.sqrt(-np.expm1(-np.diff(nodes.log_snr))))
    floor = rho_of(on_host(sde.log_snr, np.float64(sde.t_min)))
    down = np.where(up > 0, np.clip(np.sqrt(np.maximum(rho[1:] ** 2 - up**2, 0)), floor, rho[1:]), rho[1:])
    time = np.clip(on_host(sde.time, -2 * np.log(down)), sde.t_min, t[1:])
    below = Nodes.at(sde, np.where(down < rho[1:], time, t[1:]))
    gain = nodes.alpha[1:] / below.alpha
    noise = nodes.alpha[1:] * np.sqrt(np.maximum(rho[1:] ** 2 - down**2, 0))
    steps = []
    for i in range(len(gain)):
        step = solver(sde, np.array([t[i], below.t[i]]))
        steps.append(lifted(step, np.array([-1]), t[i + 1], gain[i : i + 1], noise[i]))
    return join(steps)
