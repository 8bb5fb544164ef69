"""What the figures are made of: pages laid out in pixels, grids of images, and panels of points or curves.

Positions are pixels from the top left of the page, sizes of text are points. An image is shown at an integer
multiple of its own pixels, so that what is on the page is what is in the array. Which view an example gets:

    (h, w) or (h, w, c), h and w at least 4     images; grey, or colour if c = 3
    one value                                   a histogram
    vectors of 2 to 8 values                    scatter plots of consecutive pairs
    longer vectors, (length, channels)          curves, a view a channel
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

DPI = 150
INK, MUTED, FAINT = "#1b1f27", "#687080", "#d5d9e0"
REAL, SAMPLE, EXACT = "#4b5362", "#2c6cb3", "#d1602b"
GAP, EDGE = 3, 60
LARGEST = 100
FILE_LIMIT = 300_000


class Page:
    """A white page of `width` by `height` pixels."""

    def __init__(self, width: int, height: int):
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")

    def text(self, x: float, y: float, content: str, **style: Any) -> None:
        """Text whose baseline is at y."""
        style = {"fontsize": 9, "color": INK, "va": "baseline"} | style
        self.figure.text(x / self.width, 1 - y / self.height, content, parse_math=False, **style)

    def heading(self, x: float, y: float, title: str, detail: str = "", width: float = math.inf) -> None:
        """A bold line at y and a smaller, muted one under it, shrunk to stay within `width` pixels."""
        self.text(x, y, title, fontsize=min(10, width / (1.3 * len(title))), weight="bold")
        self.text(x, y + 27, detail, fontsize=min(8.2, width / (1.15 * max(1, len(detail)))), color=MUTED)

    def image(self, x: int, y: int, picture: np.ndarray) -> None:
        """An RGB picture (h, w, 3), uint8, pixel for pixel."""
        self.figure.figimage(picture, x, self.height - y - len(picture), origin="upper")

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        """Axes without junk: bottom line only, muted ticks."""
        area = (x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height)
        axes = self.figure.add_axes(area)
        axes.tick_params(colors=MUTED, labelsize=8, length=3, width=0.8)
        for side, spine in axes.spines.items():
            spine.set_visible(side == "bottom")
            spine.set_color(FAINT)
        return axes


def save(figure: Figure, path: Path) -> None:
    """Write a PNG atomically; one above 300 kB is stored with fewer colours."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None}, pil_kwargs={"optimize": True})
        if temporary.stat().st_size > FILE_LIMIT:
            with Image.open(temporary) as picture:
                whole = picture.convert("RGB")
            for colors in (256, 64, 16):
                whole.quantize(colors, dither=Image.Dither.NONE).save(temporary, format="png", optimize=True)
                if temporary.stat().st_size <= FILE_LIMIT:
                    break
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether an event of this shape is drawn as an image."""
    return len(shape) in (2, 3) and min(shape[:2]) >= 4


def pixels(images: np.ndarray, low: float, high: float) -> np.ndarray:
    """Images (n, h, w) or (n, h, w, c) as uint8 (n, h, w, c): low is black, high is white."""
    x = np.asarray(images, np.float64)
    x = x[..., None] if x.ndim == 3 else x
    return np.round(255 * np.clip((np.nan_to_num(x) - low) / (high - low), 0, 1)).astype(np.uint8)


def shades(images: np.ndarray, low: float, high: float) -> np.ndarray:
    """Images (n, h, w) or (n, h, w, c) as uint8 RGB (n, h', w', 3): low is black, high is white.

    Three channels are red, green and blue, any other number is averaged to grey. Images of more than 100 pixels a
    side are averaged over blocks.
    """
    x = np.asarray(images, np.float64)
    x = x[..., None] if x.ndim == 3 else x
    x = x if x.shape[-1] == 3 else x.mean(axis=-1, keepdims=True)
    if (block := math.ceil(max(x.shape[1:3]) / LARGEST)) > 1:
        h, w = (side // block for side in x.shape[1:3])
        x = x[:, : h * block, : w * block].reshape(len(x), h, block, w, block, -1).mean(axis=(2, 4))
    return np.broadcast_to(pixels(x, low, high), (*x.shape[:3], 3))


def grid(tiles: np.ndarray, columns: int, scale: int, gap: int = GAP) -> np.ndarray:
    """RGB tiles (n, h, w, 3) in rows of `columns`, each pixel `scale` wide, `gap` dark pixels between tiles."""
    tiles = tiles.repeat(scale, axis=1).repeat(scale, axis=2)
    n, h, w, _ = tiles.shape
    rows = -(-n // columns)
    page = np.full((rows * (h + gap) - gap, columns * (w + gap) - gap, 3), 255, np.uint8)
    for i, tile in enumerate(tiles):
        y, x = i // columns * (h + gap), i % columns * (w + gap)
        page[max(y - gap, 0) : y + h, max(x - gap, 0) : x + w] = EDGE
        page[y : y + h, x : x + w] = tile
    return page


def grid_size(width: int, panel: int = 380) -> tuple[int, int]:
    """Columns (at most 8) and scale for tiles of this width: the most that fill a panel, else the widest."""
    scales = {n: ((panel + GAP) // n - GAP) // width for n in range(8, 0, -1)}
    sizes = {n: n * (scale * width + GAP) - GAP for n, scale in scales.items() if scale}
    columns = next((n for n, size in sizes.items() if size > 0.78 * panel), max(sizes, key=lambda n: sizes[n]))
    return columns, scales[columns]


class View(NamedTuple):
    """One way to look at flattened examples (n, D): what is drawn, of which values, and the names of the axes."""

    kind: str
    values: tuple[int, ...]
    labels: tuple[str, str]


def views(shape: tuple[int, ...]) -> list[View]:
    """The views of an event that is no image, at most four."""
    size = math.prod(shape)
    if size == 1:
        return [View("histogram", (0,), ("value", ""))]
    if len(shape) == 1 and size <= 8:
        pairs = [(i, i + 1) for i in range(size - 1)][:4]
        return [View("scatter", (i, j), (f"value {i + 1}", f"value {j + 1}")) for i, j in pairs]
    channels = shape[-1] if len(shape) == 2 else 1
    names = [f"channel {c + 1}" if channels > 1 else "" for c in range(min(channels, 4))]
    return [View("curves", tuple(range(c, size, channels)), ("position", name)) for c, name in enumerate(names)]


class Frame(NamedTuple):
    """The limits that all panels of one view share."""

    x: tuple[float, float]
    y: tuple[float, float]
    bins: np.ndarray


def frame(view: View, x: np.ndarray) -> Frame:
    """Limits and bins that hold the examples (n, D); pairs in like units get equal scales."""
    x = x[:, list(view.values)]

    def limits(values: np.ndarray) -> tuple[float, float]:
        low, high = (float(v) for v in np.quantile(values, [0.001, 0.999]))
        margin = 0.12 * (high - low) or 1.0
        return low - margin, high + margin

    if view.kind == "curves":
        return Frame((0, x.shape[1] - 1), limits(x), np.zeros(0))
    across = limits(x[:, 0])
    if view.kind == "histogram":
        bins = np.linspace(*across, 41)
        return Frame(across, (0, 1.4 * float(np.histogram(x[:, 0], bins, density=True)[0].max())), bins)
    up = limits(x[:, 1])
    spans = across[1] - across[0], up[1] - up[0]
    if max(spans) < 2.5 * min(spans):
        across, up = (((a + b - max(spans)) / 2, (a + b + max(spans)) / 2) for a, b in (across, up))
    return Frame(across, up, np.zeros(0))


def draw(axes: Axes, view: View, limits: Frame, x: np.ndarray, color: str, *, small: bool = False) -> None:
    """Draw flattened examples (n, D) into a framed panel without ticks; those that are not finite are left out."""
    x = x[:, list(view.values)]
    x = x[np.isfinite(x).all(axis=1)]
    if not len(x):
        axes.text(0.5, 0.5, "nothing finite", color=MUTED, ha="center", transform=axes.transAxes)
    elif view.kind == "histogram":
        axes.hist(x[:, 0], limits.bins.tolist(), density=True, color=color, alpha=0.85, linewidth=0)
    elif view.kind == "scatter":
        size = 1.5 if small else float(np.clip(5000 / len(x), 2, 12))
        axes.scatter(x[:, 0], x[:, 1], s=size, color=color, alpha=0.55, linewidths=0)
    else:
        axes.plot(x[: 12 if small else 40].T, color=color, alpha=0.4, linewidth=0.7)
    axes.set(xlim=limits.x, ylim=limits.y, xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(True)


def label(axes: Axes, view: View) -> None:
    """Ticks and names for the one panel of a view that carries them."""
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.set_xlabel(view.labels[0], color=MUTED, fontsize=8)
    if view.kind != "histogram":
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        axes.set_ylabel(view.labels[1], color=MUTED, fontsize=8)
