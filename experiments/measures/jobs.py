"""Work over many examples: a batch at a time, on all devices, and each batch kept on disk as soon as it is done.

A job is a function (first, size) -> arrays (size, ...) of which row i depends on (its settings, first + i) alone. Its
folder of parts holds

    plan.json              the settings: a job with others is refused
    NAME-000000.npz        the arrays of NAME for the batch that starts with this example, and so on

each written atomically. A job that was killed at any moment does only the batches that it lacks when it is started
again, and ends with the same bits.
"""

import dataclasses
import json
import math
import shutil
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import Partial
from rich.console import Console

from experiments.cli.errors import AGAIN, InputError, Interrupted
from experiments.cli.progress import progress
from experiments.cli.writing import write_arrays, write_json
from experiments.data.arrays import Examples

Arrays = dict[str, np.ndarray]
Job = Callable[[int, int], Arrays]


def _sharding(*axes: str) -> NamedSharding:
    return NamedSharding(Mesh(np.array(jax.local_devices()), ("data",)), PartitionSpec(*axes))


def spread(x: Any) -> jax.Array:
    """An array (B, ...) with its examples spread over all devices of this process, of which B must be a multiple."""
    return jax.device_put(x, _sharding("data"))


def spread_score(score: Partial) -> Partial:
    """The score with its arrays on every device and its evaluations, of multiples of them, spread over the devices."""
    return Partial(partial(_spread_evaluation, _sharding("data")), replicated(score))


def replicated(tree: Any) -> Any:
    """The tree with its arrays on every device."""
    return jax.device_put(tree, _sharding())


def _spread_evaluation(sharding: NamedSharding, score: Partial, x: jax.Array, t: jax.Array, *cond: Any) -> jax.Array:
    return score(jax.lax.with_sharding_constraint(x, sharding), t, *cond)


class Parts:
    """The folder of parts of a job; making it makes the folder.

    Parts of another plan are removed with ``replace``, else refused with an InputError.
    """

    def __init__(self, folder: Path, plan: dict[str, Any], *, replace: bool = False):
        self.folder, plan, path = folder, json.loads(json.dumps(plan, default=str)), folder / "plan.json"
        try:
            if replace and path.exists() and json.loads(path.read_text()) != plan:
                self.remove()
            folder.mkdir(parents=True, exist_ok=True)
            if path.exists():
                _same(json.loads(path.read_text()), plan, f"{folder} holds an unfinished job")
            else:
                write_json(path, plan)
        except OSError as error:
            raise InputError(f"cannot write to {folder}: {error.strerror}; choose another place") from None

    def load(self, name: str, first: int) -> Arrays | None:
        """The part that starts with this example, or None: absent, or damaged by something else than a kill."""
        try:
            with (self.folder / f"{name}-{first:06d}.npz").open("rb") as file, np.load(file) as stored:
                return {name: stored[name] for name in stored.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            return None

    def save(self, name: str, first: int, arrays: Arrays) -> None:
        write_arrays(self.folder / f"{name}-{first:06d}.npz", arrays)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _same(found: dict[str, Any], plan: dict[str, Any], what: str) -> None:
    for name in found | plan:
        if found.get(name) != plan.get(name):
            raise InputError(
                f"{what} with {name} {found.get(name)}, not {plan.get(name)}: "
                "use the same flags to continue it, choose another place, or delete it"
            )


def parts_of(out: Path) -> Path:
    """The folder of parts of a job that ends in the file or folder ``out``."""
    return out.with_name(f".{out.name}.parts")


def finished(out: Path, manifest: Path, plan: dict[str, Any]) -> bool:
    """Whether ``out`` is there, made by this plan; raises InputError if it is there and made by anything else."""
    if not manifest.exists():
        if parts_of(out).exists() or not out.exists() or (out.is_dir() and not any(out.iterdir())):
            return False
        raise InputError(f"{out} exists and has no {manifest.name}, so it is of something else; choose another --out")
    try:
        found = json.loads(manifest.read_text())["plan"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{manifest} is not of this program; choose another --out") from None
    _same(found, json.loads(json.dumps(plan, default=str)), f"{out} was made")
    return out.exists()


@dataclasses.dataclass(frozen=True)
class Work:
    """How jobs are done: at most so many examples at once, where their parts are kept, and who sees the progress."""

    batch: int
    parts: Parts | None = None
    console: Console | None = None

    def run(self, name: str, job: Job, count: int) -> Arrays:
        """The arrays of ``count`` examples, (count, ...), in batches as equal as can be.

        Every call of the job asks for the same size, the last ones for more than is needed, so that it compiles once;
        the size is a multiple of the number of devices.

        Raises:
            Interrupted: by SIGINT; with parts nothing but the batch in hand is lost.
        """
        batch = math.ceil(count / math.ceil(count / self.batch))
        size = math.ceil(batch / jax.local_device_count()) * jax.local_device_count()
        done = []
        with progress(self.console, name, count) as show:
            for first in range(0, count, batch):
                show(first)
                wanted = min(batch, count - first)
                stored = self.parts.load(name, first) if self.parts else None
                try:
                    arrays = stored or {k: np.asarray(v)[:wanted] for k, v in job(first, size).items()}
                    if self.parts and stored is None:
                        self.parts.save(name, first, arrays)
                except KeyboardInterrupt:
                    raise Interrupted(f"stopped: {name} {first} of {count}; {AGAIN}") from None
                done.append(arrays)
            show(count)
        return {name: np.concatenate([part[name] for part in done]) for name in done[0]}


def rows(x: Examples, first: int, size: int) -> np.ndarray:
    """The rows first, ..., first + size - 1; past the end the last row again."""
    return x[np.minimum(np.arange(first, first + size), len(x) - 1)]
