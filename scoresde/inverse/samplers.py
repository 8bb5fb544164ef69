"""Samplers of the posterior that are a score of this package under a table of their own.

    RePaint    replacement under ancestral steps; where a stretch of j steps ends, x is made as noisy as at its start,
               x <- (alpha_t/alpha_s) x + sqrt(sigma_t^2 - (alpha_t/alpha_s)^2 sigma_s^2) z, and the stretch run again
    DiffPIR    x_s = alpha_s D + sigma_s (sqrt(1 - zeta) eps + sqrt(zeta) z), eps = (x_t - alpha_t D)/sigma_t, with D
               the proximal one

Both end with one evaluation that returns D itself, without left-over noise. All take (key, sde, score, operator, y,
sigma_y, grid) and return x (B, *event); row i, example first + i of ``key``, depends on (key, first + i) and its own y
alone. The shape of x is that of y, where operator and score take it, or else must be given.
"""

import jax
import numpy as np
from jax.typing import ArrayLike

from scoresde.checks import whole
from scoresde.grids import log_snr_grid
from scoresde.inverse.measurement import Measurement, Operator, data_shape
from scoresde.inverse.scores import proximal, replacement
from scoresde.score import Score
from scoresde.sde import SDE
from scoresde.solvers.implicit import ancestral
from scoresde.solvers.joining import with_denoising
from scoresde.solvers.restarts import restart
from scoresde.solvers.table import Nodes, Table, sample, single_step


def repaint(
    key: jax.Array,
    sde: SDE,
    score: Score,
    operator: Operator,
    y: ArrayLike,
    sigma_y: float,
    grid: ArrayLike,
    *,
    jump: int = 10,
    resamplings: int = 10,
    iterations: int = 5,
    shape: tuple[int, ...] | None = None,
    first: ArrayLike = 0,
) -> jax.Array:
    """RePaint: each stretch of the grid run several times, so that the free part comes to agree with the known one.

    Lugmayr et al., "RePaint: inpainting using denoising diffusion probabilistic models" (2022), algorithm 1 and
    appendix B. The known part is drawn from its law given x_t and y instead of given y alone, and A may be any linear
    operator. The last stretch is run once. Costs about ``resamplings`` times the steps of the grid.

    Args:
        key: random key.
        sde: the SDE.
        score: the prior's score.
        operator: a linear function of arrays (B, *event).
        y: (B, ...) or (1, ...), real, taken as exact (see ``replacement``).
        sigma_y: positive; plays no further part.
        grid: (n + 1,) decreasing times; the stretches run again are equally long parts of it in log-SNR.
        jump: steps of a stretch, at least 1.
        resamplings: how often each stretch is run, at least 1.
        iterations: of the conjugate gradients for A^+.
        shape: (B, *event) of x.
        first: number of the first example, as for ``ss.sample``.

    Returns:
        (B, *event), with A x = y.
    """
    m = Measurement.of(sde, score, operator, y, sigma_y)
    guided = replacement(sde, score, operator, y, sigma_y, iterations=iterations)
    table = _resampled(sde, grid, whole("jump", jump), whole("resamplings", resamplings) - 1)
    return sample(key, guided, with_denoising(sde, table), data_shape(m, shape), first=first)


def _resampled(sde: SDE, grid: ArrayLike, jump: int, repeats: int) -> Table:
    nodes = Nodes.of(sde, grid)
    rho = np.exp(-nodes.log_snr / 2)
    ends = range(jump, len(rho) - 1, jump) if repeats else ()
    intervals = [(rho[k], rho[k - jump], jump, repeats) for k in ends]
    return restart(sde, nodes.t, intervals, ancestral, spacing=log_snr_grid)


def diffpir(
    key: jax.Array,
    sde: SDE,
    score: Score,
    operator: Operator,
    y: ArrayLike,
    sigma_y: float,
    grid: ArrayLike,
    *,
    strength: float = 1.0,
    zeta: float = 0.3,
    iterations: int = 5,
    shape: tuple[int, ...] | None = None,
    first: ArrayLike = 0,
) -> jax.Array:
    """DiffPIR: the denoised data are fitted to y by a quadratic proximal step, then noised again.

    Zhu et al., "Denoising diffusion models for plug-and-play image restoration" (2023), algorithm 1.

    Args:
        key: random key.
        sde: the SDE.
        score: the prior's score.
        operator: a linear function of arrays (B, *event).
        y: (B, ...) or (1, ...), real.
        sigma_y: standard deviation of its noise.
        grid: (n + 1,) decreasing times.
        strength: lambda, the weight of the prior; 1 takes rho^2 for the variance of x_0 given x_t.
        zeta: share of fresh noise in the variance, in [0, 1].
        iterations: of the conjugate gradients of the proximal step.
        shape: (B, *event) of x.
        first: number of the first example, as for ``ss.sample``.

    Returns:
        (B, *event).
    """
    if not 0 <= zeta <= 1:
        raise ValueError(f"zeta must be in [0, 1], got {zeta!r}")
    m = Measurement.of(sde, score, operator, y, sigma_y)
    guided = proximal(sde, score, operator, y, sigma_y, strength=strength, iterations=iterations)
    table = _renoised(Nodes.of(sde, grid), zeta)
    return sample(key, guided, with_denoising(sde, table), data_shape(m, shape), first=first)


def _renoised(nodes: Nodes, zeta: float) -> Table:
    (alpha_t, sigma_t), (alpha_s, sigma_s) = ((n.alpha, n.sigma) for n in (nodes[:-1], nodes[1:]))
    a = sigma_s * np.sqrt(1 - zeta) / sigma_t
    s = sigma_s * np.sqrt(zeta)
    return single_step(nodes, a=a, A=alpha_s - alpha_t * a, s=s, c=1 / alpha_t, d=sigma_t**2 / alpha_t)
