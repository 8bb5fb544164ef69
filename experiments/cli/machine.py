"""What a program ran on: versions, machine, command and memory, for the folders and files that it leaves."""

import importlib.metadata
import os
import platform
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import jax

import scoresde as ss

PACKAGES = ("jax", "jaxlib", "flax", "optax", "diffrax", "orbax-checkpoint", "numpy")


def versions() -> dict[str, str]:
    """The version of this library and of the packages that its numbers come from."""
    return {"scoresde": ss.__version__} | {name: importlib.metadata.version(name) for name in PACKAGES}


def environment(program: str) -> dict[str, Any]:
    """Versions, machine and command: what a reader needs to repeat what ``python -m experiments.PROGRAM`` did."""
    device = jax.devices()[0]
    return {
        "command": shlex.join(["python", "-m", f"experiments.{program}", *sys.argv[1:]]),
        "versions": versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "devices": [f"{device.platform} {device.device_kind}"] * jax.device_count(),
    }


def peak_memory() -> int:
    """Largest resident memory of this process in MiB (getrusage would count that of the process that started it).

    0 where the system does not say, on Windows.
    """
    try:
        high_water = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        high_water = None
    if high_water:
        return int(high_water[1]) // 1024
    try:
        import resource
    except ImportError:
        return 0
    scale = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // scale
