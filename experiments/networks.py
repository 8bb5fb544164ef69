"""Networks of the command line, and the presets that say which one a kind of data gets and how it is trained."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

import scoresde as ss
from experiments.data import Data
from experiments.objective import label_count

# The network also sees its input through waves of these lengths, in levels, so that it can resolve the bins of levels.
WAVE_LENGTHS = (32, 16, 8, 4, 2, 1)


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


PRESETS = {
    "digits": Preset("mlp", 5000, 128, 2e-3, 2.0, 512, 3, 0.35, 0.999, 0.99, -1.0, 1.6),
    "points": Preset("mlp", 8000, 1024, 2e-3, 0.0, 128, 3, 0.0, 0.9995, 0.999, -1.8, 1.5),  # points and tables
    "images": Preset("unet", 10000, 64, 5e-4, 0.01, 32, 2, 0.1, 0.999, 0.99, -1.0, 1.6),
}


def preset(data: Data) -> Preset:
    """The row of PRESETS for this data."""
    return PRESETS["digits" if data.name == "digits" else "images" if len(data.event_shape) > 1 else "points"]


def waves(data: Data) -> dict[str, Any]:
    """The waves by which a network sees data of levels: arguments of the networks, none for measurements."""
    if data.bin_width is None:
        return {}
    level = data.bin_width / data.sigma_data
    return {"input_frequencies": [1 / (level * n) for n in WAVE_LENGTHS], "input_offset": data.shift * level}


NETWORKS: dict[str, Callable[..., Any]] = {
    "mlp": ss.nn.ResidualMLP,
    "unet": lambda shape, *, width, depth, **rest: ss.nn.UNet(shape, channels=width, blocks=depth, **rest),
}


def network(config: Any, data: Data, key: jax.Array) -> Any:
    """The network of a resolved configuration, as it is before training."""
    size = {"width": config.width, "depth": config.depth}
    training = {"dropout": config.dropout, "remat": config.remat, "labels": label_count(config, data)}
    return NETWORKS[config.network](data.event_shape, **size, **training, **waves(data), key=key)
