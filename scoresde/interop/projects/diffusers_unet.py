"""``UNet2DModel`` of diffusers: the families of DDPM, DDIM, ADM and of NCSN++ with skip blocks.

Its blocks of level i are ``down_blocks.i`` and ``up_blocks.{L-1-i}``; each has ``resnets`` and, with Attn in its name,
``attentions``, and what halves or doubles the sizes. The kinds differ by

    (Attn)DownBlock2D, (Attn)UpBlock2D          a convolution resamples; attention behind every block of the level
    ... with downsample_type "resnet"           a residual block resamples
    (Attn)SkipDownBlock2D, (Attn)SkipUpBlock2D  a residual block with FIR filter resamples, sums are divided by sqrt(2),
                                                input and output stand at every level; attention up behind the last

The network is called with the step (positional features), or with sigma, whose logarithm enters the Fourier features
and by which its output is divided.
"""

import math
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import count
from typing import Any

import jax
import numpy as np

from scoresde import nn
from scoresde.interop.projects.tensors import Leaf, conv, dense, joined, norm, same

DEFAULTS: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
}
CHOICES: dict[str, tuple[Any, ...]] = {
    "time_embedding_type": ("positional", "fourier"),
    "mid_block_type": ("UNetMidBlock2D",),
    "downsample_padding": (0, 1),
    "downsample_type": ("conv", "resnet"),
    "upsample_type": ("conv", "resnet"),
    "act_fn": ("silu", "swish"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "class_embed_type": (None,),
}
MOST = {"layers_per_block": 64, "in_channels": 2**16, "out_channels": 2**16}
KINDS = {
    "DownBlock2D": "UpBlock2D",
    "AttnDownBlock2D": "AttnUpBlock2D",
    "ResnetDownsampleBlock2D": "ResnetUpsampleBlock2D",
    "SkipDownBlock2D": "SkipUpBlock2D",
    "AttnSkipDownBlock2D": "AttnSkipUpBlock2D",
}
LEGACY = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


def checked(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with the original's defaults.

    Raises:
        ValueError: it asks for what the U-Nets here do not have; the line names the entry.
    """
    config = DEFAULTS | dict(config)
    for name, choices in CHOICES.items():
        if config[name] not in choices:
            raise ValueError(f"diffusers: {name} must be one of {choices}, got {config[name]!r}")
    widths, downs = config["block_out_channels"], list(config["down_block_types"])
    unknown = [kind for kind in downs if kind not in KINDS]
    if unknown or list(config["up_block_types"]) != [KINDS[kind] for kind in reversed(downs)]:
        raise ValueError(f"diffusers: blocks must be of {', '.join(KINDS)}, mirrored on the way up, got {downs}")
    if len(widths) != len(downs) or not all(type(w) is int and 0 < w < 2**16 for w in widths) or len(downs) > 16:
        raise ValueError(f"diffusers: block_out_channels must be {len(downs)} whole numbers, got {widths!r}")
    for name, most in MOST.items():
        if type(config[name]) is not int or not 0 < config[name] <= most:
            raise ValueError(f"diffusers: {name} must be a whole number from 1 to {most}, got {config[name]!r}")
    skip, blocks = ["Skip" in kind for kind in downs], _resampled_by_blocks(config)
    if any(skip) != all(skip) or (any(blocks) != all(blocks)):
        raise ValueError(f"diffusers: levels must resample alike, got {downs}")
    _check_norms(config, all(skip))
    return config


def _resampled_by_blocks(config: Mapping[str, Any]) -> list[bool]:
    """Of each level but the last, whether a residual block halves and doubles its sizes."""
    downs = config["down_block_types"][:-1]
    types = {config["downsample_type"], config["upsample_type"]}
    if len(types) > 1 and any(kind == "AttnDownBlock2D" for kind in downs):
        raise ValueError(f"diffusers: downsample_type and upsample_type must be the same, got {sorted(types)}")
    by_convolution = {"DownBlock2D", "AttnDownBlock2D"} if types == {"conv"} else {"DownBlock2D"}
    return [kind not in by_convolution for kind in downs]


def _check_norms(config: Mapping[str, Any], skip: bool) -> None:
    widths, groups = config["block_out_channels"], config["norm_num_groups"]
    if skip:
        attentive = [w for w, kind in zip(widths, config["down_block_types"], strict=True) if kind.startswith("Attn")]
        fits = all(min(w // 4, 32) == groups for w in (widths[0], widths[-1]) if groups is not None)
        if not fits or any(w < 128 for w in attentive) or config["attn_norm_num_groups"] is not None:
            raise ValueError(f"diffusers: norm_num_groups = {groups!r} does not fit the skip blocks' own min(C/4, 32)")
    elif type(groups) is not int or groups < 1 or any(w % groups for w in widths):
        raise ValueError(f"diffusers: norm_num_groups must divide {tuple(widths)}, got {groups!r}")
    own, alike = config["attn_norm_num_groups"], config["resnet_time_scale_shift"] == "default"
    if config["add_attention"] and own != groups and not (own is None and alike):
        raise ValueError(f"diffusers: attn_norm_num_groups must be norm_num_groups = {groups!r}, got {own!r}")
    factor, given = math.sqrt(2) if skip else 1, config["mid_block_scale_factor"]
    if not math.isclose(given, factor, rel_tol=1e-6):
        raise ValueError(f"diffusers: mid_block_scale_factor must be {factor}, got {given!r}")


def is_fourier(config: Mapping[str, Any]) -> bool:
    """Whether the network is called with sigma, else with the step."""
    return config["time_embedding_type"] == "fourier"


def network(config: Mapping[str, Any], sizes: tuple[int, ...], key: jax.Array) -> nn.UNet:
    """Our U-Net of a ``checked`` configuration for images of ``sizes``."""
    widths, downs = config["block_out_channels"], config["down_block_types"]
    skip, width = downs[0].endswith("SkipDownBlock2D"), math.gcd(*widths)
    epsilon, heads = config["norm_eps"], config["attention_head_dim"]
    plain = {"group_size": 1, "most": config["norm_num_groups"]}
    layout = nn.Layout(
        all_skips=True,
        resampling_blocks=any(_resampled_by_blocks(config)),
        wide_input=True,
        projected=skip,
        taps=(1.0, 3.0, 3.0, 1.0) if skip else None,
        padding=config["downsample_padding"] or None,
        adaptive=config["resnet_time_scale_shift"] == "scale_shift",
        rescale=2**-0.5 if skip else 1.0,
        attention_up=not skip,
        middle=(bool(config["add_attention"]), False),
        head_channels=heads or 0,
        embedding_width=(config["time_embedding_dim"] or 4 * widths[0]) // width,
        norm=partial(nn.group_norm, epsilon=epsilon, **({} if skip else plain)),
        input_pyramid=nn.SkipInput if skip else None,
        output_pyramid=nn.SkipOutput if skip else None,
    )
    fourier, waves = is_fourier(config), partial(nn.transformer, shift=config["freq_shift"])
    return nn.UNet(
        (*sizes, config["in_channels"]),
        channels=width,
        multipliers=[w // width for w in widths],
        blocks=config["layers_per_block"],
        attention_levels=[i for i, kind in enumerate(downs) if kind.startswith("Attn")],
        dropout=config["dropout"],
        embedding=nn.StoredFrequencies(np.zeros(widths[0])) if fourier else waves,
        features=2 * widths[0] if fourier else widths[0],
        conditions=nn.Classes(config["num_class_embeds"]) if config["num_class_embeds"] else None,
        outputs=config["out_channels"],
        layout=layout,
        key=key,
    )


def leaves(config: Mapping[str, Any], params: nn.Params) -> Iterator[Leaf]:
    """How the leaves of ``network``, whose shapes are ``params``, are made of the original's tensors."""
    fourier, last = is_fourier(config), len(config["block_out_channels"]) - 1
    if fourier:
        yield same("embedding/function/frequencies", "time_proj.weight")
    swapped = fourier or not config["flip_sin_to_cos"]
    yield from dense("embedding/linear_1", "time_embedding.linear_1", swapped=swapped)
    yield from dense("embedding/linear_2", "time_embedding.linear_2")
    if config["num_class_embeds"]:
        yield same("embedding/vector/kernel", "class_embedding.weight")
    yield from conv("input", "conv_in")
    for way, its in (("down", "down_blocks.{}"), ("up", "up_blocks.{}")):
        for i, level in params[way].items():
            name, attentions = its.format(int(i) if way == "down" else last - int(i)), count()
            for k, node in sorted(level.items(), key=lambda item: int(item[0])):
                attention = f"{name}.attentions.{next(attentions)}" if "attention" in node else ""
                yield from _block(f"{way}/{i}/{k}", node, f"{name}.resnets.{k}", attention)
    for k, node in params["middle"].items():
        yield from _block(f"middle/{k}", node, f"mid_block.resnets.{k}", "mid_block.attentions.0")
    for i in range(last):
        yield from _resampling(config, params, f"halve/{i}", f"down_blocks.{i}", "down")
        yield from _resampling(config, params, f"double/{i}", f"up_blocks.{last - 1 - i}", "up")
    for i in params.get("input_pyramid", ()):
        yield from dense(f"input_pyramid/{i}/linear", f"down_blocks.{i}.skip_conv", sizes=2)
    for i in params.get("output_pyramid", ()):
        part = f"up_blocks.{last - int(i)}.skip_{{}}" if int(i) else "conv_{}_out"
        yield from norm(f"output_pyramid/{i}/norm", part.format("norm"))
        yield from conv(f"output_pyramid/{i}/conv", part.format("conv") if int(i) else "conv_out")
    if "output" in params:
        yield from norm("norm", "conv_norm_out")
        yield from conv("output", "conv_out")


def _resampling(config: Mapping[str, Any], params: nn.Params, path: str, name: str, way: str) -> Iterator[Leaf]:
    """What halves or doubles the sizes between two levels."""
    part, i = path.split("/")
    if "output_pyramid" in params:
        yield from _block(path, params[part][i], f"{name}.resnet_{way}", "")
    elif any(_resampled_by_blocks(config)):
        yield from _block(path, params[part][i], f"{name}.{way}samplers.0", "")
    else:
        yield from conv(path, f"{name}.{way}samplers.0.conv")


def _block(path: str, node: nn.Params, name: str, attention: str) -> Iterator[Leaf]:
    yield from norm(f"{path}/norm_1", f"{name}.norm1")
    yield from conv(f"{path}/conv_1", f"{name}.conv1")
    yield from dense(f"{path}/modulation", f"{name}.time_emb_proj")
    yield from norm(f"{path}/norm_2", f"{name}.norm2")
    yield from conv(f"{path}/conv_2", f"{name}.conv2")
    if "shortcut" in node:
        yield from dense(f"{path}/shortcut", f"{name}.conv_shortcut", sizes=2)
    if "attention" in node:
        yield from norm(f"{path}/attention/norm", f"{attention}.group_norm")
        yield from joined(f"{path}/attention/qkv", *(f"{attention}.to_{part}" for part in "qkv"))
        yield from dense(f"{path}/attention/output", f"{attention}.to_out.0")


def renamed(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors under today's names: files of 2022 call attention's layers query, key, value and proj_attn, and have
    the Fourier features' frequencies twice."""
    found = {name: tensor for name, tensor in state.items() if name != "time_proj.W" or "time_proj.weight" not in state}
    for old, new in LEGACY.items():
        found = {k.replace(old, new) if "attentions." in k else k: tensor for k, tensor in found.items()}
    return found
