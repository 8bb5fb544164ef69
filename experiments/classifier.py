"""Train a classifier of noisy examples, p(c | x_t) at every noise level, for guidance; any labelled data will do.

    python -m experiments.classifier --data digits --sde vp

trains as ``experiments.run`` does (the same checkpoints, the same command continues with the same bits), measures
accuracy and cross entropy on the held-out examples at several noise levels, and writes runs/DATA-SDE-classifier/:
config.json, environment.json, metrics.jsonl, checkpoint/, report.json, report.md and figures/levels.png. Guidance takes
it by ``experiments.guide --classifier runs/digits-vp-classifier``.
"""

import dataclasses
import time
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from rich import box
from rich.console import Console
from rich.table import Table
from tyro.conf import Suppress

import scoresde as ss
from experiments.cli import commands
from experiments.cli.keys import stream
from experiments.cli.writing import write_atomically
from experiments.data.dataset import Data
from experiments.figures.levels import accuracy_curves
from experiments.figures.panels import save
from experiments.measures.jobs import Arrays, Work, rows, spread_score
from experiments.models.build import Model
from experiments.models.flags import Config
from experiments.models.values import Engine, Evaluation, Objective, Weight
from experiments.training.session import about, close, train
from scoresde.arrays import example_keys, normal_per_example

LEVELS = 13
HEADS = ("log-SNR", "sigma/alpha", "accuracy", "cross entropy (nats)")


@dataclasses.dataclass(frozen=True)
class _Objective(Objective):
    """What is minimised: the cross entropy of the class."""

    weight: Suppress[Weight] = "noise"
    augment: Suppress[float] = 0.0
    condition: Suppress[Literal["none", "class"]] = "none"
    condition_drop: Suppress[float] = 0.0


@dataclasses.dataclass(frozen=True)
class _Evaluation(Evaluation):
    samples: Suppress[int] = 2
    likelihood_examples: Suppress[int | None] = None
    likelihood_probes: Suppress[int] = 1
    likelihood_repeats: Suppress[int] = 1


@dataclasses.dataclass(frozen=True)
class _Engine(Engine):
    sample_every: Suppress[int] = 0


@dataclasses.dataclass(frozen=True)
class Flags(Config):
    """Train a classifier of noisy examples and measure it at every noise level."""

    target: Suppress[Literal["score", "class"]] = "class"
    objective: _Objective = _Objective()
    evaluation: _Evaluation = _Evaluation()
    engine: _Engine = _Engine()


def measure(key: jax.Array, data: Data, model: Model, params: Any, work: Work) -> list[dict[str, float]]:
    """Accuracy and cross entropy on the held-out examples, with standard errors, at LEVELS noise levels equally far
    apart in log-SNR, the noisiest first; every example has one noise for all levels."""
    assert data.held_out_labels is not None
    sde, log_probs, known = model.sde, spread_score(model.log_probs(params)), data.held_out_labels
    log_snr = np.linspace(float(sde.log_snr(sde.t_max)), float(sde.log_snr(sde.t_min)), LEVELS)
    times = jnp.clip(sde.time(jnp.asarray(log_snr, float)), sde.t_min, sde.t_max)

    def job(first: int, size: int) -> Arrays:
        x, classes = data.to_model(rows(data.held_out, first, size)), jnp.asarray(rows(known, first, size))
        error, right = _at_levels(key, sde, log_probs, x, classes, times, first)
        return {"error": np.asarray(error), "right": np.asarray(right)}

    done, levels = work.run("classes", job, len(known)), []
    for i, value in enumerate(log_snr.tolist()):
        accuracy, nats = (ss.mean_with_error(jnp.asarray(done[name][:, i], float)) for name in ("right", "error"))
        levels.append(
            {"log_snr": value, "noise": float(np.exp(-value / 2)), "accuracy": accuracy[0]}
            | {"accuracy_std_error": accuracy[1], "cross_entropy": nats[0], "cross_entropy_std_error": nats[1]}
        )
    return levels


@jax.jit
def _at_levels(
    key: jax.Array, sde: ss.SDE, log_probs: Partial, x: jax.Array, classes: jax.Array, times: jax.Array, first: Any
) -> tuple[jax.Array, jax.Array]:
    """Cross entropies (B, levels), and whether the most probable class is the true one."""
    noise = normal_per_example(example_keys(key, len(x), first), x.shape[1:], x.dtype)

    def at(t: jax.Array) -> ss.training.Classified:
        ones = jnp.ones(len(x))
        return ss.training.classified(
            log_probs, ss.training.Noised(sde.perturb(x, t, noise), noise, t * ones, ones, None), classes
        )

    found = jax.lax.map(at, times)
    return found.error.T, found.right.T


def cells(level: dict[str, float]) -> tuple[str, ...]:
    """A row of the table: HEADS."""
    accuracy, error = 100 * level["accuracy"], 100 * level["accuracy_std_error"]
    nats = f"{level['cross_entropy']:.3f} ± {level['cross_entropy_std_error']:.3f}"
    return f"{level['log_snr']:.2f}", f"{level['noise']:.3g}", f"{accuracy:.1f} ± {error:.1f} %", nats


def markdown(report: dict[str, Any], command: str) -> str:
    """The text of report.md."""
    table = [HEADS, ("---:",) * len(HEADS), *map(cells, report["levels"])]
    parts = [
        f"# {report['name']}",
        f"{report['data']['describe']}. `{report['sde']}`, {report['network']['name']} of "
        f"{report['network']['parameters']:,} parameters, {report['training']['steps']:,} steps in "
        f"{report['training']['seconds']:.0f} s.",
        "![accuracy and cross entropy at each noise level](figures/levels.png)",
        f"Of {report['data']['held_out']} held-out examples with noise added, the noisiest first:",
        "\n".join("| " + " | ".join(row) + " |" for row in table),
        f"```\n{command}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def run(config: Flags, console: Console) -> dict[str, Any]:
    """Do the whole job; returns the report."""
    started, trained = time.monotonic(), train(config, console, "classifier")
    if trained is None:
        return {}
    folder, data, key = trained.config.folder, trained.data, stream(config.seed, "levels")
    levels = measure(key, data, trained.model, trained.params, Work(config.evaluation.evaluation_batch, None, console))
    assert data.labels is not None
    result = about(trained.config, data, trained.model) | {"classes": data.labels.classes, "levels": levels}
    result["training"] = trained.training
    close(trained, result, started)
    (folder / "figures").mkdir(exist_ok=True)
    save(accuracy_curves(levels, int(data.labels.classes or 0)), folder / "figures" / "levels.png")
    write_atomically(folder / "report.md", markdown(result, trained.manifest["command"]))
    table = Table(*HEADS, box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", show_edge=False)
    for level in levels:
        table.add_row(*cells(level))
    console.print(f"{result['name']}: classes of {len(data.held_out)} held-out examples with noise", highlight=False)
    console.print(table)
    console.print(f"{trained.manifest['seconds']:.0f} s; report: {folder / 'report.md'}", highlight=False)
    return result


def main() -> None:
    """Command line; see ``commands.main``."""
    commands.main(Flags, "classifier", run, cached=lambda config: config.engine.compile_cache)


if __name__ == "__main__":
    main()
