"""Edits of real examples by a trained model: before and after in one picture, the arrays in a file.

    python -m experiments.edit --checkpoint runs/digits-vp --edit sdedit --strength 0.4 --n 8 --out FILE.png

    sdedit        noise up to --strength of the log-SNR's way, and back; of a model with classes as --label
    translate     to the class --label by the probability flow, up as the class it has and down as the other
    interpolate   between the first and second example, the third and fourth, ...: --between pictures each
    direction     along the direction of the class --attribute among latents, of the others or of --against
    denoise       --noise, in the units of the model (data have standard deviation 1), added and removed; with --blind
                  its level is estimated first, from each example alone; with --as-is the examples are noisy already
    panorama      free samples on a --canvas larger than the model's examples
    outpaint      a --canvas around each example

Examples are of the held-out part of the run's data, or --input FILE.npz or FILE.png. --out FILE.npz holds the arrays
of all stages in the units of the data. Beside it lies the manifest (FILE.png.json): settings, figures, versions. A job
that was stopped continues with the same command.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from rich.console import Console

from experiments.cli import commands
from experiments.cli.errors import InputError
from experiments.cli.keys import stream
from experiments.cli.writing import write_arrays
from experiments.editing.edits import EDITS, EditWord
from experiments.editing.examples import chosen, classes_of, of_direction
from experiments.editing.job import Job
from experiments.figures import stages
from experiments.measures.inputs import Input, of_examples, of_file, of_model
from experiments.measures.jobs import Work, carry_out
from experiments.models.saved import Opened, examples, open_run
from experiments.models.solvers import DrawingFlags, SolverWord

NEEDS = {"translate": "label", "direction": "attribute", "denoise": "noise", "panorama": "canvas", "outpaint": "canvas"}
REAL = tuple(edit for edit in EDITS if edit != "panorama")
READS = dict.fromkeys(("attribute", "against", "amount", "shrinkage", "latents"), ("direction",)) | {
    "strength": ("sdedit",),
    "label": ("sdedit", "translate"),
    "guidance": ("sdedit", "translate"),
    "between": ("interpolate",),
    "noise": ("denoise",),
    "blind": ("denoise",),
    "as_is": ("denoise",),
    "canvas": ("panorama", "outpaint"),
    "stride": ("panorama", "outpaint"),
    "examples": REAL,
    "input": REAL,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DirectionFlags:
    """Of the edit direction alone."""

    HEADING: ClassVar[str] = "direction"

    attribute: str | None = None
    """direction: the name of the class towards which examples are moved."""
    against: str | None = None
    """direction: the class from which the direction leads; by default all others."""
    amount: float = 1.0
    """direction: the length of the move, in distances between the means."""
    shrinkage: float = 1.0
    """direction: 1 for the difference of the means, smaller for Fisher's discriminant, in (0, 1]."""
    latents: int = 400
    """direction: training examples from which it is measured, half of each kind."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenoiseFlags:
    """Of the edit denoise alone."""

    HEADING: ClassVar[str] = "denoise"

    noise: float | None = None
    """denoise: standard deviation of the noise, in the units of the model."""
    blind: bool = False
    """denoise: estimate the level of the noise from each example alone."""
    as_is: bool = False
    """denoise: the examples are noisy already, by --noise or, with --blind, by nobody knows how much; add none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CanvasFlags:
    """Of the edits panorama and outpaint."""

    HEADING: ClassVar[str] = "canvas"

    canvas: str | None = None
    """panorama, outpaint: size of the first axes of an example: 8x24."""
    stride: int | None = None
    """panorama, outpaint: from window to window; by default half of the first side."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(DirectionFlags, DenoiseFlags, CanvasFlags, DrawingFlags):
    """Edit examples with a trained model; example i depends on the seed and i alone."""

    out: Path
    """FILE.png or FILE.npz."""
    edit: EditWord
    """What is done."""
    n: int = 8
    """Examples: the first of the held-out part, or of --input."""
    examples: str | None = None
    """These examples instead, by number from 0: 0,5,7."""
    input: Path | None = None
    """FILE.npz of one array (n, *event) in the units of the data, or FILE.png of one image, instead of the held-out
    part."""
    data_dir: Path | None = None
    """Where the files of mnist, fashion-mnist and cifar10 are."""
    strength: float = 0.5
    """sdedit: share of the log-SNR's way from data to noise, in (0, 1]."""
    label: str | None = None
    """sdedit, translate: the name of the class wanted, of a model trained with --condition class."""
    guidance: float = 1.0
    """sdedit, translate: weight of --label; above 1 more of it."""
    between: int = 9
    """interpolate: pictures from one example to the other, both included."""
    solver: SolverWord = "ancestral"
    """sdedit, denoise, panorama, outpaint: as for experiments.sample; one that adds noise for denoise."""
    evaluations: int = 100
    """Network evaluations of the solver."""

    @property
    def canvas_shape(self) -> tuple[int, ...]:
        return tuple(int(side) for side in str(self.canvas).split("x"))

    def check(self) -> None:
        """Raise InputError for the first flag that cannot be."""
        super().check()
        if self.out.suffix not in (".npz", ".png"):
            raise InputError(f"--out {self.out} must end in .npz or .png")
        for field in dataclasses.fields(self):
            readers = READS.get(field.name, (self.edit,))
            if self.edit not in readers and getattr(self, field.name) != field.default:
                flag, edits = field.name.replace("_", "-"), ", ".join(readers)
                raise InputError(f"--{flag} has no meaning for --edit {self.edit}; it is for {edits}")
        if (name := NEEDS.get(self.edit)) and getattr(self, name) is None and not (self.as_is and self.blind):
            raise InputError(f"--edit {self.edit} needs --{name}")
        self.at_least(n=1, between=2, latents=4, stride=1)
        for name in ("strength", "shrinkage"):
            if not 0 < getattr(self, name) <= 1:
                raise InputError(f"--{name} must be in (0, 1], got {getattr(self, name)}")
        for name in ("guidance", "amount"):
            if not math.isfinite(getattr(self, name)):
                raise InputError(f"--{name} must be finite, got {getattr(self, name)}")
        if self.canvas is not None and not all(part.isdigit() and int(part) for part in self.canvas.split("x")):
            raise InputError(f"--canvas must be sides with x between, such as 8x24, got {self.canvas}")


