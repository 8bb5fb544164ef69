"""What training minimises: the words of --weight and --times as functions, and the loss that they make.

    draw(key, batch, levels) -> drawn      dequantised, perhaps augmented and noised, with keys for dropout
    loss(params, None, drawn, levels) -> (losses (B,), errors)      the weighted denoising errors
    update(levels, errors) -> levels      collected by noise level sigma/alpha

All that is random is drawn for the whole batch, so that its parts (--microbatches) have the numbers of the whole.
With --weight learned the parameters hold one more entry, ``uncertainty``.
"""

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
from experiments.models.values import Objective, Optimiser, Times, Weight

Law = tuple[float, float]
"""Mean and standard deviation of log(sigma/alpha)."""

# The published constants are for data of unit standard deviation; a schedule makes each the same objective for any SDE.
WEIGHTS: dict[Weight, Callable[[ss.Preconditioner, Law], Any]] = {
    "karras": lambda precond, law: precond.karras_weight(*law),
    "noise": lambda precond, law: ss.noise_weight,
    "likelihood": lambda precond, law: ss.likelihood_weight,
    "min-snr": lambda precond, law: ss.training.min_snr_weight(5 / precond.sigma_data**2, ss.Cosine()),
    "p2": lambda precond, law: ss.training.p2_weight(1.0, 1 / precond.sigma_data**2, ss.Cosine()),
    "sigmoid": lambda precond, law: ss.training.sigmoid_weight(-2 * math.log(precond.sigma_data)),
    "learned": lambda precond, law: precond.karras_weight(*law),
}
TIMES: dict[Times, Callable[[Law, Any], Any]] = {
    "log-normal": lambda law, levels: ss.log_normal(*law),
    "stratified": lambda law, levels: ss.training.stratified,
    "uniform-log-snr": lambda law, levels: ss.training.uniform_log_snr,
    "adaptive": lambda law, levels: ss.training.adaptive(levels),
}
# The draw of least gradient variance (benchmarks/gradient_variance.md): adaptive where a weight is not named here.
USUAL: dict[Weight, Times] = {"karras": "log-normal", "learned": "log-normal"}


def check(how: Objective, data: Data) -> None:
    """Raise InputError for flags of the objective that do not go together, or not with the data."""
    if how.weight == "learned" and how.times == "adaptive":
        raise InputError("--weight learned balances the levels as their times are drawn: choose another --times")
    if how.condition == "class":
        if data.labels is None or data.labels.classes is None:
            has = "none" if data.labels is None else f"{data.labels.describe()}: store whole numbers or words"
            raise InputError(f"--condition class needs data with classes; {data.name} has {has}")
        check_taught(data.labels, data.train_labels, data.name)
    if how.augment and len(data.event_shape) != 3:
        raise InputError(f"--augment is for images (H, W, C), the data have shape {data.event_shape}: drop it")


def label_count(how: Objective, data: Data) -> int:
    """Length of the labels that the network is given."""
    if not how.augment:
        return 0
    images = jax.ShapeDtypeStruct((1, *data.event_shape), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(partial(ss.training.augment.augmented, probability=how.augment), key, images)[1].shape[1]


def profiles(optimiser: Optimiser) -> tuple[Any, ...]:
    """The moving averages: --ema-decay first, which is the one evaluated, then --ema-lengths."""
    try:
        lengths = [float(word) for word in optimiser.ema_lengths.split(",") if word]
        return ss.training.warmed(optimiser.ema_decay or 0.0), *map(ss.training.power, lengths)
    except ValueError as error:
        raise InputError(f"--ema-lengths takes numbers such as 0.05,0.10: {error}") from None


def initial(how: Objective, data: Data, sde: ss.SDE, params: Any) -> tuple[Any, ss.training.Levels]:
    """All parameters, and the levels before training."""
    if how.weight == "learned":
        params = params | {"uncertainty": ss.training.init_uncertainty()}
    return params, ss.training.Levels.start(sde, sigma_data=data.sigma_data)


class Minimised(NamedTuple):
    """The arguments of ``Trainer`` that say what is minimised, with ``Levels`` as the carry, or without one."""

    draw: Callable[..., Any]
    loss: Callable[..., Any]
    level: Callable[..., jax.Array]
    update: Callable[..., ss.training.Levels] | None


class Drawn(NamedTuple):
    """All that is random in the loss of a batch."""

    noised: ss.training.Noised
    labels: jax.Array | None
    """(B, L) what the augmentation did."""
    cond: jax.Array | None
    """(B,) classes, -1 for none."""
    keys: jax.Array
    """(B,) for dropout."""


def minimised(how: Objective, data: Data, precond: ss.Preconditioner, apply: Any, law: Law) -> Minimised:
    """The denoising loss of the flags."""
    sde, weight = precond.sde, WEIGHTS[how.weight](precond, law)

    def draw(key: jax.Array, batch: Any, levels: ss.training.Levels) -> Drawn:
        key_data, key_dropout, key_loss = jax.random.split(key, 3)
        x, mask = data.prepare(key_data, batch, flip=how.flip)
        labels = None
        if how.augment:
            x, labels = ss.training.augment.augmented(jax.random.fold_in(key, 3), x, how.augment)
        times = TIMES[how.times or USUAL.get(how.weight, "adaptive")](law, levels)
        noised = ss.training.noised(key_loss, sde, x, times=times, mask=mask)
        cond = None
        if how.condition == "class":
            cond = ss.nn.drop(jax.random.fold_in(key, 4), batch["label"], how.condition_drop)
        return Drawn(noised, labels, cond, jax.random.split(key_dropout, len(x)))

    def loss(params: Any, _: None, drawn: Drawn, levels: ss.training.Levels) -> tuple[jax.Array, ss.training.Denoising]:
        score = precond.score(partial(apply, params, key=drawn.keys, labels=drawn.labels, cond=drawn.cond))
        errors = ss.training.errors_of(sde, score, drawn.noised)
        losses = weight(sde, errors.t) * errors.importance * errors.error
        if how.weight == "learned":
            losses = ss.training.with_uncertainty(losses, ss.training.uncertainty(params["uncertainty"], sde, errors.t))
        return losses, errors

    return Minimised(draw, loss, noise_level(sde), lambda levels, errors: levels.update(errors, weight))


def noise_level(sde: ss.SDE) -> Callable[[Any], jax.Array]:
    """sigma/alpha of what was drawn, (B,)."""
    return lambda drawn: jnp.exp(-0.5 * sde.log_snr(drawn.noised.t))


def level_curves(levels: ss.training.Levels) -> dict[str, list[float | None]]:
    """The curves of ``Levels`` for a JSON log, from noise to data; None where nothing was measured."""
    curves = jax.device_get(levels.curves())
    return {k: [round(float(a), 6) if math.isfinite(a) else None for a in v] for k, v in curves.items()}
