"""How far each method for inverse problems is from the posterior, where that is known exactly.

    python -m experiments.benchmarks.inverse

prints the table and writes it to ``experiments/benchmarks/inverse.md``. The prior is a mixture of three Gaussians in
four dimensions with its exact score; two linear measurements of one point, with noise; then the posterior is a mixture
too (``GaussianMixture.posterior``). The score methods run under ancestral sampling on the log-SNR grid, RePaint and
DiffPIR under their own samplers on it, SMC with as many particles as the others have samples. Each cell has the three
errors of ``experiments.measures.exact.posterior_errors``. ``exact`` are as many exact draws: what chance alone does.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import scoresde as ss
from experiments.measures.exact import posterior_errors

PAGE = Path(__file__).with_suffix(".md")
MEANS = np.array([[1.0, 1.0, 0.0, -1.0], [-1.0, 0.5, 1.0, 0.5], [0.5, -1.0, -1.0, 1.0]])
STDS = np.array([[0.3, 0.5, 0.4, 0.6], [0.5, 0.3, 0.6, 0.4], [0.4, 0.6, 0.3, 0.5]])
WEIGHTS = np.array([0.5, 0.3, 0.2])
OPERATORS = {
    "mask": np.eye(4)[:2],
    "means of pairs": np.kron(np.eye(2), np.full((1, 2), 0.5)),
    "random sums": np.random.default_rng(0).normal(size=(2, 4)) / np.sqrt(2),
}
SDES = (ss.VP(), ss.VE(), ss.RectifiedFlow())
SIGMA_Y = (0.1, 0.3, 1.0)
DATA_STD = 1.0
SCORES: dict[str, Callable[..., Any]] = {
    "replacement": ss.inverse.replacement,
    "reconstruction": ss.inverse.reconstruction,
    "dps": ss.inverse.dps,
    "pigdm": partial(ss.inverse.pigdm, sigma_data=DATA_STD),
    "tmpd": ss.inverse.tmpd,
    "mmps": ss.inverse.mmps,
}
SAMPLERS: dict[str, Callable[..., Any]] = {
    "repaint": partial(ss.inverse.repaint, resamplings=4),
    "diffpir": ss.inverse.diffpir,
}


def measure(
    sde: ss.SDE, matrix: np.ndarray, sigma_y: float, *, samples: int, steps: int
) -> dict[str, tuple[float, float, float]]:
    """The errors of every method for one measurement."""
    prior = ss.GaussianMixture(MEANS, STDS, WEIGHTS)
    score, operator, grid = prior.score(sde), ss.inverse.operators.matrix(matrix), ss.log_snr_grid(sde, steps)
    noise = np.random.default_rng(1).normal(size=2)
    y = jnp.asarray(matrix @ np.array([0.4, 0.3, 0.2, -0.1]) + sigma_y * noise, float)
    posterior = prior.posterior(matrix, y, sigma_y)
    key, shape, equal = jax.random.key(0), (samples, 4), jnp.full(samples, 1 / samples)
    problem = sde, score, operator, y[None], sigma_y
    table = ss.with_denoising(sde, ss.ancestral(sde, grid))
    found = {"exact": posterior_errors(posterior, posterior.sample(key, samples), equal)}
    for name, method in SCORES.items():
        found[name] = posterior_errors(posterior, ss.sample(key, method(*problem), table, shape), equal)
    for name, sampler in SAMPLERS.items():
        found[name] = posterior_errors(posterior, sampler(key, *problem, grid, shape=shape), equal)
    x, log_weights = ss.inverse.twisted_particles(
        key, *problem, grid, particles=samples, sigma_data=DATA_STD, shape=(1, 4)
    )
    found["smc"] = posterior_errors(posterior, x[0], jnp.exp(log_weights[0]))
    return found


def main(out: Path = PAGE, samples: int = 1000, steps: int = 300, sigma_y: tuple[float, ...] = SIGMA_Y) -> None:
    """Print the table and write it.

    Args:
        out: the file.
        samples: samples, or particles, of each method and setting.
        steps: of the grid.
        sigma_y: standard deviations of the noise of the measurement.
    """
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    for sde in SDES:
        for operator, matrix in OPERATORS.items():
            for noise in sigma_y:
                found = measure(sde, matrix, noise, samples=samples, steps=steps)
                if not lines:
                    say("| SDE | operator | sigma_y | " + " | ".join(found) + " |")
                    say("|---" * (3 + len(found)) + "|")
                cells = (" ".join(f"{e:.2f}" for e in errors_) for errors_ in found.values())
                say(f"| {type(sde).__name__} | {operator} | {noise:g} | " + " | ".join(cells) + " |")
    page = [
        "# Inverse problems, measured",
        "",
        "Written by `python -m experiments.benchmarks.inverse`, which says what the three errors of a cell are: of the",
        "mean, the covariance and the mode weights, relative to the exact posterior.",
        f"{samples} samples (for smc: particles), {steps} steps.",
        "",
        *lines,
    ]
    out.write_text("\n".join(page) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
