"""The exact likelihood of a table beside a Gaussian, a Gaussian mixture and a neural spline flow given the same time.

    python -m experiments.benchmarks.tables --data csv:PATH/protein.data.csv.gz --minutes 5 --flow-python ENV/bin/python

prints mean test log-likelihoods in nats an example, of columns in units of their standard deviation over the training
part, with their standard errors over the test rows, and the paired differences to our score network. Everyone trains on
the same nine tenths of the training part and sees the last tenth of it, the validation part, only to choose:

    score network      as ``experiments.run`` trains it, steps to fill the time; exact divergence, probability flow
    Gaussian           of full covariance
    Gaussian mixture   full covariances by EM, as many components (a power of 2) as serve the validation part
    spline flow        ``spline_flow.py`` with the Python of --flow-python; at its best on the validation part
"""

import dataclasses
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
from experiments import commands, likelihoods, machine
from experiments.batches import Work
from experiments.data import TABLES, Data, InputError, load
from experiments.fit import STEPS_PER_CALL, check_folder, fit, start
from experiments.setup import Config, build
from scoresde.leaves import to_numpy

FLOW = Path(__file__).with_name("spline_flow.py")
INSTALL = "python -m venv ENV && ENV/bin/pip install flowjax, then --flow-python ENV/bin/python"
FLOORS, MOST_ITERATIONS = (1e-6, 1e-4, 1e-3), 200  # of the mixture: least variances to choose from, steps of EM
Row = tuple[np.ndarray, str, float]
"""Log-densities (n,) of the test rows in standardised units, what was chosen, seconds of training."""


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
    """Time to train the score network, and at most the mixture and the flow each."""
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
        return Config(**given, workdir=folder)


def split(data: Data) -> tuple[Data, np.ndarray]:
    """The data with nine tenths of their training rows, and the other rows, which are for choices."""
    order = np.random.default_rng(0).permutation(len(data.train))
    train, validation = np.split(order, [len(order) - len(order) // 10])
    return dataclasses.replace(data, train=data.train[train]), data.train[validation]


def score_network(flags: Flags, data: Data, x: np.ndarray, console: Console) -> Row:
    """Ours: as many steps as the time allows at the rate of a first compiled call."""
    with tempfile.TemporaryDirectory() as folder:
        config = flags.config(Path(folder)).resolve(data)
        steps = _steps(config, data, 60 * flags.minutes)
        config = dataclasses.replace(config, steps=steps)
        check_folder(config)
        model = build(config, data)
        state, training = fit(config, data, model, start(config, model), console)
        score = model.score(to_numpy(state.ema))
    key, work = jax.random.fold_in(jax.random.key(flags.seed), 1), Work(256, console=console)
    settings = likelihoods.Settings(probes=0)
    values, figures = likelihoods.likelihood(key, data, model, score, x, settings, work)
    if figures["failed"]:
        raise InputError(f"the likelihood of {figures['failed']} test rows could not be had: {figures['message']}")
    chosen = f"{model.parameters:,} parameters, {steps} steps of {config.batch}"
    return values["log_prob"] + np.sum(np.log(data.scale)), chosen, training["seconds"]


def _steps(config: Config, data: Data, seconds: float) -> int:
    """Training steps in so many seconds, as a compiled call takes them."""
    trainer, state = (model := build(config, data)).trainer, model.init()
    examples, taken, batch = jnp.asarray(data.train), 0.0, min(int(config.batch or 1), len(data.train))
    for _ in range(3):  # the first compiles
        started = time.monotonic()
        state, _ = trainer.run(state, examples, steps=STEPS_PER_CALL, batch_size=batch)
        jax.block_until_ready(state.params)
        taken = time.monotonic() - started
    return max(1, round(seconds / taken)) * STEPS_PER_CALL


def gaussian(train: np.ndarray, x: np.ndarray) -> Row:
    """The Gaussian of the training rows' mean and covariance."""
    started = time.monotonic()
    covariance: Any = np.cov(train, rowvar=False, bias=True)
    law = multivariate_normal(train.mean(0), covariance)
    return np.atleast_1d(law.logpdf(x)), "full covariance", time.monotonic() - started


def gaussian_mixture(train: np.ndarray, validation: np.ndarray, x: np.ndarray, seconds: float, seed: int) -> Row:
    """The components and the floor of the variances that serve the validation rows best.

    Components are doubled until they serve less, or the time is over, of which each floor has its share.
    """
    started, best, best_value, chosen = time.monotonic(), None, -math.inf, ""
    for i, floor in enumerate(FLOORS, 1):
        components, value, found = 2, -math.inf, 0.0
        while components <= len(train) // 10 and time.monotonic() - started < seconds * i / len(FLOORS):
            mixture = GaussianMixture(components, reg_covar=floor, max_iter=MOST_ITERATIONS, random_state=seed)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                found = mixture.fit(train).score(validation)
            if found < value:
                break
            if found > best_value:
                best, best_value, chosen = mixture, found, f"{components} components, variances above {floor:g}"
            value, components = found, 2 * components
    if best is None:
        raise InputError(f"{len(train)} training rows are too few for a mixture of 2: expected at least 20")
    return best.score_samples(x), chosen, time.monotonic() - started


def spline_flow(flags: Flags, train: np.ndarray, validation: np.ndarray, x: np.ndarray) -> Row:
    """What ``spline_flow.py`` makes of the same arrays."""
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
            return got["log_prob"].astype(float), str(got["chosen"]), float(got["seconds"])


def competitors(flags: Flags, data: Data, console: Console) -> dict[str, Callable[[], Row]]:
    """Who takes part, by name."""
    fitted, others = split(data)
    raw = data.held_out[: flags.examples]
    train, validation, x = ((a.astype(float) - data.shift) / data.scale for a in (fitted.train[:], others, raw))
    found: dict[str, Callable[[], Row]] = {
        "score network": lambda: score_network(flags, fitted, raw, console),
        "Gaussian": lambda: gaussian(train, x),
        "Gaussian mixture": lambda: gaussian_mixture(train, validation, x, 60 * flags.minutes, flags.seed),
    }
    if flags.flow_python is not None:
        found["neural spline flow"] = lambda: spline_flow(flags, train, validation, x)
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
    console.print(f"{where['command']}\n{where['cpu_count']} cores, {where['platform']}, {versions}", highlight=False)
    console.print("| model | nats a test row | less than the score network's by | seconds | load before | chosen |")
    console.print("|---" * 6 + "|")
    ours: np.ndarray | None = None
    for name, compete in competitors(flags, data, console).items():
        load_before = os.getloadavg()[0]
        log_prob, chosen, seconds = compete()
        ours = log_prob if ours is None else ours
        mean, less = (f"{m:.3f} ± {e:.3f}" for m, e in map(ss.mean_with_error, (log_prob, ours - log_prob)))
        row = [name, mean, "" if log_prob is ours else less, f"{seconds:.0f}", f"{load_before:.1f}", chosen]
        console.print("| " + " | ".join(row) + " |", highlight=False)
    if flags.flow_python is None:
        console.print(f"no neural spline flow without flowjax: {INSTALL}", highlight=False)


def main() -> None:
    """Command line; see ``commands.main``."""
    commands.main(Flags, "benchmarks.tables", program)


if __name__ == "__main__":
    main()
