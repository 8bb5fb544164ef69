"""Models that know classes: with the exact score of each class likelihood, samples and classifier are exact."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from small import save_run

import scoresde as ss
from experiments import run, sample
from experiments.cli.errors import InputError
from experiments.data.load import load
from experiments.figures import run_figures
from experiments.measures import classes, likelihoods
from experiments.measures.jobs import Work
from experiments.models.build import build
from experiments.models.flags import Config

SDE = ss.VP(beta_max=40.0)  # whose prior agrees to 1e-4
MEANS, STDS = np.array([[-2.0, 0.0], [2.0, 1.0]]), np.array([0.5, 0.8])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Points of two classes in proportion 1 to 3."""
    rng = np.random.default_rng(0)
    labels = (rng.random(400) < 0.75).astype(np.int32)
    x = MEANS[labels] + STDS[labels, None] * rng.normal(size=(400, 2))
    path = tmp_path_factory.mktemp("classes") / "points.npz"
    np.savez(path, x=x, labels=labels)
    return load(f"npz:{path}")


def laws(data, weights=(1.0, 1.0)):
    """Of each class and of both together, in model units, where the scales of the two axes differ."""

    class Law:
        def __init__(self, keep):
            self.keep = keep

        def log_prob(self, y, at=(0.0, 1.0)):
            """Of alpha y + sigma n with (log alpha, variance) = ``at``."""
            alpha, variance = jnp.exp(at[0]), at[1]
            means = alpha * (MEANS[self.keep] - data.shift[None]) / data.scale[None]
            var = (alpha * STDS[self.keep, None] / data.scale[None]) ** 2 + variance
            squares = jnp.sum((y[:, None] - means[None]) ** 2 / var[None] + jnp.log(2 * jnp.pi * var)[None], axis=2)
            w = np.log(np.array(weights)[self.keep] / np.sum(np.array(weights)[self.keep]))
            return jax.nn.logsumexp(w[None] - 0.5 * squares, axis=1)

    return Law([0]), Law([1]), Law([0, 1])


@pytest.fixture(scope="module")
def model(data):
    """The exact score (x, t, cond), cond -1 or None for both classes together, as a trained network would be."""
    one, two, both = laws(data, weights=(0.25, 0.75))

    def score(x, t, cond=None):
        t = jnp.broadcast_to(t, len(x))
        of = lambda law: jax.vmap(  # noqa: E731
            jax.grad(lambda x, t: law.log_prob(x[None], (SDE.log_alpha(t), SDE.variance(t)))[0])
        )(x, t)
        cond = jnp.full(len(x), -1) if cond is None else jnp.broadcast_to(cond, len(x))
        return jnp.where((cond == 0)[:, None], of(one), jnp.where((cond == 1)[:, None], of(two), of(both)))

    return types.SimpleNamespace(sde=SDE, precond=ss.Preconditioner(SDE, 1.0), score=Partial(score))


@pytest.mark.slow
def test_likelihoods_given_the_class_and_without(data, model):
    x, known = data.held_out, data.held_out_labels
    settings = likelihoods.Settings(probes=0, evaluations=80)
    got, _ = likelihoods.likelihood(jax.random.key(0), data, model, model.score, x, settings, Work(16), classes=known)
    variances = STDS[known, None] ** 2
    exact = -0.5 * np.sum((x - MEANS[known]) ** 2 / variances + np.log(2 * np.pi * variances), axis=1)
    np.testing.assert_allclose(got["log_prob"], exact, atol=0.005)
    _, figures = likelihoods.likelihood(jax.random.key(0), data, model, model.score, x, settings, Work(16))
    both = laws(data, (0.25, 0.75))[2].log_prob(np.asarray(data.to_model(x)), (0.0, 0.0)) + data.log_det(x)
    assert figures["mean"] == pytest.approx(float(both.mean()), abs=0.005)


def test_the_classifier_is_that_of_bayes(data, model):
    x, known = data.held_out, data.held_out_labels
    got = classes.classifier(jax.random.key(1), data, model, model.score, np.array([0.25, 0.75]), x, Work(16))
    y = np.asarray(data.to_model(x))
    log_joint = np.stack([law.log_prob(y, (0.0, 0.0)) for law in laws(data)[:2]], 1) + np.log([0.25, 0.75])
    sure = np.abs(log_joint[:, 0] - log_joint[:, 1]) > 1
    assert sure.mean() > 0.8
    np.testing.assert_array_equal(got.argmax(1)[sure], log_joint.argmax(1)[sure])
    figures = classes.accuracy(got, known)
    assert figures["accuracy"] == np.mean(got.argmax(1) == known) > 0.9 and figures["examples"] == len(x)


def test_sheets_show_each_class_and_guidance_leans_away_from_the_others(data, model):
    found = classes.sheets(jax.random.key(2), data, model, model.score, Work(16))
    assert set(found) == {f"classes_{w:g}" for w in classes.WEIGHTS}
    plain, strong = found["classes_1"], found["classes_3"]
    assert plain.shape == strong.shape == (2, classes.EACH, 2)
    for c in range(2):
        assert np.all(np.abs(plain[c].mean(0) - MEANS[c]) < 5 * STDS[c] / np.sqrt(classes.EACH))
    # w = 3 draws from p(x) p(c | x)^3, with less mass where the classes overlap
    assert strong[1, :, 0].mean() >= plain[1, :, 0].mean() and strong[0, :, 0].mean() <= plain[0, :, 0].mean()


