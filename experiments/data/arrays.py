"""What every reader of data shares, and arrays from disk; mistakes are one line that says what to mend.

Examples arrive as (n, *event): unsigned integers where values are levels, float32 where they are measurements.
They are an array, or, above `--in-memory-gib`, Rows that stay on disk and are read by index.
"""

import contextlib
import importlib
import lzma
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from experiments.cli.errors import InputError
from experiments.data.channels import Channels, channels_last, layout
from experiments.data.headers import archive_of, array_of, check_archive

READ_ERRORS = (
    *(OSError, EOFError, ValueError, KeyError, IndexError, OverflowError, MemoryError, RuntimeError, SyntaxError),
    *(struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)
PACKAGES = {
    "PIL.Image": "pillow",
    "PIL.ImageOps": "pillow",
    "sklearn.datasets": "scikit-learn",
    "pyarrow.parquet": "pyarrow",
}
LARGE = ("pyarrow", "datasets")  # too heavy for an extra that everybody installs
BLOCK_BYTES = 2**24


@dataclass(frozen=True)
class Options:
    """How the data are read; each flag is for some sources only."""

    columns: str | None = None
    """Tables: columns to keep, by name or number from 1, with commas between; all keeps those of few values too."""
    drop_columns: str | None = None
    """Tables: columns to leave out, as above; few leaves out those whose density is unbounded."""
    missing: Literal["error", "mask"] = "error"
    """Tables: refuse empty and NaN cells, or mask them in the loss."""
    test_mask: str | None = None
    """Tables: a file of 0 and 1 for each row, where 1 is the test part; by default X.test_mask.csv(.gz) beside X."""
    split: int = 0
    """Tables: the column of that file, from 0."""
    window: int = 1024
    """audio: samples of one example."""
    channels: Channels = "last"
    """npz, npy: which axis of an example are its channels; none adds one, to grey images stored as (n, 28, 28)."""
    size: int | None = None
    """images, hf: cut each to its middle square and resize it to so many pixels a side."""
    alpha: Literal["white", "black", "drop"] = "white"
    """images, hf: what transparent pixels lie over, or drop to take their colours as if they were opaque."""
    rate: int | None = None
    """audio: samples a second to which files of other rates are resampled."""
    in_memory_gib: float = 2.0
    """images, npy: a larger training part is streamed from disk. npz, idx, audio, hf: larger data are refused."""


class Rows:
    """Examples that stay on disk, an array to whoever only indexes their first axis.

    `read` maps an array of row numbers to their examples; `index` lists the rows that are here.
    """

    def __init__(self, read: Callable[[np.ndarray], np.ndarray], index: np.ndarray, event: tuple[int, ...], dtype: Any):
        self.read, self.index, self.dtype = read, index, np.dtype(dtype)
        self.shape, self.ndim = (len(index), *event), 1 + len(event)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, where: Any) -> np.ndarray:
        """The examples of an index array (of any shape) or a slice."""
        rows = self.index[where]
        return self.read(rows.ravel()).astype(self.dtype, copy=False).reshape(*rows.shape, *self.shape[1:])

    def take(self, order: np.ndarray) -> "Rows":
        """These of the examples, in this order, still on disk."""
        return Rows(self.read, self.index[order], self.shape[1:], self.dtype)

    def cast(self, dtype: Any) -> "Rows":
        """The same examples in another storage type."""
        return Rows(self.read, self.index, self.shape[1:], dtype)

    def load(self) -> np.ndarray:
        """All of them in memory."""
        values = np.empty(self.shape, self.dtype)
        for block in blocks(self):
            values[block] = self[block]
        return values


Examples = np.ndarray | Rows


