"""Files that a reader sees whole, old or new, and never in part: JSON, arrays and pictures."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def write_atomically(path: Path, text: str) -> None:
    """A text file."""
    with _replacing(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path, content: Any) -> None:
    """``content`` as JSON, indented; what JSON has no form for is written as text."""
    write_atomically(path, json.dumps(content, indent=2, default=str) + "\n")


def write_arrays(path: Path, arrays: dict[str, np.ndarray], *, compressed: bool = False) -> None:
    """An .npz of named arrays."""
    save: Any = np.savez_compressed if compressed else np.savez
    with _replacing(path) as temporary, temporary.open("wb") as file:
        save(file, **arrays)


def write_picture(path: Path, picture: np.ndarray) -> None:
    """A PNG of uint8 (h, w, 1), (h, w, 3) or (h, w, 4), without loss."""
    with _replacing(path) as temporary:
        Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(temporary, format="png")


def write_pictures(folder: Path, pictures: Iterable[np.ndarray]) -> None:
    """Pictures (h, w, c) as 000000.png, 000001.png, ... in a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(pictures):
        write_picture(folder / f"{i:06d}.png", picture)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
