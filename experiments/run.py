"""The main job: train a score network, sample it three ways, evaluate its likelihood, and write a report.

    python -m experiments.run --sde vp

Everything goes to runs/DATA-SDE/: config.json, environment.json, metrics.jsonl, checkpoint/, arrays.npz, report.json,
report.md and figures/. The same command continues an interrupted run and ends with the same bits.
"""

import dataclasses
import time
from typing import Any

import jax
from rich.console import Console

from experiments.cli import commands
from experiments.cli.writing import write_arrays
from experiments.data.dataset import Data
from experiments.figures import report
from experiments.measures import classes, likelihoods
from experiments.measures import samples as draws
from experiments.measures.jobs import Arrays, Parts, Work
from experiments.models.build import Model
from experiments.models.flags import Config
from experiments.training.session import about, close, train


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
