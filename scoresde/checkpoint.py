"""Pytrees to disk and back, bit for bit, and never half of one.

A checkpoint is a folder that holds one complete, numbered version and, while a save runs, the next one:

    path/000000000007/checkpoint.json     metadata, every leaf's name, shape and dtype, every file's SHA-256
    path/000000000007/arrays/             the array leaves, written by Orbax
    path/tmp-000000000008/                being written; a kill leaves it behind, and the next save removes it

A save writes and flushes `tmp-N`, renames it to `N`, and only then removes older versions. That rename is
the one moment at which the checkpoint changes, so a process killed at any time leaves the old version or
the new one. `restore` takes the highest number and checks all digests first: a truncated or altered file is
an error, never wrong numbers. One process at a time may save to a path; others may read it meanwhile. Typed
PRNG keys are stored as their `key_data`. Orbax is imported at the first call, since that takes half as long
as importing JAX.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_FORMAT_VERSION = 1
_MANIFEST, _ARRAYS, _UNFINISHED = "checkpoint.json", "arrays", "tmp-"
_SCALARS = (bool, int, float, complex)


def save(path: str | os.PathLike, tree: Any, metadata: dict[str, Any]) -> None:
    """Replaces the checkpoint at `path` by `tree` and `metadata`, atomically.

    `tree` is any pytree of JAX or NumPy arrays (typed PRNG keys too) and Python numbers, `metadata` a dict
    that JSON can hold (read back, its tuples are lists and its keys strings). Makes parent folders and
    returns when all is on disk. Raises ValueError for a leaf or metadata that cannot be stored and OSError
    where the folder cannot be written; either way the checkpoint that was there before stays as it was.
    """
    folder = Path(path).absolute()
    if not isinstance(metadata, dict):
        raise ValueError(f"checkpoint metadata must be a dict, got {type(metadata).__name__}")
    stored = [_stored(name, leaf) for name, leaf in _named_leaves(tree)]
    arrays = {str(i): array for i, (_, array) in enumerate(stored) if array.size}
    try:
        json.dumps(metadata)
    except (TypeError, ValueError) as error:
        raise ValueError(f"checkpoint metadata must be JSON (dict, list, str, numbers): {error}") from None
    try:
        _write(folder, arrays, {"metadata": metadata, "leaves": [leaf for leaf, _ in stored]})
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0]
        what = f"cannot write the checkpoint {folder}: {reason}; choose another folder or free some space"
        raise type(error)(f"{what} (a checkpoint that was there is untouched)") from error


def restore(path: str | os.PathLike, target: Any) -> tuple[Any, dict[str, Any]]:
    """The tree and the metadata last saved at `path`, exactly as they were.

    `target` gives the structure: a pytree like the saved one, of arrays or `jax.ShapeDtypeStruct`s (for
    instance `jax.eval_shape(init)`), whose values are not read. Leaves come back as JAX arrays with the
    target's sharding if it has one, as NumPy arrays or Python numbers where the target has those. Raises
    FileNotFoundError where there is no checkpoint, and ValueError naming the damaged file or the first leaf
    that differs from the target.
    """
    return _from_newest(Path(path).absolute(), lambda version: _read(version, target))


def read_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """The metadata last saved at `path`, without reading arrays. Raises as `restore` does."""
    return _from_newest(Path(path).absolute(), lambda version: _manifest(version)["metadata"])


def _named_leaves(tree: Any) -> list[tuple[str, Any]]:
    return [(jax.tree_util.keystr(keys) or "(the tree)", x) for keys, x in jax.tree.leaves_with_path(tree)]


def _spec(name: str, leaf: Any) -> tuple[list[int], str]:
    """Shape and dtype of an array, a ShapeDtypeStruct or a Python number."""
    if not isinstance(leaf, (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct, *_SCALARS)):
        raise ValueError(
            f"checkpoint leaf {name} is a {type(leaf).__name__}, expected an array or a number; "
            "put text and settings into the metadata"
        )
    like = np.asarray(leaf) if isinstance(leaf, _SCALARS) else leaf
    if not (like.dtype == bool or any(jnp.issubdtype(like.dtype, k) for k in (np.number, jax.dtypes.prng_key))):
        raise ValueError(f"checkpoint leaf {name} has dtype {like.dtype}, expected numbers or PRNG keys")
    return list(like.shape), str(like.dtype)


def _stored(name: str, leaf: Any) -> tuple[list[Any], np.ndarray]:
    """What the manifest says of a leaf, and the leaf as a NumPy array (no copy on a CPU)."""
    shape, dtype = _spec(name, leaf)
    if isinstance(leaf, jax.ShapeDtypeStruct):
        raise ValueError(f"checkpoint leaf {name} is a ShapeDtypeStruct without values; save arrays")
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        raise ValueError(f"checkpoint leaf {name} is spread over several processes; gather it first")
    implementation = None
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        implementation, leaf = str(jax.random.key_impl(leaf)), jax.random.key_data(leaf)
    return [name, shape, dtype, implementation, list(np.shape(leaf))], np.asarray(leaf)


def _versions(folder: Path) -> list[Path]:
    """Complete versions, oldest first."""
    return sorted((p for p in folder.iterdir() if p.name.isdecimal()), key=lambda p: int(p.name))


def _from_newest(folder: Path, read: Callable[[Path], Any]) -> Any:
    """read(version) of the newest version; again, if a save elsewhere removed it before it was locked."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"expected a checkpoint folder, but {folder} is a file")
    while True:
        versions = _versions(folder) if folder.exists() else []
        if not versions:
            what = "holds no complete checkpoint" if folder.exists() else "does not exist"
            raise FileNotFoundError(f"checkpoint {folder} {what}; check the path, or save one first")
        try:
            with _opened(versions[-1], fcntl.LOCK_SH):
                return read(versions[-1])
        except (ValueError, OSError):
            if versions[-1].exists():
                raise


