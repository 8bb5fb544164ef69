"""Networks of EDM2 (Karras et al. 2024): the magnitude-preserving U-Net behind EDM's preconditioning.

The original's denoiser of data with noise of standard deviation sigma, F being the bare network, is

    D(x, sigma) = c_skip x + c_out F(c_in x, log(sigma) / 4),

which is our preconditioner ``karras`` with ``sigma_data``. Our weights are the original's, unnormalised as they are
stored. Queries, keys and values of a head are interleaved there, one after the other here; its frequencies and phases
are in radians, ours in turns. Its estimate of the loss (``logvar``) is not ours. Classes are ints (B,), -1 for none.

Reference: Karras et al., "Analyzing and improving the training dynamics of diffusion models" (2024), appendix B.
"""

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial

from scoresde import nn
from scoresde.interop.files.opening import check_numbers
from scoresde.interop.projects.pretrained import Pretrained
from scoresde.interop.projects.tensors import Leaf, Shape, abstract, convert, same
from scoresde.precond import Preconditioner, karras
from scoresde.sde import VE

NEEDED = ("img_resolution", "img_channels")
DEFAULTS: dict[str, Any] = {
    "label_dim": 0,
    "model_channels": 192,
    "channel_mult": (1, 2, 3, 4),
    "num_blocks": 3,
    "attn_resolutions": (16, 8),
    "channels_per_head": 64,
    "dropout": 0.0,
    "sigma_data": 0.5,
}
FIXED: dict[str, Any] = {
    "channel_mult_noise": None,
    "channel_mult_emb": None,
    "label_balance": 0.5,
    "concat_balance": 0.5,
    "res_balance": 0.3,
    "attn_balance": 0.3,
    "clip_act": 256,
    "resample_filter": (1, 1),
}
LOGVAR = ("logvar_fourier.freqs", "logvar_fourier.phases", "logvar_linear.weight")


def edm2(config: Mapping[str, Any], state: Mapping[str, np.ndarray]) -> Pretrained:
    """A network of EDM2 from its configuration and tensors; its SDE is VE(sigma_min=0.002, sigma_max=80).

    ``apply`` is the bare network F on (c_in x, log(sigma) / 4); it and ``score`` take classes (B,) as ``cond``. The
    data are images in [-1, 1] if they have three channels, else latents as the original standardises them.

    Args:
        config: arguments of the original's preconditioning and network in one dict, such as ``img_resolution``,
            ``img_channels``, ``label_dim`` and ``model_channels``; those of ``DEFAULTS`` may be left out, those of
            ``FIXED`` have one value here, others do not shape the network and are ignored.
        state: the tensors by the original's names, ``unet. ...`` and ``logvar_ ...``.

    Raises:
        ValueError: a missing entry, or one of a value that is not known here; missing, extra or misshapen tensors,
            listed in one line.
    """
    config = _checked(config)
    apply, shapes = abstract(partial(_network, config))
    others = {name: tuple(state[name].shape) for name in LOGVAR if name in state}
    params, _ = convert(_leaves(config, shapes), shapes, state, others)
    sde = VE(sigma_min=0.002, sigma_max=80.0)
    precond = Preconditioner(sde, float(config["sigma_data"]), karras)
    data_range = (-1.0, 1.0) if config["img_channels"] == 3 else (-math.inf, math.inf)
    bare = partial(_apply, apply)
    return Pretrained(sde, params, bare, Partial(partial(_score, precond, bare), params), data_range)


def _checked(config: Mapping[str, Any]) -> dict[str, Any]:
    missing = [name for name in NEEDED if name not in config]
    if missing:
        raise ValueError(f"edm2: config lacks {', '.join(missing)}")
    for name, value in FIXED.items():
        given = config.get(name, value)
        if (tuple(given) if isinstance(given, list) else given) != value:
            raise ValueError(f"edm2: config's {name} must be {value!r}, got {given!r}")
    check_numbers("edm2", config, ("img_resolution", "img_channels", "label_dim", "model_channels", "num_blocks"))
    return {**DEFAULTS, **config}


