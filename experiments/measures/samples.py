"""Samples of a trained score: drawn in batches, compared with real data, and the path that leads to them."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import scoresde as ss
from experiments.data.dataset import Data
from experiments.measures.jobs import Work, spread_score
from experiments.measures.likelihoods import of_rows
from experiments.models.build import Model
from experiments.models.values import Objective

SAMPLER_STEPS = {"euler_maruyama": 500, "predictor_corrector": 250, "probability_flow": 100}
FRAMES, SHOWN = 9, 8


def draw(
    name: str,
    key: jax.Array,
    data: Data,
    score: Any,
    table: ss.Table,
    count: int,
    work: Work,
    classes: np.ndarray | None = None,
) -> tuple[np.ndarray, int]:
    """``count`` samples (count, *event) in raw units, sample i by (key, i) and its class alone, and how many were not
    finite."""
    score_of = of_rows(spread_score(score), classes)

    def job(first: int, size: int) -> dict[str, Any]:
        x = np.asarray(ss.sample(key, score_of(first, size), table, (size, *data.event_shape), first=first))
        return {"x": data.from_model(x), "finite": np.all(np.isfinite(x.reshape(size, -1)), axis=1)}

    done = work.run(name, job, count)
    return done["x"], int(np.sum(~done["finite"]))


def distances(key: jax.Array, real: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Sliced Wasserstein, MMD and energy distance between two sets of examples in raw units."""
    x, y = jnp.asarray(real, float), jnp.asarray(other, float)
    return {
        "sliced_wasserstein": float(ss.evaluation.sliced_wasserstein(key, x, y)),
        "mmd": float(ss.evaluation.mmd(x, y)),
        "energy_distance": float(ss.evaluation.energy_distance(x, y)),
    }


def some_of_training(seed: int, data: Data, count: int) -> np.ndarray:
    """So many training examples in raw units, drawn by the seed; all where there are no more."""
    count = min(count, len(data.train))
    return data.train[np.random.default_rng(seed).choice(len(data.train), count, replace=False)]


def of_training(key: jax.Array, seed: int, data: Data, count: int, held_out: np.ndarray) -> dict[str, Any]:
    """The distances that so many training examples, drawn by the seed, have to the held-out ones."""
    train = some_of_training(seed, data, count)
    return distances(key, train, held_out) | {"examples": [len(train), len(held_out)]}


def compared(
    key: jax.Array,
    seed: int,
    data: Data,
    score: Any,
    table: ss.Table,
    count: int,
    held_out: np.ndarray,
    work: Work,
    classes: np.ndarray | None = None,
) -> dict[str, dict[str, Any]]:
    """The distances of ``count`` samples to the held-out examples, and those of as many training examples."""
    key_draw, key_metric = jax.random.split(key)
    started = time.monotonic()
    x, broken = draw("samples", key_draw, data, score, table, count, work, classes)
    seconds, real = round(time.monotonic() - started, 2), of_training(key_metric, seed, data, count, held_out)
    figures = {"num_evals": table.num_evals, "examples": [count, len(held_out)], "seconds": seconds}
    figures |= distances(key_metric, x, held_out) | {"not_finite": broken}
    figures["ratio"] = figures["sliced_wasserstein"] / real["sliced_wasserstein"]
    return {"samples": figures, "real": real}


def drawn_classes(objective: Objective, seed: int, data: Data, count: int) -> np.ndarray | None:
    """The classes (count,) of training examples drawn by the seed; None for a model without them."""
    if objective.condition == "none" or data.train_labels is None:
        return None
    return np.random.default_rng(seed).choice(data.train_labels, count)


def sample_all(
    key: jax.Array,
    seed: int,
    data: Data,
    model: Model,
    score: Any,
    count: int,
    work: Work,
    classes: np.ndarray | None = None,
) -> tuple[dict, dict, dict]:
    """Draw ``count`` samples, of ``classes``, with the reverse SDE, predictor-corrector and the probability flow.

    Returns:
        arrays ``samples_NAME`` in raw units, their figures by sampler, and the figures of real against real.
    """
    sde = model.sde
    em, pc, ode = SAMPLER_STEPS.values()
    tables = {
        "euler_maruyama": ss.with_denoising(sde, ss.euler_maruyama(sde, ss.log_snr_grid(sde, em))),
        "predictor_corrector": ss.with_denoising(sde, ss.predictor_corrector(sde, ss.log_snr_grid(sde, pc))),
        "probability_flow": ss.best_solver(sde, ode, sigma_data=model.precond.sigma_data),
    }
    *key_runs, key_metric = jax.random.split(key, 1 + len(tables))
    real = of_training(key_metric, seed, data, count, data.held_out)
    arrays, figures = {}, {}
    for (name, table), key_run in zip(tables.items(), key_runs, strict=True):
        started = time.monotonic()
        x, broken = draw(name, key_run, data, score, table, count, work, classes)
        figures[name] = {"num_evals": float(table.num_evals), "seconds": round(time.monotonic() - started, 2)}
        figures[name] |= distances(key_metric, x, data.held_out) | {"not_finite": broken}
        figures[name]["ratio"] = figures[name]["sliced_wasserstein"] / real["sliced_wasserstein"]
        arrays[f"samples_{name}"] = x
    return arrays, figures, real


def trajectories(key: jax.Array, data: Data, model: Model, score: Any) -> dict[str, np.ndarray]:
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
