"""``DiTTransformer2DModel`` of diffusers (the class ``Transformer2DModel`` of older files, where it is a DiT).

Every block of the original has its own embedding of step and class; in the published files they are copies, which are
then kept once. A table of classes has one row more, behind the others, for no class. The positions are computed; files
that store them agree.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from scoresde import nn
from scoresde.interop.projects.tensors import Leaf, dense, joined, same

DEFAULTS: dict[str, Any] = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": None,
    "num_layers": 28,
    "dropout": 0.0,
    "attention_bias": True,
    "sample_size": 32,
    "patch_size": 2,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-5,
}
CHOICES: dict[str, tuple[Any, ...]] = {
    "attention_bias": (True,),
    "activation_fn": ("gelu-approximate",),
    "norm_type": ("ada_norm_zero",),
    "norm_elementwise_affine": (False,),
}
MOST = {"num_layers": 512} | dict.fromkeys(
    ("num_attention_heads", "attention_head_dim", "in_channels", "patch_size", "num_embeds_ada_norm", "sample_size"),
    2**16,
)
POSITIONS = "pos_embed.pos_embed"
FIRST = "transformer_blocks.0."
EMBEDDING = "norm1.emb"


def checked(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with the original's defaults.

    Raises:
        ValueError: it asks for what the transformer here does not have; the line names the entry.
    """
    config = DEFAULTS | dict(config)
    for name, choices in CHOICES.items():
        if config[name] not in choices:
            raise ValueError(f"diffusers: {name} must be one of {choices}, got {config[name]!r}")
    for name, most in MOST.items():
        if type(config[name]) is not int or not 0 < config[name] <= most:
            raise ValueError(f"diffusers: {name} must be a whole number from 1 to {most}, got {config[name]!r}")
    return config


def is_separate(config: Mapping[str, Any], state: Mapping[str, np.ndarray]) -> bool:
    """Whether the blocks' embeddings differ."""
    return not all(
        np.array_equal(tensor, state.get(f"transformer_blocks.{i}.{name.removeprefix(FIRST)}", tensor))
        for name, tensor in state.items()
        if name.startswith(f"{FIRST}{EMBEDDING}.")
        for i in range(1, config["num_layers"])
    )


def network(config: Mapping[str, Any], separate: bool, sizes: tuple[int, ...], key: jax.Array) -> nn.DiT:
    """Our transformer of a ``checked`` configuration for latents of ``sizes``, which must be its own.

    Raises:
        ValueError: other sizes, for which the original stretches its positions.
    """
    size = config["sample_size"]
    if sizes != (size, size):
        raise ValueError(f"diffusers: this transformer takes latents of sizes {(size, size)}, got {sizes}")
    return nn.DiT(
        (*sizes, config["in_channels"]),
        patch=config["patch_size"],
        width=config["num_attention_heads"] * config["attention_head_dim"],
        depth=config["num_layers"],
        heads=config["num_attention_heads"],
        outputs=config["out_channels"] or config["in_channels"],
        dropout=config["dropout"],
        separate=separate,
        epsilons=(1e-6, config["norm_eps"]),
        embedding=nn.transformer,
        features=256,
        conditions=nn.Classes(config["num_embeds_ada_norm"] + 1),
        key=key,
    )


def leaves(config: Mapping[str, Any], params: nn.Params) -> Iterator[Leaf]:
    """How the leaves of ``network`` are made of the original's tensors."""
    p, channels = config["patch_size"], config["in_channels"]
    yield Leaf(
        "input/kernel",
        ("pos_embed.proj.weight",),
        lambda shape: ((shape[1], channels, p, p),),
        lambda w: w.transpose(2, 3, 1, 0).reshape(-1, len(w)),
    )
    yield same("input/bias", "pos_embed.proj.bias")
    for i in params["embeddings"]:
        path, name = f"embeddings/{i}", f"transformer_blocks.{i}.{EMBEDDING}"
        yield from dense(f"{path}/linear_1", f"{name}.timestep_embedder.linear_1")
        yield from dense(f"{path}/linear_2", f"{name}.timestep_embedder.linear_2")
        yield same(f"{path}/vector/kernel", f"{name}.class_embedder.embedding_table.weight")
    for i in params["blocks"]:
        path, name = f"blocks/{i}", f"transformer_blocks.{i}"
        yield from dense(f"{path}/modulation", f"{name}.norm1.linear")
        yield from joined(f"{path}/attention/qkv", *(f"{name}.attn1.to_{part}" for part in "qkv"))
        yield from dense(f"{path}/attention/output", f"{name}.attn1.to_out.0")
        yield from dense(f"{path}/feed/first", f"{name}.ff.net.0.proj")
        yield from dense(f"{path}/feed/second", f"{name}.ff.net.2")
    yield from dense("output/modulation", "proj_out_1")
    yield from dense("output/linear", "proj_out_2")


def reduced(separate: bool, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors without stored positions, and with one of equal embeddings."""
    kept = {name: tensor for name, tensor in state.items() if name != POSITIONS}
    if separate:
        return kept
    return {k: v for k, v in kept.items() if f".{EMBEDDING}." not in k or k.startswith(FIRST)}


def repeated(config: Mapping[str, Any], state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors with the first block's embedding in every block that has none."""
    embedding = {k.removeprefix(FIRST): v for k, v in state.items() if k.startswith(f"{FIRST}{EMBEDDING}.")}
    copies = range(1, config["num_layers"])
    return {f"transformer_blocks.{i}.{k}": v for i in copies for k, v in embedding.items()} | dict(state)
