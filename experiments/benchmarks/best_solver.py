"""The best deterministic solver per number of evaluations, over five SDEs and four mixtures.

    python -m experiments.benchmarks.best_solver

prints two tables and writes them to ``experiments/benchmarks/best_solver.md``: the ground of ``ss.best_solver``. Exact
scores, float64; errors are mean distances of the end points at t_min from those of the exact flow (UniPC-3 in 1,000
steps). The mixtures are a ring of 8 modes of radius 1 and std 0.3, 0.1 and 0.03, and 10 Gaussians in 16 dimensions.
Each case, an SDE and a mixture, counts alike: an error is divided by the least that any textbook solver and grid has in
that case, and averaged over the cases as a geometric mean.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np
import tyro

import scoresde as ss

Make = Callable[[ss.SDE, int], ss.Table]
PAGE = Path(__file__).with_suffix(".md")
BUDGETS = (5, 8, 10, 15, 20, 30, 50)
SDES = (ss.VP(), ss.SubVP(), ss.VE(), ss.Cosine(), ss.RectifiedFlow())
HISTORY = 6  # longer than any solver's here, so that all tables of one length stack


def _on(solver: Callable[[ss.SDE, np.ndarray], ss.Table], grid: Callable[[ss.SDE, int], np.ndarray]) -> Make:
    return lambda sde, n: solver(sde, grid(sde, n))


_FAMILIES: dict[str, Callable[[ss.SDE, np.ndarray], ss.Table]] = {
    "ddim": ss.ddim,
    **{f"deis {p}": partial(ss.deis, order=p) for p in (2, 3, 4)},
    **{f"dpm_solver {p}": partial(ss.dpm_solver, order=p) for p in (2, 3)},
    **{f"unipc {p}": partial(ss.unipc, order=p) for p in (2, 3)},
}
TEXTBOOK = {
    f"{name}, {grid}": _on(solver, make)
    for name, solver in _FAMILIES.items()
    for grid, make in (("log-SNR", ss.log_snr_grid), ("Karras", ss.karras_grid))
}
OURS: dict[str, Make] = {
    "best_solver": ss.best_solver,
    "adams 3 without corrector, angle": _on(partial(ss.adams, order=3, corrector=False), ss.angle_grid),
    **{f"adams {p}, angle": _on(partial(ss.adams, order=p), ss.angle_grid) for p in (2, 3, 4, 5)},
    "adams 4, log-SNR": _on(ss.adams, ss.log_snr_grid),
}


def mixtures() -> dict[str, ss.GaussianMixture]:
    """The data, by name."""
    angles = 2 * np.pi * np.arange(8) / 8
    circle = np.stack([np.cos(angles), np.sin(angles)], 1)
    rng = np.random.default_rng(0)
    many = ss.GaussianMixture(
        0.6 * rng.normal(size=(10, 16)), np.linspace(0.2, 0.5, 10), rng.dirichlet(np.full(10, 3.0))
    )
    rings = {f"ring, std {std}": ss.GaussianMixture(circle, np.full(8, std), np.ones(8)) for std in (0.3, 0.1, 0.03)}
    return rings | {"10 Gaussians in 16-D": many}


def measure(sde: ss.SDE, mixture: ss.GaussianMixture, budgets: tuple[int, ...], starts: int, fine: int) -> np.ndarray:
    """The error of every solver, textbook ones first: (solvers, budgets)."""
    score, key = mixture.score(sde), jax.random.key(0)
    x = sde.prior_sample(jax.random.key(1), (starts, *mixture.event_shape))
    exact = ss.integrate(key, score, ss.unipc(sde, ss.log_snr_grid(sde, fine)), x)

    def error(table: ss.Table) -> jax.Array:
        return ss.solvers.mean_distance(ss.integrate(key, score, table, x), exact)

    errors = []
    for n in budgets:
        tables = [ss.solvers.padded(make(sde, n), history=HISTORY) for make in (*TEXTBOOK.values(), *OURS.values())]
        errors.append(jax.vmap(error)(jax.tree.map(lambda *v: np.stack(v), *tables)))
    return np.stack(errors, 1)


def main(out: Path = PAGE, starts: int = 64, budgets: tuple[int, ...] = BUDGETS, fine: int = 1000) -> None:
    """Print the tables and write them.

    Args:
        out: the file.
        starts: how many points are carried from the prior in each case.
        budgets: numbers of evaluations.
        fine: steps of the reference.
    """
    with jax.enable_x64(True):
        data = mixtures()
        errors = np.array([[measure(sde, m, budgets, starts, fine) for m in data.values()] for sde in SDES])
    relative = np.log(errors / errors[:, :, : len(TEXTBOOK)].min(2, keepdims=True))
    mean, worst = np.exp(relative.mean((0, 1))), np.exp(relative.max((0, 1)))

    def table(title: str, rows: dict[str, list[str]]) -> list[str]:
        head = [f"| {title} | " + " | ".join(map(str, budgets)) + " |", "|---" * (1 + len(budgets)) + "|"]
        return head + [f"| {name} | " + " | ".join(row) + " |" for name, row in rows.items()]

    names = [*TEXTBOOK, *OURS]
    ratios = {
        names[i]: [f"{a:.2f} ({b:.2g})" for a, b in zip(mean[i], worst[i], strict=True)]
        for i in np.argsort(np.log(mean).mean(1))
    }
    best = errors[:, :, names.index("best_solver")]
    of_best = {
        f"{name}, {type(sde).__name__}": [f"{e:.1e}" for e in best[i, j]]
        for j, name in enumerate(data)
        for i, sde in enumerate(SDES)
    }
    page = [
        "# The best solver, measured",
        "",
        "Written by `python -m experiments.benchmarks.best_solver`, which says what is measured. By number of",
        "evaluations: the error over the least of any textbook solver and grid in the same case, geometric mean over",
        "the cases (worst case in brackets). Below 1 is better than the best textbook solver chosen for every case.",
        "",
        *table("solver, grid", ratios),
        "",
        "The errors of `ss.best_solver`:",
        "",
        *table("data, SDE", of_best),
    ]
    print("\n".join(page[2:]))
    out.write_text("\n".join(page) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
