"""Networks written in diffusers' layout.

Every tensor of the original is a rearrangement of entries of ours (see ``tensors``). Which goes where is found by
sending numbers through the function that reads: if the n-th entry of ours is read from place p, p is where it is
written.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from scoresde import nn
from scoresde.interop.files.folders import NEEDS, WEIGHTS
from scoresde.interop.projects import diffusers_dit
from scoresde.interop.projects.diffusers import TRANSFORMERS, UNET, described
from scoresde.interop.projects.pretrained import Pretrained
from scoresde.interop.projects.tensors import Leaf, flat

PIPELINES = {
    "DDPMScheduler": "DDPMPipeline",
    "DDIMScheduler": "DDIMPipeline",
    "PNDMScheduler": "PNDMPipeline",
    "ScoreSdeVeScheduler": "ScoreSdeVePipeline",
}


def to_diffusers(pretrained: Pretrained, path: str | Path) -> None:
    """Write a network as diffusers reads it: a pipeline's folder with safetensors, or without ``model_index.json`` for
    a transformer, whose pipeline also has an autoencoder.

    Args:
        pretrained: what ``diffusers`` returned, perhaps with other ``params`` since (``dataclasses.replace``).
        path: the folder, made if need be; files of these names in it are replaced.

    Raises:
        ValueError: the network is not in diffusers' layout, or the files cannot be written; one line.
    """
    config = pretrained.config
    if config is None:
        raise ValueError("to_diffusers: this network is not in the layout of diffusers; export its params instead")
    scheduler = config.get("scheduler", {})
    config = {k: v for k, v in config.items() if k not in ("scheduler", "latent")}
    transformer = config.get("_class_name") in TRANSFORMERS
    network = described(config, len(pretrained.params.get("embeddings", ())) > 1)
    scheduler = {"_class_name": network.scheduler(scheduler)} | scheduler
    state = originals(network.leaves(pretrained.params), pretrained.params)
    if transformer:
        state = diffusers_dit.repeated(network.config, state)
    part, pipeline = "transformer" if transformer else "unet", PIPELINES.get(scheduler["_class_name"], "DDPMPipeline")
    index = {
        "_class_name": pipeline,
        "scheduler": ["diffusers", scheduler["_class_name"]],
        part: ["diffusers", config.get("_class_name", UNET)],
    }
    files = {
        f"{part}/config.json": {"_class_name": "UNet2DModel"} | config,
        "scheduler/scheduler_config.json": scheduler,
    }
    files |= {} if transformer else {"model_index.json": index}
    _write(Path(path), part, files, state)


def originals(leaves: Iterable[Leaf], params: nn.Params) -> dict[str, np.ndarray]:
    """The original's tensors by name, from our parameters: the inverse of ``tensors.convert``."""
    state, ours = {}, flat(params)
    for leaf in leaves:
        array = np.asarray(ours[leaf.path])
        shapes = leaf.shapes(array.shape)
        ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
        places = [np.arange(end - np.prod(shape), end).reshape(shape) for end, shape in zip(ends, shapes, strict=True)]
        content = np.empty(ends[-1], array.dtype)
        content[leaf.make(*places).astype(int).ravel()] = array.ravel()
        for name, shape, part in zip(leaf.names, shapes, np.split(content, ends[:-1]), strict=True):
            state[name] = part.reshape(shape)
    return state


def _write(folder: Path, part: str, files: dict[str, Any], state: dict[str, np.ndarray]) -> None:
    try:
        from safetensors.numpy import save_file
    except ImportError:
        raise ValueError(NEEDS) from None
    try:
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        save_file(state, folder / part / WEIGHTS[0], metadata={"format": "pt"})
    except OSError as error:
        raise ValueError(f"cannot write to {folder}: {error.strerror or error}; choose another folder") from None
