"""The likelihood of many examples and the variational bound beside it, in batches, with every error that they have.

Of integers k the density is that of y = (k + u - shift) w with u in [0, 1)^D, averaged over ``repeats`` draws of u and
stated in bits per dimension; of measurements it is stated in nats in their own units. Example i depends on (key, i)
alone. Errors: of the mean, over examples; of the divergence, over probes or draws; of a fixed grid, from the same table
on every second node; of adaptive steps, the tolerance.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import scoresde as ss
from experiments.cli.errors import InputError
from experiments.data.dataset import Data
from experiments.measures.jobs import Arrays, Job, Work, replicated, rows, spread, spread_score
from experiments.models.build import Model
from scoresde.flow.probability import failure_message
from scoresde.likelihood.dequantisation import dequantisations, dequantise, over_repeats

TOLERANCE = 1e-4  # relative and absolute, of adaptive steps
# rho and share of ``angle_grid`` for a fixed grid: of data of scale 1, and of levels so narrow that BINS of them are
# less than that rho, which they then replace (measured on 256 levels).
SMOOTH, BINS, LEVELLED_SHARE = (0.2, 0.15), 3, 0.3


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a likelihood is measured."""

    probes: int
    """Hutchinson probes; 0, or as many as there are dimensions, for the exact divergence."""
    repeats: int = 1
    """Draws of the dequantisation noise of integers."""
    evaluations: int | None = None
    """Of a fixed grid; None for adaptive steps."""
    tolerance: float = TOLERANCE
    bound_draws: int = 16
    """Of times and noise in one estimate of the variational bound of integers; 0 for no bound."""
    bound_repeats: int = 8
    """Estimates of it, at least 2 for its error."""
    flow_examples: int | None = None
    """Examples, the first ones, whose likelihood the flow gives; the bound is had of all. None for all."""

    def divergence(self, dims: int) -> Any:
        return ss.hutchinson(self.probes) if 0 < self.probes < dims else ss.exact_divergence


def likelihood(
    key: jax.Array,
    data: Data,
    model: Model,
    score: Any,
    x: Any,
    settings: Settings,
    work: Work,
    *,
    classes: np.ndarray | None = None,
    name: str = "likelihood",
) -> tuple[Arrays, dict[str, Any]]:
    """The likelihood of the examples x (n, *event) in raw units, of a conditional score given their ``classes`` (n,).

    ``name`` is that of the job, by which its parts are kept.

    Returns:
        ``log_prob`` (m,) in the unit of the figures, m = n or ``flow_examples``, ``exact_log_prob`` (m,) where the law
        is known, ``bound`` (n,) of integers in bits per dimension; the figures.

    Raises:
        InputError: fewer than two examples could be evaluated.
    """
    started, (key_density, key_bound) = time.monotonic(), jax.random.split(key)
    some = x[: settings.flow_examples]
    density = work.run(
        name, _density(key_density, data, model, of_rows(replicated(score), classes), some, settings), len(some)
    )
    result = _figures(density, data, settings)
    values = {"log_prob": _in_units(density["log_prob"], data)}
    if data.mixture is not None:
        values["exact_log_prob"] = np.asarray(ss.GaussianMixture(*data.mixture).log_prob(jnp.asarray(some)))
        result["exact"] = float(values["exact_log_prob"].mean())
    result |= {"seconds": round(time.monotonic() - started, 2), "bound": None}
    if settings.bound_draws and data.levels:
        started = time.monotonic()
        bound = work.run(
            f"{name}-bound", _bound(key_bound, data, model, of_rows(spread_score(score), classes), x, settings), len(x)
        )
        values["bound"] = _in_units(bound["discrete_bound"], data, 1.0)
        result["bound"] = _bound_figures(bound, data) | {"seconds": round(time.monotonic() - started, 2)}
    return values, result


def of_rows(score: Any, classes: np.ndarray | None) -> Callable[[int, int], Any]:
    """(first, size) -> the score of these rows: of their classes, or without ``classes`` of all alike."""
    if classes is None:
        return lambda first, size: score
    return lambda first, size: ss.given(score, jnp.asarray(rows(classes, first, size)))


def _density(
    key: jax.Array, data: Data, model: Model, score: Callable[[int, int], Any], x: Any, settings: Settings
) -> Job:
    """Of each example: log_prob in nats, of integers in model units, of measurements in raw ones; its std_error,
    num_evals, success, and what failed."""
    divergence = settings.divergence(math.prod(data.event_shape))
    if settings.evaluations:  # of which one corrects the last step
        how = partial(_on_grid, model, divergence, _grid(data, model, settings.evaluations - 1))
    else:
        how = partial(_adaptive, model, divergence, settings.tolerance)

    def job(first: int, size: int) -> Arrays:
        raw, results, measure = rows(x, first, size), [], partial(how, score(first, size))
        if data.bin_width is None:
            result = measure(key, spread(data.to_model(raw)), first)
            return result | {"log_prob": result["log_prob"] + data.log_det(raw)}
        draws = dequantisations(key, raw, data.bin_width, data.shift, repeats=settings.repeats, first=first)
        for key_probes, y, log_q in draws:
            result = measure(key_probes, spread(y), first)
            results.append(result | {"log_prob": result["log_prob"] - np.asarray(log_q)})
        return {name: np.asarray(values) for name, values in over_repeats(results).items()}

    return job


def _grid(data: Data, model: Model, steps: int) -> np.ndarray:
    """The nodes of a fixed grid for this data."""
    (rho, share), bins = SMOOTH, BINS * (data.bin_width or math.inf)
    rho *= model.precond.sigma_data
    return ss.angle_grid(model.sde, steps, *((bins, LEVELLED_SHARE) if bins < rho else (rho, share)))


