"""Rate and distortion of progressive coding, from the terms of the variational bound (Ho et al. 2020, section 4.3).

A sender who transmits x_T, then each state of a grid given the one before by the model's code, spends on average

    R_i = KL(q(x_T | x_0) || prior) + 1/2 sum_{j < i} expm1(h_j) E||eps - eps_hat(x_j)||^2        (nats an example)

until time i, h_j being the steps of the log-SNR. The receiver's best guess of the data is then D = E[x_0 | x_i], whose

    distortion_i = sqrt(E||x_0 - D||^2 / dims) = (sigma/alpha) sqrt(E||eps - eps_hat(x_i)||^2 / dims).

Both come from the same denoising errors. As the grid becomes fine the curve falls to that of continuous time, which for
Gaussian data is Shannon's R(distortion) = log2(std/distortion) itself.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jax.typing import ArrayLike

from scoresde.arrays import flatten, number, widened
from scoresde.grids import check_grid
from scoresde.likelihood.denoising import check_sampling, denoising_error, gaussian_error, grid_path
from scoresde.score import Score, as_partial
from scoresde.sde import SDE


@dataclasses.dataclass(frozen=True)
class RateDistortion:
    """The curve at the n + 1 times of a grid, averaged over the examples.

    Attributes:
        times: (n + 1,) from t_max to the first time.
        log_snr: (n + 1,), increasing.
        rate: (n + 1,) bits per dimension spent until then.
        std_error: (n + 1,) of ``rate`` over the repeats; NaN with one.
        distortion: (n + 1,) root-mean-square error of the receiver's guess, in the units of x.
    """

    times: np.ndarray
    log_snr: np.ndarray
    rate: np.ndarray
    std_error: np.ndarray
    distortion: np.ndarray


def rate_distortion(
    key: jax.Array,
    sde: SDE,
    score: Score,
    x: ArrayLike,
    grid: ArrayLike,
    *,
    repeats: int = 4,
    sigma_data: float = 1.0,
    first: ArrayLike = 0,
) -> RateDistortion:
    """The rate-distortion curve of progressive coding on a batch. Not inside ``jit``.

    Args:
        key: random key; the noise of example i depends on (key, i) alone.
        sde: the SDE.
        score: ``score(x, t)`` with t a scalar.
        x: (B, *event) data in the model's units; for integers the centres of their bins, as in ``discrete_bound``.
        grid: decreasing times from t_max, for example ``log_snr_grid(sde, 100)``.
        repeats: independent draws of the noise.
        sigma_data: scale of the control variate, best the standard deviation of the data.
        first: number of the first example: row i is example first + i of ``key``, as in a larger batch.

    Raises:
        ValueError: x that is no batch of floating point examples, a grid that does not begin at t_max, or a setting out
            of range.
    """
    x = widened(x)
    check_sampling(x, 1, repeats, sigma_data)
    times, path, dims = check_grid(sde, grid), grid_path(sde, grid), math.prod(x.shape[1:])
    keys = jax.random.split(key, repeats)
    nodes, scale = jnp.asarray(times, x.dtype), jnp.asarray(sigma_data)
    difference = _mean_difference(keys, sde, as_partial(score), x, nodes, scale, number(first))
    square = float(jnp.mean(jnp.sum(flatten(x) ** 2, axis=1))) / dims
    a, b = gaussian_error(path.log_snr, sigma_data)
    error = np.asarray(difference, np.float64) / dims + a + b * square  # (R, n + 1), of one dimension
    steps = 0.5 * np.expm1(np.diff(path.log_snr)) * error[:, :-1]
    spent = np.concatenate([np.zeros((repeats, 1)), np.cumsum(steps, axis=1)], axis=1)
    rate = (0.5 * math.exp(path.log_snr[0]) * square + spent) / math.log(2)
    std_error = np.std(rate, axis=0, ddof=1) / math.sqrt(repeats) if repeats > 1 else np.full(len(times), np.nan)
    distortion = np.sqrt(np.exp(-path.log_snr) * np.maximum(np.mean(error, axis=0), 0.0))
    return RateDistortion(times, path.log_snr, np.mean(rate, axis=0), std_error, distortion)


@jax.jit
def _mean_difference(
    keys: jax.Array, sde: SDE, score: Partial, x: jax.Array, times: jax.Array, sigma_data: jax.Array, first: jax.Array
) -> jax.Array:
    """(R, n + 1): the mean over the batch of the error at each time less the Gaussian's."""

    def one(index: jax.Array) -> jax.Array:
        key = jax.random.fold_in(keys[index // len(times)], index % len(times))
        return jnp.mean(denoising_error(key, sde, score, x, times[index % len(times)], sigma_data, first)[1])

    with jax.default_matmul_precision("highest"):
        return jax.lax.map(one, jnp.arange(len(keys) * len(times))).reshape(len(keys), len(times))