def _write(folder: Path, arrays: dict[str, np.ndarray], content: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(leftover)
    older = _versions(folder)
    version = folder / f"{int(older[-1].name) + 1 if older else 1:012d}"
    unfinished = folder / f"{_UNFINISHED}{version.name}"
    unfinished.mkdir()
    try:
        if arrays:
            with _orbax() as (_, checkpointer):
                checkpointer.save(unfinished / _ARRAYS, arrays)
        files = sorted(p for p in unfinished.rglob("*") if p.is_file())
        digests = {p.relative_to(unfinished).as_posix(): _digest(p) for p in files}
        content = {"format_version": _FORMAT_VERSION, **content, "files": digests}
        text = json.dumps({"content": content, "sha256": _text_digest(content)}, indent=1)
        (unfinished / _MANIFEST).write_text(text, encoding="utf-8")
        for p in (unfinished, *unfinished.rglob("*")):
            with _opened(p) as descriptor:
                os.fsync(descriptor)
        unfinished.rename(version)
        with _opened(folder) as descriptor:
            os.fsync(descriptor)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    for old in older:
        with contextlib.suppress(BlockingIOError), _opened(old, fcntl.LOCK_EX | fcntl.LOCK_NB):
            shutil.rmtree(old.rename(folder / f"{_UNFINISHED}{old.name}"), ignore_errors=True)


@contextlib.contextmanager
def _opened(path: Path, lock: int | None = None) -> Iterator[int]:
    """A descriptor; `lock` lets no version be removed under a reader (the next save removes it then)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if lock is not None:
            fcntl.flock(descriptor, lock)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):  # a file system without locks
            os.close(descriptor)
            raise
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _text_digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _damaged(version: Path, what: str) -> ValueError:
    return ValueError(f"checkpoint {version} is damaged: {what}; put back a copy or delete it to start again")


def _manifest(version: Path) -> dict[str, Any]:
    try:
        outer = json.loads((version / _MANIFEST).read_text(encoding="utf-8"))
        content, intact = outer["content"], outer["sha256"] == _text_digest(outer["content"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        intact, content = False, {}
    if not intact:
        raise _damaged(version, f"{_MANIFEST} is missing, truncated or altered")
    if content["format_version"] != _FORMAT_VERSION:
        found = f"checkpoint {version} has format {content['format_version']}"
        raise ValueError(f"{found}, this version reads {_FORMAT_VERSION}: use the scoresde that wrote it")
    return content


def _read(version: Path, target: Any) -> tuple[Any, dict[str, Any]]:
    """The tree and the metadata, once every file is found whole and every leaf is what the target expects."""
    content = _manifest(version)
    for name, digest in content["files"].items():
        if not (version / name).is_file() or _digest(version / name) != digest:
            raise _damaged(version, f"{name} is missing, truncated or altered")
    stored, wanted = content["leaves"], _named_leaves(target)
    for (name, leaf), (stored_name, stored_shape, stored_dtype, *_) in zip(wanted, stored, strict=False):
        shape, dtype = _spec(name, leaf)
        if (name, shape, dtype) != (stored_name, stored_shape, stored_dtype):
            raise ValueError(
                f"checkpoint {version} has the leaf {stored_name}: {stored_dtype}{stored_shape} where the "
                f"target has {name}: {dtype}{shape}; it was saved from another structure or configuration"
            )
    if len(wanted) != len(stored):
        extra = wanted[len(stored)][0] if len(wanted) > len(stored) else stored[len(wanted)][0]
        only = f"only the {'target' if len(wanted) > len(stored) else 'checkpoint'} has {extra}"
        raise ValueError(f"checkpoint {version} has {len(stored)} leaves, the target {len(wanted)}: {only}")
    arrays, names = {}, [str(i) for i, leaf in enumerate(stored) if 0 not in leaf[4]]
    if names:
        with _orbax() as (ocp, checkpointer):
            as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
            arrays = checkpointer.restore(version / _ARRAYS, restore_args=as_numpy)
    leaves = [_as_target(leaf, stored[i], arrays.get(str(i))) for i, (_, leaf) in enumerate(wanted)]
    return jax.tree.unflatten(jax.tree.structure(target), leaves), content["metadata"]


def _as_target(leaf: Any, stored: list[Any], array: np.ndarray | None) -> Any:
    """One leaf as the target has it; an uncommitted array stays free to move to another device."""
    name, _, dtype, implementation, stored_shape = stored
    array = np.zeros(stored_shape, "uint32" if implementation else dtype) if array is None else array
    free = isinstance(leaf, jax.Array) and not leaf.committed
    sharding = None if free or not isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct)) else leaf.sharding
    if implementation is not None:
        return jax.device_put(jax.random.wrap_key_data(jnp.asarray(array), impl=implementation), sharding)
    if type(leaf) in _SCALARS:
        return array.item()
    if isinstance(leaf, (np.ndarray, np.generic)):
        return array
    if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        raise ValueError(f"checkpoint leaf {name} is {dtype}: set jax_enable_x64, or give a NumPy target")
    return jax.device_put(array, sharding, may_alias=False)


@contextlib.contextmanager
def _orbax() -> Iterator[tuple[Any, Any]]:
    """Orbax and a checkpointer whose failures are one OSError, without the traces that its threads log."""
    import orbax.checkpoint as ocp

    logger = logging.getLogger("absl")
    before, logger.disabled = logger.disabled, True
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            yield ocp, checkpointer
    except Exception as error:
        raise OSError(f"Orbax failed: {str(error).splitlines()[0]}") from error
    finally:
        logger.disabled = before
