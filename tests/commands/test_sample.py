"""Samples to disk from a trained model: what the library draws, restartable, on any number of devices."""

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from small import save_run

import scoresde as ss
from experiments import evaluate
from experiments.cli import commands
from experiments.cli.errors import InputError
from experiments.data.dataset import Data
from experiments.measures import samples
from experiments.models import saved
from experiments.models.flags import Config
from experiments.models.saved import open_run
from experiments.models.solvers import BEST, GRIDS, SOLVERS
from experiments.sample import Flags, program

ROOT = Path(__file__).parents[2]


pytestmark = pytest.mark.usefixtures("opened_once")


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "moons-flow"
    save_run(folder, "moons", sde="flow")
    return folder


def sample(folder, out, **flags):
    text = io.StringIO()
    program(Flags(checkpoint=folder, out=out, **{"n": 6, "evaluations": 4} | flags), Console(file=text, width=500))
    return text.getvalue()


def manifest(out):
    return json.loads((out.parent / f"{out.name}.json").read_text())


def test_the_file_holds_what_the_library_draws_from_the_seed(digits_run, tmp_path):
    folder, _, data, model = digits_run
    said = sample(folder, tmp_path / "a.npz", seed=5)
    assert "moving average" in said and "step 0" in said
    score = model.score(model.init().ema)
    whole = ss.sample(jax.random.key(5), score, ss.best_solver(model.sde, 4), (6, 8, 8, 1))
    with np.load(tmp_path / "a.npz") as stored:
        assert stored.files == ["arr_0"] and stored["arr_0"].dtype == np.uint8
        np.testing.assert_array_equal(stored["arr_0"], data.from_model(whole))
    about = manifest(tmp_path / "a.npz")
    assert about["plan"].pop("inputs").keys() == {"checkpoint"}
    assert about["plan"] == {
        **{"parameters": "average", "solver": "best", "grid": None, "eta": None, "snr": None},
        **{"evaluations": 4, "seed": 5, "count": 6, "label": None, "guidance": 1.0},
    }
    assert about["step"] == 0
    assert about["shape"] == [6, 8, 8, 1] and about["versions"]["jax"] == jax.__version__ and about["levels"] == 17


