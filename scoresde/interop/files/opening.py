"""Files opened with care: regular ones only, and whatever is wrong with one is a ValueError of one line.

A folder of a pipeline may hold links, as the cache of a model hub does: its ``snapshots/X/NAME`` lead to ``blobs``
beside ``snapshots``. Links that leave both the folder and those are refused.
"""

import contextlib
import json
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

MOST_JSON = 2**20  # bytes
MOST_VALUES = 10_000  # of a configuration
MOST_WHOLE = 2**20
MOST_BLOCKS = 128
BLOCKS = ("num_blocks", "num_res_blocks", "layers_per_block", "num_layers")
MOST_LEVELS = 16
LEVELS = ("channel_mult", "ch_mult", "block_out_channels")
LONGEST_NAME = 200  # of a tensor's part
MOST_COPIES = 4
LONGEST_REASON = 10_000  # characters: names in a hostile file can be of any length
DAMAGE = (
    OSError, EOFError, ValueError, KeyError, IndexError, TypeError, ArithmeticError, RuntimeError, MemoryError,
    struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """What a damaged file makes of its readers is one line that names it."""
    try:
        yield
    except DAMAGE as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        line = "".join(c for c in " ".join(reason.split()) if c.isprintable()) or type(error).__name__
        known = f"{path} cannot be read: "
        raise ValueError(line if line.startswith(known) else known + line[:LONGEST_REASON]) from None


def regular(path: Path) -> Path:
    """``path`` if it is a regular file or a link to one.

    Raises:
        ValueError: it is missing, a folder, a device or a pipe, or its links go in circles.
    """
    with reading(path):
        mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path} is {'a folder' if stat.S_ISDIR(mode) else 'no regular file'}; give a file")
    return path


def inside(folder: Path, name: str) -> Path:
    """The regular file ``name`` of ``folder``; see the head of the module for links.

    Raises:
        ValueError: as ``regular``, or it leads elsewhere.
    """
    path = regular(folder / name)
    with reading(path):
        target, home = path.resolve(), folder.resolve()
    snapshot = next((p for p in (home, *home.parents) if p.parent.name == "snapshots"), None)
    homes = [home] if snapshot is None else [snapshot, snapshot.parent.parent / "blobs"]
    if not any(target.is_relative_to(h) for h in homes):
        raise ValueError(f"{path} is a link that leads out of its folder, to {target}; put the file itself there")
    return path


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of at most a mebibyte.

    Raises:
        ValueError: the file is larger, or no JSON object.
    """
    with reading(path):
        if path.stat().st_size > MOST_JSON:
            raise ValueError(f"{path.stat().st_size} bytes are far more than a configuration has")
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"expected a JSON object, got a {type(content).__name__}")
    return content


def bounded(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a configuration that came from a file: plain values in lists and dicts, not many and not large, so that
    what is made of it, and told of it in an error, stays small. Other objects become their types' names.

    Raises:
        ValueError: there are too many values, or one is too large; the line names it.
    """
    seen = count()

    def copied(name: str, value: Any, depth: int) -> Any:
        if next(seen) > MOST_VALUES or depth > 16:
            raise ValueError(f"the configuration has more than {MOST_VALUES} values, or is nested too deep")
        if isinstance(value, Mapping):
            return {str(k): copied(str(k), v, depth + 1) for k, v in value.items()}
        if isinstance(value, list | tuple):
            if name in LEVELS and len(value) > MOST_LEVELS:
                raise ValueError(f"the configuration's {name} has {len(value)} levels, far more than any network")
            return [copied(name, v, depth + 1) for v in value]
        if isinstance(value, int) and not abs(value) <= (MOST_BLOCKS if name in BLOCKS else MOST_WHOLE):
            raise ValueError(f"the configuration's {name} is far beyond any network's")
        return value if value is None or isinstance(value, bool | int | float | str) else type(value).__name__

    return copied("config", config, 0)


def check_numbers(project: str, config: Mapping[str, Any], names: Iterable[str]) -> None:
    """Raises ValueError for the first of these entries that is there and no number."""
    for name in names:
        if not isinstance(config.get(name, 0), int | float):
            raise ValueError(f"{project}: config's {name} must be a number, got {config[name]!r}")


def within(path: Path, state: Mapping[str, np.ndarray]) -> None:
    """Refuse tensors that share storages so often that copies of them would be far larger than their file."""
    total = sum(tensor.nbytes for tensor in state.values())
    if total > MOST_COPIES * path.stat().st_size:
        raise ValueError(f"its tensors have {total} bytes, more than {MOST_COPIES} times those of the file")
