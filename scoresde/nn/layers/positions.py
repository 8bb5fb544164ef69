"""Where the tokens of a grid stand. Position n of an axis that has w of the width's places, w even, is

    [sin(n f_1), ..., sin(n f_w/2), cos(n f_1), ..., cos(n f_w/2)],      f_k = 10000^(-2 (k - 1) / w),

and a position in the grid is the concatenation over the axes, the last axis first; places left over are zero.

References: Dosovitskiy et al. (2021), section 3.1; Peebles and Xie (2023), section 3.2.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def positions(sizes: Sequence[int], width: int) -> jax.Array:
    """The waves of every position of a grid: (prod(sizes), width) float32 in [-1, 1], the grid in row-major order."""
    d = len(sizes)
    w = width // d // 2 * 2
    f = 10_000.0 ** (-np.arange(w // 2) / max(1, w // 2))
    waves = [np.zeros((*sizes, width - d * w), np.float32)]
    for axis, size in enumerate(sizes):
        angle = np.arange(size)[:, None] * f
        line = np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)
        waves.insert(0, np.broadcast_to(line.reshape(size, *(1,) * (d - axis - 1), w), (*sizes, w)))
    return jnp.concatenate(waves, axis=-1).reshape(-1, width)
