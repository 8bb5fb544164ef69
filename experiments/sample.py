"""Samples of a trained model to disk, from any run or checkpoint, with any solver.

    python -m experiments.sample --checkpoint runs/digits-vp --n 64 --solver unipc --evaluations 20 --out FILE.npz

Sample i depends on (seed, i) alone: not on the batch size, the number of devices or restarts (rounding apart). A job
that was stopped or killed continues when the same command is given again. Where ``--out`` leads:

    FILE.npz    ``arr_0`` (n, *event) in the units of the data: uint8 (n, height, width, channels) for images; and
                ``labels`` (n,) of a model that knows classes
    FOLDER      a PNG an image, 000000.png and so on, as tools that compute FID read them (``experiments.distance``);
                their labels in dataset.json
    FILE.png    one picture: a grid of images, or the points or curves

and beside it the manifest (FILE.npz.json): which parameters, solver, grid, evaluations, seed, versions and command.
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

import scoresde as ss
from experiments.cli import commands
from experiments.cli.errors import InputError
from experiments.cli.writing import write_arrays, write_atomically, write_pictures
from experiments.figures import panels, run_figures
from experiments.measures.inputs import of_model
from experiments.measures.jobs import Work, carry_out
from experiments.measures.samples import draw
from experiments.models.saved import Opened, open_run
from experiments.models.solvers import DrawingFlags, class_count, told


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(DrawingFlags):
    """Draw samples from a trained model; sample i depends on the seed and i alone, and a stopped job continues."""

    out: Path
    """FILE.npz, FILE.png (one picture), or a folder for a PNG an image."""
    n: int = 64
    """Samples to draw."""
    label: str | None = None
    """Class of every sample, by its name, of a model trained with --condition class; by default all in turn."""
    guidance: float = 1.0
    """Weight of the class: 0 is without it, 1 as the model has it, above 1 more of it (classifier-free guidance)."""

    def check(self) -> None:
        """Raise InputError for the first flag that cannot be."""
        super().check()
        self.at_least(n=1)
        if not math.isfinite(self.guidance):
            raise InputError(f"--guidance must be finite, got {self.guidance}")
        if self.out.suffix not in (".npz", ".png", ""):
            raise InputError(f"--out {self.out} must end in .npz or .png, or be a folder for a PNG an image")


def _write(out: Path, samples: np.ndarray, levels: int | None, labels: np.ndarray | None) -> None:
    """The samples in the form that the name asks for, with their labels where they have any."""
    if out.suffix == ".npz":
        write_arrays(out, {"arr_0": samples} | ({} if labels is None else {"labels": labels}))
    elif out.suffix == ".png":
        run_figures.sheet(out, samples, levels, samples)
    else:
        write_pictures(out, panels.pixels(samples, *run_figures.scale(samples, levels)))
        if labels is not None:
            listed = [[f"{i:06d}.png", label] for i, label in enumerate(labels.tolist())]
            write_atomically(out / "dataset.json", json.dumps({"labels": listed}) + "\n")


def _classes(flags: Flags, opened: Opened, label: int | None) -> np.ndarray | None:
    """The class of each sample; None where the model knows none."""
    count = class_count(opened)
    if not count and flags.guidance != 1:
        raise InputError(f"{flags.checkpoint} knows no classes: drop --guidance, or train with --condition class")
    if not count:
        return None
    return np.arange(flags.n, dtype=np.int32) % count if label is None else np.full(flags.n, label, np.int32)


def program(flags: Flags, console: Console) -> None:
    """Draw, write, and say where."""
    flags.check()
    opened = open_run(flags.checkpoint)
    data, model, shape = opened.data, opened.model, opened.data.event_shape
    if not flags.out.suffix and not (panels.is_image(shape) and shape[2:] in ((), (1,), (3,), (4,))):
        raise InputError(f"examples of shape {shape} are no images: give --out a name that ends in .npz or .png")
    label = told(opened, flags.label)
    known = _classes(flags, opened, label)
    params, which = opened.parameters(raw=flags.raw)
    table = flags.table(model.sde, model.precond.sigma_data)
    plan = flags.plan() | {"evaluations": table.num_evals, "count": flags.n}
    plan |= {"label": label, "guidance": flags.guidance}

    def make(work: Work) -> dict[str, Any]:
        where = f"{jax.local_device_count()} x {jax.devices()[0].device_kind}"
        step = int(opened.state.step)
        console.print(f"{flags.checkpoint}, step {step}, {which}; {flags.solver} on {where}", highlight=False)
        if table.num_evals < flags.evaluations:
            console.print(
                f"{flags.solver} cannot take {flags.evaluations} evaluations; nearest below: {table.num_evals}"
            )
        score = model.score(params)
        if known is not None:
            score = ss.guidance.classifier_free(score, score, flags.guidance)
        x, broken = draw("samples", jax.random.key(flags.seed), data, score, table, flags.n, work, known)
        if broken:
            raise InputError(
                f"{broken} of {flags.n} samples are not finite: take more --evaluations or another --solver"
            )
        _write(flags.out, x, data.levels, None if known is None or data.labels is None else data.labels.values(known))
        about = {"checkpoint": str(flags.checkpoint), "step": step, "data": data.name, "levels": data.levels}
        return about | {"shape": x.shape, "dtype": str(x.dtype)}

    inputs = {"checkpoint": of_model(flags.checkpoint, opened, params)}
    if about := carry_out("sample", flags.out, plan, inputs, make, batch=flags.batch, console=console):
        console.print(f"{flags.n} samples in {about['seconds']} s: {flags.out}, {flags.out}.json", highlight=False)


def main() -> None:
    """Command line; see ``commands.main``."""
    commands.main(Flags, "sample", program)


if __name__ == "__main__":
    main()
