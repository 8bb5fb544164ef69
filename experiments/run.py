"""The main job: train a score network, sample it three ways, evaluate its likelihood, and write a report.

    python -m experiments.run --sde vp

Everything goes to runs/DATA-SDE/: config.json, environment.json, metrics.jsonl, checkpoint/, arrays.npz, report.json,
report.md and figures/. The same command continues an interrupted run and ends with the same bits.
"""

import dataclasses
import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from rich.console import Console

from experiments import classes, commands, draws, likelihoods, machine, report
from experiments.batches import Arrays, Parts, Work
from experiments.data import Data, InputError, load
from experiments.fit import check_folder, fit, start, stored
from experiments.flags import Config
from experiments.processes import join, main_process
from experiments.setup import Model, build
from experiments.watching import watch
from experiments.writing import write_arrays, write_json
from scoresde.leaves import to_numpy


def plan(config: Config, data: Data, model: Model) -> list[str]:
    """What the run is about to do, a line each."""
    return [
        f"data     {data.describe()}",
        f"sde      {model.sde}",
        f"network  {config.network}, {model.parameters:,} parameters, sigma_data {model.precond.sigma_data:.4g}",
        f"train    {config.steps} steps of {config.batch} on {jax.devices()[0].device_kind}, seed {config.seed}",
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
        "network": {"name": config.network, "parameters": model.parameters},
    }


def evaluate(config: Config, data: Data, model: Model, params: Any, work: Work) -> tuple[Arrays, dict[str, Any]]:
    """Sample three ways and measure the likelihood of the held-out examples; returns what is drawn and the figures."""
    score = model.score(params)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 1), 3)
    arrays, samples, real = draws.sample_all(keys[0], config, data, model, score, work)
    arrays |= {"real": data.held_out} | draws.trajectories(keys[1], data, model, score)
    settings = likelihoods.Settings(config.likelihood_probes, config.likelihood_repeats)
    evaluated, known = data.held_out[: config.likelihood_examples], classes.known(config, data)
    log_prob, likelihood = likelihoods.likelihood(keys[2], data, model, score, evaluated, settings, work, classes=known)
    figures = {"likelihood": likelihood, "real": real, "samples": samples}
    if known is not None:
        figures["classes"] = classes.evaluate(keys[2], data, model, score, evaluated, known, settings, work)
        figures["classes"]["weights"] = [f"{w:g}" for w in classes.WEIGHTS]
        arrays |= classes.sheets(jax.random.fold_in(keys[0], 2), data, model, score, work)
    return arrays | log_prob, figures


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
    join(config)
    console.quiet |= not main_process()
    record = stored(config).get("data")
    data = load(config.data, data_dir=config.data_dir, options=config.options, record=record)
    found = json.loads(json.dumps(data.record()))
    if record is not None and (other := [name for name in found if record.get(name) != found[name]]):
        raise InputError(f"{config.folder} was trained on data of another {', '.join(other)}; choose another --workdir")
    config = config.resolve(data)
    if not config.dry_run:
        check_folder(config)
    model = build(config, data)
    for line in plan(config, data, model):
        console.print(line, highlight=False)
    if config.dry_run:
        return None
    state = start(config, model)
    folder, manifest = config.folder, {"seed": config.seed} | machine.environment(program)
    if main_process():
        write_json(folder / "config.json", dataclasses.asdict(config))
        write_json(folder / "environment.json", manifest)
    state, training = fit(config, data, model, state, console, *watch(config, data, model, int(state.step)))
    params = to_numpy(state.ema)
    return Trained(config, data, model, params, training, manifest) if main_process() else None


def close(trained: Trained, result: dict[str, Any], started: float) -> None:
    """Write report.json, and what the whole job took into environment.json."""
    folder, manifest = trained.config.folder, trained.manifest
    write_json(folder / "report.json", result)
    manifest["seconds"] = round(time.monotonic() - started, 1)
    manifest["peak_memory_mib"] = machine.peak_memory()
    write_json(folder / "environment.json", manifest)


def run(config: Config, console: Console) -> dict[str, Any]:
    """Do the whole job; returns the report."""
    started, trained = time.monotonic(), train(config, console, "run")
    if trained is None:
        return {}
    config, data, model, params, training, manifest = trained
    folder = config.folder
    parts = Parts(folder / "parts", dataclasses.asdict(config) | {"workdir": None}, replace=True)
    arrays, figures = evaluate(config, data, model, params, Work(config.evaluation_batch, parts, console))
    write_arrays(folder / "arrays.npz", arrays, compressed=True)
    result = about(config, data, model) | {"training": training} | figures
    close(trained, result, started)
    report.write(folder)
    parts.remove()
    console.print(report.table(result))
    if message := result["likelihood"]["message"]:
        console.print(message, highlight=False)
    console.print(f"{manifest['seconds']:.0f} s, {manifest['peak_memory_mib']} MiB; report: {folder / 'report.md'}")
    return result


def main() -> None:
    """Command line; see ``commands.main``."""
    commands.main(Config, "run", run, cached=lambda config: config.compile_cache)


if __name__ == "__main__":
    main()
