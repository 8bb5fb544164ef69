"""Samples of a trained model to disk, from any run or checkpoint, with any solver.

    python -m experiments.sample --checkpoint runs/digits-vp --n 64 --solver unipc --evaluations 20 --out FILE.npz

Sample i depends on (seed, i) alone: not on the batch size, the number of devices or restarts (rounding apart). A job
that was stopped or killed continues when the same command is given again. Where ``--out`` leads:

    FILE.npz    one array ``arr_0`` (n, *event) in the units of the data: uint8 (n, height, width, channels) for images
    FOLDER      a PNG an image, 000000.png and so on, as tools that compute FID read them
    FILE.png    one picture: a grid of images, or the points or curves

and beside it the manifest (FILE.npz.json): which parameters, solver, grid, evaluations, seed, versions and command.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
import tyro
from rich.console import Console

import scoresde as ss
from experiments import commands, figures, machine, panels
from experiments.batches import Parts, Work, finished, parts_of
from experiments.data import InputError
from experiments.draws import draw
from experiments.opening import Opened, digest, open_run
from experiments.setup import one_of
from experiments.writing import write_arrays, write_json, write_picture


class Solver(NamedTuple):
    """(sde, grid) -> table; the grid where --grid is not given; whether the table takes --eta."""

    table: Callable[..., ss.Table]
    grid: str = "log-snr"
    eta: bool = False


def _denoised(solver: Callable[..., ss.Table], sde: ss.SDE, grid: np.ndarray) -> ss.Table:
    return ss.with_denoising(sde, solver(sde, grid))


BEST = "best"  # ss.best_solver, which chooses its grid
SOLVERS: dict[str, Solver] = {
    "adams": Solver(partial(ss.adams, order=3), "angle"),
    "ancestral": Solver(ss.ancestral),
    "ddim": Solver(ss.ddim, eta=True),
    "deis": Solver(ss.deis),
    "dpm": Solver(ss.dpm_solver, eta=True),
    "dpm-single": Solver(ss.dpm_solver_single),
    "euler-maruyama": Solver(partial(_denoised, ss.euler_maruyama)),
    "heun": Solver(ss.heun, "karras"),
    "ipndm": Solver(ss.ipndm),
    "lms": Solver(ss.lms),
    "predictor-corrector": Solver(partial(_denoised, ss.predictor_corrector)),
    "reverse-diffusion": Solver(partial(_denoised, ss.reverse_diffusion)),
    "sa": Solver(ss.sa_solver),
    "seeds": Solver(partial(ss.seeds, noise_prediction=False)),
    "unipc": Solver(ss.unipc),
}
GRIDS: dict[str, Callable[[ss.SDE, int], np.ndarray]] = {
    "angle": ss.angle_grid,
    "beta": ss.beta_grid,
    "karras": ss.karras_grid,
    "log-snr": ss.log_snr_grid,
    "quadratic": ss.quadratic_grid,
    "shifted": ss.shifted_grid,
    "uniform": ss.uniform_grid,
}


@dataclasses.dataclass(frozen=True)
class Flags:
    """Draw samples from a trained model; sample i depends on the seed and i alone, and a stopped job continues."""

    checkpoint: Path
    """Folder of a run, or its checkpoint."""
    out: Path
    """FILE.npz, FILE.png (one picture), or a folder for a PNG an image."""
    n: int = 64
    """Samples to draw."""
    solver: Annotated[str, tyro.conf.arg(metavar="{" + ",".join((BEST, *SOLVERS)) + "}")] = BEST
    """The solver; best is deterministic and chooses its grid."""
    evaluations: int = 20
    """Network evaluations a sample; where a solver cannot take so many exactly, the nearest number below."""
    grid: Annotated[str | None, tyro.conf.arg(metavar="{" + ",".join(GRIDS) + "}")] = None
    """Times of evaluation; by default those that suit the solver."""
    eta: float | None = None
    """Fresh noise of ddim and dpm: 0 for the probability flow, 1 for the reverse SDE."""
    label: int | None = None
    """Class of every sample, of a model trained with --condition class; by default all classes in turn."""
    guidance: float = 1.0
    """Weight of the class: 0 is without it, 1 as the model has it, above 1 more of it (classifier-free guidance)."""
    seed: int = 0
    """Seed of the samples."""
    batch: int = 256
    """Samples drawn at once, over all devices."""
    raw: bool = False
    """Take the last parameters instead of their moving average."""

    def check(self) -> None:
        """Raise InputError for the first flag that cannot be."""
        for name, low in {"n": 1, "evaluations": 1, "seed": 0, "batch": 1}.items():
            if getattr(self, name) < low:
                raise InputError(f"--{name} must be at least {low}, got {getattr(self, name)}")
        if not math.isfinite(self.guidance):
            raise InputError(f"--guidance must be finite, got {self.guidance}")
        one_of("solver", self.solver, (BEST, *SOLVERS))
        one_of("grid", self.grid or "angle", GRIDS)
        if self.solver == BEST and self.grid is not None:
            raise InputError("--solver best chooses its grid: drop --grid, or name a solver")
        if self.eta is not None and not (self.solver != BEST and SOLVERS[self.solver].eta):
            takes = ", ".join(name for name, solver in SOLVERS.items() if solver.eta)
            raise InputError(f"--eta has no meaning for --solver {self.solver}; it is for {takes}")
        if self.out.suffix not in (".npz", ".png", ""):
            raise InputError(f"--out {self.out} must end in .npz or .png, or be a folder for a PNG an image")


def table_of(flags: Flags, sde: ss.SDE, sigma_data: float = 1.0) -> ss.Table:
    """The table of the flags: the largest whose evaluations are at most ``--evaluations``."""
    wanted = flags.evaluations
    if flags.solver == BEST:
        return ss.best_solver(sde, wanted, sigma_data=sigma_data)
    solver = SOLVERS[flags.solver]
    grid = GRIDS[flags.grid or solver.grid]
    settings = {} if flags.eta is None else {"eta": flags.eta}

    def table(steps: int) -> ss.Table:
        try:
            return solver.table(sde, grid(sde, steps), **settings)
        except ValueError as error:
            raise InputError(f"--solver {flags.solver}: {error}") from None

    least, following = (table(steps).num_evals for steps in (1, 2))  # so many more for each step
    if wanted < least:
        raise InputError(f"--solver {flags.solver} takes at least {least} evaluations, got --evaluations {wanted}")
    return table(1 + (wanted - least) // (following - least))


def _write(out: Path, samples: np.ndarray, levels: int | None) -> None:
    """The samples in the form that the name asks for; a folder is complete when its manifest is there."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.suffix == ".npz":
            write_arrays(out, {"arr_0": samples})
        elif out.suffix == ".png":
            figures.sheet(out, samples, levels, samples)
        else:
            out.mkdir(exist_ok=True)
            for i, image in enumerate(panels.pixels(samples, *figures.scale(samples, levels))):
                write_picture(out / f"{i:06d}.png", image)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}; choose another --out") from None


