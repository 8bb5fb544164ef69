"""What training leaves to read: files of JSON lines such as ``metrics.jsonl``."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from experiments.cli.writing import write_atomically
from experiments.training.processes import main_process


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
