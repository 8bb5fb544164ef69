"""The page ``peers.md``: its prose is written by hand, its tables and figures are made of ``peers.json``.

A table stands between ``<!-- NAME -->`` and ``<!-- end -->``. Ratios in brackets are a row over ours, so that above 1
ours is the smaller; a peer that is ahead stands in bold.
"""

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from experiments.figures.panels import INK, MUTED, SAMPLE, Page

Row = dict[str, Any]
COLOURS = {"scoresde": SAMPLE, "diffusers": "#d1602b", "k-diffusion": "#3d8f5f", "azula": "#8a5bb5"}
COLOURS |= {"SciPy RK45": "#d1602b", "torchdiffeq dopri5": "#3d8f5f"}
PROCESSES = {"chain": "DDPM's chain", "VE": "VE, sigma from 80 to 0.002"}
LAWS = {"ring": "the ring", "64-D": "10 Gaussians in 64 dimensions"}
ERRORS = {"rms": "root mean square", "median": "median"}
TRAINING = ("forward_ms", "step_ms", "peak_mib")
SIZE = ("import_s", "bytes", "packages", "first_sample_s", "first_sample_cold_s")


def table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Lines of Markdown."""
    titles = list(titles)
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows)]


def cell(value: float | None, best: float | None, form: str, *, peer: bool) -> str:
    """The value and its ratio to ours, bold if a peer's is smaller."""
    if value is None:
        return ""
    if best is None:
        return form.format(value)
    text = f"{form.format(value)} ({value / best:.2g})"
    return f"**{text}**" if peer and value < best else text


def best_grids(rows: list[Row], law: str, process: str, error: str) -> dict[tuple[str, str], dict[int, Row]]:
    """(library, solver) -> budget -> the row of its best grid."""
    found: dict[tuple[str, str], dict[int, Row]] = {}
    for row in rows:
        if (row["law"], row["process"]) == (law, process):
            kept = found.setdefault((row["library"], row["solver"]), {})
            if row[error] < kept.get(row["budget"], {error: float("inf")})[error]:
                kept[row["budget"]] = row
    return found


def solvers(part: Row) -> list[str]:
    """A table for each law, process and error, and one of times."""
    lines = []
    for law, process, error in itertools.product(LAWS, PROCESSES, ERRORS):
        best = best_grids(part["rows"], law, process, error)
        ours = best["scoresde", "best_solver"]
        rows = []
        for (library, solver), by in best.items():
            values = (cell(by[n][error], ours[n][error], "{:.1e}", peer=library != "scoresde") for n in ours)
            rows.append((library, solver, *values))
        lines += ["", f"### {PROCESSES[process]}, {LAWS[law]}: {ERRORS[error]}", ""]
        lines += table(("library", "solver", *map(str, ours)), rows)
    ours = next(row for row in part["seconds"] if row["solver"] == "best_solver")
    times = []
    for row in part["seconds"]:
        peer = row["library"] != "scoresde"
        values = (cell(1e3 * row[k], 1e3 * ours[k], "{:.1f}", peer=peer) for k in ("first_s", "later_s"))
        times.append((row["library"], row["solver"], *values))
    lines += ["", f"### Wall time, {part['points']:,} points of the ring, 20 evaluations", ""]
    return [*lines, *table(("library", "solver", "first call, ms", "later calls, ms"), times)]


def likelihood(part: Row) -> list[str]:
    """A table for each batch; errors with one probe are those of the probe, and not compared."""
    forms = {"evaluations": "{:.0f}", "modulus": "{:.1e}", "greatest": "{:.1e}", "last": "{:.1e}", "solver": "{:.1e}"}
    forms |= {"later_s": "{:.3f}", "first_s": "{:.2f}"}
    titles = ("evaluations", "mean modulus", "greatest", "last example", "solver", "s", "first call, s")
    lines = []
    for batch in dict.fromkeys(row["batch"] for row in part["rows"]):
        rows = [row for row in part["rows"] if row["batch"] == batch]
        ours = {row["divergence"]: row for row in reversed(rows) if row["library"] == "scoresde"}
        cells = []
        for row in rows:
            exact, peer = row["divergence"] == "exact", row["library"] != "scoresde"
            compared = [k for k in forms if exact or k in ("evaluations", "later_s", "first_s")]
            best = {k: ours[row["divergence"]][k] for k in compared}
            values = (cell(row[k] if exact or k != "solver" else None, best.get(k), forms[k], peer=peer) for k in forms)
            cells.append((row.get("road", row["library"]), row["divergence"], *values))
        lines += ["", f"### {batch[0].upper()}{batch[1:]}", "", *table(("road", "divergence", *titles), cells)]
    return lines


def training(part: Row) -> list[str]:
    """A row a network and library."""
    ours: Row = {}
    cells = []
    for row in part["rows"]:
        peer = row["library"] != "scoresde"
        ours = ours if peer else row
        values = (cell(row[k], ours[k], "{:.0f}", peer=peer) for k in TRAINING)
        compiling = " + ".join(f"{row[k]:.1f}" for k in ("forward_compile_s", "step_compile_s") if k in row)
        cells.append((row["network"], row["library"], f"{row['parameters'] / 1e6:.1f}", *values, compiling))
    titles = ("network", "library", "million parameters", "forward, ms", "training step, ms", "peak MiB", "compile, s")
    return table(titles, cells)


