"""What lies in a folder, a zip or a tar, by name: what images and audio share.

Hidden files and folders are left out, as they are where a person looks; folders that links lead to are walked like
others. Where all lies in one top folder, as in a zip made of a folder, names are from there on.
"""

import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from experiments.cli.errors import InputError
from experiments.data.headers import check_fits

SHOWN = 3  # names in a note


class File(NamedTuple):
    """One of the files."""

    open: Callable[[], IO[bytes]]
    size: int
    """In bytes, as the folder or the archive says."""

    def read(self) -> bytes:
        with self.open() as stream:
            return stream.read()


class Listing(NamedTuple):
    """All files by their names; an archive stays open."""

    files: dict[str, File]
    hidden: list[str]
    """Files and folders (with / at their end) that were left out."""
    top: str
    """What all names began with, which is gone from them."""
    archive: zipfile.ZipFile | None

    def close(self) -> None:
        """No file can be read any more."""
        if self.archive is not None:
            self.archive.close()

    def ending(self, suffixes: tuple[str, ...]) -> tuple[list[str], str]:
        """The names that end so, sorted, and a note on what was hidden."""
        names = sorted(name for name in self.files if name.lower().endswith(suffixes))
        hidden = [name for name in self.hidden if name.lower().endswith((*suffixes, "/"))]
        more = f" and {len(hidden) - SHOWN} more" if len(hidden) > SHOWN else ""
        return names, f"hidden, left out: {', '.join(hidden[:SHOWN])}{more}" if hidden else ""


def listing(path: Path, *, tar: tuple[str, ...] = (), most_gib: float = 0) -> Listing:
    """The files below a folder or in a zip; or those of a tar that end with one of `tar`, in memory.

    Raises:
        ValueError: it is none of these.
        InputError: a link leads nowhere or in a circle; the files of a tar are larger than `most_gib`.
    """
    archive = None
    if path.is_dir():
        found = _folder(path)
    elif zipfile.is_zipfile(path):
        archive = zipfile.ZipFile(path)
        members = [info for info in archive.infolist() if not info.is_dir()]
        names = [info.filename.removeprefix("./") for info in members]
        files = [File(partial(archive.open, info), info.file_size) for info in members]
        found = dict(zip(names, files, strict=True))
    elif tar:
        found = _tar(path, tar, most_gib)
    else:
        raise ValueError("neither a folder nor a whole zip")
    files, hidden = {}, []
    for name, file in found.items():
        parts = name.split("/")
        at = next((i for i, part in enumerate(parts) if _hidden(part)), None)
        if at is None:
            files[name] = file
        else:
            hidden.append("/".join(parts[: at + 1]) + "/" * (at + 1 < len(parts)))
    top = os.path.commonprefix([name.rpartition("/")[0] + "/" for name in files if "/" in name])
    top = top[: top.rfind("/") + 1] if all("/" in name for name in files) else ""
    return Listing({name[len(top) :]: file for name, file in files.items()}, sorted(set(hidden)), top, archive)


def folders(names: list[str]) -> np.ndarray | None:
    """The folder of each file, where every one lies in one and there are several, fewer than files; else None."""
    found = [name.rpartition("/")[0] for name in names]
    return np.array(found) if "" not in found and 1 < len(set(found)) < len(set(names)) else None


def _hidden(part: str) -> bool:
    return part.startswith(".") or part == "__MACOSX"


def _folder(path: Path) -> dict[str, File]:
    """A folder, deeply, with what links lead to; a hidden folder is one entry."""
    found: dict[str, File] = {}

    def walk(folder: Path, above: tuple[str, ...]) -> None:
        here = os.path.realpath(folder)
        if here in above:
            raise InputError(f"{folder} is a link to a folder that it lies in, {here}; remove it")
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            place, name = folder / entry.name, (folder / entry.name).relative_to(path).as_posix()
            if entry.is_dir() and not _hidden(entry.name):
                walk(place, (*above, here))
            elif entry.is_dir():
                found[f"{name}/"] = File(io.BytesIO, 0)
            elif entry.is_file():
                found[name] = File(lambda place=place: place.open("rb"), entry.stat().st_size)
            elif entry.is_symlink() and not _hidden(entry.name):
                raise InputError(f"{place} is a link to {os.readlink(place)}, which is not there; remove or mend it")

    walk(path, ())
    return found


def _tar(path: Path, suffixes: tuple[str, ...], most_gib: float) -> dict[str, File]:
    """Read in its own order, since it may be packed."""
    found, size = {}, 0
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                stream = archive.extractfile(member) if member.name.lower().endswith(suffixes) else None
                if stream is not None:
                    size += member.size
                    check_fits(size, path, most_gib)
                    content = stream.read()
                    found[member.name.removeprefix("./")] = File(partial(io.BytesIO, content), member.size)
    except tarfile.TarError:
        raise ValueError("neither a folder, nor a zip, nor a whole tar") from None
    return found
