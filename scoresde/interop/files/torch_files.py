"""What ``torch.save`` writes, read without PyTorch and without executing anything (see ``pickles`` and ``storages``).

    zip (since 1.6)   NAME/data.pkl     a pickle whose tensors refer to storages by key
                      NAME/data/KEY     the bytes of a storage
                      NAME/byteorder    little or big; absent in old files, which are little
    legacy            four pickles: magic, version, machine, the object; a pickle of the list of keys; then
                      of each key its number of entries (int64) and its bytes

The members of the zip are stored as they are, never compressed, and together no longer than the file: there is nothing
to inflate. Nothing is extracted; a key is looked up among the members' names. The legacy form also stands inside the
pickles of whole modules, once for each storage.
"""

import io
import mmap
import stat
import struct
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

from scoresde.interop.files.opening import reading, regular
from scoresde.interop.files.pickles import Builders, read_pickle
from scoresde.interop.files.storages import BUILDERS, Budget, Storage, StorageId, copies, storage

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_VERSION = 1001
MOST_PICKLE = 2**28  # bytes of data.pkl
TENSORS = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"


def read_torch(path: str | Path) -> Any:
    """What was saved: nested dicts, lists, numbers and texts, whose tensors are read-only NumPy arrays.

    Args:
        path: a file of ``torch.save``, zip or legacy, or a pickle that holds tensors.

    Raises:
        ValueError: one line: the file is none of these, is damaged, or its pickle asks for anything but tensors and
            plain values.
    """
    return read_objects(path, {})


def is_torch(path: str | Path) -> bool:
    """Whether a file begins as those of ``torch.save`` do. Raises ValueError if there is none."""
    start = _start(path)
    return start[:2] == b"PK" or _is_legacy(io.BytesIO(start))


def is_pickle(path: str | Path) -> bool:
    """Whether a file begins as a pickle of protocol 2 or later. Raises ValueError if there is none."""
    start = _start(path)
    return start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05"


def _start(path: str | Path) -> bytes:
    with reading(path := regular(Path(path))), path.open("rb") as file:
        return file.read(15)


def read_objects(path: str | Path, builders: Builders) -> Any:
    """``read_torch`` with further names that the pickle may call, each a function of this library."""
    path = regular(Path(path))
    with reading(path), path.open("rb") as file:
        budget = Budget(file.seek(0, io.SEEK_END))
        nested = {"torch.storage._load_from_bytes": partial(_nested, budget)}
        builders = {**BUILDERS, **copies(budget), **nested, **builders}
        file.seek(0)
        start = file.read(2)
        if start == b"PK":
            return _zipped(file, builders)
        if start[:1] != b"\x80":
            raise ValueError("it is neither a file of torch.save nor a pickle (wrong magic number)")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if _is_legacy(content):
                return _legacy(content, content, builders)
            return read_pickle(content, builders)


def _zipped(file: Any, builders: Builders) -> Any:
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: info for info in archive.infolist()}
        names = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(names) != 1:
            raise ValueError("the zip holds no data.pkl of torch.save")
        _check(members, len(archive.infolist()), file.seek(0, io.SEEK_END))
        root = names[0].removesuffix("data.pkl")
        if members[names[0]].file_size > MOST_PICKLE:
            raise ValueError(f"its data.pkl has {members[names[0]].file_size} bytes, far more than a network needs")
        order = archive.read(root + "byteorder") if root + "byteorder" in members else b"little"
        if order not in (b"little", b"big"):
            raise ValueError("its byteorder is neither little nor big")
        storages: dict[StorageId, Storage] = {}

        def load(identity: Any) -> Storage:
            asked = StorageId.parse(identity)
            name = f"{root}data/{asked.key}"
            if name not in members or members[name].file_size != asked.nbytes:
                found = f"{members[name].file_size} bytes" if name in members else "missing"
                raise ValueError(f"storage {asked.key!r} should have {asked.nbytes} bytes and is {found}")
            if asked not in storages:
                storages[asked] = storage(archive.read(name), asked.dtype, order == b"little")
            return storages[asked]

        return read_pickle(io.BytesIO(archive.read(names[0])), builders, load)


def _check(members: dict[str, zipfile.ZipInfo], count: int, size: int) -> None:
    if len(members) != count:
        raise ValueError("the zip names a member twice")
    for name, info in members.items():
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise ValueError(f"the zip's member {name!r} is compressed, which torch.save never does")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise ValueError(f"the zip's member {name!r} is a symbolic link")
        if name.startswith("/") or ".." in name.split("/") or info.flag_bits & 1:
            raise ValueError(f"the zip's member {name!r} is encrypted or leads out of the archive")
    if sum(info.file_size for info in members.values()) > size:
        raise ValueError(f"the zip declares more bytes than its {size}")


def _is_legacy(content: Any) -> bool:
    """Whether the first pickle is the magic number; the stream is left behind it, or at its beginning."""
    head = content.read(15)
    if len(head) == 15 and head[:4] == b"\x80\x02\x8a\x0a" and int.from_bytes(head[4:14], "little") == LEGACY_MAGIC:
        return True
    content.seek(0)
    return False


def _nested(budget: Budget, content: Any) -> Storage:
    """A storage inside of another pickle."""
    if not isinstance(content, bytes):
        raise ValueError("malformed PyTorch file: a storage that is no bytes")
    budget.spend(len(content))
    stream = io.BytesIO(content)
    if not _is_legacy(stream):
        raise ValueError("malformed PyTorch file: a storage of unknown form (wrong magic number)")
    found = _legacy(stream, memoryview(content), BUILDERS)
    if not isinstance(found, Storage):
        raise ValueError("malformed PyTorch file: a storage inside of a pickle that is none")
    return found


def _legacy(stream: Any, source: Any, builders: Builders) -> Any:
    """What follows the magic number in ``stream``, which reads ``source``: slices of it are storages.

    The object is read twice: first to learn the types and sizes of the storages behind it.
    """
    if read_pickle(stream, {}) != LEGACY_VERSION:
        raise ValueError(f"the PyTorch file is of another version than {LEGACY_VERSION}; save it again")
    machine = read_pickle(stream, {})
    little = not isinstance(machine, dict) or machine.get("little_endian", True) is True
    start, asked = stream.tell(), {}

    def note(identity: Any) -> None:
        found = StorageId.parse(identity)
        if asked.setdefault(found.key, found) != found:
            raise ValueError(f"storage {found.key!r} is asked for with two sizes or types")

    read_pickle(stream, {**builders, **dict.fromkeys(TENSORS, lambda *_: None)}, note)
    storages = _storages(stream, source, asked, little)
    stream.seek(start)
    return read_pickle(stream, builders, lambda identity: storages[identity[2]])


def _storages(stream: Any, source: Any, asked: dict[str, StorageId], little: bool) -> dict[str, Storage]:
    keys = read_pickle(stream, {})
    if not isinstance(keys, list) or not all(isinstance(k, str) for k in keys) or sorted(keys) != sorted(asked):
        raise ValueError("malformed PyTorch file: its storages are not those that its tensors ask for")
    storages, place = {}, stream.tell()
    for key in keys:
        begin, end = place + 8, place + 8 + asked[key].nbytes
        if end > len(source):
            raise ValueError(f"storage {key!r} should have {asked[key].nbytes} bytes, more than are left: truncated")
        if struct.unpack("<q" if little else ">q", source[place:begin]) != (asked[key].size,):
            raise ValueError(f"storage {key!r} does not have the {asked[key].size} entries that its tensors ask for")
        storages[key] = storage(source[begin:end], asked[key].dtype, little)
        place = end
    return storages
