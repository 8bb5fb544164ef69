"""How much noise is in y = x + s n? The likelihood of s from one score and divergence a level, without an equation.

Let p_v be the density of y for v = s^2, that is the density of the data convolved with N(0, v I). The Gaussian kernel
solves the heat equation, so p_v does, and with S_v = grad log p_v

    dp_v/dv = (1/2) Laplacian p_v,      Laplacian p_v = p_v (div S_v + |S_v|^2),

    d/dv log p_v(y) = (1/2) (div S_v(y) + |S_v(y)|^2)      at fixed y.

At the time t where sigma/alpha = s the state alpha y has density p_t(alpha y) = p_v(y)/alpha^D, so that S_v(y) = alpha
score(alpha y, t) and div S_v = alpha^2 div score. In u = log s, dv = 2 s^2 du, and with s alpha = sigma

    d/du log p_v(y) = g(u) = sigma^2 (div score + |score|^2)(alpha y, t).

The log-likelihood of the level is the integral of g from the first level, the maximum a zero of g from above. (For
data at 0: g = |y|^2/s^2 - D and s^2 = |y|^2/D.) g is known at n levels; between them it is the cubic through the four
nearest, which is integrated exactly: an error O(h^5) a step of u. All that is a matrix on the host, from the n values
to a grid fine enough for the narrowest peak possible, of width 1/sqrt(2 D) in u.

With random probes, the same at all levels, the result is the likelihood plus an error of mean 0 that is smooth in u.
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

from scoresde.arrays import example_keys
from scoresde.editing.denoise import noise_time
from scoresde.likelihood.adaptive import check_data
from scoresde.likelihood.divergence import Divergence, hutchinson
from scoresde.score import Score, as_partial, check_score, each
from scoresde.sde import SDE

LogPrior = Callable[[jax.Array], jax.Array]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["s", "mean", "std", "levels", "log_likelihood", "at_edge"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class NoiseLevel:
    """What ``noise_level`` finds; all s in the units of the data.

    Attributes:
        s: (B,) the most likely standard deviation of the noise.
        mean: (B,) its posterior mean.
        std: (B,) its posterior standard deviation.
        levels: (n,) the levels at which the score was asked.
        log_likelihood: (B, n) log p(y | s) at them in nats, less that at the first level.
        at_edge: (B,) whether the maximum is the first or the last level: the truth may lie outside.
    """

    s: jax.Array
    mean: jax.Array
    std: jax.Array
    levels: jax.Array
    log_likelihood: jax.Array
    at_edge: jax.Array


def noise_level(
    key: jax.Array,
    sde: SDE,
    score: Score,
    y: ArrayLike,
    levels: ArrayLike,
    *,
    divergence: Divergence = hutchinson(probes=4),
    log_prior: LogPrior | None = None,
    first: ArrayLike = 0,
) -> NoiseLevel:
    """The standard deviation s of the noise in each y = x + s n, by maximum likelihood and by its posterior.

    Args:
        key: random key; the probes of example i depend on (key, i) alone.
        sde: the SDE.
        score: ``score(x, t)``, called with B = 1 under ``vmap``; one evaluation and divergence a level.
        y: (B, *event), in the units of the data.
        levels: (n,) increasing standard deviations within sigma/alpha from t_min to t_max, n >= 4, numbers now and not
            traced; about evenly spaced in log s, such as ``np.geomspace(0.02, 5, 40)``.
        divergence: ``hutchinson(probes)``, ``exact_divergence``, ...
        log_prior: s -> log-density of log s up to a constant, element by element; by default constant, the usual law of
            ignorance of a scale (1/s as a density of s). It does not change ``s``.
        first: number of the first example.

    Raises:
        ValueError: levels out of range or not increasing, integer y.
    """
    y = check_data(y, divergence)
    levels = np.asarray(levels, np.float64)
    if levels.ndim != 1 or len(levels) < 4 or not np.all(levels > 0) or not np.all(np.diff(levels) > 0):
        raise ValueError(f"levels must be at least 4 increasing positive numbers (n,), got {levels.tolist()}")
    times, u = noise_time(sde, levels), np.log(levels)
    parts = max(8, math.ceil(2 * np.diff(u).max() * math.sqrt(2 * math.prod(y.shape[1:]))))
    tables = tuple(jnp.asarray(v, y.dtype) for v in (times, *_interpolation(u, parts)))
    prior = None if log_prior is None else as_partial(log_prior)
    found = _noise_level(key, sde, as_partial(score), y, tables, first, divergence, prior)
    s, mean, std, profile, at_edge = found
    return NoiseLevel(s, mean, std, jnp.asarray(levels, y.dtype), profile[:, ::parts], at_edge)


def _interpolation(u: np.ndarray, parts: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The fine grid (F,), ``parts`` points to a step of u (n,), and from values g (n,) there: g on it and its integral
    from u_0, as matrices (F, n)."""
    n, w = len(u), np.arange(1, parts + 1) / parts
    fine, value, integral = [u[:1]], [np.eye(n)[:1]], [np.zeros((1, n))]
    powers = w[:, None] ** np.arange(4)
    for i in range(n - 1):
        near, h = np.arange(4) + min(max(i - 1, 0), n - 4), u[i + 1] - u[i]
        cubic = np.zeros((4, n))  # coefficients of the powers of w = (u - u_i)/h
        cubic[:, near] = np.linalg.inv(((u[near] - u[i]) / h)[:, None] ** np.arange(4))
        fine.append(u[i] + h * w)
        value.append(powers @ cubic)
        integral.append(integral[-1][-1:] + h * (powers * w[:, None] / np.arange(1, 5)) @ cubic)
    return np.concatenate(fine), np.concatenate(value), np.concatenate(integral)


