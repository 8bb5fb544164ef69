"""An ablation in one command: a grid or a list of settings, several seeds, one table and figures with intervals.

    python -m experiments.sweep --grid sde=vp,subvp,ve,cosine,flow prediction=velocity,noise,data --seeds 3
    python -m experiments.sweep --grid solver=ddim,unipc,heun evaluations=6,10,20 measure=samples --out sweeps/solvers
    python -m experiments.sweep --cells FILE.json --seeds 0,1,2 --cluster slurm --cluster-options timeout_min=60

An axis is any flag of ``experiments.run``, or one of how a trained model is measured (``--axes`` lists them); with one
value it is a setting of all cells. The sweep's folder has

    table.csv (table.parquet with pyarrow)   a row for each cell and seed
    summary.md                               each setting: mean and 95 % interval over seeds, difference from the best
    figures/METRIC.png
    sweep.json                               what was asked, where, with which versions
    cells/                                   what was trained and measured, by content: see ``cells``

A sweep that was stopped or killed continues when the same command is given, from the last checkpoint of each training;
one with more values or seeds does only what is new. Cells run in as many processes as there are accelerators, or jobs.
"""

import dataclasses
import time
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import jax
import tyro
from rich.console import Console

from experiments.cli import commands, machine
from experiments.cli.errors import InputError, Interrupted, check_words
from experiments.cli.progress import progress
from experiments.cli.writing import write_atomically, write_json
from experiments.sweeps import cells as of_cells
from experiments.sweeps import figures, table
from experiments.sweeps.cells import Cell
from experiments.sweeps.launch import launched

POLL_SECONDS = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkersFlags:
    """Who does the work."""

    HEADING: ClassVar[str] = "workers"

    jobs: int | None = None
    """Processes at a time; by default one for each GPU, else one."""
    cluster: Literal["none", "local", "slurm"] = "none"
    """Run the jobs by submitit: on SLURM, or local to try it."""
    cluster_options: tuple[str, ...] = ()
    """Settings of submitit's executor, such as timeout_min=60 slurm_partition=gpu gpus_per_node=1."""
    code: str | None = None
    """Take the cells of this code (a folder in OUT/cells) instead of those of the present one."""
    compile_cache: bool = True
    """Keep compiled programs in the user's cache folder."""


@dataclasses.dataclass(frozen=True)
class Flags(WorkersFlags):
    """Train and measure a grid or a list of settings with several seeds; one table, figures with intervals."""

    grid: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE,...")] = ()
    """Axes of the grid, such as sde=vp,ve weight=karras,likelihood steps=1000."""
    cells: Path | None = None
    """FILE.json, a list of objects {"sde": "ve", "steps": 500}, or FILE.csv: settings instead of a grid, or besides."""
    seeds: str = "3"
    """How many, or which: 0,1,7."""
    out: Path = Path("sweeps/sweep")
    """Folder of the sweep."""
    dry_run: bool = False
    """List the cells and stop."""
    axes: bool = False
    """List the flags that can vary and stop."""

    def check(self) -> None:
        """Raise InputError for the first flag that cannot be."""
        check_words(self)
        if self.jobs is not None and self.jobs < 1:
            raise InputError(f"--jobs must be at least 1, got {self.jobs}")
        if not (self.grid or self.cells):
            raise InputError("give --grid sde=vp,ve ..., or --cells FILE.json; --axes lists what can vary")
        if self.cluster_options and self.cluster == "none":
            raise InputError("--cluster-options are for --cluster slurm or local")
        if bad := [word for word in self.cluster_options if "=" not in word]:
            raise InputError(f"--cluster-options takes NAME=VALUE, got {bad[0]!r}")

    def seed_list(self) -> list[int]:
        words = self.seeds.split(",")
        if not all(word.strip().isdigit() for word in words) or (len(words) == 1 and int(words[0]) < 1):
            raise InputError(f"--seeds is a number of them or a list such as 0,1,2, got {self.seeds!r}")
        return list(dict.fromkeys(map(int, words))) if len(words) > 1 else list(range(int(words[0])))


