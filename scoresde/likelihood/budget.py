"""How far a log-density may be off, and for which reason: an error budget for each example.

Solver. The same solve at a tenth of the tolerances, with the same probes. Its value is the one reported; the difference
is the error of the coarser solve and bounds that of the finer with room.

Probes. Their standard error; 0 for the exact divergence, NaN for one probe.

Truncation. What is computed is the density of x at t_min, and the data are at t = 0. With rho = sigma/alpha the law of
x_t/alpha is that of the data after the heat equation d p/d rho^2 = Laplacian p/2, so that to first order in rho^2

    log p_0(x) = log p_t(alpha x) + D log alpha - (sigma^2/2) (div s + |s|^2) (alpha x),       s = grad log p_t,
    log p_t(alpha x) = log p_t(x) - (1 - alpha) x . s(x),   1 - alpha small,

which is one evaluation of the score with its divergence. The Jensen bound of a Tweedie last step (Song et al. 2021,
"Maximum likelihood training of score-based diffusion models", section 4.2),

    log p_0(x) >= E_z[log p_t(y) + log N(x; E[x_0 | y], (sigma/alpha)^2) - log N(y; alpha x, sigma^2)]

with y = alpha x + sigma z has the same value at this order: E[x_0 | y] - x = (sigma/alpha) (z + sigma s(y)), hence its
decoder and encoder give D log alpha - sigma E z.s - sigma^2 |s|^2/2 = D log alpha - sigma^2 (div s + |s|^2/2), and
E log p_t(y) adds sigma^2 div s/2. The bound is loose at order sigma^4 only. It says nothing of data on a surface, or
with structure finer than sigma(t_min): there p_0 has no density, or no such expansion.

Prior. The flow ends in N(0, sigma_T^2 I) where x_T is alpha_T x_0 + sigma_T z. With x_0 from a sample of the data

    log p_T(x_T) - log prior(x_T) = log mean_i exp((alpha x_i . x_T - alpha^2 |x_i|^2/2) / sigma^2),

and on average over the data at most the mean of
KL(N(alpha x_0, sigma^2) || N(0, sigma^2)) = alpha^2 |x_0|^2/(2 sigma^2),
by convexity. A sample of N errs in it by about alpha |x_T| |x_0|/(sigma^2 sqrt(N)). It is no error of the model's
density, which has this prior: it separates it from that of the process.

Dequantisation. For integers: the importance-weighted bound of K draws above their plain average; see ``dequantise``.
"""

import dataclasses
import math
from functools import partial
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jax.tree_util import Partial
from jax.typing import ArrayLike

from scoresde.arrays import example_keys, number, widened
from scoresde.flow.probability import failure_message
from scoresde.likelihood.adaptive import log_likelihood
from scoresde.likelihood.dequantisation import (
    Dequantisation,
    dequantise,
    dequantised_log_likelihood,
    over_repeats,
    uniform_dequantisation,
)
from scoresde.likelihood.divergence import Divergence, exact_divergence
from scoresde.score import Score, as_partial, check_score, each
from scoresde.sde import SDE

PARTS = ("log_prob", "solver", "probes", "truncation", "prior", "prior_bound", "dequantisation")
SOLVES = ("num_evals", "success", "at_limit", "time")


@partial(jax.tree_util.register_dataclass, data_fields=[*PARTS, *SOLVES], meta_fields=["max_steps"])
@dataclasses.dataclass(frozen=True)
class ErrorBudget:
    """The parts of the error of log-densities in nats, (B,) each.

    ``log_prob`` + ``truncation`` + ``prior`` estimates the log-density of the data at t = 0 under the process of the
    score, within ``solver`` and a few ``probes``.

    Attributes:
        log_prob: log-density at t_min, by the tighter of the two solves; of integers, of one draw of the noise.
        solver: |difference| of the two solves, at least 0.
        probes: standard error over the probes.
        truncation: log p_0(x) - log p_{t_min}(x) to first order in sigma^2, signed.
        prior: log p_{t_max}(x_T) - log prior(x_T), signed, from the sample ``data``.
        prior_bound: alpha^2 |x|^2/(2 sigma^2) at t_max, whose mean bounds the mean of ``prior``.
        dequantisation: what the plain average over dequantisation noise gives away, estimated from below; 0 for
            continuous data.
        success: whether the solves reached their ends; the rest is NaN where they did not.
        num_evals: evaluations of the score in all solves (each with its tangents).
        at_limit: whether ``max_steps`` were not enough for one of them; see ``Flow``.
        time: the least time that they reached.
        max_steps: the limit on steps that was in force, not an array.
    """

    log_prob: jax.Array
    solver: jax.Array
    probes: jax.Array
    truncation: jax.Array
    prior: jax.Array
    prior_bound: jax.Array
    dequantisation: jax.Array
    success: jax.Array
    num_evals: jax.Array
    at_limit: jax.Array
    time: jax.Array
    max_steps: int

    @property
    def message(self) -> str:
        """One line for people, empty if every example succeeded. Not available inside ``jit``."""
        return failure_message(self.success, self.max_steps, self.at_limit, self.time)

    def report(self) -> str:
        """The mean and the largest modulus of every part over the examples that succeeded, a line each.

        Not available inside ``jit``.
        """
        kept = np.asarray(self.success)
        lines = [f"log-density of {kept.sum()} of {kept.size} examples, nats; mean and largest modulus"]
        for name in PARTS:
            values = np.asarray(getattr(self, name), np.float64)[kept]
            if np.all(np.isnan(values)):
                lines.append(f"{name:15s} unknown" + (": one probe" if name == "probes" else ""))
            else:
                lines.append(f"{name:15s} {np.mean(values):11.3e} {np.max(np.abs(values)):11.3e}")
        return "\n".join(lines)


