"""The main job: train a score network, sample it three ways, evaluate its likelihood, and write a report.

    python -m experiments.run --sde vp

Everything goes to runs/DATA-SDE/: config.json, environment.json, metrics.jsonl, checkpoint/, arrays.npz, report.json,
report.md and figures/. The same command continues an interrupted run and ends with the same bits.
"""

import time
from typing import Any

from rich.console import Console

from experiments.cli import commands
from experiments.cli.keys import stream
from experiments.cli.writing import write_arrays
from experiments.data.dataset import Data
from experiments.figures import report
from experiments.measures import classes, likelihoods, samples
from experiments.measures.jobs import Arrays, Parts, Work
from experiments.models.build import Model
from experiments.models.flags import Config
from experiments.training.session import about, close, train


def evaluate(config: Config, data: Data, model: Model, params: Any, work: Work) -> tuple[Arrays, dict[str, Any]]:
    """Sample three ways and measure the likelihood of the held-out examples; returns what is drawn and the figures."""
    how, seed, score = config.evaluation, config.seed, model.score(params)
    names = ("samples", "trajectories", "likelihood", "classifier", "class sheets")
    key_samples, key_trajectories, key_likelihood, key_classifier, key_sheets = (stream(seed, name) for name in names)
    of = samples.drawn_classes(config.objective, seed, data, how.samples)
    arrays, drawn, real = samples.sample_all(key_samples, seed, data, model, score, how.samples, work, of)
    if of is not None and data.labels is not None:
        arrays["labels_of_samples"] = data.labels.values(of)
    arrays |= {"real": data.held_out} | samples.trajectories(key_trajectories, data, model, score)
    settings = likelihoods.Settings(how.likelihood_probes, how.likelihood_repeats)
    x, known = data.held_out[: how.likelihood_examples], classes.known(config.objective, data, how.likelihood_examples)
    log_prob, likelihood = likelihoods.likelihood(key_likelihood, data, model, score, x, settings, work, classes=known)
    figures = {"likelihood": likelihood, "real": real, "samples": drawn}
    if known is not None:
        told = classes.evaluate(key_likelihood, key_classifier, data, model, score, x, known, settings, work)
        figures["classes"] = told | {"weights": [f"{w:g}" for w in classes.WEIGHTS]}
        figures["classes"]["names"] = list(data.labels.words) if data.labels else []
        arrays |= classes.sheets(key_sheets, data, model, score, work)
    return arrays | log_prob, figures


def run(config: Config, console: Console) -> dict[str, Any]:
    """Do the whole job; returns the report."""
    started, trained = time.monotonic(), train(config, console, "run")
    if trained is None:
        return {}
    config, data, model, params, training, manifest = trained
    folder = config.folder
    parts = Parts(folder / "parts", config.flat() | {"workdir": None, "keys": "by name"}, replace=True)
    arrays, figures = evaluate(config, data, model, params, Work(config.evaluation.evaluation_batch, parts, console))
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
    commands.main(Config, "run", run, cached=lambda config: config.engine.compile_cache)


if __name__ == "__main__":
    main()
