"""Training as processes: devices, hosts, kills at any moment, streams, and what stops a run, against the plain run."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


def start(folder, *, devices=1, **flags):
    flags = json.dumps({"workdir": str(folder), "steps": 60, "save_seconds": 1000} | flags)
    # As a user has it: the same bits are promised of what XLA makes by itself, not of what the tests' flags make.
    xla = f"{os.environ['GIVEN_XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla}
    command = [sys.executable, str(ROOT / "tests" / "worker.py"), flags]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    said = [line for line in out.splitlines() if line.startswith("{")]
    return json.loads(said[-1]) if said else None


def arrays(folder):
    with np.load(folder / "final.npz") as stored:
        return [stored[name] for name in stored.files]


def assert_close(folder, reference):
    mine, theirs = arrays(folder), arrays(reference)
    for a, b in zip(mine, theirs, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """One device, uninterrupted, nothing special."""
    folder = tmp_path_factory.mktemp("plain")
    return folder, finish(start(folder))


@pytest.mark.slow
def test_eight_devices_agree_with_one_and_continue_from_its_checkpoint(plain, tmp_path):
    """fsdp 1 from the start; then 30 steps at fsdp 8, and the rest on one device."""
    report = finish(start(tmp_path / "data", devices=8))
    assert report["devices"] == 8
    assert_close(tmp_path / "data", plain[0])
    process = start(tmp_path / "fsdp", devices=8, fsdp=8, steps=60, save_seconds=0, keep=3)
    log = tmp_path / "fsdp" / "metrics.jsonl"
    while not (log.exists() and log.read_text().count("\n") > 5):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.kill()
    process.communicate()
    report = finish(start(tmp_path / "fsdp"))
    assert report["started"] > 0 and report["devices"] == 1
    assert_close(tmp_path / "fsdp", plain[0])


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [2, 8])
def test_parameters_cut_over_devices(plain, tmp_path, fsdp):
    finish(start(tmp_path, devices=8, fsdp=fsdp))
    assert_close(tmp_path, plain[0])


@pytest.mark.slow
def test_microbatches_on_eight_devices(plain, tmp_path):
    """They change nothing, neither there nor on one device."""
    finish(start(tmp_path / "one", microbatches=4))
    finish(start(tmp_path / "eight", microbatches=4, devices=8, fsdp=2))
    for name in ("one", "eight"):
        assert_close(tmp_path / name, plain[0])


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "fsdp"), [(1, 2), (2, 4)])
def test_two_processes_on_the_loopback_agree_with_one(plain, tmp_path, devices, fsdp):
    """Parameters are cut across the processes; one of them writes."""
    together = {"coordinator": f"127.0.0.1:{free_port()}", "processes": 2, "fsdp": fsdp, "devices": devices}
    both = [start(tmp_path, process_id=i, **together) for i in range(2)]
    reports = [finish(process) for process in both]
    assert reports[1] is None and reports[0]["devices"] == 2 * devices
    assert_close(tmp_path, plain[0])
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 20
    assert finish(start(tmp_path, steps=60))["started"] == 60  # what two processes wrote, one reads


def newest(folder):
    """The name of the newest checkpoint, "" before the first."""
    return max([p.name for p in folder.glob("checkpoint/0*")], default="")


def kill_and_resume(folder, kills, **flags):
    """Starts the run, kills it at a random moment after its first save, every third time during another, and so on;
    returns what the last one says, and how many were killed while saving."""
    rng, saving = np.random.default_rng(0), 0
    for number in range(kills):
        process = start(folder, save_seconds=0, keep=2, **flags)
        before = newest(folder)
        while newest(folder) == before:
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.15))
        while number % 3 == 2 and not list(folder.glob("checkpoint/tmp-*")) and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        saving += bool(list(folder.glob("checkpoint/tmp-*")))
    return finish(start(folder, save_seconds=0, **flags)), saving


@pytest.mark.slow
def test_killed_twice_it_ends_with_the_same_bits(plain, tmp_path):
    report, _ = kill_and_resume(tmp_path, 2)
    assert report["digest"] == plain[1]["digest"] and report["started"] > 0


@pytest.mark.slow
def test_a_stream_killed_twice_ends_with_the_same_bits(tmp_path):
    """Data that stay on disk: the position is the step."""
    np.save(tmp_path / "points.npy", np.random.default_rng(0).normal(size=(500, 2)).astype(np.float32))
    flags = {"data": f"npy:{tmp_path / 'points.npy'}", "in_memory_gib": 0}
    report, _ = kill_and_resume(tmp_path / "killed", 2, **flags)
    assert report["digest"] == finish(start(tmp_path / "whole", **flags))["digest"] and report["started"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
def test_killed_twenty_times_it_ends_with_the_same_bits(tmp_path, devices):
    flags = {"devices": devices, "fsdp": min(devices, 2), "steps": 600}
    report, saving = kill_and_resume(tmp_path / "killed", 20, **flags)
    whole = finish(start(tmp_path / "whole", **flags))
    assert report["started"] > 0 and saving > 3
    assert report["digest"] == whole["digest"]
    assert (tmp_path / "killed" / "metrics.jsonl").read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()