def error_budget(
    key: jax.Array,
    sde: SDE,
    score: Score,
    x: ArrayLike,
    *,
    divergence: Divergence = exact_divergence,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    data: ArrayLike | None = None,
    bin_width: float | None = None,
    shift: ArrayLike = 0.0,
    repeats: int = 8,
    dequantisation: Dequantisation = uniform_dequantisation,
    solver: diffrax.AbstractERK | None = None,
    sigma_data: float = 1.0,
    max_steps: int = 1000,
    first: ArrayLike = 0,
) -> ErrorBudget:
    """The log-density of ``x`` and what it may be off by, example by example.

    Costs two solves, one of them at a tenth of the tolerances, and of integers ``repeats`` more.

    Args:
        key: random key; the probes of example i depend on (key, i) alone.
        sde: the SDE.
        score: ``score(x, t)``, called with B = 1 under ``vmap``.
        x: (B, *event), continuous data, or integers with ``bin_width``.
        divergence: as for ``log_likelihood``; one probe has no standard error.
        rtol: relative tolerance of the coarser solve.
        atol: absolute tolerance of the coarser solve.
        data: (N, *event), a sample of the (continuous) data for the prior mismatch; ``x`` by default.
        bin_width: width of one level of integer data in the model's units, see ``dequantised_log_likelihood``.
        shift: in levels, for integers.
        repeats: draws of the dequantisation noise, for integers; at least 2 to see a gap.
        dequantisation: the law of that noise.
        solver: as for ``log_likelihood``.
        sigma_data: as for ``log_likelihood``.
        max_steps: as for ``log_likelihood``.
        first: number of the first example: row i is example first + i of ``key``, as in a larger batch.

    Raises:
        ValueError: as ``log_likelihood`` and, for integers, as ``dequantised_log_likelihood``.
    """
    event = np.shape(x)[1:]
    if data is not None and (np.shape(data)[1:] != event or np.ndim(data) == 0 or np.size(data) == 0):
        raise ValueError(f"data must have shape (N, {', '.join(map(str, event))}), got {np.shape(data)}")
    settings: dict[str, Any] = {"divergence": divergence, "solver": solver}
    settings |= {"sigma_data": sigma_data, "max_steps": max_steps, "first": first}
    gap, solves = 0.0, []
    if bin_width is not None:
        key, key_noise, key_repeats = jax.random.split(key, 3)
        noise: dict[str, Any] = {"bin_width": bin_width, "shift": shift}
        bounds = dequantised_log_likelihood(
            key_repeats, sde, score, x, repeats=repeats, dequantisation=dequantisation, rtol=rtol, atol=atol, **noise,
            **settings,
        )  # fmt: skip
        solves.append(bounds)
        gap = jnp.subtract(bounds.importance, bounds.log_prob)
        x, _ = dequantise(key_noise, x, law=dequantisation, first=first, **noise)
    coarse, fine = (log_likelihood(key, sde, score, x, rtol=rtol / by, atol=atol / by, **settings) for by in (1, 10))
    solves += [coarse, fine]
    x = widened(x)
    sample = x if data is None else jnp.asarray(data, x.dtype)
    prior, prior_bound = _prior(sde, fine.latent, x, sample)
    return ErrorBudget(
        log_prob=fine.log_prob,
        solver=jnp.abs(fine.log_prob - coarse.log_prob),
        probes=fine.std_error,
        truncation=_truncation(key, sde, as_partial(score), x, number(first), divergence),
        prior=prior,
        prior_bound=prior_bound,
        dequantisation=jnp.broadcast_to(gap, fine.log_prob.shape),
        max_steps=max_steps,
        **over_repeats([{name: getattr(solve, name) for name in SOLVES} for solve in solves]),
    )


@partial(jax.jit, static_argnames="divergence")
def _truncation(
    key: jax.Array, sde: SDE, score: Partial, x: jax.Array, first: jax.Array, divergence: Divergence
) -> jax.Array:
    t = jnp.asarray(sde.t_min, x.dtype)
    log_alpha, variance = sde.log_alpha(t), sde.variance(t)

    def offset(score: Partial, key: jax.Array, x: jax.Array) -> jax.Array:
        field = lambda x: check_score(score(x[None], t), x[None])[0]  # noqa: E731
        s, div = divergence(field, x, divergence.draw(key, x))
        return (
            math.prod(x.shape) * log_alpha
            + jnp.expm1(log_alpha) * jnp.sum(x * s)
            - variance / 2 * (jnp.mean(div) + jnp.sum(s**2))
        )

    with jax.default_matmul_precision("highest"):
        scores, axes = each(score, len(x))
        return jax.vmap(offset, (axes, 0, 0))(scores, example_keys(key, len(x), first), x)


@jax.jit
def _prior(sde: SDE, latent: jax.Array, x: jax.Array, sample: jax.Array) -> tuple[jax.Array, jax.Array]:
    t = jnp.asarray(sde.t_max, x.dtype)
    alpha, variance = sde.alpha(t), sde.variance(t)
    latent, x, sample = (v.reshape(len(v), -1) for v in (latent, x, sample))
    bounds = [alpha**2 * jnp.sum(v**2, axis=1) / (2 * variance) for v in (x, sample)]
    with jax.default_matmul_precision("highest"):
        exponent = alpha / variance * latent @ jnp.nan_to_num(sample).T - bounds[1][None]
    finite = jnp.isfinite(bounds[1])[None]
    return logsumexp(exponent, axis=1, where=finite) - jnp.log(jnp.sum(finite)), bounds[0]
