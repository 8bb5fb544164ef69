"""What training leaves to read: ``metrics.jsonl``, and a progress bar or line."""

import json
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from experiments.processes import main_process
from experiments.writing import write_atomically

LINE_SECONDS = 10.0


class Log:
    """Lines of JSON with a step, as in ``metrics.jsonl``, cut back to the restored step so that none is repeated."""

    def __init__(self, path: Path, step: int):
        self.file = None
        if main_process():
            lines = path.read_text().splitlines(keepends=True) if path.exists() and step else []
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
            write_atomically(path, "".join(kept))
            self.file = path.open("a")

    def add(self, step: int, metrics: dict[str, Any]) -> dict[str, Any]:
        """The means over the steps that were not skipped, None where all were, and how many were."""
        taken = np.asarray(metrics["skipped"]) == 0
        entry: dict[str, Any] = {"step": step}
        for name, values in metrics.items():
            good = np.asarray(values, np.float64)[taken]
            entry[name] = float(np.mean(good)) if len(good) else None
        return self.write(entry | {"skipped": int(np.sum(~taken))})

    def write(self, entry: dict[str, Any]) -> dict[str, Any]:
        """One line, on disk when it returns."""
        if self.file is not None:
            self.file.write(json.dumps(entry) + "\n")
            self.file.flush()
        return entry

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()


@contextmanager
def progress(console: Console, total: int) -> Any:
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
