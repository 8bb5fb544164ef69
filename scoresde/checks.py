"""Checks of arguments that several doors share: each is one line that says what was expected and what came."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from scoresde.arrays import is_concrete
from scoresde.sde import SDE


def check_sde(sde: SDE) -> None:
    """Raise ValueError unless it is an SDE."""
    if not isinstance(sde, SDE):
        raise ValueError(f"sde must be an SDE such as ss.VP(), got {type(sde).__name__}")


def examples(x: jax.Array | np.ndarray) -> None:
    """Raise ValueError unless ``x`` is a batch (B, *event) of at least one example."""
    if x.ndim < 1 or not x.size:
        raise ValueError(f"x must have shape (B, *event) with B >= 1, got {x.shape}")


def weight(name: str, value: ArrayLike) -> Any:
    """A float if it is a number now, otherwise an array () or (B,)."""
    if isinstance(value, jax.Array | np.ndarray):
        if value.ndim > 1:
            raise ValueError(f"{name} must be a number or an array (B,), got shape {value.shape}")
        return jnp.asarray(value, jnp.result_type(float, value))
    try:
        number = float(value)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a finite number or an array (B,), got {value!r}") from None
    if not np.isfinite(number):
        raise ValueError(f"{name} must be a finite number or an array (B,), got {value!r}")
    return number


def share(name: str, value: ArrayLike) -> Any:
    """A ``weight`` in [0, 1]."""
    found = weight(name, value)
    if is_concrete(found) and not np.all((np.asarray(found) >= 0) & (np.asarray(found) <= 1)):
        raise ValueError(f"{name} must be in [0, 1], got {value}")
    return found


def positive(name: str, value: ArrayLike) -> Any:
    """A ``weight`` above 0."""
    found = weight(name, value)
    if is_concrete(found) and not np.all(np.asarray(found) > 0):
        raise ValueError(f"{name} must be positive and finite, got {value}")
    return found


def whole(name: str, value: Any) -> int:
    """``value`` if it is a whole number of at least 1, else a ValueError that names it."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    return int(value)
