"""Our networks beside PyTorch's, of the package diffusers: time of the forward pass and of a training step, time to
compile, and memory, in one run on the same machine.

    python -m experiments.benchmarks.networks --peers-python ENV/bin/python
    python -m experiments.benchmarks.networks --networks dit_s --batch 4 --repeats 3

Every network runs alone in a process of its own (``one_network.py``, ``diffusers_peers.py``), ours and its peer one
after the other, on all cores or the accelerator that each finds. Times are medians over the calls.
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from experiments.benchmarks.one_network import NETWORKS
from experiments.cli import commands
from experiments.cli.errors import InputError
from experiments.models.build import DTYPES

PEERS = Path(__file__).with_name("diffusers_peers.py")
INSTALL = "python -m venv ENV && ENV/bin/pip install torch diffusers, then --peers-python ENV/bin/python"
TITLES = ("network", "million parameters", "compile s", "forward ms", "training step ms", "peak MiB")


@dataclasses.dataclass(frozen=True)
class Flags:
    """Time the networks of the papers beside those of diffusers."""

    peers_python: Path | None = None
    """Python of an environment with torch and diffusers; without it ours are timed alone."""
    networks: str = ",".join(NETWORKS)
    """Which, separated by commas."""
    batch: int = 8
    """Examples of 32 x 32 a call."""
    repeats: int = 5
    """Timed calls of each kind, after two that are not counted."""
    dtype: str = "f32"
    """f32 or bf16, of the computation; parameters and Adam's moments are f32."""

    def names(self) -> list[str]:
        """The networks. Raises InputError for the first flag that cannot be."""
        names = [name for name in self.networks.split(",") if name]
        unknown = [name for name in names if name not in NETWORKS]
        if unknown or not names:
            raise InputError(f"--networks must be some of {','.join(NETWORKS)}, got {self.networks!r}")
        for flag, value in (("batch", self.batch), ("repeats", self.repeats)):
            if value < 1:
                raise InputError(f"--{flag} must be at least 1, got {value}")
        if self.dtype not in DTYPES:
            raise InputError(f"--dtype must be {' or '.join(DTYPES)}, got {self.dtype!r}")
        if self.peers_python is not None and not os.access(self.peers_python, os.X_OK):
            raise InputError(f"no Python at --peers-python {self.peers_python}; to make one: {INSTALL}")
        return names


def measured(command: list[Any], flags: Flags, environment: dict[str, str]) -> dict[str, float]:
    """What a process of its own finds."""
    words = [*command, "--batch", flags.batch, "--repeats", flags.repeats, "--dtype", flags.dtype]
    done = subprocess.run([str(word) for word in words], env=environment, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"{command[1] if command[1] != '-m' else command[2]} {command[-1]} failed: {last}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def row(name: str, found: dict[str, float]) -> str:
    """A line of the table."""
    compiling = [found[part] for part in ("forward_compile_s", "step_compile_s") if part in found]
    cells = [
        name,
        f"{found['parameters'] / 1e6:.1f}",
        " + ".join(f"{value:.1f}" for value in compiling),
        f"{found['forward_ms']:.0f}",
        f"{found['step_ms']:.0f}",
        f"{found['peak_mib']:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def program(flags: Flags, console: Console) -> None:
    """Print the table, a row as it is had."""
    names = flags.names()
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    device = jax.devices()[0].device_kind
    head = f"jax {jax.__version__}, {device}, {os.cpu_count()} cores, batch {flags.batch} of 32x32, {flags.dtype}"
    lines = [head, "", f"| {' | '.join(TITLES)} |", "|---" * len(TITLES) + "|"]
    for text in lines:
        console.print(text, highlight=False, markup=False)
    for name in names:
        ours = measured([sys.executable, "-m", "experiments.benchmarks.one_network", name], flags, dict(os.environ))
        console.print(row(f"{name}, ours", ours), highlight=False, markup=False)
        if flags.peers_python is not None:
            theirs = measured([flags.peers_python, PEERS, name], flags, alone)
            console.print(row(f"{name}, diffusers", theirs), highlight=False, markup=False)


def main() -> None:
    """Command line; see ``commands.main``."""
    commands.main(Flags, "benchmarks.networks", program, cached=lambda flags: False)


if __name__ == "__main__":
    main()
