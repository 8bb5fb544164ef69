"""An average of any length of a finished run, from the snapshots that training left.

    python -m experiments.run --ema-lengths 0.05,0.10 --workdir RUN
    python -m experiments.ema RUN --sigma-rel 0.08

Training with --ema-lengths stores its power averages in RUN/averages (see ``snapshots``). This program combines them to
the average of another relative length, at the end or at an earlier step, and writes RUN/ema-0.08, a run folder whose
evaluated average is that one.
"""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Annotated

import jax
import tyro

import scoresde as ss
from experiments.cli import commands
from experiments.cli.errors import InputError
from experiments.data.load import load
from experiments.models.build import build
from experiments.models.flags import Config
from experiments.training.snapshots import FOLDER, stored


@dataclasses.dataclass(frozen=True)
class Flags:
    """Combine the stored averages of a run to one of another length."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run trained with --ema-lengths."""
    sigma_rel: float
    """Relative length of the average, in (0, 0.2886]; 0.1 averages over about the last fifth of the training."""
    step: int | None = None
    """Steps after which the average is wanted; by default all that were made."""
    out: Path | None = None
    """Folder written; by default RUN/ema-SIGMA_REL."""


def combine(flags: Flags) -> str:
    """Write the folder; returns what was done, in a line."""
    try:
        settings = json.loads((flags.run / "config.json").read_text())
        metadata = ss.checkpoint.read_metadata(flags.run / "checkpoint")
    except (OSError, ValueError):
        raise InputError(f"{flags.run} holds no finished run; give the folder of one (--workdir)") from None
    data_dir = None if settings["data_dir"] is None else Path(settings["data_dir"])
    config = Config.of(**settings | {"workdir": flags.run, "data_dir": data_dir})
    model = build(config, load(config.data, data_dir=data_dir, options=config.options, record=metadata.get("data")))
    snapshots = list(stored(flags.run, model))
    if not snapshots:
        raise InputError(f"{flags.run / FOLDER} holds no averages; train with --ema-lengths 0.05,0.10")
    steps, lengths = [s for s, _, _ in snapshots], [length for _, length, _ in snapshots]
    step = max(steps) if flags.step is None else flags.step
    try:
        _, error = ss.training.reconstruction_weights(steps, lengths, flags.sigma_rel, step)
    except ValueError as problem:
        raise InputError(str(problem)) from None
    state, _ = ss.checkpoint.restore(flags.run / "checkpoint", jax.eval_shape(model.init))
    average = ss.training.reconstruct(snapshots, flags.sigma_rel, step)
    out = flags.out or flags.run / f"ema-{flags.sigma_rel:g}"
    out.mkdir(parents=True, exist_ok=True)
    state = dataclasses.replace(state, averages=(average, *state.averages[1:]))
    made = {"sigma_rel": flags.sigma_rel, "step": step, "profile_error": error}
    ss.checkpoint.save(out / "checkpoint", state, metadata | {"average": made})
    shutil.copy(flags.run / "config.json", out / "config.json")
    return f"{out}: sigma_rel {flags.sigma_rel:g} at step {step}, relative error of its profile {error:.4f}"


def main() -> None:
    """Command line; see ``commands.main``."""
    commands.main(Flags, "ema", lambda flags, console: console.print(combine(flags), highlight=False))


if __name__ == "__main__":
    main()
