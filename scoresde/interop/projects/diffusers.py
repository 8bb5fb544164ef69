"""Networks in folders of diffusers as scores: ``UNet2DModel`` and ``DiTTransformer2DModel``.

A network with positional features was trained on the N levels of its scheduler and is called with the step k. Its SDE
is the variance-preserving one through these levels (see ``discrete``), the step a real number, k = N t - 1, and its
output F means

    epsilon        F = eps                        sample        F = x_0
    v_prediction   F = alpha eps - sigma x_0,

so that score(x, t) = -eps_hat / sigma(t), with the functions of ``precond`` at sigma_data = 1. Where the network also
predicts a variance, the score uses the first half of its channels. A network with Fourier features belongs to
``ScoreSdeVeScheduler``, is called with sigma(t), and its output is the score of that VE SDE.

Without a scheduler's configuration its class's defaults count: 1000 steps of linear betas from 1e-4 to 0.02, or sigma
from 0.01 to 1348.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from scoresde import nn, precond
from scoresde.arrays import expand
from scoresde.interop.files.folders import read_diffusers
from scoresde.interop.files.opening import reading
from scoresde.interop.projects import diffusers_dit, diffusers_unet
from scoresde.interop.projects.discrete import DiscreteVP, scheduler_sde, stepwise_score
from scoresde.interop.projects.pretrained import Pretrained
from scoresde.interop.projects.tensors import abstract, any_size, convert
from scoresde.sde import SDE, VE

PREDICTIONS = {"epsilon": precond.noise, "sample": precond.data, "v_prediction": precond.velocity}
VE_DEFAULTS = {"sigma_min": 0.01, "sigma_max": 1348.0}
UNET, TRANSFORMERS = "UNet2DModel", ("DiTTransformer2DModel", "Transformer2DModel")


class Network(NamedTuple):
    """A network of diffusers: its configuration, how it is built for images of given sizes, how its leaves are made.

    ``null`` is the original's class for none, None where there is no such class; ``sizes`` are some that it takes.
    """

    config: dict[str, Any]
    build: Callable[[tuple[int, ...], jax.Array], Any]
    leaves: Callable[[nn.Params], Any]
    fourier: bool
    null: int | None
    sizes: tuple[int, ...]

    def shapes(self) -> nn.Params:
        """The shapes of our parameters, which do not depend on the sizes."""
        return abstract(partial(self.build, self.sizes))[1]

    def scheduler(self, given: Mapping[str, Any]) -> str:
        """The class of the scheduler whose configuration is ``given``."""
        return given.get("_class_name", "ScoreSdeVeScheduler" if self.fourier else "DDPMScheduler")


def diffusers(path: str | Path, *, scheduler: Mapping[str, Any] | None = None) -> Pretrained:
    """The network in a folder that diffusers wrote, of a pipeline or of a model alone.

    Args:
        path: a folder with ``model_index.json`` (a pipeline) or ``config.json`` (a model), weights in safetensors or
            ``.bin``; nothing in it is executed.
        scheduler: the scheduler's configuration, instead of the folder's.

    Returns:
        ``apply`` takes the step (B,), or sigma for NCSN++; ``cond`` are classes (B,), -1 or None for none.

    Raises:
        ValueError: one line: a file is missing or damaged; the configuration asks for what the networks here do not
            have; tensors are missing, left over or misshapen.
    """
    folder = read_diffusers(path)
    given = dict(folder.scheduler or {}) if scheduler is None else dict(scheduler)
    with reading(Path(path)):
        return from_state(folder.config | {"scheduler": given, "latent": folder.latent}, folder.state)


def from_state(config: Mapping[str, Any], state: Mapping[str, np.ndarray]) -> Pretrained:
    """A network of diffusers from its configuration and tensors.

    Args:
        config: the network's ``config.json``, with its scheduler's as ``scheduler`` ({} for the defaults) and
            ``latent``, whether it works on the latents of an autoencoder.
        state: the tensors by the original's names.

    Raises:
        ValueError: as ``diffusers``.
    """
    separate = False
    if config.get("_class_name") in TRANSFORMERS:
        separate = diffusers_dit.is_separate(diffusers_dit.checked(config), state)
        state = diffusers_dit.reduced(separate, state)
    else:
        state = diffusers_unet.renamed(state)
    network = described(config, separate)
    sde, shapes = _sde(network, config.get("scheduler", {})), network.shapes()
    params, _ = convert(network.leaves(shapes), shapes, state, {})
    return assembled(network, params, sde, config)


def described(config: Mapping[str, Any], separate: bool) -> Network:
    """The network of a configuration; ``separate`` says that the blocks of a transformer have embeddings of their own.

    Raises:
        ValueError: a class or an entry that is not known.
    """
    kind = config.get("_class_name", UNET)
    if kind == UNET:
        config, unet = diffusers_unet.checked(config), diffusers_unet
        build, leaves = partial(unet.network, config), partial(unet.leaves, config)
        return Network(config, build, leaves, unet.is_fourier(config), None, (32, 32))
    if kind in TRANSFORMERS:
        config, dit = diffusers_dit.checked(config), diffusers_dit
        build, leaves = partial(dit.network, config, separate), partial(dit.leaves, config)
        return Network(config, build, leaves, False, config["num_embeds_ada_norm"], (config["sample_size"],) * 2)
    raise ValueError(f"diffusers: expected a network of class {UNET} or {TRANSFORMERS[0]}, got {kind!r}")


def _sde(network: Network, scheduler: Mapping[str, Any]) -> SDE:
    kind = network.scheduler(scheduler)
    if (kind == "ScoreSdeVeScheduler") != network.fourier:
        wanted = "ScoreSdeVeScheduler" if network.fourier else "a scheduler with betas, such as DDPMScheduler"
        raise ValueError(f"diffusers: this network's scheduler must be {wanted}, got {kind!r}")
    if network.fourier:
        scheduler = VE_DEFAULTS | dict(scheduler)
        return VE(sigma_min=scheduler["sigma_min"], sigma_max=scheduler["sigma_max"])
    if scheduler and not {"beta_schedule", "trained_betas"} & scheduler.keys():
        raise ValueError(f"diffusers: the scheduler must have betas, as DDPMScheduler has, got {kind!r}")
    if _prediction({"scheduler": scheduler}) not in PREDICTIONS:
        raise ValueError(f"diffusers: prediction_type must be one of {', '.join(PREDICTIONS)}")
    return scheduler_sde(scheduler)


def assembled(network: Network, params: nn.Params, sde: SDE, config: Mapping[str, Any]) -> Pretrained:
    """The network with its parameters as a score; ``config`` is as for ``from_state``."""
    centre = bool(network.config.get("center_input_sample"))
    bare = partial(_apply, any_size(network.build), network.fourier, centre, network.null)
    score = partial(_ve_score, bare, sde)
    if isinstance(sde, DiscreteVP):
        score = partial(stepwise_score, bare, sde, PREDICTIONS[_prediction(config)])
    low = 0.0 if centre or network.fourier else -1.0
    data_range = (-math.inf, math.inf) if config.get("latent") else (low, 1.0)
    return Pretrained(sde, params, bare, Partial(score, params), data_range, dict(config))


def _prediction(config: Mapping[str, Any]) -> str:
    return config.get("scheduler", {}).get("prediction_type", "epsilon")


def _apply(
    apply: Callable[..., jax.Array],
    fourier: bool,
    centre: bool,
    null: int | None,
    params: nn.Params,
    x: jax.Array,
    c: jax.Array,
    cond: Any = None,
) -> jax.Array:
    if null is not None:
        cond = jnp.full(len(x), -1) if cond is None else jnp.asarray(cond)
        cond = jnp.where(cond < 0, null, cond)
    c = jnp.asarray(c, x.dtype)
    F = apply(params, 2 * x - 1 if centre else x, jnp.log(c) if fourier else c, cond)
    return F / expand(c, F) if fourier else F


def _ve_score(
    bare: Callable[..., jax.Array], sde: SDE, params: nn.Params, x: jax.Array, t: jax.Array, cond: Any = None
) -> jax.Array:
    t = jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape[:1])
    return bare(params, x, sde.sigma(t), cond)
