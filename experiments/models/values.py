"""The flags of a run as values, one for each part of it that is handed them; what suits the data is left None.

Words are ``Literal``s here and the keys of one dict where they become functions.
"""

from dataclasses import dataclass
from typing import Literal

Network = Literal["mlp", "unet", "ddpmpp", "ncsnpp", "adm", "edm2", "dit", "uvit", "set_transformer"]
Dtype = Literal["f32", "bf16"]
Prediction = Literal["velocity", "noise", "data", "score", "karras"]
Weight = Literal["karras", "noise", "likelihood", "min-snr", "p2", "sigmoid", "learned"]
Times = Literal["log-normal", "stratified", "uniform-log-snr", "adaptive"]


@dataclass(frozen=True)
class Architecture:
    """The network; what is not given is that of the data's preset."""

    network: Network | None = None
    """Its kind."""
    width: int | None = None
    """Width of the network."""
    depth: int | None = None
    """Blocks of the network, or of each level of a U-Net."""
    dropout: float | None = None
    """Dropout rate during training."""
    dtype: Dtype = "f32"
    """What the network computes in; parameters, averages, optimiser, time and loss are float32 anyway."""
    remat: bool = False
    """Compute the network's blocks again in the backward pass instead of remembering them, to save memory."""
    scan: bool = False
    """Compile one of the network's blocks that are alike and loop over them: a deep network compiles sooner."""

    def said(self) -> str:
        """The flags that fix its size, for a message."""
        return f"--network {self.network} --width {self.width} --depth {self.depth}"


@dataclass(frozen=True)
class Objective:
    """What is minimised."""

    prediction: Prediction = "velocity"
    """What the network's output stands for; the objective is the same."""
    weight: Weight = "karras"
    """How noise levels are weighed; learned: each contributes the same, by a learned uncertainty."""
    times: Times | None = None
    """How noise levels are drawn, by default as suits the weight; adaptive: where the loss is large or varies most."""
    condition: Literal["none", "class"] = "none"
    """class: the network is told the class of each example, and learns the score of each class."""
    condition_drop: float = 0.1
    """Share of the examples whose class it is not told, for which it learns the score of all classes together."""
    flip: bool = False
    """Mirror half of the training images left to right."""
    augment: float = 0.0
    """Probability of each augmentation (flip, scale, turn, stretch, move) of images, of which the network is told."""


@dataclass(frozen=True)
class Optimiser:
    """How it is minimised; what is not given is that of the data's preset."""

    steps: int | None = None
    """Training steps."""
    batch: int | None = None
    """Examples a step."""
    learning_rate: float | None = None
    """Peak of a schedule that warms up for 2 % of the steps and falls as a cosine to zero."""
    weight_decay: float | None = None
    """Decoupled weight decay (AdamW)."""
    ema_decay: float | None = None
    """Decay of the parameters' moving average, which is what is evaluated."""
    ema_lengths: str = ""
    """More averages, of power profiles: relative lengths such as 0.05,0.10; others can be made of them afterwards."""


@dataclass(frozen=True)
class Evaluation:
    """What is measured of the trained model."""

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


@dataclass(frozen=True)
class Engine:
    """How the training is done: nothing here changes its result, up to rounding."""

    save_seconds: float = 10.0
    """Seconds of training between checkpoints; 0 saves after every compiled call."""
    keep: int = 2
    """Checkpoints kept; where the newest is damaged the one before serves."""
    sample_every: int = 0
    """Draw a sheet of samples after about so many steps, always from the same noise; 0 for none."""
    tensorboard: bool = False
    """Write what metrics.jsonl holds as TensorBoard event files too."""
    skip_limit: int = 10
    """Steps in a row without a finite gradient, each of which is skipped, that stop the training."""
    microbatches: int = 1
    """Parts of a batch worked on one after another, to save memory, with the same result up to rounding."""
    fsdp: int = 1
    """Devices over which parameters, optimiser and averages are cut; a divisor of the number of devices."""
    coordinator: str | None = None
    """HOST:PORT of process 0, where several processes train together; with --processes and --process-id."""
    processes: int | None = None
    """Number of processes."""
    process_id: int | None = None
    """Which of them this is, from 0."""
    distributed: Literal["none", "auto"] = "none"
    """auto: the environment of a pod or cluster says what the three flags above would."""
    compile_cache: bool = True
    """Keep compiled programs in the user's cache folder; SCORESDE_COMPILE_CACHE=off turns it off too."""


LOWEST = {
    **{"seed": 0, "steps": 1, "batch": 1, "weight_decay": 0, "width": 1, "depth": 1, "keep": 1, "skip_limit": 1},
    **{"microbatches": 1, "fsdp": 1, "processes": 1, "process_id": 0, "save_seconds": 0, "sample_every": 0},
    **{"samples": 2, "likelihood_examples": 2, "likelihood_probes": 1, "likelihood_repeats": 1, "evaluation_batch": 1},
}
"""The least that a flag may be."""
SHARES = ("augment", "condition_drop", "dropout", "ema_decay")
"""Flags in [0, 1]."""
BELOW_ONE = ("dropout", "ema_decay")
"""Those of them that may not be 1."""
