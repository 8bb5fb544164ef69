"""What a classifier of noisy examples is made of: its networks, their presets, and the loss that trains it.

    draw(key, batch) -> drawn             dequantised and noised, with keys for dropout
    loss(params, None, drawn) -> (B,)     -log p(c | x_t) of the true class

Noise levels are drawn as for a score, and each draw counts the same: the density of the draw is the weight.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import scoresde as ss
from experiments.cli.errors import InputError
from experiments.data.dataset import Data
from experiments.data.labels import check_taught
from experiments.models.networks import Preset
from experiments.models.score_objective import TIMES, Law, Minimised, noise_level
from experiments.models.values import Architecture, Network, Objective

# log(sigma/(alpha sigma_data)) ~ N(p_mean, p_std^2): wide, so that it is sure of nothing where no class is to be seen.
PRESETS = {
    "digits": Preset("unet", 2000, 64, 3e-3, 0.1, 32, 1, 0.2, 0.995, 0.99, -1.0, 2.2, 10000),
    "images": Preset("unet", 5000, 64, 2e-3, 0.1, 32, 1, 0.1, 0.999, 0.99, -1.0, 2.2, 10000),
    "vectors": Preset("mlp", 4000, 256, 2e-3, 0.01, 128, 2, 0.1, 0.999, 0.99, -1.0, 2.2, 10000),
}
SMALLEST, WIDEST = 4, 4  # sizes are halved down to the one, channels doubled up to the other


def _unet(shape: tuple[int, ...], classes: int, *, width: int, depth: int, **rest: Any) -> Any:
    halvings = int(math.log2(max(1, min(shape[:-1]) / SMALLEST)))
    widths = [min(2**level, WIDEST) for level in range(1 + halvings)]
    return ss.nn.Classifier(shape, classes, channels=width, blocks=depth, multipliers=widths, **rest)


def _mlp(shape: tuple[int, ...], classes: int, **rest: Any) -> Any:
    return ss.nn.ResidualMLP(shape, outputs=classes, **rest)


NETWORKS: dict[Network, Callable[..., Any]] = {"mlp": _mlp, "unet": _unet}
"""(event shape, classes, width=, depth=, dropout=, remat=, scan=, key=) -> network, for the words of --network."""


def preset(data: Data, word: Network | None = None) -> Preset:
    """The row of PRESETS for this data; with the size of another row's network if ``word`` is another.

    Raises:
        InputError: there is no such classifier, or not for data of this shape.
    """
    row = PRESETS["vectors" if len(data.event_shape) == 1 else data.name if data.name in PRESETS else "images"]
    if word in (None, row.network):
        return row
    if word not in NETWORKS or (word == "unet" and len(data.event_shape) == 1):
        words = "mlp" if len(data.event_shape) == 1 else " or ".join(NETWORKS)
        raise InputError(f"a classifier of examples of shape {data.event_shape} takes --network {words}, got {word}")
    other = next(p for p in PRESETS.values() if p.network == word)
    return dataclasses.replace(row, network=word, width=other.width, depth=other.depth)


def check(how: Objective, data: Data) -> None:
    """Raise InputError for flags that do not go together, or not with the data."""
    if data.labels is None or data.labels.classes is None or data.labels.classes < 2:
        has = "none" if data.labels is None else data.labels.describe()
        raise InputError(f"a classifier needs data with classes, two at least; {data.name} has {has}")
    check_taught(data.labels, data.train_labels, data.name)
    if how.times == "adaptive":
        raise InputError("--times adaptive follows the denoising loss: choose another for a classifier")


def network(architecture: Architecture, how: Objective, data: Data, key: jax.Array) -> Any:
    """The network of resolved flags, as it is before training.

    Raises:
        InputError: a width or depth that it cannot have.
    """
    assert data.labels is not None and architecture.network is not None
    options = {"width": architecture.width, "depth": architecture.depth, "dropout": architecture.dropout}
    options |= {"remat": architecture.remat, "scan": architecture.scan}
    try:
        return NETWORKS[architecture.network](data.event_shape, data.labels.classes, **options, key=key)
    except ValueError as error:
        raise InputError(f"{architecture.said()}: {error}") from None


class Drawn(NamedTuple):
    """All that is random in the loss of a batch."""

    noised: ss.training.Noised
    classes: jax.Array
    """(B,)"""
    keys: jax.Array
    """(B,) for dropout."""


def minimised(how: Objective, data: Data, precond: ss.Preconditioner, apply: Any, law: Law) -> Minimised:
    """The cross entropy of the flags."""
    times = TIMES[how.times or "log-normal"](law, None)

    def draw(key: jax.Array, batch: Any) -> Drawn:
        key_data, key_dropout, key_loss = jax.random.split(key, 3)
        x, mask = data.prepare(key_data, batch, flip=how.flip)
        noised = ss.training.noised(key_loss, precond.sde, x, times=times, mask=mask)
        return Drawn(noised, jnp.asarray(batch["label"]), jax.random.split(key_dropout, len(x)))

    def loss(params: Any, _: None, drawn: Drawn) -> jax.Array:
        log_probs = precond.classifier(partial(apply, params, key=drawn.keys))
        return ss.training.classified(log_probs, drawn.noised, drawn.classes).error

    return Minimised(draw, loss, noise_level(precond.sde), None)


def initial(how: Objective, data: Data, sde: ss.SDE, params: Any) -> tuple[Any, None]:
    """All parameters, and nothing that training carries along."""
    return params, None
