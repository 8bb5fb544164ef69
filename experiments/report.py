"""The report of a run, remade at any time from the files in its folder alone.

    python -m experiments.report runs/digits-vp

reads config.json, environment.json, metrics.jsonl, arrays.npz and report.json, and writes report.md and figures/.
No model code is imported: a report needs no accelerator, no network and no checkpoint.
"""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from experiments.cli import commands
from experiments.figures.report import table, write


@dataclasses.dataclass(frozen=True)
class Flags:
    """Write the report of a run again, from what is in its folder."""

    folder: Annotated[Path, tyro.conf.Positional]
    """Folder of the run, such as runs/digits-vp."""


def program(flags: Flags, console: Console) -> None:
    """Write the report and print its table."""
    console.print(table(write(flags.folder)))
    console.print(f"report: {flags.folder / 'report.md'}", highlight=False, markup=False)


def main() -> None:
    """Command line; see ``commands.main``."""
    commands.main(Flags, "report", program, cached=None)


if __name__ == "__main__":
    main()
