"""Networks of EDM (Karras et al. 2022): SongUNet (DDPM++, NCSN++) and DhariwalUNet (ADM) behind their preconditioning.

The original's denoiser of data in [-1, 1] with noise of standard deviation sigma, F being the bare network, is

    D(x, sigma) = c_skip x + c_out F(c_in x, c_noise),          score = (D - x) / sigma^2,

the score being computed with 1 - c_skip, so that nothing cancels at small sigma; ``preconditioners`` has the
coefficients. iDDPM's network gives twice the channels, of which the first half is F.

Queries, keys and values of a head are interleaved there, one after the other here. Classes are ints (B,), -1 for none.

Reference: Karras et al., "Elucidating the design space of diffusion-based generative models" (2022), tables 1 and 7.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from scoresde import nn
from scoresde.arrays import expand
from scoresde.interop.projects.edm2 import edm2
from scoresde.interop.projects.edm_config import PRECONDITIONERS, checked
from scoresde.interop.projects.preconditioners import Preconditioner
from scoresde.interop.projects.pretrained import Pretrained
from scoresde.interop.projects.tensors import Leaf, abstract, conv, convert, dense, norm, same
from scoresde.sde import VE

ENCODERS = {"standard": None, "skip": nn.SkipInput, "residual": nn.ResidualInput}


def edm(config: Mapping[str, Any], state: Mapping[str, np.ndarray]) -> Pretrained:
    """A network of EDM from its configuration and tensors; its SDE is VE(sigma_min=0.002, sigma_max=80).

    ``apply`` is the bare network F on (c_in x, c_noise); besides ``cond``, classes (B,), it takes ``labels`` (B, L),
    those of the original's augmentation. ``score`` takes classes as ``cond``.

    Args:
        config: arguments of the original's network and preconditioning in one dict, such as ``model_type``,
            ``model_channels``, ``channel_mult``, ``img_resolution`` and ``precond``; those with a default in
            ``edm_config`` may be left out, as the published pickles do, those that do not shape the network are
            ignored.
        state: the tensors by the original's names, ``model. ...`` (and ``u`` for iDDPM).

    Raises:
        ValueError: a missing or unknown entry; missing, extra or misshapen tensors, listed in one line.
    """
    if config.get("precond") == "Precond":  # so EDM2 calls its own
        return edm2(config, state)
    config = checked(config)
    taps = _taps(config, state)
    apply, shapes = abstract(partial(_network, config, taps))
    shape = 1, 1, len(taps), len(taps)
    others: dict[str, tuple[int, ...]] = {f"{name}.resample_filter": shape for name in _resampled(config)}
    if config["precond"] == "iDDPMPrecond":
        others["u"] = (config["M"] + 1,)
    params, found = convert(_leaves(config, shapes), shapes, state, others)
    sde = VE(sigma_min=0.002, sigma_max=80.0)
    coefficients = PRECONDITIONERS[config["precond"]](config, found.get("u"))
    bare = partial(_apply, apply)
    score = Partial(partial(_score, sde, coefficients, bare, config["img_channels"]), params)
    return Pretrained(sde, params, bare, score, (-1.0, 1.0))


def _taps(config: Mapping[str, Any], state: Mapping[str, np.ndarray]) -> tuple[float, ...]:
    """The one low-pass filter of the checkpoint, whose kernels are its outer product with itself."""
    kernels = [np.asarray(v, np.float64) for name, v in state.items() if name.endswith("resample_filter")]
    if not kernels:
        return tuple(config["resample_filter"])
    first = kernels[0].reshape(kernels[0].shape[-2:])
    taps = first.sum(axis=0)
    if not all(k.shape == kernels[0].shape and np.array_equal(k, kernels[0]) for k in kernels) or not np.allclose(
        first, np.outer(taps, taps), atol=1e-4 * np.max(np.abs(first))
    ):
        raise ValueError("edm: the tensors resample_filter must be alike and the outer product of one filter of sum 1")
    return tuple(taps.tolist())


def _network(config: Mapping[str, Any], taps: tuple[float, ...], key: jax.Array) -> nn.UNet:
    adm, size, channels = config["model_type"] == "DhariwalUNet", config["img_resolution"], config["model_channels"]
    fourier = config["embedding_type"] == "fourier"
    features = channels * (1 if adm else config["channel_mult_noise"])
    embedding = nn.StoredFrequencies(np.zeros(features // 2)) if fourier else partial(nn.transformer, shift=1 - adm)
    layout = nn.Layout(
        all_skips=True,
        resampling_blocks=True,
        wide_input=adm,
        projected=not adm,
        taps=taps,
        adaptive=adm,
        rescale=1.0 if adm else 0.5**0.5,
        attention_up=adm,
        middle=(True, False),
        head_channels=64 if adm else 0,
        embedding_width=config["channel_mult_emb"],
        vector_first=not adm,
        norm=partial(nn.group_norm, epsilon=1e-5) if adm else nn.group_norm,
        input_pyramid=ENCODERS[config["encoder_type"]],
        output_pyramid=nn.SkipOutput if config["decoder_type"] == "skip" else None,
    )
    return nn.UNet(
        (size, size, config["img_channels"]),
        channels=channels,
        multipliers=config["channel_mult"],
        blocks=config["num_blocks"],
        attention_levels=[i for i in range(len(config["channel_mult"])) if size >> i in config["attn_resolutions"]],
        dropout=config["dropout"],
        embedding=embedding,
        features=features,
        labels=config["augment_dim"],
        conditions=nn.Classes(config["label_dim"]) if config["label_dim"] else None,
        outputs=config["img_channels"] * (2 if config["precond"] == "iDDPMPrecond" else 1),
        layout=layout,
        key=key,
    )


def _names(config: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """What the names of each level begin with on the way down and on the way up."""
    sizes = [config["img_resolution"] >> i for i in range(len(config["channel_mult"]))]
    return [f"model.enc.{n}x{n}" for n in sizes], [f"model.dec.{n}x{n}" for n in sizes]


def _resampled(config: Mapping[str, Any]) -> Iterator[str]:
    """The modules with a low-pass filter."""
    enc, dec = _names(config)
    for part in ("conv0", "skip"):
        yield from (f"{name}_down.{part}" for name in enc[1:])
        yield from (f"{name}_up.{part}" for name in dec[:-1])
    auxiliary = {"standard": (), "skip": ("aux_down",), "residual": ("aux_residual",)}[config["encoder_type"]]
    yield from (f"{name}_{part}" for part in auxiliary for name in enc[1:])
    if config["decoder_type"] == "skip":
        yield from (f"{name}_aux_up" for name in dec[:-1])


def _leaves(config: Mapping[str, Any], params: nn.Params) -> Iterator[Leaf]:
    """The leaves of the network whose parameters' shapes are ``params``."""
    song, (enc, dec), last = config["model_type"] == "SongUNet", _names(config), len(config["channel_mult"]) - 1
    yield from _embedding(song, params["embedding"])
    yield from conv("input", f"{enc[0]}_conv")
    heads = 0 if song else 64
    for i in range(last + 1):
        for k, node in params["down"][str(i)].items():
            yield from _block(f"down/{i}/{k}", f"{enc[i]}_block{k}", node, heads)
        for k, node in params["up"][str(i)].items():
            yield from _block(f"up/{i}/{k}", f"{dec[i]}_block{k}", node, heads)
        if i < last:
            yield from _block(f"halve/{i}", f"{enc[i + 1]}_down", params["halve"][str(i)], heads)
            yield from _block(f"double/{i}", f"{dec[i]}_up", params["double"][str(i)], heads)
            if config["encoder_type"] == "residual":
                yield from conv(f"input_pyramid/{i}/conv", f"{enc[i + 1]}_aux_residual")
            elif config["encoder_type"] == "skip":
                yield from dense(f"input_pyramid/{i}/linear", f"{enc[i + 1]}_aux_skip", sizes=2)
        if config["decoder_type"] == "skip":
            yield from norm(f"output_pyramid/{i}/norm", f"{dec[i]}_aux_norm")
            yield from conv(f"output_pyramid/{i}/conv", f"{dec[i]}_aux_conv")
    for k, node in params["middle"].items():
        yield from _block(f"middle/{k}", f"{dec[last]}_in{k}", node, heads)
    if config["decoder_type"] == "standard":
        yield from norm("norm", f"{dec[0]}_aux_norm" if song else "model.out_norm")
        yield from conv("output", f"{dec[0]}_aux_conv" if song else "model.out_conv")


