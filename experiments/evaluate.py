"""Samples and likelihood of a trained score, as arrays and as the figures of a report."""

import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import scoresde as ss
from experiments.data import Data
from experiments.setup import Config, Model

Score = Callable[[jax.Array, jax.Array], jax.Array]
TOLERANCE = 1e-4  # of the likelihood, relative and absolute
SAMPLER_STEPS = {"euler_maruyama": 500, "predictor_corrector": 250, "probability_flow": 50}
FRAMES, SHOWN = 9, 8


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    started = time.monotonic()
    return jax.block_until_ready(function()), round(time.monotonic() - started, 2)


def distances(key: jax.Array, real: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Sliced Wasserstein, MMD and energy distance between two sets of examples in raw units."""
    x, y = jnp.asarray(real, float), jnp.asarray(other, float)
    return {
        "sliced_wasserstein": float(ss.metrics.sliced_wasserstein(key, x, y)),
        "mmd": float(ss.metrics.mmd(x, y)),
        "energy_distance": float(ss.metrics.energy_distance(x, y)),
    }


def sample_all(key: jax.Array, config: Config, data: Data, model: Model, score: Score) -> tuple[dict, dict, dict]:
    """Draw ``config.samples`` with the reverse SDE, predictor-corrector and the probability flow.

    Returns:
        arrays ``samples_NAME`` in raw units, their figures by sampler, and the figures of real against real.
    """
    sde, shape = model.sde, (config.samples, *data.event_shape)
    keys = jax.random.split(key, 3)
    em, pc, flow = SAMPLER_STEPS.values()
    tables = {
        "euler_maruyama": ss.with_denoising(sde, ss.euler_maruyama(sde, ss.log_snr_grid(sde, em))),
        "predictor_corrector": ss.with_denoising(sde, ss.predictor_corrector(sde, ss.log_snr_grid(sde, pc))),
        "probability_flow": ss.best_solver(sde, flow, sigma_data=model.precond.sigma_data),
    }
    runs: dict[str, tuple[np.ndarray, float, float]] = {}
    for (name, table), key_run in zip(tables.items(), keys, strict=True):
        x, seconds = _timed(lambda key=key_run, table=table: ss.sample(key, score, table, shape))
        runs[name] = x, float(table.num_evals), seconds
    rng = np.random.default_rng(config.seed)
    count = min(config.samples, len(data.train))
    train = data.train[rng.choice(len(data.train), count, replace=False)]
    key_metric = jax.random.fold_in(key, 1)
    real = distances(key_metric, train, data.held_out) | {"examples": [count, len(data.held_out)]}
    arrays, figures = {}, {}
    for name, (x, num_evals, seconds) in runs.items():
        arrays[f"samples_{name}"] = data.from_model(np.asarray(x))
        figures[name] = {"num_evals": num_evals, "seconds": seconds}
        figures[name] |= distances(key_metric, arrays[f"samples_{name}"], data.held_out)
        figures[name]["ratio"] = figures[name]["sliced_wasserstein"] / real["sliced_wasserstein"]
    return arrays, figures, real


def trajectories(key: jax.Array, data: Data, model: Model, score: Score) -> dict[str, np.ndarray]:
    """The way from data to noise and back, at times equally spaced in the angle arctan(sigma/(alpha sigma_data)).

    States are shown at the scale of the data (x divided by the standard deviation of x_t), in raw units.
    """
    sde, sigma_data = model.sde, model.precond.sigma_data
    many = 512 if len(data.event_shape) == 1 and data.event_shape[0] <= 2 else SHOWN
    key_forward, key_reverse, key_uniform = jax.random.split(key, 3)
    real = data.held_out[:many]
    x = data.to_model(jnp.asarray(real), jax.random.uniform(key_uniform, real.shape))
    noise = jax.random.normal(key_forward, x.shape)
    table = ss.euler_maruyama(sde, ss.log_snr_grid(sde, SAMPLER_STEPS["euler_maruyama"]))
    path = ss.sample(key_reverse, score, table, x.shape, trajectory=True)
    phi = np.arctan2(sde.sigma(table.times), sde.alpha(table.times) * sigma_data)
    frames = [int(np.abs(phi - target).argmin()) for target in np.linspace(phi[0], phi[-1], FRAMES)]
    times = np.asarray(table.times, np.float32)[frames]

    def shown(x: jax.Array, t: float) -> np.ndarray:
        scale = sigma_data / jnp.sqrt((sde.alpha(t) * sigma_data) ** 2 + sde.variance(t))
        return np.asarray(data.from_model(np.asarray(x * scale), round_levels=False))

    return {
        "forward": np.stack([shown(sde.perturb(x, t, noise), t) for t in times[::-1]]),
        "forward_times": times[::-1],
        "reverse": np.stack([shown(path[i], t) for i, t in zip(frames, times, strict=True)]),
        "reverse_times": times,
    }


def likelihood(key: jax.Array, config: Config, data: Data, model: Model, score: Score) -> tuple[dict, dict]:
    """The log-density of the held-out examples: bits/dim for integers, nats in raw units for continuous data."""
    dims = int(np.prod(data.event_shape))
    probes = config.likelihood_probes if config.likelihood_probes < dims else 0  # D tangents give it exactly
    settings: dict[str, Any] = {
        "divergence": ss.hutchinson(probes) if probes else ss.exact_divergence,
        "sigma_data": model.precond.sigma_data,
        "rtol": TOLERANCE,
        "atol": TOLERANCE,
    }
    started = time.monotonic()
    if data.bin_width is None:
        x = data.to_model(jnp.asarray(data.held_out), None)
        result = ss.log_likelihood(key, model.sde, score, x, **settings)
        values, probe_error = np.asarray(result.log_prob) + data.log_det, np.asarray(result.std_error)
        unit, repeats = "nats", 1
    else:
        unit, repeats = "bits/dim", config.likelihood_repeats
        result = ss.dequantised_log_likelihood(
            key,
            model.sde,
            score,
            data.held_out,
            bin_width=data.bin_width,
            shift=data.shift,
            repeats=repeats,
            **settings,
        )
        values = np.asarray(ss.bits_per_dim(result.log_prob, dims, data.bin_width))
        probe_error = np.asarray(result.std_error) / (dims * np.log(2))
    good = np.asarray(result.success)
    mean, std_error = ss.mean_with_error(values[good])
    figures = {
        "unit": unit,
        "mean": mean,
        "std_error": std_error,
        "examples": int(good.sum()),
        "failed": int((~good).sum()),
        "message": result.message,
        "repeats": repeats,
        "probes": probes,
        "probe_std_error": float(np.sqrt(np.sum(probe_error[good] ** 2)) / good.sum()),
        "num_evals": float(np.mean(result.num_evals)),
        "exact": None,
    }
    arrays = {"log_prob": values}
    if data.mixture is not None:
        exact = np.asarray(ss.GaussianMixture(*data.mixture).log_prob(jnp.asarray(data.held_out)))
        arrays["exact_log_prob"] = exact
        figures["exact"] = float(exact.mean())
    figures |= {"seconds": round(time.monotonic() - started, 2)}
    return arrays, figures | {"bound": variational(jax.random.fold_in(key, 1), data, model, score)}


def variational(key: jax.Array, data: Data, model: Model, score: Score) -> dict[str, float] | None:
    """Variational bounds on the held-out examples in bits/dim, beside the exact figure; None for continuous data.

    ``mean`` is of the dequantised data, like the exact figure; ``discrete_mean`` of the integers, in three terms.
    """
    if data.bin_width is None or data.levels is None:
        return None
    started, dims = time.monotonic(), int(np.prod(data.event_shape))
    key_noise, key_bound = jax.random.split(key)
    x = data.to_model(jnp.asarray(data.held_out), jax.random.uniform(key_noise, data.held_out.shape))
    scale: dict[str, Any] = {"sigma_data": model.precond.sigma_data}
    bound = ss.likelihood_bound(key_bound, model.sde, score, x, **scale)
    bins: dict[str, Any] = {"bin_width": data.bin_width, "shift": data.shift, "num_levels": data.levels}
    discrete = ss.discrete_bound(key_bound, model.sde, score, data.held_out, **bins, **scale)
    figures: dict[str, float] = {"num_evals": bound.num_evals + discrete.num_evals}
    for prefix, result, width in (("", bound, data.bin_width), ("discrete_", discrete, 1.0)):
        figures[f"{prefix}mean"] = float(np.mean(ss.bits_per_dim(result.bound, dims, width)))
        error = np.linalg.norm(result.std_error) / len(x)
        figures[f"{prefix}std_error"] = float(error) / (dims * math.log(2))
    return figures | {"seconds": round(time.monotonic() - started, 2)}
