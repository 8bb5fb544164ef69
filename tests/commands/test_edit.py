"""The command line of edits: what the library gives, in pictures and files; every mistake in one line."""

import dataclasses
import io
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from small import save_run

import scoresde as ss
from experiments import edit
from experiments.cli.errors import InputError
from experiments.edit import Flags, program
from experiments.editing.edits import EDITS
from scoresde import editing

pytestmark = pytest.mark.usefixtures("opened_once")
FEW = {"n": 2, "evaluations": 3}


@pytest.fixture(scope="module")
def with_classes(tmp_path_factory):
    """A run on digits of a model that knows classes."""
    folder = tmp_path_factory.mktemp("runs") / "digits-class"
    return folder, *save_run(folder, condition="class")


def run(folder, out, **flags):
    text = io.StringIO()
    program(Flags(checkpoint=folder, out=out, **FEW | flags), Console(file=text, width=500))
    return text.getvalue()


def arrays(out):
    with np.load(out) as stored:
        return dict(stored)


@pytest.mark.slow
def test_sdedit_is_the_library_s(digits_run, tmp_path):
    folder, opened = digits_run[0], edit.open_run(digits_run[0])
    data, sde = digits_run[2], opened.model.sde
    said = run(folder, tmp_path / "a.npz", edit="sdedit", strength=0.4, examples="5,2", seed=3)
    got = arrays(tmp_path / "a.npz")
    np.testing.assert_array_equal(got["before"], data.held_out[[5, 2]])
    log_snr = 0.6 * sde.log_snr(sde.t_min) + 0.4 * sde.log_snr(sde.t_max)
    part = editing.shortened(sde, float(sde.time(log_snr)))
    table, x = ss.ancestral(part, ss.log_snr_grid(part, 3)), data.to_model(data.held_out[[5, 2]])
    score = opened.model.score(opened.state.ema)
    path = editing.sdedit(jax.random.key(3), sde, score, x, table, trajectory=True)
    np.testing.assert_array_equal(got["after"], data.from_model(path[-1]))
    about = json.loads((tmp_path / "a.npz.json").read_text())
    assert about["plan"]["strength"] == 0.4 and about["step"] == 0 and "noise" not in about["plan"]
    assert about["figures"]["sigma_over_alpha"] == pytest.approx(float(np.exp(-log_snr / 2)))
    assert about["stages"] == dict.fromkeys(("before", "noisy", "after"), [2, 8, 8, 1]) and "sdedit in" in said
    assert "nothing to do" in run(folder, tmp_path / "a.npz", edit="sdedit", strength=0.4, examples="5,2", seed=3)
    with pytest.raises(InputError, match="was made with seed 3, not 4"):
        run(folder, tmp_path / "a.npz", edit="sdedit", strength=0.4, examples="5,2", seed=4)


