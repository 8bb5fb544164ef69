"""Pytrees to disk and back, bit for bit, and never half of one.

A checkpoint is a folder that holds complete, numbered versions and, while a save runs, the next one:

    path/000000000007/checkpoint.json     metadata, every leaf's name, shape and dtype, every file's SHA-256
    path/000000000007/arrays/             the array leaves, written by Orbax
    path/tmp-000000000008/                being written; a kill leaves it behind, and the next save removes it

A save writes and flushes `tmp-N`, renames it to `N`, and only then removes all but the last `keep` versions. That
rename is the one moment at which the checkpoint changes, so a process killed at any time leaves the old version or
the new one. Reading takes the highest number whose digests all agree: a truncated or altered file is a warning where
an older version is whole, else an error, never wrong numbers. One process at a time may save to a path; others may
read it meanwhile. Several processes of one program all call `save`, process 0 writes, and all read the same folder.
"""

import contextlib
import hashlib
import io
import json
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from scoresde.checkpoint.leaves import Record, check_alike, from_host, named_leaves, to_host
from scoresde.checkpoint.locks import locked

_FORMAT_VERSION = 2
_MANIFEST, _ARRAYS, _UNFINISHED = "checkpoint.json", "arrays", "tmp-"


def save(path: str | os.PathLike, tree: Any, metadata: dict[str, Any], *, keep: int = 1) -> None:
    """Makes `tree` and `metadata` the newest version at `path`, atomically, and keeps the last `keep` versions.

    `tree` is any pytree of JAX or NumPy arrays (typed PRNG keys too) and Python numbers, `metadata` a dict
    that JSON can hold (read back, its tuples are lists and its keys strings). Makes parent folders. Raises ValueError
    for a leaf or metadata that cannot be stored and OSError where the folder cannot be written; either way the
    checkpoint that was there before stays as it was.
    """
    _write(Path(path).absolute(), *_prepared(tree, metadata), keep)


