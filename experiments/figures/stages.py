"""The picture of an edit: its stages under one another, a column an example; points and curves in panels abreast."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.figures.panels import GAP, REAL, SAMPLE, Page, draw, frame, grid, is_image, label, save, shades, views
from experiments.figures.run_figures import scale


class Stage(NamedTuple):
    """Examples as they are at one step of an edit."""

    name: str
    title: str
    detail: str
    x: np.ndarray
    """(m, *event) in raw units."""
    ends: tuple[float, float] | None = None
    """What is black and white, where it is not as for the data."""


MARGIN, HEAD, SPACE, WIDEST, LARGEST, SIDE = 40, 58, 40, 1000, 12, 344


def picture(path: Path, stages: list[Stage], levels: int | None) -> None:
    """Write a PNG of the stages, on the scale of the first except where a stage has its own."""
    if is_image(stages[0].x.shape[1:]):
        _images(path, stages, scale(stages[0].x, levels))
    else:
        _panels(path, stages)


def _images(path: Path, stages: list[Stage], ends: tuple[float, float]) -> None:
    tiles = [shades(stage.x, *(stage.ends or ends)) for stage in stages]
    widest = max(len(t) * t.shape[2] for t in tiles)
    zoom = min(LARGEST, max(1, (WIDEST - max(map(len, tiles)) * GAP) // widest))
    strips = [grid(t, len(t), zoom) for t in tiles]
    height = sum(len(strip) + HEAD + SPACE for strip in strips)
    page = Page(2 * MARGIN + max(420, max(strip.shape[1] for strip in strips)), MARGIN + height)
    top = MARGIN
    for stage, strip in zip(stages, strips, strict=True):
        page.heading(MARGIN, top + 16, stage.title, stage.detail, width=page.width - 2 * MARGIN)
        page.image(MARGIN, top + HEAD, strip)
        top += len(strip) + HEAD + SPACE
    save(page.figure, path)


def _panels(path: Path, stages: list[Stage]) -> None:
    looks = views(stages[0].x.shape[1:])
    flat = [stage.x.reshape(len(stage.x), -1) for stage in stages]
    page = Page(2 * MARGIN + 60 + len(stages) * (SIDE + SPACE), MARGIN + HEAD + len(looks) * (SIDE + 60))
    for row, view in enumerate(looks):
        limits = frame(view, np.concatenate(flat))
        for i, (stage, x) in enumerate(zip(stages, flat, strict=True)):
            left, top = MARGIN + 60 + i * (SIDE + SPACE), MARGIN + HEAD + row * (SIDE + 60)
            if row == 0:
                page.heading(left, MARGIN + 16, stage.title, stage.detail, width=SIDE)
            axes = page.axes(left, top, SIDE, SIDE)
            draw(axes, view, limits, x, SAMPLE if i else REAL)
            if i == 0:
                label(axes, view)
    save(page.figure, path)
