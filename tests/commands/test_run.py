"""The main job as a user meets it: real processes, killed and started again, and every mistake in one line."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import run
from experiments.data.load import load
from experiments.models.build import build
from experiments.models.flags import Config
from scoresde.checkpoint import folder as checkpoint

ROOT = Path(__file__).parents[2]
SMALL = ["--steps", "400", "--width", "32", "--depth", "1", "--samples", "20", "--likelihood-repeats", "1"]
SMALL += ["--sample-every", "200"]


def command(*flags):
    return [sys.executable, "-m", "experiments.run", *map(str, flags)]


def environment():
    return os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_DEBUG_NANS": "1"}  # a whole run has none


def start(folder, *flags):
    return subprocess.Popen(
        command(*flags), cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(folder, *flags):
    process = start(folder, *flags)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def refused(folder, *flags):
    """The one line that a mistake earns, of the program in this process."""
    err, handler = io.StringIO(), signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(err):
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["run", *map(str, flags)])
        patch.setattr("experiments.cli.compile_cache.set_up", lambda on: None)
        try:
            with pytest.raises(SystemExit) as stop:
                run.main()
        finally:
            signal.signal(signal.SIGTERM, handler)
    line = err.getvalue()
    assert stop.value.code == 2 and line.startswith("error: ") and line.count("\n") == 1, line
    return line


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One uninterrupted run of the main job, small."""
    folder = tmp_path_factory.mktemp("whole")
    code, out, err = finish(folder, *SMALL)
    assert code == 0, err
    return folder / "runs" / "digits-vp", out


def state_of(folder):
    """Every array of a finished run's checkpoint, with the structure that its configuration implies."""
    config = Config.of(**json.loads((folder / "config.json").read_text()) | {"workdir": folder, "data_dir": None})
    model = build(config, load(config.data))
    return checkpoint.restore(folder / "checkpoint", jax.eval_shape(model.init))[0]


def wait_for(condition, process, seconds=200):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_run_leaves_everything(finished):
    folder, out = finished
    report = json.loads((folder / "report.json").read_text())
    for name in ("config.json", "environment.json", "report.md", "figures/samples.png", "figures/likelihood.png"):
        assert (folder / name).stat().st_size > 0, name
    sheets = [f"{step:08d}.png" for step in (200, 400)]
    assert sorted(path.name for path in (folder / "figures" / "steps").iterdir()) == sheets
    assert all(f"figures/steps/{sheet}" in (folder / "report.md").read_text() for sheet in sheets)
    assert not (folder / "parts").exists()
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 8
    assert set(report["samples"]) == {"euler_maruyama", "predictor_corrector", "probability_flow"}
    assert report["likelihood"]["unit"] == "bits/dim" and report["likelihood"]["examples"] == 297
    assert 1.5 < report["likelihood"]["mean"] < 4.5 and 0 < report["likelihood"]["std_error"] < 0.2
    bound = report["likelihood"]["bound"]  # of a small network, trained shortly: near the exact figure and above it
    assert abs(bound["mean"] - report["likelihood"]["mean"]) < 5 * bound["std_error"] + 0.1
    assert 1.5 < bound["discrete_mean"] < report["likelihood"]["mean"] + 0.1 and bound["std_error"] < 0.1
    with np.load(folder / "arrays.npz") as arrays:
        assert arrays["samples_euler_maruyama"].shape == (20, 8, 8, 1)
        assert arrays["log_prob"].mean() == pytest.approx(report["likelihood"]["mean"], rel=1e-4)
    assert "bits/dim" in out and str(folder.name) in out


@pytest.mark.slow
def test_killed_and_started_again_it_ends_with_the_same_bits(finished, tmp_path):
    flags = [*SMALL, "--save-seconds", "0"]
    folder = tmp_path / "runs" / "digits-vp"
    for lines in (2, 5):
        process = start(tmp_path, *flags)
        log = folder / "metrics.jsonl"
        wait_for(lambda log=log, lines=lines: log.exists() and log.read_text().count("\n") >= lines, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    code, out, err = finish(tmp_path, *flags)
    assert code == 0 and "continuing from step" in out, err
    whole, resumed = state_of(finished[0]), state_of(folder)
    assert jax.tree.structure(whole) == jax.tree.structure(resumed)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        a, b = (jax.random.key_data(v) if jax.dtypes.issubdtype(v.dtype, jax.dtypes.prng_key) else v for v in (a, b))
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    assert (finished[0] / "metrics.jsonl").read_text() == (folder / "metrics.jsonl").read_text()
    first, second = (json.loads((f / "report.json").read_text()) for f in (finished[0], folder))
    assert first["likelihood"]["mean"] == second["likelihood"]["mean"]
    for sheet in (finished[0] / "figures" / "steps").iterdir():
        assert sheet.read_bytes() == (folder / "figures" / "steps" / sheet.name).read_bytes()


def test_asked_to_stop_it_saves_first(tmp_path):
    process = start(tmp_path, *SMALL, "--steps", "100000")
    log = tmp_path / "runs" / "digits-vp" / "metrics.jsonl"
    wait_for(lambda: log.exists() and log.read_text().count("\n") >= 2, process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command continues" in out, (out, err)
    steps = json.loads(log.read_text().splitlines()[-1])["step"]
    assert f"stopped at step {steps} of 100000" in out


def test_mistakes_are_one_line_each(finished, tmp_path):
    folder, _ = finished
    code, out, err = finish(tmp_path, "--sde", "vpp")
    assert code == 2 and err.startswith("error: --sde must be one of") and err.count("\n") == 1, (out, err)
    assert "did you mean digits" in refused(tmp_path, "--data", "digit")
    assert "--steps" in refused(tmp_path, "--steps", "many")
    assert "--dropout" in refused(tmp_path, "--dropout", "1.5")
    assert not (tmp_path / "runs").exists()
    (tmp_path / "file").touch()
    assert "cannot write" in refused(tmp_path, "--workdir", tmp_path / "file" / "run")
    before = saved_files(folder)
    assert "another --workdir" in refused(folder.parents[1], *SMALL, "--seed", "1")
    assert "already holds a run" in refused(folder.parents[1], *SMALL, "--no-resume")
    assert_kept(folder, before)


def saved_files(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def assert_kept(folder, before):
    after = saved_files(folder)
    assert after.keys() == before.keys()
    assert [str(p) for p in before if before[p] != after[p]] == []


def test_a_truncated_checkpoint_is_refused_and_kept(finished, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished[0], copy)
    for version in (copy / "checkpoint").iterdir():
        largest = max((p for p in version.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
        largest.write_bytes(largest.read_bytes()[:-100])
    before = saved_files(copy)
    assert "checkpoint" in refused(tmp_path, *SMALL, "--workdir", copy)
    assert_kept(copy, before)


def test_a_dry_run_says_what_it_would_do_and_does_nothing(tmp_path):
    code, out, err = finish(tmp_path, "--sde", "ve", "--dry-run")
    assert code == 0, err
    assert "VE(" in out and "parameters" in out and not (tmp_path / "runs").exists()
