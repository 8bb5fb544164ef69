"""Our training step beside that of diffusers: ``experiments.benchmarks.networks``, its rows kept."""

import os
import sys
from pathlib import Path
from typing import Any

from experiments.benchmarks import networks
from experiments.benchmarks.peers.processes import alone

NAMES, BATCH = ("ddpmpp", "adm_small", "dit_s"), 4


def measure(python: Path, repeats: int, names: tuple[str, ...] = NAMES) -> dict[str, Any]:
    """Of each network, ours and the peer's."""
    flags = networks.Flags(python, ",".join(names), batch=BATCH, repeats=repeats)
    rows = []
    for name in flags.names():
        command = [sys.executable, "-m", "experiments.benchmarks.one_network", name]
        rows.append({"network": name, "library": "scoresde"} | networks.measured(command, flags, dict(os.environ)))
        command = [python, networks.PEERS, name]
        rows.append({"network": name, "library": "diffusers"} | networks.measured(command, flags, alone()))
    return {"batch": BATCH, "rows": rows}