def program(flags: Flags, console: Console) -> None:
    """Do the sweep, write its table and figures."""
    if flags.axes:
        console.print("\n".join(listing()), highlight=False, markup=False)
        return
    flags.check()
    jax.config.update("jax_platforms", "cpu")  # the devices are the workers'
    cells = of_cells.expand(
        of_cells.read_list(flags.cells) if flags.cells else [], of_cells.parse_axes(flags.grid), flags.seed_list()
    )
    root = cells_folder(flags, console)
    done = [cell for cell in cells if (cell.result(root) or {"error": ""}).get("error") is None]
    trainings, programs = len({cell.trained for cell in cells}), len({cell.program for cell in cells})
    console.print(
        f"{len(cells)} cells, {len(done)} of them done: {trainings} trainings of {programs} programs; {flags.out}",
        highlight=False,
    )
    if flags.dry_run:
        for cell in cells:
            console.print(" ".join(f"{k}={v}" for k, v in cell.asked.items()), highlight=False, markup=False)
        return
    for cell in cells:
        if "error" in (cell.result(root) or {}):
            cell.path(root).unlink()  # to be tried again
    try:
        root.mkdir(parents=True, exist_ok=True)
        write_json(flags.out / "sweep.json", {"flags": dataclasses.asdict(flags)} | machine.environment("sweep"))
    except OSError as error:
        raise InputError(f"cannot write to {flags.out}: {error.strerror}; choose another --out") from None
    started = time.monotonic()
    run_all(flags, cells, root, console)
    rows = report(flags, cells, root, console)
    console.print(
        f"{time.monotonic() - started:.0f} s; {flags.out / 'table.csv'}, {flags.out / 'figures'}", highlight=False
    )
    if failed := [row for row in rows if row["error"]]:
        raise InputError(f"{len(failed)} of {len(cells)} cells failed, the first: {failed[0]['error']}; see table.csv")


def listing() -> list[str]:
    """The axes, a line each."""
    hidden = (*of_cells.REFUSED, "target")
    return [f"{name} (default {value})" for name, value in of_cells.DEFAULTS.items() if name not in hidden]


def cells_folder(flags: Flags, console: Console) -> Path:
    """Where the cells of the code lie; says so if those of other code are beside it."""
    root, code = flags.out / "cells", of_cells.code_digest()
    others = sorted(path.name for path in root.glob("*") if path.is_dir() and path.name != code)
    if flags.code is not None and flags.code not in (code, *others):
        raise InputError(f"--code {flags.code} is not in {root}, which has {', '.join(others) or 'none'}")
    if flags.code is None and others and not (root / code).exists():
        console.print(f"cells of other code are in {root}: --code {others[-1]} takes them", highlight=False)
    return root / (flags.code or code)


def run_all(flags: Flags, cells: list[Cell], root: Path, console: Console) -> None:
    """Have workers do the cells, and show how far they are; the table is brought up to date as they go.

    Raises:
        Interrupted: by SIGINT.
        InputError: all workers ended and cells are left.
    """
    with progress(console, "cell", len(cells)) as show:
        known = -1
        with launched(flags, cells, root) as all_ended:
            try:
                while True:
                    last = all_ended()
                    if (count := sum(cell.path(root).exists() for cell in cells)) != known:
                        known = count
                        show(count)
                        rows_of(flags, cells, root)
                    if count == len(cells):
                        return
                    if last:
                        raise InputError(
                            f"the workers ended with {count} of {len(cells)} cells done; give the command again"
                        )
                    time.sleep(POLL_SECONDS)
            except KeyboardInterrupt:
                raise Interrupted(
                    f"stopped with {known} of {len(cells)} cells done; the same command continues from there"
                ) from None


def rows_of(flags: Flags, cells: list[Cell], root: Path) -> list[table.Row]:
    """The table as it is now, on disk too."""
    rows = [table.row(cell.asked, cell.result(root), str(cell.path(root).relative_to(flags.out))) for cell in cells]
    table.write(flags.out, rows)
    return rows


def report(flags: Flags, cells: list[Cell], root: Path, console: Console) -> list[table.Row]:
    """Write table, summary and figures; returns the rows."""
    rows = rows_of(flags, cells, root)
    names = table.varied(rows, cells[0].asked)
    text = table.summary(rows, names)
    write_atomically(flags.out / "summary.md", text)
    console.print(text, highlight=False, markup=False)
    data = sorted({cell.record["name"] for cell in cells})
    counts = sorted({row["held_out"] for row in rows if row["held_out"]})
    held_out = f", {counts[0]} held-out examples" if len(counts) == 1 else ""
    figures.draw_all(flags.out / "figures", rows, names, f"{', '.join(data)}{held_out}.")
    return rows


def main() -> None:
    """Command line; see ``commands.main``."""
    commands.main(Flags, "sweep", program, cached=lambda flags: False)


if __name__ == "__main__":
    main()
