"""What is shown while a model trains: sheets of samples, and TensorBoard event files.

Sheets are drawn with the current average by ``ss.best_solver`` at 20 evaluations, from the same noise every time so
that progress is visible, into figures/steps/STEP.png. Event files hold what metrics.jsonl holds, in tensorboard/; the
writer is tensorboardX or tensorboard, whichever is installed and needs no TensorFlow.
"""

import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

import scoresde as ss
from experiments.cli.errors import InputError
from experiments.cli.keys import stream
from experiments.data.dataset import Data
from experiments.figures import run_figures
from experiments.figures.panels import is_image
from experiments.models.build import Model
from experiments.training.fit import OnEntry, OnState, Plan
from experiments.training.processes import main_process
from scoresde.checkpoint.leaves import to_numpy

EVALUATIONS = 20
IMAGES, POINTS = 36, 1000
Scalar = Callable[[str, float, int], None]


def watch(plan: Plan, data: Data, model: Model, step: int) -> tuple[OnState, OnEntry]:
    """What ``fit`` is to call, by the flags --sample-every and --tensorboard; training begins at ``step``.

    Raises:
        InputError: --tensorboard without a writer.
    """
    on_state = _sheets(plan, data, model, step) if plan.engine.sample_every else lambda step, state: None
    if plan.engine.tensorboard and main_process():
        return on_state, _events(plan.folder / "tensorboard", step)
    return on_state, lambda entry: None


def _sheets(plan: Plan, data: Data, model: Model, step: int) -> OnState:
    table = ss.best_solver(model.sde, EVALUATIONS, sigma_data=model.precond.sigma_data)
    shape = (IMAGES if is_image(data.event_shape) else POINTS, *data.event_shape)
    key = stream(plan.seed, "previews")
    folder, like = plan.folder / "figures" / "steps", np.asarray(data.held_out[:POINTS])
    every = plan.engine.sample_every
    drawn = step // every

    def on_state(step: int, state: ss.State) -> None:
        nonlocal drawn
        if step // every == drawn:
            return
        drawn = step // every
        x = data.from_model(to_numpy(ss.sample(key, model.score(state.ema), table, shape)))
        if main_process():
            folder.mkdir(parents=True, exist_ok=True)
            run_figures.sheet(folder / f"{step:08d}.png", x, data.levels, like)

    return on_state


def _events(folder: Path, step: int) -> OnEntry:
    scalar, flush = next((make(folder, step) for name, make in WRITERS.items() if _usable(name)), (None, None))
    if scalar is None or flush is None:
        raise InputError("--tensorboard needs a writer of event files: pip install tensorboardX, or drop the flag")

    def on_entry(entry: dict[str, Any]) -> None:
        for name, value in entry.items():
            if name != "step" and value is not None:
                scalar(name, value, entry["step"])
        flush()

    return on_entry


def _usable(name: str) -> bool:
    """Whether a writer is installed; tensorboard would load TensorFlow, if that is there."""
    return find_spec(name) is not None and not (name == "tensorboard" and find_spec("tensorflow") is not None)


def _tensorboardx(folder: Path, step: int) -> tuple[Scalar, Callable[[], None]]:
    writer = import_module("tensorboardX").SummaryWriter(str(folder), purge_step=step)
    return writer.add_scalar, writer.flush


def _tensorboard(folder: Path, step: int) -> tuple[Scalar, Callable[[], None]]:
    writer = import_module("tensorboard.summary.writer.event_file_writer").EventFileWriter(str(folder))
    event = import_module("tensorboard.compat.proto.event_pb2").Event
    summary = import_module("tensorboard.compat.proto.summary_pb2").Summary

    def scalar(name: str, value: float, step: int) -> None:
        values = summary(value=[summary.Value(tag=name, simple_value=value)])
        writer.add_event(event(wall_time=time.time(), step=step, summary=values))

    return scalar, writer.flush


WRITERS = {"tensorboardX": _tensorboardx, "tensorboard": _tensorboard}
