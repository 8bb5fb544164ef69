"""scoresde beside its peers from PyPI, which live in an environment of their own: one command for each table.

    python -m experiments.benchmarks.peers solvers    --peers-python ENV/bin/python
    python -m experiments.benchmarks.peers likelihood --peers-python ENV/bin/python
    python -m experiments.benchmarks.peers training   --peers-python ENV/bin/python
    python -m experiments.benchmarks.peers size       --peers-python ENV/bin/python

measures it, keeps the rows with command, machine and versions in ``peers.json``, and makes the tables of ``peers.md``
and the figures anew; ``page`` only does the latter.
"""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from experiments.benchmarks.peers import likelihood, page, processes, size, solvers, training
from experiments.cli import commands, machine
from experiments.cli.errors import InputError
from experiments.cli.writing import write_atomically

FOLDER = Path(__file__).parents[1]
PAGE, ASSETS = "peers.md", "peers-{}.png"


@dataclasses.dataclass(frozen=True)
class Flags:
    """Measure scoresde beside its peers, one table a command."""

    part: Annotated[Literal["solvers", "likelihood", "training", "size", "page"], tyro.conf.Positional]
    """The table; page makes page and figures of what was measured before."""
    peers_python: Path | None = None
    """Python of an environment with the peers."""
    examples: int = 256
    """Starts of the solvers, points of the likelihood."""
    repeats: int = 3
    """Timed calls or processes of each kind; their median counts."""
    out: Path = FOLDER
    """Folder of peers.json, peers.md and the figures."""

    def check(self) -> None:
        """Raise InputError for the first flag that cannot be."""
        for name, least in (("examples", 2), ("repeats", 1)):
            if getattr(self, name) < least:
                raise InputError(f"--{name} must be at least {least}, got {getattr(self, name)}")
        if not self.out.is_dir():
            raise InputError(f"--out {self.out} is not a folder; make it first")
        if self.part != "page":
            processes.check(self.peers_python)


MEASURES: dict[str, Callable[[Flags, Path], dict[str, Any]]] = {
    "solvers": lambda flags, python: solvers.measure(python, flags.examples, flags.repeats),
    "likelihood": lambda flags, python: likelihood.measure(python, flags.examples),
    "training": lambda flags, python: training.measure(python, flags.repeats),
    "size": lambda flags, python: size.measure(python, flags.repeats),
}


def measured(flags: Flags) -> dict[str, Any]:
    """The part of the record that ``flags`` asks for."""
    python = processes.check(flags.peers_python)
    asked = {f.name: getattr(flags, f.name) for f in dataclasses.fields(flags) if f.name in ("examples", "repeats")}
    words = [f"--{name} {value}" for name, value in asked.items() if value != getattr(Flags, name)]
    command = " ".join(["python -m experiments.benchmarks.peers", flags.part, "--peers-python ENV/bin/python", *words])
    environment = machine.environment("benchmarks.peers") | {"command": command}
    found = MEASURES[flags.part](flags, python)
    return {"environment": environment, "peers": processes.versions(python)} | found


def rows_on_lines(record: dict[str, Any]) -> str:
    """JSON with each object that holds no other on one line."""
    return re.sub(r"\{[^{}\[\]]*\}", lambda row: " ".join(row[0].split()), json.dumps(record, indent=1)) + "\n"


def program(flags: Flags, console: Console) -> None:
    """Measure, keep, and draw."""
    flags.check()
    kept = flags.out / "peers.json"
    record = json.loads(kept.read_text()) if kept.exists() else {}
    if flags.part != "page":
        record[flags.part] = measured(flags)
        write_atomically(kept, rows_on_lines({name: record[name] for name in MEASURES if name in record}))
        for line in page.TABLES[flags.part](record[flags.part]):
            console.print(line, highlight=False, markup=False)
    write_atomically(flags.out / PAGE, page.filled((FOLDER / PAGE).read_text(), record))
    for name in page.FIGURES.keys() & record.keys():
        page.FIGURES[name](record[name], flags.out / ASSETS.format(name))


def main() -> None:
    """Command line; see ``commands.main``."""
    commands.main(Flags, "benchmarks.peers", program, cached=lambda flags: False)


if __name__ == "__main__":
    main()
