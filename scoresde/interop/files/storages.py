"""Tensors of PyTorch as NumPy arrays over the bytes of a file, without PyTorch.

A tensor is a view of a storage, a flat array of N numbers of one type: with offset o, sizes n_i and strides s_i,

    x[i_1, ..., i_d] = storage[o + i_1 s_1 + ... + i_d s_d],      o + sum_i (n_i - 1) s_i < N.

That bound, and that a tensor has no more entries than its storage, are checked before the view is made; views copy
nothing, so that no declared size can take more memory than the file has bytes. What has to be copied, as often as the
file asks for it, is counted (``Budget``). Arrays are read-only.

The names below are all that the files of PyTorch, of EDM and of EDM2 mention; NumPy's scalars and arrays stand in the
arguments that EDM's modules were made with.
"""

import dataclasses
import math
import sys
from typing import Any

import jax.numpy as jnp
import numpy as np

from scoresde.interop.files.pickles import Builders, Name, Record, plain

MOST_AXES = 32
STORAGES = {
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.BFloat16Storage": np.dtype(jnp.bfloat16),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.IntStorage": np.dtype(np.int32),
    "torch.ShortStorage": np.dtype(np.int16),
    "torch.CharStorage": np.dtype(np.int8),
    "torch.ByteStorage": np.dtype(np.uint8),
    "torch.BoolStorage": np.dtype(np.bool_),
}
NUMPY_TYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")


@dataclasses.dataclass(frozen=True)
class Storage:
    """A flat array, in the machine's byte order."""

    numbers: np.ndarray


def storage(content: Any, dtype: np.dtype, little: bool) -> Storage:
    """The bytes of a file as a storage; booleans, and those of another byte order, are copied."""
    if dtype == np.bool_:
        return Storage(np.frombuffer(content, np.uint8) != 0)
    if little == (sys.byteorder == "little"):
        return Storage(np.frombuffer(content, dtype))
    return Storage(np.frombuffer(content, f"u{dtype.itemsize}").byteswap().view(dtype))


@dataclasses.dataclass(frozen=True)
class StorageId:
    """What a file says of a storage that lies elsewhere in it: its key there, type and number of entries."""

    key: str
    dtype: np.dtype
    size: int

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @classmethod
    def parse(cls, identity: Any) -> "StorageId":
        """From a persistent id ("storage", type, key, device, entries[, view])."""
        well = isinstance(identity, tuple) and len(identity) in (5, 6) and identity[0] == "storage"
        if not well or not isinstance(identity[1], Name) or not isinstance(identity[2], str):
            raise ValueError("malformed PyTorch file: a persistent id that is no storage")
        if identity[1].full not in STORAGES:
            raise ValueError(f"the file has a storage of type {identity[1].full}; known are {', '.join(STORAGES)}")
        if len(identity) == 6 and identity[5] is not None:
            raise ValueError("the file has views of storages, as PyTorch before 0.4 wrote them; save it again")
        return cls(identity[2], STORAGES[identity[1].full], _whole(identity[4], "number of entries"))


def _whole(value: Any, what: str) -> int:
    if type(value) is not int or not 0 <= value < 2**48:
        raise ValueError(f"malformed PyTorch file: {what} must be a whole number, got a {type(value).__name__}")
    return value


def _tensor(source: Any, offset: Any, sizes: Any, strides: Any, *_: Any) -> np.ndarray:
    if not isinstance(source, Storage) or not isinstance(sizes, tuple) or not isinstance(strides, tuple):
        raise ValueError("malformed PyTorch file: a tensor without storage, sizes or strides")
    if len(sizes) != len(strides) or len(sizes) > MOST_AXES:
        raise ValueError(f"malformed PyTorch file: {len(sizes)} sizes and {len(strides)} strides of a tensor")
    offset = _whole(offset, "offset")
    sizes = tuple(_whole(n, "size") for n in sizes)
    strides = tuple(_whole(s, "stride") for s in strides)
    numbers = source.numbers
    entries = math.prod(sizes)
    last = offset + sum((n - 1) * s for n, s in zip(sizes, strides, strict=True)) if entries else 0
    if entries > numbers.size or (entries and last >= numbers.size):
        raise ValueError(f"a tensor of sizes {sizes} does not fit its storage of {numbers.size} entries")
    steps = [s * numbers.dtype.itemsize for s in strides]
    return np.lib.stride_tricks.as_strided(numbers[offset:], sizes, steps, writeable=False)


def _parameter(data: Any, *_: Any) -> np.ndarray:
    if not isinstance(data, np.ndarray):
        raise ValueError("malformed PyTorch file: a parameter that is no tensor")
    return data


def empty_dict(*arguments: Any) -> dict[Any, Any]:
    """A dict of another class, which pickles make empty and then fill."""
    if arguments:
        raise ValueError("malformed pickle: a dict made with arguments")
    return {}


@dataclasses.dataclass
class Budget:
    """How many entries and bytes of a file may still be copied, or read once more: each once is enough."""

    left: int

    def spend(self, n: int) -> None:
        """Raises ValueError when too much is asked for."""
        self.left -= n
        if self.left < 0:
            raise ValueError("the pickle asks for its values so often that they would be far larger than their file")


def copies(budget: Budget) -> Builders:
    """What pickles may call that copies its argument."""

    def made_set(items: Any) -> set[Any]:
        if not isinstance(items, list):
            raise ValueError("malformed pickle: a set that is not made of a list")
        budget.spend(len(items))
        return set(map(plain, items))

    def latin(text: Any, encoding: Any) -> bytes:
        """Bytes as protocol 2 writes them: text of code points below 256."""
        if not isinstance(text, str) or encoding != "latin1":
            raise ValueError("malformed pickle: bytes that are no latin1 text")
        budget.spend(len(text))
        return text.encode("latin1")

    return {"_codecs.encode": latin} | dict.fromkeys(("builtins.set", "__builtin__.set"), made_set)


def _numpy_type(code: Any, *_: Any) -> Record:
    if not isinstance(code, str) or code not in NUMPY_TYPES:
        raise ValueError(f"the pickle has a NumPy type that is none of {', '.join(NUMPY_TYPES)}")
    return Record("numpy.dtype", (code,))


def _scalar(dtype: Any, content: Any) -> Any:
    if not isinstance(dtype, Record) or dtype.kind != "numpy.dtype" or not isinstance(content, bytes):
        raise ValueError("malformed pickle: a NumPy scalar without type or bytes")
    order = dtype.state[1] if isinstance(dtype.state, tuple) and len(dtype.state) > 1 else "|"
    if order not in ("<", ">", "|", "=") or len(content) != int(dtype.arguments[0][1]):
        raise ValueError(f"malformed pickle: a NumPy scalar of {len(content)} bytes")
    return np.frombuffer(content, order + dtype.arguments[0])[0].item()


def _array(*_: Any) -> Record:
    return Record("numpy.ndarray")


def _mentioned(*_: Any) -> Any:
    raise ValueError("malformed PyTorch file: the type of a storage is called")


BUILDERS: Builders = {
    "collections.OrderedDict": empty_dict,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "numpy.dtype": _numpy_type,
    "numpy.ndarray": _array,
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": _array for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _array for core in ("core", "_core")},
    **dict.fromkeys(STORAGES, _mentioned),
}
"""What pickles of tensors may call, with those of ``copies``."""
