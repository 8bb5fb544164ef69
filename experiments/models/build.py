"""What a run trains: the model that its flags and the presets of ``networks`` describe."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

import scoresde as ss
from experiments.data.dataset import Data
from experiments.models.flags import Config
from experiments.models.networks import NETWORKS
from experiments.models.score_objective import profiles
from experiments.models.targets import TARGETS
from experiments.models.values import Dtype, Prediction

PREDICTIONS: dict[Prediction, ss.precond.Prediction] = {
    "velocity": ss.precond.velocity,
    "noise": ss.precond.noise,
    "data": ss.precond.data,
    "score": ss.precond.score,
    "karras": ss.precond.karras,
}
DTYPES: dict[Dtype, Any] = {"f32": jnp.float32, "bf16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class Model:
    """An SDE, a network behind its preconditioning (of a score or a classifier), and how it is trained."""

    sde: ss.SDE
    precond: ss.Preconditioner
    apply: Callable[..., jax.Array]
    trainer: ss.Trainer
    init: Callable[[], ss.State]
    parameters: int
    record: dict[str, Any]
    """What the parameters' user must know, as JSON: the SDE, the preconditioning, the network's arguments."""

    def score(self, params: Any) -> Any:
        """The score of the network with these parameters, without dropout."""
        return self.precond.score(Partial(self.apply, params))

    def log_probs(self, params: Any) -> Any:
        """log p_t(c | x), (x, t) -> (B, classes), of a classifier with these parameters, without dropout."""
        return self.precond.classifier(Partial(self.apply, params))


def build(config: Config, data: Data) -> Model:
    """The model of a resolved configuration."""
    target, sde = TARGETS[config.target], config.process()
    target.check(config.objective, data)
    apply, params, key_train = _drawn(config, data)
    precond = ss.Preconditioner(sde, data.sigma_data, PREDICTIONS[config.objective.prediction])

    chosen = target.preset(data)
    log_rho = chosen.p_mean + math.log(data.sigma_data), chosen.p_std
    minimised = target.minimised(config.objective, data, precond, apply, log_rho)._asdict()
    params, carry = target.initial(config.objective, data, sde, params)
    optimiser, network = config.optimiser, config.architecture.network
    assert network is not None
    steps = int(optimiser.steps or 1)
    peak, warm = optimiser.learning_rate or 0.0, max(1, steps // 50)
    schedule = optax.warmup_cosine_decay_schedule(0.0, peak, warm, max(2, steps))
    matrices = partial(jax.tree.map, lambda p: p.ndim > 1)
    update = optax.adamw(schedule, b2=chosen.b2, weight_decay=optimiser.weight_decay or 0.0, mask=matrices)
    if project := NETWORKS[network].project:
        update = ss.training.projected(update, project)
    averages, parts = profiles(optimiser), config.engine.microbatches
    trainer = ss.Trainer(optimizer=update, averages=averages, carry=carry, microbatches=parts, **minimised)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    record = {
        "sde": {"name": type(sde).__name__} | dataclasses.asdict(sde),
        "preconditioner": {"sigma_data": precond.sigma_data, "prediction": config.objective.prediction},
        "network": {"name": network, "event_shape": data.event_shape, "width": config.architecture.width}
        | {"depth": config.architecture.depth}
        | {k: np.asarray(v).tolist() for k, v in target.waves(data, network).items()},
    }
    return Model(sde, precond, apply, trainer, partial(trainer.init, key_train, params), parameters, record)


def reseeded(model: Model, config: Config, data: Data) -> Model:
    """The model of a configuration that differs in its seed alone: what was compiled for ``model`` serves it too."""
    _, params, key_train = _drawn(config, data)
    params, _ = TARGETS[config.target].initial(config.objective, data, model.sde, params)
    return dataclasses.replace(model, init=partial(model.trainer.init, key_train, params))


def _drawn(config: Config, data: Data) -> tuple[Callable[..., jax.Array], Any, jax.Array]:
    """The network and its parameters before training, and the key of the training, by the seed."""
    key_init, key_train = jax.random.split(jax.random.key(config.seed))
    network = TARGETS[config.target].network(config.architecture, config.objective, data, key_init)
    return *ss.nn.functional(network, dtype=DTYPES[config.architecture.dtype]), key_train
