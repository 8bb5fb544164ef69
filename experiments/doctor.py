"""Is this machine set up? Versions, devices, memory and settings, and a self-test of five seconds.

    python -m experiments.doctor

The self-test compiles, multiplies matrices as NumPy does, trains two layers for one step and samples an exact mixture
in 20 evaluations. Exit code 1 if it fails, or if the machine has an accelerator that JAX does not use.
"""

import dataclasses
import math
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

import scoresde as ss
from experiments.cli import commands, machine

DEVICE_FILES = {"NVIDIA": ("dev/nvidia[0-9]*", "proc/driver/nvidia/version"), "TPU": ("dev/accel*",)}
DRIVERS = {"TPU": "libtpu"}
SETTINGS = (
    "JAX_PLATFORMS",
    "CUDA_VISIBLE_DEVICES",
    "XLA_FLAGS",
    "LIBTPU_INIT_ARGS",
    "JAX_ENABLE_X64",
    "JAX_DEFAULT_MATMUL_PRECISION",
    "JAX_NUM_CPU_DEVICES",
    "XLA_PYTHON_CLIENT_PREALLOCATE",
    "XLA_PYTHON_CLIENT_MEM_FRACTION",
    "XLA_PYTHON_CLIENT_ALLOCATOR",
)
WIDTH, HIGHEST_ERROR = 256, 1e-5
KS_LIMIT = 0.05
COLUMN = 18


@dataclasses.dataclass(frozen=True)
class Flags:
    """Print versions, devices, memory and settings, and run a self-test; exit code 1 if something is wrong."""


def accelerators(root: Path, installed: Callable[[str], object] = find_spec) -> list[str]:
    """The accelerators that the machine has, by its device files and installed drivers, and what tells so."""
    found = [
        f"{kind} ({path})" for kind, names in DEVICE_FILES.items() for name in names for path in sorted(root.glob(name))
    ]
    return found + [f"{kind} ({package} is installed)" for kind, package in DRIVERS.items() if installed(package)]


def unused(found: list[str], backend: str, environment: Mapping[str, str]) -> str:
    """What to say of accelerators that JAX does not use; empty if all is well."""
    if not found or backend != "cpu":
        return ""
    plugin = 'pip install -U "jax[tpu]"' if found[0].startswith("TPU") else 'pip install -U "jax[cuda13]" (or cuda12)'
    hiding = {"JAX_PLATFORMS": ("cpu",), "CUDA_VISIBLE_DEVICES": ("", "-1")}
    hidden = [name for name, values in hiding.items() if environment.get(name) in values]
    advice = f"unset {' and '.join(hidden)}" if hidden else f"{plugin}, and start again"
    return f"this machine has an accelerator, {found[0]}, but JAX computes on the CPU: {advice}"


def memory(root: Path, environment: Mapping[str, str]) -> list[tuple[str, str]]:
    """Memory of the host and of each device, and how JAX takes it."""
    lines = []
    try:
        sizes = dict(re.findall(r"(\w+):\s+(\d+) kB", (root / "proc/meminfo").read_text()))
        total, free = (int(sizes[name]) / 2**20 for name in ("MemTotal", "MemAvailable"))
        lines.append(("host memory", f"{free:.1f} GiB free of {total:.1f}"))
    except (OSError, KeyError):
        lines.append(("host memory", "unknown"))
    for device in jax.local_devices():
        statistics = device.memory_stats() or {}
        if "bytes_limit" in statistics:
            used, limit = (statistics[name] / 2**30 for name in ("bytes_in_use", "bytes_limit"))
            lines.append((f"memory of {device}", f"{limit - used:.1f} GiB free of the {limit:.1f} that JAX may take"))
    if jax.default_backend() == "gpu":
        fraction = environment.get("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.75")
        ahead = environment.get("XLA_PYTHON_CLIENT_PREALLOCATE", "true").lower() not in ("false", "0")
        taken = f"{fraction} of the memory at the start" if ahead else "memory as it is needed"
        lines.append(("preallocation", f"JAX takes {taken} (XLA_PYTHON_CLIENT_PREALLOCATE)"))
    return lines


def facts(root: Path, environment: Mapping[str, str]) -> list[tuple[str, str]]:
    """Name and value of all that is worth knowing of this installation."""
    devices = jax.devices()
    lines = [("python", f"{platform.python_version()} on {platform.platform()}")]
    lines += list(machine.versions().items())
    lines += [("backend", f"{jax.default_backend()}, {len(devices)} x {devices[0].device_kind}")]
    lines += memory(root, environment)
    cache = getattr(jax.config, "jax_compilation_cache_dir", None)
    lines += [("compile cache", cache or "off: every program compiles again")]
    lines += [(name, environment[name]) for name in SETTINGS if environment.get(name)]
    loaded = "tensorflow" in sys.modules
    lines += [("tensorflow", "in this process: it takes the memory of the GPU" if loaded else "not in this process")]
    return lines


