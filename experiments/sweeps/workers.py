"""Work on the cells of a sweep, by any number of processes that share a folder: on one machine, or on many by SLURM.

A worker goes through the cells and does those that nobody has done and nobody is at; it claims a training by a lock on
a file in its folder, which the system takes back when the worker ends, however it ends. So a cell whose worker was
killed is taken over, from its last checkpoint, and the same command given twice shares the work. Trainings that differ
in the seed alone follow each other and share all that was compiled.
"""

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

import scoresde as ss
from experiments.cli import compile_cache, machine
from experiments.cli.errors import InputError, Interrupted
from experiments.cli.keys import stream
from experiments.cli.writing import write_json
from experiments.data.dataset import Data
from experiments.measures import classes, samples
from experiments.measures.jobs import Parts, Work
from experiments.measures.likelihoods import likelihood
from experiments.models.build import Model, build, reseeded
from experiments.models.flags import Config
from experiments.sweeps.cells import Cell
from experiments.training.session import Trained, train
from experiments.training.snapshots import stored
from scoresde.checkpoint.locks import locked

HISTORY = 4  # values that a solver's table keeps: of one width, tables of as many evaluations share a compilation
WAIT_SECONDS = 1.0


class Builder:
    """``build`` that remembers the last model, to be used for other seeds."""

    def __init__(self) -> None:
        self.config: Config | None = None
        self.model: Model | None = None

    def __call__(self, config: Config, data: Data) -> Model:
        alike = self.config and self.config.replace(seed=config.seed, workdir=config.workdir) == config
        self.model = reseeded(self.model, config, data) if alike and self.model else build(config, data)
        self.config = config
        return self.model


@dataclasses.dataclass(frozen=True)
class Place:
    """One of ``count`` workers: its number, and what it has of the machine."""

    number: int = 0
    count: int = 1
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    """Variables that show it its devices."""
    cores: tuple[int, ...] = ()
    """The processor's cores that are its own; () for any."""


def worker(cells: list[Cell], root: Path, place: Place, cached: bool) -> None:
    """Do cells until all are done or who started this process has ended: the whole of a process."""
    os.environ |= place.environment
    if place.cores:
        os.sched_setaffinity(0, place.cores)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # also where SIGINT is ignored, as in the background
    compile_cache.set_up(cached)
    if parent := multiprocessing.parent_process():
        threading.Thread(target=_stop_after, args=(parent,), daemon=True).start()
    with contextlib.suppress(Interrupted, KeyboardInterrupt):
        work(cells, root, place)


def _stop_after(parent: Any) -> None:
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def work(cells: list[Cell], root: Path, place: Place) -> None:
    """Do what nobody else is at, until every cell is done.

    Cells of one program follow each other; each worker begins with another program.
    """
    builder, left = Builder(), in_order(cells, place.number / place.count)
    while left := [cell for cell in left if cell.result(root) is None]:
        idle = True
        for cell in left:
            with claim(cell.folder(root)) as mine:
                if mine and cell.result(root) is None:
                    write_json(cell.path(root), do(cell, root, builder))
                    idle = False
        if idle:
            time.sleep(WAIT_SECONDS)


def in_order(cells: list[Cell], start: float) -> list[Cell]:
    """The cells program by program and training by training, from the program on that is this part of the way."""
    programs: dict[str, dict[str, list[Cell]]] = {}
    for cell in cells:
        programs.setdefault(cell.program, {}).setdefault(cell.trained, []).append(cell)
    groups = [[cell for of_one in trainings.values() for cell in of_one] for trainings in programs.values()]
    first = int(start * len(groups))
    return [cell for group in groups[first:] + groups[:first] for cell in group]


@contextlib.contextmanager
def claim(folder: Path) -> Iterator[bool]:
    """Whether the training in this folder is ours while the context lasts."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "claim").touch()
    with locked(folder / "claim") as mine:
        yield mine


def do(cell: Cell, root: Path, builder: Builder) -> dict[str, Any]:
    """Train, unless that is done, and measure; returns the result, or {"error": why there is none}."""
    config = cell.config.replace(workdir=cell.folder(root), keep=1)
    try:
        trained = train(config, Console(quiet=True), "sweep", build=builder)
        assert trained is not None
        return measure(cell, trained, root)
    except InputError as error:
        return {"error": str(error)}
    except Exception as error:
        cell.path(root).with_suffix(".traceback").write_text(traceback.format_exc())
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def measure(cell: Cell, trained: Trained, root: Path) -> dict[str, Any]:
    """The figures of a trained cell, with what made them."""
    started, how = time.monotonic(), cell.measurement
    config, data, model = trained.config, trained.data, trained.model
    some, count = config.evaluation.likelihood_examples, config.evaluation.samples
    score = model.score(parameters(cell, trained, cell.folder(root)))
    parts = Parts(cell.path(root).with_suffix(".parts"), {"cell": cell.measured}, replace=True)
    work, held_out = Work(config.evaluation.evaluation_batch, parts), data.held_out[:some]
    figures: dict[str, Any] = {}
    if {"likelihood", "bound"} & set(how.kinds):
        known = classes.known(config.objective, data, some)
        settings = how.settings(config)
        _, figures["likelihood"] = likelihood(
            stream(config.seed, "likelihood"), data, model, score, held_out, settings, work, classes=known
        )
    if "samples" in how.kinds:
        of = samples.drawn_classes(config.objective, config.seed, data, count)
        drawn = score if of is None else ss.guidance.classifier_free(score, score, how.guidance)
        table = ss.solvers.padded(how.table(model.sde, model.precond.sigma_data), history=HISTORY)
        key_draw = stream(config.seed, "samples")
        figures |= samples.compared(key_draw, config.seed, data, drawn, table, count, data.held_out, work, of)
    parts.remove()
    figures["seconds"] = round(time.monotonic() - started, 2)
    about = {"asked": cell.asked, "parameters": model.parameters, "training": trained.training}
    return about | figures | {"environment": machine.environment("sweep")}


def parameters(cell: Cell, trained: Trained, folder: Path) -> Any:
    """Those that the measurement is of."""
    how, model = cell.measurement, trained.model
    if how.ema_length is not None:
        try:
            steps = int(trained.config.optimiser.steps or 0)
            return ss.training.reconstruct(list(stored(folder, model)), how.ema_length, steps)
        except ValueError as error:
            raise InputError(f"--ema-length {how.ema_length}: {error}") from None
    if how.raw:
        return ss.checkpoint.restore(folder / "checkpoint", jax.eval_shape(model.init))[0].params
    return trained.params
