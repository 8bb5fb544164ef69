"""The configuration of a score_sde network, read off the names and shapes of its tensors.

Checkpoints of score_sde do not say how their network was made. Its modules are numbered in the order of the forward
pass, ``all_modules.i``, and each kind is known by its tensors:

    W                         Fourier features            Conv2d_0                 convolution of the input's pyramid
    weight with 2, 4, 1 axes  linear, convolution, norm   Conv_0 alone             combination of skip inputs
    NIN_3.W                   attention                   GroupNorm_1, Conv_2      a block, with a shortcut's weights

A BigGAN block has the shortcut where it changes the width, and where it halves or doubles the sizes: one that keeps the
width and has it therefore marks the next level. With L levels of n blocks there are L(2n + 1) + 2 other blocks. What no
tensor tells is taken from the published configurations: Fourier features go with the VE SDE, data in [0, 1], a division
by sigma and FIR resampling, positional features with the VP SDE and centred data.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

MOST_CHANNELS = 2**16
SIZES = {4: 32, 7: 256, 8: 1024}  # published: levels -> image size


def guess_config(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Configuration of a network of BigGAN blocks, with the keys of the original.

    The size of the images follows from the number of levels in the published networks, else it counts as 32: it only
    names the levels with attention, since convolutions take any size.

    Raises:
        ValueError: the tensors are not those of such a network; the line says to give a configuration.
    """
    modules = _modules(state)
    fourier = "W" in modules.get(0, {})
    convolutions = [m["weight"] for m in modules.values() if "weight" in m and m["weight"].ndim == 4]
    if not convolutions or not any("Conv_2.weight" in m for m in modules.values()):
        raise ValueError("the state is not that of a score_sde network of BigGAN blocks; give its config")
    nf = convolutions[0].shape[0]
    if not 0 < nf < MOST_CHANNELS:
        raise ValueError(f"a first convolution with {nf} channels is no network's")
    blocks = [m for m in modules.values() if "GroupNorm_1.weight" in m]
    levels = 1 + sum(map(resamples, blocks)) // 2
    num_res_blocks = ((len(blocks) - 2 * (levels - 1) - 2) // levels - 1) // 2
    widths, attention = _levels(modules, num_res_blocks)
    size = SIZES.get(levels, 32)
    sigmas = np.asarray(state["sigmas"], np.float64) if "sigmas" in state else np.array([50.0, 0.01])
    norms = sum("weight" in m and m["weight"].ndim == 1 for m in modules.values())
    residual = any("Conv2d_0.weight" in m for m in modules.values())
    combined = any(set(m) == {"Conv_0.weight", "Conv_0.bias"} for m in modules.values())
    return {
        "image_size": size,
        "num_channels": convolutions[0].shape[1],
        "centered": not fourier,
        "scale_by_sigma": fourier,
        "nf": nf,
        "ch_mult": [width // nf for width in widths],
        "num_res_blocks": num_res_blocks,
        "attn_resolutions": [size >> level for level in attention],
        "fir": fourier,
        "fir_kernel": [1, 3, 3, 1],
        "resblock_type": "biggan",
        "progressive": "output_skip" if norms > 1 else "none",
        "progressive_input": "residual" if residual else "input_skip" if combined else "none",
        "embedding_type": "fourier" if fourier else "positional",
        "fourier_scale": 16,
        "skip_rescale": True,
        "sde": "ve" if fourier else "vp",
        "beta_min": 0.1,
        "beta_max": 20.0,
        "sigma_min": float(f"{sigmas.min():.6g}"),
        "sigma_max": float(f"{sigmas.max():.6g}"),
        "num_scales": sigmas.size,
    }


def _modules(state: Mapping[str, np.ndarray]) -> dict[int, dict[str, np.ndarray]]:
    modules: dict[int, dict[str, np.ndarray]] = {}
    for name, tensor in state.items():
        root, _, rest = name.partition(".")
        number, _, own = rest.partition(".")
        if root == "all_modules" and number.isdecimal() and len(number) < 6:
            modules.setdefault(int(number), {})[own] = tensor
    return dict(sorted(modules.items()))


def resamples(block: Mapping[str, np.ndarray]) -> bool:
    """Whether a block, by the names of its tensors, halves or doubles the sizes."""
    kernel = block.get("Conv_0.weight", np.empty((0, 1)))
    return "Conv_2.weight" in block and kernel.ndim == 4 and kernel.shape[0] == kernel.shape[1]


def _levels(modules: dict[int, dict[str, np.ndarray]], num_res_blocks: int) -> tuple[list[int], list[int]]:
    """The width of each level, and the levels with attention, from the way down."""
    widths, attention, seen = [], [], 0
    for module in modules.values():
        if "NIN_3.W" in module and seen and len(widths) - 1 not in attention:
            attention.append(len(widths) - 1)
        if "GroupNorm_1.weight" not in module:
            continue
        if resamples(module):
            seen = 0
            continue
        if seen == num_res_blocks:
            break
        if seen == 0:
            widths.append(len(module["GroupNorm_1.weight"]))
        seen += 1
    return widths, attention
