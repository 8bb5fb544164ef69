"""The user's own data: arrays, tables and images from disk, or one line that says what to mend.

Everything arrives as an array (n, *event): unsigned integers where values are levels, float32 where they are
measurements. Images are (n, height, width, channels) with one or three channels of 256 levels.
"""

import contextlib
import csv
import gzip
import importlib
import io
import json
import math
import zipfile
import zlib
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
READ_ERRORS = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error)


class InputError(ValueError):
    """A mistake in what the user gave: one line that names it and says what to do."""


class Raw(NamedTuple):
    """Arrays as stored. `held_out` is None where the source has no test part of its own."""

    train: np.ndarray
    held_out: np.ndarray | None = None
    levels: int | None = None
    train_labels: np.ndarray | None = None
    held_out_labels: np.ndarray | None = None


def required(module: str, purpose: str) -> Any:
    """An optional package, imported when it is needed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        package = {"PIL.Image": "pillow", "sklearn.datasets": "scikit-learn"}.get(module, module)
        raise InputError(f"{purpose} needs {package}: pip install 'scoresde[experiments]'") from None


def existing(path: str | Path, *, folder: bool = False) -> Path:
    """The path, if there is a file (or, where `folder`, a folder or file) at it."""
    path = Path(path).expanduser()
    if not path.exists():
        raise InputError(f"{path} does not exist; check the path")
    if path.is_dir() and not folder:
        raise InputError(f"{path} is a folder; give a file")
    return path


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns whatever a truncated, corrupt or unreadable file raises into one line."""
    try:
        yield
    except InputError:
        raise
    except READ_ERRORS as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise InputError(f"{path} cannot be read ({reason}); is it complete and of the right kind?") from None


def checked(values: np.ndarray, where: str) -> np.ndarray:
    """Numbers (n, *event), finite; a plain list of numbers becomes (n, 1) and floats become float32."""
    if values.dtype.kind not in "buif":
        raise InputError(f"{where} holds {values.dtype} values; expected real numbers")
    if values.ndim == 0 or 0 in values.shape:
        raise InputError(f"{where} has shape {values.shape}; expected (examples, ...) with at least one value each")
    values = values[:, None] if values.ndim == 1 else values
    if values.dtype.kind != "f":
        if values.min() < 0 or values.max() >= 2**16:
            raise InputError(
                f"{where} holds integers from {values.min()} to {values.max()}; levels must lie in "
                "0..65535: shift them, or store measurements as floats"
            )
        return values.astype(np.uint8 if values.max() < 256 else np.uint16)
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    bad = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    if bad.any():
        raise InputError(
            f"{where} has NaN, infinite or too large values in {bad.sum()} example(s), the first at "
            f"row {np.argmax(bad)} (from 0); remove or fill them"
        )
    return values


def read_npy(name: str) -> Raw:
    """One array of a .npy file."""
    path = existing(name)
    with reading(path), path.open("rb") as file:
        values = np.load(file, allow_pickle=False)
    if not isinstance(values, np.ndarray):
        raise InputError(f"{path} is an archive of arrays; use npz:{path}")
    return Raw(checked(values, str(path)), levels=_levels(values))


