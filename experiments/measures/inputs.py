"""What a job is made of, known by its content: a file that was moved is the same input, one that was edited is not.

Files that a flag names are hashed as they are, in pieces. Data are hashed as they are decoded, and only the examples
that the job reads: the training part of a large set is never read for its hash alone. A model is its parameters with
the SDE, the network's settings and the units of its data.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.data.arrays import Examples, blocks, existing, reading
from experiments.models.saved import Opened, digest


class Input(NamedTuple):
    """One input of a job."""

    where: str
    """What a message calls it; another name for the same content is no other job."""
    sha256: str


def of_file(path: Path) -> Input:
    """A file, byte by byte; InputError if it cannot be read."""
    with reading(path), existing(path).open("rb") as file:
        return Input(str(path), hashlib.file_digest(file, "sha256").hexdigest())


def of_examples(where: str, *parts: Examples | None) -> Input:
    """Examples, labels or what else is read of a set of data, without what is None."""
    return Input(where, sha256([part for part in parts if part is not None]))


def of_model(where: str | Path, opened: Opened, params: Any) -> Input:
    """A model of a run with these of its parameters."""
    settings = {"model": opened.model.record, "data": opened.data.record(), "parameters": digest(params)}
    return Input(str(where), hashlib.sha256(json.dumps(settings, default=str).encode()).hexdigest())


def sha256(parts: list[Examples]) -> str:
    """Of type, shape and values of each part as stored."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(f"{part.dtype}{part.shape}".encode())
        for rows in blocks(part) if part.ndim else [...]:
            sha.update(np.ascontiguousarray(part[rows]).tobytes())
    return sha.hexdigest()
