"""Likelihood and sample distances of a trained model, from any run or checkpoint, on any data of the same shape.

    python -m experiments.evaluate --checkpoint runs/digits-vp --out FILE.json

FILE.json holds the likelihood of the held-out examples with its errors, the variational bound of integer data, the
distances of samples to the held-out examples beside those of training examples, and what was evaluated, how and where;
FILE.json.npz the value of each example. A job that was stopped or killed continues when the same command is given.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any, ClassVar

from rich.console import Console

import scoresde as ss
from experiments.cli import commands
from experiments.cli.errors import InputError
from experiments.cli.keys import stream
from experiments.cli.writing import write_arrays
from experiments.data.dataset import Data
from experiments.figures import report
from experiments.measures import classes
from experiments.measures import samples as draws
from experiments.measures.inputs import of_examples, of_model
from experiments.measures.jobs import Work, carry_out
from experiments.measures.likelihoods import TOLERANCE, Settings, likelihood
from experiments.models.saved import Opened, examples, open_run


@dataclasses.dataclass(frozen=True, kw_only=True)
class LikelihoodFlags:
    """How the likelihood and its bound are measured."""

    HEADING: ClassVar[str] = "likelihood"

    probes: int | None = None
    """Hutchinson probes an example, 0 for the exact divergence; by default as in the run."""
    repeats: int | None = None
    """Draws of the dequantisation noise for integer data; by default as in the run."""
    evaluations: int | None = None
    """Take a fixed grid of so many evaluations, and measure its error, instead of adaptive steps."""
    tolerance: float = TOLERANCE
    """Of adaptive steps, relative and absolute."""
    bound_draws: int = 16
    """Of times and noise in one estimate of the variational bound of integer data; 0 for no bound."""
    bound_repeats: int = 8
    """Estimates of it."""
    flow_examples: int | None = None
    """The first of them whose likelihood the flow gives, the dear part; by default all. The bound is had of all."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplesFlags:
    """Samples beside the held-out examples."""

    HEADING: ClassVar[str] = "samples"

    samples: int | None = None
    """Samples whose distances are measured, 0 for none; by default as in the run."""
    sample_evaluations: int = 100
    """Network evaluations of each of them, by ss.best_solver."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkFlags:
    """How it is done."""

    HEADING: ClassVar[str] = "work"

    seed: int = 0
    """Seed of the noise, the probes and the samples."""
    batch: int = 256
    """Examples evaluated at once, over all devices."""
    raw: bool = False
    """Take the last parameters instead of their moving average."""


@dataclasses.dataclass(frozen=True)
class Flags(LikelihoodFlags, SamplesFlags, WorkFlags):
    """Evaluate a trained model: likelihood with its error, variational bound, distances of samples."""

    checkpoint: Path
    """Folder of a run, or its checkpoint."""
    out: Path
    """FILE.json to write."""
    data: str | None = None
    """Other data of the same shape and kind, as for experiments.run; by default those of the run."""
    data_dir: Path | None = None
    """Where the files of mnist, fashion-mnist and cifar10 are; by default where the run had them."""
    examples: int | None = None
    """Held-out examples to evaluate, the first ones; by default all."""

    def check(self) -> None:
        """Raise InputError for the first flag that cannot be."""
        at_least = {"examples": 2, "probes": 0, "repeats": 1, "evaluations": 4, "sample_evaluations": 1}
        at_least |= {"bound_draws": 0, "bound_repeats": 2, "flow_examples": 2}
        for name, low in (at_least | {"seed": 0, "batch": 1, "samples": 0}).items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise InputError(f"--{name.replace('_', '-')} must be at least {low}, got {value}")
        if self.samples == 1:
            raise InputError("--samples must be 0 or at least 2, got 1")
        if not (0 < self.tolerance < math.inf):
            raise InputError(f"--tolerance must be positive, got {self.tolerance}")
        if self.evaluations is not None and self.tolerance != TOLERANCE:
            raise InputError("--tolerance is of adaptive steps, --evaluations of a fixed grid: give one of them")
        if self.out.suffix != ".json":
            raise InputError(f"--out {self.out} must end in .json")

    def settings(self, opened: Opened) -> Settings:
        """How the likelihood is measured."""
        config = opened.config.evaluation
        probes = config.likelihood_probes if self.probes is None else self.probes
        repeats = self.repeats or config.likelihood_repeats
        bound = self.bound_draws, self.bound_repeats, self.flow_examples
        return Settings(probes, repeats, self.evaluations, self.tolerance, *bound)


def _evaluated(flags: Flags, opened: Opened) -> Data:
    """The data to evaluate, with their examples; InputError if they are not of the model's shape and kind."""
    trained = opened.data
    data = examples(opened, spec=flags.data, data_dir=flags.data_dir)
    same_kind = (data.levels is None) == (trained.levels is None) and (data.levels or 0) <= (trained.levels or 0)
    if data.event_shape != trained.event_shape or not same_kind:
        kinds = ["measurements" if of.levels is None else f"{of.levels} levels" for of in (data, trained)]
        raise InputError(
            f"--data {data.name} has examples of shape {data.event_shape}, {kinds[0]}; "
            f"the model was trained on {trained.event_shape}, {kinds[1]}"
        )
    return data


