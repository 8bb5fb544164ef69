"""The exact likelihood of a table beside a Gaussian, a Gaussian mixture and a neural spline flow given the same time.

    python -m experiments.benchmarks.tables --data csv:PATH/protein.data.csv.gz --minutes 5 --flow-python ENV/bin/python

prints mean test log-likelihoods in nats an example, of columns in units of their standard deviation over the training
part, with their standard errors over the test rows, and the paired differences to our score network. Everyone trains on
the same nine tenths of the training part and sees the rest of it, the validation part, only to choose. The time is that
of the processor, over all cores, so that it does not depend on what else the machine does.

    score network      as ``experiments.run`` trains it, steps to fill the time; at its best on the validation part by
                       the variational bound; exact divergence, probability flow
    Gaussian           of full covariance
    Gaussian mixture   full covariances by EM, components and regularisation as serve the validation part
    spline flow        ``spline_flow.py`` with the Python of --flow-python; at its best on the validation part. Also of
                       columns as the data object gives them to the score network
"""

import dataclasses
import itertools
import math
import os
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from scipy.stats import multivariate_normal
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

import scoresde as ss
from experiments.cli import commands, machine
from experiments.cli.errors import InputError
from experiments.data.dataset import Data
from experiments.data.load import TABLES, load
from experiments.measures import likelihoods
from experiments.measures.jobs import Work
from experiments.models.build import build
from experiments.models.flags import Config
from experiments.training.fit import STEPS_PER_CALL, Plan, fit, start
from scoresde.checkpoint.leaves import to_numpy

FLOW = Path(__file__).with_name("spline_flow.py")
INSTALL = "python -m venv ENV && ENV/bin/pip install flowjax, then --flow-python ENV/bin/python"
# Of the score network on the validation part: the number of checks, their rows, and what they may take of the time.
CHECKS, CHECKED_ROWS, TO_CHECK = 8, 512, 0.1
LEAST_VARIANCES, MOST_ITERATIONS = (1e-6, 1e-4, 1e-3), 200  # of the mixture
Row = tuple[np.ndarray, str, float]
"""Log-densities (n,) of the test rows in standardised units, what was chosen, processor seconds of training."""


@dataclasses.dataclass(frozen=True)
class Flags:
    """Compare the exact likelihood of a table with that of a Gaussian, a Gaussian mixture and a neural spline flow."""

    data: str
    """csv:PATH or parquet:PATH, as for experiments.run."""
    drop_columns: str | None = "few"
    """Columns to leave out, as for experiments.run; few leaves out those whose density is unbounded."""
    split: int = 0
    """The column of the test mask beside the table, from 0."""
    sde: str = "vp"
    """The forward process."""
    minutes: float = 5.0
    """Processor time to train each model, over all cores: half as long by the clock on two free cores."""
    flow_python: Path | None = None
    """Python of an environment with flowjax; without it the flow is left out."""
    examples: int | None = None
    """Test rows to evaluate, the first ones; by default all."""
    seed: int = 0
    """Seed of every model; the parts do not depend on it."""

    def check(self) -> None:
        """Raise InputError for the first flag that cannot be."""
        if self.data.partition(":")[0] not in TABLES:
            raise InputError(f"--data must be {' or '.join(f'{kind}:PATH' for kind in TABLES)}, got {self.data!r}")
        if not 0 < self.minutes < math.inf:
            raise InputError(f"--minutes must be positive, got {self.minutes}")
        if self.examples is not None and self.examples < 2:
            raise InputError(f"--examples must be at least 2, got {self.examples}")
        if self.flow_python is not None and not os.access(self.flow_python, os.X_OK):
            raise InputError(f"no Python at --flow-python {self.flow_python}; to make one: {INSTALL}")

    def config(self, folder: Path) -> Config:
        """The run of ``experiments.run`` that these flags describe."""
        given: dict[str, Any] = {name: getattr(self, name) for name in ("sde", "data", "drop_columns", "split", "seed")}
        return Config.of(**given, workdir=folder)


