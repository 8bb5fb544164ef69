"""A small training run as a process of its own: ``python tests/worker.py '{"steps": 60, ...}'`` (flags of Config)."""

import hashlib
import json
import sys
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from experiments.data.load import load
from experiments.models.build import build
from experiments.models.flags import Config
from experiments.training import fit
from experiments.training.processes import join, main_process
from scoresde.checkpoint.leaves import to_host

SMALL = {"data": "moons", "width": 32, "depth": 2, "batch": 64, "dropout": 0.2}


def main() -> None:
    flags = SMALL | json.loads(sys.argv[1])
    config = Config.of(**flags | {"workdir": Path(flags["workdir"])})
    join(config.engine)
    data = load(config.data, options=config.options)
    config = config.resolve(data)
    fit.STEPS_PER_CALL = 3
    model = build(config, data)
    plan = fit.Plan.of(config)
    fit.check_folder(plan, resume=True)
    state = fit.start(plan, model)
    started = int(state.step)
    state, _ = fit.fit(plan, data, model, state, Console(quiet=True))
    arrays = [to_host("", leaf)[1] for leaf in jax.tree.leaves(state)]
    if main_process():
        np.savez(config.folder / "final.npz", *arrays)
        digest = hashlib.sha256(b"".join(a.tobytes() for a in arrays)).hexdigest()
        print(json.dumps({"started": started, "devices": jax.device_count(), "digest": digest}))


if __name__ == "__main__":
    main()
