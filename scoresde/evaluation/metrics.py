"""Distances between two samples: how far are generated points from real ones?

For x_1..x_n drawn from P, y_1..y_m drawn from Q, and k the mean of Gaussian kernels exp(-|a - b|^2 / 2h^2):

    MMD^2(P, Q)  = E k(x, x') + E k(y, y') - 2 E k(x, y)             unbiased: pairs of distinct points only
    SW_p^p(P, Q) = E_theta int_0^1 |F_theta^-1(q) - G_theta^-1(q)|^p dq     theta uniform on the unit sphere
    D^2(P, Q)    = 2 E|x - y| - E|x - x'| - E|y - y'|                all pairs, as in scipy.stats

F_theta is the distribution function of <theta, x>, so the integral is a finite sum, exact for every n and m.
All three are unchanged when both samples are moved together, and the code centres them first, which keeps
float32 exact enough. Pairs are visited in blocks of rows: memory grows with n + m, never with n * m * D.

References: Gretton et al. 2012, eq. 3 (MMD); Bonneel et al. 2015 (sliced Wasserstein); Szekely & Rizzo 2013
(energy distance).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

_ROWS = 256
_MEDIAN_POINTS = 1000
_MEDIAN_MULTIPLES = (0.25, 0.5, 1.0, 2.0, 4.0)


def mmd(x: ArrayLike, y: ArrayLike, *, bandwidth: ArrayLike | None = None) -> jax.Array:
    """Unbiased estimate of the squared maximum mean discrepancy, a scalar (below zero at times when P = Q).

    `x` is (n, *event), `y` (m, *event), n, m >= 2. `bandwidth` is h > 0 in the units of x, or several,
    whose kernels are averaged. The default takes h = (1/4, 1/2, 1, 2, 4) times the median distance between
    distinct points of the pooled sample (of the first 1,000 of x and of y where there are more).

    >>> import jax
    >>> x = jax.random.normal(jax.random.key(0), (500, 2))
    >>> y = jax.random.normal(jax.random.key(1), (400, 2))
    >>> bool(mmd(x, y) < 0.01 < 0.1 < mmd(x, y + 1.0))
    True
    """
    x, y = _samples("mmd", x, y, least=2)
    if bandwidth is None:
        h = _median_distance(jnp.concatenate([x[:_MEDIAN_POINTS], y[:_MEDIAN_POINTS]]))
        return _mmd(x, y, h * jnp.asarray(_MEDIAN_MULTIPLES, x.dtype))
    h = jnp.ravel(jnp.asarray(bandwidth, x.dtype))
    if h.size == 0 or (not isinstance(h, Tracer) and not bool(jnp.all(h > 0))):
        raise ValueError(f"mmd needs bandwidth > 0 (one number or several), got {bandwidth!r}")
    return _mmd(x, y, h)


def sliced_wasserstein(
    key: jax.Array, x: ArrayLike, y: ArrayLike, *, projections: int = 256, order: float = 2
) -> jax.Array:
    """Sliced Wasserstein distance of the given order (>= 1), in the units of x, a scalar >= 0.

    `x` is (n, *event), `y` (m, *event); n and m may differ. The mean over the sphere is taken over
    `projections` directions drawn from `key`: one key, one set of directions, so that two distances compare
    fairly.
    For N(a, s^2 I) and N(b, r^2 I) in D dimensions, order 2 tends to sqrt(|a - b|^2 / D + (s - r)^2).
    """
    x, y = _samples("sliced_wasserstein", x, y, least=1)
    if projections < 1:
        raise ValueError(f"sliced_wasserstein needs projections >= 1, got {projections}")
    if not order >= 1:
        raise ValueError(f"sliced_wasserstein needs order >= 1, got {order}")
    theta = jax.random.normal(key, (projections, x.shape[1]), x.dtype)
    theta = theta / jnp.linalg.norm(theta, axis=1, keepdims=True)
    width, i, j = _quantile_intervals(len(x), len(y))
    return _sliced(theta, x, y, jnp.asarray(width, x.dtype), i, j, jnp.asarray(order, x.dtype))


def energy_distance(x: ArrayLike, y: ArrayLike) -> jax.Array:
    """Energy distance D (the square root of D^2 above), in the root of the units of x, a scalar >= 0.

    `x` is (n, *event), `y` (m, *event). In one dimension it equals `scipy.stats.energy_distance`.
    """
    x, y = _samples("energy_distance", x, y, least=1)
    return _energy(x, y)


def _samples(name: str, x: ArrayLike, y: ArrayLike, *, least: int) -> tuple[jax.Array, jax.Array]:
    """Both samples as (n, D) and (m, D) floats, moved together so that their pooled mean is zero."""
    x, y = jnp.asarray(x), jnp.asarray(y)
    if x.ndim == 0 or y.ndim == 0 or x.shape[1:] != y.shape[1:] or 0 in x.shape[1:]:
        raise ValueError(
            f"{name} expects x (n, *event) and y (m, *event) of one event shape, got {x.shape} and {y.shape}"
        )
    if min(len(x), len(y)) < least:
        raise ValueError(f"{name} needs at least {least} point(s) in each sample, got {len(x)} and {len(y)}")
    dtype = jnp.result_type(x, y, jnp.float32)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"{name} expects real numbers, got {x.dtype} and {y.dtype}")
    x, y = x.reshape(len(x), -1).astype(dtype), y.reshape(len(y), -1).astype(dtype)
    offset = y[:1]
    x, y = x - offset, y - offset
    centre = (x.mean(0, keepdims=True) + y.mean(0, keepdims=True)) / 2
    return x - centre, y - centre


def _squared_distances(a: jax.Array, b: jax.Array) -> jax.Array:
    """|a - b_j|^2 of one point (D,) to all of b (m, D); rounding never takes it below zero."""
    cross = jnp.matmul(b, a, precision=jax.lax.Precision.HIGHEST)
    return jnp.maximum(jnp.sum(b * b, axis=1) - 2 * cross + jnp.sum(a * a), 0)


def _pair_mean(kernel, x: jax.Array, y: jax.Array | None = None) -> jax.Array:
    """Mean of kernel(|x_i - y_j|^2) over all pairs; without y, over the pairs i != j of x."""

    def row(point):
        i, a = point
        values = kernel(_squared_distances(a, x if y is None else y))
        return jnp.sum(values if y is not None else jnp.where(jnp.arange(len(x)) == i, 0, values))

    sums = jax.lax.map(row, (jnp.arange(len(x)), x), batch_size=_ROWS)
    return jnp.mean(sums / (len(x) - 1 if y is None else len(y)))


@jax.jit
def _median_distance(z: jax.Array) -> jax.Array:
    distances = jax.lax.map(lambda a: jnp.sqrt(_squared_distances(a, z)), z, batch_size=_ROWS)
    h = jnp.nanmedian(jnp.where(jnp.eye(len(z), dtype=bool), jnp.nan, distances))
    return jnp.where(h > 0, h, 1)


@jax.jit
def _mmd(x: jax.Array, y: jax.Array, h: jax.Array) -> jax.Array:
    def kernel(squared):
        return jnp.mean(jnp.exp(-squared[None] / (2 * h[:, None] ** 2)), axis=0)

    return _pair_mean(kernel, x) + _pair_mean(kernel, y) - 2 * _pair_mean(kernel, x, y)


@jax.jit
def _energy(x: jax.Array, y: jax.Array) -> jax.Array:
    n, m = len(x), len(y)
    within_x = _pair_mean(jnp.sqrt, x) * (n - 1) / n if n > 1 else 0
    within_y = _pair_mean(jnp.sqrt, y) * (m - 1) / m if m > 1 else 0
    return jnp.sqrt(jnp.maximum(2 * _pair_mean(jnp.sqrt, x, y) - within_x - within_y, 0))


def _quantile_intervals(n: int, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Widths of the intervals of [0, 1] on which both quantile functions are constant, and where they point.

    The breakpoints i/n and j/m are compared as the integers i*m and j*n, hence exactly.
    """
    edges = np.union1d(np.arange(n + 1) * m, np.arange(m + 1) * n)
    return np.diff(edges) / (n * m), edges[:-1] // m, edges[:-1] // n


@jax.jit
def _sliced(theta, x, y, width, i, j, order) -> jax.Array:
    def one_direction(direction):
        u = jnp.sort(jnp.matmul(x, direction, precision=jax.lax.Precision.HIGHEST))
        v = jnp.sort(jnp.matmul(y, direction, precision=jax.lax.Precision.HIGHEST))
        return jnp.sum(width * jnp.abs(u[i] - v[j]) ** order)

    return jnp.mean(jax.lax.map(one_direction, theta, batch_size=32)) ** (1 / order)
