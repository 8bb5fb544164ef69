"""Time grids: decreasing float64 times from t_max to t_min, n steps and n + 1 nodes, computed on the host.

    uniform           t equally spaced
    quadratic         sqrt(t) equally spaced (Song, Meng and Ermon 2021, "DDIM", appendix D.2)
    beta              t at quantiles of a Beta law, which crowds both ends (Lee et al. 2024, "Beta sampling")
    log-SNR           log(sigma/alpha) equally spaced (Lu et al. 2022, "DPM-Solver", section 3.3); others call the same
                      grid exponential, or polyexponential with rho = 1
    polyexponential   (log(sigma/alpha) - its value at t_min)^(1/rho) equally spaced
    Karras            (sigma/alpha)^(1/rho) equally spaced (Karras et al. 2022, equation 5)
    angle             a share of the progress in log-SNR, the rest in arctan(sigma/(alpha rho)), equally spaced
    shifted           sigma/(shift alpha + sigma) equally spaced (Esser et al. 2024, equation 23)
    discrete          the times of a model trained on so many levels

The shift. Flow matching (alpha = 1 - t, sigma = t) has sigma/alpha = t/(1 - t). The map t' = s t/(1 + (s - 1) t) has
1 - t' = (1 - t)/(1 + (s - 1) t), hence t'/(1 - t') = s t/(1 - t): it multiplies sigma/alpha by s, and so it is defined
for every SDE. A grid that is uniform in t before the shift has sigma/alpha = s t/(1 - t), that is t = sigma/(s alpha +
sigma), equally spaced.

A solver takes any decreasing sequence of times within [t_min, t_max]; these are the usual ones.
"""

from collections.abc import Callable

import numpy as np
from jax.typing import ArrayLike

from scoresde.angle import angle_of
from scoresde.arrays import on_host
from scoresde.checks import whole
from scoresde.sde import SDE

ROUNDING = 1e-6  # relative: of a float32 copy of a time


def _positive_real(name: str, value: float) -> None:
    if not 0 < value < np.inf:
        raise ValueError(f"{name} must be positive and finite, got {value!r}")


def _ends(sde: SDE) -> np.ndarray:
    """The log-SNR at t_max and at t_min."""
    return on_host(sde.log_snr, np.array([sde.t_max, sde.t_min]))


def _from_log_snr(sde: SDE, log_snr: np.ndarray) -> np.ndarray:
    grid = on_host(sde.time, log_snr)
    grid[0], grid[-1] = sde.t_max, sde.t_min
    return grid


def uniform_grid(sde: SDE, n: int) -> np.ndarray:
    """n steps of equal length in t, from t_max to t_min: (n + 1,)."""
    return np.linspace(sde.t_max, sde.t_min, whole("n", n) + 1)


def quadratic_grid(sde: SDE, n: int) -> np.ndarray:
    """n steps of equal length in sqrt(t), from t_max to t_min: (n + 1,)."""
    grid = np.linspace(np.sqrt(sde.t_max), np.sqrt(sde.t_min), whole("n", n) + 1) ** 2
    grid[0], grid[-1] = sde.t_max, sde.t_min
    return grid


def log_snr_grid(sde: SDE, n: int) -> np.ndarray:
    """n steps of equal length in the log-SNR, from t_max to t_min: (n + 1,)."""
    start, end = _ends(sde)
    return _from_log_snr(sde, np.linspace(start, end, whole("n", n) + 1))


def polyexponential_grid(sde: SDE, n: int, rho: float = 1.0) -> np.ndarray:
    """n steps: log(sigma/alpha) from its least to its greatest value as (1 - i/n)^rho: (n + 1,). rho > 0.

    rho = 1 is ``log_snr_grid``; a larger rho spends more steps at small noise.
    """
    _positive_real("rho", rho)
    start, end = _ends(sde)
    return _from_log_snr(sde, end + (start - end) * np.linspace(1, 0, whole("n", n) + 1) ** rho)


def karras_grid(sde: SDE, n: int, rho: float = 7.0) -> np.ndarray:
    """n steps of equal length in (sigma/alpha)^(1/rho), from t_max to t_min: (n + 1,). rho > 0; rho = 7 is EDM's."""
    _positive_real("rho", rho)
    start, end = np.exp(-0.5 * _ends(sde) / rho)
    return _from_log_snr(sde, -2 * rho * np.log(np.linspace(start, end, whole("n", n) + 1)))


def angle_grid(sde: SDE, n: int, rho: float = 0.3, share: float = 0.3) -> np.ndarray:
    """n steps of equal length in share p + (1 - share) q, from t_max to t_min: (n + 1,). rho > 0, 0 < share <= 1.

    p and q are the shares of the way made in the log-SNR and in arctan(sigma/(alpha rho)). The angle spends its steps
    where sigma/alpha is near rho, best somewhat below the distance between modes; p keeps the ratios sigma/alpha of
    the last steps bounded. Made for ``ss.adams``; share = 1 is ``log_snr_grid``.
    """
    _positive_real("rho", rho)
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share!r}")
    ends = _ends(sde)
    start, end = angle_of(ends, rho)
    way = np.linspace(0, 1, whole("n", n) + 1)
    low, high = np.full(n + 1, ends[0]), np.full(n + 1, ends[1])
    for _ in range(60):
        middle = (low + high) / 2
        p = (middle - ends[0]) / (ends[1] - ends[0])
        q = (start - angle_of(middle, rho)) / (start - end)
        below = share * p + (1 - share) * q < way
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return _from_log_snr(sde, (low + high) / 2)


