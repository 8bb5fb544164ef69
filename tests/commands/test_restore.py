"""``experiments.inverse``: what its words measure, and draws beside the exact posterior.

A network as it is before training has the score of N(0, I) in model units, so that posteriors are Gaussian.
"""

import io
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from small import save_run

from experiments.cli.errors import InputError
from experiments.data.load import load
from experiments.editing import restoration
from experiments.inverse import METHODS, SAMPLERS, Flags, program
from experiments.models.saved import open_run

pytestmark = pytest.mark.usefixtures("opened_once")


def restore(folder, out, **flags):
    text = io.StringIO()
    program(Flags(checkpoint=folder, out=out, **flags), Console(file=text, width=500))
    with np.load(out / "draws.npz") as stored:
        return dict(stored), json.loads((out / "report.json").read_text()), text.getvalue()


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "moons-vp"
    save_run(folder, "moons")
    return folder


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Three dependent columns of other units, one of them skewed, and a run on them."""
    folder = tmp_path_factory.mktemp("table")
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 400))
    x = np.stack([10 + 3 * a, np.exp(0.5 * a + 0.3 * b), 0.1 * b - 0.2 * a], 1)
    np.savetxt(folder / "x.csv", x, delimiter=",", header="a,b,c", comments="")
    save_run(folder / "run", f"csv:{folder / 'x.csv'}")
    return folder / "run", x


@pytest.mark.parametrize("method", ["pigdm", pytest.param("mmps", marks=pytest.mark.slow)])
def test_the_draws_are_of_the_exact_posterior(points, tmp_path, method):
    """u ~ N(0, I) in R^2, one entry measured with noise s: it is N(y/(1 + s^2), s^2/(1 + s^2)), the other N(0, 1)."""
    each, s = 600, 0.5
    found, report, said = restore(
        points, tmp_path / "out", operator="random", method=method, noise=s, n=3, each=each, evaluations=60
    )
    data = open_run(points).data
    u = np.asarray(data.elements(found["draws"].reshape(-1, 2))).reshape(3, each, 2)
    measured = np.asarray(data.elements(found["measured"]))
    known = int(np.argmax(np.abs(measured[0])))
    mean, var = np.zeros((3, 2)), np.ones((3, 2))
    mean[:, known], var[:, known] = measured[:, known] / (1 + s**2), s**2 / (1 + s**2)
    np.testing.assert_array_less(np.abs(u.mean(axis=1) - mean), 5 * np.sqrt(var / each) + 0.02)
    np.testing.assert_array_less(np.abs(u.var(axis=1) / var - 1), 5 * np.sqrt(2 / each) + 0.05)
    truth = np.asarray(data.elements(found["truth"]))
    assert report["compared"]["error"] == pytest.approx(np.sqrt(np.mean((u.mean(axis=1) - truth) ** 2)), rel=1e-3)
    assert "calibration" in said and (tmp_path / "out" / "restored.png").stat().st_size > 2000


def test_the_words_measure_what_they_say():
    digits = load("digits")
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)

    def measured(word, data=digits, x=x, **flags):
        flags = Flags(checkpoint=None, out=None, operator=word, **flags)  # pyright: ignore[reportArgumentType]
        return np.asarray(restoration.operator_of(flags, data)(jnp.asarray(x)))

    middle = np.zeros_like(x)
    middle[:, 2:6, 2:6] = x[:, 2:6, 2:6]
    np.testing.assert_array_equal(measured("outpaint"), middle)
    np.testing.assert_array_equal(measured("box"), x - middle)
    left = x.copy()
    left[:, :, 4:] = 0
    np.testing.assert_array_equal(measured("half"), left)
    blocks = x.reshape(2, 2, 4, 2, 4, 1).mean(axis=(2, 4))
    np.testing.assert_allclose(measured("downsample", factor=4), blocks, rtol=1e-5, atol=1e-6)
    for word, share in (("random", 0.25), ("compressed", 0.5)):
        assert np.count_nonzero(measured(word, keep=share)[0]) == share * 64
    mean = np.asarray(measured("fourier", keep=0.1))[:, 0, 0, 0]
    np.testing.assert_allclose(mean, x.sum(axis=(1, 2, 3)) / 8, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_missing_columns_are_those_of_the_file(table, tmp_path):
    """The model sees the columns mixed and mapped; the columns that are known come back in their own units."""
    run, x = table
    found, report, _ = restore(
        run, tmp_path / "a", operator="columns", missing="2", method="pigdm", noise=0.01, n=2, each=4, evaluations=30
    )
    spread = x.std(axis=0)
    off = np.abs(found["draws"] - found["truth"][:, None]) / spread
    assert off[..., [0, 2]].max() < 0.1 < off[..., 1].max()
    assert report["compared"]["residual"] == pytest.approx(1, abs=0.8)


@pytest.mark.slow
def test_a_file_with_empty_cells_is_filled_in(table, tmp_path):
    run, x = table
    lines = ["a,b,c", f"{x[0, 0]},,{x[0, 2]}", f"{x[1, 0]},{x[1, 1]},nan", f",{x[2, 1]},{x[2, 2]}"]
    (tmp_path / "holes.csv").write_text("\n".join(lines))
    flags = {"input": tmp_path / "holes.csv", "method": "pigdm", "noise": 0.01, "each": 3, "evaluations": 30}
    found, report, said = restore(run, tmp_path / "out", **flags)
    off = np.abs(found["draws"] - x[:3, None]) / x.std(axis=0)
    missing = np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]], bool)
    assert off.transpose(0, 2, 1)[~missing].max() < 0.1
    assert "compared" not in report and "truth" not in found and found["draws"].shape == (3, 3, 3)
    filled = np.where(missing, found["draws"].mean(axis=1), x[:3])
    np.testing.assert_allclose(found["filled"], filled, rtol=1e-6)
    written = np.genfromtxt(tmp_path / "out" / "filled.csv", delimiter=",", names=True)
    np.testing.assert_allclose([list(row) for row in written], found["filled"], rtol=1e-6)
    assert written.dtype.names == ("a", "b", "c")
    assert "nothing to do" in restore(run, tmp_path / "out", **flags)[2]


@pytest.mark.slow
@pytest.mark.parametrize("method", [*METHODS, *SAMPLERS])
def test_every_method_draws_on_digits(digits_run, tmp_path, method):
    found, report, _ = restore(digits_run[0], tmp_path / "out", method=method, n=2, each=2, evaluations=20)
    assert np.isfinite(list(report["compared"].values())).all() and found["draws"].shape == (2, 2, 8, 8, 1)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"operator": "columns"}, r"--operator columns is not for examples of shape \(8, 8, 1\): take box"),
        ({"operator": "grey"}, "needs colour: the examples have one channel"),
        ({"operator": "downsample", "factor": 3}, "--factor 3 must divide the sides 8 x 8"),
        ({"operator": "box", "missing": "1"}, "--missing is for --operator columns or span"),
        ({"noise": 0.0}, "--noise must be positive, got 0.0"),
        ({"keep": 1.5}, r"--keep must be in \(0, 1\], got 1.5"),
        ({"each": 1}, "--each must be at least 2, got 1"),
        ({"label": 3}, "knows no classes: drop --label"),
        ({"operator": "box", "input": Path("x.npz")}, "--input brings its own missing values: drop --operator"),
        ({"input": Path("none.npz")}, "none.npz"),
    ],
)
def test_what_cannot_be_is_one_line(digits_run, tmp_path, flags, message):
    with pytest.raises(InputError, match=message) as error:
        restore(digits_run[0], tmp_path / "out", **flags)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_files_that_do_not_fit_are_one_line(table, tmp_path):
    run, _ = table
    np.save(tmp_path / "wide.npy", np.zeros((2, 5)))
    np.save(tmp_path / "empty.npy", np.full((2, 3), np.nan))
    np.save(tmp_path / "objects.npy", np.array([None] * 3))
    (tmp_path / "short.npy").write_bytes((tmp_path / "wide.npy").read_bytes()[:-8])
    for name in ("x.txt", "text.npy", "text.npz"):
        (tmp_path / name).write_text("1")
    for name, message in (
        ("wide.npy", r"holds float64 \(2, 5\), the model takes numbers \(n, 3\)"),
        ("empty.npy", r"example 0 \(from 0\) has no value at all"),
        ("x.txt", "must end in .npy, .npz, .csv"),
        ("objects.npy", "holds Python objects, which are not opened"),
        ("short.npy", "promises the shape .2, 5., 80 bytes, but 72 follow"),
        ("text.npy", r"text.npy cannot be read \(no array of NumPy\)"),
        ("text.npz", r"text.npz cannot be read \(no zip of arrays\)"),
    ):
        with pytest.raises(InputError, match=message):
            restore(run, tmp_path / "out", input=tmp_path / name)


def test_spans_and_grey_are_for_series_and_colour(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(60, 12, 2)).astype(np.float32))
    data = load(f"npz:{tmp_path / 'x.npz'}")
    x = jax.random.normal(jax.random.key(0), (2, 12, 2))

    def operator(**flags):
        return restoration.operator_of(Flags(checkpoint=None, out=None, **flags), data)  # pyright: ignore[reportArgumentType]

    found = operator(operator="span", missing="3:7")(x)
    np.testing.assert_array_equal(found, np.delete(x, np.arange(3, 7), axis=1))
    with pytest.raises(InputError, match="--missing 3:70: a span must have"):
        operator(operator="span", missing="3:70")
    with pytest.raises(InputError, match="needs --missing START:STOP"):
        operator(operator="span")
