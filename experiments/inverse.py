"""Draws from the posterior of examples of which something was measured, by any trained model.

    python -m experiments.inverse --checkpoint runs/digits-vp --operator box --method mmps --out FOLDER
    python -m experiments.inverse --checkpoint runs/table-vp --input FILE.csv --out FOLDER

The first takes held-out examples, measures them by a word of --measure with noise, and compares the
draws with the truth; the second fills in what is missing (NaN, or empty cells) in a file. FOLDER then holds

    draws.npz      in raw units: ``draws`` (n, each, *event), ``measured`` (least squares), and ``truth`` or ``filled``
                   (what was known, and the mean of the draws elsewhere)
    filled.csv     the last of these, where the file was a table with a header
    restored.png   truth, measurement, draws, their mean and standard deviation
    report.json    what was done and how far the draws are from the truth, in standard deviations of the data

Draw k of example i depends on the seed, i and k alone. A job that was stopped continues with the same command.
"""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from rich.console import Console

import scoresde as ss
from experiments.cli import commands
from experiments.cli.errors import InputError
from experiments.cli.keys import stream
from experiments.cli.writing import write_arrays, write_atomically
from experiments.data.dataset import Data
from experiments.editing import restoration
from experiments.editing.restoration import Problem
from experiments.figures import stages
from experiments.figures.stages import Stage
from experiments.measures.inputs import Input, of_examples, of_file, of_model
from experiments.measures.jobs import Work, carry_out, rows, spread_score
from experiments.measures.likelihoods import of_rows
from experiments.models.saved import Opened, examples, open_run
from experiments.models.solvers import DrawingFlags, SolverWord, told

