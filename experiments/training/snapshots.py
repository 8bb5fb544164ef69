"""Snapshots of a run's power averages, from which ``experiments.ema`` makes the average of any other length.

Each of RUN/averages/STEP is a checkpoint of (average of the first length, of the second, ...), with the metadata
{step, sigma_rels}; about 32 of them are spread evenly over the training.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax

import scoresde as ss
from experiments.models.build import Model

FOLDER, SNAPSHOTS = "averages", 32


def due(step: int, steps: int, total: int) -> bool:
    """Whether one of the SNAPSHOTS equal parts of the training ended in the last ``steps`` steps."""
    return step * SNAPSHOTS // total > (step - steps) * SNAPSHOTS // total


def store(folder: Path, trainer: ss.Trainer, state: ss.State) -> None:
    """Write the power averages of a state to FOLDER/STEP, where there are any."""
    lengths = _lengths(trainer)
    if lengths:
        step = int(state.step)
        content = tuple(state.averages[i] for i in lengths)
        metadata = {"step": step, "sigma_rels": list(lengths.values())}
        ss.checkpoint.save(folder / FOLDER / f"{step:012d}", content, metadata)


def stored(folder: Path, model: Model) -> Iterator[tuple[int, float, Any]]:
    """The snapshots of a run for ``reconstruct``, each average a function that reads it."""
    averages = jax.eval_shape(model.init).averages
    target = tuple(averages[i] for i in _lengths(model.trainer))
    for path in sorted((folder / FOLDER).glob("[0-9]*")):
        metadata = ss.checkpoint.read_metadata(path)
        for i, length in enumerate(metadata["sigma_rels"]):
            yield metadata["step"], length, partial(_read, path, target, i)


def _read(path: Path, target: Any, i: int) -> Any:
    return ss.checkpoint.restore(path, target)[0][i]


def _lengths(trainer: ss.Trainer) -> dict[int, float]:
    """{place among the averages: sigma_rel} of those with a power profile."""
    return {i: p.sigma_rel for i, p in enumerate(trainer.averages) if isinstance(p, ss.training.Power)}