def identity(flags: Flags, opened: Opened, params: Any, table: ss.Table) -> dict[str, Any]:
    """What the samples depend on: the part of the manifest that a restarted job must agree with."""
    return {
        "parameters": "raw" if flags.raw else "average",
        "parameters_sha256": digest(params),
        "step": int(opened.state.step),
        "solver": flags.solver,
        "grid": flags.grid or (None if flags.solver == BEST else SOLVERS[flags.solver].grid),
        "eta": flags.eta,
        "label": flags.label,
        "guidance": flags.guidance,
        "evaluations": table.num_evals,
        "seed": flags.seed,
        "count": flags.n,
        "batch": flags.batch,
    }


def _classes(flags: Flags, opened: Opened) -> np.ndarray | None:
    """The class of each sample; None where the model knows none."""
    if opened.config.condition == "none" or opened.data.labels is None:
        if flags.label is not None or flags.guidance != 1:
            raise InputError(
                f"{flags.checkpoint} knows no classes: drop --label and --guidance, or train with --condition class"
            )
        return None
    count = int(opened.data.labels.classes or 0)
    if flags.label is not None and not 0 <= flags.label < count:
        raise InputError(f"--label must be in 0..{count - 1}, the classes of {opened.data.name}, got {flags.label}")
    return (
        np.arange(flags.n, dtype=np.int32) % count if flags.label is None else np.full(flags.n, flags.label, np.int32)
    )


def program(flags: Flags, console: Console) -> None:
    """Draw, write, and say where."""
    flags.check()
    opened = open_run(flags.checkpoint)
    data, model, shape = opened.data, opened.model, opened.data.event_shape
    if not flags.out.suffix and not (panels.is_image(shape) and shape[2:] in ((), (1,), (3,), (4,))):
        raise InputError(f"examples of shape {shape} are no images: give --out a name that ends in .npz or .png")
    known = _classes(flags, opened)
    params, which = opened.parameters(raw=flags.raw)
    table = table_of(flags, model.sde, model.precond.sigma_data)
    plan = identity(flags, opened, params, table)
    manifest = flags.out.with_name(flags.out.name + ".json")
    if finished(flags.out, manifest, plan):
        console.print(f"{flags.out} is complete; nothing to do", highlight=False)
        return
    where = f"{jax.local_device_count()} x {jax.devices()[0].device_kind}"
    console.print(f"{flags.checkpoint}, step {plan['step']}, {which}; {flags.solver} on {where}", highlight=False)
    if table.num_evals < flags.evaluations:
        console.print(f"{flags.solver} cannot take {flags.evaluations} evaluations; nearest below: {table.num_evals}")
    started, parts = time.monotonic(), Parts(parts_of(flags.out), plan)
    key, work = jax.random.key(flags.seed), Work(flags.batch, parts, console)
    score = model.score(params)
    if known is not None:
        score = ss.guidance.classifier_free(score, score, flags.guidance)
    samples, broken = draw("samples", key, data, score, table, flags.n, work, known)
    if broken:
        parts.remove()
        raise InputError(f"{broken} of {flags.n} samples are not finite: take more --evaluations or another --solver")
    _write(flags.out, samples, data.levels)
    seconds = round(time.monotonic() - started, 1)
    about = {"checkpoint": str(flags.checkpoint), "data": data.name, "levels": data.levels, "shape": samples.shape}
    about |= {"dtype": str(samples.dtype), "seconds": seconds}
    write_json(manifest, {"plan": plan} | about | machine.environment("sample"))
    parts.remove()
    console.print(f"{flags.n} samples in {seconds} s: {flags.out}, {manifest}", highlight=False)


def main() -> None:
    """Command line; see ``commands.main``."""
    commands.main(Flags, "sample", program)


if __name__ == "__main__":
    main()
