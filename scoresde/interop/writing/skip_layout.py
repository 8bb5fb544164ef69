"""The network that score_sde and diffusers share: NCSN++ with skip inputs and outputs, for images of 256 pixels and up.

Its parameters have the same places here whichever of the two they come from, so that one configuration is all that the
other needs. Norms have min(C/4, 32) groups there, but attention always 32: it must stand at 128 channels or more.
"""

import math
from collections.abc import Mapping
from typing import Any

from scoresde.interop.projects.diffusers import UNET
from scoresde.interop.projects.score_sde_config import DEFAULTS

SHARED: dict[str, Any] = {
    "name": "ncsnpp",
    "sde": "ve",
    "embedding_type": "fourier",
    "resblock_type": "biggan",
    "progressive": "output_skip",
    "progressive_input": "input_skip",
    "progressive_combine": "sum",
    "fir": True,
    "fir_kernel": [1, 3, 3, 1],
    "skip_rescale": True,
    "scale_by_sigma": True,
    "continuous": True,
}


def skip_config(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The configuration for diffusers, its scheduler's included, of a network of score_sde; None for other layouts."""
    config = {**DEFAULTS, **config}
    alike = (config[k] == v or (k == "fir_kernel" and list(config[k]) == v) for k, v in SHARED.items())
    size, widths = config["image_size"], [config["nf"] * m for m in config["ch_mult"]]
    attentive = [size >> level in config["attn_resolutions"] for level in range(len(widths))]
    if not all(alike) or any(a and w < 128 for a, w in zip(attentive, widths, strict=True)):
        return None
    kinds = ["AttnSkip{}Block2D" if a else "Skip{}Block2D" for a in attentive]
    return {
        "_class_name": UNET,
        "sample_size": size,
        "in_channels": config["num_channels"],
        "out_channels": config["num_channels"],
        "center_input_sample": not config["centered"],
        "time_embedding_type": "fourier",
        "down_block_types": [kind.format("Down") for kind in kinds],
        "up_block_types": [kind.format("Up") for kind in reversed(kinds)],
        "block_out_channels": widths,
        "layers_per_block": config["num_res_blocks"],
        "mid_block_scale_factor": math.sqrt(2),
        "attention_head_dim": None,
        "norm_num_groups": None,
        "norm_eps": 1e-6,
        "dropout": config["dropout"],
        "scheduler": {
            "_class_name": "ScoreSdeVeScheduler",
            "num_train_timesteps": config["num_scales"],
            "sigma_min": config["sigma_min"],
            "sigma_max": config["sigma_max"],
        },
    }
