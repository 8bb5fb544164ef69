"""Train a model into a folder: progress, log and checkpoints, resumed exactly where it stopped."""

import json
import os
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from experiments.data import Data, InputError
from experiments.setup import Config, Model
from scoresde import State, checkpoint

STEPS_PER_CALL = 50
LINE_SECONDS = 10.0


class Interrupted(Exception):
    """Training was asked to stop; the checkpoint is on disk."""


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old or the new one, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def check_folder(config: Config) -> None:
    """Make the run's folder, or raise InputError if it cannot be written or holds another run."""
    folder = config.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}; choose another --workdir") from None
    path = folder / "checkpoint"
    try:
        saved = checkpoint.read_metadata(path).get("config", {})
    except FileNotFoundError:
        return
    except ValueError as error:
        raise InputError(str(error)) from None
    if not config.resume:
        raise InputError(f"{folder} already holds a run; choose another --workdir, or drop --no-resume to continue it")
    for flag, value in config.training().items():
        if saved.get(flag) != value:
            name = f"--{flag.replace('_', '-')}"
            raise InputError(
                f"{path} was trained with {name} {saved.get(flag)}, not {value}: "
                f"use the same flags to continue it, or another --workdir"
            )


def start(config: Config, model: Model) -> State:
    """The state in the run's checkpoint, else a fresh one; a damaged checkpoint is an InputError."""
    try:
        return checkpoint.restore(config.folder / "checkpoint", jax.eval_shape(model.init))[0]
    except FileNotFoundError:
        return model.init()
    except ValueError as error:
        raise InputError(str(error)) from None


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


class Log:
    """``metrics.jsonl``: one line a compiled call, cut back to the restored step so that it never repeats itself."""

    def __init__(self, path: Path, step: int):
        lines = path.read_text().splitlines(keepends=True) if path.exists() and step else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        write_atomically(path, "".join(kept))
        self.file = path.open("a")

    def add(self, step: int, metrics: dict[str, Any]) -> dict[str, Any]:
        entry = {"step": step} | {k: float(np.mean(np.asarray(v, np.float64))) for k, v in metrics.items()}
        self.file.write(json.dumps(entry) + "\n")
        self.file.flush()
        return entry


@contextmanager
def _progress(console: Console, total: int) -> Any:
    """A function (step, loss, steps a second) that shows them: a bar on a terminal, else a line now and then."""
    if console.is_terminal:
        columns = (
            TextColumn("training"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}  {task.fields[rate]:.0f} steps/s"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("", total=total, loss=float("nan"), rate=0.0)
            yield lambda step, loss, rate: bar.update(task, completed=step, loss=loss, rate=rate)
        return
    last = [time.monotonic()]

    def line(step: int, loss: float, rate: float) -> None:
        if step == total or time.monotonic() - last[0] > LINE_SECONDS:
            last[0] = time.monotonic()
            left = (total - step) / max(rate, 1e-9)
            console.print(
                f"step {step}/{total}  loss {loss:.4f}  {rate:.0f} steps/s  {left:.0f} s left", highlight=False
            )

    yield line


def fit(config: Config, data: Data, model: Model, state: State, console: Console) -> tuple[State, dict[str, Any]]:
    """Train from ``state`` to ``config.steps``; the state is donated.

    Returns:
        the final state and {steps, seconds, steps_per_second, final_loss, parameters} of this process.

    Raises:
        InputError: the loss is not finite.
        Interrupted: a signal asked to stop; everything is saved.
    """
    total, batch = int(config.steps or 0), int(config.batch or 0)
    path = config.folder / "checkpoint"
    first = step = int(state.step)
    if first:
        console.print(f"continuing from step {first} of {total}", highlight=False)
    log = Log(config.folder / "metrics.jsonl", step)
    examples = jax.tree.map(jnp.asarray, data.batch(slice(None)))

    def save() -> None:
        checkpoint.save(path, state, {"config": config.training()})

    entry: dict[str, Any] = {}
    started = saved = time.monotonic()
    with _stop_requested() as stopping, _progress(console, total) as show:
        while step < total:
            steps = min(STEPS_PER_CALL, total - step)
            state, metrics = model.trainer.run(state, examples, steps=steps, batch_size=min(batch, data.counts[0]))
            step += steps
            entry = log.add(step, metrics)
            if not np.isfinite(entry["loss"]):
                raise InputError(
                    f"the loss is {entry['loss']} at step {step}: lower --learning-rate; "
                    f"the last checkpoint in {path} is kept"
                )
            show(step, entry["loss"], (step - first) / (time.monotonic() - started))
            if step == total or stopping() or time.monotonic() - saved > config.save_seconds:
                save()
                saved = time.monotonic()
            if stopping() and step < total:
                raise Interrupted(f"stopped at step {step} of {total}; the same command continues from there")
    seconds = time.monotonic() - started
    lines = (config.folder / "metrics.jsonl").read_text().splitlines()
    return state, {
        "steps": total,
        "seconds": round(seconds, 2),
        "steps_per_second": round((step - first) / seconds, 2) if step > first else None,
        "final_loss": json.loads(lines[-1])["loss"] if lines else None,
    }


def fail(message: str) -> NoReturn:
    """Print one line on standard error and leave with exit code 2."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)
