"""The four pictures of a run, from its arrays and the figures of its report; no model is needed.

samples      held-out examples beside those of every sampler, all on one scale
trajectory   data to noise and back; states are divided by the standard deviation of x_t, so all fit one scale
loss         the training loss against the step
likelihood   the histogram of the held-out likelihood, its mean and the standard error of the mean
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from experiments.cli.writing import write_picture
from experiments.figures.panels import (
    EXACT,
    FAINT,
    GAP,
    INK,
    MUTED,
    REAL,
    SAMPLE,
    Page,
    draw,
    frame,
    grid,
    grid_size,
    is_image,
    label,
    pixels,
    save,
    shades,
    views,
)

Report = dict[str, Any]
Arrays = dict[str, np.ndarray]
MARGIN, GUTTER, PANEL, ABREAST = 40, 36, 344, 4
SHOWN_POINTS, SHOWN_FRAMES, SHOWN_ROWS = 2000, 9, 3
PIXELS = 13_000
TILE, SPACE = 150, 6
NAME, LETTER = 12, 10  # letters of a class's name that are shown, and pixels for each
NAMES = {"euler_maruyama": "Euler–Maruyama", "predictor_corrector": "Predictor–corrector", "ddim": "DDIM"}
NOTE = "SW: sliced-Wasserstein distance to the held-out data; × real: over that of training examples"


def title(solver: str) -> str:
    """A sampler's name as a person writes it."""
    return NAMES.get(solver, solver.replace("_", " ").capitalize())


def scale(x: np.ndarray, levels: int | None) -> tuple[float, float]:
    """The raw values shown black and white: the levels, or the range of nearly all values of x."""
    if levels:
        return 0.0, float(levels - 1)
    low, high = (float(v) for v in np.quantile(x, [0.005, 0.995]))
    return low, high if high > low else low + 1