@partial(jax.jit, static_argnames="divergence")
def _noise_level(
    key: jax.Array,
    sde: SDE,
    score: Partial,
    y: jax.Array,
    tables: tuple[jax.Array, ...],
    first: ArrayLike,
    divergence: Divergence,
    log_prior: Partial | None,
) -> Any:
    times, fine, value, integral = tables

    def slopes(score: Partial, key: jax.Array, y: jax.Array) -> jax.Array:
        probes = divergence.draw(key, y)

        def at(t: jax.Array) -> jax.Array:
            x = sde.alpha(t) * y
            s, div = divergence(lambda x: check_score(score(x[None], t), x[None])[0], x, probes)
            return sde.variance(t) * (jnp.mean(div) + jnp.sum(s**2))

        return jax.lax.map(at, times)

    with jax.default_matmul_precision("highest"):
        scores, axes = each(score, y.shape[0])
        g = jax.vmap(slopes, (axes, 0, 0))(scores, example_keys(key, y.shape[0], first), y)
        log_likelihood, g = g @ integral.T, g @ value.T
    u, at_edge = _maximum(fine, log_likelihood, g)
    log_posterior = log_likelihood if log_prior is None else log_likelihood + log_prior(jnp.exp(fine))[None]
    ends = jnp.pad(jnp.diff(fine), 1)
    step = (ends[1:] + ends[:-1]) / 2  # of trapezoids
    weight = jax.nn.softmax(log_posterior + jnp.log(step)[None], axis=1)
    mean = weight @ jnp.exp(fine)
    std = jnp.sqrt(jnp.sum(weight * (jnp.exp(fine)[None] - mean[:, None]) ** 2, axis=1))
    return jnp.exp(u), mean, std, log_likelihood, at_edge


def _maximum(fine: jax.Array, log_likelihood: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of each row: where the largest value is, to the zero of its derivative g beside it, and whether at an end."""
    rows, last = jnp.arange(len(g)), len(fine) - 1
    top = jnp.argmax(log_likelihood, axis=1)
    beside = jnp.clip(top + jnp.where(g[rows, top] > 0, 1, -1), 0, last)
    rise = g[rows, top] - g[rows, beside]
    share = jnp.where(rise == 0, 0, jnp.clip(g[rows, top] / jnp.where(rise == 0, 1, rise), 0, 1))
    return fine[top] + share * (fine[beside] - fine[top]), (beside == top)
