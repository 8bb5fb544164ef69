"""Checks of the networks' arguments: each returns the value in its final form, or is a ValueError naming it."""

import math
import operator
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
    """``value``, a scalar or of ``shape``, as flat numbers (a program's constant, no parameter), or a ValueError."""
    array = np.asarray(value, np.float64)
    if array.shape not in ((), shape) or not np.all(np.isfinite(array)):
        raise ValueError(
            f"{type(owner).__name__}: {name} must be finite, a scalar or of shape {shape}, got {array.shape}"
        )
    return tuple(array.ravel().tolist())


def divides(owner: object, name: str, value: object, what: str, number: int) -> int:
    """``value`` as an int, or a ValueError naming it unless it is a whole number that divides ``number``."""
    if number % (divisor := whole(owner, name, value, 1)):
        raise ValueError(f"{type(owner).__name__}: {name} = {divisor} must divide {what} = {number}")
    return divisor


def grid(owner: object, event_shape: Sequence[int | None], patch: int) -> tuple[tuple[int | None, ...], int]:
    """``event_shape`` (*sizes, channels) and its channels, or a ValueError unless it has one to three sizes, each a
    multiple of ``patch`` or None for any."""
    shape = tuple(None if n is None else operator.index(n) for n in event_shape)
    sizes = [n for n in shape[:-1] if n is not None]
    if (
        len(shape) not in (2, 3, 4)
        or shape[-1] is None
        or min([*sizes, shape[-1]]) < 1
        or any(n % patch for n in sizes)
    ):
        raise ValueError(
            f"{type(owner).__name__}: event_shape must be (*sizes, channels) with 1 to 3 positive sizes "
            f"that patch = {patch} divides, or None for any size, got {shape}"
        )
    return shape, shape[-1]


def levels(owner: object, multipliers: Sequence[int], attention_levels: Sequence[int]) -> set[int]:
    """``attention_levels``, or a ValueError unless they are among the levels, one for each multiplier, at least one."""
    name, count = type(owner).__name__, len(multipliers)
    if not count:
        raise ValueError(f"{name}: multipliers must name at least one level, got none")
    for level in attention_levels:
        if not 0 <= operator.index(level) < count:
            raise ValueError(f"{name}: attention_levels must be in 0..{count - 1}, got {level!r}")
    return set(attention_levels)


def check_labels(labels: jax.Array | None, shape: tuple[int, ...]) -> None:
    """Refuse labels that are not (B, L); None is none."""
    if labels is not None and (labels.shape != shape or not shape[-1]):
        raise ValueError(f"labels must have shape (B, L) = {shape}, got {labels.shape}")


def check_input(owner: object, event_shape: tuple[int | None, ...], x: jax.Array, c: jax.Array) -> None:
    """Refuse x that is not (B, *event_shape), None being any size, and c that is not (B,)."""
    if x.ndim != 1 + len(event_shape) or any(n not in (m, None) for n, m in zip(event_shape, x.shape[1:], strict=True)):
        raise ValueError(f"{type(owner).__name__}: x must have shape (B, *{event_shape}), got {x.shape}")
    if c.shape != x.shape[:1]:
        raise ValueError(f"{type(owner).__name__}: c must have shape (B,) = {x.shape[:1]}, got {c.shape}")
