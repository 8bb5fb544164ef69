"""The flags of a run, checked before anything compiles, and the words that they take."""

import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax.numpy as jnp
import tyro

import scoresde as ss
from experiments.cli.errors import InputError, one_of
from experiments.data.arrays import Options
from experiments.data.dataset import Data
from experiments.models.networks import NETWORKS
from experiments.models.score_objective import TIMES, WEIGHTS, profiles
from experiments.models.targets import TARGETS

# Data have unit standard deviation here; with sigma_min = 1e-3 VE resolves them as finely as the others at their t_min.
SDES: dict[str, Any] = {
    "vp": ss.VP,
    "subvp": ss.SubVP,
    "ve": partial(ss.VE, sigma_min=1e-3),
    "cosine": ss.Cosine,
    "flow": ss.RectifiedFlow,
}
PREDICTIONS: dict[str, ss.precond.Prediction] = {
    "velocity": ss.precond.velocity,
    "noise": ss.precond.noise,
    "data": ss.precond.data,
    "score": ss.precond.score,
    "karras": ss.precond.karras,
}
DTYPES = {"f32": jnp.float32, "bf16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class Config:
    """Train a score network by denoising score matching, sample it three ways and evaluate its exact likelihood."""

    target: tyro.conf.Suppress[str] = "score"
    """What is learned: the score, or the class of a noisy example."""
    sde: Annotated[str, tyro.conf.arg(metavar="{vp,subvp,ve,cosine,flow}")] = "vp"
    """The forward process."""
    t_min: float | None = None
    """Time of its data end, where the likelihood is that of the model; by default where sigma/alpha is 1e-3."""
    prediction: Annotated[str, tyro.conf.arg(metavar="{velocity,noise,data,score,karras}")] = "velocity"
    """What the network's output stands for; the objective is the same."""
    data: str = "digits"
    """digits, mixture, moons, spirals, checkerboard, mnist, fashion-mnist, cifar10, or npz: npy: images: csv: parquet:
    idx: audio: PATH, or hf:NAME."""
    data_dir: Path | None = None
    """Where the files of mnist, fashion-mnist and cifar10 are; without it they are downloaded and checked."""
    window: int = 1024
    """audio: samples of one example."""
    columns: str | None = None
    """Tables: columns to keep, by name or number from 1, with commas between; all keeps those of few values too."""
    drop_columns: str | None = None
    """Tables: columns to leave out, as above; few leaves out those whose density is unbounded."""
    test_mask: str | None = None
    """Tables: a file of 0 and 1 for each row, where 1 is the test part; by default X.test_mask.csv(.gz) beside X."""
    split: int = 0
    """Tables: the column of that file, from 0."""
    missing: Annotated[str, tyro.conf.arg(metavar="{error,mask}")] = "error"
    """Tables: refuse empty and NaN cells, or mask them in the loss."""
    in_memory_gib: float = 2.0
    """images, npy: a larger training part is streamed from disk."""
    flip: bool = False
    """Mirror half of the training images left to right."""
    network: Annotated[
        str | None, tyro.conf.arg(metavar="{mlp,unet,ddpmpp,ncsnpp,adm,edm2,dit,uvit,set_transformer}")
    ] = None
    """The network; by default the preset of the data."""
    steps: int | None = None
    """Training steps; by default the preset of the data, as for the settings below."""
    batch: int | None = None
    """Examples a step."""
    learning_rate: float | None = None
    """Peak of a schedule that warms up for 2 % of the steps and falls as a cosine to zero."""
    weight_decay: float | None = None
    """Decoupled weight decay (AdamW)."""
    width: int | None = None
    """Width of the network."""
    depth: int | None = None
    """Blocks of the network, or of each level of a U-Net."""
    dropout: float | None = None
    """Dropout rate during training."""
    ema_decay: float | None = None
    """Decay of the parameters' moving average, which is what is evaluated."""
    weight: Annotated[str, tyro.conf.arg(metavar="{karras,noise,likelihood,min-snr,p2,sigmoid,learned}")] = "karras"
    """How noise levels are weighed; learned: each contributes the same, by a learned uncertainty."""
    times: Annotated[str | None, tyro.conf.arg(metavar="{log-normal,stratified,uniform-log-snr,adaptive}")] = None
    """How noise levels are drawn, by default as suits the weight; adaptive: where the loss is large or varies most."""
    augment: float = 0.0
    """Probability of each augmentation (flip, scale, turn, stretch, move) of images, of which the network is told."""
    condition: Annotated[str, tyro.conf.arg(metavar="{none,class}")] = "none"
    """class: the network is told the class of each example, and learns the score of each class."""
    condition_drop: float = 0.1
    """Share of the examples whose class it is not told, for which it learns the score of all classes together."""
    ema_lengths: str = ""
    """More averages, of power profiles: relative lengths such as 0.05,0.10; others can be made of them afterwards."""
    seed: int = 0
    """Seed of everything random in the run; the split of the data does not depend on it."""
    samples: int = 300
    """Samples drawn by each sampler."""
    likelihood_examples: int | None = None
    """Held-out examples whose likelihood is evaluated, the first ones; experiments.evaluate takes them all."""
    likelihood_probes: int = 2
    """Hutchinson probes an example; as many as there are dimensions make the divergence exact."""
    likelihood_repeats: int = 2
    """Draws of the dequantisation noise for integer data."""
    evaluation_batch: int = 256
    """Examples sampled or evaluated at once, over all devices."""
    sample_every: int = 0
    """Draw a sheet of samples after about so many steps, always from the same noise; 0 for none."""
    tensorboard: bool = False
    """Write what metrics.jsonl holds as TensorBoard event files too."""
    workdir: Path | None = None
    """Folder of the run; by default runs/DATA-SDE, where the data of a path go by its last name."""
    save_seconds: float = 10.0
    """Seconds of training between checkpoints; 0 saves after every compiled call."""
    keep: int = 2
    """Checkpoints kept; where the newest is damaged the one before serves."""
    skip_limit: int = 10
    """Steps in a row without a finite gradient, each of which is skipped, that stop the training."""
    microbatches: int = 1
    """Parts of a batch worked on one after another, to save memory, with the same result up to rounding."""
    dtype: Annotated[str, tyro.conf.arg(metavar="{f32,bf16}")] = "f32"
    """What the network computes in; parameters, averages, optimiser, time and loss are float32 anyway."""
    remat: bool = False
    """Compute the network's blocks again in the backward pass instead of remembering them, to save memory."""
    scan: bool = False
    """Compile one of the network's blocks that are alike and loop over them: a deep network compiles sooner."""
    fsdp: int = 1
    """Devices over which parameters, optimiser and averages are cut; a divisor of the number of devices."""
    coordinator: str | None = None
    """HOST:PORT of process 0, where several processes train together; with --processes and --process-id."""
    processes: int | None = None
    """Number of processes."""
    process_id: int | None = None
    """Which of them this is, from 0."""
    distributed: Annotated[str, tyro.conf.arg(metavar="{none,auto}")] = "none"
    """auto: the environment of a pod or cluster says what the three flags above would."""
    compile_cache: bool = True
    """Keep compiled programs in the user's cache folder; SCORESDE_COMPILE_CACHE=off turns it off too."""
    resume: bool = True
    """Continue from the checkpoint in the folder; with --no-resume a folder that has one is refused."""
    dry_run: bool = False
    """Print what would be done and stop."""

    @property
    def name(self) -> str:
        kind, _, path = self.data.partition(":")
        name = f"{Path(path).name.partition('.')[0] or kind}-{self.sde}"
        return f"{name}-classifier" if self.target == "class" else name

    @property
    def options(self) -> Options:
        """How the source is read."""
        return Options(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Options)})

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
        words: dict[str, tuple[str | None, Any]] = {"sde": (self.sde, SDES), "network": (self.network, NETWORKS)}
        words |= {"weight": (self.weight, WEIGHTS), "times": (self.times, TIMES)}
        words |= {"prediction": (self.prediction, PREDICTIONS)}
        words |= {"dtype": (self.dtype, DTYPES), "distributed": (self.distributed, ("none", "auto"))}
        words |= {"condition": (self.condition, ("none", "class"))}
        for flag, (value, choices) in words.items():
            if value is not None:
                one_of(flag, value, choices)
        engine = {"keep": 1, "skip_limit": 1, "microbatches": 1, "fsdp": 1, "processes": 1, "process_id": 0}
        at_least = engine | {"steps": 1, "batch": 1, "width": 1, "depth": 1, "samples": 2, "seed": 0, "weight_decay": 0}
        at_least |= {"likelihood_examples": 2, "likelihood_probes": 1, "likelihood_repeats": 1, "evaluation_batch": 1}
        for field, low in (at_least | {"save_seconds": 0, "sample_every": 0}).items():
            value = getattr(self, field)
            if value is not None and not (value >= low and math.isfinite(value)):
                raise InputError(f"--{field.replace('_', '-')} must be at least {low}, got {value}")
        if self.learning_rate is not None and not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise InputError(f"--learning-rate must be positive, got {self.learning_rate}")
        for field in ("augment", "condition_drop"):
            if not 0 <= (value := getattr(self, field)) <= 1:
                raise InputError(f"--{field.replace('_', '-')} must be in [0, 1], got {value}")
        profiles(self)
        self.process()
        for field in ("dropout", "ema_decay"):
            value = getattr(self, field)
            if value is not None and not 0 <= value < 1:
                raise InputError(f"--{field.replace('_', '-')} must be in [0, 1), got {value}")

    def resolve(self, data: Data) -> "Config":
        """Fill the unset flags from the preset of the data; InputError for a flag that this data cannot have."""
        if self.flip and len(data.event_shape) != 3:
            raise InputError(f"--flip is for images; the examples of {data.name} have shape {data.event_shape}")
        values = dataclasses.asdict(TARGETS[self.target].preset(data, self.network)).items()
        return dataclasses.replace(self, **{k: v for k, v in values if getattr(self, k, k) is None})

    def training(self) -> dict[str, Any]:
        """The part that a checkpoint depends on, as JSON."""
        skip = {"workdir", "resume", "dry_run", "save_seconds", "data_dir", "in_memory_gib"}
        skip |= {"samples", "likelihood_examples", "likelihood_probes", "likelihood_repeats", "evaluation_batch"}
        skip |= {"sample_every", "tensorboard", "keep", "skip_limit", "microbatches", "remat", "scan", "fsdp"}
        skip |= {"compile_cache", "coordinator", "processes", "process_id", "distributed"}
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in skip}
