"""Jobs over many examples: done once, a batch at a time, and each batch kept on disk as soon as it is done.

A job is known by its plan: its settings, and its inputs by their content (``inputs``). ``carry_out`` leaves what was
made and beside or in it a manifest with the plan; the same job again has nothing to do, and another one is refused.
The work proper is in functions (first, size) -> arrays (size, ...) of which row i depends on (the plan, first + i)
alone. Until it is complete a folder of parts holds

    plan.json              the plan: a job with another one is refused
    NAME-000000.npz        the arrays of NAME for the batch that starts with this example, and so on

each written atomically. A job that was killed at any moment does only the rows that it lacks when it is started again,
in batches of any size.
"""

import dataclasses
import json
import math
import shutil
import time
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

from experiments.cli import machine
from experiments.cli.errors import AGAIN, InputError, Interrupted
from experiments.cli.progress import progress
from experiments.cli.writing import write_arrays, write_json
from experiments.data.arrays import Examples
from experiments.measures.inputs import Input

OTHERWISE = "choose another --out, or delete it"
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
                began = f"the unfinished job in {folder} began"
                _same(json.loads(path.read_text()), plan, f"{folder} holds an unfinished job", began)
            else:
                write_json(path, plan)
        except OSError as error:
            raise InputError(f"cannot write to {folder}: {error.strerror}; choose another place") from None

    def load(self, name: str, first: int) -> Arrays | None:
        """The part that starts with this example, or None: absent, or damaged by something else than a kill."""
        try:
            with (self.folder / f"{name}-{first:06d}.npz").open("rb") as file, np.load(file) as stored:
                return {name: stored[name] for name in stored.files} or None
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            return None

    def save(self, name: str, first: int, arrays: Arrays) -> None:
        write_arrays(self.folder / f"{name}-{first:06d}.npz", arrays)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _same(found: dict[str, Any], plan: dict[str, Any], what: str, since: str) -> None:
    """Raise InputError for the first setting, or else the first input, in which a plan that was found is another."""
    old, new = found.get("inputs"), plan.get("inputs")
    if new is not None and not (isinstance(old, dict) and all(isinstance(v, dict) for v in old.values())):
        raise InputError(f"{what} by a version that did not record the content of its inputs; {OTHERWISE}")
    for name in found | plan:
        if name != "inputs" and found.get(name) != plan.get(name):
            raise InputError(
                f"{what} with {name} {found.get(name)}, not {plan.get(name)}: "
                "use the same flags to continue it, choose another place, or delete it"
            )
    for role in (old or {}) | (new or {}):
        was, now = (inputs.get(role) for inputs in (old or {}, new or {}))
        if was is None or now is None:
            raise InputError(f"{what} {'with' if was else 'without'} {(was or now or {}).get('where')}; {OTHERWISE}")
        if was.get("sha256") != now["sha256"]:
            same = was.get("where") == now["where"]
            change = f"has changed since {since}" if same else f"is not what {was.get('where')} was when {since}"
            raise InputError(f"{now['where']} {change}; {OTHERWISE}")


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
        found = dict(json.loads(manifest.read_text())["plan"])
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{manifest} is not of this program; choose another --out") from None
    _same(found, json.loads(json.dumps(plan, default=str)), f"{out} was made", f"{out} was made")
    return out.exists()


def carry_out(
    program: str,
    out: Path,
    plan: dict[str, Any],
    inputs: dict[str, Input],
    make: Callable[["Work"], dict[str, Any]],
    *,
    batch: int,
    console: Console,
    manifest: Path | None = None,
) -> dict[str, Any] | None:
    """Do a job, or what is missing of it, unless it is complete; it is when its manifest is there.

    Args:
        program: the command, for the manifest.
        out: the file or folder that is made.
        plan: the settings that the result depends on, as JSON; neither the batch nor any path.
        inputs: all that is read, by their role.
        make: does the work by ``Work.run``, writes ``out`` and returns what the manifest says besides.
        batch: examples at once.
        console: who is told.
        manifest: FILE.json; by default beside ``out``.

    Returns:
        what the manifest says; None if the job was complete.

    Raises:
        InputError: ``out`` is of another job, an input has changed, ``make`` refused (its parts are not kept), or a
            file cannot be written (they are).
        Interrupted: by SIGINT.
    """
    manifest = manifest or out.with_name(out.name + ".json")
    plan = plan | {"inputs": {role: found._asdict() for role, found in inputs.items()}}
    if finished(out, manifest, plan):
        console.print(f"{out} is complete; nothing to do", highlight=False)
        return None
    started, parts = time.monotonic(), Parts(parts_of(out), plan)
    try:
        about = {"plan": plan} | make(Work(batch, parts, console))
        about |= {"seconds": round(time.monotonic() - started, 1)} | machine.environment(program)
        write_json(manifest, about)
    except InputError:
        parts.remove()
        raise
    except OSError as error:
        where, reason = error.filename or out, error.strerror or error
        raise InputError(f"cannot write {where}: {reason}; choose another --out") from None
    parts.remove()
    return about


@dataclasses.dataclass(frozen=True)
class Work:
    """How jobs are done: at most so many examples at once, where their parts are kept, and who sees the progress."""

    batch: int
    parts: Parts | None = None
    console: Console | None = None

    def run(self, name: str, job: Job, count: int) -> Arrays:
        """The arrays of ``count`` examples, (count, ...), in batches as equal as can be; the parts that are there are
        taken, whatever batch they were made in.

        Every call of the job asks for the same size, the last ones for more than is needed, so that it compiles once;
        the size is a multiple of the number of devices.

        Raises:
            Interrupted: by SIGINT; with parts nothing but the batch in hand is lost.
        """
        batch = math.ceil(count / math.ceil(count / self.batch))
        size = math.ceil(batch / jax.local_device_count()) * jax.local_device_count()
        first, done = 0, []
        with progress(self.console, name, count) as show:
            while first < count:
                show(first)
                stored = self.parts.load(name, first) if self.parts else None
                try:
                    wanted = min(batch, count - first)
                    arrays = stored or {k: np.asarray(v)[:wanted] for k, v in job(first, size).items()}
                    if self.parts and stored is None:
                        self.parts.save(name, first, arrays)
                except KeyboardInterrupt:
                    raise Interrupted(f"stopped: {name} {first} of {count}; {AGAIN}") from None
                done.append(arrays)
                first += len(next(iter(arrays.values())))
            show(count)
        return {name: np.concatenate([part[name] for part in done])[:count] for name in done[0]}


def rows(x: Examples, first: int, size: int) -> np.ndarray:
    """The rows first, ..., first + size - 1; past the end the last row again."""
    return x[np.minimum(np.arange(first, first + size), len(x) - 1)]
