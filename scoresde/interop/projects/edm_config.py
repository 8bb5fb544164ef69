"""The configuration of EDM's networks: the arguments of its network and of its preconditioning, in one dict.

The published pickles hold the arguments that the training script gave; what it left to the classes' own defaults is in
``ARCHITECTURES``. ``model_type`` is always given.
"""

from collections.abc import Mapping
from typing import Any

from scoresde.interop.files.opening import check_numbers
from scoresde.interop.projects import preconditioners

PRECONDITIONERS = {
    "EDMPrecond": preconditioners.edm,
    "VPPrecond": preconditioners.vp,
    "VEPrecond": preconditioners.ve,
    "iDDPMPrecond": preconditioners.iddpm,
}
DEFAULTS = {
    "img_channels": 3,
    "label_dim": 0,
    "augment_dim": 0,
    "channel_mult_emb": 4,
    "dropout": 0.0,
    "embedding_type": "positional",
    "encoder_type": "standard",
    "decoder_type": "standard",
    "channel_mult_noise": 1,
    "resample_filter": (1, 1),
    "precond": "EDMPrecond",
    "sigma_data": 0.5,
    "beta_d": 19.9,
    "beta_min": 0.1,
    "M": 1000,
}
NUMBERS = "img_resolution", "img_channels", "label_dim", "model_channels", "num_blocks", "channel_mult_noise"
NEEDED = "img_resolution", "model_type"
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "SongUNet": {"model_channels": 128, "channel_mult": [1, 2, 2, 2], "num_blocks": 4, "attn_resolutions": [16]},
    "DhariwalUNet": {
        "model_channels": 192,
        "channel_mult": [1, 2, 3, 4],
        "num_blocks": 3,
        "attn_resolutions": [32, 16, 8],
    },
}
CHOICES = {
    "model_type": tuple(ARCHITECTURES),
    "embedding_type": ("positional", "fourier"),
    "encoder_type": ("standard", "skip", "residual"),
    "decoder_type": ("standard", "skip"),
    "precond": tuple(PRECONDITIONERS),
}
MOST_FEATURES = 2**16


def checked(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with the original's defaults.

    Raises:
        ValueError: an entry is missing or not known; the line names it.
    """
    missing = [name for name in NEEDED if name not in config]
    if missing:
        raise ValueError(f"edm: config lacks {', '.join(missing)}")
    config = {**DEFAULTS, **config}
    for name, choices in CHOICES.items():
        if config[name] not in choices:
            raise ValueError(f"edm: config's {name} must be one of {choices}, got {config[name]!r}")
    config = ARCHITECTURES[config["model_type"]] | config
    check_numbers("edm", config, NUMBERS)
    if not config["model_channels"] * config["channel_mult_noise"] <= MOST_FEATURES:
        raise ValueError(f"edm: config's model_channels and channel_mult_noise give more than {MOST_FEATURES} features")
    if config["model_type"] == "DhariwalUNet":
        config |= {"embedding_type": "positional", "encoder_type": "standard", "decoder_type": "standard"}
    return config
