"""Integer data made continuous inside their bins, and what that costs.

y = (k + u - shift) w with u in [0, 1)^D and bin width w: the mass of the bin of k is an integral over it, for any law q
of u with a density on the whole bin

    P(k) = w^D int p(y(u)) du = w^D E_q[p(y)/q(u)],   and by Jensen, for K independent draws,

    E_q[log p - log q]  <=  E[log (1/K) sum_k p(y_k)/q(u_k)]  <=  log P(k) - D log w,

the plain average (Theis et al. 2016, for uniform u) and the importance-weighted one, which rises with K to the truth
(Burda et al. 2016; Ho et al. 2019). Their difference estimates from below what the plain average gives away.

A truncated normal u is near the noise that the model was trained under, when its std in levels is near
sigma(t_min)/(alpha(t_min) w) (Zheng et al. 2023).
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm
from jax.typing import ArrayLike

from scoresde.arrays import example_keys
from scoresde.checks import whole
from scoresde.likelihood.adaptive import Likelihood, check_levels, log_likelihood
from scoresde.score import Score
from scoresde.sde import SDE

Dequantisation = Callable[[jax.Array, tuple[int, ...]], tuple[jax.Array, jax.Array]]


def uniform_dequantisation(key: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """u ~ U[0, 1) of one example's shape and log q(u) = 0."""
    return jax.random.uniform(key, shape), jnp.zeros(())


def truncated_normal_dequantisation(std: float) -> Dequantisation:
    """u ~ N(1/2, std^2) truncated to [0, 1), and log q(u) summed over the dimensions; ``std`` is in levels.

    Raises:
        ValueError: std is not positive and finite.
    """
    if not 0 < std < math.inf:
        raise ValueError(f"std must be positive and finite, got {std!r}")
    return partial(_truncated_normal, std)


def _truncated_normal(std: float, key: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    limit = 0.5 / std
    z = jax.random.truncated_normal(key, -limit, limit, shape)
    log_q = jnp.sum(norm.logpdf(z)) - math.prod(shape) * math.log(std * math.erf(limit / math.sqrt(2)))
    return jnp.clip(0.5 + std * z, 0, jnp.nextafter(jnp.ones((), z.dtype), 0)), log_q


def dequantise(
    key: jax.Array,
    levels: ArrayLike,
    bin_width: float,
    shift: ArrayLike = 0.0,
    law: Dequantisation = uniform_dequantisation,
    first: ArrayLike = 0,
) -> tuple[jax.Array, jax.Array]:
    """One draw of (y, log q(u)), (B, *event) and (B,), for integers ``levels``; row i depends on (key, first + i).

    y is in the bin of its level, [k - shift, k + 1 - shift) bin_width, however small u's part of it is beside k.

    Raises:
        ValueError: levels that are not whole numbers, or a bin width that is not positive and finite.
    """
    levels = check_levels(levels, bin_width, "log_likelihood")
    u, log_q = jax.vmap(lambda key: law(key, levels.shape[1:]))(example_keys(key, len(levels), first))
    start = jnp.asarray(levels - jnp.broadcast_to(shift, levels.shape), u.dtype)  # exact for whole numbers below 2^24
    low, high = start * bin_width, (start + 1) * bin_width
    return jnp.clip((start + u) * bin_width, low, jnp.nextafter(high, low)), log_q


def dequantisations(
    key: jax.Array,
    levels: ArrayLike,
    bin_width: float,
    shift: ArrayLike = 0.0,
    *,
    repeats: int = 1,
    law: Dequantisation = uniform_dequantisation,
    first: ArrayLike = 0,
) -> Iterator[tuple[jax.Array, jax.Array, jax.Array]]:
    """For each repeat a key for the probes, y and log q(u) of ``dequantise``: what every average over u goes through.

    Example i of repeat k depends on (key, k, first + i) alone.
    """
    for k in range(whole("repeats", repeats)):
        key_noise, key_probes = jax.random.split(jax.random.fold_in(key, k))
        yield key_probes, *dequantise(key_noise, levels, bin_width, shift, law, first)


def over_repeats(results: Sequence[Mapping[str, ArrayLike]]) -> dict[str, jax.Array]:
    """Arrays (B,) of each repeat as those of all: ``num_evals`` their sum, ``success`` all, ``at_limit`` any, ``time``
    the least, else the mean; ``std_error`` is that of ``log_prob`` over repeats, where there are several."""
    rules = {"num_evals": jnp.sum, "success": jnp.all, "at_limit": jnp.any, "time": jnp.min}
    each = {name: jnp.stack([jnp.asarray(result[name]) for result in results]) for name in results[0]}
    merged = {name: rules.get(name, jnp.mean)(values, axis=0) for name, values in each.items()}
    if len(results) > 1 and "log_prob" in each:
        merged["std_error"] = jnp.std(each["log_prob"], axis=0, ddof=1) / math.sqrt(len(results))
    return merged


def dequantised_log_likelihood(
    key: jax.Array,
    sde: SDE,
    score: Score,
    levels: ArrayLike,
    *,
    bin_width: float,
    shift: ArrayLike = 0.0,
    repeats: int = 1,
    dequantisation: Dequantisation = uniform_dequantisation,
    first: ArrayLike = 0,
    **settings: Any,
) -> Likelihood:
    """The log-density of integer data made continuous inside the call, averaged over ``repeats`` draws of the noise.

    Args:
        key: random key; example i of repeat k depends on (key, k, i) alone.
        sde: the SDE.
        score: ``score(x, t)`` in the model's units.
        levels: (B, *event) integers; the model sees (levels + u - shift) * bin_width, u in [0, 1).
        bin_width: width of one level in the model's units, positive.
        shift: scalar or array like one event, in levels.
        repeats: draws of the dequantisation noise (and of the probes), at least 1.
        dequantisation: the law of u: ``uniform_dequantisation``, ``truncated_normal_dequantisation(std)`` or any
            function (key, event shape) -> (u, log q(u)).
        first: number of the first example: row i is example first + i of ``key``, as in a larger batch.
        **settings: passed to ``log_likelihood``.

    Returns:
        ``log_prob``, the average of log p(y) - log q(u) in nats in the model's units, for
        ``bits_per_dim(..., bin_width)``; ``std_error`` over repeats if there are several, else that of the single call;
        ``importance``, the logarithm of the average of p/q, a closer bound (with random probes, whose errors it
        averages inside the logarithm, no longer one: take the exact divergence); ``latent`` of the first repeat;
        ``num_evals`` their sum.

    Raises:
        ValueError: levels that are not whole numbers, or settings out of range.
    """
    results, names = [], ("log_prob", "std_error", "num_evals", "success", "at_limit", "time")
    draws = dequantisations(key, levels, bin_width, shift, repeats=repeats, law=dequantisation, first=first)
    for key_probes, y, log_q in draws:
        result = log_likelihood(key_probes, sde, score, y, first=first, **settings)
        results.append(dataclasses.replace(result, log_prob=result.log_prob - log_q))
    importance = jax.nn.logsumexp(jnp.stack([result.log_prob for result in results]), axis=0) - math.log(repeats)
    merged = over_repeats([{name: getattr(result, name) for name in names} for result in results])
    return dataclasses.replace(results[0], importance=importance, **merged)
