"""Folders as diffusers writes them, and safetensors files.

    model_index.json                          the classes of a pipeline's parts
    unet/ or transformer/                     the network: config.json and its weights (or both at the top)
    scheduler/scheduler_config.json           the noise levels

Weights are ``diffusion_pytorch_model.safetensors``, or several files that ``....safetensors.index.json`` names, or the
same with ``.bin``, which the restricted reader of pickles takes. ``safetensors`` itself checks that a file's header is
short and that its tensors fill the file exactly, so that nothing larger than the file is ever allocated.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scoresde.interop.files.opening import bounded, inside, read_json, reading, regular, within
from scoresde.interop.files.torch_files import read_torch

PARTS = ("unet", "transformer")
AUTOENCODERS = ("vae", "vqvae")
WEIGHTS = (
    "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.safetensors",
)  # fmt: skip
MOST_FILES = 1000
NEEDS = "reading and writing safetensors needs that package: pip install 'scoresde[interop]'"


class Folder(NamedTuple):
    """A network's configuration and tensors by their original names, its scheduler's configuration or None, and whether
    it works on the latents of an autoencoder."""

    config: dict[str, Any]
    state: dict[str, np.ndarray]
    scheduler: dict[str, Any] | None
    latent: bool


def read_diffusers(path: str | Path) -> Folder:
    """The folder of a pipeline, or of its network alone, which has no scheduler then.

    Raises:
        ValueError: one line: a file is missing, damaged, leads elsewhere, or holds anything but tensors.
    """
    top = Path(path)
    if not top.is_dir():
        raise ValueError(f"{top} is no folder; give one with model_index.json or config.json of diffusers")
    part = next((f"{name}/" for name in PARTS if (top / name / "config.json").exists()), "")
    if not part and not (top / "config.json").exists():
        raise ValueError(f"{top} is no folder of diffusers: no config.json in it, nor in its {' or '.join(PARTS)}")
    config = _config(inside(top, f"{part}config.json"))
    place = next((p for p in ("scheduler/", "") if (top / p / "scheduler_config.json").exists()), None)
    scheduler = None if place is None else read_json(inside(top, f"{place}scheduler_config.json"))
    pipeline = read_json(inside(top, "model_index.json")) if (top / "model_index.json").exists() else {}
    latent = any(name in pipeline for name in AUTOENCODERS)
    return Folder(config, _weights(top, part), scheduler, latent)


def _config(path: Path) -> dict[str, Any]:
    with reading(path):
        return bounded(read_json(path))


def _weights(top: Path, part: str) -> dict[str, np.ndarray]:
    for name in WEIGHTS:
        if (top / part / name).exists() or (top / part / name).is_symlink():
            return _read(inside(top, part + name))
        if (top / part / f"{name}.index.json").exists():
            index = inside(top, f"{part}{name}.index.json")
            return _sharded(top, part, index)
    raise ValueError(f"{top / part} holds none of {', '.join(WEIGHTS)}, nor an index of one")


def _sharded(top: Path, part: str, index: Path) -> dict[str, np.ndarray]:
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
        raise ValueError(f"{index} cannot be read: it maps no tensors to files")
    state: dict[str, np.ndarray] = {}
    files = sorted(set(table.values()))
    if len(files) > MOST_FILES or any(Path(name).name != name for name in files):
        raise ValueError(f"{index} cannot be read: it names files outside of its folder, or more than {MOST_FILES}")
    for name in files:
        state |= _read(inside(top, part + name))
    return state


def _read(path: Path) -> dict[str, np.ndarray]:
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    state = read_torch(path)
    if not isinstance(state, dict) or not all(isinstance(v, np.ndarray) for v in state.values()):
        raise ValueError(f"{path} cannot be read: expected named tensors alone")
    with reading(path):
        within(path, state)
    return state


def read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file by name.

    Raises:
        ValueError: the file is damaged, or the package safetensors is not installed.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError:
        raise ValueError(NEEDS) from None
    path = regular(Path(path))
    with reading(path):
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(str(error)) from None
