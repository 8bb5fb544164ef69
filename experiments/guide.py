"""Samples of every class for several weights of guidance from the same noise, before and after, and what each costs.

    python -m experiments.guide --checkpoint runs/digits-vp --weights 0,1,2,4 --each 30 --out FOLDER

FOLDER holds samples.png (a block of rows a weight, a column a class), curves.png (accuracy by a held-out classifier,
distance and spread against the weight, see ``judge``), samples.npz (``w_WEIGHT`` (classes, each, *event), raw units,
and ``classes``) and guide.json with the figures and how they were made. Like sampling it runs on all devices and
continues where it was stopped. The words of --method are in ``guiding``.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

import scoresde as ss
from experiments.cli import commands
from experiments.cli.errors import InputError
from experiments.cli.keys import stream
from experiments.cli.writing import write_arrays
from experiments.data.dataset import Data
from experiments.data.labels import class_of
from experiments.figures.panels import save
from experiments.guidance import figures as guide_figures
from experiments.guidance.judge import Judge
from experiments.guidance.methods import METHODS, MethodWord, Sources
from experiments.measures.inputs import Input, of_examples, of_model
from experiments.measures.jobs import Arrays, Work, carry_out
from experiments.measures.samples import draw
from experiments.models.saved import Opened, examples, open_run
from experiments.models.solvers import DrawingFlags

RAW = "raw"  # of --weaker


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(DrawingFlags):
    """Guide the samples of a trained model by several weights, and measure what it gains and costs."""

    out: Path
    """Folder to write."""
    label: str | None = None
    """The one class to draw, by its name; by default all."""
    method: MethodWord = "classifier-free"
    """How the samples are guided."""
    weights: str = "0,1,2,4"
    """Weights: 0 is without the class, 1 as the model or Bayes' rule has it; of cfg++ strengths in [0, 1]."""
    each: int = 30
    """Samples of each class for each weight."""
    negative: str | None = None
    """The name of a class to turn away from, in place of no class."""
    interval: tuple[float, float] = (-2.3, 1.9)
    """interval: log-SNR between which guidance acts, noise first."""
    classifier: Path | None = None
    """classifier: the folder of a run of experiments.classifier on the same data and SDE."""
    weaker: str | None = None
    """autoguidance: the folder of a weaker run on the same data and SDE, or raw for this run's last parameters."""
    data_dir: Path | None = None
    """Where the files of mnist, fashion-mnist and cifar10 are; by default where the run had them."""

    def values(self) -> list[float]:
        """The weights."""
        try:
            found = [float(word) for word in self.weights.split(",")]
        except ValueError:
            found = []
        if not found or not all(map(math.isfinite, found)) or len(set(found)) < len(found):
            raise InputError(f"--weights takes different numbers such as 0,1,2,4, got {self.weights!r}")
        return found


def check(flags: Flags) -> None:
    """Raise InputError for the first flag that cannot be, before anything is read."""
    flags.check()
    if flags.out.suffix:
        raise InputError(f"--out {flags.out} must be a folder")
    flags.at_least(each=2)
    needs, weights = METHODS[flags.method].needs, flags.values()
    for flag, value, what in (
        ("classifier", flags.classifier, "a classifier"),
        ("weaker", flags.weaker, "a weaker model"),
    ):
        if value is None and needs == what:
            hint = " (python -m experiments.classifier makes one)" if flag == "classifier" else ""
            raise InputError(f"--method {flags.method} needs {what}: give --{flag} FOLDER{hint}")
        if value is not None and needs != what:
            raise InputError(f"--{flag} has no meaning for --method {flags.method}: drop it")
    if flags.negative is not None and needs in ("a classifier", "a weaker model"):
        raise InputError(f"--negative has no meaning for --method {flags.method}: drop it")
    if not flags.interval[0] < flags.interval[1]:
        raise InputError(f"--interval must be two log-SNRs, the lower (noise) first, got {flags.interval}")
    if needs == "ddim" and (flags.solver != "ddim" or not all(0 <= w <= 1 for w in weights)):
        raise InputError(f"--method {flags.method} is for --solver ddim and --weights in [0, 1] (its strength)")


