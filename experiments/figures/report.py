"""The report of a run, report.md and its figures, from the files in its folder: no model code is imported."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from experiments.cli.errors import InputError
from experiments.data.arrays import existing
from experiments.figures import run_figures, run_files
from experiments.figures.levels import level_curves
from experiments.figures.panels import save

SHEETS = 4


def write(folder: str | Path) -> dict[str, Any]:
    """Write report.md and figures/{samples,trajectory,loss,likelihood}.png of the run in `folder`, each atomically.

    Returns the content of report.json. Raises InputError, one line, if a file or a key is missing or wrong; nothing
    is written then.
    """
    folder = existing(folder, folder=True)
    config, environment, report = (
        run_files.read_json(folder / f"{name}.json") for name in ("config", "environment", "report")
    )
    run_files.check(folder / "report.json", report)
    if not isinstance(environment.get("command"), str) or not isinstance(environment.get("versions"), dict):
        raise InputError(f"{folder / 'environment.json'} has no command or no versions; run the job again")
    entries, arrays = run_files.metrics(folder / "metrics.jsonl"), run_files.arrays(folder / "arrays.npz", report)
    levels = run_files.levels(folder / "levels.jsonl")
    sheets = sorted((folder / "figures" / "steps").glob("*.png"))
    pictures = {
        "samples": run_figures.samples(report, arrays),
        "trajectory": run_figures.trajectory(report, arrays),
        "loss": run_figures.loss(report, entries),
        "likelihood": run_figures.likelihood(report, arrays),
    }
    if "classes" in report:
        pictures["classes"] = run_figures.classes(report, arrays)
    if with_levels := bool(levels):
        pictures["levels"] = level_curves(levels)
    try:
        (folder / "figures").mkdir(exist_ok=True)
        for name, figure in pictures.items():
            save(figure, folder / "figures" / f"{name}.png")
        temporary = folder / ".report.md.tmp"
        temporary.write_text(markdown(report, config, environment, sheets, with_levels), encoding="utf-8")
        temporary.replace(folder / "report.md")
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}; make it writable") from None
    return report


def table(report: dict[str, Any]) -> Group:
    """The figures of a run for a terminal at least 80 columns wide: likelihood, then a line a sampler."""
    likelihood, real = report["likelihood"], report["real"]
    solvers = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", show_edge=False)
    solvers.add_column("samples", no_wrap=True)
    for name in ("evaluations", "seconds", "SW", "SW / real", "MMD"):
        solvers.add_column(name, justify="right", no_wrap=True)
    solvers.add_row("real (train)", "", "", _short(real["sliced_wasserstein"]), "1.00", f"{real['mmd']:.5f}")
    for name, result in report["samples"].items():
        solvers.add_row(
            Text(name, overflow="ellipsis"),
            f"{result['num_evals']:.0f}",
            f"{result['seconds']:.1f}",
            _short(result["sliced_wasserstein"]),
            f"{result['ratio']:.2f}",
            f"{result['mmd']:.5f}",
        )
    known = report.get("classes")
    words = (
        ""
        if not known
        else (
            f"given the class; without it {known['unconditional']['mean']:.4f}. Implied classifier: "
            f"{100 * known['classifier']['accuracy']:.1f} % of {known['classifier']['examples']} right"
        )
    )
    note = "SW: sliced-Wasserstein distance to the held-out data; MMD: squared, unbiased"
    head = [Text(report["name"], style="bold"), lines(likelihood), *([Text(words)] if words else [])]
    return Group(*head, "", solvers, Text(note, style="dim"))


def lines(likelihood: dict[str, Any]) -> Group:
    """A likelihood for a terminal: its mean and error, how it was measured, and the bound where there is one."""
    exact = "" if likelihood["exact"] is None else f", exact {likelihood['exact']:.4f}"
    mean = f"held-out likelihood {likelihood['mean']:.4f} {likelihood['unit']}"
    head = Text(f"{mean}, standard error {likelihood['std_error']:.4f}{exact}", style="bold")
    bound = [Text(_bound(likelihood), style="dim")] if likelihood.get("bound") else []
    return Group(head, _detail(likelihood), *bound)


def _detail(likelihood: dict[str, Any]) -> Text:
    """How the likelihood was measured, in one line."""
    failed = f", {likelihood['failed']} failed" if likelihood["failed"] else ""
    draws = f" x {likelihood['repeats']} noise draws" if likelihood["repeats"] > 1 else ""
    count = likelihood["probes"]
    probes = f"{count} probe{'s' * (count != 1)}" if count else "exact divergence"
    cost = f"{likelihood['num_evals']:.0f} evaluations each, {likelihood['seconds']:.0f} s"
    return Text(f"{likelihood['examples']} examples{draws}{failed}, {probes}, {cost}", style="dim")


def _bound(likelihood: dict[str, Any]) -> str:
    """The variational bound beside the exact figure, where a run has one."""
    if not (bound := likelihood.get("bound")):
        return ""
    kinds = ("", "discrete_")
    values = [f"{bound[f'{kind}mean']:.4f} ± {bound[f'{kind}sample_std_error']:.4f}" for kind in kinds]
    return f"variational bound {values[0]}, of integers {values[1]}, {bound['examples']} examples"


def markdown(
    report: dict[str, Any],
    config: dict[str, Any],
    environment: dict[str, Any],
    sheets: Sequence[Path] = (),
    with_levels: bool = False,
) -> str:
    """The text of report.md: pictures, tables, how to repeat the run, and every figure at full precision."""
    likelihood, real, training = report["likelihood"], report["real"], report["training"]
    solvers = {"real (train)": {"ratio": 1} | real} | report["samples"]
    columns = ("num_evals", "seconds", "sliced_wasserstein", "ratio", "mmd", "energy_distance")
    heads = ("samples", "evaluations", "seconds", "sliced Wasserstein", "ratio to real", "MMD (squared)")
    heads += ("energy distance",)
    exact = "" if likelihood["exact"] is None else f" (exact: {_short(likelihood['exact'])})"
    loss = "" if training["final_loss"] is None else f" Last loss {_short(training['final_loss'])}."
    network = f"{report['network']['name']} of {report['network']['parameters']:,} parameters"
    rest = {key: value for key, value in environment.items() if key not in ("command", "versions")}
    parts = [
        f"# {report['name']}",
        f"**{_short(likelihood['mean'])} ± {likelihood['std_error']:.2g} {likelihood['unit']}**{exact} on "
        f"held-out data: {_detail(likelihood)}. {_bound(likelihood)}".strip(),
        f"{_cell(report['data']['describe'])}. `{report['sde']}`, {network}.",
        "![samples of every sampler beside held-out examples](figures/samples.png)",
        _rows(heads, [[name, *(solver.get(column, "") for column in columns)] for name, solver in solvers.items()]),
        "Distances are to the held-out data; the first line is what training examples themselves reach.",
        "## Likelihood",
        "![histogram of the held-out likelihood](figures/likelihood.png)",
        *_classes(report),
        "## Data to noise and back",
        "![forward and reverse trajectories](figures/trajectory.png)",
        "States are divided by the standard deviation of x_t, so that every time is shown at the scale of the data.",
        "## Training",
        f"{training['steps']:,} steps in {training['seconds']:.0f} s.{loss}",
        "![training loss](figures/loss.png)",
        *(["![loss and variance explained at each noise level](figures/levels.png)"] if with_levels else []),
        *_progress(sheets),
        "## Reproduce",
        f"```\n{environment['command']}\n```",
        _rows(("package", "version"), environment["versions"].items()),
        _rows(("environment", "value"), _flat(rest)),
        _rows(("setting", "value"), _flat(config)),
        "## Every figure",
        _rows(("report.json", "value"), _flat(report)),
    ]
    return "\n\n".join(parts) + "\n"


def _classes(report: dict[str, Any]) -> list[str]:
    """What a model that knows classes adds to the report."""
    if not (known := report.get("classes")):
        return []
    alone, by, unit = known["unconditional"], known["classifier"], report["likelihood"]["unit"]
    return [
        "## Classes",
        f"The likelihood above is given the class; without it {_short(alone['mean'])} ± {alone['std_error']:.2g} "
        f"{unit}. By Bayes' rule from the variational bound of each class ({by['draws']} draws), "
        f"{100 * by['accuracy']:.1f} ± {100 * by['std_error']:.1f} % of {by['examples']} held-out examples are "
        f"given their class.",
        "![samples of each class](figures/classes.png)",
    ]


def _progress(sheets: Sequence[Path]) -> list[str]:
    """A few of the sheets that were drawn during training, evenly chosen, the last among them."""
    if not sheets:
        return []
    chosen = [sheets[round(i)] for i in np.linspace(0, len(sheets) - 1, min(SHEETS, len(sheets)))]
    shown = " ".join(f"![step {int(sheet.stem)}](figures/steps/{sheet.name})" for sheet in chosen)
    steps = ", ".join(f"{int(sheet.stem):,}" for sheet in chosen)
    return [f"Samples of the average from the same noise, after {steps} steps:", shown]


def _short(value: float) -> str:
    return f"{value:.4g}"


def _cell(value: Any) -> str:
    """A value of a table: short numbers, and nothing that Markdown would take for a column or a line."""
    if isinstance(value, float):
        return _short(value)
    return "" if value is None else " ".join(str(value).split()).replace("|", "\\|")


def _rows(heads: tuple[str, ...], rows: Any) -> str:
    lines = [heads, tuple("---:" if i else "---" for i in range(len(heads))), *(tuple(map(_cell, row)) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _flat(content: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every value with its dotted key, as JSON prints it; short lists stay whole."""
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)
