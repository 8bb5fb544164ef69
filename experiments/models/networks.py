"""Networks of the command line, and the presets that say which one a kind of data gets and how it is trained."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax

import scoresde as ss
from experiments.cli.errors import InputError
from experiments.data.dataset import Data
from experiments.data.load import TABLES
from experiments.models.score_objective import label_count
from experiments.models.values import Architecture, Network, Objective

# The network also sees its input through waves of these lengths, in levels, so that it can resolve the bins of levels.
WAVE_LENGTHS, MOST_LEVELS = (32, 16, 8, 4, 2, 1), 256
SMALLEST, WIDEST = 7, 4  # U-Nets halve sizes while they stay above the one, and widen up to the other
ATTENTIVE = 16  # positions along the shortest axis from which on the papers' U-Nets have attention
HEAD = 64  # most channels of an attention head
FEW_ROWS = 20_000  # of a small table, which a network would learn by heart


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
    "tables": Preset("mlp", 20000, 256, 2e-3, 0.0, 256, 3, 0.0, 0.9995, 0.999, -2.0, 1.8, 10000),
    "small tables": Preset("mlp", 20000, 256, 2e-3, 1.0, 256, 3, 0.1, 0.9995, 0.999, -2.0, 1.8, 10000),
    "images": Preset("unet", 14000, 16, 2e-3, 0.01, 16, 1, 0.0, 0.999, 0.99, -2.0, 2.0, 256),
}


def preset(data: Data, word: Network | None = None) -> Preset:
    """The row of PRESETS for this data; with the usual size of the network ``word`` if that is another than the row's.

    Raises:
        InputError: the network is not for data of this shape.
    """
    if data.name == "digits":
        row = PRESETS["digits"]
    else:
        tables = "small tables" if data.counts[0] < FEW_ROWS else "tables"
        vectors = tables if data.name.partition(":")[0] in TABLES else "points"
        row = PRESETS["images" if len(data.event_shape) > 1 else vectors]
    if word in (None, row.network):
        return row
    kind = NETWORKS[word]
    if kind.ranks and len(data.event_shape) not in kind.ranks:
        suited = [w for w, other in NETWORKS.items() if not other.ranks or len(data.event_shape) in other.ranks]
        raise InputError(
            f"--network {word} is for {kind.takes}, the data have shape {data.event_shape}: take {' or '.join(suited)}"
        )
    return dataclasses.replace(row, network=word, width=kind.width, depth=kind.depth)


def waves(data: Data, word: Network = "mlp") -> dict[str, Any]:
    """The waves by which a network sees data of levels: arguments of the networks that have them, none for
    measurements, nor for levels so many (sound) that no bin stands out."""
    if data.bin_width is None or int(data.levels or 0) > MOST_LEVELS or not NETWORKS[word].waves:
        return {}
    level = data.bin_width / data.sigma_data
    return {"input_frequencies": [1 / (level * n) for n in WAVE_LENGTHS], "input_offset": data.shift * level}


def multipliers(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of the U-Net's channels at each level: 1, 2, 4, 4, ... down to SMALLEST positions along the shortest axis."""
    levels = max(1, 1 + int(math.log2(max(1, min(shape[:-1]) / SMALLEST))))
    return tuple(min(2**level, WIDEST) for level in range(levels))


def attention_levels(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The level of ``multipliers`` where attention begins, the last one if none is so small."""
    levels = range(len(multipliers(shape)))
    return (next((i for i in levels if min(shape[:-1]) / 2**i <= ATTENTIVE), levels[-1]),)


def _unet(shape: tuple[int, ...], *, width: int, depth: int, **rest: Any) -> Any:
    return ss.nn.UNet(shape, channels=width, blocks=depth, multipliers=multipliers(shape), **rest)


def _published(make: Callable[..., Any], shape: tuple[int, ...], *, width: int, depth: int, **rest: Any) -> Any:
    """A paper's U-Net at our sizes, told our noise coordinate log(sigma / (alpha sigma_data)) by our waves."""
    ours = {"embedding": ss.nn.gaussian_fourier, "features": 64, "attention_levels": attention_levels(shape)}
    return make(shape, channels=width, blocks=depth, multipliers=multipliers(shape), **ours, **rest)


def _adm(shape: tuple[int, ...], *, width: int, **rest: Any) -> Any:
    layout = dataclasses.replace(ss.nn.presets.ADM, head_channels=min(HEAD, width))
    return _published(partial(ss.nn.presets.adm, conditions=None, layout=layout), shape, width=width, **rest)


def _edm2(shape: tuple[int, ...], *, width: int, depth: int, **rest: Any) -> Any:
    sizes = {"channels": width, "blocks": depth, "multipliers": multipliers(shape)}
    return ss.nn.EDM2(
        shape, **sizes, attention_levels=attention_levels(shape), head_channels=math.gcd(width, HEAD), **rest
    )


def _patches(make: Callable[..., Any], shape: tuple[int, ...], *, width: int, **rest: Any) -> Any:
    patch = 1 if any(size % 2 for size in shape[:-1]) else 2
    return make(shape, patch=patch, width=width, heads=_heads(width), **rest)


def _heads(width: int) -> int:
    return max(1, width // math.gcd(width, HEAD))


@dataclasses.dataclass(frozen=True)
class Kind:
    """A word of --network."""

    make: Callable[..., Any]
    """(event shape, width=, depth=, dropout=, remat=, scan=, labels=, key=, and waves if it has them) -> network."""
    width: int
    """Its usual width and depth, where the data's preset has another network."""
    depth: int
    ranks: tuple[int, ...] = (2, 3, 4)
    """Lengths of the event shapes that it takes, () for any."""
    takes: str = "data (*sizes, channels)"
    waves: bool = False
    project: Callable[[Any], Any] | None = None
    """What is done to the parameters after each step."""


NETWORKS: dict[Network, Kind] = {
    "mlp": Kind(ss.nn.ResidualMLP, 512, 3, ranks=(), waves=True),
    "unet": Kind(_unet, 16, 1, waves=True),
    "ddpmpp": Kind(partial(_published, ss.nn.presets.ddpmpp), 32, 2, waves=True),
    "ncsnpp": Kind(partial(_published, ss.nn.presets.ncsnpp), 32, 2, waves=True),
    "adm": Kind(_adm, 32, 2, waves=True),
    "edm2": Kind(_edm2, 32, 2, project=ss.nn.normalise_weights),
    "dit": Kind(partial(_patches, ss.nn.DiT), 128, 6),
    "uvit": Kind(partial(_patches, ss.nn.UViT), 128, 7),
    "set_transformer": Kind(
        lambda shape, *, width, **rest: ss.nn.SetTransformer(shape, width=width, heads=_heads(width), **rest),
        128, 4, ranks=(2,), takes="clouds (points, dim)",
    ),
}  # fmt: skip


def network(architecture: Architecture, objective: Objective, data: Data, key: jax.Array) -> Any:
    """The network of resolved flags, as it is before training.

    Raises:
        InputError: a width or depth that it cannot have.
    """
    size = {"width": architecture.width, "depth": architecture.depth}
    training = {"dropout": architecture.dropout, "remat": architecture.remat, "scan": architecture.scan}
    training["labels"] = label_count(objective, data)
    if objective.condition == "class" and data.labels is not None and data.labels.classes:
        training["conditions"] = ss.nn.Classes(data.labels.classes)
    assert architecture.network is not None
    seen = waves(data, architecture.network)
    try:
        return NETWORKS[architecture.network].make(data.event_shape, **size, **training, **seen, key=key)
    except ValueError as error:
        raise InputError(f"{architecture.said()}: {error}") from None
