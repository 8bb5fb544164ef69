"""Exact log-density by the instantaneous change of variables along the probability flow, with its error bar.

In the coordinates of ``flow`` (x = r u, r = radius(t)) the density of u obeys d log p(u)/dphi = -div v, so that

    log p(x, t_min) = log p(x_T, t_max) + D log(r_T / r_0) + integral_{phi_0}^{phi_T} div v dphi.

The divergence is exact or estimated by probes that stay fixed along the trajectory, so that the equation stays an
ordinary one (Chen et al. 2018; Grathwohl et al. 2019); see ``divergence``.

Integer data are made continuous first, see ``dequantise``, and reported in bits per dimension. Continuous data have no
such unit: report nats.
"""

import dataclasses
import math
from functools import partial
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jax.typing import ArrayLike

from scoresde.angle import angle, radius, time_at
from scoresde.arrays import example_keys, number, widened
from scoresde.checks import examples
from scoresde.flow.probability import Method, failure_message, velocity
from scoresde.likelihood.divergence import Divergence, hutchinson
from scoresde.score import Score, as_partial, each
from scoresde.sde import SDE


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["log_prob", "std_error", "latent", "num_evals", "success", "at_limit", "time", "importance"],
    meta_fields=["max_steps"],
)
@dataclasses.dataclass(frozen=True)
class Likelihood:
    """Log-densities of a batch.

    Attributes:
        log_prob: (B,) log-density in nats, larger is more likely; NaN where ``success`` is false.
        std_error: (B,) standard error of ``log_prob`` over the probes; NaN with one probe, 0 for the exact divergence.
        latent: (B, *event), x carried to t_max.
        num_evals: (B,) evaluations of the score (each with its tangents).
        success: (B,) whether the solve reached t_max.
        max_steps: the limit on steps that was in force.
        at_limit: (B,) whether ``max_steps`` were not enough; see ``Flow``.
        time: (B,) the time that the solve reached, t_max if it succeeded.
        importance: (B,) the importance-weighted log-density of dequantised integers, see
            ``dequantised_log_likelihood``; None of continuous data.
    """

    log_prob: jax.Array
    std_error: jax.Array
    latent: jax.Array
    num_evals: jax.Array
    success: jax.Array
    max_steps: int
    at_limit: jax.Array
    time: jax.Array
    importance: Any = None

    @property
    def message(self) -> str:
        """One line for people, empty if every example succeeded. Not available inside ``jit``."""
        return failure_message(self.success, self.max_steps, self.at_limit, self.time)


def log_likelihood(
    key: jax.Array,
    sde: SDE,
    score: Score,
    x: ArrayLike,
    *,
    divergence: Divergence = hutchinson(probes=1),
    rtol: float = 1e-5,
    atol: float = 1e-5,
    solver: diffrax.AbstractERK | None = None,
    sigma_data: float = 1.0,
    max_steps: int = 1000,
    steps: int | None = None,
    first: ArrayLike = 0,
) -> Likelihood:
    """The log-density of ``x`` at t_min under the probability flow of ``score``. No noise is added to x.

    Args:
        key: random key; the probes of example i depend on (key, i) alone.
        sde: the SDE.
        score: ``score(x, t)``, called with B = 1 under ``vmap``.
        x: (B, *event), continuous data in the units in which the score was trained.
        divergence: ``hutchinson(probes)``, ``hutch_pp(sketch, probes)`` or ``exact_divergence``; see ``divergence``.
        rtol: relative tolerance on u and on the log-density per dimension.
        atol: absolute tolerance on the same.
        solver: an explicit Runge-Kutta method of diffrax; ``diffrax.Tsit5()`` by default.
        sigma_data: scale of the angle, best the standard deviation of the data; it does not change the answer.
        max_steps: steps after which an example is given up.
        steps: take so many steps of equal length in the angle; the tolerances and ``max_steps`` then play no part.
            This is the road for gradients with respect to x or to arrays of the score: reverse mode through a fixed
            number of steps, checkpointed by diffrax, so that memory grows with their square root or slower. Of the
            true score the gradient is the score at t_min itself, which is cheaper asked for directly.
        first: number of the first example: row i is example first + i of ``key``, as in a larger batch.

    Raises:
        ValueError: integer x, a shape without event axes, or a setting out of range.
    """
    x = check_data(x, divergence)
    method = Method(solver or diffrax.Tsit5(), max_steps if steps is None else steps, fixed=steps is not None)
    method.check(rtol, atol, sigma_data)
    *tolerance, scale = (jnp.asarray(v, x.dtype) for v in (rtol, atol, sigma_data))
    settings = tuple(tolerance), scale, number(first), method, divergence
    found, integral = _log_likelihood(key, sde, as_partial(score), x, *settings)
    return dataclasses.replace(found, std_error=divergence.std_error(integral))


