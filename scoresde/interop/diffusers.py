"""Networks in folders of diffusers as scores: ``UNet2DModel`` and ``DiTTransformer2DModel``.

A network with positional features was trained on the N levels of its scheduler and is called with the step k. Its SDE is
the variance-preserving one through these levels (see ``discrete``), the step a real number, k = N t - 1, and its output
F means

    epsilon        F = eps                        sample        F = x_0
    v_prediction   F = alpha eps - sigma x_0,

so that score(x, t) = -eps_hat / sigma(t), with the functions of ``precond`` at sigma_data = 1. Where the network also
predicts a variance, the score uses the first half of its channels. A network with Fourier features belongs to
``ScoreSdeVeScheduler``, is called with sigma(t), and its output is the score of that VE SDE.

Without a scheduler's configuration its class's defaults count: 1000 steps of linear betas from 1e-4 to 0.02, or sigma
from 0.01 to 1348.
"""

import functools
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
from scoresde.interop import diffusers_dit, diffusers_unet
from scoresde.interop.discrete import DiscreteVP, scheduler_sde
from scoresde.interop.folders import read_diffusers
from scoresde.interop.opening import reading
from scoresde.interop.pretrained import Pretrained
from scoresde.interop.tensors import Leaf, abstract, convert
from scoresde.sde import SDE, VE, expand

PREDICTIONS = {"epsilon": precond.noise, "sample": precond.data, "v_prediction": precond.velocity}
VE_DEFAULTS = {"sigma_min": 0.01, "sigma_max": 1348.0}


class Network(NamedTuple):
    """A network of diffusers: how it is built for images of given sizes, and how its leaves are made.

    ``fourier`` says that it is called with sigma, ``null`` is the original's class for none (None where there is none).
    """

    config: dict[str, Any]
    build: Callable[[tuple[int, ...], jax.Array], Any]
    leaves: Callable[[nn.Params], Any]
    fourier: bool
    null: int | None


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
    with reading(Path(path)):
        network, state = described(folder.config, folder.state)
        params = converted(network, state)
        sde = _sde(network, folder.scheduler if scheduler is None else scheduler)
        return _pretrained(network, params, sde, scheduler or folder.scheduler or {}, folder.latent)


def described(config: Mapping[str, Any], state: Mapping[str, np.ndarray]) -> tuple[Network, dict[str, np.ndarray]]:
    """The network of a configuration, and its tensors under today's names, without copies.

    Raises:
        ValueError: a class or an entry that is not known.
    """
    kind = config.get("_class_name", "UNet2DModel")
    if kind == "UNet2DModel":
        config, unet = diffusers_unet.checked(config), diffusers_unet
        leaves, state = partial(unet.leaves, config), unet.renamed(state)
        return Network(config, partial(unet.network, config), leaves, unet.is_fourier(config), None), state
    if kind in ("DiTTransformer2DModel", "Transformer2DModel"):
        config, dit = diffusers_dit.checked(config, state), diffusers_dit
        null = config["num_embeds_ada_norm"]
        leaves, state = partial(dit.leaves, config), dit.reduced(config, state)
        return Network(config, partial(dit.network, config), leaves, False, null), state
    raise ValueError(f"diffusers: expected UNet2DModel or DiTTransformer2DModel, got {kind!r}")


def converted(network: Network, state: Mapping[str, np.ndarray]) -> nn.Params:
    """Our parameters from the original's tensors. Raises ValueError as ``take``."""
    _, shapes = abstract(partial(network.build, (32, 32)))
    params, _ = convert(network.leaves(shapes), shapes, state, {})
    return params


def any_size(build: Callable[[tuple[int, ...], jax.Array], Any]) -> Callable[..., jax.Array]:
    """``apply(params, x, c, cond)`` of the network ``build(sizes, key)`` for the sizes that x has, where no parameter
    depends on them."""

    @functools.cache
    def built(sizes: tuple[int, ...]) -> nn.Apply:
        return abstract(partial(build, sizes))[0]

    def apply(params: nn.Params, x: jax.Array, c: jax.Array, cond: Any = None) -> jax.Array:
        return built(x.shape[1:-1])(params, x, c, cond=cond)

    return apply


def _sde(network: Network, scheduler: Mapping[str, Any] | None) -> SDE:
    given = dict(scheduler or {})
    kind = given.get("_class_name", "ScoreSdeVeScheduler" if network.fourier else "DDPMScheduler")
    if (kind == "ScoreSdeVeScheduler") != network.fourier:
        wanted = "ScoreSdeVeScheduler" if network.fourier else "a scheduler with betas, such as DDPMScheduler"
        raise ValueError(f"diffusers: this network's scheduler must be {wanted}, got {kind!r}")
    if network.fourier:
        given = VE_DEFAULTS | given
        return VE(sigma_min=given["sigma_min"], sigma_max=given["sigma_max"])
    if given and not {"beta_schedule", "trained_betas"} & given.keys():
        raise ValueError(f"diffusers: the scheduler must have betas, as DDPMScheduler has, got {kind!r}")
    if given.get("prediction_type", "epsilon") not in PREDICTIONS:
        raise ValueError(f"diffusers: prediction_type must be one of {', '.join(PREDICTIONS)}")
    return scheduler_sde(given)


def _pretrained(
    network: Network, params: nn.Params, sde: SDE, scheduler: Mapping[str, Any], latent: bool
) -> Pretrained:
    centre = bool(network.config.get("center_input_sample"))
    bare = partial(_apply, any_size(network.build), network.fourier, centre, network.null)
    if isinstance(sde, DiscreteVP):
        predict = PREDICTIONS[scheduler.get("prediction_type", "epsilon")]
        score = partial(_score, bare, sde, predict)
    else:
        score = partial(_ve_score, bare, sde)
    unit = centre or network.fourier
    data_range = (-math.inf, math.inf) if latent else (0.0, 1.0) if unit else (-1.0, 1.0)
    return Pretrained(sde, params, bare, Partial(score, params), data_range)


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
        cond = jnp.full(len(x), -1) if cond is None else cond
        cond = jnp.where(cond < 0, null, cond)
    c = jnp.asarray(c, x.dtype)
    F = apply(params, 2 * x - 1 if centre else x, jnp.log(c) if fourier else c, cond)
    return F / expand(c, F) if fourier else F


def _score(
    bare: Callable[..., jax.Array],
    sde: DiscreteVP,
    predict: precond.Prediction,
    params: nn.Params,
    x: jax.Array,
    t: jax.Array,
    cond: Any = None,
) -> jax.Array:
    t = jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape[:1])
    F = bare(params, x, sde.step(t), cond)[..., : x.shape[-1]]
    sigma = sde.sigma(t)
    p, q = predict(sde.alpha(t), sigma, 1.0)
    return -(expand(p, x) * x + expand(q, x) * F) / expand(sigma, x)


def _ve_score(
    bare: Callable[..., jax.Array], sde: SDE, params: nn.Params, x: jax.Array, t: jax.Array, cond: Any = None
) -> jax.Array:
    t = jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape[:1])
    return bare(params, x, sde.sigma(t), cond)