def _require(condition: bool, complaint: str) -> None:
    if not condition:
        raise ValueError(complaint)


def _compile() -> str:
    compiled = jax.jit(lambda x: jnp.sum(jnp.sin(x) ** 2 + jnp.cos(x) ** 2)).lower(jnp.arange(64.0)).compile()
    value = float(compiled(jnp.arange(64.0)))
    _require(abs(value - 64) < 1e-3, f"sum of 64 ones is {value}")
    return "sin^2 + cos^2 is 1"


def _multiply() -> str:
    a, b = np.random.default_rng(0).normal(size=(2, WIDTH, WIDTH))
    truth = a @ b

    def error(precision: str | None) -> float:
        got = np.asarray(jnp.matmul(jnp.asarray(a, float), jnp.asarray(b, float), precision=precision), np.float64)
        return float(np.linalg.norm(got - truth) / np.linalg.norm(truth))

    default, highest = error(None), error("highest")
    _require(highest < HIGHEST_ERROR, f"a matmul at the highest precision has relative error {highest:.1e}")
    return f"relative error of a matmul {default:.1e} by default, {highest:.1e} at the highest precision"


def _train() -> str:
    rng, precond = np.random.default_rng(0), ss.Preconditioner(ss.VP())
    params = {name: rng.normal(size=shape).astype("f4") for name, shape in (("first", (2, 16)), ("second", (16, 2)))}

    def loss(params: Any, key: jax.Array, batch: jax.Array) -> jax.Array:
        score = precond.score(lambda u, c: jnp.tanh(u @ params["first"] + c[:, None]) @ params["second"])
        return ss.denoising_score_matching(key, precond.sde, score, batch)

    trainer = ss.Trainer(loss, optax.sgd(1e-3))
    batches = jnp.asarray(rng.normal(size=(1, 64, 2)), jnp.float32)
    state, metrics = trainer.run_batches(trainer.init(jax.random.key(0), params), batches)
    value = float(np.asarray(metrics["loss"])[0])
    _require(int(state.step) == 1 and math.isfinite(value), f"loss {value} after step {int(state.step)}")
    return f"one step of training, loss {value:.3g}"


def _sample() -> str:
    sde, count = ss.VP(), 2000
    law = ss.GaussianMixture(np.array([[-1.0], [1.0]]), np.full(2, 0.2), np.ones(2))
    x = ss.sample(jax.random.key(0), law.score(sde), ss.best_solver(sde, 20), (count, 1))
    x = np.sort(np.asarray(x, np.float64)[:, 0])
    below = np.mean([[0.5 + 0.5 * math.erf((a - mean) / (0.2 * math.sqrt(2))) for a in x] for mean in (-1, 1)], axis=0)
    distance = float(np.max(np.abs(below - (np.arange(count) + 0.5) / count)))  # of the distributions
    _require(distance < KS_LIMIT, f"Kolmogorov distance {distance:.3g} to the law, expected below {KS_LIMIT}")
    return f"{count} samples of a mixture in 20 evaluations, Kolmogorov distance {distance:.3f} to the law"


TESTS: dict[str, Callable[[], str]] = {"compile": _compile, "multiply": _multiply, "train": _train, "sample": _sample}


def self_test(console: Console) -> list[str]:
    """Run every test and print its result; returns what failed."""
    failed = []
    for name, test in TESTS.items():
        started = time.monotonic()
        try:
            result = "ok    " + test()
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            failed.append(f"the self-test {name!r} failed: {type(error).__name__}: {reason}")
            result = "FAILED"
        console.print(f"{name:{COLUMN}} {result}  ({time.monotonic() - started:.1f} s)", highlight=False, markup=False)
    return failed


def program(flags: Flags, console: Console, root: Path = Path("/")) -> None:
    """Print everything; raises SystemExit(1) after a loud line if something is wrong. ``root`` holds dev/ and proc/."""
    for name, value in facts(root, os.environ):
        console.print(f"{name:{COLUMN}} {value}", highlight=False, markup=False)
    wrong = self_test(console)
    if message := unused(accelerators(root), jax.default_backend(), os.environ):
        wrong.append(message)
    for message in wrong:
        console.print(f"\nERROR: {message}", style="bold red", highlight=False, markup=False)
    if wrong:
        raise SystemExit(1)
    console.print("\nall is well", highlight=False)


def main() -> None:
    """Command line; see ``commands.main``."""
    commands.main(Flags, "doctor", program)


if __name__ == "__main__":
    main()
