"""Raw values and model units: centred, of unit standard deviation, and what that does to densities.

    integers      y = (level + u - shift) / scale,   u ~ U[0, 1) the dequantisation noise,   bin_width = 1 / scale
    measurements  y = (x - shift) / scale,           log p(x) = log p(y) + log_det,          log_det = -sum log scale
    columns       y = h((x - shift) / scale) W,      the same,               log_det + sum log h' + log |det W|

Integers 0..levels-1 have no density: u makes them continuous, and ``bin_width`` turns nats into bits per dimension.
Measured columns may be skewed: monotone maps h of each make them nearly Gaussian. They may be nearly dependent, their
density narrow in one direction and wide in another: the matrix W makes their covariance the identity, so that one range
of noise levels serves all directions.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from scoresde.checks import whole


@runtime_checkable
class Maps(Protocol):
    """h: increasing maps of standardised columns z (n, D), traceable."""

    def forward(self, z: jax.Array) -> jax.Array:
        """h(z), (n, D)."""
        ...

    def inverse(self, y: jax.Array) -> jax.Array:
        """The z (n, D) of h(z)."""
        ...

    def log_det(self, z: jax.Array) -> jax.Array:
        """sum log h'(z) over the columns, (n,)."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Units:
    """The way from raw values to model units and back.

    Args:
        shift: what is subtracted, in raw units: one number, or an array of the event's shape. Of integers, the middle
            of the bin of level k is k + 1/2.
        scale: what is divided by, positive, in raw units: one number, or of measurements an array of the event's shape.
        levels: how many, of integers 0..levels-1; None for measurements.
        maps: h, of measured columns; an object with ``forward``, ``inverse`` and ``log_det``.
        whitening: W (D, D), of measured columns, not singular.

    Raises:
        ValueError: one of them is not as above.

    >>> units = Units.standardised(mean=[4.0, 4.0], std=2.0, levels=9)
    >>> units.from_model(units.to_model([[0, 8]])).tolist()
    [[0, 8]]
    """

    shift: np.ndarray
    scale: np.ndarray
    levels: int | None = None
    maps: Maps | None = None
    whitening: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name in ("shift", "scale", "whitening"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, np.asarray(value, np.float64))
                if not np.all(np.isfinite(getattr(self, name))):
                    raise ValueError(f"{name} must be finite, got {value}")
        if not np.all(self.scale > 0):
            raise ValueError(f"scale must be positive, got {self.scale.min():g}")
        if self.scale.shape not in ((), self.shift.shape):
            raise ValueError(f"scale must have shape () or that of shift, {self.shift.shape}, got {self.scale.shape}")
        if self.levels is not None:
            object.__setattr__(self, "levels", whole("levels", self.levels))
            if self.scale.ndim or self.maps is not None or self.whitening is not None:
                raise ValueError("integer levels take one scale, no maps and no whitening, which make bins uneven")
        if self.maps is not None and not isinstance(self.maps, Maps):
            raise ValueError(f"maps must have forward, inverse and log_det, got {type(self.maps).__name__}")
        if self.whitening is not None:
            dims = self.shift.shape or self.whitening.shape[:1]
            if self.whitening.shape != 2 * dims or not np.linalg.slogdet(self.whitening)[0]:
                raise ValueError(f"whitening must be a matrix {2 * dims}, not singular, got {self.whitening.shape}")

    @classmethod
    def standardised(
        cls,
        mean: ArrayLike,
        std: ArrayLike,
        *,
        levels: int | None = None,
        maps: Maps | None = None,
        whitening: ArrayLike | None = None,
    ) -> "Units":
        """The units in which values of so measured a mean and standard deviation have 0 and 1.

        The noise u adds 1/2 to the mean of integers and 1/12 to their variance.
        """
        mean, std = np.asarray(mean, np.float64), np.asarray(std, np.float64)
        shift, scale = (mean, std) if levels is None else (mean + 0.5, np.sqrt(std**2 + 1 / 12))
        return cls(shift, scale, levels, maps, None if whitening is None else np.asarray(whitening))

    @property
    def bin_width(self) -> float | None:
        """Width of one level in model units; None for measurements."""
        return None if self.levels is None else float(1 / self.scale)

    def log_det(self, x: ArrayLike) -> np.ndarray:
        """log |det dy/dx| (n,) at raw values x (n, *event): add it to log-densities in model units to have them per raw
        unit."""
        self._check(x)
        x = jnp.asarray(x, dtype=float)
        log_det = -float(np.sum(np.log(np.broadcast_to(self.scale, x.shape[1:]))))
        if self.whitening is not None:
            log_det += float(np.linalg.slogdet(self.whitening)[1])
        maps = np.zeros(len(x)) if self.maps is None else self.maps.log_det(self._standardised(x))
        return np.asarray(maps, np.float64) + log_det

    def to_model(self, x: ArrayLike, noise: ArrayLike | None = None) -> jax.Array:
        """Raw values (n, *event) in model units, traceable.

        Args:
            x: integers, or measurements.
            noise: u in [0, 1), shaped like x; None puts integers in the middle of their bins. Measurements need none
                and ignore it.
        """
        y = self.elements(x, noise)
        return y if self.whitening is None else jnp.matmul(y, jnp.asarray(self.whitening, y.dtype), precision="highest")

    def elements(self, x: ArrayLike, noise: ArrayLike | None = None) -> jax.Array:
        """The same before W mixes the columns, so that each element depends on its own raw value alone."""
        self._check(x)
        x = jnp.asarray(x, dtype=float)
        if self.levels is not None:
            x = x + (0.5 if noise is None else jnp.asarray(noise, x.dtype))
        y = self._standardised(x)
        return y if self.maps is None else self.maps.forward(y)

    def unmixed(self, y: ArrayLike) -> jax.Array:
        """Points (n, *event) in model units as ``elements``, traceable and linear."""
        y = jnp.asarray(y)
        if self.whitening is None:
            return y
        return jnp.matmul(y, jnp.asarray(np.linalg.inv(self.whitening), y.dtype), precision="highest")

    def from_model(self, y: ArrayLike, *, round_levels: bool = True) -> np.ndarray:
        """Raw values of points (n, *event) in model units, on the host, in float32 or the least type for the levels.

        Integers are rounded down to their bin and clipped to 0..levels-1; with ``round_levels=False`` they stay real
        numbers, where the middle of a bin is its level (for pictures of a path).
        """
        self._check(y)
        y = np.asarray(self.unmixed(np.asarray(y, np.float32)))
        if self.maps is not None:
            y = np.asarray(self.maps.inverse(jnp.asarray(y)))
        x = y * self.scale.astype(np.float32) + self.shift.astype(np.float32)
        if self.levels is None:
            return x
        if not round_levels:
            return x - np.float32(0.5)
        return np.clip(np.nan_to_num(np.floor(x)), 0, self.levels - 1).astype(np.min_scalar_type(self.levels - 1))

    def _standardised(self, x: jax.Array) -> jax.Array:
        """(x - shift) / scale."""
        shift, scale = (jnp.asarray(v, x.dtype) for v in (self.shift, self.scale))
        return (x - (shift[None] if shift.ndim else shift)) / (scale[None] if scale.ndim else scale)

    def _check(self, x: ArrayLike) -> None:
        """Raise ValueError unless values are (n, *event)."""
        shape = np.shape(x)  # pyright: ignore[reportArgumentType]
        if not shape or (self.shift.ndim and shape[1:] != self.shift.shape):
            raise ValueError(f"values must have shape (n, *event) with event {self.shift.shape}, got {shape}")