def read_npz(name: str) -> Raw:
    """`train` (and `test`) of a .npz file, or `x`, or its only array."""
    path = existing(name)
    with reading(path), path.open("rb") as file:
        archive = np.load(file, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise InputError(f"{path} is a single array; use npy:{path}")
        names = archive.files
        first = next((n for n in ("train", "x") if n in names), names[0] if len(names) == 1 else None)
        if first is None:
            raise InputError(f"{path} holds the arrays {names}; expected `train` (and `test`), `x`, or just one")
        parts = [first] + (["test"] if first == "train" and "test" in names else [])
        arrays = [archive[n] for n in parts]
    values = [checked(a, f"{path} [{n}]") for n, a in zip(parts, arrays, strict=True)]
    if len(values) == 2 and values[0].shape[1:] != values[1].shape[1:]:
        raise InputError(f"{path}: train has examples of shape {values[0].shape[1:]}, test of {values[1].shape[1:]}")
    if len({v.dtype.kind == "f" for v in values}) == 2:
        raise InputError(f"{path}: train is {arrays[0].dtype} and test is {arrays[1].dtype}; store both alike")
    levels = [_levels(a) or 0 for a in arrays]
    return Raw(values[0], values[1] if len(values) == 2 else None, max(levels) or None)


def _levels(values: np.ndarray) -> int | None:
    """Bytes have 256 levels, other integers as many as occur; floats have none."""
    return None if values.dtype.kind == "f" else 256 if values.dtype == np.uint8 else int(values.max()) + 1


def read_csv(name: str) -> Raw:
    """A numeric table, .csv or .csv.gz; comma, semicolon or tab; one header row at most."""
    path, columns, header, flat = existing(name), 0, [], array("d")
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    with reading(path), opener(path, "rt", encoding="utf-8-sig", newline="") as file:
        line = file.readline()
        delimiter = max(",;\t", key=line.count)
        rows = csv.reader(_again(line, file), delimiter=delimiter)
        for row in rows:
            if not row:
                continue
            columns = columns or len(row)
            if len(row) != columns:
                raise InputError(f"{path} line {rows.line_num}: {len(row)} columns, expected {columns}")
            numbers = [_number(cell) for cell in row]
            if None not in numbers:
                flat.extend(n for n in numbers if n is not None)
            elif not flat and not header and all(n is None for n in numbers):
                header = row
            else:
                j = numbers.index(None)
                named = f"column {j + 1}" + (f" ({header[j].strip()})" if header else "")
                what = f"the text {row[j].strip()[:40]!r}" if row[j].strip() else "an empty cell"
                raise InputError(
                    f"{path} line {rows.line_num}: {named} holds {what}; numbers only: remove, fill or encode it"
                )
    if not flat:
        raise InputError(f"{path} holds no rows of numbers")
    values = np.frombuffer(flat, np.float64).reshape(-1, columns)
    return Raw(checked(values, str(path)))


def _again(line: str, file: Any) -> Iterator[str]:
    yield line
    yield from file


def _number(cell: str) -> float | None:
    """The finite number that a cell holds, if it does."""
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def read_images(name: str | Path) -> Raw:
    """8-bit images of one size from a folder (searched deeply) or a zip, with labels from its `dataset.json`."""
    path = existing(name, folder=True)
    with contextlib.ExitStack() as stack, reading(path):
        if path.is_dir():
            files: dict[str, Callable[[], bytes]] = {
                p.relative_to(path).as_posix(): p.read_bytes for p in path.rglob("*") if p.is_file()
            }
        else:
            archive = stack.enter_context(zipfile.ZipFile(path))
            files = {i.filename: lambda i=i: archive.read(i) for i in archive.infolist() if not i.is_dir()}
        names = sorted(n for n in files if n.lower().endswith(IMAGE_SUFFIXES) and "__MACOSX" not in n)
        if not names:
            raise InputError(f"{path} holds no images ({' '.join(IMAGE_SUFFIXES[:3])} ...)")
        first = _image(files[names[0]], f"{path}/{names[0]}")
        images = np.empty((len(names), *first.shape), np.uint8)
        for k, n in enumerate(names):
            image = _image(files[n], f"{path}/{n}")
            if image.shape != first.shape:
                raise InputError(
                    f"{path}/{n} has shape {image.shape}, but {names[0]} has {first.shape}; "
                    "resize or convert them all alike"
                )
            images[k] = image
        listed = json.loads(files["dataset.json"]()).get("labels") if "dataset.json" in files else None
        label = dict(listed or ())
        labels = np.array([label[n] for n in names]) if label else None
    return Raw(images, levels=256, train_labels=labels)


def _image(read: Callable[[], bytes], where: str) -> np.ndarray:
    pillow = required("PIL.Image", "reading images")
    with reading(Path(where)):
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
