"""The workers of a sweep as processes of this machine, each with its devices or cores, or as jobs of submitit."""

import contextlib
import importlib
import itertools
import math
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from experiments.cli.errors import InputError
from experiments.sweeps.cells import Cell
from experiments.sweeps.workers import Place, worker

DEVICES = "import jax; print(jax.default_backend(), jax.local_device_count())"
VISIBLE = {"gpu": "CUDA_VISIBLE_DEVICES", "cuda": "CUDA_VISIBLE_DEVICES", "rocm": "HIP_VISIBLE_DEVICES"}
Ended = Callable[[], bool]


@contextlib.contextmanager
def launched(flags: Any, cells: list[Cell], root: Path) -> Iterator[Ended]:
    """Start them; a function that tells whether all have ended. They are stopped at the end of the context."""
    if all(cell.path(root).exists() for cell in cells):
        yield lambda: True
        return
    places = plan_places(flags, len({cell.trained for cell in cells}))
    if flags.cluster != "none":
        with submitted(flags, cells, root, places) as ended:
            yield ended
        return
    spawn = multiprocessing.get_context("spawn")
    started = [
        spawn.Process(target=worker, args=(cells, root, place, flags.compile_cache), daemon=True) for place in places
    ]
    for process in started:
        process.start()
    try:
        yield lambda: not any(process.is_alive() for process in started)
    except BaseException:
        for process in started:
            process.terminate()  # one in the midst of a training saves it first
        raise
    finally:
        for process in started:
            process.join()


def plan_places(flags: Any, trainings: int) -> list[Place]:
    """A place for each worker: its devices, or its share of the processor's cores."""
    if flags.cluster != "none":
        count = min(flags.jobs or trainings, trainings)
        return [Place(number, count) for number in range(count)]
    found = subprocess.run([sys.executable, "-c", DEVICES], capture_output=True, text=True).stdout.split()
    platform, devices = (found[-2], int(found[-1])) if len(found) > 1 else ("cpu", 1)
    variable = VISIBLE.get(platform)
    count = min(flags.jobs or (devices if variable else 1), trainings)
    if variable:
        names = os.environ.get(variable, "").split(",") if os.environ.get(variable) else list(map(str, range(devices)))
        return [Place(number, count, {variable: names[number % len(names)]}) for number in range(count)]
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    share = math.ceil(len(cores) / count) if count > 1 else 0
    turns = itertools.cycle([tuple(cores[i : i + share]) for i in range(0, len(cores), share)] if share else [()])
    return [Place(number, count, cores=own) for number, own in zip(range(count), turns, strict=False)]


@contextlib.contextmanager
def submitted(flags: Any, cells: list[Cell], root: Path, places: list[Place]) -> Iterator[Ended]:
    """The workers as jobs of submitit, cancelled at the end of the context."""
    try:
        submitit = importlib.import_module("submitit")
    except ModuleNotFoundError:
        raise InputError(f"--cluster {flags.cluster} needs submitit: pip install submitit") from None
    options = {name: int(v) if v.isdigit() else v for name, _, v in (o.partition("=") for o in flags.cluster_options)}
    executor = submitit.AutoExecutor(folder=flags.out / "jobs", cluster=flags.cluster)
    try:
        executor.update_parameters(name="sweep", **options)
        with executor.batch():
            jobs = [executor.submit(worker, cells, root.resolve(), place, flags.compile_cache) for place in places]
    except (TypeError, NameError, RuntimeError, ValueError, OSError) as error:
        raise InputError(f"submitit: {' '.join(str(error).split())}") from None
    try:
        yield lambda: all(job.done() for job in jobs)
    finally:
        for job in jobs:
            if not job.done():
                job.cancel()