def _network(config: Mapping[str, Any], key: jax.Array) -> nn.EDM2:
    size, multipliers = config["img_resolution"], config["channel_mult"]
    return nn.EDM2(
        (size, size, config["img_channels"]),
        channels=config["model_channels"],
        multipliers=multipliers,
        blocks=config["num_blocks"],
        attention_levels=[i for i in range(len(multipliers)) if size >> i in config["attn_resolutions"]],
        head_channels=config["channels_per_head"],
        dropout=config["dropout"],
        conditions=nn.Classes(config["label_dim"]) if config["label_dim"] else None,
        key=key,
    )


def _leaves(config: Mapping[str, Any], params: nn.Params) -> Iterator[Leaf]:
    """The leaves of the network whose parameters' shapes are ``params``."""
    size, depth = config["img_resolution"], len(config["channel_mult"])
    for ours, its in (("frequencies", "freqs"), ("phases", "phases")):
        yield Leaf(f"waves/{ours}", (f"unet.emb_fourier.{its}",), lambda s: (s,), lambda v: v / (2 * math.pi))
    yield _layer("noise", "unet.emb_noise")
    if "vector" in params:
        yield _layer("vector", "unet.emb_label")
    yield _layer("input", f"unet.enc.{size}x{size}_conv")
    for i in range(depth):
        for side, level in (("down", i), ("up", depth - 1 - i)):
            name = f"unet.{'enc' if side == 'down' else 'dec'}.{size >> level}x{size >> level}"
            first = (["down"] if i else []) if side == "down" else (["up"] if i else ["in0", "in1"])
            for k, node in params[side][str(i)].items():
                n = int(k)
                part = first[n] if n < len(first) else f"block{n - len(first)}"
                yield from _block(f"{side}/{i}/{k}", f"{name}_{part}", node, config["channels_per_head"])
    yield _layer("output", "unet.out_conv")
    yield same("gain", "unet.out_gain")


def _layer(path: str, name: str, *, ones: int = 0) -> Leaf:
    """A layer, there (o, i, *k) with ``ones`` axes of length one behind; here (*k, i, o)."""

    def shapes(s: Shape) -> tuple[Shape, ...]:
        return ((s[-1], s[-2], *s[:-2], *(1,) * ones),)

    def make(w: np.ndarray) -> np.ndarray:
        return np.moveaxis(w.reshape(w.shape[: w.ndim - ones]), (1, 0), (-2, -1))

    return Leaf(f"{path}/weight", (f"{name}.weight",), shapes, make)


def _block(path: str, name: str, node: nn.Params, head: int) -> Iterator[Leaf]:
    """A residual block; ``head`` channels make an attention head."""
    yield _layer(f"{path}/first", f"{name}.conv_res0")
    yield _layer(f"{path}/second", f"{name}.conv_res1")
    yield _layer(f"{path}/embedding", f"{name}.emb_linear")
    yield same(f"{path}/gain", f"{name}.emb_gain")
    if "skip" in node:
        yield _layer(f"{path}/skip", f"{name}.conv_skip", ones=2)
    if "qkv" in node:

        def make(w: np.ndarray) -> np.ndarray:
            """(heads, d, 3) outputs there, (3, heads, d) here."""
            apart = w.reshape(-1, head, 3, w.shape[1])
            return np.moveaxis(apart, 2, 0).reshape(w.shape[:2]).T

        yield Leaf(f"{path}/qkv/weight", (f"{name}.attn_qkv.weight",), lambda s: ((s[1], s[0], 1, 1),), make)
        yield _layer(f"{path}/projection", f"{name}.attn_proj", ones=2)


def _apply(apply: nn.Apply, params: nn.Params, x: jax.Array, c: jax.Array, cond: jax.Array | None = None) -> jax.Array:
    """The original's bare network F(x, c), with classes (B,)."""
    return apply(params, x, c, cond=cond)


def _score(
    precond: Preconditioner, bare: Any, params: nn.Params, x: jax.Array, t: jax.Array, cond: jax.Array | None = None
) -> jax.Array:
    shift = math.log(precond.sigma_data)
    return precond.score(lambda u, c: bare(params, u, (c + shift) / 4, cond))(x, t)