def shifted_grid(sde: SDE, n: int, shift: float = 3.0) -> np.ndarray:
    """n steps of equal length in sigma/(shift alpha + sigma), from t_max to t_min: (n + 1,). shift > 0.

    For ``RectifiedFlow`` the uniform grid carried through t -> shift t/(1 + (shift - 1) t), with the ends kept; a
    larger shift spends more steps at large noise.
    """
    _positive_real("shift", shift)
    start, end = 1 / (1 + shift * np.exp(0.5 * _ends(sde)))
    t = np.linspace(start, end, whole("n", n) + 1)
    return _from_log_snr(sde, 2 * (np.log1p(-t) - np.log(t) - np.log(shift)))


def beta_grid(sde: SDE, n: int, a: float = 0.6, b: float = 0.6) -> np.ndarray:
    """n steps between the quantiles 1 - i/n of Beta(a, b) in t, from t_max to t_min: (n + 1,). a, b > 0.

    a small spends more steps near t_min, b small near t_max; a = b = 1 is ``uniform_grid``.
    """
    _positive_real("a", a)
    _positive_real("b", b)
    from scipy.special import betaincinv  # slow to import

    quantile = betaincinv(a, b, np.linspace(1, 0, whole("n", n) + 1))
    grid = sde.t_min + (sde.t_max - sde.t_min) * quantile
    grid[0], grid[-1] = sde.t_max, sde.t_min
    return grid


def trailing_levels(n: int, levels: int) -> np.ndarray:
    """n of the levels 1 to T, decreasing from T: T i/n for i = n to 1, rounded (halves to the even neighbour)."""
    return np.round(levels * np.arange(n, 0, -1) / n).astype(int)


def leading_levels(n: int, levels: int) -> np.ndarray:
    """n of the levels 1 to T, decreasing to 1 in steps of T/n rounded down; the noisiest levels may be left out."""
    return 1 + (levels // n) * np.arange(n - 1, -1, -1)


def linspace_levels(n: int, levels: int) -> np.ndarray:
    """n of the levels 1 to T, decreasing from T to 1, equally spaced and rounded (halves to the even neighbour)."""
    return np.round(np.linspace(levels - 1, 0, n)).astype(int) + 1


def discrete_grid(
    sde: SDE, n: int, *, levels: int | None = None, spacing: Callable[[int, int], np.ndarray] = trailing_levels
) -> np.ndarray:
    """n levels of a model trained on so many noise levels: it is asked at the times t_max k/levels only.

    Level k = 1, ..., levels is the time t_max k/levels. Of an SDE that begins below its first level, n steps: the last
    one goes from the least chosen level to t_min. Of a chain, ``interop.DiscreteVP``, level 1 is t_min. If it is among
    those chosen the grid ends with it, in n - 1 steps, and ``with_denoising`` asks the model there: all n levels are
    asked, and with ``ancestral`` and n = levels that is DDPM's sampler (Ho et al. 2020, algorithm 2, whose last step
    returns the mean).

    Args:
        levels: how many levels the model was trained on, by default those of a chain, else 1000.
        spacing: ``trailing_levels``, ``leading_levels``, ``linspace_levels`` (names of Lin et al. 2024, table 2) or
            any function (n, levels) -> n decreasing whole numbers in [1, levels]. Only the first and third start at
            the noisiest level; the second starts the grid inside [t_min, t_max].

    Returns:
        (n + 1,) times, or (n,) that end with level 1 of a chain.

    Raises:
        ValueError: n exceeds levels, the first level is below t_min, n = 1 is level 1 alone, or the chosen levels are
            not as above.
    """
    levels = whole("levels", getattr(sde, "levels", 1000) if levels is None else levels)
    if whole("n", n) > levels:
        raise ValueError(f"n must be at most levels = {levels}, got {n}")
    if sde.t_max / levels < (1 - ROUNDING) * sde.t_min:
        raise ValueError(f"levels must be at most t_max/t_min = {sde.t_max / sde.t_min:.4g} for this SDE, got {levels}")
    k = np.asarray(spacing(n, levels))
    if k.shape != (n,) or k.dtype.kind not in "iu" or np.any(np.diff(k) >= 0) or k[0] > levels or k[-1] < 1:
        raise ValueError(f"spacing must return {n} decreasing whole numbers in [1, {levels}], got {k.tolist()[:4]}...")
    times = sde.t_max * (k / levels)
    if times[-1] > (1 + ROUNDING) * sde.t_min:
        return np.append(times, sde.t_min)
    if n == 1:
        raise ValueError("level 1 alone is no grid: take more levels, or a spacing that begins above it")
    return np.append(times[:-1], sde.t_min)


def check_grid(sde: SDE, grid: ArrayLike) -> np.ndarray:
    """The grid as float64, or a ValueError: it must hold at least two times and decrease within [t_min, t_max].

    A time outside by float32 rounding alone (relative 1e-6) is moved onto the end.
    """
    t = np.asarray(grid, dtype=np.float64)
    if t.ndim != 1 or t.size < 2:
        raise ValueError(f"a grid must be one-dimensional with at least two times, got shape {t.shape}")
    inside = (t >= (1 - ROUNDING) * sde.t_min) & (t <= (1 + ROUNDING) * sde.t_max)
    if not np.all(inside):
        raise ValueError(
            f"grid times must lie in [t_min, t_max] = [{sde.t_min:g}, {sde.t_max:g}], got {t[~inside][0]:g}: "
            f"use a grid made for this SDE"
        )
    t = np.clip(t, sde.t_min, sde.t_max)
    if not np.all(np.diff(t) < 0):
        raise ValueError(f"a grid must decrease strictly from noise to data, got {t[:4].tolist()}...")
    return t