class Writer:
    """Saves while the program goes on: `with Writer(path, keep=2) as writer: ... writer.save(tree, metadata)`.

    A save copies the arrays to the host and leaves the writing to a thread, so the tree may be donated at once. The
    next save, `wait` and the end of the block wait for it and raise what the function `save` would have raised.
    """

    def __init__(self, path: str | os.PathLike, *, keep: int = 1):
        self._path, self._keep = Path(path).absolute(), keep
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._pending: Future[None] | None = None

    def save(self, tree: Any, metadata: dict[str, Any]) -> None:
        self.wait()
        arrays, content = _prepared(tree, metadata)
        arrays = jax.tree.map(np.array, arrays)
        self._pending = self._thread.submit(_write, self._path, arrays, content, self._keep)

    def wait(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()
        self.wait()


def restore(path: str | os.PathLike, target: Any) -> tuple[Any, dict[str, Any]]:
    """The tree and the metadata last saved at `path`, exactly as they were.

    `target` gives the structure: a pytree like the saved one, of arrays or `jax.ShapeDtypeStruct`s (for
    instance `jax.eval_shape(init)`), whose values are not read. Leaves come back as JAX arrays with the target's
    sharding if it has one, however they lay when saved, as NumPy arrays or Python numbers where the target has those.
    Warns where the newest version is damaged and an older one serves. Raises FileNotFoundError where there is no
    checkpoint, and ValueError naming the damaged file or the first leaf that differs from the target.
    """
    records, arrays, metadata = _from_newest(Path(path).absolute(), _contents)
    check_alike(f"checkpoint {path}", records, target)
    leaves = map(from_host, jax.tree.leaves(target), records, arrays)
    return jax.tree.unflatten(jax.tree.structure(target), leaves), metadata


def read_arrays(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays last saved at `path` by name (NumPy; keys as `key_data`), and the metadata. Raises as `restore`."""
    records, arrays, metadata = _from_newest(Path(path).absolute(), _contents)
    return {record.name: array for record, array in zip(records, arrays, strict=True)}, metadata


def read_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """The metadata last saved at `path`, without reading arrays. Warns and raises as `restore` does."""
    return _from_newest(Path(path).absolute(), lambda version: _manifest(version)["metadata"])


def _versions(folder: Path) -> list[Path]:
    """Complete versions, oldest first."""
    return sorted((p for p in folder.iterdir() if p.name.isdecimal()), key=lambda p: int(p.name))


class _Damaged(ValueError):
    def __init__(self, version: Path, what: str):
        self.what = f"checkpoint {version} is damaged: {what}"
        super().__init__(f"{self.what}; put back a copy or delete it to start again")


def _from_newest(folder: Path, read: Callable[[Path], Any]) -> Any:
    """read(version) of the newest whole version; again from the start if a save elsewhere removed it meanwhile."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"expected a checkpoint folder, but {folder} is a file")
    while versions := _versions(folder) if folder.exists() else []:
        damage: list[_Damaged] = []
        for version in reversed(versions):
            try:
                with locked(version, shared=True):  # no version is removed under a reader
                    found = read(version)
            except (ValueError, OSError) as error:
                if not version.exists():
                    break
                if not isinstance(error, _Damaged):
                    raise
                damage.append(error)
                continue
            if damage:
                warnings.warn(f"{damage[0].what}; taking the older version {version.name}", stacklevel=3)
            return found
        else:
            raise damage[0]
    what = "holds no complete checkpoint" if folder.exists() else "does not exist"
    raise FileNotFoundError(f"checkpoint {folder} {what}; check the path, or save one first")


def _prepared(tree: Any, metadata: dict[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays to write and what the manifest says of them, once both can be stored."""
    stored = [to_host(name, leaf) for name, leaf in named_leaves(tree)]
    if not isinstance(metadata, dict):
        raise ValueError(f"checkpoint metadata must be a dict, got {type(metadata).__name__}")
    try:
        json.dumps(metadata)
    except (TypeError, ValueError) as error:
        raise ValueError(f"checkpoint metadata must be JSON (dict, list, str, numbers): {error}") from None
    arrays = {str(i): array for i, (_, array) in enumerate(stored) if array.size}
    return arrays, {"metadata": metadata, "leaves": [record for record, _ in stored]}


def _write(folder: Path, arrays: dict[str, np.ndarray], content: dict[str, Any], keep: int) -> None:
    if jax.process_index():
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clean(folder)
        older = _versions(folder)
        version = folder / f"{int(older[-1].name) + 1 if older else 1:012d}"
        unfinished = folder / f"{_UNFINISHED}{version.name}"
        unfinished.mkdir()
        if arrays:
            with _orbax() as (_, checkpointer):
                checkpointer.save(unfinished / _ARRAYS, arrays)
        files = sorted(p for p in unfinished.rglob("*") if p.is_file())
        digests = {p.relative_to(unfinished).as_posix(): _digest(p) for p in files}
        content = {"format_version": _FORMAT_VERSION, **content, "files": digests}
        text = json.dumps({"content": content, "sha256": _digest(content)}, indent=1)
        (unfinished / _MANIFEST).write_text(text, encoding="utf-8")
        for p in (unfinished, *unfinished.rglob("*")):
            _flush(p)
        unfinished.rename(version)
        _flush(folder)
        for old in older[: max(0, len(older) + 1 - keep)]:
            with locked(old) as unread:
                if unread:  # else the next save removes it
                    old.rename(folder / f"{_UNFINISHED}{old.name}")
    except OSError as error:
        what = f"cannot write the checkpoint {folder}: {error.strerror or str(error).splitlines()[0]}; choose another"
        raise type(error)(f"{what} folder or free some space (a checkpoint that was there is untouched)") from error
    finally:
        _clean(folder)


def _clean(folder: Path) -> None:
    for leftover in folder.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _flush(path: Path) -> None:
    windows = os.name == "nt"  # where a folder cannot be opened, nor a file flushed that is open for reading
    if windows and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(content: Path | dict[str, Any]) -> str:
    file = content.open("rb") if isinstance(content, Path) else io.BytesIO(json.dumps(content).encode())
    with file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _manifest(version: Path) -> dict[str, Any]:
    try:
        outer = json.loads((version / _MANIFEST).read_text(encoding="utf-8"))
        content, intact = outer["content"], outer["sha256"] == _digest(outer["content"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        intact, content = False, {}
    if not intact:
        raise _Damaged(version, f"{_MANIFEST} is missing, truncated or altered")
    if content["format_version"] != _FORMAT_VERSION:
        found = f"has format {content['format_version']}, this version reads {_FORMAT_VERSION}"
        raise ValueError(f"checkpoint {version} {found}: use the scoresde that wrote it")
    return content


def _contents(version: Path) -> tuple[list[Record], list[np.ndarray], dict[str, Any]]:
    """The leaves' records, their arrays and the metadata, once every file is found whole."""
    content = _manifest(version)
    for name, digest in content["files"].items():
        if not (version / name).is_file() or _digest(version / name) != digest:
            raise _Damaged(version, f"{name} is missing, truncated or altered")
    records = [Record(*record) for record in content["leaves"]]
    arrays = {str(i): np.zeros(r.stored_shape, r.stored_dtype) for i, r in enumerate(records) if 0 in r.stored_shape}
    names = [str(i) for i in range(len(records)) if str(i) not in arrays]
    if names:
        with _orbax() as (ocp, checkpointer):
            as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
            arrays |= checkpointer.restore(version / _ARRAYS, restore_args=as_numpy)
    return records, [arrays[str(i)] for i in range(len(records))], content["metadata"]


@contextlib.contextmanager
def _orbax() -> Iterator[tuple[Any, Any]]:
    """Orbax and a checkpointer of this process alone; its failures are one OSError, not the traces of its threads."""
    import orbax.checkpoint as ocp  # here, since it takes half as long as importing JAX

    logger, me = logging.getLogger("absl"), jax.process_index()
    before, logger.disabled = logger.disabled, True
    alone = ocp.options.MultiprocessingOptions(me, {me}, f"alone-{me}")
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    try:
        with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
            yield ocp, checkpointer
    except Exception as error:
        raise OSError(f"Orbax failed: {str(error).splitlines()[0]}") from error
    finally:
        logger.disabled = before