def blocks(values: Examples) -> list[slice]:
    """Slices of the first axis, of about BLOCK_BYTES each."""
    rows = max(1, BLOCK_BYTES // max(1, values.dtype.itemsize * int(np.prod(values.shape[1:]))))
    return [slice(i, i + rows) for i in range(0, len(values), rows)]


class Raw(NamedTuple):
    """Examples as stored. `held_out` is None where the source has no test part of its own."""

    train: Examples
    held_out: np.ndarray | None = None
    levels: int | None = None
    train_labels: np.ndarray | None = None
    """(n, ...) whole numbers from 0, words, or real numbers."""
    held_out_labels: np.ndarray | None = None
    label_names: tuple[str, ...] | None = None
    """The words behind labels that the source numbered itself."""
    train_mask: np.ndarray | None = None
    """Of the shape of train: True where a value was observed."""
    held_out_mask: np.ndarray | None = None
    groups: np.ndarray | None = None
    """(n,) the file that each example was cut from: a split keeps files whole."""
    note: str = ""
    """What the reader decided, for the line that describes the data."""


def required(module: str, purpose: str) -> Any:
    """An optional package, imported when it is needed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        package = PACKAGES.get(module, module)
        install = package if package in LARGE else "'scoresde[experiments]'"
        raise InputError(f"{purpose} needs {package}: pip install {install}") from None


def existing(path: str | Path, *, folder: bool = False) -> Path:
    """The path, if there is a file (or, where `folder`, a folder or file) at it."""
    path = Path(path).expanduser()
    if not path.exists():
        raise InputError(f"{path} does not exist; check the path")
    if path.is_dir() and not folder:
        raise InputError(f"{path} is a folder; give a file")
    return path


@contextlib.contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turns whatever a truncated, corrupt or unreadable file raises into one line."""
    try:
        yield
    except InputError:
        raise
    except READ_ERRORS as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise InputError(f"{path} cannot be read ({reason}); is it complete and of the right kind?") from None


def checked(values: np.ndarray, where: str, rows: np.ndarray | None = None) -> np.ndarray:
    """Numbers (n, *event), finite; a plain list of numbers becomes (n, 1) and floats become float32.

    `rows` are the numbers by which a message calls them; by default 0, 1, ...
    """
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
        first = np.argmax(bad)
        raise InputError(
            f"{where} has NaN, infinite or too large values in {bad.sum()} example(s), the first at "
            f"row {first if rows is None else rows[first]} (from 0); remove or fill them"
        )
    return values


def read_npy(name: str, options: Options) -> Raw:
    """One array of a .npy file, mapped into memory and left on disk where it is large."""
    path, how = existing(name), options.channels
    with reading(path):
        if _start(path).startswith(b"PK"):
            raise InputError(f"{path} is an archive of arrays; use npz:{path}")
        stored = array_of(path, options.in_memory_gib, mapped=True)
    if not isinstance(stored, np.memmap):
        values = channels_last(checked(stored, str(path)), how, str(path))
        return Raw(values, levels=_levels(stored), note=layout(values, how))
    first = channels_last(checked(stored[:1], str(path)), how, str(path))
    dtype = np.float32 if stored.dtype.kind == "f" else np.uint8 if stored.dtype.itemsize == 1 else np.uint16

    def read(rows: np.ndarray) -> np.ndarray:
        return channels_last(checked(np.asarray(stored[rows]), str(path), rows), how, str(path))

    rows = Rows(read, np.arange(len(stored)), first.shape[1:], dtype)
    return Raw(rows, levels=_bytes(stored), note=layout(rows, how))


PARTS = {"train": "test", "x_train": "x_test", "train_images": "test_images", "x": "", "X": "", "images": ""}
"""Names of the training part in an .npz, the first that is there, each with that of the test part."""
LABELS = (("train_labels", "labels", "label", "y_train", "y", "Y"), ("test_labels", "y_test"))


def read_npz(name: str, options: Options) -> Raw:
    """`train` (and `test`), `x` or another name of PARTS, or the only array of a .npz file, with labels of LABELS."""
    path, how = existing(name), options.channels
    with reading(path):
        if _start(path) == np.lib.format.MAGIC_PREFIX:
            raise InputError(f"{path} is a single array; use npy:{path}")
        with archive_of(path) as archive:
            names = archive.files
            alone = [n for n in names if n not in (*LABELS[0], *LABELS[1])] if len(names) > 1 else names
            first = next((n for n in PARTS if n in names), alone[0] if len(alone) == 1 else None)
            if first is None:
                raise InputError(f"{path} holds the arrays {names}; expected `train` (and `test`), `x`, or just one")
            parts = [n for n in (first, PARTS.get(first)) if n in names]
            tags = [next((t for t in LABELS[k] if t in names and t not in parts), None) for k in range(len(parts))]
            used = [*parts, *(tag for tag in tags if tag)]
            check_archive(archive, used, path, options.in_memory_gib)
            arrays, labels = [archive[n] for n in parts], [archive[tag] if tag else None for tag in tags]
    values = [channels_last(checked(a, w := f"{path} [{n}]"), how, w) for n, a in zip(parts, arrays, strict=True)]
    if len(values) == 2 and values[0].shape[1:] != values[1].shape[1:]:
        shapes = [v.shape[1:] for v in values]
        raise InputError(f"{path}: {parts[0]} has examples of shape {shapes[0]}, {parts[1]} of {shapes[1]}")
    if len({v.dtype.kind == "f" for v in values}) == 2:
        raise InputError(
            f"{path}: {parts[0]} is {arrays[0].dtype} and {parts[1]} is {arrays[1].dtype}; store both alike"
        )
    if len({label is None for label in labels}) == 2:
        raise InputError(f"{path} has labels for one of `{parts[0]}` and `{parts[1]}` only; give both, or none")
    levels = [_levels(a) or 0 for a in arrays]
    test = (values[1], labels[1]) if len(values) == 2 else (None, None)
    left = [n for n in names if n not in used]
    said = [f"read: {', '.join(used)}"] + [f"not read: {', '.join(left)}"] * bool(left) if len(names) > 1 else []
    note = "; ".join([*said, *filter(None, [layout(values[0], how)])])
    return Raw(values[0], test[0], max(levels) or None, labels[0], test[1], note=note)


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(6)


def _bytes(values: np.ndarray) -> int | None:
    """Bytes have 256 levels, truth values two."""
    return {"uint8": 256, "bool": 2}.get(values.dtype.name)


def _levels(values: np.ndarray) -> int | None:
    """Integers of other kinds have as many as occur; floats have none."""
    return None if values.dtype.kind == "f" else _bytes(values) or int(values.max()) + 1
