"""The configuration of score_sde's networks: entries of ``config.model``, ``config.data``, ``config.training``."""

from collections.abc import Mapping
from typing import Any

from scoresde.interop.files.opening import check_numbers

DEFAULTS = {
    "name": "ncsnpp",
    "num_channels": 3,
    "centered": False,
    "scale_by_sigma": False,
    "fir": False,
    "fir_kernel": (1, 3, 3, 1),
    "resblock_type": "biggan",
    "progressive": "none",
    "progressive_input": "none",
    "progressive_combine": "sum",
    "embedding_type": "fourier",
    "skip_rescale": True,
    "dropout": 0.0,
    "continuous": True,
    "num_scales": 1000,
    "beta_min": 0.1,
    "beta_max": 20.0,
    "sigma_min": 0.01,
    "sigma_max": 50.0,
    "conditional": True,
    "resamp_with_conv": True,
    "nonlinearity": "swish",
}
NUMBERS = ("image_size", "num_channels", "nf", "num_res_blocks", "num_scales", "dropout")
NUMBERS += ("beta_min", "beta_max", "sigma_min", "sigma_max")
NEEDED = ("image_size", "nf", "ch_mult", "num_res_blocks", "attn_resolutions", "sde")
CHOICES = {
    "name": ("ncsnpp", "ddpm"),
    "sde": ("vp", "subvp", "ve", "vpsde", "subvpsde", "vesde"),
    "resblock_type": ("biggan", "ddpm"),
    "progressive": ("none", "output_skip", "residual"),
    "progressive_input": ("none", "input_skip", "residual"),
    "progressive_combine": ("sum", "cat"),
    "embedding_type": ("fourier", "positional"),
    "conditional": (True,),
    "resamp_with_conv": (True,),
    "nonlinearity": ("swish",),
}
DDPM = {"embedding_type": "positional", "resblock_type": "ddpm", "skip_rescale": False, "fir": False}
DDPM |= {"progressive": "none", "progressive_input": "none"}


def checked(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with the published ones' values where they are not given.

    Raises:
        ValueError: an entry is missing or not known; the line names it.
    """
    missing = [name for name in NEEDED if name not in config]
    if missing:
        raise ValueError(f"score_sde: config lacks {', '.join(missing)}")
    config = {**DEFAULTS, **config}
    check_numbers("score_sde", config, NUMBERS)
    for name, choices in CHOICES.items():
        value = config[name].lower() if isinstance(config[name], str) else config[name]
        if value not in choices:
            raise ValueError(f"score_sde: config's {name} must be one of {choices}, got {config[name]!r}")
        config[name] = value
    return {**config, **DDPM} if config["name"] == "ddpm" else config
