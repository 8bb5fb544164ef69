"""Networks that score_sde in JAX saved, under the names of score_sde_pytorch.

Its checkpoints are {optimizer: {target: {...}}, params_ema: {...}, ...}. Modules are numbered kind by kind in the order
of the forward pass, Conv_0, ResnetBlockBigGANpp_0, ..., which numbered all together are the ``all_modules.i`` of the
other. That order, with n blocks a level, follows from the blocks (see ``guess``) and from the levels with attention,
which the file does not tell. Kernels are (*k, i, o) here and (o, i, *k) there, dense layers (i, o) here and (o, i)
there; flax calls them ``kernel``, and ``weight`` in the convolutions with FIR filter, ``Downsample_0/Conv2d_0``. There
is no list of sigmas: it is made of the configuration's.

The names are those of the flax code of score_sde (models/ncsnpp.py, layerspp.py, up_or_down_sampling.py, as public
copies of it hold them) and of ``flax.linen``; no published checkpoint was at hand to try.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scoresde.interop.files.flax_files import read_flax
from scoresde.interop.files.opening import reading
from scoresde.interop.projects.guess import SIZES, guess_config, resamples

BLOCK, ATTENTION, FOURIER = "ResnetBlockBigGANpp", "AttnBlockpp", "GaussianFourierProjection"
SIGMAS = {"sigma_min": 0.01, "sigma_max": 50.0, "num_scales": 1000}

Tensors = dict[str, np.ndarray]


def read_score_sde_flax(
    path: str | Path, config: Mapping[str, Any] | None = None, *, ema: bool = True
) -> tuple[dict[str, Any], Tensors]:
    """Configuration and state of a network of score_sde in JAX, as ``score_sde`` takes them.

    Args:
        path: a checkpoint such as ``checkpoint_26``; nothing in it is executed.
        config: entries of its configuration, such as ``attn_resolutions``, ``image_size``, ``sigma_max``; by default
            those of the published networks: attention at 16, sigma from 0.01 to 50 in 1000 steps.
        ema: take the averaged weights, else the trained ones.

    Raises:
        ValueError: one line: the file is damaged, or no network of BigGAN blocks with that attention.
    """
    root, given = "params_ema/" if ema else "optimizer/target/", dict(config or {})
    found = {name.removeprefix(root): v for name, v in read_flax(path).items() if name.startswith(root)}
    with reading(Path(path)):
        if not found:
            raise ValueError(f"expected a checkpoint of score_sde in JAX, found no {root} in it")
        if not any(name.startswith(BLOCK) for name in found):
            raise ValueError(f"only networks of BigGAN blocks are read from flax; found no {BLOCK}_0 in {root}")
        state = _state(found, given)
        low, high, n = (float((SIGMAS | given)[name]) for name in SIGMAS)
        state["sigmas"] = np.geomspace(high, low, int(n))
        return guess_config(state) | given, state


def _state(found: Tensors, config: Mapping[str, Any]) -> Tensors:
    modules: dict[str, Tensors] = {}
    for name, tensor in found.items():
        kind, _, own = name.partition("/")
        own, tensor = _renamed(own, tensor)
        modules.setdefault(kind, {})[own] = tensor
    seen: Counter[str] = Counter()
    state: Tensors = {}
    for number, kind in enumerate(_order(modules, config)):
        name = f"{kind}_{seen[kind]}"
        seen[kind] += 1
        if name not in modules:
            raise ValueError(f"the network has no {name}: give its attn_resolutions and image_size as config")
        state |= {f"all_modules.{number}.{own}": tensor for own, tensor in modules.pop(name).items()}
    if modules:
        raise ValueError(f"the network has {', '.join(modules)} besides: give its attn_resolutions and image_size")
    return state


def _order(modules: Mapping[str, Tensors], config: Mapping[str, Any]) -> Iterator[str]:
    """The kinds of the modules in the order of the forward pass."""
    kinds = Counter(name.rpartition("_")[0] for name in modules)
    resampling = sum(resamples(module) for name, module in modules.items() if name.startswith(BLOCK))
    levels = 1 + resampling // 2
    n = ((kinds[BLOCK] - resampling - 2) // levels - 1) // 2
    size = config.get("image_size", SIZES.get(levels, 32))
    attentive = [size >> level in config.get("attn_resolutions", (16,)) for level in range(levels)]
    outputs = kinds["GroupNorm"] > 1
    yield from [FOURIER] * (FOURIER in kinds)
    yield from ["Dense", "Dense", "Conv"]
    for level in range(levels):
        yield from ([BLOCK] + [ATTENTION] * attentive[level]) * n
        if level < levels - 1:
            yield from [BLOCK] + ["Downsample"] * (kinds["Downsample"] > 0) + ["Combine"] * (kinds["Combine"] > 0)
    yield from [BLOCK, ATTENTION, BLOCK]
    for level in reversed(range(levels)):
        yield from [BLOCK] * (n + 1) + [ATTENTION] * attentive[level] + ["GroupNorm", "Conv"] * outputs
        yield from [BLOCK] * (level > 0)
    yield from ["GroupNorm", "Conv"] * (not outputs)


def _renamed(own: str, tensor: np.ndarray) -> tuple[str, np.ndarray]:
    path, _, leaf = own.rpartition("/")
    if leaf in ("kernel", "weight"):
        leaf, tensor = "weight", np.moveaxis(tensor, (-1, -2), (0, 1)) if tensor.ndim > 1 else tensor
    elif leaf == "scale":
        leaf = "weight"
    return ".".join([*path.split("/"), leaf]) if path else leaf, tensor
