"""Our solvers beside those of diffusers, k-diffusion and azula on the same exact scores.

The error is the distance of the end states, divided by alpha, from those of the exact probability flow at the noise
level where the solver ends, from the same noise (the reference: Tsit5 at 1e-10): its root mean square, which a few
starts between two modes govern, and its median. In two processes:

    chain     DDPM's 1,000 levels, betas linear from 1e-4 to 0.02: ``DiscreteVP`` and the schedulers of diffusers
    VE        sigma from 80 to 0.002: EDM's schedulers of diffusers, k-diffusion, azula

and on two laws: a ring of 8 modes of radius 1 and std 0.1, and 10 Gaussians in 64 dimensions. Everything is float64
where the library keeps it. Calls of the score are counted, not believed.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import scoresde as ss
from experiments.benchmarks.peers.processes import script
from experiments.cli.writing import write_arrays
from experiments.data.toys import RING
from scoresde.interop.projects.discrete import DEFAULTS, scheduler_sde

BUDGETS = (5, 10, 20, 40)
PROCESSES: dict[str, ss.SDE] = {"chain": scheduler_sde(DEFAULTS), "VE": ss.VE(0.002, 80.0)}
LAST = 1e-6  # sigma/alpha for "ends at the data"
TIMED, POINTS = 20, 4096
Row = dict[str, Any]

SOLVERS: dict[str, tuple[Callable[..., ss.Table], int]] = {
    "ddim": (ss.ddim, 1),
    "dpm_solver 2": (ss.dpm_solver, 1),
    "dpm_solver 3": (partial(ss.dpm_solver, order=3), 1),
    "unipc 2": (partial(ss.unipc, order=2), 1),
    "unipc 3": (ss.unipc, 1),
    "deis 3": (ss.deis, 1),
    "lms 4": (ss.solvers.lms, 1),
    "heun": (ss.heun, 2),
    "adams 4": (ss.adams, 1),
}
"""Name -> the solver, its evaluations a step."""
GRIDS = {"log-SNR": ss.log_snr_grid, "Karras": ss.karras_grid, "angle": ss.angle_grid}


def mixtures() -> dict[str, dict[str, np.ndarray]]:
    """Means, stds and weights, by name."""
    rng = np.random.default_rng(0)
    many = 0.6 * rng.normal(size=(10, 64)), np.linspace(0.2, 0.5, 10), rng.dirichlet(np.full(10, 3.0))
    names = ("means", "stds", "weights")
    return {name: dict(zip(names, parts, strict=True)) for name, parts in (("ring", RING), ("64-D", many))}


def tables(sde: ss.SDE, budget: int) -> Iterator[tuple[str, str, ss.Table, bool]]:
    """Solver, grid, table of at most ``budget`` evaluations, and whether its last one returns E[x_0 | x_t]."""
    yield "best_solver", "its own", ss.best_solver(sde, budget), False
    for name, (solver, evaluations) in SOLVERS.items():
        for word, grid in GRIDS.items():
            yield name, word, solver(sde, grid(sde, budget // evaluations)), False
            if word != "angle":
                table = solver(sde, grid(sde, (budget - 1) // evaluations))
                yield name, f"{word}, denoised", ss.with_denoising(sde, table), True


class Reference:
    """Distances from the exact flow of a mixture from ``noise`` (n, D)."""

    def __init__(self, mixture: ss.GaussianMixture, noise: np.ndarray):
        self.mixture, self.noise = mixture, noise
        self.ends: dict[tuple[str, float], np.ndarray] = {}

    def start(self, process: str) -> tuple[np.ndarray, float, float]:
        """x at t_max, alpha and sigma/alpha there."""
        sde = PROCESSES[process]
        alpha, sigma = float(sde.alpha(sde.t_max)), float(sde.sigma(sde.t_max))
        return sigma * self.noise, alpha, sigma / alpha

    def exact(self, process: str, end: float) -> np.ndarray:
        """x/alpha of the exact flow where sigma/alpha = end; the flow is that of a VE SDE between these levels."""
        key = process, float(f"{max(end, LAST):.4e}")
        if key not in self.ends:
            x, alpha, start = self.start(process)
            sde = ss.VE(key[1], start)
            flow = partial(ss.probability_flow, rtol=1e-10, atol=1e-10, max_steps=5000)
            solved = flow(sde, self.mixture.score(sde), x / alpha, sde.t_max, sde.t_min)
            assert bool(jnp.all(solved.success)), solved.message
            self.ends[key] = np.asarray(solved.x)
        return self.ends[key]

    def errors(self, process: str, x: np.ndarray, end: float) -> dict[str, float]:
        """Of end states x/alpha where sigma/alpha = end: root mean square and median of their distances."""
        distance = np.linalg.norm(x - self.exact(process, end), axis=1)
        return {"rms": float(np.sqrt(np.mean(distance**2))), "median": float(np.median(distance))}


def ours(reference: Reference, budgets: tuple[int, ...] = BUDGETS) -> list[Row]:
    """A row for each process, solver, grid and budget."""
    rows = []
    for process, sde in PROCESSES.items():
        score, x = reference.mixture.score(sde), jnp.asarray(reference.start(process)[0])
        alpha, sigma = float(sde.alpha(sde.t_min)), float(sde.sigma(sde.t_min))
        for budget in budgets:
            for name, grid, table, denoised in tables(sde, budget):
                padded = ss.solvers.padded(table, num_evals=max(budgets), history=5)  # all tables compile once
                got = np.asarray(ss.integrate(jax.random.key(0), score, padded, x))
                end = (got, 0.0) if denoised else (got / alpha, sigma / alpha)
                row = {"process": process, "library": "scoresde", "solver": name, "grid": grid, "budget": budget}
                rows.append(row | {"evaluations": table.num_evals} | reference.errors(process, *end))
    return rows


def theirs(reference: Reference, python: Path, law: dict[str, np.ndarray]) -> list[Row]:
    """The same of the peers."""
    with tempfile.TemporaryDirectory() as folder:
        given, got = Path(folder) / "in.npz", Path(folder) / "out.npz"
        write_arrays(given, law | {"noise": reference.noise, "budgets": np.array(BUDGETS)})
        rows = script(python, "solvers.py", given, got)
        with np.load(got) as ends:
            for i, row in enumerate(rows):
                row |= reference.errors(row["process"], ends[str(i)], row.pop("end"))
    return rows


def seconds(mixture: ss.GaussianMixture, repeats: int, points: int = POINTS) -> list[Row]:
    """Wall time of ``TIMED`` evaluations for so many points: the first call, which compiles, and later ones."""
    chain = PROCESSES["chain"]
    score, x = mixture.score(chain), jax.random.normal(jax.random.key(0), (points, *mixture.event_shape))

    def timed(make: Callable[[], Callable[[], Any]]) -> dict[str, float]:
        started = time.perf_counter()
        run = make()
        taken = []
        for _ in range(1 + repeats):
            jax.block_until_ready(run())
            taken.append(time.perf_counter() - started)
            started = time.perf_counter()
        return {"first_s": taken[0], "later_s": float(np.median(taken[1:]))}

    def alone() -> Callable[[], Any]:
        bare = jax.jit(lambda score, x: jax.lax.scan(lambda x, _: (x + 0 * score(x, 0.5), None), x, length=TIMED)[0])
        return lambda: bare(score, x)

    def solver(make: Callable[[], ss.Table]) -> Callable[[], Any]:
        table = make()
        return lambda: ss.integrate(jax.random.key(0), score, table, x)

    found = {"the score alone": timed(alone)}
    choices = {
        "best_solver": lambda: ss.best_solver(chain, TIMED),
        "dpm_solver 2, log-SNR": lambda: ss.dpm_solver(chain, ss.log_snr_grid(chain, TIMED)),
    }
    found |= {name: timed(partial(solver, make)) for name, make in choices.items()}
    return [{"library": "scoresde", "solver": name} | times for name, times in found.items()]


def measure(python: Path, examples: int, repeats: int) -> dict[str, Any]:
    """Everything that the table of solvers holds."""
    rows = []
    for name, law in mixtures().items():
        with jax.enable_x64(True):
            noise = np.random.default_rng(1).normal(size=(examples, law["means"].shape[1]))
            reference = Reference(ss.GaussianMixture(**law), noise)
            rows += [{"law": name} | row for row in theirs(reference, python, law) + ours(reference)]
    law = mixtures()["ring"]
    times = seconds(ss.GaussianMixture(**law), repeats)
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / "in.npz"
        write_arrays(given, law | {"noise": np.zeros((POINTS, 2))})
        times += script(python, "solvers.py", given, Path(folder) / "none", "--seconds", repeats)
    return {"examples": examples, "rows": rows, "points": POINTS, "seconds": times}
