"""Time grids: decreasing float64 times from t_max to t_min, n steps and n + 1 nodes, computed on the host.

    uniform    t_i equally spaced
    log-SNR    log-SNR equally spaced (Lu et al. 2022, "DPM-Solver", section 3.3)
    Karras     (sigma/alpha)^(1/rho) equally spaced (Karras et al. 2022, equation 5)

A solver takes any decreasing sequence of times within [t_min, t_max]; these are the usual ones.
"""

import numpy as np
from jax.typing import ArrayLike

from scoresde.sde import SDE, on_host


def _positive(name: str, n: int) -> int:
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {n!r}")
    return int(n)


def _from_log_snr(sde: SDE, log_snr: np.ndarray) -> np.ndarray:
    grid = on_host(sde.time, log_snr)
    grid[0], grid[-1] = sde.t_max, sde.t_min
    return grid


def uniform_grid(sde: SDE, n: int) -> np.ndarray:
    """n steps of equal length in t, from t_max to t_min: (n + 1,)."""
    return np.linspace(sde.t_max, sde.t_min, _positive("n", n) + 1)


def log_snr_grid(sde: SDE, n: int) -> np.ndarray:
    """n steps of equal length in the log-SNR, from t_max to t_min: (n + 1,)."""
    start, end = on_host(sde.log_snr, np.array([sde.t_max, sde.t_min]))
    return _from_log_snr(sde, np.linspace(start, end, _positive("n", n) + 1))


def karras_grid(sde: SDE, n: int, rho: float = 7.0) -> np.ndarray:
    """n steps of equal length in (sigma/alpha)^(1/rho), from t_max to t_min: (n + 1,). rho > 0; rho = 7 is EDM's."""
    if not 0 < rho < np.inf:
        raise ValueError(f"rho must be positive and finite, got {rho!r}")
    start, end = np.exp(-0.5 * on_host(sde.log_snr, np.array([sde.t_max, sde.t_min])) / rho)
    return _from_log_snr(sde, -2 * rho * np.log(np.linspace(start, end, _positive("n", n) + 1)))


def check_grid(sde: SDE, grid: ArrayLike) -> np.ndarray:
    """The grid as float64, or a ValueError: it must hold at least two times and decrease within [t_min, t_max].

    A time outside by float32 rounding alone (relative 1e-6) is moved onto the end.
    """
    t = np.asarray(grid, dtype=np.float64)
    if t.ndim != 1 or t.size < 2:
        raise ValueError(f"a grid must be one-dimensional with at least two times, got shape {t.shape}")
    slack = 1e-6 * sde.t_max
    inside = (t >= sde.t_min - min(slack, 1e-6 * sde.t_min)) & (t <= sde.t_max + slack)
    if not np.all(inside):
        raise ValueError(
            f"grid times must lie in [t_min, t_max] = [{sde.t_min:g}, {sde.t_max:g}], got {t[~inside][0]:g}: "
            f"use a grid made for this SDE"
        )
    t = np.clip(t, sde.t_min, sde.t_max)
    if not np.all(np.diff(t) < 0):
        raise ValueError(f"a grid must decrease strictly from noise to data, got {t[:4].tolist()}...")
    return t
