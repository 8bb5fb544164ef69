"""Time to import, size on disk, and time from the start of a process to its first samples, ours and the peers'.

Each time is the median over fresh processes, with the files already in the page cache: the first process of a kind is
not counted. The size is that of the packages with all that they require (``scripts/installed.py``).
"""

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.peers.processes import SCRIPTS, alone, output, script

IMPORTS = {
    "diffusers": "from diffusers import DPMSolverMultistepScheduler",
    "azula": "import azula.sample, azula.noise, azula.denoise",
    "torchdiffeq": "import torchdiffeq",
    "torch": "import torch",
}
REQUIRED = {"diffusers": "torch,diffusers", "azula": "torch,azula", "torchdiffeq": "torchdiffeq", "torch": "torch"}
SAMPLERS = ("diffusers", "k-diffusion", "azula")
FIRST = "experiments.benchmarks.peers.first_sample"


def median_s(command: list[Any], environment: dict[str, str], repeats: int) -> float:
    """Seconds of a process that runs ``command``."""
    taken = []
    for _ in range(1 + repeats):
        started = time.perf_counter()
        output(command, environment)
        taken.append(time.perf_counter() - started)
    return float(np.median(taken[1:]))


def ours(repeats: int) -> dict[str, dict[str, float]]:
    """By package; the first samples with an empty and a filled compile cache."""
    here = dict(os.environ)
    found: dict[str, dict[str, float]] = {
        package: {"import_s": median_s([sys.executable, "-c", f"import {package}"], here, repeats)}
        for package in ("scoresde", "jax")
    }
    for name, size in script(Path(sys.executable), "installed.py", "scoresde", "jax").items():
        found[name] |= size
    with tempfile.TemporaryDirectory() as folder:
        kept = {k: v for k, v in here.items() if k != "JAX_COMPILATION_CACHE_DIR"} | {"XDG_CACHE_HOME": folder}
        found["scoresde"]["first_sample_s"] = median_s([sys.executable, "-m", FIRST], kept, repeats)
    off = here | {"SCORESDE_COMPILE_CACHE": "off"}
    found["scoresde"]["first_sample_cold_s"] = median_s([sys.executable, "-m", FIRST], off, repeats)
    return found


def theirs(python: Path, repeats: int) -> dict[str, dict[str, float]]:
    """By package."""
    found: dict[str, dict[str, float]] = {
        package: {"import_s": median_s([python, "-c", words], alone(), repeats)} for package, words in IMPORTS.items()
    }
    sizes = script(python, "installed.py", *REQUIRED.values())
    for package, names in REQUIRED.items():
        found[package] |= sizes[names]
    for package in SAMPLERS:
        command = [python, SCRIPTS / "first_sample.py", package]
        found.setdefault(package, {})["first_sample_s"] = median_s(command, alone(), repeats)
    return found


def measure(python: Path, repeats: int) -> dict[str, Any]:
    """Everything that the table holds, and the seconds of a Python that does nothing."""
    bare = median_s([sys.executable, "-c", ""], dict(os.environ), repeats)
    return {"python_s": bare, "packages": ours(repeats) | theirs(python, repeats)}
