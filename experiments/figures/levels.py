"""The picture of training at each noise level, from the log of a run that kept it.

A line of levels.jsonl holds lists of one value a bin of the log-SNR, null where no example fell:

    log_snr             the middle of the bin
    loss                the loss there, as a uniform draw of log-SNR would have it
    variance_explained  how much of what the best linear predictor leaves the network explains, at most 1

The report of a classifier holds its accuracy and cross entropy at levels of its own.
"""

import math
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.figures.panels import FAINT, MUTED, SAMPLE, Page

CURVES = {"loss": "loss", "variance_explained": "variance explained"}
LABELS = {"accuracy": "accuracy", "cross_entropy": "cross entropy in nats"}
SHOWN = 5


def level_curves(entries: list[dict[str, Any]]) -> Figure:
    """Loss and variance explained against the log-SNR, after a few numbers of steps from light to dark."""
    count = len(entries)
    chosen = [entries[round(i)] for i in np.unique(np.geomspace(1, count, min(SHOWN, count)).round()) - 1]
    page = Page(1200, 600)
    page.heading(110, 54, "Noise levels", "noise on the left, data on the right; darker after more steps")
    for x, (name, label) in zip((110, 680), CURVES.items(), strict=True):
        axes = page.axes(x, 140, 470, 370)
        for shade, entry in zip(np.linspace(0.3, 1, len(chosen)), chosen, strict=True):
            log_snr, values = (np.array(entry[key], float) for key in ("log_snr", name))
            seen = np.isfinite(values)
            color = colormaps["Blues"](shade)
            axes.plot(log_snr[seen], values[seen], color=color, linewidth=1.6, label=f"{entry['step']:,}")
        if name == "loss":
            _positive(axes)
        else:
            axes.set_ylim(max(-1, axes.get_ylim()[0]), 1)
            axes.legend(title="step", fontsize=7.5, title_fontsize=7.5, frameon=False, labelcolor=MUTED)
        _against_log_snr(axes, label)
    return page.figure


def accuracy_curves(levels: list[dict[str, float]], classes: int) -> Figure:
    """Accuracy and cross entropy of a classifier against the log-SNR, with bands of two standard errors.

    ``levels`` hold log_snr, accuracy, cross_entropy and the standard errors of the two; dashed is knowing nothing.
    """
    page = Page(1200, 600)
    page.heading(110, 54, "Classes of noisy held-out examples", "noise on the left, data on the right")
    blank = {"accuracy": 1 / classes, "cross_entropy": math.log(classes)}
    for x, (name, label) in zip((110, 680), LABELS.items(), strict=True):
        axes = page.axes(x, 140, 470, 370)
        log_snr, mean, error = (
            np.array([level[key] for level in levels]) for key in ("log_snr", name, f"{name}_std_error")
        )
        axes.plot(log_snr, mean, color=SAMPLE, linewidth=1.6, marker="o", markersize=3)
        axes.fill_between(log_snr, mean - 2 * error, mean + 2 * error, color=SAMPLE, alpha=0.2, linewidth=0)
        axes.axhline(blank[name], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_ylim(bottom=0)
        _against_log_snr(axes, label)
    return page.figure


def _against_log_snr(axes: Axes, label: str) -> None:
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_title(label, fontsize=9, color=MUTED, loc="left")
    axes.set_xlabel("log-SNR", color=MUTED, fontsize=9)


def _positive(axes: Axes) -> None:
    """A logarithmic axis where the curves fall by more than a factor of ten."""
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.get_lines()])
    if values.size and 0 < 10 * values.min() < values.max():
        axes.set_yscale("log")
