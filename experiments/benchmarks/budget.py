"""Whether the error budget of a trained network's likelihood adds up, on held-out examples of a finished run.

    python -m experiments.run --sde vp
    python -m experiments.benchmarks.budget runs/digits-vp

One draw of the dequantisation noise is fixed, so that every figure is of the same continuous data, in bits per
dimension (nats for continuous data). The exact divergence at a hundredth of the tolerance stands for the truth: the
solver's share of the budget must cover what a tighter solve changes, the probes' share what the exact divergence
changes.
"""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import scoresde as ss
from experiments.measures.likelihoods import TOLERANCE
from experiments.models import saved


def main(folder: tyro.conf.Positional[Path], examples: int = 100, probes: int = 8) -> None:
    """Print the comparison and the budget.

    Args:
        folder: a run's folder.
        examples: held-out examples used.
        probes: probes of the estimated divergence, at least 2.
    """
    opened = saved.open_run(folder)
    model, data = opened.model, saved.examples(opened)
    score = model.score(opened.state.ema)
    key, key_noise = jax.random.split(jax.random.key(0))
    levels = jnp.asarray(data.held_out[:examples])
    noise = None if data.bin_width is None else jax.random.uniform(key_noise, levels.shape)
    x = data.to_model(levels, noise)
    dims = int(np.prod(data.event_shape))
    unit = 1.0 if data.bin_width is None else dims * np.log(2)

    run = partial(ss.log_likelihood, key, model.sde, score, x, sigma_data=model.precond.sigma_data)
    truth = run(divergence=ss.exact_divergence, rtol=TOLERANCE / 100, atol=TOLERANCE / 100)
    exact = run(divergence=ss.exact_divergence, rtol=TOLERANCE / 10, atol=TOLERANCE / 10)  # what a budget reports
    budget = ss.error_budget(
        key,
        model.sde,
        score,
        x,
        divergence=ss.hutchinson(probes),
        rtol=TOLERANCE,
        atol=TOLERANCE,
        sigma_data=model.precond.sigma_data,
    )
    change = np.asarray(budget.log_prob - truth.log_prob)
    solver, spread = np.asarray(budget.solver), np.asarray(budget.probes)
    error = np.sqrt(np.sum(spread**2)) / len(change)
    name = "nats" if unit == 1 else "bits/dim"
    print(f"{len(x)} examples of {folder}, {name}; tolerance {TOLERANCE:g}, {probes} probes")
    print(f"exact divergence              {-np.mean(exact.log_prob) / unit:+.5f} (up to the width of the bins)")
    print(f"Hutchinson - exact            {-np.mean(change) / unit:+.5f}, standard error {error / unit:.5f}")
    print(f"    in standard errors of each example: root mean square {np.sqrt(np.mean((change / spread) ** 2)):.2f}")
    print(f"budget - tighter, exact       {-np.mean(exact.log_prob - truth.log_prob) / unit:+.5f}")
    covered = np.mean(np.abs(exact.log_prob - truth.log_prob) <= solver)
    print(f"    the budget's solver share   {np.mean(solver) / unit:.5f}, covers {covered:.0%} of the examples")
    print(budget.report())


if __name__ == "__main__":
    tyro.cli(main)
