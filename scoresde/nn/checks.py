"""Checks of the networks' arguments: each returns the value in its final form, or is a ValueError naming it."""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.typing import ArrayLike


def whole(owner: object, name: str, value: object, least: int) -> int:
    """``value`` as an int, or a ValueError naming it unless it is a whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{type(owner).__name__}: {name} must be a whole number of at least {least}, got {value!r}")
    return int(value)


def fraction(owner: object, name: str, value: float) -> float:
    """``value`` in [0, 1), or a ValueError naming it."""
    if not 0 <= value < 1:
        raise ValueError(f"{type(owner).__name__}: {name} must be in [0, 1), got {value!r}")
    return float(value)


def positive(owner: object, name: str, values: Sequence[float]) -> tuple[float, ...]:
    """``values`` as floats, or a ValueError naming them unless all are positive and finite."""
    if not all(0 < value < math.inf for value in values):
        raise ValueError(f"{type(owner).__name__}: {name} must be positive and finite, got {values!r}")
    return tuple(map(float, values))


def constant(owner: object, name: str, value: ArrayLike, shape: tuple[int, ...]) -> tuple[float, ...]:
    """``value`` broadcast to ``shape`` as flat numbers (a program's constant, not a parameter), or a ValueError."""
    array = np.asarray(value, np.float64)
    if array.shape not in ((), shape) or not np.all(np.isfinite(array)):
        raise ValueError(
            f"{type(owner).__name__}: {name} must be finite, a scalar or of shape {shape}, got {array.shape}"
        )
    return tuple(np.broadcast_to(array, shape).ravel().tolist())


def check_input(owner: object, event_shape: tuple[int, ...], x: jax.Array, c: jax.Array) -> None:
    """Refuse x that is not (B, *event_shape) and c that is not (B,)."""
    if x.ndim != 1 + len(event_shape) or x.shape[1:] != event_shape:
        raise ValueError(f"{type(owner).__name__}: x must have shape (B, *{event_shape}), got {x.shape}")
    if c.shape != x.shape[:1]:
        raise ValueError(f"{type(owner).__name__}: c must have shape (B,) = {x.shape[:1]}, got {c.shape}")
