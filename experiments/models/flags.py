"""A run as its command line describes it: what it is called, and a value for each part of it.

The values go to the parts, each its own; only what opens, stores or compares runs sees them together. On disk and for
sweeps they are one flat dict, a flag an entry.
"""

import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tyro

import scoresde as ss
from experiments.cli.errors import InputError, at_least, check_words, shares
from experiments.data.arrays import Options
from experiments.data.dataset import Data
from experiments.models.score_objective import profiles
from experiments.models.targets import TARGETS
from experiments.models.values import (
    BELOW_ONE,
    LOWEST,
    SHARES,
    Architecture,
    Engine,
    Evaluation,
    Objective,
    Optimiser,
)

SDEWord = Literal["vp", "subvp", "ve", "cosine", "flow"]
# Data have unit standard deviation here; with sigma_min = 1e-3 VE resolves them as finely as the others at their t_min.
SDES: dict[SDEWord, Any] = {
    "vp": ss.VP,
    "subvp": ss.SubVP,
    "ve": partial(ss.VE, sigma_min=1e-3),
    "cosine": ss.Cosine,
    "flow": ss.RectifiedFlow,
}
HERE = {"workdir", "resume", "dry_run", "data_dir", "in_memory_gib", "remat", "scan"}  # what a checkpoint does not show


@dataclasses.dataclass(frozen=True)
class Config:
    """Train a score network by denoising score matching, sample it three ways and evaluate its exact likelihood."""

    target: tyro.conf.Suppress[Literal["score", "class"]] = "score"
    """What is learned: the score, or the class of a noisy example."""
    sde: SDEWord = "vp"
    """The forward process."""
    data: str = "digits"
    """digits, mixture, moons, spirals, checkerboard, mnist, fashion-mnist, cifar10, or npz: npy: images: csv: parquet:
    idx: audio: PATH, or hf:NAME."""
    data_dir: Path | None = None
    """Where the files of mnist, fashion-mnist and cifar10 are; without it they are downloaded and checked."""
    workdir: Path | None = None
    """Folder of the run; by default runs/DATA-SDE, where the data of a path go by its last name."""
    seed: int = 0
    """Seed of everything random in the run; the split of the data does not depend on it."""
    t_min: float | None = None
    """Time of its data end, where the likelihood is that of the model; by default where sigma/alpha is 1e-3."""
    dry_run: bool = False
    """Print what would be done and stop."""
    resume: bool = True
    """Continue from the checkpoint in the folder; with --no-resume a folder that has one is refused."""
    options: Annotated[Options, tyro.conf.arg(name="data")] = Options()
    optimiser: Optimiser = Optimiser()
    architecture: Annotated[Architecture, tyro.conf.arg(name="network")] = Architecture()
    objective: Objective = Objective()
    evaluation: Evaluation = Evaluation()
    engine: Engine = Engine()

    @classmethod
    def of(cls, **flags: Any) -> Self:
        """The configuration of flags by name, ``Config.of(sde="ve", steps=500)``; TypeError for an unknown one."""
        return cls().replace(**flags)

    def replace(self, **flags: Any) -> Self:
        """The same with these flags, of whatever value they are."""
        if unknown := set(flags) - set(self.flat()):
            raise TypeError(f"no flag {', '.join(sorted(unknown))}")
        values: dict[str, Any] = {name: value for name, value in flags.items() if name not in PART_OF}
        for part in dict.fromkeys(PART_OF[name] for name in flags if name in PART_OF):
            own = {name: value for name, value in flags.items() if PART_OF.get(name) == part}
            values[part] = dataclasses.replace(getattr(self, part), **own)
        return dataclasses.replace(self, **values)

    def flat(self) -> dict[str, Any]:
        """All flags by name."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        parts = [dataclasses.asdict(values.pop(part)) for part in PARTS]
        return {name: value for group in (values, *parts) for name, value in group.items()}

    @property
    def name(self) -> str:
        kind, _, path = self.data.partition(":")
        name = f"{Path(path).name.partition('.')[0] or kind}-{self.sde}"
        return f"{name}-classifier" if self.target == "class" else name

    @property
    def folder(self) -> Path:
        return self.workdir or Path("runs") / self.name

    def process(self) -> ss.SDE:
        """The SDE; InputError if it cannot begin at --t-min."""
        try:
            return SDES[self.sde](t_min=self.t_min)
        except ValueError as error:
            raise InputError(f"--sde {self.sde} --t-min {self.t_min}: {error}") from None

    def check(self) -> None:
        """Raise InputError for the first flag that cannot be."""
        check_words(self)
        flags = self.flat()
        at_least(flags, **LOWEST)
        shares(flags, *SHARES, below_one=BELOW_ONE)
        if (rate := self.optimiser.learning_rate) is not None and not 0 < rate < math.inf:
            raise InputError(f"--learning-rate must be positive, got {rate}")
        profiles(self.optimiser)
        self.process()

    def resolve(self, data: Data) -> Self:
        """Fill the unset flags from the preset of the data; InputError for a flag that this data cannot have."""
        if self.objective.flip and len(data.event_shape) != 3:
            raise InputError(f"--flip is for images; the examples of {data.name} have shape {data.event_shape}")
        preset = dataclasses.asdict(TARGETS[self.target].preset(data, self.architecture.network))
        flags = self.flat()
        return self.replace(**{k: v for k, v in preset.items() if k in flags and flags[k] is None})

    def training(self) -> dict[str, Any]:
        """The flags that a checkpoint depends on, as JSON."""
        apart = {name for name, part in PART_OF.items() if part in ("evaluation", "engine")}
        return {name: value for name, value in self.flat().items() if name not in HERE | apart}


PARTS = tuple(field.name for field in dataclasses.fields(Config) if dataclasses.is_dataclass(field.default))
PART_OF = {f.name: part for part in PARTS for f in dataclasses.fields(getattr(Config, part))}
"""The value to which a flag belongs; those of the run itself are not in it."""