def program(flags: Flags, console: Console) -> None:
    """Evaluate, write, and print the result."""
    flags.check()
    opened = open_run(flags.checkpoint)
    data, model, (params, which) = _evaluated(flags, opened), opened.model, opened.parameters(raw=flags.raw)
    held_out, settings = data.held_out[: flags.examples], flags.settings(opened)
    count = opened.config.evaluation.samples if flags.samples is None else flags.samples
    known = classes.known(opened.config.objective, data, flags.examples)
    plan = {"parameters": "raw" if flags.raw else "average", "examples": len(held_out), "seed": flags.seed}
    plan |= dataclasses.asdict(settings) | {"samples": count, "sample_evaluations": flags.sample_evaluations}
    train = draws.some_of_training(flags.seed, data, count) if count else None
    read = of_examples(data.name, held_out, known, train, None if known is None else data.train_labels)

    def make(work: Work) -> dict[str, Any]:
        step, score = int(opened.state.step), model.score(params)
        console.print(f"{flags.checkpoint}, step {step}, {which}; {data.describe()}", highlight=False)
        own = {"mixture": data.mixture, "train": data.train, "train_labels": data.train_labels}
        scaled = dataclasses.replace(opened.data, **own)
        names = ("likelihood", "classifier", "samples")
        key, key_classifier, key_samples = (stream(flags.seed, name) for name in names)
        values, figures = likelihood(key, scaled, model, score, held_out, settings, work, classes=known)
        about = {"checkpoint": str(flags.checkpoint), "step": step, "data": data.name, "likelihood": figures}
        if known is not None:
            keys = key, key_classifier
            about["classes"] = classes.evaluate(*keys, scaled, model, score, held_out, known, settings, work)
        if count:
            table = ss.best_solver(model.sde, flags.sample_evaluations, sigma_data=model.precond.sigma_data)
            about |= draws.compared(key_samples, flags.seed, scaled, score, table, count, held_out, work)
        write_arrays(flags.out.with_name(flags.out.name + ".npz"), values)
        return about

    inputs = {"checkpoint": of_model(flags.checkpoint, opened, params), "data": read}
    done = carry_out("evaluate", flags.out, plan, inputs, make, batch=flags.batch, console=console, manifest=flags.out)
    if done:
        _show(done, console)
        console.print(f"{done['seconds']} s; {flags.out}, {flags.out}.npz", highlight=False)


def _show(result: dict[str, Any], console: Console) -> None:
    """The result in a few lines."""
    figures = result["likelihood"]
    console.print(report.lines(figures))
    if figures["grid_error"] is not None:
        console.print(f"error of the grid at most about {figures['grid_error']:.2g} {figures['unit']} an example")
    if figures["message"]:
        console.print(figures["message"], highlight=False)
    if samples := result.get("samples"):
        console.print(
            f"{samples['examples'][0]} samples, {samples['num_evals']} evaluations: sliced Wasserstein "
            f"{samples['sliced_wasserstein']:.4g}, {samples['ratio']:.2f} of real; MMD {samples['mmd']:.5f}",
            highlight=False,
        )


def main() -> None:
    """Command line; see ``commands.main``."""
    commands.main(Flags, "evaluate", program)


if __name__ == "__main__":
    main()