def check_data(x: ArrayLike, divergence: Divergence) -> jax.Array:
    """x as an array, or a ValueError: floating point, of shape (B, *event), with an estimator of the divergence."""
    x = widened(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x must be floating point, got {x.dtype}: for integer data use dequantised_log_likelihood")
    if x.ndim < 2:
        raise ValueError(f"x must have shape (B, *event) with at least one event axis, got {x.shape}")
    examples(x)
    if not (hasattr(type(divergence), "draw") and callable(divergence)):
        raise ValueError(f"divergence must be hutchinson(probes) or exact_divergence, got {divergence!r}")
    return x


def check_levels(levels: ArrayLike, bin_width: float, otherwise: str) -> np.ndarray:
    """Integer data as an array, or a ValueError: whole numbers, bins of positive width."""
    levels = np.asarray(levels)
    examples(levels)
    if not np.issubdtype(levels.dtype, np.integer):
        raise ValueError(f"levels must be integers, got {levels.dtype}: for continuous data use {otherwise}")
    if bin_width is None or not 0 < bin_width < math.inf:
        raise ValueError(f"bin_width must be positive and finite, got {bin_width!r}")
    return levels


@partial(jax.jit, static_argnames=("method", "divergence"))
def _log_likelihood(
    key: jax.Array,
    sde: SDE,
    score: Partial,
    x: jax.Array,
    tolerance: tuple[jax.Array, ...],
    sigma_data: jax.Array,
    first: ArrayLike,
    method: Method,
    divergence: Divergence,
) -> tuple[Likelihood, jax.Array]:
    """All but the standard error, and the estimates (B, P) of the integral that it is of."""
    t_min, t_max = jnp.asarray(sde.t_min, x.dtype), jnp.asarray(sde.t_max, x.dtype)
    r_min, r_max = radius(sde, t_min, sigma_data), radius(sde, t_max, sigma_data)
    start, end = angle(sde, t_min, sigma_data), angle(sde, t_max, sigma_data)
    dims = math.prod(x.shape[1:])

    def solve(score: Partial, key: jax.Array, x: jax.Array) -> tuple[Any, ...]:
        field = velocity(sde, score, sigma_data, (t_min, t_max))
        probes = divergence.draw(key, x)

        def augmented(phi: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            v, div = divergence(lambda u: field(phi, u[None])[0], state[0][0], probes)
            return v[None], div[None] / dims  # per dimension, so that one tolerance suits both registers

        state = (x / r_min)[None], jnp.zeros((1, divergence.count), x.dtype)
        (u, integral), *rest = method.solve(augmented, state, start, end, tolerance)
        return (u[0], dims * integral[0]), *rest

    with jax.default_matmul_precision("highest"):
        keys, (scores, axes) = example_keys(key, x.shape[0], first), each(score, len(x))
        (u, integral), num_evals, success, (at_limit, reached) = jax.vmap(solve, (axes, 0, 0))(scores, keys, x)
    latent = r_max * u
    log_prob = sde.prior_log_prob(latent) + dims * jnp.log(r_max / r_min) + jnp.mean(integral, axis=1)
    time = jnp.where(success, t_max, time_at(sde, reached, sigma_data, (t_min, t_max)))
    found = Likelihood(log_prob, log_prob, latent, num_evals, success, method.max_steps, at_limit, time)
    return found, integral


def bits_per_dim(log_prob: ArrayLike, num_dims: int, bin_width: float | None) -> jax.Array:
    """-log_prob / (num_dims ln 2) - log2(bin_width): bits per dimension of dequantised integer data.

    Args:
        log_prob: log-density in nats of the scaled data, any shape.
        num_dims: number of dimensions of one example.
        bin_width: width of one integer level in the scaled units: 2/256 for bytes scaled to [-1, 1].

    Raises:
        ValueError: ``bin_width`` is None (continuous data: report nats) or not positive.
    """
    if bin_width is None:
        raise ValueError(
            "bits per dimension are undefined for continuous data (bin_width is None): report nats instead"
        )
    if not (bin_width > 0 and math.isfinite(bin_width)):
        raise ValueError(f"bin_width must be positive and finite, got {bin_width!r}")
    return -jnp.asarray(log_prob) / (num_dims * math.log(2)) - math.log2(bin_width)


def mean_with_error(values: ArrayLike) -> tuple[float, float]:
    """The mean of independent values (n,) and its standard error, std/sqrt(n) with n - 1 in the variance."""
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"values must be one-dimensional with at least two entries, got shape {values.shape}")
    return float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(len(values)))
