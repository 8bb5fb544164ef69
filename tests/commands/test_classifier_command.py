"""The command that trains a classifier: what it measures, its mistakes in one line, stopped and continued."""

import importlib
import signal
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family import drawn, exact, laws, textbook
from jax.tree_util import Partial
from rich.console import Console

import scoresde as ss
from experiments import classifier
from experiments.cli.errors import InputError
from experiments.data.load import load
from experiments.measures.jobs import Work
from experiments.models.build import build
from experiments.models.flags import Config
from experiments.models.saved import open_run

KEY, SDE = jax.random.key(5), ss.VP()


@pytest.mark.slow
def test_the_command_measures_what_the_exact_classifier_has():
    x, known = (np.asarray(a) for a in drawn(500))
    data = types.SimpleNamespace(held_out=x, held_out_labels=known, to_model=jnp.asarray)
    model = types.SimpleNamespace(sde=SDE, log_probs=lambda params: Partial(exact(SDE)))
    levels = classifier.measure(KEY, data, model, None, Work(200))
    assert [level["log_snr"] for level in levels] == sorted(level["log_snr"] for level in levels)
    means, stds, weights = (np.asarray(a) for a in jax.tree.leaves(laws()[-1]))
    squares = np.sum((x[:, None] - means) ** 2, axis=2)
    logs = np.log(weights) - squares / (2 * stds**2) - 2 * np.log(stds)
    right = logs.argmax(axis=1) == known
    assert levels[-1]["accuracy"] == pytest.approx(right.mean(), abs=1e-3)  # hardly any noise
    nats = np.logaddexp(*logs.T) - logs[np.arange(len(x)), known]
    assert levels[-1]["cross_entropy"] == pytest.approx(nats.mean(), abs=0.01)
    assert levels[0]["cross_entropy"] == pytest.approx(-np.log(weights[known]).mean(), abs=0.01)  # hardly any data
    expected = right.std(ddof=1) / np.sqrt(len(x))
    assert levels[-1]["accuracy_std_error"] == pytest.approx(expected, rel=0.05)


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    """Two classes of points, with labels."""
    x, known = (np.asarray(a) for a in drawn(400))
    path = tmp_path_factory.mktemp("points") / "points.npz"
    np.savez(path, x=x, labels=known)
    return load(f"npz:{path}")


SMALL = {"target": "class", "width": 8, "depth": 1, "steps": 6, "batch": 16}


@pytest.mark.slow
def test_what_is_minimised_is_the_cross_entropy_at_the_noise_drawn(points):
    model = build(Config.of(data=points.name, **SMALL).resolve(points), points)
    state, trainer = model.init(), model.trainer

    @jax.jit
    def of(params, batch):
        drawn = trainer.draw(KEY, batch)
        return drawn, trainer.loss(params, None, drawn), trainer.level(drawn)

    drawn, losses, level = of(state.params, jax.tree.map(jnp.asarray, points.batch(slice(0, 64))))
    np.testing.assert_array_equal(drawn.classes, points.train_labels[:64])
    np.testing.assert_allclose(losses, np.full(64, np.log(2)), rtol=1e-6)
    alpha, variance, _, _ = textbook(SDE, np.asarray(drawn.noised.t))
    np.testing.assert_allclose(level, np.sqrt(variance) / alpha, rtol=1e-4)
    assert abs(np.log(level).mean() + 1.0) < 0.4 and 1.7 < np.log(level).std() < 2.7  # N(-1, 2.2^2), stratified


def test_mistakes_of_the_command_are_one_line(points):
    moons = load("moons")
    for data, flags, message in (
        (moons, {}, "a classifier needs data with classes, two at least; moons has none"),
        (points, {"times": "adaptive"}, "--times adaptive follows the denoising loss"),
        (points, {"network": "unet"}, r"shape \(2,\) takes --network mlp, got unet"),
        (points, {"network": "dit"}, r"shape \(2,\) takes --network mlp, got dit"),
    ):
        with pytest.raises(InputError, match=message):
            build(Config.of(data=data.name, **SMALL | flags).resolve(data), data)
    assert classifier.Flags().folder == Path("runs/digits-vp-classifier")


@pytest.mark.slow
def test_the_command_from_training_to_report_and_stopped_on_the_way(tmp_path, monkeypatch, points):
    """Stopped after three of six steps and continued: the bits of a run that was not."""
    monkeypatch.setattr("experiments.training.fit.STEPS_PER_CALL", 3)
    quiet, flags = Console(quiet=True), {"data": points.name, "save_seconds": 0.0} | SMALL
    whole = classifier.run(classifier.Flags.of(workdir=tmp_path / "whole", **flags), quiet)
    assert len(whole["levels"]) == classifier.LEVELS and whole["classes"] == 2
    text = (tmp_path / "whole" / "report.md").read_text()
    assert "cross entropy" in text and (tmp_path / "whole" / "figures" / "levels.png").stat().st_size > 2000
    stopped = classifier.Flags.of(workdir=tmp_path / "stopped", **flags)
    fit = importlib.import_module("experiments.training.fit")
    due = fit.snapshots.due

    def stop(step, steps, total):
        if step == 3:
            signal.raise_signal(signal.SIGINT)
        return due(step, steps, total)

    with monkeypatch.context() as patch:
        patch.setattr(fit.snapshots, "due", stop)
        with pytest.raises(fit.Interrupted):
            classifier.run(stopped, quiet)
    assert classifier.run(stopped, quiet)["levels"] == whole["levels"]
    a, b = (open_run(tmp_path / name, "class").state for name in ("whole", "stopped"))
    jax.tree.map(np.testing.assert_array_equal, (a.params, a.averages), (b.params, b.averages))
    with pytest.raises(InputError, match="holds a classifier .* expected a score"):
        open_run(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("network", ("unet", "mlp"))
def test_digits_are_told_apart(tmp_path, network):
    flags = classifier.Flags.of(workdir=tmp_path / "run", network=network, steps=400)
    report = classifier.run(flags, Console(quiet=True))
    assert report["levels"][-1]["accuracy"] > 0.95 and report["levels"][0]["accuracy"] < 0.2