def size(part: Row) -> list[str]:
    """A row a package."""
    ours, cells = part["packages"]["scoresde"], []
    forms = dict(zip(SIZE, ("{:.2f}", "{:.0f}", "{:.0f}", "{:.2f}", "{:.2f}"), strict=True))
    for name, row in part["packages"].items():
        peer, cold = name not in ("scoresde", "jax"), row.get("first_sample_cold_s", row.get("first_sample_s"))
        row, best = ({k: v[k] / (2**20 if k == "bytes" else 1) for k in v} for v in (row, ours))
        row["first_sample_cold_s"] = cold
        cells.append((name, *(cell(row.get(k), best[k], forms[k], peer=peer) for k in SIZE)))
    titles = ("import, s", "MiB with what it requires", "packages", "first samples, s", "nothing cached, s")
    return table(("package", *titles), cells)


TABLES = {"solvers": solvers, "likelihood": likelihood, "training": training, "size": size}


def heading(part: Row) -> str:
    """Command, machine and versions."""
    here = part["environment"]
    ours = ", ".join(f"{name} {here['versions'][name]}" for name in ("jax", "diffrax") if name in here["versions"])
    peers = ", ".join(f"{name} {version}" for name, version in part["peers"].items())
    return f"`{here['command']}`: {here['cpu_count']} cores ({here['devices'][0]}); {ours}; peers: {peers}."


def filled(text: str, record: dict[str, Row]) -> str:
    """The page with the tables of ``record``; one without a record is left as it is."""
    for name, part in record.items():
        head, found, rest = text.partition(f"<!-- {name} -->\n")
        _, closed, rest = rest.partition("<!-- end -->")
        if not closed:
            raise ValueError(f"the page needs {found or f'<!-- {name} -->'} and <!-- end --> after it")
        tables = "\n".join(TABLES[name](part)).strip()
        text = "\n\n".join([head + found.strip(), heading(part), tables, closed + rest])
    return text


def _panel(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set(xscale="log", yscale="log", title=title, xlabel=x, ylabel=y)
    axes.title.set(fontsize=9, color=INK)
    axes.xaxis.label.set(fontsize=8, color=MUTED)
    axes.yaxis.label.set(fontsize=8, color=MUTED)
    axes.minorticks_off()
    axes.spines["left"].set_visible(True)


def solvers_figure(part: Row, path: Path) -> None:
    """The best of every library, over its solvers and grids, by the number of evaluations; of ours ``best_solver``."""
    page = Page(1300, 1150)
    for i, (law, law_name) in enumerate(LAWS.items()):
        for j, (process, process_name) in enumerate(PROCESSES.items()):
            axes = page.axes(110 + 640 * j, 60 + 560 * i, 480, 400)
            _panel(axes, f"{process_name}, {law_name}", "evaluations", "median distance from the exact flow")
            for library, colour in COLOURS.items():
                found = [
                    row
                    for (owner, solver), by in best_grids(part["rows"], law, process, "median").items()
                    for row in by.values()
                    if owner == library and (library != "scoresde" or solver == "best_solver")
                ]
                budgets = sorted({row["budget"] for row in found})
                least = [min(row["median"] for row in found if row["budget"] == n) for n in budgets]
                label = {"scoresde": "scoresde, best_solver"}.get(library, f"{library}, the best of all")
                if least:
                    axes.plot(budgets, least, "o-", color=colour, label=label, linewidth=1.6, markersize=4)
                    axes.set_xticks(budgets, [str(n) for n in budgets])
            axes.legend(fontsize=7.5, frameon=False)
    page.figure.savefig(path)


def likelihood_figure(part: Row, path: Path) -> None:
    """The solver's mean error by evaluations, with the exact divergence."""
    batches = list(dict.fromkeys(row["batch"] for row in part["rows"]))
    page = Page(620 * len(batches) + 40, 600)
    for i, batch in enumerate(batches):
        axes = page.axes(110 + 620 * i, 60, 460, 430)
        _panel(axes, batch, "evaluations", "solver's mean |error| of log p, nats" if not i else "")
        axes.set_ylim(3e-6, 2e-2)
        for row in part["rows"]:
            if row["batch"] == batch and row["divergence"] == "exact":
                name, colour = row.get("road", row["library"]), COLOURS[row["library"]]
                mark = "s" if name.startswith("table") else "o"
                axes.plot(row["evaluations"], row["solver"], mark, color=colour, markersize=6, label=name)
        handles, labels = axes.get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True))
        axes.legend(list(unique.values()), list(unique), fontsize=7.5, frameon=False)
        ticks = [30, 40, 60, 90, 150]
        axes.set_xticks(ticks, [str(n) for n in ticks])
    page.figure.savefig(path)


FIGURES = {"solvers": solvers_figure, "likelihood": likelihood_figure}
