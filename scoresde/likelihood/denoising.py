"""Denoising errors E||eps - eps_hat||^2 along the log-SNR, sampled with small variance.

With lambda the log-SNR, eps_hat = -sigma score(x_t, t) and x_t = alpha x_0 + sigma eps, the variational bounds need

    int E||eps - eps_hat||^2 dlambda      or      sum_i expm1(h_i) E||eps - eps_hat||^2 at lambda_i, h = diff(lambda),

in continuous time or for T steps with the posterior variance of DDPM (Kingma et al. 2021, "VDM", sections 4 and 5).
Since g^2/sigma^2 = -dlambda/dt, uniform draws of lambda are the importance sampling of the likelihood weight in closed
form, for every SDE through ``time``. For T steps the same draw picks step i as often as it is long in lambda, and
carries the weight expm1(h_i)/h_i.

Strata. Example i uses the units ((u + i golden) mod 1 + n)/N, n = 0..N-1, with one u for each repeat and the golden
ratio: uniform for each example, evenly spread over the batch, and a function of (key, i) alone.

Control variate. For N(0, s^2 I) one has eps_hat = sin^2 eps + sin cos x_0/s with sin^2 = 1/(1 + s^2 e^lambda), so that

    eps - eps_hat = cos (cos eps - sin x_0/s),      E||eps - eps_hat||^2 = cos^4 D + sin^2 cos^2 ||x_0||^2/s^2,
    int cos^4 dlambda = [log(1/sin^2) + sin^2],     int sin^2 cos^2 dlambda = -[sin^2].

A network's error is close to this one at both ends of time, so only the difference of the two squares is sampled: the
variance falls 4.6 fold on a ring of Gaussians and 9 fold on digits for VP, 2.6 and 5.5 fold for VE (a benchmark,
``bounds``, prints it). Every s is right; for data N(0, s^2 I) nothing random is left. Pairs of opposite noise at equal
cost do not help further.
"""

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jax.typing import ArrayLike

from scoresde.angle import cos_sin, squares_of
from scoresde.arrays import example_keys, flatten, normal_per_example, on_host
from scoresde.checks import whole
from scoresde.grids import check_grid
from scoresde.score import check_score
from scoresde.sde import SDE

GOLDEN = (math.sqrt(5) - 1) / 2


