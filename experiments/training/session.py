"""A training from its flags to its last parameters and its record: what run, classifier and sweep share."""

import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from rich.console import Console

from experiments.cli import machine
from experiments.cli.errors import InputError
from experiments.cli.writing import write_json
from experiments.data.dataset import Data
from experiments.data.load import load
from experiments.models.build import Model, build
from experiments.models.flags import Config
from experiments.training.fit import Plan, check_folder, fit, start, stored
from experiments.training.previews import watch
from experiments.training.processes import join, main_process
from scoresde.checkpoint.leaves import to_numpy


def plan(config: Config, data: Data, model: Model) -> list[str]:
    """What the run is about to do, a line each."""
    network, sigma_data, optimiser = config.architecture.network, model.precond.sigma_data, config.optimiser
    device = jax.devices()[0].device_kind
    return [
        f"data     {data.describe()}",
        f"sde      {model.sde}",
        f"network  {network}, {model.parameters:,} parameters, sigma_data {sigma_data:.4g}",
        f"train    {optimiser.steps} steps of {optimiser.batch} on {device}, seed {config.seed}",
        f"folder   {config.folder}",
    ]


def about(config: Config, data: Data, model: Model) -> dict[str, Any]:
    """What the report says of the model and its data."""
    return {
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
        "network": {"name": config.architecture.network, "parameters": model.parameters},
    }


class Trained(NamedTuple):
    """What ``train`` gives."""

    config: Config
    """With every preset filled in."""
    data: Data
    model: Model
    params: Any
    """The moving average."""
    training: dict[str, Any]
    """How the training went, for the report."""
    manifest: dict[str, Any]
    """What environment.json holds so far."""


def train(
    config: Config, console: Console, program: str, *, build: Callable[[Config, Data], Model] = build
) -> Trained | None:
    """Train what the flags of ``program`` describe into its folder; None after a dry run, and in other processes."""
    config.check()
    join(config.engine)
    console.quiet |= not main_process()
    folder = config.folder
    record = stored(folder).get("data")
    data = load(config.data, data_dir=config.data_dir, options=config.options, record=record)
    found = {name: value for name, value in json.loads(json.dumps(data.record())).items() if name != "note"}
    if record is not None and (other := [name for name in found if record.get(name) != found[name]]):
        raise InputError(f"{folder} was trained on data of another {', '.join(other)}; choose another --workdir")
    config = config.resolve(data)
    training = Plan.of(config)
    if not config.dry_run:
        check_folder(training, resume=config.resume)
    model = build(config, data)
    for line in plan(config, data, model):
        console.print(line, highlight=False)
    if config.dry_run:
        return None
    manifest = {"seed": config.seed} | machine.environment(program)
    state = start(training, model)
    if main_process():
        write_json(folder / "config.json", config.flat())
        write_json(folder / "environment.json", manifest)
    state, done = fit(training, data, model, state, console, *watch(training, data, model, int(state.step)))
    params = to_numpy(state.ema)
    return Trained(config, data, model, params, done, manifest) if main_process() else None


def close(trained: Trained, result: dict[str, Any], started: float) -> None:
    """Write report.json, and what the whole job took into environment.json."""
    folder, manifest = trained.config.folder, trained.manifest
    write_json(folder / "report.json", result)
    manifest["seconds"] = round(time.monotonic() - started, 1)
    manifest["peak_memory_mib"] = machine.peak_memory()
    write_json(folder / "environment.json", manifest)
