"""The pictures of ``experiments.guide``: samples of each class for each weight, and what the weight gains and costs."""

import numpy as np
from matplotlib.figure import Figure

from experiments.figures.panels import EXACT, FAINT, GAP, MUTED, SAMPLE, Page, grid, is_image, shades
from experiments.figures.run_figures import scale, vector_samples

MARGIN, SHOWN, MOST_CLASSES, WIDTH = 40, 3, 20, 620
TITLES = {"accuracy": "class accuracy", "distance": "distance to held-out", "spread": "spread within a class"}


def sheet(
    sets: dict[str, np.ndarray], notes: list[str], names: list[str], real: np.ndarray, levels: int | None
) -> Figure:
    """Samples {heading: (classes, n, *event)}, a block of rows for each heading and a column a class.

    ``real`` (classes, m, *event) are shown in the last block and give the scale; ``notes`` stand beside the headings.
    """
    blocks = {**sets, "held-out examples": real}
    if not is_image(real.shape[2:]):
        heads = list(zip(blocks, notes, strict=True))
        return vector_samples(heads, [x.reshape(-1, *x.shape[2:]) for x in blocks.values()])
    columns, ends = min(len(real), MOST_CLASSES), scale(real, levels)
    tiles = [np.swapaxes(x[:columns, :SHOWN], 0, 1).reshape(-1, *x.shape[2:]) for x in blocks.values()]
    shown = [shades(x, *ends) for x in tiles]
    h, w = shown[0].shape[1:3]
    zoom = max(1, WIDTH // (columns * w))
    step, height = w * zoom + GAP, min(SHOWN, real.shape[1]) * (h * zoom + GAP)
    page = Page(2 * MARGIN + columns * step + 40, 70 + len(blocks) * (height + 84))
    for column, name in enumerate(names[:columns]):
        page.text(MARGIN + (column + 0.5) * step, 40, name[:8], fontsize=8, color=MUTED, ha="center")
    for i, (head, images, note) in enumerate(zip(blocks, shown, notes, strict=True)):
        top = 84 + i * (height + 84)
        page.heading(MARGIN, top, head, note)
        page.image(MARGIN, top + 40, grid(images, columns, zoom))
    return page.figure


def curves(weights: list[float], figures: list[dict[str, float]], real: dict[str, float]) -> Figure:
    """Accuracy, distance and spread against the weight; dashed is what real examples have."""
    page = Page(1500, 560)
    page.heading(90, 54, "Against the weight of guidance", "dashed: real examples")
    for i, (name, label) in enumerate(TITLES.items()):
        axes = page.axes(90 + i * 475, 140, 385, 330)
        axes.plot(weights, [f[name] for f in figures], color=SAMPLE, linewidth=1.6, marker="o", markersize=4)
        axes.axhline(real[name], color=EXACT, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", color=FAINT, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_title(label, fontsize=9, color=MUTED, loc="left")
        axes.set_xlabel("weight", color=MUTED, fontsize=9)
    return page.figure
