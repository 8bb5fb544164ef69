"""Pictures of examples beside what became of them: a row an example, a column each thing that was done.

Images stand as tiles on one scale. Other examples share a panel a row: the first column is drawn dark, the last
orange, those between blue.
"""

from pathlib import Path

import numpy as np

from experiments.figures import GUTTER, MARGIN, scale
from experiments.panels import EXACT, GAP, REAL, SAMPLE, Page, draw, frame, grid, is_image, label, save, shades, views

Column = tuple[str, str, np.ndarray]
"""Title, a smaller line under it, and the examples (n, k, *event): k tiles a row."""
ROWS, TILE, PANEL = 8, 56, 300


def picture(path: Path, columns: list[Column], levels: int | None, like: np.ndarray) -> None:
    """Write a PNG of at most ROWS examples; the scale is that of the raw examples ``like``."""
    columns = [(head, detail, x[:ROWS]) for head, detail, x in columns]
    shape = columns[0][2].shape[2:]
    if is_image(shape):
        save(_images(columns, scale(like, levels)).figure, path)
    else:
        save(_panels(columns, like, shape).figure, path)


def _images(columns: list[Column], ends: tuple[float, float]) -> Page:
    tiles = [shades(x.reshape(-1, *x.shape[2:]), *ends) for _, _, x in columns]
    h, w = tiles[0].shape[1:3]
    zoom, rows = max(1, TILE // w), len(columns[0][2])
    widths = [max(x.shape[1] * (w * zoom + GAP) - GAP, 110) for _, _, x in columns]
    page = Page(2 * MARGIN + sum(widths) + GUTTER * (len(columns) - 1), 98 + rows * (h * zoom + GAP) + MARGIN)
    left = MARGIN
    for (head, detail, x), images, width in zip(columns, tiles, widths, strict=True):
        page.heading(left, 54, head, detail, width=width + GUTTER)
        page.image(left, 98, grid(images, x.shape[1], zoom))
        left += width + GUTTER
    return page


def _panels(columns: list[Column], like: np.ndarray, shape: tuple[int, ...]) -> Page:
    view, abreast = views(shape)[0], 4
    limits, count = frame(view, like.reshape(len(like), -1)), len(columns[0][2])
    page = Page(3 * MARGIN + min(count, abreast) * (PANEL + GUTTER), 110 + -(-count // abreast) * (PANEL + 60))
    colors = [REAL, *[SAMPLE] * (len(columns) - 2), EXACT]
    names = ("dark", *["blue"] * (len(columns) - 2), "orange")
    page.heading(MARGIN, 54, ", ".join(f"{head} {name}" for (head, _, _), name in zip(columns, names, strict=True)))
    for i in range(count):
        corner = 2 * MARGIN + i % abreast * (PANEL + GUTTER), 98 + i // abreast * (PANEL + 60)
        axes = page.axes(*corner, PANEL, PANEL)
        for (_, _, x), color in zip(columns, colors, strict=True):
            draw(axes, view, limits, x[i].reshape(x.shape[1], -1), color)
        if not i:
            label(axes, view)
    return page