def sheet(path: Path, x: np.ndarray, levels: int | None, like: np.ndarray) -> None:
    """Write a PNG that shows examples x (n, *event) and nothing else, on the scale of the examples ``like``.

    Images stand in a nearly square grid, every pixel of theirs as one colour; other examples are drawn as panels.
    """
    if is_image(x.shape[1:]):
        tiles = pixels(x, *scale(like, levels))
        if tiles.shape[-1] != 3:
            tiles = np.repeat(tiles.mean(axis=-1, keepdims=True).round().astype(np.uint8), 3, axis=-1)
        columns, width = math.ceil(math.sqrt(len(x))), tiles.shape[2]
        write_picture(path, grid(tiles, columns, max(1, min(64 // width, 1600 // (columns * width)))))
        return
    looks, (x, like) = views(x.shape[1:]), (v.reshape(len(v), -1) for v in (x, like))
    page = Page(len(looks) * (PANEL + 2 * MARGIN) + MARGIN, PANEL + 3 * MARGIN)
    for i, view in enumerate(looks):
        axes = page.axes(2 * MARGIN + i * (PANEL + 2 * MARGIN), MARGIN, PANEL, PANEL)
        draw(axes, view, frame(view, like), x, SAMPLE)
        label(axes, view)
    save(page.figure, path)


def samples(report: Report, arrays: Arrays) -> Figure:
    """Held-out examples beside those of every sampler, titled with its evaluations and its distance."""
    real = report["real"]
    heads = [("Held-out data", f"training examples: SW {real['sliced_wasserstein']:.3g}")]
    sets = [arrays["real"]]
    for name, result in report["samples"].items():
        distance = f"SW {result['sliced_wasserstein']:.3g}, {result['ratio']:.2f} × real"
        heads.append((title(name), f"{result['num_evals']:.0f} evaluations · {distance}"))
        sets.append(arrays[f"samples_{name}"])
    if is_image(tuple(report["data"]["event_shape"])):
        return _image_samples(heads, [shades(x, *scale(arrays["real"], report["data"]["levels"])) for x in sets])
    return vector_samples(heads, sets)


def classes(report: Report, arrays: Arrays) -> Figure:
    """Samples of each class, a row with its name, for each weight of guidance; points of a class share a panel."""
    known = report["classes"]
    heads = [(f"Guidance {weight}", "a row a class" if i == 0 else "") for i, weight in enumerate(known["weights"])]
    sets = [arrays[f"classes_{weight}"] for weight in known["weights"]]
    if not is_image(tuple(report["data"]["event_shape"])):
        return vector_samples(heads, [x.reshape(-1, *x.shape[2:]) for x in sets])
    ends = scale(arrays["real"], report["data"]["levels"])
    tiles = [shades(x.reshape(-1, *x.shape[2:]), *ends) for x in sets]
    rows, columns = sets[0].shape[:2]
    (h, w), zoom = tiles[0].shape[1:3], max(1, PANEL // (columns * tiles[0].shape[2]))
    names = [name[:NAME] for name in known.get("names", [])]
    cell, left = columns * (w * zoom + GAP) + GUTTER, MARGIN + LETTER * max(map(len, names), default=0)
    page = Page(MARGIN + left + len(sets) * cell - GUTTER, 54 + rows * (h * zoom + GAP) + 90)
    for row, name in enumerate(names):
        page.text(
            left - 10, 98 + row * (h * zoom + GAP) + h * zoom / 2 + 5, name, fontsize=7.5, color=MUTED, ha="right"
        )
    for i, (head, images) in enumerate(zip(heads, tiles, strict=True)):
        page.heading(left + i * cell, 54, *head, width=cell)
        page.image(left + i * cell, 98, grid(images, columns, zoom))
    return page.figure


def _image_samples(heads: list[tuple[str, str]], sets: list[np.ndarray]) -> Figure:
    h, w = sets[0].shape[1:3]
    columns, scale = grid_size(w)
    rows = max(1, min(columns, (columns * w) // h))
    width, height = (n * (side * scale + GAP) - GAP for n, side in ((columns, w), (rows, h)))
    lines, cell = math.ceil(len(sets) / ABREAST), max(width, PANEL) + GUTTER
    page = Page(2 * MARGIN + min(len(sets), ABREAST) * cell - GUTTER, 54 + lines * (height + 110))
    page.text(MARGIN, page.height - 30, NOTE, fontsize=7.5, color=MUTED)
    for i, (head, tiles) in enumerate(zip(heads, sets, strict=True)):
        x, y = MARGIN + i % ABREAST * cell, 54 + i // ABREAST * (height + 110)
        page.heading(x, y, *head, width=cell)
        page.image(x, y + 44, grid(tiles[: columns * rows], columns, scale))
    return page.figure


def vector_samples(heads: list[tuple[str, str]], sets: list[np.ndarray]) -> Figure:
    """Sets of examples (n, *event) that are no images, each under its heading, on the scale of the first."""
    many = min(SHOWN_POINTS, *map(len, sets))
    flat = [x.reshape(len(x), -1)[:many] for x in sets]
    looks, left, below = views(sets[0].shape[1:]), 60, 60
    lines, cell, block = math.ceil(len(sets) / ABREAST), PANEL + GUTTER, len(views(sets[0].shape[1:])) * (PANEL + below)
    page = Page(2 * MARGIN + left + min(len(sets), ABREAST) * cell - GUTTER, 64 + lines * (block + 90))
    page.text(MARGIN + left, page.height - 30, NOTE, fontsize=7.5, color=MUTED)
    for row, view in enumerate(looks):
        limits = frame(view, flat[0])
        for i, x in enumerate(flat):
            corner = MARGIN + left + i % ABREAST * cell, 54 + i // ABREAST * (block + 90)
            if row == 0:
                page.heading(*corner, *heads[i], width=cell)
            axes = page.axes(corner[0], corner[1] + 44 + row * (PANEL + below), PANEL, PANEL)
            draw(axes, view, limits, x, SAMPLE if i else REAL)
            if i % ABREAST == 0:
                label(axes, view)
    return page.figure


def trajectory(report: Report, arrays: Arrays) -> Figure:
    """Data to noise (forward) and noise to data (reverse), with the time above every frame."""
    ways = []
    for way in ("forward", "reverse"):
        frames, times = arrays[way], arrays[f"{way}_times"]
        pick = np.linspace(0, len(times) - 1, min(len(times), SHOWN_FRAMES)).round().astype(int)
        ways.append((frames[pick], times[pick]))
    if is_image(tuple(report["data"]["event_shape"])):
        return _image_trajectory(ways, scale(arrays["real"], report["data"]["levels"]))
    return _vector_trajectory(ways)


def _timeline(size: int, tall: int, ways: list[tuple[np.ndarray, np.ndarray]]) -> tuple[Page, list[int], list[int]]:
    """A page with both headings and all times; the left edges of the frames and the tops of the two rows."""
    lefts = [MARGIN + j * (size + SPACE) for j in range(max(len(times) for _, times in ways))]
    tops = [104, 104 + tall + 130]
    page = Page(max(500, lefts[-1] + size + MARGIN), tops[1] + tall + MARGIN)
    for head, top, (_, times) in zip(("Forward: data to noise", "Reverse: noise to data"), tops, ways, strict=True):
        page.heading(MARGIN, top - 50, head)
        for left, t in zip(lefts, times, strict=False):
            page.text(left + size / 2, top - 13, f"t = {t:.2g}", fontsize=8, color=MUTED, ha="center")
    return page, lefts, tops


def _image_trajectory(ways: list[tuple[np.ndarray, np.ndarray]], ends: tuple[float, float]) -> Figure:
    (h, w), many = shades(ways[0][0][0], *ends).shape[1:3], ways[0][0].shape[1]
    zoom, rows = max(1, TILE // w), min(SHOWN_ROWS, many, max(1, PIXELS // (h * w)))
    page, lefts, tops = _timeline(zoom * w, rows * (zoom * h + SPACE) - SPACE, ways)
    for top, (frames, times) in zip(tops, ways, strict=True):
        tiles = np.stack([shades(states[:rows], *ends) for states in frames], axis=1)
        page.image(lefts[0], top, grid(tiles.reshape(-1, *tiles.shape[2:]), len(times), zoom, SPACE))
    return page.figure


def _vector_trajectory(ways: list[tuple[np.ndarray, np.ndarray]]) -> Figure:
    flat = [frames.reshape(*frames.shape[:2], -1) for frames, _ in ways]
    view = views(ways[0][0].shape[2:])[0]
    limits = frame(view, np.concatenate([flat[0][0], flat[0][-1]]))
    page, lefts, tops = _timeline(TILE, TILE, ways)
    for top, frames, color in zip(tops, flat, (REAL, SAMPLE), strict=True):
        for left, states in zip(lefts, frames, strict=False):
            draw(page.axes(left, top, TILE, TILE), view, limits, states, color, small=True)
    return page.figure


def loss(report: Report, metrics: list[dict[str, float]]) -> Figure:
    """The logged loss and its moving average, on a logarithmic axis where it falls by more than a factor of four."""
    page = Page(1200, 600)
    step, value = (np.array([entry[key] for entry in metrics], float) for key in ("step", "loss"))
    step, value = step[np.isfinite(value)], value[np.isfinite(value)]
    training, window = report["training"], max(1, len(value) // 40)
    detail = f"{training['steps']:,} steps"
    if training["final_loss"] is not None:
        detail += f", last {training['final_loss']:.4g}"
    if window > 1:
        detail += f" · bold: mean of {2 * window - 1} entries of the log"
    page.heading(MARGIN, 54, "Training loss", detail)
    axes = page.axes(110, 120, 1040, 390)
    kernel = np.ones(2 * window - 1)
    if len(value):
        mean = np.convolve(value, kernel, "full") / np.convolve(np.ones(len(value)), kernel, "full")
        axes.plot(step, value, color=SAMPLE, alpha=0.35 if window > 1 else 1, linewidth=0.8 if window > 1 else 1.8)
        if window > 1:
            axes.plot(step, mean[window - 1 : len(mean) - window + 1], color=SAMPLE, linewidth=1.8)
        if 0 < 4 * value.min() < value.max():
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.4g}"))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlim(0, max(step, default=1))
    axes.set_xlabel("step", color=MUTED, fontsize=9)
    return page.figure


def likelihood(report: Report, arrays: Arrays) -> Figure:
    """Histogram of the held-out values; the line is the mean, the band its standard error."""
    page, result = Page(1200, 640), report["likelihood"]
    bits = result["unit"] == "bits/dim"
    page.heading(MARGIN, 54, "Held-out likelihood")
    mean, error = result["mean"], result["std_error"]
    page.text(MARGIN, 86, f"mean {mean:.4g} ± {error:.2g} {result['unit']}".replace("-", "−"), fontsize=9)
    if result["exact"] is not None:
        truth = f"exact mean (dashed) {result['exact']:.4g} {result['unit']}".replace("-", "−")
        page.text(1150, 86, truth, fontsize=9, color=EXACT, ha="right")
    axes = page.axes(80, 130, 1070, 420)
    values = arrays["log_prob"][np.isfinite(arrays["log_prob"])]
    exact = arrays.get("exact_log_prob")
    _histogram(axes, values, None if exact is None else exact[np.isfinite(exact)])
    axes.axvspan(mean - error, mean + error, color=INK, alpha=0.14, linewidth=0)
    axes.axvline(mean, color=INK, linewidth=1.4)
    if result["exact"] is not None:
        axes.axvline(result["exact"], color=EXACT, linewidth=1.4, linestyle=(0, (4, 3)))
    axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(8))
    meaning = "bits per dimension of an example; lower is better"
    axes.set_xlabel(meaning if bits else "log-density of an example in nats; higher is better", color=MUTED, fontsize=9)
    return page.figure


def _histogram(axes: Axes, values: np.ndarray, exact: np.ndarray | None) -> None:
    """Bars of the values and, where it is known, the outline of the truth; far outliers gather in the end bins."""
    if not len(values):
        return
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    reach = 6 * (high - low) or 1.0
    ends = max(values.min(), middle - reach), min(values.max(), middle + reach)
    bins = np.linspace(*ends, int(np.clip(1.5 * math.sqrt(len(values)), 10, 60)) + 1) if ends[1] > ends[0] else 10
    axes.hist(np.clip(values, *ends), bins, color=SAMPLE, alpha=0.8, edgecolor="white", linewidth=0.6)
    if exact is not None:
        axes.hist(np.clip(exact, *ends), bins, color=EXACT, histtype="step", linewidth=1.3)