def split(data: Data) -> tuple[Data, np.ndarray]:
    """The data with nine tenths of their training rows, and the other rows, which are for choices."""
    order = np.random.default_rng(0).permutation(len(data.train))
    train, validation = np.split(order, [len(order) - len(order) // 10])
    return dataclasses.replace(data, train=data.train[train]), data.train[validation]


def score_network(flags: Flags, data: Data, validation: np.ndarray, x: np.ndarray, console: Console) -> Row:
    """Ours: as many steps as the time allows at the rate of the first, the best of CHECKS moments by the validation."""
    key_check, key_density = jax.random.split(jax.random.key(flags.seed))
    with tempfile.TemporaryDirectory() as folder:
        config = flags.config(Path(folder)).resolve(data)
        steps = _steps(config, data, 60 * flags.minutes)
        config = config.replace(steps=steps)
        model, kept = build(config, data), {}
        training = Plan.of(config)

        def keep(step: int, state: ss.State) -> None:
            if step % max(steps // CHECKS // STEPS_PER_CALL * STEPS_PER_CALL, STEPS_PER_CALL) == 0 or step == steps:
                kept[step] = to_numpy(state.ema)

        started = time.process_time()
        fit(training, data, model, start(training, model), console, on_state=keep)

        def value(step: int) -> float:
            score, y = model.score(kept[step]), data.to_model(validation[:CHECKED_ROWS])
            return float(np.mean(ss.likelihood_bound(key_check, model.sde, score, y).bound))

        best = max(kept, key=value)
        seconds = time.process_time() - started
    settings, work = likelihoods.Settings(probes=0), Work(256, console=console)
    values, figures = likelihoods.likelihood(key_density, data, model, model.score(kept[best]), x, settings, work)
    if figures["failed"]:
        raise InputError(f"the likelihood of {figures['failed']} test rows could not be had: {figures['message']}")
    chosen = f"{model.parameters:,} parameters, {steps} steps of {config.optimiser.batch}, best at {best}"
    return values["log_prob"] + np.sum(np.log(data.scale)), chosen, seconds


def _steps(config: Config, data: Data, seconds: float) -> int:
    """Training steps in all but TO_CHECK of so much processor time, compilation included."""
    trainer, state = (model := build(config, data)).trainer, model.init()
    examples, taken, batch = jnp.asarray(data.train), [], min(int(config.optimiser.batch or 1), len(data.train))
    for _ in range(3):  # the first compiles
        started = time.process_time()
        state, _ = trainer.run(state, examples, steps=STEPS_PER_CALL, batch_size=batch)
        jax.block_until_ready(state.params)
        taken.append(time.process_time() - started)
    return max(1, round(((1 - TO_CHECK) * seconds - taken[0]) / min(taken))) * STEPS_PER_CALL


def gaussian(train: np.ndarray, x: np.ndarray) -> Row:
    """The Gaussian of the training rows' mean and covariance."""
    started = time.process_time()
    covariance: Any = np.cov(train, rowvar=False, bias=True)
    law = multivariate_normal(train.mean(0), covariance)
    return np.atleast_1d(law.logpdf(x)), "full covariance", time.process_time() - started


def gaussian_mixture(train: np.ndarray, validation: np.ndarray, x: np.ndarray, seconds: float, seed: int) -> Row:
    """The number of components and the least variance that serve the validation rows best.

    Components are doubled until that has served nothing twice, or the time is over.
    """
    started, best, best_value, chosen, since = time.process_time(), None, -math.inf, "", 0
    doubled = [2**k for k in range(1, 20) if 10 * 2**k <= len(train)]
    for components, least in itertools.product(doubled, LEAST_VARIANCES):
        if time.process_time() - started > seconds or since == 2 * len(LEAST_VARIANCES):
            break
        mixture = GaussianMixture(components, reg_covar=least, max_iter=MOST_ITERATIONS, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            value = mixture.fit(train).score(validation)
        since += 1
        if value > best_value:
            best, best_value, since = mixture, value, 0
            chosen = f"{components} components, {least:g} added to their variances"
    if best is None:
        raise InputError(f"{len(train)} training rows are too few for a mixture: expected at least 20")
    return best.score_samples(x), chosen, time.process_time() - started


def spline_flow(flags: Flags, train: Any, validation: Any, x: Any, log_det: Any = 0.0) -> Row:
    """What ``spline_flow.py`` makes of arrays (n, D); ``log_det`` is added, of what was done to the rows x."""
    with tempfile.TemporaryDirectory() as folder:
        arrays, out = Path(folder) / "arrays.npz", Path(folder) / "out.npz"
        np.savez(arrays, train=train, validation=validation, test=x)
        command = [flags.flow_python, FLOW, arrays, out, "--seconds", 60 * flags.minutes, "--seed", flags.seed]
        alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run([str(word) for word in command], env=alone, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise InputError(
                f"the spline flow failed: {last}; does {flags.flow_python} have flowjax? To make one: {INSTALL}"
            )
        with np.load(out) as got:
            return got["log_prob"].astype(float) + log_det, str(got["chosen"]), float(got["seconds"])


def competitors(flags: Flags, data: Data, console: Console) -> dict[str, Callable[[], Row]]:
    """Who takes part, by name."""
    fitted, others = split(data)
    rows = fitted.train[:], others, data.held_out[: flags.examples]
    train, validation, x = ((a.astype(float) - data.shift) / data.scale for a in rows)
    found: dict[str, Callable[[], Row]] = {
        "score network": lambda: score_network(flags, fitted, others, rows[-1], console),
        "Gaussian": lambda: gaussian(train, x),
        "Gaussian mixture": lambda: gaussian_mixture(train, validation, x, 60 * flags.minutes, flags.seed),
    }
    if flags.flow_python is not None:
        log_det = data.log_det(rows[-1]) + np.sum(np.log(data.scale))
        found["neural spline flow"] = lambda: spline_flow(flags, train, validation, x)
        found["the flow, columns as ours"] = lambda: spline_flow(flags, *map(data.to_model, rows), log_det=log_det)
    return found


def program(flags: Flags, console: Console) -> None:
    """Print the table, in Markdown, as its rows are measured."""
    flags.check()
    data = load(flags.data, options=flags.config(Path()).options)
    if data.levels is not None or data.train_mask is not None or data.streamed:
        raise InputError(f"{data.name} must be measurements without missing values: {data.describe()}")
    console.print(data.describe(), highlight=False)
    where = machine.environment("benchmarks.tables")
    versions = ", ".join(f"{package} {version}" for package, version in where["versions"].items())
    machine_line = f"{where['cpu_count']} cores, load {os.getloadavg()[0]:.1f}, {where['platform']}, {versions}"
    console.print(f"{where['command']}\n{machine_line}", highlight=False)
    console.print("| model | nats a test row | less than the score network's by | processor seconds | chosen |")
    console.print("|---" * 6 + "|")
    ours: np.ndarray | None = None
    for name, compete in competitors(flags, data, console).items():
        log_prob, chosen, seconds = compete()
        ours = log_prob if ours is None else ours
        mean, less = (f"{m:.3f} ± {e:.3f}" for m, e in map(ss.mean_with_error, (log_prob, ours - log_prob)))
        row = [name, mean, "" if log_prob is ours else less, f"{seconds:.0f}", chosen]
        console.print("| " + " | ".join(row) + " |", highlight=False)
    if flags.flow_python is None:
        console.print(f"no neural spline flow without flowjax: {INSTALL}", highlight=False)


def main() -> None:
    """Command line; see ``commands.main``."""
    commands.main(Flags, "benchmarks.tables", program)


if __name__ == "__main__":
    main()
