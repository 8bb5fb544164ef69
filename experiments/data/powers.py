"""Monotone maps of the columns of a table, by which skewed columns become nearly Gaussian (Yeo and Johnson 2000).

With an exponent p for each standardised column z, and q = p where z >= 0, q = 2 - p where z < 0,

    h(z) = sign(z) ((1 + |z|)^q - 1) / q,      h'(z) = (1 + |z|)^(q - 1),      y = (h(z) - mean) / std

Within the range of the training part, that is; beyond it h goes on along its tangent, so that every real y has its z.
"""

from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

MOST = 3.0  # of |p - 1|, or 32-bit floats would no longer tell the values of a long tail apart
LEAST = 1e-6  # of |q|, so that nothing is divided by zero


@dataclass(frozen=True, eq=False)
class Powers:
    """One map for each of D columns; all arrays (D,) float64."""

    exponent: np.ndarray
    low: np.ndarray
    """Least z of the training part."""
    high: np.ndarray
    mean: np.ndarray
    """Of h over the training part."""
    std: np.ndarray

    @classmethod
    def fit(cls, z: np.ndarray) -> "Powers":
        """The maps of greatest Gaussian likelihood for standardised columns z (n, D)."""
        from sklearn.preprocessing import PowerTransformer

        p = np.clip(PowerTransformer(standardize=False).fit(z).lambdas_, 1 - MOST, 1 + MOST)
        for singular in (0.0, 2.0):
            p = np.where(np.abs(p - singular) < LEAST, singular + LEAST, p)
        none, one = np.zeros(len(p)), np.ones(len(p))
        h = np.asarray(cls(p, z.min(axis=0), z.max(axis=0), none, one).forward(jnp.asarray(z, float)), np.float64)
        return cls(p, z.min(axis=0), z.max(axis=0), h.mean(axis=0), h.std(axis=0))

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Powers":
        """The maps of a `record`."""
        return cls(**{field.name: np.asarray(record[field.name], np.float64) for field in fields(cls)})

    def record(self) -> dict[str, Any]:
        """All numbers, as JSON."""
        return {field.name: getattr(self, field.name).tolist() for field in fields(self)}

    def forward(self, z: jax.Array) -> jax.Array:
        """y (n, D) of standardised columns z (n, D)."""
        p, low, high, mean, std = self._of(z.dtype)
        within = jnp.clip(z, low, high)
        return (_h(within, p) + jnp.exp(_log_slope(within, p)) * (z - within) - mean) / std

    def inverse(self, y: jax.Array) -> jax.Array:
        """z (n, D) of mapped columns y (n, D)."""
        p, low, high, mean, std = self._of(y.dtype)
        h = y * std + mean
        within = jnp.clip(h, _h(low, p), _h(high, p))
        q = jnp.where(within < 0, 2 - p, p)
        z = jnp.clip(jnp.sign(within) * jnp.expm1(jnp.log1p(q * jnp.abs(within)) / q), low, high)
        return z + (h - within) * jnp.exp(-_log_slope(z, p))

    def log_det(self, z: jax.Array) -> jax.Array:
        """log |det dy/dz| (n,) of standardised columns z (n, D)."""
        p, low, high, _, std = self._of(z.dtype)
        return jnp.sum(_log_slope(jnp.clip(z, low, high), p) - jnp.log(std), axis=1)

    def _of(self, dtype: Any) -> list[jax.Array]:
        """The arrays, for broadcasting against rows."""
        return [jnp.asarray(getattr(self, field.name), dtype)[None] for field in fields(self)]


def _h(z: jax.Array, p: jax.Array) -> jax.Array:
    q = jnp.where(z < 0, 2 - p, p)
    return jnp.sign(z) * jnp.expm1(q * jnp.log1p(jnp.abs(z))) / q


def _log_slope(z: jax.Array, p: jax.Array) -> jax.Array:
    """log h'(z)."""
    return (jnp.where(z < 0, 2 - p, p) - 1) * jnp.log1p(jnp.abs(z))
