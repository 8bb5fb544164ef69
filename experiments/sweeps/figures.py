"""The figures of a sweep: a metric against the settings, with the interval over seeds and every seed as a dot.

The first varied setting runs along the page (a numeric one of three values or more, if there is one, as a line), the
second is the colour, and each combination of the others has a panel.
"""

import itertools
import math
import textwrap
from pathlib import Path
from typing import Any

import matplotlib.colors
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from experiments.figures.panels import DPI, FAINT, INK, MUTED, save
from experiments.sweeps.table import METRICS, Compared, Metric, Row, compare

COLOURS = ("#2c6cb3", "#d1602b", "#3f8f63", "#8a5fb0", "#b5475d", "#7a6a3a", "#2f9aa0", "#6b7280")
PANEL, HEAD, MOST_PANELS = (4.6, 3.2), 0.85, 12
SPREAD, DOTS = 0.66, 0.065
TITLE: dict[str, Any] = {"fontweight": "bold", "color": INK}
DETAIL: dict[str, Any] = {"fontsize": 8, "color": MUTED, "va": "top", "linespacing": 1.4}
Values = list[str]


def draw_all(folder: Path, rows: list[Row], names: list[str], about: str) -> list[Path]:
    """A figure for each metric that was measured; ``about`` is said under its title."""
    written = []
    for metric in METRICS:
        if compared := compare(rows, names, metric):
            folder.mkdir(parents=True, exist_ok=True)
            first = next(row for row in rows if row[metric.column] is not None)
            save(figure(compared, names, metric, first, about), folder / f"{metric.column}.png")
            written.append(folder / f"{metric.column}.png")
    return written


def figure(compared: list[Compared], names: list[str], metric: Metric, first: Row, about: str) -> Figure:
    """One metric."""
    values: dict[str, Values] = {name: _values(compared, i) for i, name in enumerate(names)} | {"": [""]}
    along = next((n for n in names if len(values[n]) > 2 and _numeric(values[n])), names[0] if names else "")
    colour, *others = [*(n for n in names if n != along), ""]
    others = [name for name in others if name]
    panels = list(itertools.product(*(values[n] for n in others)))[:MOST_PANELS]
    columns = min(len(panels), 3)
    lines = math.ceil(len(panels) / columns)
    wide = max(PANEL[0], 0.2 * len(values[along]) * (1 + len(values[colour])))
    page, width, height = _page(wide * columns, PANEL[1] * lines, len(values[colour]) > 1)
    axes = page.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    by_setting = {entry.settings: entry for entry in compared}
    tone = dict(zip(values[colour], itertools.cycle(COLOURS), strict=False))
    for panel, fixed in itertools.zip_longest(axes.flat, panels):
        if fixed is None:
            panel.set_visible(False)
            continue
        place = dict(zip(others, fixed, strict=True))
        for i, value in enumerate(tone):
            at = [place | {along: v, colour: value} for v in values[along]]
            series = [by_setting.get(tuple(chosen[name] for name in names)) for chosen in at]
            _series(panel, series, values[along], tone[value], (i + 0.5) / len(tone) - 0.5)
        _frame(panel, values[along], along)
        panel.set_title(", ".join(f"{_word(n)} {v}" for n, v in place.items()), fontsize=9, color=MUTED, loc="left")
    _scale(axes.flat[0], compared)
    _legend(page, tone, colour)
    better = "higher" if metric.larger_is_better(first) else "lower"
    title = f"{metric.title(first)} ({better} is better)"
    page.text(0.15 / width, 1 - 0.3 / height, title, fontsize=min(11, 115 * (width - 0.3) / len(title)), **TITLE)
    detail = textwrap.wrap(f"{about} {_seeds(compared)}", int((width - 0.3) / 0.066))
    page.text(0.15 / width, 1 - 0.42 / height, "\n".join(detail), **DETAIL)
    return page


def _page(width: float, height: float, legend: bool) -> tuple[Figure, float, float]:
    """A page with room above for a title and, beside, for a legend; its size in inches."""
    width, height = max(width + 1.1 * legend, 6.0), height + HEAD
    page = Figure(figsize=(width, height), dpi=DPI, facecolor="white", layout="constrained")
    engine = page.get_layout_engine()
    assert engine is not None
    engine.set(rect=(0.0, 0.0, 1.0, 1 - HEAD / height))  # pyright: ignore[reportCallIssue]
    return page, width, height


def _seeds(compared: list[Compared]) -> str:
    most = max(len(entry.estimate.values) for entry in compared)
    if most < 2:
        return "One seed."
    return f"Bars: mean and its 95 % interval over {most} seeds; dots: the seeds."


def _values(compared: list[Compared], place: int) -> Values:
    values = list(dict.fromkeys(entry.settings[place] for entry in compared))
    return sorted(values, key=float) if _numeric(values) else values


def _numeric(values: Values) -> bool:
    try:
        return all(math.isfinite(float(value)) for value in values)
    except ValueError:
        return False


def _word(name: str) -> str:
    return name.replace("_", " ")


def _series(axes: Axes, series: list[Compared | None], along: Values, tone: str, offset: float) -> None:
    """Estimates of one colour: side by side at words, joined by a line at numbers."""
    line = len(along) > 2 and _numeric(along)
    place = [float(v) for v in along] if line else [i + SPREAD * offset for i in range(len(along))]
    found = [(x, entry.estimate) for x, entry in zip(place, series, strict=True) if entry is not None]
    if not found:
        return
    x, mean = [at for at, _ in found], [of.mean for _, of in found]
    half = [np.nan_to_num(of.half_width) for _, of in found]
    axes.errorbar(
        x, mean, half, fmt="-o" if line else "_", color=tone, ms=4 if line else 13, mew=2.2, lw=1.6, capsize=0, zorder=3
    )
    for at, of in found:
        if len(of.values) > 1:
            beside = at if line else at + DOTS
            light = matplotlib.colors.to_rgba(tone, 0.6)
            axes.scatter([beside] * len(of.values), of.values, s=10, color=[light], linewidths=0, zorder=2)


def _frame(axes: Axes, along: Values, name: str) -> None:
    axes.tick_params(colors=MUTED, labelsize=8.5, length=3, width=0.8)
    axes.grid(axis="y", color=FAINT, lw=0.6)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(FAINT)
    axes.set_xlabel(_word(name), color=INK, fontsize=9)
    if len(along) > 2 and _numeric(along):
        at = [float(v) for v in along]
        if min(at) > 0 and max(at) / min(at) > 5:
            axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(at))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    else:
        axes.set_xticks(range(len(along)), along)
        axes.set_xlim(-0.6, len(along) - 0.4)


def _scale(axes: Axes, compared: list[Compared]) -> None:
    """A logarithmic scale where values differ by orders of magnitude."""
    means = [entry.estimate.mean for entry in compared]
    if min(means) > 0 and (spread := max(means) / min(means)) > 5:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if spread < 100 else (1,)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())


def _legend(page: Figure, tone: dict[str, str], name: str) -> None:
    if name:
        handles = [Line2D([], [], color=c, marker="o", ms=5, lw=0, label=value) for value, c in tone.items()]
        page.legend(
            handles=handles, title=_word(name), loc="outside right center", frameon=False, fontsize=9,
            title_fontsize=9, alignment="left",
        )  # fmt: skip
