"""Networks of score_sde_pytorch (and of score_sde, under the same names): NCSN++, DDPM++ and DDPM.

The original calls its network with c = 999 t (VP, sub-VP) or c = sigma(t) (VE) on data in [-1, 1] if ``centered``, else
[0, 1], which it maps to [-1, 1] inside. With the output F, divided by sigma inside if ``scale_by_sigma``,

    score = -F / sigma(t)    for VP and sub-VP,        score = F    for VE.

Networks trained in N discrete steps (``continuous`` false) know N levels: those of DDPM's chain with betas from
beta_min / N to beta_max / N for VP, where the SDE is the one through them (see ``discrete``) and c = N t - 1 its step;
those of a geometric sequence for VE, where c = round((N - 1)(1 - t)) is the number of the nearest. Sub-VP is always
called with 999 t, as in the original. The modules are a flat list in the order of the computation; an attention block
stands behind its residual block, and becomes its ``attention`` here.

Reference: Song et al., "Score-based generative modeling through stochastic differential equations" (2021), appendix H.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import count
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from scoresde import nn, precond
from scoresde.arrays import expand
from scoresde.interop.projects.discrete import DiscreteVP, scheduler_sde, stepwise_score
from scoresde.interop.projects.pretrained import Pretrained
from scoresde.interop.projects.score_sde_config import checked
from scoresde.interop.projects.tensors import Leaf, abstract, any_size, conv, convert, dense, norm, same
from scoresde.sde import SDE, VE, VP, SubVP

INPUTS = {"none": None, "input_skip": nn.SkipInput, "residual": nn.ResidualInput}
OUTPUTS = {"none": None, "output_skip": nn.SkipOutput, "residual": nn.ResidualOutput}


def score_sde(config: Mapping[str, Any], state: Mapping[str, np.ndarray]) -> Pretrained:
    """A network of score_sde_pytorch from its configuration and tensors.

    Args:
        config: entries of the original's ``config.model``, ``config.data`` and ``config.training`` in one dict, such as
            ``nf``, ``ch_mult``, ``image_size``, ``centered``, with ``sde`` (vp, subvp or ve) and its parameters. Those
            of ``score_sde_config.DEFAULTS`` may be left out, those that do not shape the network are ignored.
        state: the tensors by the original's names, ``all_modules.{i}. ...`` and ``sigmas``.

    Raises:
        ValueError: a missing or unknown entry; missing, extra or misshapen tensors, listed in one line.
    """
    config = checked(config)
    build, size = partial(_network, config), config["image_size"]
    apply, (_, shapes) = any_size(build), abstract(partial(build, (size, size)))
    params, others = convert(_leaves(config, shapes), shapes, state, {"sigmas": np.shape(state.get("sigmas", ()))[-1:]})
    sde = _sde(config)
    bare = partial(_apply, config, apply, np.asarray(others["sigmas"], np.float32))
    data_range = (-1.0, 1.0) if config["centered"] else (0.0, 1.0)
    score = partial(_score, config, sde, bare)
    if isinstance(sde, DiscreteVP):
        score = partial(stepwise_score, bare, sde, precond.noise)
    return Pretrained(sde, params, bare, Partial(score, params), data_range)


def _sde(config: Mapping[str, Any]) -> SDE:
    if config["sde"].startswith("ve"):
        return VE(sigma_min=float(config["sigma_min"]), sigma_max=float(config["sigma_max"]))
    low, high, n = float(config["beta_min"]), float(config["beta_max"]), config["num_scales"]
    if config["sde"].startswith("sub"):
        return SubVP(beta_min=low, beta_max=high)
    if config["continuous"]:
        return VP(beta_min=low, beta_max=high)
    return scheduler_sde({"beta_start": low / n, "beta_end": high / n, "num_train_timesteps": n})


def _network(config: Mapping[str, Any], sizes: tuple[int, ...], key: jax.Array) -> nn.UNet:
    nf, size, biggan = config["nf"], config["image_size"], config["resblock_type"] == "biggan"
    fourier = config["embedding_type"] == "fourier"
    layout = nn.Layout(
        all_skips=True,
        resampling_blocks=biggan,
        projected=biggan,
        taps=tuple(config["fir_kernel"]) if config["fir"] else None,
        adaptive=False,
        rescale=2**-0.5 if config["skip_rescale"] else 1.0,
        attention_up=False,
        middle=(True, False),
        embedding_width=4,
        norm=partial(nn.group_norm, group_size=1) if config["name"] == "ddpm" else nn.group_norm,
        input_pyramid=INPUTS[config["progressive_input"]],
        concatenated=config["progressive_input"] == "input_skip" and config["progressive_combine"] == "cat",
        output_pyramid=OUTPUTS[config["progressive"]],
    )
    return nn.UNet(
        (*sizes, config["num_channels"]),
        channels=nf,
        multipliers=config["ch_mult"],
        blocks=config["num_res_blocks"],
        attention_levels=[i for i in range(len(config["ch_mult"])) if size // 2**i in config["attn_resolutions"]],
        dropout=config["dropout"],
        embedding=nn.StoredFrequencies(np.zeros(nf)) if fourier else nn.transformer,
        features=2 * nf if fourier else nf,
        layout=layout,
        key=key,
    )


def _leaves(config: Mapping[str, Any], params: nn.Params) -> Iterator[Leaf]:
    """The leaves of the network whose parameters' shapes are ``params``, in the order of the original's modules."""
    numbers = (f"all_modules.{i}" for i in count())
    resampled = "Conv2d_0" if config["fir"] else "Conv_0"
    last = len(config["ch_mult"]) - 1
    if config["embedding_type"] == "fourier":
        yield same("embedding/function/frequencies", f"{next(numbers)}.W")
    yield from dense("embedding/linear_1", next(numbers), swapped=True)
    yield from dense("embedding/linear_2", next(numbers))
    yield from conv("input", next(numbers))

    def block(*path: str) -> Iterator[Leaf]:
        node: Any = params
        for name in path:
            node = node[name]
        return _block("/".join(path), node, numbers, config)

    def resampling(way: str, i: int) -> Iterator[Leaf]:
        if config["resblock_type"] == "biggan":
            return block(way, str(i))
        return conv(f"{way}/{i}", f"{next(numbers)}.{resampled}")

    for i in range(last + 1):
        for k in range(len(params["down"][str(i)])):
            yield from block("down", str(i), str(k))
        if i < last:
            yield from resampling("halve", i)
            if config["progressive_input"] == "residual":
                yield from conv(f"input_pyramid/{i}/conv", f"{next(numbers)}.{resampled}")
            elif config["progressive_input"] == "input_skip":
                yield from dense(f"input_pyramid/{i}/linear", f"{next(numbers)}.Conv_0", sizes=2)
    for k in range(2):
        yield from block("middle", str(k))
    for i in reversed(range(last + 1)):
        for k in range(len(params["up"][str(i)])):
            yield from block("up", str(i), str(k))
        if config["progressive"] == "output_skip" or (config["progressive"] == "residual" and i == last):
            yield from norm(f"output_pyramid/{i}/norm", next(numbers))
            yield from conv(f"output_pyramid/{i}/conv", next(numbers))
        elif config["progressive"] == "residual":
            yield from conv(f"output_pyramid/{i}/conv", f"{next(numbers)}.{resampled}")
        if i > 0:
            yield from resampling("double", i - 1)
    if config["progressive"] != "output_skip":
        yield from norm("norm", next(numbers))
        yield from conv("output", next(numbers))


def _block(path: str, node: nn.Params, numbers: Iterator[str], config: Mapping[str, Any]) -> Iterator[Leaf]:
    name = next(numbers)
    yield from norm(f"{path}/norm_1", f"{name}.GroupNorm_0")
    yield from conv(f"{path}/conv_1", f"{name}.Conv_0")
    yield from dense(f"{path}/modulation", f"{name}.Dense_0")
    yield from norm(f"{path}/norm_2", f"{name}.GroupNorm_1")
    yield from conv(f"{path}/conv_2", f"{name}.Conv_1")
    if "shortcut" in node and config["resblock_type"] == "biggan":
        yield from dense(f"{path}/shortcut", f"{name}.Conv_2", sizes=2)
    elif "shortcut" in node:
        yield from _nin(f"{path}/shortcut", f"{name}.NIN_0")
    if "attention" in node:
        path, name = f"{path}/attention", next(numbers)
        yield from norm(f"{path}/norm", f"{name}.GroupNorm_0")
        yield from _nin(f"{path}/qkv", *(f"{name}.NIN_{i}" for i in range(3)))
        yield from _nin(f"{path}/output", f"{name}.NIN_3")


def _nin(path: str, *names: str) -> Iterator[Leaf]:
    """Dense layers stored (i, o), side by side."""
    n = len(names)
    for ours, its in (("kernel", "W"), ("bias", "b")):
        yield Leaf(
            f"{path}/{ours}",
            tuple(f"{name}.{its}" for name in names),
            lambda shape: ((*shape[:-1], shape[-1] // n),) * n,
            lambda *parts: np.concatenate(parts, axis=-1),
        )


def _apply(
    config: Mapping[str, Any],
    apply: nn.Apply,
    sigmas: np.ndarray,
    params: nn.Params,
    x: jax.Array,
    c: jax.Array,
    cond: Any = None,
) -> jax.Array:
    """The original's network: x as its data are scaled, c as the original is called with."""
    fourier = config["embedding_type"] == "fourier"
    F = apply(params, x if config["centered"] else 2 * x - 1, jnp.log(c) if fourier else c, cond=cond)
    if not config["scale_by_sigma"]:
        return F
    return F / expand(c if fourier else jnp.asarray(sigmas)[c.astype(jnp.int32)], F)


def _score(
    config: Mapping[str, Any], sde: SDE, bare: Any, params: nn.Params, x: jax.Array, t: jax.Array, cond: Any = None
) -> jax.Array:
    t = jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape[:1])
    if not config["sde"].startswith("ve"):
        return -bare(params, x, 999 * t, cond) / expand(sde.sigma(t), x)
    number = jnp.round((config["num_scales"] - 1) * (1 - t))
    return bare(params, x, sde.sigma(t) if config["continuous"] else number, cond)