def test_the_network_is_told_the_classes_but_for_the_share_that_is_dropped(data):
    config = Config.of(data=data.name, condition="class", condition_drop=0.3, width=8, depth=1, steps=1).resolve(data)
    model = build(config, data)
    state, batch = model.init(), jax.tree.map(jnp.asarray, data.batch(slice(0, 300)))
    drawn = model.trainer.draw(jax.random.key(0), batch, state.carry)
    told = np.asarray(drawn.cond)
    assert set(told[told != data.train_labels[:300]]) == {-1}
    assert abs((told == -1).mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / 300)
    without = config.replace(condition="none")
    assert build(without, data).trainer.draw(jax.random.key(0), batch, state.carry).cond is None


def test_data_without_classes_are_refused(tmp_path):
    data = load("moons")
    with pytest.raises(InputError, match="--condition class needs data with classes; moons has none"):
        build(Config.of(data="moons", condition="class").resolve(data), data)
    with pytest.raises(InputError, match="--condition must be one of none, class, got 'klass'"):
        Config.of(condition="klass").check()
    with pytest.raises(InputError, match=r"--condition-drop must be in \[0, 1\], got 1.5"):
        Config.of(condition_drop=1.5).check()
    save_run(tmp_path / "run")
    flags = sample.Flags(checkpoint=tmp_path / "run", out=tmp_path / "x.npz", label=3)
    with pytest.raises(InputError, match="knows no classes: drop --label"):
        sample.program(flags, None)


def test_files_of_samples_hold_their_labels_by_name(tmp_path):
    """As an array or as dataset.json, and both are read back as labelled data with the same classes."""
    from rich.console import Console

    rng, words = np.random.default_rng(0), np.array(["c10", "china", "c9"])
    labels = words[np.arange(60) % 3]
    np.savez(tmp_path / "a.npz", x=rng.integers(0, 256, (60, 4, 4, 1), np.uint8), labels=labels)
    save_run(tmp_path / "run", f"npz:{tmp_path / 'a.npz'}", condition="class", network="mlp")
    for out, kind, label in (("x.npz", "npz", None), ("x", "images", None), ("y.npz", "npz", "china")):
        flags = {"checkpoint": tmp_path / "run", "out": tmp_path / out, "n": 12, "label": label, "evaluations": 2}
        sample.program(sample.Flags(**flags), Console(quiet=True))
        found, drawn = load(f"{kind}:{tmp_path / out}"), np.array(["c9", "c10", "china"])[np.arange(12) % 3]
        drawn = drawn if label is None else np.full(12, label)
        told = np.concatenate([found.train_labels, found.held_out_labels])
        order = np.random.default_rng(0).permutation(12)
        assert np.array(found.labels.words)[told].tolist() == drawn[order].tolist()
        assert json.loads((tmp_path / f"{out}.json").read_text())["plan"]["label"] == (None if label is None else 2)
    flags = sample.Flags(checkpoint=tmp_path / "run", out=tmp_path / "z.npz", label="chna")
    with pytest.raises(InputError, match="--label must be one of the 3 classes of .*, c9, c10, china; .*mean china"):
        sample.program(flags, None)


def test_sheets_name_their_rows():
    rng = np.random.default_rng(0)
    report = {"data": {"event_shape": [4, 4, 1], "levels": 17}, "classes": {"weights": ["1"], "names": ["china", "b"]}}
    found = {"classes_1": rng.integers(0, 17, (2, 3, 4, 4, 1)), "real": rng.integers(0, 17, (5, 4, 4, 1))}
    texts = {text.get_text(): text.get_position()[1] for text in run_figures.classes(report, found).texts}
    assert texts["china"] > texts["b"] and "Guidance 1" in texts
    del report["classes"]["names"]  # as runs of before have none
    assert "china" not in {text.get_text() for text in run_figures.classes(report, found).texts}


@pytest.mark.slow
def test_a_conditional_run_from_training_to_samples(tmp_path, monkeypatch):
    """On digits: a report with the three figures and its picture; then samples of one class, guided."""
    from rich.console import Console

    console = Console(quiet=True)
    few = {"steps": 100, "width": 64, "depth": 1, "samples": 20, "likelihood_examples": 20, "evaluation_batch": 80}
    report = run.run(Config.of(condition="class", workdir=tmp_path / "run", likelihood_repeats=1, **few), console)
    assert report["classes"]["classifier"]["examples"] == 20 and report["classes"]["weights"] == ["1", "3"]
    assert (tmp_path / "run" / "figures" / "classes.png").stat().st_size > 2000
    assert report["classes"]["names"] == list(map(str, range(10)))
    with np.load(tmp_path / "run" / "arrays.npz") as stored:
        assert stored["labels_of_samples"].shape == (20,)
    assert "## Classes" in (tmp_path / "run" / "report.md").read_text()
    flags = sample.Flags(
        checkpoint=tmp_path / "run", out=tmp_path / "x.npz", n=8, label=3, guidance=2.0, evaluations=10
    )
    sample.program(flags, console)
    with np.load(tmp_path / "x.npz") as stored:
        assert stored["arr_0"].shape == (8, 8, 8, 1)
    with pytest.raises(InputError, match=r"--label must be in 0..9, the classes of digits, got 10"):
        sample.program(dataclasses.replace(flags, label=10, out=tmp_path / "y.npz"), console)
