"""Our log-density beside SciPy's RK45, as score_sde integrates it, and torchdiffeq's dopri5, on exact scores of VP.

The density is that at t_min = 1e-5, score_sde's, and the error is against the mixture's own density there, in nats; the
prior's mismatch is part of it, and not of ``solver``, the mean modulus from the same flow solved to 1e-9. Three batches
of samples of that law:

    ring                  8 modes of std 0.1 on a circle of radius 1
    ring and an outlier   the same examples but the last, which is the point (2, 2)
    16-D                  10 Gaussians in 16 dimensions

Tolerances are rtol = atol = 1e-5 everywhere, float64. The seconds are those of the batch on all cores.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import scoresde as ss
from experiments.benchmarks.peers.processes import script
from experiments.cli.writing import write_arrays
from experiments.data.toys import RING

SDE, TOLERANCE, OUTLIER = ss.VP(t_min=1e-5), 1e-5, (2.0, 2.0)
GRIDS = (30, 40, 60, 90)
Row = dict[str, Any]


def laws() -> dict[str, ss.GaussianMixture]:
    """The mixtures, by the names of the batches."""
    rng = np.random.default_rng(0)
    many = 0.6 * rng.normal(size=(10, 16)), np.linspace(0.2, 0.5, 10), rng.dirichlet(np.full(10, 3.0))
    ring = ss.GaussianMixture(*RING)
    return {"ring": ring, "ring and an outlier": ring, "16-D": ss.GaussianMixture(*many)}


def roads(score: Any) -> Iterator[tuple[str, str, Callable[[jax.Array], Any]]]:
    """Name, divergence, and what gives ``log_prob`` and ``num_evals``."""
    key = jax.random.key(0)
    solve = partial(ss.log_likelihood, key, SDE, score, rtol=TOLERANCE, atol=TOLERANCE)
    yield "log_likelihood", "exact", partial(solve, divergence=ss.exact_divergence)
    yield "log_likelihood", "Hutchinson", partial(solve, divergence=ss.hutchinson(1))
    for n in GRIDS:
        grid = ss.angle_grid(SDE, n - 1, rho=0.28, share=0.25)
        on_grid = partial(ss.table_log_likelihood, key, SDE, score, grid=grid, estimate_error=False)
        yield "table_log_likelihood", "exact", on_grid


class Truth(NamedTuple):
    """The log-densities of a mixture and of its probability flow."""

    density: np.ndarray
    flow: np.ndarray

    def errors(self, log_prob: Any) -> Row:
        """Mean, mean modulus, greatest modulus and that of the last example from the density; from the flow."""
        e, solver = np.asarray(log_prob) - self.density, np.abs(np.asarray(log_prob) - self.flow).mean()
        off = np.abs(e)
        return {"mean": e.mean(), "modulus": off.mean(), "greatest": off.max(), "last": off[-1], "solver": solver}


def batch(name: str, mixture: ss.GaussianMixture, examples: int) -> tuple[jax.Array, Truth]:
    """The examples and their log-densities."""
    law, key = mixture.marginal(SDE, SDE.t_min), jax.random.key(1)
    x = law.sample(key, examples)
    x = x.at[-1].set(jnp.array(OUTLIER)) if "outlier" in name else x
    exact: dict[str, Any] = {"divergence": ss.exact_divergence, "rtol": 1e-9, "atol": 1e-9}
    flow = ss.log_likelihood(key, SDE, mixture.score(SDE), x, **exact)
    assert bool(jnp.all(flow.success)), flow.message
    return x, Truth(np.asarray(law.log_prob(x)), np.asarray(flow.log_prob))


def timed(run: Callable[[jax.Array], Any], x: jax.Array) -> tuple[float, Any]:
    """Seconds of a call, and what it found."""
    started = time.perf_counter()
    found = run(x)
    jax.block_until_ready(found.log_prob)
    return time.perf_counter() - started, found


def ours(score: Any, x: jax.Array, truth: Truth) -> list[Row]:
    """A row for each of our roads; evaluations are the mean over examples and the most of any."""
    jax.clear_caches()  # first calls compile
    rows = []
    for name, divergence, run in roads(score):
        (first, _), (later, found) = timed(run, x), timed(run, x)
        evals = np.asarray(found.num_evals)
        row = {"library": "scoresde", "road": name, "divergence": divergence}
        row |= {"evaluations": float(evals.mean()), "most": int(evals.max())}
        rows.append(row | {"first_s": first, "later_s": later} | truth.errors(found.log_prob))
    return rows


def theirs(python: Path, mixture: ss.GaussianMixture, x: jax.Array, truth: Truth) -> list[Row]:
    """The same of the peers."""
    with tempfile.TemporaryDirectory() as folder:
        given, got = Path(folder) / "in.npz", Path(folder) / "out.npz"
        law = {"means": mixture.means, "stds": mixture.stds, "weights": mixture.weights, "x": x}
        law |= {"t_min": SDE.t_min, "tolerance": TOLERANCE}
        write_arrays(given, {name: np.asarray(value) for name, value in law.items()})
        rows = script(python, "likelihood.py", given, got)
        with np.load(got) as found:
            return [row | truth.errors(found[str(i)]) for i, row in enumerate(rows)]


def measure(python: Path, examples: int) -> dict[str, Any]:
    """Everything that the tables of likelihoods hold."""
    rows = []
    with jax.enable_x64(True):
        for name, mixture in laws().items():
            x, truth = batch(name, mixture, examples)
            found = theirs(python, mixture, x, truth) + ours(mixture.score(SDE), x, truth)
            rows += [{"batch": name} | row for row in found]
    return {"examples": examples, "rows": rows}
