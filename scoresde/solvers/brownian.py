"""The noise of a table from one Brownian path per example, shared by all numbers of steps.

The reverse SDE dx = [f x - g^2 score] dt + g dw has, for y = x/alpha and for w = x alpha/sigma^2, the noise

    g/alpha dw = sqrt(2) (sigma/alpha) dW,        g alpha/sigma^2 dw = sqrt(2) (alpha/sigma) dW,

one white noise dW in the clock lambda = log(alpha/sigma), because g^2 dt = -2 sigma^2 dlambda. A step from t to s < t
adds the integral of a deterministic weight against dW: Euler-Maruyama that of y with its weight frozen at t, ancestral
sampling (constant D) exactly that of w. Both are scaled by the table to s_k z_k with z_k standard normal, and here

    z_k = (W(lambda_s) - W(lambda_t)) / sqrt(lambda_s - lambda_t).

The variation of the weight over a step, of relative size h = lambda_s - lambda_t, is lost: an error of variance O(h^3)
a step, independent from step to step, and so O(h) at the end. With it every first-order solver of the reverse SDE has
strong order one, and all of them converge to the *same* path; from increments of W alone no higher order is possible.
lambda is the clock because in it every SDE spends its steps evenly; sigma^2/alpha^2, in which the noise of y is a
Brownian motion itself, spans ten orders of magnitude.

W lives on 2^20 cells of equal length in lambda between t_max and t_min. Its value at the end of a cell is found by
halving the interval twenty times (Levy's construction): the midpoint is the average of the ends plus sqrt(length)/2
times a normal drawn from the key of example and midpoint. Times are rounded to cells and increments divided by the
rounded length, so that the z_k are exactly independent standard normals, whatever the grid.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from scoresde.arrays import is_concrete, on_host
from scoresde.sde import SDE

DEPTH = 20
_TREE = np.uint32(2**32 - 1)  # no table has so many rows: its keys are never those of the path

Cells = Callable[[np.ndarray], np.ndarray]


def brownian_path(sde: SDE) -> Cells:
    """The ``noise`` option of ``sample`` and ``integrate``: one Brownian path per example, for any table of this SDE.

    The same key then gives the same path for every solver, grid and number of steps: stochastic solvers of the reverse
    SDE converge path by path, with strong order one. Rows that do not continue the descent in time (Langevin
    correctors, noise added back) draw fresh noise as without the option; the law of a table's result does not change
    at all. Costs 42 normal draws per row and element of the state instead of one.

    Returns:
        A function from the times of a table's committed states, (R + 1,), to the cells between which each row's noise
        is the increment, (R + 1, 2) whole numbers; equal ones ask for fresh noise.
    """

    def cells(times: np.ndarray) -> np.ndarray:
        if not is_concrete(times) or np.ndim(times) != 1:
            raise ValueError("a Brownian path needs one table of concrete times: make the table outside jit and vmap")
        start, end = on_host(sde.log_snr, np.array([sde.t_max, sde.t_min]))
        place = (on_host(sde.log_snr, np.asarray(times, np.float64)) - start) / (end - start)
        cell = np.round(np.clip(place, 0, 1) * (2**DEPTH - 1)).astype(np.int32)
        before = np.insert(cell[:-1], 0, cell[0])
        lowest = np.maximum.accumulate(before)  # the furthest that any earlier row has come
        return np.stack([np.where((before == lowest) & (cell > before), before, cell), cell], axis=1)

    return cells


def path_normal(key: jax.Array, cells: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """The increment of the path of ``key`` between two ``cells`` (2,), scaled to a standard normal of ``shape``."""
    key = jax.random.fold_in(key, _TREE)
    left, right = (_path(key, cell, shape, dtype) for cell in cells)
    length = (cells[1] - cells[0]).astype(dtype) / 2**DEPTH
    return (right - left) / jnp.sqrt(length)


def _path(key: jax.Array, cell: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """W(cell/2^DEPTH) on [0, 1]."""

    def normal(node: jax.Array | int) -> jax.Array:
        return jax.random.normal(jax.random.fold_in(key, node), shape, dtype)

    def halve(level: jax.Array, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        left, right = ends
        rest = DEPTH - level
        node = (1 << level) + (cell >> rest)  # 1 is the midpoint of all, 2 and 3 those of its halves...
        middle = (left + right) / 2 + 0.5 * 2.0 ** (-level.astype(dtype) / 2) * normal(node)
        upper = (cell >> (rest - 1)) & 1 == 1
        return jnp.where(upper, middle, left), jnp.where(upper, right, middle)

    return jax.lax.fori_loop(0, DEPTH, halve, (jnp.zeros(shape, dtype), normal(0)))[0]
