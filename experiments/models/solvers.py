"""What every program that draws from a trained model is told: the model, the solver by its word, and the seed."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

import scoresde as ss
from experiments.cli.errors import InputError
from experiments.data.labels import class_of
from experiments.models.saved import Opened

SolverWord = Literal[
    "best", "adams", "ancestral", "ddim", "deis", "dpm", "dpm-single", "euler-maruyama", "heun", "ipndm", "lms",
    "predictor-corrector", "reverse-diffusion", "sa", "seeds", "unipc",
]  # fmt: skip
GridWord = Literal["angle", "beta", "karras", "log-snr", "quadratic", "shifted", "uniform"]


class Solver(NamedTuple):
    """(sde, grid) -> table; the grid where --grid is not given; the flags that it takes besides."""

    table: Callable[..., ss.Table]
    grid: GridWord = "log-snr"
    takes: tuple[str, ...] = ()


def _denoised(solver: Callable[..., ss.Table], sde: ss.SDE, grid: np.ndarray, **settings: float) -> ss.Table:
    return ss.with_denoising(sde, solver(sde, grid, **settings))


SETTINGS = ("eta", "snr")  # flags of some solvers
BEST: Literal["best"] = "best"  # ss.best_solver, which chooses its grid
SOLVERS: dict[SolverWord, Solver] = {
    "adams": Solver(partial(ss.adams, order=3), "angle"),
    "ancestral": Solver(ss.ancestral),
    "ddim": Solver(ss.ddim, takes=("eta",)),
    "deis": Solver(ss.deis),
    "dpm": Solver(ss.dpm_solver, takes=("eta",)),
    "dpm-single": Solver(ss.solvers.dpm_solver_single),
    "euler-maruyama": Solver(partial(_denoised, ss.euler_maruyama)),
    "heun": Solver(ss.heun, "karras"),
    "ipndm": Solver(ss.solvers.ipndm),
    "lms": Solver(ss.solvers.lms),
    "predictor-corrector": Solver(partial(_denoised, ss.predictor_corrector), takes=("snr",)),
    "reverse-diffusion": Solver(partial(_denoised, ss.reverse_diffusion)),
    "sa": Solver(ss.solvers.sa_solver),
    "seeds": Solver(partial(ss.solvers.seeds, noise_prediction=False)),
    "unipc": Solver(ss.unipc),
}
GRIDS: dict[GridWord, Callable[[ss.SDE, int], np.ndarray]] = {
    "angle": ss.angle_grid,
    "beta": ss.grids.beta_grid,
    "karras": ss.karras_grid,
    "log-snr": ss.log_snr_grid,
    "quadratic": ss.grids.quadratic_grid,
    "shifted": ss.grids.shifted_grid,
    "uniform": ss.uniform_grid,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SolverFlags:
    """The flags that choose a solver."""

    HEADING: ClassVar[str] = "solver"

    solver: SolverWord = BEST
    """The solver; best is deterministic and chooses its grid."""
    evaluations: int = 20
    """Network evaluations a sample; where a solver cannot take so many exactly, the nearest number below."""
    grid: GridWord | None = None
    """Times of evaluation; by default those that suit the solver."""
    eta: float | None = None
    """Fresh noise of ddim and dpm: 0 for the probability flow, 1 for the reverse SDE."""
    snr: float | None = None
    """Size of the corrector's Langevin steps in predictor-corrector, 0.16 by default."""

    def check(self) -> None:
        """Raise InputError for the first flag that cannot be."""
        self.at_least(evaluations=1)
        if self.solver == BEST and self.grid is not None:
            raise InputError("--solver best chooses its grid: drop --grid, or name a solver")
        takes = () if self.solver == BEST else SOLVERS[self.solver].takes
        for flag in SETTINGS:
            value = getattr(self, flag)
            if value is not None and flag not in takes:
                words = ", ".join(name for name, solver in SOLVERS.items() if flag in solver.takes)
                raise InputError(f"--{flag} has no meaning for --solver {self.solver}; it is for {words}")

    def at_least(self, **lowest: int) -> None:
        """Raise InputError for the first of these flags that is given and below its lowest value."""
        for name, low in lowest.items():
            if (value := getattr(self, name)) is not None and value < low:
                raise InputError(f"--{name.replace('_', '-')} must be at least {low}, got {value}")

    def table(self, sde: ss.SDE, sigma_data: float = 1.0) -> ss.Table:
        """The largest table whose evaluations are at most ``--evaluations``."""
        wanted = self.evaluations
        if self.solver == BEST:
            return ss.best_solver(sde, wanted, sigma_data=sigma_data)
        solver = SOLVERS[self.solver]
        grid = GRIDS[self.grid or solver.grid]
        settings = {flag: getattr(self, flag) for flag in SETTINGS if getattr(self, flag) is not None}

        def table(steps: int) -> ss.Table:
            try:
                return solver.table(sde, grid(sde, steps), **settings)
            except ValueError as error:
                raise InputError(f"--solver {self.solver}: {error}") from None

        least, following = (table(steps).num_evals for steps in (1, 2))  # so many more for each step
        if wanted < least:
            raise InputError(f"--solver {self.solver} takes at least {least} evaluations, got --evaluations {wanted}")
        return table(1 + (wanted - least) // (following - least))

    def chosen(self) -> dict[str, Any]:
        """The flags as they are meant, for a manifest."""
        grid = self.grid or (None if self.solver == BEST else SOLVERS[self.solver].grid)
        return {"solver": self.solver, "grid": grid} | {flag: getattr(self, flag) for flag in SETTINGS}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrawsFlags:
    """How it is drawn."""

    HEADING: ClassVar[str] = "drawing"

    seed: int = 0
    """Seed of everything random."""
    batch: int = 256
    """Samples drawn at once, over all devices."""
    raw: bool = False
    """Take the last parameters instead of their moving average."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrawingFlags(SolverFlags, DrawsFlags):
    """The flags of every program that draws from a trained model."""

    checkpoint: Path
    """Folder of a run, or its checkpoint."""
    out: Path
    """Where the result goes."""

    def check(self) -> None:
        """Raise InputError for the first flag that cannot be."""
        self.at_least(seed=0, batch=1)
        super().check()

    def plan(self) -> dict[str, Any]:
        """The part of a plan that says by which parameters and solver, and from which seed."""
        return {"parameters": "raw" if self.raw else "average"} | self.chosen() | {"seed": self.seed}


def class_count(opened: Opened) -> int:
    """How many classes a model knows, 0 for none."""
    known = opened.config.objective.condition != "none" and opened.data.labels is not None
    return int(opened.data.labels.classes or 0) if known and opened.data.labels is not None else 0


def told(opened: Opened, label: str | None) -> int | None:
    """The class --label, None if it is not given; InputError if the model knows no classes, or not this one."""
    if label is not None and not class_count(opened):
        raise InputError("the model knows no classes: drop --label, or train with --condition class")
    return class_of("label", label, opened.data.labels, opened.data.name)
