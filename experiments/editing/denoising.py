"""Noise removed from examples, of a level that is known or estimated: with --as-is theirs, else added here."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import scoresde as ss
from experiments.cli.errors import InputError
from experiments.editing.job import Job, Result
from experiments.figures.stages import Stage
from experiments.measures.jobs import Arrays
from scoresde.arrays import example_keys, normal_per_example
from scoresde.editing.denoise import noise_range

LEVELS, LEAST, MOST = 48, 0.01, 10.0  # noise levels looked at where it is unknown, in model units
COLUMNS, PROBES = 256, 64  # dimensions up to which the spread is exact; random probes above


def denoise(job: Job) -> Result:
    """Mean, a draw and the spread of x given y = x + s n."""
    keys, flags = jax.random.split(job.key, 3), job.flags
    _check(job, flags.noise or 10 * LEAST)
    done, figures = job.run(partial(_denoised, job, keys)), {} if flags.noise is None else {"noise": flags.noise}
    if flags.blind:
        figures |= {"estimates": done["level"].tolist(), "posterior_std": done["level_std"].tolist()}
    shown = [] if flags.as_is else [("noisy", "With noise")]
    stages, x = [job.before()], np.asarray(job.data.to_model(job.raw))
    for name, title in (*shown, ("mean", "E[x | y]"), ("draw", "A draw from p(x | y)")):
        detail = ""
        if not flags.as_is:
            figures[f"rmse_{name}"] = float(np.sqrt(np.mean((done[name] - x) ** 2)))
            detail = f"rms error {figures[f'rmse_{name}']:.3g} in model units"
        stages.append(job.stage(name, title, detail, done[name]))
    if "std" in done:
        std = done["std"]
        raw = std * np.asarray(job.data.scale, np.float32)
        detail = f"white: {std.max():.3g}"
        stages.append(Stage("std", "Standard deviation given y", detail, raw, (0.0, float(raw.max()))))
    return stages, figures


def _denoised(job: Job, keys: jax.Array, first: int, size: int) -> Arrays:
    """Of so many examples: what is shown, in model units, and the level of their noise."""
    (key_noise, key_probes, key_draw), flags, sde, y = keys, job.flags, job.sde, job.x(first, size)
    if not flags.as_is:
        y = y + flags.noise * normal_per_example(example_keys(key_noise, size, first), y.shape[1:], y.dtype)
    level, error = _levels(job, key_probes, y, first)
    draws = []
    for i, s in enumerate(np.asarray(level, float)):  # each with the table of its level, all of one shape
        row, table = y[i : i + 1], _table(job, s)
        draws.append(ss.editing.denoised_samples(key_draw, sde, job.score, row, s, table, first=first + i))
    found = {"noisy": y, "mean": ss.editing.denoised(sde, job.score, y, level), "draw": jnp.concatenate(draws)}
    found |= {"level": level, "level_std": error}
    if job.data.powers is None and job.data.whitening is None:  # model units are raw units but for a shift and scale
        probes = None if y[0].size <= COLUMNS else PROBES
        found["std"] = ss.editing.denoised_std(key_probes, sde, job.score, y, level, probes=probes, first=first)
    return {name: np.asarray(value) for name, value in found.items()}


def _table(job: Job, level: float) -> ss.Table:
    return job.table(ss.editing.shortened(job.sde, float(ss.editing.noise_time(job.sde, level))))


def _check(job: Job, level: float) -> None:
    """Whether the level is in range and the solver draws, before anything compiles."""
    if not np.any(_table(job, level).commit.s):
        solver = job.flags.solver
        raise InputError(f"--solver {solver} adds no noise: for draws given y take one that does: ancestral")


def _levels(job: Job, key: jax.Array, y: jax.Array, first: int) -> tuple[jax.Array, jax.Array]:
    """The level of each example as it is known, or as it is estimated, and its error."""
    if not job.flags.blind:
        return jnp.full(len(y), job.flags.noise), jnp.zeros(len(y))
    low, high = noise_range(job.sde)
    ladder = np.geomspace(max(LEAST, low), min(MOST, high), LEVELS)
    guess = ss.editing.noise_level(key, job.sde, job.score, y, ladder, first=first)
    return guess.s, guess.std