@partial(jax.tree_util.register_dataclass, data_fields=["t_data", "log_snr", "times", "weights"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Path:
    """Where denoising errors are taken: at the noisier ends ``times`` (T,) of steps, or at all times if None.

    Attributes:
        t_data: the first time, where the path ends.
        log_snr: (T + 1,) the log-SNR at the nodes, or (2,) at the ends in continuous time; increasing float64.
        times: (T,) or None.
        weights: (T,) expm1(h)/h of the steps h of the log-SNR, or None.
    """

    t_data: float
    log_snr: np.ndarray
    times: np.ndarray | None = None
    weights: np.ndarray | None = None

    def draw(self, sde: SDE, units: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Times and weights for ``units`` uniform in [0, 1): the mean of weight * f(time) is the integral of f."""
        nodes = jnp.asarray(self.log_snr, units.dtype)
        log_snr = nodes[0] + (nodes[-1] - nodes[0]) * units
        if self.times is None or self.weights is None:
            return jnp.clip(sde.time(log_snr), self.t_data, sde.t_max), jnp.full_like(units, nodes[-1] - nodes[0])
        i = jnp.clip(jnp.searchsorted(nodes, log_snr, side="right") - 1, 0, len(nodes) - 2)
        weights = (nodes[-1] - nodes[0]) * jnp.asarray(self.weights, units.dtype)
        return jnp.asarray(self.times, units.dtype)[i], weights[i]

    def gaussian(self, sigma_data: float) -> list[float]:
        """(a, b): the integral or sum is a D + b ||x_0||^2 for the score of N(0, sigma_data^2 I)."""
        if self.times is not None:
            return (gaussian_error(self.log_snr[:-1], sigma_data) @ np.expm1(np.diff(self.log_snr))).tolist()
        sin2 = squares_of(self.log_snr, sigma_data)[1]
        change = float(np.diff(sin2)[0])
        return [-float(np.diff(np.log(sin2))[0]) + change, -change / sigma_data**2]


def continuous_path(sde: SDE, t_data: float) -> Path:
    """All times from t_max to ``t_data``."""
    return Path(t_data, on_host(sde.log_snr, np.array([sde.t_max, t_data])))


def grid_path(sde: SDE, grid: ArrayLike) -> Path:
    """The steps of a decreasing grid of times, which must begin at t_max, where the prior is."""
    grid = check_grid(sde, grid)
    if grid[0] < sde.t_max * (1 - 1e-6):
        raise ValueError(f"the grid must begin at t_max = {sde.t_max:g}, where the prior is, got {grid[0]:g}")
    log_snr = on_host(sde.log_snr, grid)
    step = np.diff(log_snr)
    return Path(float(grid[-1]), log_snr, grid[:-1], np.expm1(step) / step)


def gaussian_error(log_snr: ArrayLike, sigma_data: float) -> np.ndarray:
    """(cos^4, sin^2 cos^2/s^2), the factors of D and ||x_0||^2 in E||eps - eps_hat||^2 for N(0, s^2 I), on the host."""
    cos2, sin2 = squares_of(log_snr, sigma_data)
    return np.stack([cos2**2, sin2 * cos2 / sigma_data**2])


def denoising_error(
    key: jax.Array, sde: SDE, score: Partial, x: jax.Array, t: jax.Array, sigma_data: jax.Array, first: ArrayLike = 0
) -> tuple[jax.Array, jax.Array]:
    """(eps - eps_hat, its square less that of the Gaussian): (B, D) and (B,), for t a scalar or (B,)."""
    noise = normal_per_example(example_keys(key, x.shape[0], first), x.shape[1:], x.dtype)
    x_t = sde.perturb(x, t, noise)
    x_0, noise = flatten(x), flatten(noise)
    alpha, sigma = (jnp.broadcast_to(a, x.shape[:1])[:, None] for a in (sde.alpha(t), sde.sigma(t)))
    residual = noise + sigma * flatten(check_score(score(x_t, t), x_t))
    cos, sin = cos_sin(alpha, sigma, sigma_data)
    gaussian = cos * (cos * noise - sin * x_0 / sigma_data)
    return residual, jnp.sum((residual - gaussian) * (residual + gaussian), axis=1)


def strata(batch: int, first: int, dtype: Any = float) -> jax.Array:
    """Where the strata of the examples first, ..., first + batch - 1 begin, (B,); float64 on the host, then rounded."""
    return jnp.asarray((GOLDEN * (first + np.arange(batch))) % 1, dtype)


@partial(jax.jit, static_argnames=("draws", "repeats"))
def sampled_difference(
    key: jax.Array,
    sde: SDE,
    score: Partial,
    x: jax.Array,
    path: Path,
    sigma_data: jax.Array,
    draws: int,
    repeats: int,
    first: ArrayLike = 0,
    offsets: jax.Array | None = None,
) -> jax.Array:
    """(R, B): for each repeat, the integral or sum of E||eps - eps_hat||^2 along the path less the Gaussian's.

    ``offsets`` are ``strata(B, first)``, which is the default for first = 0.
    """
    offsets = strata(x.shape[0], 0, x.dtype) if offsets is None else offsets

    def draw(index: jax.Array) -> jax.Array:
        key_units, key_noise = jax.random.split(jax.random.fold_in(key, index // draws))
        units = ((jax.random.uniform(key_units, dtype=x.dtype) + offsets) % 1 + index % draws) / draws
        t, weight = path.draw(sde, units)
        return weight * denoising_error(jax.random.fold_in(key_noise, index), sde, score, x, t, sigma_data, first)[1]

    with jax.default_matmul_precision("highest"):
        values = jax.lax.map(draw, jnp.arange(repeats * draws))
    return jnp.mean(values.reshape(repeats, draws, -1), axis=1)


def check_sampling(x: jax.Array, draws: int, repeats: int, sigma_data: float) -> None:
    """One-line errors for the arguments that every estimate here shares."""
    if not jnp.issubdtype(x.dtype, jnp.floating) or x.ndim < 2 or not x.size:
        raise ValueError(f"x must be floating point of shape (B, *event) with B >= 1, got {x.dtype} {x.shape}")
    whole("draws", draws)
    whole("repeats", repeats)
    if not 0 < sigma_data < math.inf:
        raise ValueError(f"sigma_data must be positive and finite, got {sigma_data!r}")
