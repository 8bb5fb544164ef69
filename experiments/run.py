"""The main job: train a score network, sample it three ways, evaluate its likelihood, and write a report.

    python -m experiments.run --sde vp

Everything goes to runs/DATA-SDE/: config.json, environment.json, metrics.jsonl, checkpoint/, arrays.npz, report.json,
report.md and figures/. The same command continues an interrupted run and ends with the same bits.
"""

import contextlib
import dataclasses
import io
import json
import os
import platform
import re
import resource
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from rich.console import Console

from experiments import evaluate, report
from experiments.data import Data, InputError, load
from experiments.fit import Interrupted, check_folder, fail, fit, start
from experiments.logs import write_atomically
from experiments.processes import main_process, prepare, versions
from experiments.setup import Config, Model, build
from scoresde.leaves import to_numpy


def environment(config: Config) -> dict[str, Any]:
    """Versions, machine, command and seed: what a reader needs to repeat the run."""
    device = jax.devices()[0]
    return {
        "command": shlex.join(["python", "-m", "experiments.run", *sys.argv[1:]]),
        "seed": config.seed,
        "versions": versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "devices": [f"{device.platform} {device.device_kind}"] * jax.device_count(),
    }


def peak_memory() -> int:
    """Largest resident memory of this process in MiB (getrusage would count that of the process that started it)."""
    try:
        high_water = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        high_water = None
    if high_water:
        return int(high_water[1]) // 1024
    scale = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // scale


def _json(path: Path, content: Any) -> None:
    write_atomically(path, json.dumps(content, indent=2, default=str) + "\n")


def plan(config: Config, data: Data, model: Model) -> list[str]:
    """What the run is about to do, a line each."""
    return [
        f"data     {data.describe()}",
        f"sde      {model.sde}",
        f"network  {config.network}, {model.parameters:,} parameters, sigma_data {model.precond.sigma_data:.4g}",
        f"train    {config.steps} steps of {config.batch} on {jax.devices()[0].device_kind}, seed {config.seed}",
        f"folder   {config.folder}",
    ]


def run(config: Config, console: Console) -> dict[str, Any]:
    """Do the whole job; returns the report."""
    started = time.monotonic()
    config.check()
    prepare(config)
    console.quiet = not main_process()
    data = load(config.data, data_dir=config.data_dir, options=config.options)
    config = config.resolve(data)
    if not config.dry_run:
        check_folder(config)
    model = build(config, data)
    for line in plan(config, data, model):
        console.print(line, highlight=False)
    if config.dry_run:
        return {}
    state = start(config, model)
    folder, manifest = config.folder, environment(config)
    if main_process():
        _json(folder / "config.json", dataclasses.asdict(config))
        _json(folder / "environment.json", manifest)

    state, training = fit(config, data, model, state, console)
    params = to_numpy(state.ema)
    if not main_process():
        return {}
    score = model.score(params)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 1), 3)
    console.print("sampling", highlight=False)
    arrays, samples, real = evaluate.sample_all(keys[0], config, data, model, score)
    arrays |= {"real": data.held_out} | evaluate.trajectories(keys[1], data, model, score)
    console.print("evaluating the likelihood", highlight=False)
    log_prob, likelihood = evaluate.likelihood(keys[2], config, data, model, score)
    with (folder / "arrays.npz.tmp").open("wb") as file:
        np.savez_compressed(file, **arrays | log_prob)
    os.replace(folder / "arrays.npz.tmp", folder / "arrays.npz")
    result = {
        "name": config.name,
        "data": {
            "name": data.name,
            "describe": data.describe(),
            "event_shape": data.event_shape,
            "levels": data.levels,
            "train": len(data.train),
            "held_out": len(data.held_out),
        },
        "sde": repr(model.sde),
        "network": {"name": config.network, "parameters": model.parameters},
        "training": training,
        "likelihood": likelihood,
        "real": real,
        "samples": samples,
    }
    _json(folder / "report.json", result)
    manifest["seconds"] = round(time.monotonic() - started, 1)
    manifest["peak_memory_mib"] = peak_memory()
    _json(folder / "environment.json", manifest)
    report.write(folder)
    console.print(report.table(result))
    if likelihood["message"]:
        console.print(likelihood["message"], highlight=False)
    console.print(f"{manifest['seconds']:.0f} s, {manifest['peak_memory_mib']} MiB; report: {folder / 'report.md'}")
    return result


def parse(arguments: list[str]) -> Config:
    """The flags as a Config; tyro's boxed message about a malformed flag becomes one line."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(Config, prog="python -m experiments.run", description=Config.__doc__, args=arguments)
    except SystemExit as stop:
        if stop.code:
            fail(re.sub(r"[^\x20-\x7e]+", " ", complaint.getvalue()))
        raise


def main() -> None:
    """Command line; a mistake in a flag or a file is one line and exit code 2."""
    config, console = parse(sys.argv[1:]), Console(soft_wrap=True)
    try:
        run(config, console)
    except InputError as error:
        fail(str(error))
    except Interrupted as stop:
        console.print(str(stop), highlight=False)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
