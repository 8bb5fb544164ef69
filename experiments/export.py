"""A trained model in two files that need nothing of this code to be read.

    python -m experiments.export --checkpoint runs/digits-vp --out digits

    digits/model.safetensors    params/NAME and averages/I/NAME, the parameters and each of their moving averages
    digits/model.json           the SDE, the preconditioning, the network's arguments, the data's scaling, the flags

NAME is the path of an array in the network, such as blocks/0/first/kernel. averages/0 is what samples are drawn with.
"""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from experiments.cli import commands
from experiments.cli.errors import InputError
from experiments.cli.writing import write_atomically
from scoresde.checkpoint import folder as checkpoint


def names(leaf: str) -> str | None:
    """The exported name of a leaf of the state, None for what only training needs."""
    kind = re.match(r"\.(params|averages\[(\d+)\])(?=\[|$)", leaf)
    if kind is None:
        return None
    path = re.findall(r"\['(.*?)'\]", leaf[kind.end() :])
    return "/".join(["params" if kind[2] is None else f"averages/{kind[2]}", *path])


def export(folder: Path, out: Path) -> list[Path]:
    """Write the newest checkpoint of a run (or a checkpoint folder itself) to ``out``; returns the files.

    Raises:
        InputError: there is no readable checkpoint, safetensors is missing, or ``out`` cannot be written.
    """
    try:
        from safetensors.numpy import save_file
    except ImportError:
        raise InputError("exporting a model needs safetensors: pip install 'scoresde[interop]'") from None
    inner = folder / "checkpoint"
    try:
        arrays, metadata = checkpoint.read_arrays(inner if inner.exists() else folder)
    except (ValueError, OSError) as error:
        raise InputError(str(error)) from None
    chosen = {name: np.ascontiguousarray(array) for leaf, array in arrays.items() if (name := names(leaf))}
    content: dict[str, Any] = {"format": "scoresde-export-1", "step": int(arrays[".step"])} | metadata
    files = [out / "model.safetensors", out / "model.json"]
    try:
        out.mkdir(parents=True, exist_ok=True)
        save_file(chosen, files[0])
        write_atomically(files[1], json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror}; choose another --out") from None
    return files


@dataclasses.dataclass(frozen=True)
class Flags:
    """Export a trained model as safetensors and JSON."""

    checkpoint: Path
    """Folder of a run, or its checkpoint."""
    out: Path
    """Folder to write."""


def program(flags: Flags, console: Console) -> None:
    """Write the files and name them."""
    for file in export(flags.checkpoint, flags.out):
        console.print(file, highlight=False)


def main() -> None:
    """Command line; see ``commands.main``."""
    commands.main(Flags, "export", program)


if __name__ == "__main__":
    main()
