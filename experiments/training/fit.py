"""Train a model into a folder: progress, log and checkpoints, resumed exactly where it stopped."""

import dataclasses
import json
import signal
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rich.console import Console

from experiments.cli.errors import InputError, Interrupted
from experiments.cli.machine import versions
from experiments.cli.progress import progress
from experiments.data.dataset import Data
from experiments.data.stream import batches
from experiments.models.build import Model
from experiments.models.flags import Config
from experiments.models.score_objective import level_curves
from experiments.models.values import Engine
from experiments.training import snapshots
from experiments.training.logs import Log
from experiments.training.processes import in_any_process, main_process, memory_errors
from scoresde import State, Trainer
from scoresde.checkpoint import folder as checkpoint
from scoresde.checkpoint.leaves import place, to_devices
from scoresde.training import batch_sharding, device_mesh, state_sharding

STEPS_PER_CALL = 50
DEFAULTS = Config().flat()
OnState = Callable[[int, State], None]
"""(step, state) after each compiled call is dispatched; the state is not to be kept."""
OnEntry = Callable[[dict[str, Any]], None]
"""(a line of metrics.jsonl) when it is written, up to one call later."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """A training: where it lies, how long it is, and how it is done."""

    folder: Path
    steps: int
    batch: int
    seed: int
    """Of the order of data that are streamed."""
    engine: Engine
    flags: dict[str, Any]
    """What its checkpoints depend on."""

    @classmethod
    def of(cls, config: Config) -> "Plan":
        """The training of a resolved configuration."""
        steps, batch = int(config.optimiser.steps or 0), int(config.optimiser.batch or 0)
        return cls(config.folder, steps, batch, config.seed, config.engine, config.training())


def check_folder(plan: Plan, *, resume: bool) -> None:
    """Make the run's folder, or raise InputError if it cannot be written or holds a run of other training flags."""
    folder = plan.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink(missing_ok=True)  # several processes may try at once
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}; choose another --workdir") from None
    path, saved = folder / "checkpoint", stored(folder).get("config")
    if saved is None:
        return
    if not resume:
        raise InputError(f"{folder} already holds a run; choose another --workdir, or drop --no-resume to continue it")
    for flag, value in plan.flags.items():
        if saved.get(flag, DEFAULTS[flag]) != value:
            name = f"--{flag.replace('_', '-')}"
            raise InputError(
                f"{path} was trained with {name} {saved.get(flag)}, not {value}: "
                f"use the same flags to continue it, or another --workdir"
            )


def stored(folder: Path) -> dict[str, Any]:
    """The metadata of the checkpoint in the run's folder, {} without one; a damaged one is an InputError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a damaged version: ``start`` says so
            return {"config": {}} | checkpoint.read_metadata(folder / "checkpoint")
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise InputError(str(error)) from None


def training_mesh(batch: int, engine: Engine) -> Mesh | None:
    """The mesh of all devices, or None where there is but one; InputError where the flags do not fit their number."""
    devices, parts = jax.device_count(), engine.microbatches
    if devices % engine.fsdp:
        raise InputError(f"--fsdp {engine.fsdp} must divide the number of devices, {devices}")
    if batch % (devices * parts):
        raise InputError(f"--batch {batch} must be a multiple of devices x --microbatches = {devices} x {parts}")
    return device_mesh(engine.fsdp) if devices > 1 else None


def start(plan: Plan, model: Model) -> State:
    """The state in the run's checkpoint, else a fresh one, on all devices; a damaged checkpoint is an InputError."""
    mesh, target = training_mesh(plan.batch, plan.engine), jax.eval_shape(model.init)
    if mesh is not None:
        where = state_sharding(mesh, target)
        target = jax.tree.map(lambda s, at: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=at), target, where)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            state = checkpoint.restore(plan.folder / "checkpoint", target)[0]
    except FileNotFoundError:
        return model.init() if mesh is None else to_devices(model.init(), target)
    except ValueError as error:
        raise InputError(str(error)) from None
    for warning in caught if main_process() else ():
        print(f"warning: {warning.message}", file=sys.stderr)
    return state


