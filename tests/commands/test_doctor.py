"""The doctor on machines that it has not: an accelerator that JAX does not use, broken arithmetic."""

import io

import jax
import numpy as np
import pytest
from rich.console import Console

from experiments import doctor
from experiments.doctor import Flags, accelerators, facts, program, unused


def nothing(package):
    return None


def machine(root, *files):
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_accelerators_are_known_by_their_files_and_drivers(tmp_path):
    assert accelerators(tmp_path, nothing) == []
    machine(tmp_path, "dev/null", "dev/nvidiactl", "dev/nvidia-uvm")  # of a driver without a card
    assert accelerators(tmp_path, nothing) == []
    assert accelerators(tmp_path, lambda package: package == "libtpu") == ["TPU (libtpu is installed)"]
    machine(tmp_path, "dev/nvidia0", "proc/driver/nvidia/version", "dev/accel0")
    found = accelerators(tmp_path, nothing)
    assert [line.split()[0] for line in found] == ["NVIDIA", "NVIDIA", "TPU"] and "dev/nvidia0" in found[0]


def test_an_accelerator_unused_is_said_with_what_to_do():
    card = ["NVIDIA (/dev/nvidia0)"]
    assert unused([], "cpu", {}) == unused(card, "gpu", {}) == ""
    assert "accelerator, NVIDIA (/dev/nvidia0)" in unused(card, "cpu", {}) and "jax[cuda13]" in unused(card, "cpu", {})
    assert "jax[tpu]" in unused(["TPU (/dev/accel0)"], "cpu", {})
    assert unused(card, "cpu", {"JAX_PLATFORMS": "cpu"}).endswith("unset JAX_PLATFORMS")
    assert unused(card, "cpu", {"CUDA_VISIBLE_DEVICES": ""}).endswith("unset CUDA_VISIBLE_DEVICES")


def test_facts_name_what_matters(tmp_path):
    machine(tmp_path, "proc/meminfo")
    (tmp_path / "proc/meminfo").write_text("MemTotal: 8388608 kB\nMemAvailable: 2097152 kB\n")
    known = dict(facts(tmp_path, {"XLA_FLAGS": "--some", "HOME": "/home"}))
    assert known["jax"] == jax.__version__ and known["host memory"] == "2.0 GiB free of 8.0"
    assert known["backend"].startswith("cpu, ") and known["XLA_FLAGS"] == "--some" and "HOME" not in known
    assert known["tensorflow"] == "not in this process"
    assert dict(facts(tmp_path / "elsewhere", {}))["host memory"] == "unknown"


def examined(root):
    text = io.StringIO()
    code = 0
    try:
        program(Flags(), Console(file=text, width=300), root)
    except SystemExit as stop:
        code = stop.code
    return code, text.getvalue()


@pytest.mark.parametrize("tests", [("compile",), pytest.param(tuple(doctor.TESTS), marks=pytest.mark.slow)])
def test_the_self_test_passes_here_and_an_idle_accelerator_does_not(tmp_path, monkeypatch, tests):
    monkeypatch.setattr(doctor, "DRIVERS", {})
    monkeypatch.setattr(doctor, "TESTS", {name: doctor.TESTS[name] for name in tests})
    code, said = examined(tmp_path)
    assert code == 0 and said.count(" ok ") == len(tests) and said.endswith("all is well\n")
    monkeypatch.setattr(doctor, "TESTS", {})
    code, said = examined(machine(tmp_path, "dev/nvidia0"))
    assert code == 1 and "ERROR: this machine has an accelerator" in said and "all is well" not in said


def test_wrong_arithmetic_is_found(tmp_path, monkeypatch):
    matmul = jax.numpy.matmul
    monkeypatch.setattr(doctor, "DRIVERS", {})
    monkeypatch.setattr(doctor, "TESTS", {"multiply": doctor._multiply})
    monkeypatch.setattr(doctor.jnp, "matmul", lambda a, b, precision: matmul(a, b) * np.float32(1.001))
    code, said = examined(tmp_path)
    assert code == 1 and "FAILED" in said
    assert "ERROR: the self-test 'multiply' failed: ValueError: a matmul at the highest precision" in said


@pytest.mark.parametrize("value", ["false", "0"])
def test_preallocation_is_told_on_a_gpu(tmp_path, monkeypatch, value):
    monkeypatch.setattr(doctor.jax, "default_backend", lambda: "gpu")
    assert "0.75 of the memory" in dict(doctor.memory(tmp_path, {}))["preallocation"]
    lines = dict(doctor.memory(tmp_path, {"XLA_PYTHON_CLIENT_PREALLOCATE": value}))
    assert "as it is needed" in lines["preallocation"]
