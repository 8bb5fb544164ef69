"""Guidance of a trained model by the command line, and how it is judged: naive loops, exact laws, library calls."""

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family import exact, float64, laws
from rich.console import Console
from small import save_run

import scoresde as ss
from experiments import guide
from experiments.cli.errors import InputError
from experiments.data.load import load
from experiments.guidance import judge
from experiments.guidance.methods import METHODS, Sources
from experiments.guide import Flags, program
from experiments.models.saved import open_run

SDE = ss.VP()


MODELS = {
    "model": {"condition": "class"},
    "plain": {},
    "classifier": {"target": "class"},
    "other": {"target": "class", "sde": "ve"},
    "moons": {"data": "moons"},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of each of MODELS, made where it is first asked for; any other is not there."""
    folder = tmp_path_factory.mktemp("runs")

    def of(name):
        if name in MODELS and not (folder / name).exists():
            save_run(folder / name, **MODELS[name])
        return folder / name

    return of


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def guided(folder, out, **flags):
    text = io.StringIO()
    program(
        Flags(checkpoint=folder, out=out, **{"each": 2, "weights": "0,2", "evaluations": 3} | flags),
        Console(file=text, width=300),
    )
    return text.getvalue()


def test_each_word_is_the_conditional_score_at_weight_1_and_the_other_at_0(x64):
    first, second, whole = (law.score(SDE) for law in laws())

    def score(x, t, y=None):
        parts = (
            [jnp.where((y == c)[:, None], s(x, t), 0) for c, s in ((0, first), (1, second))] if y is not None else []
        )
        return sum(parts) if parts else whole(x, t)

    y, t, sources = (
        jnp.array([0, 1, 1, 0]),
        0.3,
        Sources(SDE, score, score, exact(SDE), lambda x, t, y: whole(x, t), (-30.0, 30.0), ss.log_snr_grid(SDE, 5)),
    )
    turned = sources._replace(other=ss.given(score, jnp.array([1] * 4)))

    @jax.jit
    def of(x):
        words = {w: m for w, m in METHODS.items() if w != "cfg++"}  # whose weight is another
        at = {w: [m.guided(sources, float(i))(x, t, y) for i in range(2)] for w, m in words.items()}
        return at, METHODS["classifier-free"].guided(turned, 0.0)(x, t, y), score(x, t, y), whole(x, t), second(x, t)

    at, negative, own, plain, other = of(float64(np.random.default_rng(0).normal(size=(4, 2))))
    for word, found in at.items():
        np.testing.assert_allclose(found[1], own, rtol=1e-8, atol=1e-9, err_msg=word)
    for word in ("classifier-free", "classifier", "autoguidance", "interval"):
        np.testing.assert_allclose(at[word][0], plain, rtol=1e-8, err_msg=word)
    np.testing.assert_allclose(negative, other, rtol=1e-8)


def test_the_judge_against_naive_loops(digits):
    classes, key = np.array([3, 8]), jax.random.key(0)
    judged = judge.Judge(digits, classes, each=4)
    held_out, labels = digits.held_out, digits.held_out_labels
    real = judged.references(key)
    assert real["examples"] == sum(int(label) in (3, 8) for label in labels) and real["accuracy"] > 0.95
    count = min((labels == c).sum() for c in classes)
    expected = np.stack([held_out[labels == c][:count] for c in classes])
    np.testing.assert_array_equal(judged.real, expected)
    figures = judged.of(key, judged.real[:, :4])
    pairs = [np.linalg.norm(a.astype(float) - b) for x in expected[:, :4] for i, a in enumerate(x) for b in x[i + 1 :]]
    assert figures["spread"] == pytest.approx(np.mean(pairs))
    assert judged.compared(key, judged.real)["distance"] < 1e-5
    wrong = judged.of(key, judged.real[::-1])  # of the other class
    assert wrong["accuracy"] < 0.1 < 0.9 < figures["accuracy"] and wrong["distance"] > 1.5 * real["distance"]
    assert judged.trained.shape == (2, 4, 8, 8, 1)
    with pytest.raises(InputError, match=r"class 11 of digits has 0 example\(s\)"):
        judge.Judge(digits, np.array([11]), each=5)


@pytest.mark.slow
def test_samples_are_those_of_the_library_and_a_finished_folder_is_kept(runs, tmp_path):
    said = guided(runs("model"), tmp_path / "out", label=7, seed=4)
    assert "class accuracy" in said and "moving average" in said
    with np.load(tmp_path / "out" / "samples.npz") as stored:
        assert stored["classes"].tolist() == [7]
        found = stored["w_2"]
    opened = open_run(runs("model"))
    score, cond = opened.model.score(opened.state.ema), jnp.array([7, 7], jnp.int32)
    free = ss.given(ss.guidance.classifier_free(score, score, 2.0), cond)
    x = ss.sample(jax.random.key(4), free, ss.best_solver(SDE, 3), (2, 8, 8, 1))
    np.testing.assert_array_equal(found[0], opened.data.from_model(x))
    about = json.loads((tmp_path / "out" / "guide.json").read_text())
    assert list(about["weights"]) == ["0.0", "2.0"] and about["classes"] == ["7"] and about["plan"]["method"]
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {"samples.png", "curves.png"}
    assert "nothing to do" in guided(runs("model"), tmp_path / "out", label=7, seed=4)
    with pytest.raises(InputError, match="was made with guidance"):
        guided(runs("model"), tmp_path / "out", label=7, seed=4, weights="0,3")


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_draws_every_class(runs, tmp_path, method):
    more = {
        "classifier": {"classifier": runs("classifier")},
        "autoguidance": {"weaker": "raw"},
        "cfg++": {"solver": "ddim", "weights": "0,0.5"},
    }
    flags = {} if method in ("classifier", "autoguidance") else {"negative": 5}
    model = runs("plain" if method == "classifier" else "model")
    guided(model, tmp_path / "out", method=method, **more.get(method, {}), **flags)
    with np.load(tmp_path / "out" / "samples.npz") as stored:
        assert all(stored[name].shape == (10, 2, 8, 8, 1) for name in stored.files if name != "classes")


@pytest.mark.parametrize(
    "model, flags, message",
    [
        ("plain", {}, "knows no classes: train with --condition class, or take --method classifier"),
        ("moons", {}, "is of data without classes (moons): nothing to guide to"),
        ("model", {"label": 10}, "--label must be in 0..9, the classes of digits, got 10"),
        ("model", {"negative": -1}, "--negative must be in 0..9, the classes of digits, got -1"),
        ("model", {"weights": "0,x"}, "--weights takes different numbers such as 0,1,2,4, got '0,x'"),
        ("model", {"weights": "1,1"}, "--weights takes different numbers"),
        ("model", {"method": "classifier"}, "--method classifier needs a classifier: give --classifier FOLDER"),
        ("model", {"method": "autoguidance"}, "--method autoguidance needs a weaker model: give --weaker FOLDER"),
        ("model", {"weaker": "raw"}, "--weaker has no meaning for --method classifier-free: drop it"),
        ("model", {"method": "cfg++"}, "--method cfg++ is for --solver ddim and --weights in [0, 1]"),
        ("model", {"interval": (2.0, 1.0)}, "--interval must be two log-SNRs, the lower (noise) first"),
        ("model", {"each": 1}, "--each must be at least 2, got 1"),
        ("none", {}, "expected that of a run"),
    ],
)
def test_mistakes_are_one_line(runs, tmp_path, model, flags, message):
    with pytest.raises(InputError) as error:
        guided(runs(model), tmp_path / "out", **flags)
    assert message in str(error.value) and "\n" not in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "flag, name, message",
    [
        ("classifier", "model", "holds a score (experiments.run); expected a classifier"),
        ("classifier", "other", "is of other SDE than the model: ve, not vp as it was"),
        ("weaker", "plain", "knows no classes: train it with --condition class"),
        ("weaker", "moons", "is of other data than the model: moons, not digits as it was"),
    ],
)
def test_a_run_beside_the_model_must_belong_to_it(runs, tmp_path, flag, name, message):
    method = {"classifier": "classifier", "weaker": "autoguidance"}[flag]
    with pytest.raises(InputError) as error:
        guided(runs("model"), tmp_path / "out", method=method, **{flag: runs(name)})
    assert message in str(error.value)


def test_the_curves_of_points_are_scatter_plots(tmp_path):
    rng = np.random.default_rng(0)
    sets = {"w = 1": rng.normal(size=(2, 20, 2)), "w = 2": rng.normal(size=(2, 20, 2))}
    figure = guide.guide_figures.sheet(sets, ["", "", ""], ["a", "b"], rng.normal(size=(2, 30, 2)), None)
    assert len(figure.axes) == 3