@contextmanager
def _stop_requested() -> Any:
    """A function that tells whether SIGINT or SIGTERM came; a second signal acts as it would without us."""
    seen: list[int] = []
    previous: dict[int, Any] = {}

    def note(number: int, _: Any) -> None:
        seen.append(number)
        for other, handler in previous.items():
            signal.signal(other, handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, note)
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _advance(plan: Plan, data: Data, trainer: Trainer, step: int) -> Callable[[State, int], Any]:
    """A function (state, steps) -> (state, metrics) on data that lie on the devices, or stream to them."""
    batch, mesh = min(plan.batch, len(data.train)), trainer.mesh
    if batch % (jax.device_count() * plan.engine.microbatches):
        raise InputError(
            f"{batch} training examples are fewer than --batch and not a multiple of devices x --microbatches"
        )
    if not data.streamed:
        everywhere = None if mesh is None else NamedSharding(mesh, PartitionSpec())
        examples = jax.tree.map(lambda a: place(a, everywhere), data.batch(slice(None)))
        return lambda state, steps: trainer.run(state, examples, steps=steps, batch_size=batch)
    share = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    order = {"seed": plan.seed, "step": step, "total": plan.steps, "steps_per_call": STEPS_PER_CALL}
    stream = batches(data, batch=batch, **order, **share)

    def advance(state: State, _: int) -> Any:
        stacked = next(stream)
        if mesh is not None:
            cut = batch_sharding(mesh, stacked=True)
            stacked = jax.tree.map(lambda a: jax.make_array_from_process_local_data(cut, a), stacked)
        return trainer.run_batches(state, stacked)

    return advance


def fit(
    plan: Plan,
    data: Data,
    model: Model,
    state: State,
    console: Console,
    on_state: OnState = lambda step, state: None,
    on_entry: OnEntry = lambda entry: None,
) -> tuple[State, dict[str, Any]]:
    """Train from ``state`` to ``plan.steps``; the state is donated.

    A call is dispatched before the metrics of the one before are read, so the devices do not wait for the host.

    Returns:
        the final state and {steps, seconds, steps_per_second, final_loss} of this process.

    Raises:
        InputError: ``--skip-limit`` steps in a row were not finite, or a device has not enough memory.
        Interrupted: a signal asked to stop; everything is saved.
    """
    folder, total, engine = plan.folder, plan.steps, plan.engine
    metadata = {"config": plan.flags, "data": data.record(), "model": model.record, "versions": versions()}
    first = step = int(state.step)
    if first:
        console.print(f"continuing from step {first} of {total}", highlight=False)
    trainer = dataclasses.replace(model.trainer, mesh=training_mesh(plan.batch, engine))
    started = saved = time.monotonic()

    def record(at: int, metrics: Any) -> None:
        entry = log.add(at, metrics)
        _check_skipped(plan, metrics, state)
        on_entry(entry)
        show(at, "every step skipped" if entry["loss"] is None else f"loss {entry['loss']:.4f}")

    with (
        memory_errors(),
        Log(folder / "metrics.jsonl", step) as log,
        Log(folder / "levels.jsonl", step) as levels,
        checkpoint.Writer(folder / "checkpoint", keep=engine.keep) as writer,
        _stop_requested() as stopping,
        progress(console, "step", total) as show,
    ):
        advance = _advance(plan, data, trainer, step)
        unread = None
        if step < total:
            show(step)
        while step < total:
            steps = min(STEPS_PER_CALL, total - step)
            state, metrics = advance(state, steps)
            if unread:
                record(*unread)
            step, unread = step + steps, (step + steps, metrics)
            on_state(step, state)
            if snapshots.due(step, steps, total):
                if state.carry is not None:
                    levels.write({"step": step} | level_curves(state.carry))
                snapshots.store(folder, model.trainer, state)
            stop = in_any_process(stopping())
            if step == total or stop or in_any_process(time.monotonic() - saved > engine.save_seconds):
                record(*unread)
                unread = None
                writer.save(state, metadata)
                saved = time.monotonic()
            if stop and step < total:
                raise Interrupted(f"stopped at step {step} of {total}; the same command continues from there")
    return state, _summary(plan, first, time.monotonic() - started)


def _check_skipped(plan: Plan, metrics: Any, state: State) -> None:
    row = int(np.max(np.asarray(metrics["skipped"])))
    if row >= plan.engine.skip_limit:
        raise InputError(
            f"{row} steps in a row were skipped, the first: {state.skipped.report(state.params)}; "
            f"lower --learning-rate, or look at the data; the last checkpoint in {plan.folder / 'checkpoint'} is kept"
        )


def _summary(plan: Plan, first: int, seconds: float) -> dict[str, Any]:
    """What the report says of a training that began at step ``first``."""
    lines = (plan.folder / "metrics.jsonl").read_text().splitlines() if main_process() else []
    return {
        "steps": plan.steps,
        "seconds": round(seconds, 2),
        "steps_per_second": round((plan.steps - first) / seconds, 2) if plan.steps > first else None,
        "final_loss": json.loads(lines[-1])["loss"] if lines else None,
    }
