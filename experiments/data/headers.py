"""What the header of a NumPy file promises, compared with what follows it and with a bound before anything is read."""

import contextlib
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from experiments.cli.errors import InputError

GIB = 2**30
READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def check_fits(size: int, where: str | Path, most_gib: float, advice: str = "raise it if you have the memory") -> None:
    """Raise InputError for more bytes than --in-memory-gib allows."""
    if size > most_gib * GIB:
        raise InputError(
            f"{where} takes {size / GIB:.3g} GiB of memory, more than --in-memory-gib {most_gib:g}; {advice}"
        )


def check_array(file: IO[bytes], size: int, where: str | Path) -> int:
    """The bytes of the values in a .npy of `size` bytes; InputError for objects, and for values that are not there.

    Raises:
        ValueError: it is no .npy.
    """
    if file.read(6) != np.lib.format.MAGIC_PREFIX:
        raise ValueError("no array of NumPy")
    file.seek(0)
    version = np.lib.format.read_magic(file)
    if version not in READERS:
        raise ValueError(f"version {version} of the format, which numbers do not need")
    shape, _, dtype = READERS[version](file)
    if dtype.hasobject:
        raise InputError(f"{where} holds Python objects, which are not opened; store numbers, or words of fixed length")
    if dtype == np.dtype("V2"):
        raise InputError(f"{where} holds values of two bytes without a type, as bfloat16 is stored; store float32")
    promised, there = math.prod(shape) * dtype.itemsize, size - file.tell()
    if min(shape, default=0) < 0 or promised > there:
        raise InputError(
            f"{where}: its header promises the shape {shape}, {promised} bytes, but {there} follow; is it complete?"
        )
    return promised


def array_of(path: Path, most_gib: float, *, mapped: bool = False) -> np.ndarray:
    """The array in a .npy, left on disk where it is larger than the bound and may be `mapped`, else refused there."""
    with path.open("rb") as file:
        size = check_array(file, path.stat().st_size, path)
    if not mapped:
        check_fits(size, path, most_gib)
    return np.load(path, mmap_mode="r" if size > most_gib * GIB else None, allow_pickle=False)


@contextlib.contextmanager
def archive_of(path: Path) -> Iterator[Any]:
    """An open .npz, of which nothing is read yet; ValueError for what is none."""
    if not zipfile.is_zipfile(path):
        raise ValueError("no zip of arrays")
    with np.load(path, allow_pickle=False) as archive:
        yield archive


def check_archive(archive: Any, names: list[str], path: Path, most_gib: float) -> None:
    """Raise InputError unless these arrays of an open .npz are whole and together fit into memory."""
    total, files = 0, archive.zip.namelist()
    for name in names:
        info: zipfile.ZipInfo = archive.zip.getinfo(name if name in files else f"{name}.npy")
        with archive.zip.open(info) as member:
            total += check_array(member, info.file_size, f"{path} [{name}]")
    check_fits(total, path, most_gib, "raise it if you have the memory, or store npy, which is streamed from disk")
