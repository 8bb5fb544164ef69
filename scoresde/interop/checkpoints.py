"""Checkpoints of score_sde and of EDM as (configuration, state) of the originals: names of theirs, NumPy arrays.

score_sde saves {model, ema, optimizer, step}. The averages are a list in the order of the model's trained parameters:
all its tensors but the buffer ``sigmas`` and the fixed Fourier frequencies ``all_modules.0.W``, which are the model's.
The configuration is not in the file; what names and shapes tell of it is read off them.

EDM and EDM2 pickle {ema, ...}, ``ema`` a whole module behind its preconditioning, whose arguments are its
configuration.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scoresde.interop.files import modules
from scoresde.interop.files.flax_files import is_flax
from scoresde.interop.files.opening import bounded, reading, within
from scoresde.interop.files.pickles import Record
from scoresde.interop.files.torch_files import read_objects, read_torch
from scoresde.interop.projects.edm import edm
from scoresde.interop.projects.flax_names import read_score_sde_flax
from scoresde.interop.projects.guess import guess_config
from scoresde.interop.projects.pretrained import Pretrained
from scoresde.interop.projects.score_sde import score_sde
from scoresde.interop.projects.score_sde_config import NEEDED
from scoresde.interop.writing.skip_layout import skip_config

FIXED = ("sigmas", "all_modules.0.W")
PRECOND_ARGUMENTS = ("img_resolution", "img_channels", "label_dim", "use_fp16")

State = dict[str, np.ndarray]


def score_sde_file(path: str | Path, config: Mapping[str, Any] | None = None, *, ema: bool = True) -> Pretrained:
    """The network that score_sde saved, in PyTorch or JAX, ready for use.

    Args:
        path: a checkpoint of ``torch.save`` or of flax; nothing in it is executed.
        config: entries of its configuration, which the file does not hold, where they differ from what its tensors tell
            and from the published ones (see ``guess``): ``{"sde": "subvp"}``, ``{"beta_max": 10.0}``, ...
        ema: take the averaged weights, which the original evaluates with; else the trained ones.

    Raises:
        ValueError: one line: the file is damaged or holds no such network; ``config`` is not complete where no
            configuration can be guessed (blocks other than BigGAN's); tensors are missing, left over or misshapen.
    """
    config, state = read_either(path, config, ema=ema)
    with reading(Path(path)):
        return from_score_sde(config, state)


def from_score_sde(config: Mapping[str, Any], state: Mapping[str, np.ndarray]) -> Pretrained:
    """``score_sde(config, state)``, which ``to_diffusers`` can write where diffusers has that layout."""
    return dataclasses.replace(score_sde(config, state), config=skip_config(config))


def read_either(
    path: str | Path, config: Mapping[str, Any] | None = None, *, ema: bool = True
) -> tuple[dict[str, Any], State]:
    """Configuration and state for ``score_sde`` from a checkpoint of PyTorch or JAX; see ``score_sde_file``."""
    if is_flax(path):
        return read_score_sde_flax(path, config, ema=ema)
    given, state = dict(config or {}), read_score_sde(path, ema=ema)
    with reading(Path(path)):
        return given if given.keys() >= set(NEEDED) else guess_config(state) | given, state


def edm_file(path: str | Path) -> Pretrained:
    """The network that EDM pickled, ready for use; its SDE is VE(sigma_min=0.002, sigma_max=80).

    Args:
        path: a pickle such as ``edm-cifar10-32x32-cond-vp.pkl``; nothing in it is executed.

    Raises:
        ValueError: as ``read_edm`` and ``edm``.
    """
    config, state = read_edm(path)
    with reading(Path(path)):
        return edm(config, state)


def read_edm(path: str | Path) -> tuple[dict[str, Any], State]:
    """Configuration and state of a network that EDM or EDM2 pickled.

    Args:
        path: a pickle such as ``edm-cifar10-32x32-cond-vp.pkl``; nothing in it is executed.

    Returns:
        The arguments of its preconditioning and network, with ``precond`` the name of that class (``EDMPrecond``;
        ``Precond`` for EDM2), and the tensors by name.

    Raises:
        ValueError: one line: the file is damaged or holds anything but tensors, plain values and modules.
    """
    content = read_objects(path, modules.BUILDERS)
    with reading(Path(path)):
        module = content.get("ema") if isinstance(content, dict) else content
        if not isinstance(module, Record):
            raise ValueError(f"expected a pickle {{ema: a network, ...}} of EDM, found a {type(module).__name__}")
        config = bounded(modules.arguments_of(module, PRECOND_ARGUMENTS))
        state = modules.state_of(module)
        within(Path(path), state)
    return config | {"precond": module.kind}, state


def read_score_sde(path: str | Path, *, ema: bool = True) -> State:
    """The state of a network that score_sde_pytorch saved.

    Args:
        path: a checkpoint of ``torch.save``; nothing in it is executed.
        ema: take the averaged weights, which the original evaluates with; else the trained ones.

    Returns:
        The tensors by name, without the ``module.`` of a model trained on several devices.

    Raises:
        ValueError: one line: the file is damaged, holds anything but tensors and plain values, or no such network.
    """
    content = read_torch(path)
    with reading(Path(path)):
        state = _model(content)
        if ema:
            state |= _averages(content, state)
        within(Path(path), state)
        return state


def _model(content: Any) -> State:
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or not model:
        raise ValueError("expected a checkpoint {model, ema, ...} of score_sde_pytorch, found no model in it")
    if not all(isinstance(name, str) and isinstance(tensor, np.ndarray) for name, tensor in model.items()):
        raise ValueError("its model holds something that is no named tensor")
    return {name.removeprefix("module."): tensor for name, tensor in model.items()}


def _averages(content: dict[str, Any], state: State) -> State:
    ema = content.get("ema")
    averages = ema.get("shadow_params") if isinstance(ema, dict) else None
    if not isinstance(averages, list) or not all(isinstance(tensor, np.ndarray) for tensor in averages):
        raise ValueError("it holds no averaged weights; take the trained ones (ema=False, --raw)")
    trained = [name for name in state if name not in FIXED]
    shapes = [state[name].shape for name in trained]
    if [tensor.shape for tensor in averages] != shapes:
        raise ValueError(f"its {len(averages)} averaged tensors are not like the {len(trained)} trained ones")
    return dict(zip(trained, averages, strict=True))
