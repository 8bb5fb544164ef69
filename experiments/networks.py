"""Networks of the command line, and the presets that say which one a kind of data gets and how it is trained."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax

import scoresde as ss
from experiments.data import TABLES, Data
from experiments.objective import label_count

# The network also sees its input through waves of these lengths, in levels, so that it can resolve the bins of levels.
WAVE_LENGTHS, MOST_LEVELS = (32, 16, 8, 4, 2, 1), 256
SMALLEST, WIDEST = 7, 4  # the U-Net halves sizes while they stay above the one, and widens up to the other


@dataclasses.dataclass(frozen=True)
class Preset:
    """How one kind of data is trained; a flag of the same name overrides."""

    network: str
    steps: int
    batch: int
    learning_rate: float
    weight_decay: float
    width: int
    depth: int
    dropout: float
    ema_decay: float
    b2: float
    """Decay of Adam's second moment."""
    p_mean: float
    """Noise levels of training: log(sigma/(alpha sigma_data)) ~ N(p_mean, p_std^2), unit weight on the output."""
    p_std: float
    likelihood_examples: int


PRESETS = {
    "digits": Preset("mlp", 5000, 128, 2e-3, 2.0, 512, 3, 0.35, 0.999, 0.99, -1.0, 1.6, 10000),
    "points": Preset("mlp", 8000, 1024, 2e-3, 0.0, 128, 3, 0.0, 0.9995, 0.999, -1.8, 1.5, 10000),
    "tables": Preset("mlp", 20000, 256, 2e-3, 1.0, 256, 3, 0.1, 0.9995, 0.999, -2.0, 1.8, 10000),
    "images": Preset("unet", 14000, 16, 2e-3, 0.01, 16, 1, 0.0, 0.999, 0.99, -2.0, 2.0, 256),
}


def preset(data: Data) -> Preset:
    """The row of PRESETS for this data."""
    if data.name == "digits":
        return PRESETS["digits"]
    vectors = "tables" if data.name.partition(":")[0] in TABLES else "points"
    return PRESETS["images" if len(data.event_shape) > 1 else vectors]


def waves(data: Data) -> dict[str, Any]:
    """The waves by which a network sees data of levels: arguments of the networks, none for measurements, nor for
    levels so many (sound) that no bin stands out."""
    if data.bin_width is None or int(data.levels or 0) > MOST_LEVELS:
        return {}
    level = data.bin_width / data.sigma_data
    return {"input_frequencies": [1 / (level * n) for n in WAVE_LENGTHS], "input_offset": data.shift * level}


def multipliers(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of the U-Net's channels at each level: 1, 2, 4, 4, ... down to SMALLEST positions along the shortest axis."""
    levels = max(1, 1 + int(math.log2(max(1, min(shape[:-1]) / SMALLEST))))
    return tuple(min(2**level, WIDEST) for level in range(levels))


NETWORKS: dict[str, Callable[..., Any]] = {
    "mlp": ss.nn.ResidualMLP,
    "unet": lambda shape, *, width, depth, **rest: ss.nn.UNet(
        shape, channels=width, blocks=depth, multipliers=multipliers(shape), **rest
    ),
}


def network(config: Any, data: Data, key: jax.Array) -> Any:
    """The network of a resolved configuration, as it is before training."""
    size = {"width": config.width, "depth": config.depth}
    training = {"dropout": config.dropout, "remat": config.remat, "labels": label_count(config, data)}
    if config.condition == "class" and data.labels is not None and data.labels.classes:
        training["conditions"] = ss.nn.Classes(data.labels.classes)
    return NETWORKS[config.network](data.event_shape, **size, **training, **waves(data), key=key)
