"""8-bit images of one size from a folder (searched deeply) or a zip: (n, height, width, channels), 256 levels.

Labels come from `dataset.json`, {"labels": [[file, label], ...]}, the layout of EDM; without that file, where every
image lies in a folder and there are several folders, their names are the classes.
"""

import io
import json
import os
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from experiments.cli.errors import InputError
from experiments.data.arrays import Options, Raw, Rows, existing, reading, required

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
Files = dict[str, Callable[[], bytes]]


def read_images(name: str | Path, options: Options) -> Raw:
    """The images in the order of their names, decoded by one thread a core; streamed from disk where they are many."""
    path = existing(name, folder=True)
    with reading(path):
        files = _listing(path)
        names = sorted(n for n in files if n.lower().endswith(SUFFIXES) and "__MACOSX" not in n)
        if not names:
            raise InputError(f"{path} holds no images ({' '.join(SUFFIXES[:3])} ...)")
        labels = _labels(path, files, names)
    first = _image(files[names[0]], f"{path}/{names[0]}")
    pool = ThreadPoolExecutor(os.cpu_count())

    def one(row: int) -> np.ndarray:
        image = _image(files[names[row]], f"{path}/{names[row]}")
        if image.shape != first.shape:
            raise InputError(
                f"{path}/{names[row]} has shape {image.shape}, but {names[0]} has {first.shape}; "
                "resize or convert them all alike"
            )
        return image

    def read(rows: np.ndarray) -> np.ndarray:
        return np.stack(list(pool.map(one, rows.tolist())))

    rows = Rows(read, np.arange(len(names)), first.shape, np.uint8)
    large = len(names) * first.size > options.in_memory_gib * 2**30
    return Raw(rows if large else rows.load(), levels=256, train_labels=labels)


def read_image(path: Path) -> np.ndarray:
    """One image file, uint8 (height, width, channels)."""
    return _image(path.read_bytes, str(path))


def _listing(path: Path) -> Files:
    """Every file by its name from the root, as a function that reads it; an archive stays open."""
    if path.is_dir():
        return {p.relative_to(path).as_posix(): p.read_bytes for p in path.rglob("*") if p.is_file()}
    archive = zipfile.ZipFile(path)
    return {i.filename: lambda i=i: archive.read(i) for i in archive.infolist() if not i.is_dir()}


def _labels(path: Path, files: Files, names: list[str]) -> np.ndarray | None:
    if "dataset.json" not in files:
        folders = [n.rpartition("/")[0] for n in names]
        return np.array(folders) if "" not in folders and 1 < len(set(folders)) < len(names) else None
    listed = json.loads(files["dataset.json"]()).get("labels")
    if not listed:
        return None
    label = dict(listed)
    if absent := next((n for n in names if n not in label), None):
        raise InputError(f"{path}/dataset.json has no label for {absent}; label every image, or none")
    if foreign := next((n for n in label if n not in files), None):
        raise InputError(f"{path}/dataset.json labels {foreign}, which is not there; remove it from the list")
    try:
        return np.array([label[n] for n in names])
    except ValueError:
        raise InputError(f"{path}/dataset.json: labels differ in length; give numbers or vectors of one size") from None


def _image(read: Callable[[], bytes], where: str) -> np.ndarray:
    pillow = required("PIL.Image", "reading images")
    with reading(where):
        try:
            picture = pillow.open(io.BytesIO(read()))
            if picture.mode == "P" and "transparency" not in picture.info:
                picture = picture.convert("RGB")
            mode, pixels = picture.mode, np.asarray(picture.convert("L") if picture.mode == "1" else picture)
        except SyntaxError as error:
            raise ValueError(str(error)) from None
    if mode not in ("1", "L", "RGB"):
        raise InputError(f"{where} has mode {mode}; expected 8-bit grey or RGB: convert it")
    return pixels if pixels.ndim == 3 else pixels[:, :, None]
