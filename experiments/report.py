"""The report of a run, remade at any time from the files in its folder alone.

    python -m experiments.report runs/digits-vp

reads config.json, environment.json, metrics.jsonl, arrays.npz and report.json, and writes report.md and figures/.
No model code is imported: a report needs no accelerator, no network and no checkpoint.
"""

import sys
from pathlib import Path

from rich.console import Console

from experiments.cli.errors import InputError
from experiments.figures.report import table, write


def main(arguments: list[str]) -> int:
    """Command line: remake the report of FOLDER; a mistake is one line on standard error and exit code 2."""
    try:
        if len(arguments) != 1:
            raise InputError(f"expected one folder, got {len(arguments)}: python -m experiments.report FOLDER")
        result = write(arguments[0])
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    console = Console(soft_wrap=True)
    console.print(table(result))
    console.print(f"report: {Path(arguments[0]) / 'report.md'}", highlight=False, markup=False)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