def asked(flags: Flags, opened: Opened) -> tuple[int | None, int | None]:
    """The classes --label and --negative, None where they are not given."""
    if opened.data.labels is None or opened.data.labels.classes is None:
        raise InputError(f"{flags.checkpoint} is of data without classes ({opened.data.name}): nothing to guide to")
    if opened.config.objective.condition == "none" and METHODS[flags.method].needs != "a classifier":
        raise InputError(
            f"{flags.checkpoint} knows no classes: train with --condition class, or take --method classifier"
        )
    label, negative = (
        class_of(flag, getattr(flags, flag), opened.data.labels, opened.data.name) for flag in ("label", "negative")
    )
    return label, negative


def companion(flag: str, path: str | Path, opened: Opened, target: str) -> Opened:
    """The run that a flag names, which must be of the same data and SDE."""
    other = open_run(path, target)
    same = opened.config.sde == other.config.sde
    if not same or scaling(opened) != scaling(other):
        what = "SDE" if not same else "data"
        pair = [o.config.sde if not same else o.data.name for o in (other, opened)]
        raise InputError(f"--{flag} {path} is of other {what} than the model: {pair[0]}, not {pair[1]} as it was")
    return other


def scaling(opened: Opened) -> dict[str, Any]:
    """What must agree of the data."""
    record = opened.data.record()
    return {name: record[name] for name in ("name", "event_shape", "levels", "mean", "std", "labels")}


def sources(
    flags: Flags, opened: Opened, score: Any, negative: int | None, table: ss.Table
) -> tuple[Sources, dict[str, Input]]:
    """What the method guides with, and the other models among it."""
    model, log_probs, weaker, inputs = opened.model, None, None, {}
    if flags.classifier is not None:
        other = companion("classifier", flags.classifier, opened, "class")
        log_probs = other.model.log_probs(other.state.ema)
        inputs["classifier"] = of_model(flags.classifier, other, other.state.ema)
    if flags.weaker == RAW:
        weaker = model.score(opened.state.params)
        inputs["weaker"] = of_model(f"{flags.checkpoint} ({RAW})", opened, opened.state.params)
    elif flags.weaker is not None:
        other = companion("weaker", flags.weaker, opened, "score")
        if other.config.objective.condition == "none":
            raise InputError(f"--weaker {flags.weaker} knows no classes: train it with --condition class")
        weaker = other.model.score(other.state.ema)
        inputs["weaker"] = of_model(flags.weaker, other, other.state.ema)
    turned = score if negative is None else ss.given(score, jnp.array([negative], jnp.int32))
    return Sources(model.sde, score, turned, log_probs, weaker, flags.interval, np.asarray(table.times)), inputs


def guided(flags: Flags, made_of: Sources) -> dict[str, Any]:
    """``w_WEIGHT``: the score for each weight."""
    try:
        return {f"w_{w:g}": METHODS[flags.method].guided(made_of, w) for w in flags.values()}
    except ValueError as error:
        raise InputError(f"--method {flags.method}: {error}") from None


def drawn(flags: Flags, data: Data, table: ss.Table, scores: dict[str, Any], classes: np.ndarray, work: Work) -> Arrays:
    """Samples (classes, each, *event) in raw units of each score, sample i of all of them from one noise."""
    rows, found = np.repeat(classes, flags.each).astype(np.int32), {}
    for name, score in scores.items():
        x, broken = draw(name, stream(flags.seed, "samples"), data, score, table, len(rows), work, rows)
        if broken:
            raise InputError(f"{broken} of {len(x)} samples ({name}) are not finite: take more --evaluations")
        found[name] = x.reshape(len(classes), flags.each, *x.shape[1:])
    return found


