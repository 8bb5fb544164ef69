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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MOST_JSON = 2**20  # bytes
LONGEST_REASON = 10_000  # characters: names in a hostile file can be of any length
DAMAGE = (
    OSError, EOFError, ValueError, KeyError, IndexError, TypeError, OverflowError, RecursionError, NotImplementedError,
    RuntimeError, struct.error, zipfile.BadZipFile, zlib.error,
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