def _given(flags: Flags, opened: Opened) -> tuple[Callable[[Work], Job], dict[str, Input], dict[str, int | None]]:
    """The examples and the model, checked against each other, all that is read, and the classes that flags name."""
    data, (params, _) = opened.data, opened.parameters(raw=flags.raw)
    if flags.edit == "direction" or (flags.input is None and flags.edit != "panorama"):
        source = examples(opened, data_dir=flags.data_dir)
        names = ("train", "held_out", "labels", "train_labels", "held_out_labels")
        data = dataclasses.replace(data, **{name: getattr(source, name) for name in names})
    named = classes_of(flags, opened, data)
    if flags.edit == "panorama":
        raw, numbers, classes = np.zeros((flags.n, *data.event_shape), data.train.dtype), [], None
    else:
        raw, numbers, classes = chosen(flags, data, opened.config.options)
    if flags.canvas is not None:
        window = data.event_shape[: len(flags.canvas_shape)]
        if len(window) < len(flags.canvas_shape) or any(n < k for n, k in zip(flags.canvas_shape, window, strict=True)):
            raise InputError(f"--canvas {flags.canvas} must be at least as large as an example, {data.event_shape}")
    model, score = opened.model, opened.model.score(params)
    table = partial(flags.table, sigma_data=model.precond.sigma_data)
    classes = classes if opened.config.objective.condition == "class" else None
    measured = of_direction(flags, named, data) if flags.edit == "direction" else None
    inputs = {"checkpoint": of_model(flags.checkpoint, opened, params)}
    if flags.input is not None:
        inputs["input"] = of_file(flags.input)
    if measured or (flags.input is None and numbers):
        inputs["data"] = of_examples(data.name, None if flags.input else raw, classes, *(measured or ()))
    key = stream(flags.seed, "edit")
    return partial(Job, key, flags, named, data, model, score, raw, numbers, classes, measured, table), inputs, named


def _plan(flags: Flags, named: dict[str, int | None]) -> dict[str, Any]:
    """The settings that the result depends on."""
    settings, paths = dataclasses.asdict(flags) | named, ("checkpoint", "out", "raw", "data_dir", "input", "batch")
    mine = {name: settings[name] for name in settings if flags.edit in READS.get(name, (flags.edit,))}
    return {name: value for name, value in mine.items() if name not in paths} | flags.plan()


def _show(found: dict[str, Any], console: Console) -> None:
    """The figures of an edit: numbers in one line, the levels of --blind beside the truth."""
    if estimates := found.get("estimates"):
        pairs = zip(estimates, found["posterior_std"], strict=True)
        estimated = ", ".join(f"{s:.3g} ± {error:.2g}" for s, error in pairs)
        truth = f"{found['noise']:g}" if "noise" in found else "unknown"
        console.print(f"standard deviation of the noise: {truth}; estimated: {estimated}", highlight=False)
    numbers = [f"{name.replace('_', ' ')} {value:.4g}" for name, value in found.items() if isinstance(value, float)]
    if numbers:
        console.print(", ".join(numbers), highlight=False)


def program(flags: Flags, console: Console) -> None:
    """Edit, write, and say where."""
    flags.check()
    opened = open_run(flags.checkpoint)
    job, inputs, named = _given(flags, opened)

    def make(work: Work) -> dict[str, Any]:
        try:
            done, found = EDITS[flags.edit](job(work))
        except ValueError as error:
            raise error if isinstance(error, InputError) else InputError(f"--edit {flags.edit}: {error}") from None
        if broken := [stage.name for stage in done if not np.all(np.isfinite(stage.x))]:
            raise InputError(f"{', '.join(broken)}: not finite; take more --evaluations or another --solver")
        if flags.out.suffix == ".npz":
            write_arrays(flags.out, {stage.name: stage.x for stage in done})
        else:
            stages.picture(flags.out, done, opened.data.levels)
        about = {"checkpoint": str(flags.checkpoint), "step": int(opened.state.step), "data": opened.data.name}
        return about | {"figures": found, "stages": {stage.name: list(stage.x.shape) for stage in done}}

    if about := carry_out("edit", flags.out, _plan(flags, named), inputs, make, batch=flags.batch, console=console):
        _show(about["figures"], console)
        console.print(f"{flags.edit} in {about['seconds']} s: {flags.out}, {flags.out}.json", highlight=False)


def main() -> None:
    """Command line; see ``commands.main``."""
    commands.main(Flags, "edit", program)


if __name__ == "__main__":
    main()
