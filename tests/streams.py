"""Pickles and files of torch.save written by hand, opcode by opcode: neither PyTorch nor its classes are needed."""

import io
import struct
import zipfile
from typing import Any, NamedTuple

import numpy as np

BUFFERS = ("freqs", "phases", "resample_filter", "u")  # of EDM's and EDM2's modules
MAGIC = 0x1950A86A20F9469CFC6C
KINDS = {
    "f4": "Float",
    "f8": "Double",
    "f2": "Half",
    "i8": "Long",
    "i4": "Int",
    "i2": "Short",
    "i1": "Char",
    "u1": "Byte",
}


class Call(NamedTuple):
    """name(*arguments), with a state set afterwards."""

    name: str
    arguments: tuple = ()
    state: Any = None
    new: bool = False


class Stored(NamedTuple):
    """A storage elsewhere in the file."""

    kind: str
    key: str
    size: int


class Filled(NamedTuple):
    """An empty dict of another class, filled afterwards."""

    name: str
    items: dict


class Named(NamedTuple):
    """A name that is only mentioned."""

    name: str


def body(value: Any) -> bytes:
    match value:
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            return b"\x8a\x08" + value.to_bytes(8, "little", signed=True)
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case bytes():
            return b"B" + struct.pack("<I", len(value)) + value
        case Named(name):
            return b"c" + "\n".join(name.rsplit(".", 1)).encode() + b"\n"
        case Stored(kind, key, size):
            return body(("storage", Named(f"torch.{kind}Storage"), key, "cpu", size)) + b"Q"
        case Call(name, arguments, state, new):
            made = body(Named(name)) + body(tuple(arguments)) + (b"\x81" if new else b"R")
            return made if state is None else made + body(state) + b"b"
        case Filled(name, items):
            return body(Call(name, new=True)) + b"(" + b"".join(body(k) + body(v) for k, v in items.items()) + b"u"
        case tuple():
            return b"(" + b"".join(map(body, value)) + b"t"
        case list():
            return b"](" + b"".join(map(body, value)) + b"e"
        case dict():
            return b"}(" + b"".join(body(k) + body(v) for k, v in value.items()) + b"u"
    raise TypeError(type(value))


def stream(value: Any) -> bytes:
    return b"\x80\x02" + body(value) + b"."


def tensor(source: Any, sizes: tuple, strides: tuple | None = None, offset: int = 0) -> Call:
    if strides is None:
        strides = tuple(int(np.prod(sizes[i + 1 :])) for i in range(len(sizes)))
    arguments = source, offset, tuple(sizes), strides, False, Call("collections.OrderedDict")
    return Call("torch._utils._rebuild_tensor_v2", arguments)


def kind_of(array: np.ndarray) -> str:
    return "Bool" if array.dtype == bool else "BFloat16" if array.dtype.kind == "V" else KINDS[array.dtype.str[1:]]


def of(storages: dict[str, np.ndarray], key: str, array: np.ndarray) -> Call:
    """A tensor that has its storage alone."""
    storages[key] = array
    return tensor(Stored(kind_of(array), key, array.size), array.shape)


def zipped(value: Any, storages: dict[str, np.ndarray], *, order: str = "little", extra: dict | None = None) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", stream(value))
        archive.writestr("archive/byteorder", order)
        for key, array in storages.items():
            archive.writestr(f"archive/data/{key}", in_order(array, order))
        for name, content in (extra or {}).items():
            archive.writestr(name, content)
    return file.getvalue()


def in_order(array: np.ndarray, order: str) -> bytes:
    return array.astype(array.dtype.newbyteorder("<" if order == "little" else ">")).tobytes()


def legacy(value: Any, storages: dict[str, np.ndarray]) -> bytes:
    magic = b"\x80\x02\x8a\x0a" + MAGIC.to_bytes(10, "little") + b"."
    parts = [magic, stream(1001), stream({"little_endian": True}), stream(value), stream(list(storages))]
    return b"".join(parts) + b"".join(struct.pack("<q", a.size) + a.tobytes() for a in storages.values())


def nested(array: np.ndarray) -> Call:
    """A storage as it stands inside of a pickled module."""
    inside = legacy(Stored(kind_of(array), "0", array.size), {"0": array})
    return tensor(Call("torch.storage._load_from_bytes", (inside,)), array.shape)


def array(value: np.ndarray) -> Call:
    """An array of NumPy as protocols below 5 pickle it."""
    dtype = Call("numpy.dtype", (value.dtype.str[1:], False, True), (3, "<", None, None, None, -1, -1, 0))
    state = 1, value.shape, dtype, False, value.tobytes()
    return Call("numpy.core.multiarray._reconstruct", (Named("numpy.ndarray"), (0,), b"b"), state)


def module(name: str, tensors: dict[str, np.ndarray], children: dict[str, Any], arguments: dict[str, Any]) -> Call:
    """A module of torch_utils.persistence, source text included."""
    buffers = {k: nested(v) for k, v in tensors.items() if k in BUFFERS}
    parameters = {
        k: Call("torch._utils._rebuild_parameter", (nested(v), True, Call("collections.OrderedDict")))
        for k, v in tensors.items()
        if k not in BUFFERS
    }
    state = {"training": False, "_parameters": parameters | {"absent": None}, "_buffers": buffers}
    state |= {"_non_persistent_buffers_set": Call("builtins.set", ([],)), "_modules": children}
    return persistent(name, state | {"_init_args": (), "_init_kwargs": arguments})


def persistent(name: str, state: dict[str, Any]) -> Call:
    """An object of torch_utils.persistence; whoever executes its source leaves a trace."""
    source = "import os\nos.system('touch executed')"
    meta = {"type": "class", "version": 6, "module_src": source, "class_name": name, "state": state}
    return Call("torch_utils.persistence._reconstruct_persistent_obj", (meta,))


def container(children: dict[str, Any]) -> Call:
    state = {"_parameters": {}, "_buffers": {}, "_modules": children}
    return Call("torch.nn.modules.container.ModuleDict", (), state, new=True)


def tree_of(state: dict[str, np.ndarray], name: str, arguments: dict[str, Any]) -> Call:
    """A module with these tensors, its parts along the dots of their names."""
    own = {k: v for k, v in state.items() if "." not in k}
    parts = dict.fromkeys(k.partition(".")[0] for k in state if "." in k)
    inner = {p: {k.partition(".")[2]: v for k, v in state.items() if k.startswith(f"{p}.")} for p in parts}
    return module(name, own, {p: tree_of(s, "Part", {}) for p, s in inner.items()}, arguments)
