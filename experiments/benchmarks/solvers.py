"""Every solver at 5 to 100 evaluations beside the exact answer, with its stated and its measured order.

    python -m experiments.benchmarks.solvers

prints one table for each of two grids and writes them to ``experiments/benchmarks/solvers.md``. Everything in float64
with exact scores, for VP:

    flow        the mean distance of the end points from those of the exact flow, on a ring of 8 modes of std 0.3 and
                radius 1, for 64 starts from the prior (the reference: UniPC-4 in 2,000 steps);
    stochastic  the distance of the result's mean and std from those of x at t_min, for data N(0.7, 0.4^2) and the exact
                marginal at t_max; no sampling: every solver is linear there, so the law follows from the table.

The order is fitted between 200 and 400 evaluations. Where the number of evaluations is not a multiple of those of a
step, fewer are made.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np
import tyro

import scoresde as ss
from experiments.measures.exact import flow_error, law_error

Solver = Callable[[ss.SDE, np.ndarray], ss.Table]
PAGE = Path(__file__).with_suffix(".md")
BUDGETS = (5, 10, 20, 50, 100)

INTRODUCTION = (
    "# Solvers, measured",
    "",
    "Written by `python -m experiments.benchmarks.solvers`, which says what the errors are. The last columns are the",
    "error at so many evaluations.",
    "",
    "(!) marks a measured order more than 0.2 from the stated one: terms of higher order are not small yet between 200",
    "and 400 evaluations, or the leading one cancels, as for `seeds` in the noise on equal log-SNR steps and this",
    "Gaussian. Its noise grows as e^h and needs small steps; with few, use it in the data.",
    "",
    "`heun` averages slopes in rho = sigma/alpha, which changes by a large factor in each of a few steps: below 50",
    "evaluations `alpha = 1/2` or a multistep solver is many times better on either grid.",
)

# Name, solver, evaluations a step, stated order.
FLOW: tuple[tuple[str, Solver, int, int], ...] = (
    ("ddim", ss.ddim, 1, 1),
    ("heun", ss.heun, 2, 2),
    ("heun, alpha = 2/3 (Ralston)", partial(ss.heun, alpha=2 / 3), 2, 2),
    ("heun, alpha = 1/2 (midpoint)", partial(ss.heun, alpha=1 / 2), 2, 2),
    ("dpm_solver 2 (2M)", partial(ss.dpm_solver, order=2), 1, 2),
    ("dpm_solver 3 (3M)", partial(ss.dpm_solver, order=3), 1, 3),
    ("dpm_solver 2, noise", partial(ss.dpm_solver, order=2, noise_prediction=True), 1, 2),
    ("dpm_solver_single 2 (2S)", partial(ss.solvers.dpm_solver_single, order=2), 2, 2),
    ("dpm_solver_single 3 (3S)", partial(ss.solvers.dpm_solver_single, order=3), 3, 3),
    ("dpm_solver_single 2, noise", partial(ss.solvers.dpm_solver_single, order=2, noise_prediction=True), 2, 2),
    ("dpm_solver_single 3, noise", partial(ss.solvers.dpm_solver_single, order=3, noise_prediction=True), 3, 3),
    *((f"deis {p}", partial(ss.deis, order=p), 1, p) for p in (2, 3, 4)),
    *((f"lms {p}", partial(ss.solvers.lms, order=p), 1, p) for p in (2, 3, 4)),
    *((f"ipndm {p}", partial(ss.solvers.ipndm, order=p), 1, 2) for p in (2, 3, 4)),
    *((f"unipc {p}", partial(ss.unipc, order=p), 1, p + 1) for p in (1, 2, 3, 4)),
    *((f"unipc {p}, bh1", partial(ss.unipc, order=p, B=ss.solvers.bh1), 1, p + 1) for p in (1, 2)),
    *((f"unipc {p}, bh2", partial(ss.unipc, order=p, B=ss.solvers.bh2), 1, p + 1) for p in (1, 2)),
    *((f"adams {p}", partial(ss.adams, order=p), 1, p + 1) for p in (2, 3, 4)),
    ("unipc 3, no corrector", partial(ss.unipc, order=3, corrector=False), 1, 3),
)
STOCHASTIC: tuple[tuple[str, Solver, int, int], ...] = (
    ("euler_maruyama", ss.euler_maruyama, 1, 1),
    ("reverse_diffusion", ss.reverse_diffusion, 1, 1),
    ("ancestral", ss.ancestral, 1, 1),
    ("ddim, eta = 0.5", partial(ss.ddim, eta=0.5), 1, 1),
    ("heun, churn = 1", partial(ss.heun, churn=1.0), 2, 2),
    ("dpm_solver 2, eta = 1 (2M SDE)", partial(ss.dpm_solver, order=2, eta=1.0), 1, 2),
    ("dpm_solver 3, eta = 1", partial(ss.dpm_solver, order=3, eta=1.0), 1, 2),
    ("sa_solver 3, tau = 1", ss.solvers.sa_solver, 1, 2),
    ("sa_solver 3, tau = 0.5", partial(ss.solvers.sa_solver, tau=0.5), 1, 2),
    ("seeds 1", partial(ss.solvers.seeds, order=1), 1, 1),
    ("seeds 2", ss.solvers.seeds, 2, 2),
    ("seeds 2, data", partial(ss.solvers.seeds, noise_prediction=False), 2, 2),
    ("ancestral_split of ddim", partial(ss.solvers.ancestral_split, solver=ss.ddim), 1, 1),
    ("ancestral_split of 2S", ss.solvers.ancestral_split, 2, 2),
)


def main(out: Path = PAGE, starts: int = 64, budgets: tuple[int, ...] = BUDGETS) -> None:
    """Print the tables and write them.

    Args:
        out: the file.
        starts: how many points are carried from the prior.
        budgets: numbers of evaluations.
    """
    sde = ss.VP()
    angles = 2 * np.pi * np.arange(8) / 8
    with jax.enable_x64(True):
        ring = ss.GaussianMixture(np.stack([np.cos(angles), np.sin(angles)], 1), np.full(8, 0.3), np.ones(8))
        score, x = ring.score(sde), sde.prior_sample(jax.random.key(1), (starts, 2))
        exact = ss.integrate(jax.random.key(0), score, ss.unipc(sde, ss.log_snr_grid(sde, 2000), 4), x)
        flow = partial(flow_error, sde, score, x, exact)
        kinds = ("flow", FLOW, flow), ("stochastic", STOCHASTIC, partial(law_error, sde))
        lines = []
        for title, grid in (("Log-SNR grid", ss.log_snr_grid), ("Karras grid, rho = 7", ss.karras_grid)):
            lines += ["", f"## {title}", "", *_header(budgets)]
            print(title)
            for kind, solvers, error in kinds:
                for name, solver, evals, order in solvers:
                    errors = [error(solver(sde, grid(sde, n // evals))) for n in (*budgets, 200, 400)]
                    measured = np.log(errors[-2] / errors[-1]) / np.log((400 // evals) / (200 // evals))
                    note = "" if abs(measured - order) <= 0.2 else " (!)"
                    row = [name, kind, str(evals), str(order), f"{measured:.2f}{note}"]
                    lines.append("| " + " | ".join([*row, *(f"{e:.1e}" for e in errors[:-2])]) + " |")
                    print(lines[-1], flush=True)
    out.write_text("\n".join([*INTRODUCTION, *lines]) + "\n")


def _header(budgets: tuple[int, ...]) -> list[str]:
    names = ["solver", "type", "evaluations a step", "stated order", "measured", *map(str, budgets)]
    return ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]


if __name__ == "__main__":
    tyro.cli(main)