def test_every_form_shows_the_same_samples(digits_run, tmp_path):
    folder = digits_run[0]
    for out in ("a.npz", "images", "grid.png"):
        sample(folder, tmp_path / out)
    with np.load(tmp_path / "a.npz") as stored:
        levels = stored["arr_0"][..., 0]
    assert sorted(p.name for p in (tmp_path / "images").iterdir()) == [f"{i:06d}.png" for i in range(6)]
    for i in range(6):
        with Image.open(tmp_path / "images" / f"{i:06d}.png") as picture:
            assert picture.mode == "L"
            np.testing.assert_array_equal(np.asarray(picture), np.round(levels[i] / 16 * 255))
    with Image.open(tmp_path / "grid.png") as picture:
        page = np.asarray(picture)
    for i in range(6):  # in rows of three, every pixel 8 wide, 3 between tiles
        corner = page[i // 3 * 67 :, i % 3 * 67 :][:64:8, :64:8, 0]
        np.testing.assert_array_equal(corner, np.round(levels[i] / 16 * 255))
    assert not list(tmp_path.glob(".*"))


def test_stopped_and_started_again_it_ends_with_the_same_bits(digits_run, tmp_path, monkeypatch):
    folder = digits_run[0]
    sample(folder, tmp_path / "whole.npz", n=10, batch=4)
    drawn = []

    def stopping(key, score, table, shape, *, first, last=0):
        drawn.append(first)
        if first == last:
            raise KeyboardInterrupt
        return ss_sample(key, score, table, shape, first=first)

    ss_sample = ss.sample
    monkeypatch.setattr(samples.ss, "sample", stopping)
    for last in (0, 4, 8):
        with pytest.raises(Exception, match=f"{last} of 10; the same command continues"):
            stopping.__kwdefaults__["last"] = last
            sample(folder, tmp_path / "parts.npz", n=10, batch=4)
        assert not (tmp_path / "parts.npz").exists()
    with pytest.raises(InputError, match="unfinished job with seed 0, not 1"):
        sample(folder, tmp_path / "parts.npz", n=10, batch=4, seed=1)
    stopping.__kwdefaults__["last"] = None
    sample(folder, tmp_path / "parts.npz", n=10, batch=4)
    assert drawn == [0, 0, 4, 4, 8, 8]
    assert (tmp_path / "parts.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    assert "nothing to do" in sample(folder, tmp_path / "parts.npz", n=10, batch=4) and len(drawn) == 6
    with pytest.raises(InputError, match="was made with count 10, not 6"):
        sample(folder, tmp_path / "parts.npz", batch=4)


def test_samples_that_are_not_finite_are_refused_and_not_kept(digits_run, tmp_path, monkeypatch):
    broken = np.zeros((6, 8, 8, 1), np.float32)
    broken[[1, 4], 3] = np.nan
    monkeypatch.setattr(samples.ss, "sample", lambda *arguments, first: broken)
    with pytest.raises(InputError, match="2 of 6 samples are not finite: take more --evaluations"):
        sample(digits_run[0], tmp_path / "a.npz")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_real_process_is_stopped_at_any_time(digits_run, tmp_path, number):
    folder = digits_run[0]
    sample(folder, tmp_path / "whole.npz", n=400, batch=2, evaluations=20)
    command = [sys.executable, "-m", "experiments.sample", "--checkpoint", str(folder), "--n", "400", "--batch", "2"]
    command += ["--out", str(tmp_path / "parts.npz")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    for parts in (1, 60):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while len(list(tmp_path.glob(".parts.npz.parts/samples-*.npz"))) < parts:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        if number == signal.SIGKILL:
            continue
        assert process.returncode == 130 and "the same command continues from there" in out and not err, (out, err)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "parts.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"{name}.npz{end}" for name in ("parts", "whole") for end in ("", ".json")
    ]


EIGHT = """
import json, sys
from pathlib import Path
import jax
from rich.console import Console
from experiments import evaluate, sample
run, out = map(Path, sys.argv[1:])
assert jax.device_count() == 8
sample.program(sample.Flags(checkpoint=run, out=out / "a.npz", n=20, evaluations=4, batch=16), Console(quiet=True))
flags = evaluate.Flags(run, out / "e.json", examples=11, samples=0, probes=1, repeats=1, evaluations=5)
evaluate.program(flags, Console(quiet=True))
"""


@pytest.mark.slow
def test_eight_devices_make_the_samples_and_likelihoods_of_one(points, tmp_path):
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    (tmp_path / "eight").mkdir()
    command = [sys.executable, "-c", EIGHT, str(points), str(tmp_path / "eight")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (tmp_path / "one").mkdir()
    sample(points, tmp_path / "one" / "a.npz", n=20)
    flags = evaluate.Flags(
        points, tmp_path / "one" / "e.json", examples=11, samples=0, probes=1, repeats=1, evaluations=5
    )
    evaluate.program(flags, Console(quiet=True))
    for name in ("a.npz", "e.json.npz"):
        with np.load(tmp_path / "one" / name) as one, np.load(tmp_path / "eight" / name) as eight:
            for key in one.files:
                np.testing.assert_allclose(eight[key], one[key], rtol=2e-4, atol=2e-4)
    assert manifest(tmp_path / "eight" / "a.npz")["devices"] == ["cpu cpu"] * 8


@pytest.mark.parametrize("solver", [BEST, *SOLVERS])
def test_evaluations_are_met_or_the_most_below(solver):
    sde = ss.VP()
    for wanted in (7, 12):
        table = Flags(checkpoint=Path(), out=Path("a.npz"), solver=solver, evaluations=wanted).table(sde)
        step = {"heun": 2, "dpm-single": 2, "seeds": 2, "predictor-corrector": 2}.get(solver, 1)
        assert wanted - step < table.num_evals <= wanted
        assert table.times[0] == sde.t_max and table.times[-1] == pytest.approx(sde.t_min)


def test_each_word_is_the_library_s_table():
    sde = ss.Cosine()

    def same(flags, expected):
        flags = Flags(checkpoint=Path(), out=Path("a.npz"), evaluations=6, **flags)
        jax.tree.map(np.testing.assert_array_equal, flags.table(sde), expected)

    same({"solver": "unipc"}, ss.unipc(sde, ss.log_snr_grid(sde, 6)))
    same({"solver": "unipc", "grid": "uniform"}, ss.unipc(sde, ss.uniform_grid(sde, 6)))
    same({"solver": "ddim", "eta": 0.5}, ss.ddim(sde, ss.log_snr_grid(sde, 6), eta=0.5))
    same({"solver": "heun"}, ss.heun(sde, ss.karras_grid(sde, 3)))
    denoised = ss.with_denoising(sde, ss.euler_maruyama(sde, ss.log_snr_grid(sde, 5)))
    same({"solver": "euler-maruyama"}, denoised)


def test_points_make_a_picture_and_raw_parameters_are_named(points, tmp_path):
    assert "last parameters" in sample(points, tmp_path / "p.png", raw=True, n=30)
    with Image.open(tmp_path / "p.png") as picture:
        assert np.asarray(picture.convert("L")).min() < 200
    assert manifest(tmp_path / "p.png")["plan"]["parameters"] == "raw"


def test_mistakes_are_one_line_each(digits_run, points, tmp_path):
    folder = digits_run[0]
    out = tmp_path / "a.npz"
    for flags, message in (
        ({"grid": "karras"}, "--solver best chooses its grid"),
        ({"solver": "unipc", "eta": 0.5}, "--eta has no meaning for --solver unipc; it is for ddim, dpm"),
        ({"solver": "ddim", "eta": -1.0}, "--solver ddim: eta must be at least 0"),
        ({"solver": "heun", "evaluations": 1}, "takes at least 2 evaluations, got --evaluations 1"),
        ({"n": 0}, "--n must be at least 1, got 0"),
        ({"out": tmp_path / "a.jpg"}, "must end in .npz or .png"),
        ({"checkpoint": tmp_path / "none"}, "no folder .*none: expected that of a run"),
        ({"checkpoint": points, "out": tmp_path / "folder"}, r"shape \(2,\) are no images"),
    ):
        with pytest.raises(InputError, match=message) as raised:
            program(dataclasses.replace(Flags(checkpoint=folder, out=out), **flags), Console(quiet=True))
        assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())
    assert set(GRIDS) >= {solver.grid for solver in SOLVERS.values()}


def test_a_run_is_opened_as_it_was_saved(digits_run, tmp_path):
    folder, config, data, model = digits_run
    for path in (folder, folder / "checkpoint"):
        opened = open_run(path)
        assert opened.config == config and len(opened.data.train) == 0
        assert opened.data.event_shape == data.event_shape and opened.data.levels == data.levels
        jax.tree.map(np.testing.assert_array_equal, opened.state.params, model.init().params)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty is no run: no checkpoint in it"):
        open_run(tmp_path / "empty")
    ss.checkpoint.save(tmp_path / "other" / "checkpoint", {"a": np.ones(2)}, {"config": {"sde": "vp", "colour": 3}})
    with pytest.raises(InputError, match="another version of scoresde: its configuration has colour"):
        open_run(tmp_path / "other")
    ss.checkpoint.save(tmp_path / "mine", {"a": np.ones(2)}, {"author": "me"})
    with pytest.raises(InputError, match="another version of scoresde: no configuration"):
        open_run(tmp_path / "mine")
    ss.checkpoint.save(tmp_path / "less", {"a": np.ones(2)}, {"config": config.training(), "data": data.record()})
    with pytest.raises(InputError, match="another structure or configuration|leaves"):
        open_run(tmp_path / "less")


def test_a_record_of_the_data_makes_the_data_needless(digits_run, tmp_path, monkeypatch):
    _, config, data, model = digits_run
    record = {"name": "digits"}
    none = dataclasses.replace(data, train=data.train[:0], held_out=data.held_out[:0])
    monkeypatch.setattr(saved, "load", None)
    monkeypatch.setattr(Data, "from_record", lambda found: none if found == record else None, raising=False)
    ss.checkpoint.save(tmp_path / "alone", model.init(), {"config": config.training(), "data": record})
    opened = open_run(tmp_path / "alone")
    assert opened.data is none
    assert opened.config == Config.of(**config.training())  # the other flags, workdir among them, as by default


def test_sigterm_stops_a_program_that_ignores_sigint(monkeypatch, capsys):
    """As every program in the background of a script does."""

    def program(flags, console):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    handlers = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr(sys, "argv", ["sample", "--checkpoint", "run", "--out", "a.npz"])
    monkeypatch.setattr("experiments.cli.compile_cache.set_up", lambda on: None)
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with pytest.raises(SystemExit) as stop:
            commands.main(Flags, "sample", program)
    finally:
        for number, handler in handlers:
            signal.signal(number, handler)
    assert stop.value.code == 130 and "the same command continues" in capsys.readouterr().out
