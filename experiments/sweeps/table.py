"""The results of a sweep as one tidy table, a row for each cell, and what its seeds say together.

Over n seeds with mean m and standard deviation s a figure is m +- t s / sqrt(n), where t is the 0.975 quantile of
Student's law with n - 1 degrees of freedom: an interval that holds the mean over all seeds in 95 % of cases. Seeds are
common to all settings, so two settings are compared by the differences seed by seed.
"""

import csv
import importlib
import io
import math
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from experiments.cli.writing import write_atomically

Row = dict[str, Any]
CONFIDENCE = 0.95


class Metric(NamedTuple):
    """A column that is compared."""

    column: str
    title: Callable[[Row], str]
    larger_is_better: Callable[[Row], bool] = lambda row: False


METRICS = (
    Metric(
        "likelihood",
        lambda row: "Held-out bits/dim" if row["unit"] == "bits/dim" else "Held-out log-likelihood, nats",
        lambda row: row["unit"] != "bits/dim",
    ),
    Metric("discrete_bound", lambda row: "Variational bound of the integers, bits/dim"),
    Metric("distance_ratio", lambda row: "Distance of samples to held-out data, that of training data being 1"),
)


def row(asked: Row, result: Row | None, path: str) -> Row:
    """One cell as a row: its settings, its figures, empty where they were not measured, and where it lies."""
    found = result or {"error": "not done"}
    likelihood, training = found.get("likelihood") or {}, found.get("training") or {}
    bound, samples = likelihood.get("bound") or {}, found.get("samples") or {}
    return asked | {
        "likelihood": likelihood.get("mean"),
        "likelihood_error": likelihood.get("std_error"),
        "unit": likelihood.get("unit"),
        "flow_evaluations": likelihood.get("num_evals"),
        "held_out": likelihood.get("examples"),
        "bound": bound.get("mean"),
        "discrete_bound": bound.get("discrete_mean"),
        "discrete_bound_error": bound.get("discrete_sample_std_error"),
        "distance_ratio": samples.get("ratio"),
        "sliced_wasserstein": samples.get("sliced_wasserstein"),
        "mmd": samples.get("mmd"),
        "energy_distance": samples.get("energy_distance"),
        "sample_evaluations": samples.get("num_evals"),
        "final_loss": training.get("final_loss"),
        "train_seconds": training.get("seconds"),
        "measure_seconds": found.get("seconds"),
        "parameters": found.get("parameters"),
        "error": found.get("error"),
        "result": path,
    }


def write(folder: Path, rows: list[Row]) -> None:
    """table.csv, and table.parquet where pyarrow is installed."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(folder / "table.csv", text.getvalue())
    if find_spec("pyarrow"):
        pyarrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
        columns = {name: [_plain(row.get(name)) for row in rows] for name in names}
        temporary = folder / ".table.parquet.tmp"
        parquet.write_table(pyarrow.table(columns), temporary)
        temporary.replace(folder / "table.parquet")


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


class Estimate(NamedTuple):
    """What the seeds of one setting say."""

    mean: float
    half_width: float
    """Of the interval, NaN with one seed."""
    values: tuple[float, ...]

    def text(self, digits: int = 4) -> str:
        return f"{self.mean:.{digits}g}" + (f" ± {self.half_width:.2g}" if math.isfinite(self.half_width) else "")


def estimate(values: Iterable[float]) -> Estimate:
    """The mean with its interval."""
    x = np.asarray(list(values), np.float64)
    half_width = math.nan
    if len(x) > 1:
        t = stats.t.ppf((1 + CONFIDENCE) / 2, len(x) - 1)
        half_width = float(t * np.std(x, ddof=1) / math.sqrt(len(x)))
    return Estimate(float(np.mean(x)), half_width, tuple(x.tolist()))


def varied(rows: list[Row], asked: Iterable[str]) -> list[str]:
    """The settings, but for the seed, that have more than one value."""
    return [name for name in asked if name != "seed" and len({str(row.get(name)) for row in rows}) > 1]


def settings_of(row: Row, names: Iterable[str]) -> tuple[str, ...]:
    return tuple(str(row.get(name)) for name in names)


class Compared(NamedTuple):
    """A setting beside the best one."""

    settings: tuple[str, ...]
    estimate: Estimate
    difference: Estimate | None
    """From the best setting, seed by seed; None for the best itself, and without common seeds."""


def compare(rows: list[Row], names: list[str], metric: Metric) -> list[Compared]:
    """Each setting of the rows that have the metric, in their order."""
    by_seed: dict[tuple[str, ...], dict[int, float]] = {}
    good = [row for row in rows if row[metric.column] is not None and math.isfinite(row[metric.column])]
    for row in good:
        by_seed.setdefault(settings_of(row, names), {})[row["seed"]] = row[metric.column]
    if not good:
        return []
    estimates = {settings: estimate(values.values()) for settings, values in by_seed.items()}
    pick = max if metric.larger_is_better(good[0]) else min
    best = pick(estimates, key=lambda settings: estimates[settings].mean)
    found = []
    for settings, values in by_seed.items():
        common = [values[seed] - by_seed[best][seed] for seed in values if seed in by_seed[best]]
        difference = estimate(common) if common and settings != best else None
        found.append(Compared(settings, estimates[settings], difference))
    return found


def summary(rows: list[Row], names: list[str]) -> str:
    """The settings with their intervals in Markdown, a table for each metric."""
    parts = []
    for metric in METRICS:
        if compared := compare(rows, names, metric):
            first = next(row for row in rows if row[metric.column] is not None)
            seeds = max(len(entry.estimate.values) for entry in compared)
            better = "larger" if metric.larger_is_better(first) else "smaller"
            lines = [f"## {metric.title(first)} ({better} is better)", ""]
            lines += [f"| {' | '.join([*names, 'mean', 'from the best'])} |", "|---" * (len(names) + 2) + "|"]
            for entry in compared:
                versus = "best" if entry.difference is None else entry.difference.text(2)
                lines.append(f"| {' | '.join([*entry.settings, entry.estimate.text(), versus])} |")
            interval = (
                f"± is the 95 % interval over {seeds} seeds (Student's t)." if seeds > 1 else "One seed: no interval."
            )
            parts.append("\n".join([*lines, "", interval]))
    return "\n\n".join(parts) + "\n"
