"""Checkpoints of ``flax.training.checkpoints``, MessagePack of nested dicts with arrays: nothing in them is executed.

An array is an extension of type 1 whose data are themselves MessagePack, (shape, name of the dtype, bytes); a NumPy
scalar one of type 3; an array above a gibibyte a dict of ``chunks``. Everything else must be a plain value. Lengths are
checked against what is there before anything is made.
"""

import math
from collections.abc import Iterator, Sized
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from scoresde.interop.files.opening import LONGEST_NAME, reading, regular

TYPES = ("float16", "float32", "float64", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")
ARRAY, SCALAR = 1, 3
MOST_ENTRIES = 100_000  # of all dicts and lists together
CHUNKED = "__msgpack_chunked_array__"
DEEPEST = 64
NEEDS = "reading a checkpoint of flax needs the package msgpack: pip install 'scoresde[interop]'"


def read_flax(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays and numbers of a checkpoint by their names, joined by "/".

    Raises:
        ValueError: one line: the file is damaged or holds anything but arrays and plain values in dicts.
    """
    path = regular(Path(path))
    with reading(path):
        return dict(_leaves(_unpacked(path.read_bytes(), _extension, MOST_ENTRIES), "", 0))


def is_flax(path: str | Path) -> bool:
    """Whether a file begins as a dict in MessagePack that is not empty. Raises ValueError if there is none."""
    with reading(path := regular(Path(path))), path.open("rb") as file:
        start = file.read(1)
    return b"\x81" <= start <= b"\x8f" or start in (b"\xde", b"\xdf")


def _unpacked(content: bytes, extension: Any, most: int) -> Any:
    try:
        import msgpack
    except ImportError:
        raise ValueError(NEEDS) from None
    seen = 0

    def counted(items: Sized) -> Sized:
        nonlocal seen
        seen += 1 + len(items)
        if seen > MOST_ENTRIES:
            raise ValueError(f"it has more than {MOST_ENTRIES} entries, far above those of a network")
        return items

    options = {"max_array_len": 64, "max_map_len": most, "strict_map_key": False, "ext_hook": extension}
    options |= {"list_hook": counted, "object_hook": counted}
    try:
        return msgpack.unpackb(content, **options)
    except msgpack.UnpackException as error:
        raise ValueError(f"malformed MessagePack: {type(error).__name__}") from None


def _extension(code: int, data: bytes) -> np.ndarray:
    if code not in (ARRAY, SCALAR):
        raise ValueError(f"the file has an object of type {code}, which is no array")
    found = _unpacked(data, _no_extension, 0)
    if not isinstance(found, list) or len(found) != 3 or not isinstance(found[0], list):
        raise ValueError("malformed checkpoint of flax: an array is (shape, type, bytes)")
    shape, name, content = found
    if name not in TYPES or not isinstance(content, bytes):
        raise ValueError(f"the file has an array whose type is none of {', '.join(TYPES)}")
    if not all(type(n) is int and 0 <= n < 2**48 for n in shape):
        raise ValueError("malformed checkpoint of flax: a shape that is not of whole numbers")
    dtype = np.dtype(jnp.bfloat16 if name == "bfloat16" else name)
    if math.prod(shape) * dtype.itemsize != len(content):
        raise ValueError(f"an array of shape {tuple(shape)} has {len(content)} bytes")
    return np.frombuffer(content, dtype).reshape(shape)


def _no_extension(code: int, _: bytes) -> Any:
    raise ValueError(f"malformed checkpoint of flax: an array made of an object of type {code}")


def _leaves(node: Any, name: str, depth: int) -> Iterator[tuple[str, np.ndarray]]:
    if depth > DEEPEST:
        raise ValueError(f"the checkpoint is nested deeper than {DEEPEST}")
    if isinstance(node, dict) and CHUNKED in node:
        parts = node.get("chunks")
        flat = [v for v in (parts or {}).values() if isinstance(v, np.ndarray)] if isinstance(parts, dict) else []
        if not flat or not isinstance(node.get("shape"), dict):
            raise ValueError("malformed checkpoint of flax: an array in parts without them")
        yield name, np.concatenate(flat).reshape([int(n) for n in node["shape"].values()])
    elif isinstance(node, dict):
        for key, value in node.items():
            if isinstance(key, str | bytes) and len(key) > LONGEST_NAME:
                raise ValueError(f"the checkpoint has a name of more than {LONGEST_NAME} letters")
            yield from _leaves(value, f"{name}/{key}" if name else str(key), depth + 1)
    elif isinstance(node, np.ndarray | int | float):
        yield name, np.asarray(node)
    elif node is not None:
        raise ValueError(f"the checkpoint has a {type(node).__name__} at {name or 'the top'!r}; expected arrays")
