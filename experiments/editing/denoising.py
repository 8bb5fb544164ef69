"""Noise removed from examples, of a level that is known or estimated: with --as-is theirs, else added here."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import scoresde as ss
from experiments.cli.errors import InputError
from experiments.editing.job import Job, Result
from experiments.figures.stages import Stage
from scoresde.editing.denoise import noise_range

LEVELS, LEAST, MOST = 48, 0.01, 10.0  # noise levels looked at where it is unknown, in model units
COLUMNS, PROBES = 256, 64  # dimensions up to which the spread is exact; random probes above


def denoise(job: Job) -> Result:
    """Mean, a draw and the spread of x given y = x + s n."""
    key_noise, key_probes, key_draw = jax.random.split(job.key, 3)
    flags, sde, x, s = job.flags, job.sde, job.x, job.flags.noise
    _check(job, s or 10 * LEAST)
    n = jnp.stack([jax.random.normal(jax.random.fold_in(key_noise, i), x.shape[1:]) for i in range(len(x))])
    y = x if flags.as_is else x + s * n
    levels, found = _levels(job, key_probes, y)
    draws = []
    for i, level in enumerate(np.asarray(levels, float)):  # each with the table of its level, all of one shape
        row, table = y[i : i + 1], _table(job, level)
        draws.append(ss.editing.denoised_samples(key_draw, sde, job.score, row, level, table, first=i))
    mean = ss.editing.denoised(sde, job.score, y, levels)
    shown = [] if flags.as_is else [("noisy", "With noise", y)]
    shown += [("mean", "E[x | y]", mean), ("draw", "A draw from p(x | y)", jnp.concatenate(draws))]
    stages = [job.before()]
    for name, title, value in shown:
        if not flags.as_is:
            found[f"rmse_{name}"] = float(jnp.sqrt(jnp.mean((value - x) ** 2)))
        detail = "" if flags.as_is else f"rms error {found[f'rmse_{name}']:.3g} in model units"
        stages.append(job.stage(name, title, detail, value))
    return [*stages, *_spread(job, key_probes, y, levels)], found


def _table(job: Job, level: float) -> ss.Table:
    return job.table(ss.editing.shortened(job.sde, float(ss.editing.noise_time(job.sde, level))))


def _check(job: Job, level: float) -> None:
    """Whether the level is in range and the solver draws, before anything compiles."""
    if not np.any(_table(job, level).commit.s):
        solver = job.flags.solver
        raise InputError(f"--solver {solver} adds no noise: for draws given y take one that does: ancestral")


def _levels(job: Job, key: jax.Array, y: jax.Array) -> tuple[jax.Array, dict[str, Any]]:
    """The level of each example, as it is known or estimated, and its figures."""
    s, found = job.flags.noise, {}
    if s:
        found["noise"] = s
    if not job.flags.blind:
        return jnp.full(len(y), s), found
    low, high = noise_range(job.sde)
    ladder = np.geomspace(max(LEAST, low), min(MOST, high), LEVELS)
    guess = ss.editing.noise_level(key, job.sde, job.score, y, ladder)
    return guess.s, found | {"estimates": guess.s.tolist(), "posterior_std": guess.std.tolist()}


def _spread(job: Job, key: jax.Array, y: jax.Array, levels: jax.Array) -> list[Stage]:
    """The standard deviation of each element, where model units are raw units but for a shift and scale."""
    data = job.data
    if data.powers is not None or data.whitening is not None:
        return []
    probes = None if y[0].size <= COLUMNS else PROBES
    std = np.asarray(ss.editing.denoised_std(key, job.sde, job.score, y, levels, probes=probes))
    raw = std * np.asarray(data.scale, np.float32)
    return [Stage("std", "Standard deviation given y", f"white: {std.max():.3g}", raw, (0.0, float(raw.max())))]
