"""The log-density on a fixed grid: a solver's table carries the state and its log-density together.

A table without noise commits x' = a x + sum_j A_j h_j with h = c x + d score. Let g be the product of the a so far and
w = x/g: then w' = w + sum_j (A_j/g') h_j is a quadrature of dw = h dtau/g, and the log-density of w along it obeys
d log p(w) = -div_w(h)/g dtau with div_w h = g div_x h. So the same coefficients, on one more linear register, give

    L' = L + sum_j (A_j/g') g_j (c_j D + d_j div score_j),      log p(x) = log p(x_T, t_max) + D log g_T + L,

g_j = b_j g being the factor where h_j was evaluated. L has the order of the table, since its integrand is one more
function of time of which the table has the values. Every example takes the same number of evaluations, all times are
shared, and nothing is adaptive: this is the method for whole data sets.

The error is estimated by the same table on every second node. At order p the coarse table errs about 2^p times as
much, so that the difference is the coarse table's error and a cautious bound for the fine one's, but for the examples
at which the coarse error happens to cross zero (one in eight on the ring of the benchmark at 40 evaluations).
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jax.typing import ArrayLike

from scoresde.arrays import example_keys, nan_unless, number
from scoresde.flow.probability import failure_message
from scoresde.grids import check_grid
from scoresde.likelihood.adaptive import check_data
from scoresde.likelihood.divergence import Divergence, exact_divergence
from scoresde.score import Score, as_partial, check_score, each
from scoresde.sde import SDE
from scoresde.solvers.exponential_adams import adams
from scoresde.solvers.table import Table

UPWARD = partial(adams, order=4, correct_last=True, detail=0.04)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["log_prob", "std_error", "error", "latent", "num_evals", "num_checks", "success"],
    meta_fields=["steps"],
)
@dataclasses.dataclass(frozen=True)
class TableLikelihood:
    """Log-densities of a batch on a fixed grid.

    Attributes:
        log_prob: (B,) log-density in nats; NaN where ``success`` is false.
        std_error: (B,) standard error of ``log_prob`` over the probes; NaN with one probe, 0 for the exact divergence.
        error: (B,) |difference| from the table on every second node, a cautious bound of the error of the grid; NaN
            if it was not asked for.
        latent: (B, *event), x carried to t_max.
        num_evals: (B,) evaluations of the score (each with its tangents) for ``log_prob``.
        num_checks: (B,) evaluations more for ``error``.
        success: (B,) whether the log-density is finite.
        steps: rows of the table.
    """

    log_prob: jax.Array
    std_error: jax.Array
    error: jax.Array
    latent: jax.Array
    num_evals: jax.Array
    num_checks: jax.Array
    success: jax.Array
    steps: int

    @property
    def message(self) -> str:
        """One line for people, empty if every example succeeded. Not available inside ``jit``."""
        return failure_message(self.success, self.steps)


def table_log_likelihood(
    key: jax.Array,
    sde: SDE,
    score: Score,
    x: ArrayLike,
    grid: ArrayLike,
    *,
    solver: Callable[[SDE, np.ndarray], Table] = UPWARD,
    divergence: Divergence = exact_divergence,
    estimate_error: bool = True,
    first: ArrayLike = 0,
) -> TableLikelihood:
    """The log-density of ``x`` at the last time of ``grid`` under the probability flow of ``score``.

    Args:
        key: random key; the probes of example i depend on (key, i) alone and are those of ``log_likelihood``.
        sde: the SDE.
        score: ``score(x, t)``, called with B = 1 under ``vmap``.
        x: (B, *event), continuous data in the units in which the score was trained.
        grid: decreasing times from t_max, usually to t_min, such as
            ``ss.angle_grid(sde, 39, rho=0.28, share=0.25)`` for data of scale 1; walked upward.
        solver: (sde, increasing grid) -> a table without noise. The default is ``ss.adams`` of order 4
            with ``correct_last`` and ``detail=0.04``; give it your own ``sigma_data``.
        divergence: ``exact_divergence``, ``hutchinson(probes)``, ... as for ``log_likelihood``.
        estimate_error: whether to run the table on every second node too (half as many evaluations more).
        first: number of the first example: row i is example first + i of ``key``, as in a larger batch.

    Raises:
        ValueError: integer x, a grid that does not start at t_max, a solver with noise.
    """
    x = check_data(x, divergence)
    up = check_grid(sde, grid)[::-1]
    if up[-1] < sde.t_max * (1 - 1e-6):
        raise ValueError(f"the grid must start at t_max = {sde.t_max:g}, where the prior is, got {up[-1]:g}")
    fine, *coarse = (
        _run(key, sde, as_partial(score), _registers(solver(sde, t)), x, number(first), divergence)
        for t in (up, np.append(up[:-1:2], up[-1]))[: 1 + estimate_error]
    )
    log_prob, estimates, latent, steps = fine
    success = jnp.isfinite(log_prob)
    log_prob, std_error = (nan_unless(success, v) for v in (log_prob, divergence.std_error(estimates)))
    error = jnp.abs(log_prob - coarse[0][0]) if coarse else nan_unless(False, log_prob)
    evals, checks = (jnp.full(len(x), sum(result[3] for result in results)) for results in ([fine], coarse))
    return TableLikelihood(log_prob, std_error, error, latent, evals, checks, success, steps)


def _registers(table: Table) -> tuple[Any, Any, float]:
    """The rows of a table, each with the coefficients of the log-density, and log g at its end; float64 on the host."""
    look, commit = table.look, table.commit
    if np.any(commit.s) or np.any(commit.adaptive) or not np.all(commit.a > 0):
        raise ValueError("solver must return a table without noise and with positive factors a, such as ss.adams")
    g = np.cumprod(commit.a)
    rows = (look.t, look.b, look.B, look.c, look.d, look.b * g[:-1]), (commit.a, commit.A, commit.A / g[:, None])
    return *rows, float(np.log(g[-1]))


def _run(
    key: jax.Array, sde: SDE, score: Partial, rows: Any, x: jax.Array, first: ArrayLike, divergence: Divergence
) -> Any:
    looks, commits, log_gain = rows
    log_prob, estimates, latent = _compiled(key, sde, score, looks, commits, log_gain, x, first, divergence)
    return log_prob, estimates, latent, len(looks[0])


@partial(jax.jit, static_argnames="divergence")
def _compiled(
    key: jax.Array,
    sde: SDE,
    score: Partial,
    looks: Any,
    commits: Any,
    log_gain: float,
    x: jax.Array,
    first: ArrayLike,
    divergence: Divergence,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    dims, width = math.prod(x.shape[1:]), commits[1].shape[1]
    looks, commits = jax.tree.map(lambda v: jnp.asarray(v, x.dtype), (looks, commits))

    def commit(row: Any, state: Any) -> tuple[jax.Array, jax.Array]:
        a, A, A_density = row
        base, density, values, divergences = state
        return a * base + jnp.tensordot(A, values, 1), density + jnp.tensordot(A_density, divergences, 1)

    def solve(score: Partial, key: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        probes = divergence.draw(key, x)

        def body(state: Any, row: Any) -> tuple[Any, None]:
            commit_row, (t, b, B, c, d, gain) = row
            (base, density), (values, divergences) = commit(commit_row, state), state[2:]
            point = b * base + jnp.tensordot(B, values, 1)
            s, div = divergence(lambda x: check_score(score(x[None], t), x[None])[0], point, probes)
            h, div_h = c * point + d * s, gain * (c * dims + d * div)
            values, divergences = (
                jnp.concatenate([new[None], old[:-1]]) for new, old in ((h, values), (div_h, divergences))
            )
            return (base, density, values, divergences), None

        count = divergence.count
        state = x, jnp.zeros(count, x.dtype), jnp.zeros((width, *x.shape), x.dtype), jnp.zeros((width, count), x.dtype)
        state, _ = jax.lax.scan(body, state, (jax.tree.map(lambda v: v[:-1], commits), looks))
        return commit(jax.tree.map(lambda v: v[-1], commits), state)

    with jax.default_matmul_precision("highest"):
        scores, axes = each(score, len(x))
        latent, estimates = jax.vmap(solve, (axes, 0, 0))(scores, example_keys(key, x.shape[0], first), x)
    log_prob = sde.prior_log_prob(latent) + dims * log_gain + jnp.mean(estimates, axis=1)
    return log_prob, estimates, latent