MethodWord = Literal["dps", "mmps", "pigdm", "reconstruction", "replacement", "tmpd", "diffpir", "repaint", "twisted"]
METHODS: dict[MethodWord, Callable[..., Any]] = {
    "dps": ss.inverse.dps,
    "mmps": ss.inverse.mmps,
    "pigdm": ss.inverse.pigdm,
    "reconstruction": ss.inverse.reconstruction,
    "replacement": ss.inverse.replacement,
    "tmpd": ss.inverse.tmpd,
}
SAMPLERS: dict[MethodWord, Callable[..., Any]] = {
    "diffpir": ss.inverse.diffpir,
    "repaint": ss.inverse.repaint,
    "twisted": ss.inverse.twisted_smc,
}
SHOWN, MOST_SHOWN = 3, 16
OF_UNIT_DATA = ("pigdm", "twisted")  # which are told the standard deviation of the data


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasurementFlags:
    """What is measured, of held-out examples."""

    HEADING: ClassVar[str] = "measurement"

    operator: restoration.OperatorWord | None = None
    """What is measured of held-out examples; box by default."""
    noise: float = 0.05
    """Standard deviation of the noise of the measurement, in those of the data."""
    keep: float = 0.5
    """random, fourier, compressed: the share that is measured."""
    factor: int = 2
    """downsample: pixels a side of a block."""
    std: float = 1.0
    """blur: in pixels."""
    missing: str | None = None
    """columns: those that are missing, by number from 1, such as 2,5; span: what is missing, START:STOP."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(MeasurementFlags, DrawingFlags):
    """Restore what was measured in part: inpainting, super-resolution, imputation, by draws from the posterior."""

    out: Path
    """Folder to write."""
    input: Path | None = None
    """A file of your examples instead, .npy .npz .csv, in which what is missing is NaN or an empty cell."""
    method: MethodWord = "mmps"
    """How the posterior is drawn from."""
    n: int = 8
    """Held-out examples, the first ones."""
    each: int = 8
    """Draws for each example."""
    label: str | None = None
    """Class of all, by its name, of a model trained with --condition class; by default none is told."""
    data_dir: Path | None = None
    """Where the files of mnist, fashion-mnist and cifar10 are; by default where the run had them."""
    solver: SolverWord = "ancestral"
    """For the methods that are scores; the others (diffpir, repaint, twisted) are samplers of their own."""
    evaluations: int = 100
    """Of the guided score for each draw."""

    def check(self) -> None:
        """Raise InputError for the first flag that cannot be."""
        super().check()
        self.at_least(n=1, each=2, factor=1)
        for name in ("noise", "std"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"--{name} must be positive, got {getattr(self, name)}")
        if not 0 < self.keep <= 1:
            raise InputError(f"--keep must be in (0, 1], got {self.keep}")
        if self.input is not None and self.operator is not None:
            raise InputError("--input brings its own missing values: drop --operator")
        if self.missing is not None and self.operator not in ("columns", "span"):
            raise InputError("--missing is for --operator columns or span")
        if self.out.suffix:
            raise InputError(f"--out {self.out} must be a folder")


def _draws(
    flags: Flags, opened: Opened, score: Any, label: int | None, problem: Problem, name: str, work: Work
) -> np.ndarray:
    """Points (m, each, *event) in model units, of the class ``label`` where there is one."""
    data, model, m = opened.data, opened.model, len(problem.y)
    sde, key = model.sde, stream(flags.seed, "draws")
    y, which = np.repeat(problem.y, flags.each, axis=0), np.repeat(problem.where, flags.each)
    known = None if label is None else np.full(len(y), label, np.int32)
    score_of = of_rows(score, known)
    options = {"sigma_data": model.precond.sigma_data} if flags.method in OF_UNIT_DATA else {}
    table = ss.with_denoising(sde, flags.table(sde, model.precond.sigma_data))
    number = int(which[0]) * flags.each

    def job(first: int, size: int) -> dict[str, Any]:
        shape = (size, *data.event_shape)
        measured = problem.operator, jnp.asarray(rows(y, first, size)), flags.noise
        if flags.method in METHODS:
            guided = METHODS[flags.method](sde, score_of(first, size), *measured, **options)
            return {"x": ss.sample(key, guided, table, shape, first=number + first)}
        grid, here = ss.log_snr_grid(sde, flags.evaluations), {"shape": shape, "first": number + first}
        return {"x": SAMPLERS[flags.method](key, sde, score_of(first, size), *measured, grid, **here, **options)}

    return work.run(name, job, len(y))["x"].reshape(m, flags.each, *data.event_shape)


class Given(NamedTuple):
    """What is to be restored: held-out examples whose ``truth`` is known, or a file with missing values."""

    problems: list[Problem]
    read: tuple[str, Input]
    """Its role and content."""
    truth: np.ndarray | None = None
    incomplete: np.ndarray | None = None
    """The values of the file, NaN where missing."""
    header: list[str] = []


def _given(flags: Flags, opened: Opened) -> Given:
    data = opened.data
    if flags.input is None:
        flags = dataclasses.replace(flags, operator=flags.operator or "box")
        truth = examples(opened, data_dir=flags.data_dir).held_out[: flags.n]
        return Given(restoration.measured(flags, data, truth), ("data", of_examples(data.name, truth)), truth)
    x, header = restoration.read(flags.input, data)
    return Given(restoration.incomplete(data, x), ("input", of_file(flags.input)), None, x, header)


def program(flags: Flags, console: Console) -> None:
    """Measure, draw, compare, write, and say where."""
    flags.check()
    opened = open_run(flags.checkpoint)
    data, (params, which) = opened.data, opened.parameters(raw=flags.raw)
    label = told(opened, flags.label)
    given = _given(flags, opened)
    count = sum(len(problem.where) for problem in given.problems)
    asked = ("operator", "method", "noise", "keep", "factor", "std", "missing", "each", "evaluations")
    plan = flags.plan() | {name: getattr(flags, name) for name in asked} | {"label": label, "n": count}

    def make(work: Work) -> dict[str, Any]:
        console.print(
            f"{flags.checkpoint}, {which}; {flags.method} on {count} examples of {data.name}", highlight=False
        )
        score = spread_score(opened.model.score(params))
        draws = np.empty((count, flags.each, *data.event_shape), np.float32)
        before = np.empty((count, *data.event_shape), np.float32)
        for i, problem in enumerate(given.problems):
            draws[problem.where] = _draws(flags, opened, score, label, problem, f"draws{i or ''}", work)
            before[problem.where] = problem.least_squares(data.event_shape)
        if not np.isfinite(draws).all():
            raise InputError(f"--method {flags.method}: some draws are not finite; take more --evaluations or --noise")
        about: dict[str, Any] = {"checkpoint": str(flags.checkpoint)}
        if given.truth is not None:
            about["compared"] = restoration.compared(data, given.problems[0], draws, given.truth, flags.noise)
        _write(flags, data, draws, before, given)
        return about

    inputs, report = dict([("checkpoint", of_model(flags.checkpoint, opened, params)), given.read]), "report.json"
    done = carry_out(
        "inverse", flags.out, plan, inputs, make, batch=flags.batch, console=console, manifest=flags.out / report
    )
    if done:
        for name, value in done.get("compared", {}).items():
            console.print(f"{name.replace('_', ' '):14s} {value:.3f}", highlight=False)
        console.print(f"{done['seconds']} s; {flags.out / 'restored.png'}, draws.npz, {report}", highlight=False)


def _write(flags: Flags, data: Data, draws: np.ndarray, before: np.ndarray, given: Given) -> None:
    """The arrays, the picture and the filled table, in raw units."""
    flat = draws.reshape(-1, *draws.shape[2:])
    raw = data.from_model(flat, round_levels=False).reshape(draws.shape)
    mean, measured = raw.mean(axis=1), data.from_model(before, round_levels=False)
    arrays = {"draws": data.from_model(flat).reshape(draws.shape), "measured": measured}
    shown = [Stage("measured", "Measured", "least squares", measured)]
    for k in range(min(flags.each, SHOWN)):
        shown.append(Stage(f"draw_{k}", f"Draw {k + 1}", f"{flags.method}, {flags.evaluations} evaluations", raw[:, k]))
    shown.append(Stage("mean", "Mean", f"of {flags.each} draws", mean))
    if given.truth is not None:
        arrays["truth"] = given.truth
        shown.insert(0, Stage("truth", "Truth", "held out", given.truth))
    if given.incomplete is not None:
        arrays["filled"] = np.where(np.isnan(given.incomplete), mean, given.incomplete)
    shown = [stage._replace(x=stage.x[:MOST_SHOWN]) for stage in shown]
    flags.out.mkdir(parents=True, exist_ok=True)
    write_arrays(flags.out / "draws.npz", arrays)
    stages.picture(flags.out / "restored.png", shown, data.levels)
    if given.header:
        lines = [",".join(f"{value:.9g}" for value in row) for row in arrays["filled"]]
        write_atomically(flags.out / "filled.csv", "\n".join([",".join(given.header), *lines]) + "\n")


def main() -> None:
    """Command line; see ``commands.main``."""
    commands.main(Flags, "inverse", program)


if __name__ == "__main__":
    main()