def _adaptive(
    model: Model, divergence: Any, tolerance: float, score: Any, key: jax.Array, x: jax.Array, first: int
) -> Arrays:
    tolerances: dict[str, Any] = {"rtol": tolerance, "atol": tolerance}
    scale = model.precond.sigma_data
    result = ss.log_likelihood(
        key, model.sde, score, x, divergence=divergence, sigma_data=scale, first=first, **tolerances
    )
    names = ("log_prob", "std_error", "num_evals", "success", "at_limit", "time")
    arrays = {name: np.asarray(getattr(result, name)) for name in names}
    return arrays | {"max_steps": np.full(len(x), result.max_steps)}


def _on_grid(
    model: Model, divergence: Any, grid: np.ndarray, score: Any, key: jax.Array, x: jax.Array, first: int
) -> Arrays:
    sde = model.sde
    result = ss.table_log_likelihood(key, sde, score, x, grid, divergence=divergence, first=first)
    log_prob = np.asarray(result.log_prob)
    return {
        "log_prob": log_prob,
        "std_error": np.asarray(result.std_error),
        "grid_error": np.asarray(result.error),
        "num_evals": np.asarray(result.num_evals + result.num_checks),
        "success": np.asarray(result.success),
        "at_limit": np.zeros(len(x), bool),
        "time": np.full(len(x), sde.t_max),
        "max_steps": np.full(len(x), result.steps),
    }


def _bound(
    key: jax.Array, data: Data, model: Model, score: Callable[[int, int], Any], x: Any, settings: Settings
) -> Job:
    """Variational bounds of integers, in nats: of the dequantised data, and of the integers themselves."""
    key_noise, key_bound = jax.random.split(key)
    bins: dict[str, Any] = {"bin_width": data.bin_width, "shift": data.shift}

    def job(first: int, size: int) -> Arrays:
        raw = rows(x, first, size)
        scale: dict[str, Any] = {"sigma_data": model.precond.sigma_data, "first": first}
        scale |= {"draws": settings.bound_draws, "repeats": settings.bound_repeats}
        (y, _), s = dequantise(key_noise, raw, **bins, first=first), score(first, size)
        results = {
            "bound": ss.likelihood_bound(key_bound, model.sde, s, y, **scale),
            "discrete_bound": ss.likelihood.discrete_bound(
                key_bound, model.sde, s, raw, num_levels=data.levels, **bins, **scale
            ),
        }
        arrays = {name: np.asarray(result.bound) for name, result in results.items()}
        arrays |= {f"{name}_error": np.asarray(result.std_error) for name, result in results.items()}
        return arrays | {"bound_evals": np.asarray(sum(result.num_evals for result in results.values()))}

    return job


def _in_units(log_prob: np.ndarray, data: Data, width: float | None = None) -> np.ndarray:
    """Nats of `_density`, of integers as bits per dimension."""
    if data.bin_width is None:
        return log_prob
    return np.asarray(ss.bits_per_dim(log_prob, math.prod(data.event_shape), width or data.bin_width))


def _per_unit(data: Data) -> float:
    """Units of the report in a nat."""
    return 1.0 if data.bin_width is None else 1 / (math.prod(data.event_shape) * math.log(2))


def _figures(arrays: Arrays, data: Data, settings: Settings) -> dict[str, Any]:
    good = arrays["success"]
    message = failure_message(good, int(arrays["max_steps"][0]), arrays["at_limit"], arrays["time"])
    if good.sum() < 2:
        raise InputError(f"the likelihood of {(~good).sum()} of {len(good)} examples could not be had: {message}")
    mean, std_error = ss.mean_with_error(_in_units(arrays["log_prob"], data)[good])
    probe_error, dims = arrays["std_error"][good] * _per_unit(data), math.prod(data.event_shape)
    several, grid = np.all(np.isfinite(probe_error)), settings.evaluations is not None
    return {
        "unit": "nats" if data.bin_width is None else "bits/dim",
        "mean": mean,
        "std_error": std_error,
        "examples": int(good.sum()),
        "failed": int((~good).sum()),
        "message": message,
        "repeats": settings.repeats if data.bin_width else 1,
        "probes": settings.probes if settings.probes < dims else 0,
        "probe_std_error": float(np.sqrt(np.sum(probe_error**2)) / good.sum()) if several else None,
        "method": "fixed grid" if grid else f"adaptive, tolerance {settings.tolerance:g}",
        "grid_error": float(np.mean(arrays["grid_error"][good])) * _per_unit(data) if grid else None,
        "num_evals": float(np.mean(arrays["num_evals"])),
        "exact": None,
    }


def _bound_figures(arrays: Arrays, data: Data) -> dict[str, float]:
    """Bits per dimension: ``mean`` of the dequantised data like the likelihood, ``discrete_mean`` of the integers.

    Their ``std_error`` is that of the Monte Carlo, ``sample_std_error`` that over the examples, which has it in it.
    """
    figures = {"num_evals": float(arrays["bound_evals"][0]), "examples": len(arrays["bound"])}
    for prefix, name, width in (("", "bound", None), ("discrete_", "discrete_bound", 1.0)):
        mean, over_examples = ss.mean_with_error(_in_units(arrays[name], data, width))
        figures |= {f"{prefix}mean": mean, f"{prefix}sample_std_error": over_examples}
        error = np.linalg.norm(arrays[f"{name}_error"]) / len(arrays[name])
        figures[f"{prefix}std_error"] = float(error) * _per_unit(data)
    return figures