def test_mistakes_are_one_line_each(digits_run, tmp_path):
    folder, out = digits_run[0], tmp_path / "a.png"
    np.savez(tmp_path / "small.npz", x=np.zeros((2, 4, 4, 1), np.uint8))
    np.savez(tmp_path / "high.npz", x=np.full((2, 8, 8, 1), 17, np.uint8))
    for flags, message in (
        ({"out": tmp_path / "a.jpg"}, "must end in .npz or .png"),
        ({"noise": 0.3}, "--noise has no meaning for --edit sdedit; it is for denoise"),
        ({"edit": "denoise"}, "--edit denoise needs --noise"),
        ({"edit": "denoise", "as_is": True}, "--edit denoise needs --noise"),
        ({"as_is": True}, "--as-is has no meaning for --edit sdedit"),
        ({"edit": "denoise", "noise": 1e4}, "--edit denoise: s must be .* noise within"),
        ({"edit": "denoise", "noise": 0.3, "solver": "unipc"}, "^--solver unipc adds no noise"),
        ({"edit": "translate"}, "--edit translate needs --label"),
        ({"edit": "translate", "label": 3}, "knows no classes: drop --label"),
        ({"guidance": 2.0}, "--guidance is the weight of --label"),
        ({"strength": 0.0}, r"--strength must be in \(0, 1\], got 0.0"),
        ({"n": 0}, "--n must be at least 1, got 0"),
        ({"examples": "1;2"}, "--examples must be numbers with commas between"),
        ({"examples": "1,297"}, r"--examples must be in 0..296, the examples of the held-out part of digits, got 297"),
        ({"edit": "interpolate", "n": 3}, "needs an even number of examples, got 3"),
        ({"edit": "direction", "attribute": 10}, r"--attribute must be in 0..9, the classes of digits, got 10"),
        ({"edit": "direction", "attribute": 1, "against": 1}, "must be two classes, got 1 twice"),
        ({"edit": "panorama"}, "--edit panorama needs --canvas"),
        ({"edit": "panorama", "canvas": "8by9"}, "--canvas must be sides with x between"),
        ({"edit": "panorama", "canvas": "8x6"}, "--canvas 8x6 must be at least as large as an example"),
        ({"edit": "panorama", "canvas": "8x16", "stride": 9}, "^--stride 9: stride must be one for each axis"),
        ({"input": tmp_path / "none.npz"}, "none.npz does not exist"),
        ({"input": tmp_path / "a.txt"}, "--input .*a.txt must end in .npz or .png"),
        ({"input": tmp_path / "small.npz"}, r"examples of shape \(4, 4, 1\); the model was trained on \(8, 8, 1\)"),
        ({"input": tmp_path / "high.npz"}, "must hold whole numbers in 0..16, the levels of digits"),
        ({"solver": "heun", "evaluations": 1}, "takes at least 2 evaluations, got --evaluations 1"),
    ):
        given = dataclasses.replace(Flags(checkpoint=folder, out=out, edit="sdedit", **FEW), **flags)
        with pytest.raises(InputError, match=message) as raised:
            program(given, Console(quiet=True))
        assert "\n" not in str(raised.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["high.npz", "small.npz"]


EVERY = {
    "sdedit": ({"label": 3, "guidance": 2.0}, ["before", "noisy", "after"], (8, 8, 1)),
    "translate": ({"label": 3}, ["before", "after"], (8, 8, 1)),
    "interpolate": ({"between": 3}, ["way_0"], (8, 8, 1)),
    "direction": ({"attribute": 3, "latents": 20}, ["before", "moved_0.333", "moved_0.667", "moved_1"], (8, 8, 1)),
    "denoise": ({"noise": 0.5, "blind": True}, ["before", "noisy", "mean", "draw", "std"], (8, 8, 1)),
    "panorama": ({"canvas": "8x20"}, ["after"], (8, 20, 1)),
    "outpaint": ({"canvas": "10x12"}, ["before", "after"], (10, 12, 1)),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", EDITS)
def test_every_edit_in_every_form(with_classes, tmp_path, kind):
    folder, _, data, _ = with_classes
    flags, names, shape = EVERY[kind]
    said = run(folder, tmp_path / "a.npz", edit=kind, **flags)
    got = arrays(tmp_path / "a.npz")
    assert list(got) == names and got[names[-1]].shape[1:] == shape
    if "before" in got:
        np.testing.assert_array_equal(got["before"], data.held_out[:2])
    if kind == "interpolate":
        np.testing.assert_array_equal(got["way_0"][[0, -1]], data.held_out[:2])
    if kind == "outpaint":  # what is known is kept
        np.testing.assert_array_equal(got["after"][:, 1:9, 2:10], data.held_out[:2])
    if kind == "denoise":
        assert "standard deviation of the noise: 0.5; estimated: " in said and "rmse mean" in said
    run(folder, tmp_path / "a.png", edit=kind, **flags)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size[0] > 400 and np.asarray(picture.convert("L")).std() > 10


@pytest.mark.slow
def test_a_panorama_of_the_examples_size_is_a_sample(digits_run, tmp_path):
    folder, _, data, model = digits_run
    run(folder, tmp_path / "a.npz", edit="panorama", canvas="8x8", n=20, evaluations=20)
    score, table = model.score(model.init().ema), ss.ancestral(model.sde, ss.log_snr_grid(model.sde, 20))
    x = ss.sample(jax.random.key(0), score, ss.with_denoising(model.sde, table), (20, 8, 8, 1))
    after = arrays(tmp_path / "a.npz")["after"].astype(float)
    assert np.abs(after - data.from_model(x)).mean() < 0.1  # the prior's mean differs by alpha(t_max)
    assert np.abs(after - data.mean[None]).mean() < np.abs(after - data.mean[None, ::-1, ::-1]).mean()


@pytest.mark.slow
def test_examples_come_from_files_too(digits_run, tmp_path):
    folder, _, data, _ = digits_run
    np.savez(tmp_path / "two.npz", x=data.held_out[:2])
    Image.fromarray(np.round(data.held_out[1, :, :, 0] * (255 / 16)).astype(np.uint8)).save(tmp_path / "one.png")
    for name, rows in (("two.npz", slice(0, 2)), ("one.png", slice(1, 2))):
        run(folder, tmp_path / f"{name}.out.npz", edit="denoise", noise=0.3, input=tmp_path / name)
        np.testing.assert_array_equal(arrays(tmp_path / f"{name}.out.npz")["before"], data.held_out[rows])
    said = run(folder, tmp_path / "blind.npz", edit="denoise", blind=True, as_is=True, input=tmp_path / "two.npz")
    assert "standard deviation of the noise: unknown; estimated: " in said and "rmse" not in said
    assert list(arrays(tmp_path / "blind.npz")) == ["before", "mean", "draw", "std"]


@pytest.mark.slow
def test_points_are_edited_and_shown_too(tmp_path):
    save_run(tmp_path / "moons", "moons", sde="flow")
    run(tmp_path / "moons", tmp_path / "a.png", edit="denoise", noise=0.3, n=100)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size[0] > 1500
    with pytest.raises(InputError, match="--edit direction needs data with classes; moons has none"):
        run(tmp_path / "moons", tmp_path / "b.png", edit="direction", attribute=1)
    with pytest.raises(InputError, match="moons are measurements, not levels"):
        run(tmp_path / "moons", tmp_path / "b.png", edit="sdedit", input=Path(__file__).with_suffix(".png"))


def test_every_flag_that_some_edits_read_is_a_flag():
    names = {field.name for field in dataclasses.fields(Flags)}
    assert set(edit.READS) | set(edit.NEEDS.values()) <= names and set(EVERY) == set(EDITS)