def _embedding(song: bool, node: nn.Params) -> Iterator[Leaf]:
    """SongUNet has the sines before the cosines: the halves of all that meets them are exchanged."""
    path, name = "embedding", "model"
    if "function" in node:
        yield same(f"{path}/function/frequencies", f"{name}.map_noise.freqs")
    yield from dense(f"{path}/linear_1", f"{name}.map_layer0", swapped=song)
    yield from dense(f"{path}/linear_2", f"{name}.map_layer1")

    def entering(ours: str, its: str, gain: float) -> Leaf:
        def make(w: np.ndarray) -> np.ndarray:
            return gain * (np.roll(w, len(w) // 2, axis=0) if song else w).T

        return Leaf(f"{path}/{ours}/kernel", (f"{name}.{its}.weight",), lambda s: (s[::-1],), make)

    if "labels" in node:
        yield entering("labels", "map_augment", 1.0)
    if "vector" in node:
        yield entering("vector", "map_label", node["vector"]["kernel"].shape[0] ** 0.5 if song else 1.0)
    if song and "vector" in node:
        half = node["vector"]["bias"].shape[0] // 2
        yield Leaf(f"{path}/vector/bias", (f"{name}.map_label.bias",), lambda s: (s,), lambda v: np.roll(v, half))


def _block(path: str, name: str, node: nn.Params, head: int) -> Iterator[Leaf]:
    """A residual block; ``head`` channels make an attention head, all of them if 0."""
    yield from norm(f"{path}/norm_1", f"{name}.norm0")
    yield from conv(f"{path}/conv_1", f"{name}.conv0")
    yield from dense(f"{path}/modulation", f"{name}.affine")
    yield from norm(f"{path}/norm_2", f"{name}.norm1")
    yield from conv(f"{path}/conv_2", f"{name}.conv1")
    if "shortcut" in node:
        yield from dense(f"{path}/shortcut", f"{name}.skip", sizes=2)
    if "attention" in node:
        path, channels = f"{path}/attention", node["attention"]["qkv"]["kernel"].shape[0]
        heads = channels // head if head else 1

        def make(w: np.ndarray) -> np.ndarray:
            """(heads, d, 3) outputs there, (3, heads, d) here; behind the inputs, if there are any."""
            apart = w.reshape(heads, -1, 3, *w.shape[1:2])
            return np.moveaxis(apart, 2, 0).reshape(3 * channels, *w.shape[1:2]).T

        yield from norm(f"{path}/norm", f"{name}.norm2")
        yield Leaf(f"{path}/qkv/kernel", (f"{name}.qkv.weight",), lambda s: ((s[1], s[0], 1, 1),), make)
        yield Leaf(f"{path}/qkv/bias", (f"{name}.qkv.bias",), lambda s: (s,), make)
        yield from dense(f"{path}/output", f"{name}.proj", sizes=2)


def _apply(
    apply: nn.Apply,
    params: nn.Params,
    x: jax.Array,
    c: jax.Array,
    cond: jax.Array | None = None,
    labels: jax.Array | None = None,
) -> jax.Array:
    """The original's bare network F(x, c), with classes (B,) and the augmentation's labels (B, L)."""
    return apply(params, x, c, cond=cond, labels=labels)


def _score(
    sde: VE,
    coefficients: Preconditioner,
    bare: Callable[..., jax.Array],
    channels: int,
    params: nn.Params,
    x: jax.Array,
    t: jax.Array,
    cond: jax.Array | None = None,
) -> jax.Array:
    sigma = jnp.broadcast_to(sde.sigma(jnp.asarray(t, x.dtype)), x.shape[:1])
    rest, c_out, c_in, c_noise = coefficients(sigma)
    F = bare(params, expand(c_in, x) * x, c_noise, cond)[..., :channels]
    return (expand(c_out, x) * F - expand(rest, x) * x) / expand(sigma, x) ** 2
