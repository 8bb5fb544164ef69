"""The random streams of a program, each by its name: no two of them meet.

``fold_in(key, i)`` is ``split(key, n)[i]``, so that keys made by small numbers in two places may be one key. Here the
number is made of the name, above those of examples and steps, which are folded into the seed's key and into each
stream. The weights and the steps of a training are rows 0 and 1 of the seed's key.
"""

import zlib

import jax
import numpy as np

ABOVE_ROWS = 2**31


def stream(seed: int, name: str) -> jax.Array:
    """The key of the stream ``name`` of a program with this seed."""
    number = ABOVE_ROWS + zlib.crc32(name.encode()) % ABOVE_ROWS
    return jax.random.fold_in(jax.random.key(seed), np.uint32(number))
