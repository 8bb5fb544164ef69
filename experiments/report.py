"""The report of a run, remade at any time from the files in its folder alone.

    python -m experiments.report runs/digits-vp

reads config.json, environment.json, metrics.jsonl, arrays.npz and report.json, and writes report.md and figures/.
No model code is imported: a report needs no accelerator, no network and no checkpoint.
"""

import json
import math
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from experiments import figures
from experiments.files import InputError, existing, reading
from experiments.panels import save

NUMBER, OPTIONAL = (int, float), (int, float, type(None))
DISTANCES = ("sliced_wasserstein", "mmd", "energy_distance")
KEYS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("name", "data.name", "data.describe", "sde", "network.name", "likelihood.unit"), (str,)),
    **{"data.event_shape": (list,), "samples": (dict,)},
    **dict.fromkeys(("data.levels", "training.final_loss", "likelihood.exact"), OPTIONAL),
    **dict.fromkeys(("network.parameters", "training.steps", "training.seconds"), NUMBER),
    **{f"real.{distance}": NUMBER for distance in DISTANCES},
    **{f"likelihood.{key}": NUMBER for key in ("mean", "std_error", "examples", "repeats", "probes", "failed")},
    **{f"likelihood.{key}": NUMBER for key in ("num_evals", "seconds")},
}
SOLVER_KEYS = ("num_evals", "seconds", "ratio", *DISTANCES)
PATHS = ("forward", "reverse")


def write(folder: str | Path) -> dict[str, Any]:
    """Write report.md and figures/{samples,trajectory,loss,likelihood}.png of the run in `folder`, each atomically.

    Returns the content of report.json. Raises InputError, one line, if a file or a key is missing or wrong; nothing
    is written then.
    """
    folder = existing(folder, folder=True)
    config, environment, report = (_json(folder / f"{name}.json") for name in ("config", "environment", "report"))
    _check(folder / "report.json", report)
    if not isinstance(environment.get("command"), str) or not isinstance(environment.get("versions"), dict):
        raise InputError(f"{folder / 'environment.json'} has no command or no versions; run the job again")
    metrics, arrays = _metrics(folder / "metrics.jsonl"), _arrays(folder / "arrays.npz", report)
    pictures = {
        "samples": figures.samples(report, arrays),
        "trajectory": figures.trajectory(report, arrays),
        "loss": figures.loss(report, metrics),
        "likelihood": figures.likelihood(report, arrays),
    }
    try:
        (folder / "figures").mkdir(exist_ok=True)
        for name, figure in pictures.items():
            save(figure, folder / "figures" / f"{name}.png")
        temporary = folder / ".report.md.tmp"
        temporary.write_text(markdown(report, config, environment), encoding="utf-8")
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
    note = "SW: sliced-Wasserstein distance to the held-out data; MMD: squared, unbiased"
    return Group(Text(report["name"], style="bold"), lines(likelihood), "", solvers, Text(note, style="dim"))


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
    values = [f"{bound[f'{kind}mean']:.4f} ± {bound[f'{kind}std_error']:.4f}" for kind in ("", "discrete_")]
    return f"variational bound {values[0]}, of the integers {values[1]}, {bound['seconds']:.0f} s"


def markdown(report: dict[str, Any], config: dict[str, Any], environment: dict[str, Any]) -> str:
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
        "## Data to noise and back",
        "![forward and reverse trajectories](figures/trajectory.png)",
        "States are divided by the standard deviation of x_t, so that every time is shown at the scale of the data.",
        "## Training",
        f"{training['steps']:,} steps in {training['seconds']:.0f} s.{loss}",
        "![training loss](figures/loss.png)",
        "## Reproduce",
        f"```\n{environment['command']}\n```",
        _rows(("package", "version"), environment["versions"].items()),
        _rows(("environment", "value"), _flat(rest)),
        _rows(("setting", "value"), _flat(config)),
        "## Every figure",
        _rows(("report.json", "value"), _flat(report)),
    ]
    return "\n\n".join(parts) + "\n"


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


def _json(path: Path) -> dict[str, Any]:
    with reading(existing(path)):
        content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a JSON {type(content).__name__}; expected an object")
    return content


def _check(path: Path, report: dict[str, Any]) -> None:
    """Raise InputError for the first key that is absent or of the wrong type."""
    keys = dict(KEYS)
    for solver in report.get("samples") or {}:
        keys |= {f"samples.{solver}.{key}": NUMBER for key in SOLVER_KEYS}
    for key, types in keys.items():
        value: Any = report
        for part in key.split("."):
            if not isinstance(value, dict) or part not in value:
                raise InputError(f"{path} has no {key}; run the job again")
            value = value[part]
        if not isinstance(value, types) or isinstance(value, bool):
            expected = " or ".join(kind.__name__ for kind in types)
            raise InputError(f"{path}: {key} is {json.dumps(value)}; expected {expected}")


def _metrics(path: Path) -> list[dict[str, float]]:
    with reading(existing(path)):
        entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), NUMBER) for key in ("step", "loss")):
            raise InputError(f"{path} line {number} has no step and loss; expected numbers for both")
    return entries


def _arrays(path: Path, report: dict[str, Any]) -> dict[str, np.ndarray]:
    """The arrays that the figures show, checked against the event's shape."""
    if not zipfile.is_zipfile(existing(path)):
        raise InputError(f"{path} cannot be read (no complete archive of arrays); run the job again")
    with reading(path), np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    event = tuple(report["data"]["event_shape"])
    lead = {"real": 1, **{f"samples_{solver}": 1 for solver in report["samples"]}, **dict.fromkeys(PATHS, 2)}
    for name in (*lead, *(f"{way}_times" for way in PATHS), "log_prob"):
        if name not in arrays:
            raise InputError(f"{path} has no array {name}; run the job again")
        expected = event if name in lead else ()
        shape = arrays[name].shape
        if shape[lead.get(name, 1) :] != expected or math.prod(shape) == 0 or arrays[name].dtype.kind not in "buif":
            raise InputError(f"{path}: {name} is {arrays[name].dtype} {shape}; expected numbers, event {expected}")
    for way in PATHS:
        if len(arrays[way]) != len(arrays[f"{way}_times"]):
            raise InputError(f"{path}: {way} has {len(arrays[way])} frames and {len(arrays[f'{way}_times'])} times")
    return arrays


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
