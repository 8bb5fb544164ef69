"""Checkpoints of others in two files without a pickle: what the readers found in them.

    model.safetensors    the tensors by their original names, in their original types
    model.json           {"format": "scoresde-convert-1", "kind": "score_sde" | "edm" | "diffusers", "config": {...}}

They are read back as the originals are, with the same functions.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scoresde.interop.checkpoints import State, from_score_sde, read_edm, read_either
from scoresde.interop.files.flax_files import is_flax
from scoresde.interop.files.folders import NEEDS, read_diffusers, read_safetensors
from scoresde.interop.files.opening import bounded, inside, read_json, reading, regular
from scoresde.interop.files.torch_files import is_pickle, is_torch
from scoresde.interop.projects.diffusers import from_state
from scoresde.interop.projects.edm import edm
from scoresde.interop.projects.pretrained import Pretrained

FORMAT, NUMBERS, FACTS = "scoresde-convert-1", "model.safetensors", "model.json"
MAKERS = {"score_sde": from_score_sde, "edm": edm, "diffusers": from_state}


class Original(NamedTuple):
    """What a checkpoint holds: which project's it is, its configuration and its tensors by their names there."""

    path: Path
    kind: str
    config: dict[str, Any]
    state: State

    def pretrained(self) -> Pretrained:
        """The network. Raises ValueError where configuration and tensors do not fit."""
        with reading(self.path):
            return MAKERS[self.kind](self.config, self.state)


def converted(path: str | Path) -> Pretrained:
    """The network in a folder that ``write_converted`` or ``python -m experiments.convert`` wrote.

    Raises:
        ValueError: one line: a file is missing or damaged, or does not fit the other.
    """
    return _read(Path(path)).pretrained()


def read_original(path: str | Path, config: Mapping[str, Any] | None = None, *, ema: bool = True) -> Original:
    """A checkpoint of score_sde (PyTorch or JAX), EDM or diffusers, or what ``write_converted`` made of one.

    Args:
        path: a file of ``torch.save``, a pickle of EDM or a folder; which of them is seen from its beginning.
        config: entries that replace or complete the configuration.
        ema: of score_sde, the averaged weights.

    Raises:
        ValueError: one line: it is none of these, or damaged.
    """
    path, given = Path(path), dict(config or {})
    if path.is_dir() and (path / FACTS).exists():
        found = _read(path)
    elif path.is_dir():
        folder = read_diffusers(path)
        facts = {"scheduler": folder.scheduler or {}, "latent": folder.latent}
        found = Original(path, "diffusers", folder.config | facts, folder.state)
    elif is_torch(path) or is_flax(path):
        found = Original(path, "score_sde", *read_either(path, given, ema=ema))
    elif is_pickle(path):
        found = Original(path, "edm", *read_edm(path))
    else:
        advice = "; give the folder that it lies in" if path.suffix == ".safetensors" else ""
        raise ValueError(f"{path} is no file of torch.save, pickle or checkpoint of flax (wrong magic number){advice}")
    return found._replace(config=found.config | given)


def _read(folder: Path) -> Original:
    facts = read_json(inside(folder, FACTS))
    if facts.get("format") != FORMAT or facts.get("kind") not in MAKERS or not isinstance(facts.get("config"), dict):
        raise ValueError(f"{folder / FACTS} cannot be read: expected the format {FORMAT} and a kind of {list(MAKERS)}")
    with reading(folder / FACTS):
        scheduler = {"scheduler": facts["config"].pop("scheduler")} if "scheduler" in facts["config"] else {}
        config = bounded(facts["config"]) | scheduler
    return Original(folder, facts["kind"], config, read_safetensors(regular(inside(folder, NUMBERS))))


def write_converted(original: Original, path: str | Path) -> list[Path]:
    """Write the two files into a folder, made if need be; returns them.

    Raises:
        ValueError: they cannot be written, or the package safetensors is not installed.
    """
    try:
        from safetensors.numpy import save_file
    except ImportError:
        raise ValueError(NEEDS) from None
    folder = Path(path)
    facts = {"format": FORMAT, "kind": original.kind, "config": original.config}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: np.asarray(v, order="C") for name, v in original.state.items()}, folder / NUMBERS)
        (folder / FACTS).write_text(json.dumps(facts, indent=2, default=str) + "\n", encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot write to {folder}: {error.strerror or error}; choose another folder") from None
    return [folder / NUMBERS, folder / FACTS]