def program(flags: Flags, console: Console) -> None:
    """Draw, judge, write, and say what came out."""
    check(flags)
    opened = open_run(flags.checkpoint)
    (label, negative), model, (params, which) = asked(flags, opened), opened.model, opened.parameters(raw=flags.raw)
    names = opened.data.labels.words if opened.data.labels else ()
    classes = np.arange(len(names)) if label is None else np.array([label])
    table = flags.table(model.sde, model.precond.sigma_data)
    made_of, inputs = sources(flags, opened, model.score(params), negative, table)
    scores = guided(flags, made_of)
    judge = Judge(examples(opened, data_dir=flags.data_dir), classes, flags.each)
    inputs |= {"checkpoint": of_model(flags.checkpoint, opened, params)}
    inputs |= {"data": of_examples(judge.data.name, *judge.read)}
    plan = flags.plan() | {"evaluations": table.num_evals, "method": flags.method, "label": label}
    plan |= {"guidance": flags.values(), "count": flags.each, "negative": negative, "interval": flags.interval}

    def make(work: Work) -> dict[str, Any]:
        console.print(f"{flags.checkpoint}, {which}, {flags.method}; {table.num_evals} evaluations", highlight=False)
        found = drawn(flags, opened.data, table, scores, classes, work)
        key = stream(flags.seed, "distances")
        figures, real = [judge.of(key, x) for x in found.values()], judge.references(key)
        about = {"checkpoint": str(flags.checkpoint), "data": judge.data.name, "real": real}
        about |= {"classes": [names[c] for c in classes]}
        about |= {"weights": dict(zip(map(str, flags.values()), figures, strict=True))}
        write(flags, about, found, judge)
        return about

    manifest = flags.out / "guide.json"
    done = carry_out("guide", flags.out, plan, inputs, make, batch=flags.batch, console=console, manifest=manifest)
    if done:
        console.print(result(flags.values(), list(done["weights"].values()), done["real"]))
        console.print(f"{done['seconds']} s; {flags.out}", highlight=False)


def write(flags: Flags, about: dict[str, Any], found: Arrays, judge: Judge) -> None:
    """The folder, all but the manifest."""
    weights, figures, real = flags.values(), list(about["weights"].values()), about["real"]
    flags.out.mkdir(parents=True, exist_ok=True)
    labels = judge.data.labels
    classes = judge.classes if labels is None else labels.values(judge.classes)
    write_arrays(flags.out / "samples.npz", found | {"classes": classes})
    heads = dict(zip((f"w = {w:g}" for w in weights), found.values(), strict=True))
    notes = [_note(f) for f in (*figures, real)]
    sheet = guide_figures.sheet(heads, notes, about["classes"], judge.real, judge.data.levels)
    save(sheet, flags.out / "samples.png")
    save(guide_figures.curves(weights, figures, real), flags.out / "curves.png")


def _note(figures: dict[str, Any]) -> str:
    accuracy, rest = f"{100 * figures['accuracy']:.0f} % of their class", (figures["distance"], figures["spread"])
    return f"{accuracy}, distance {rest[0]:.3g}, spread {rest[1]:.3g}"


def result(weights: list[float], figures: list[dict[str, Any]], real: dict[str, Any]) -> Table:
    """The figures of each weight, and of real examples below them."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", show_edge=False)
    for name in ("w", "class accuracy", "distance", "spread"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, f in zip((*(f"{w:g}" for w in weights), "real"), (*figures, real), strict=True):
        accuracy = f"{100 * f['accuracy']:.1f} ± {100 * f['accuracy_std_error']:.1f} %"
        table.add_row(name, accuracy, f"{f['distance']:.4g}", f"{f['spread']:.4g}")
    return table


def main() -> None:
    """Command line; see ``commands.main``."""
    commands.main(Flags, "guide", program)


if __name__ == "__main__":
    main()
