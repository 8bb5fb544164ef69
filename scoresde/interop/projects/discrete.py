"""The SDE through the noise levels of a discrete diffusion, and those levels from a scheduler's configuration.

DDPM's chain x_k = sqrt(1 - beta_k) x_{k-1} + sqrt(beta_k) eps, k = 0..N-1, is variance preserving: with

    B_k = -sum_{j <= k} log(1 - beta_j),      alpha = exp(-B/2),      sigma^2 = 1 - exp(-B),

its levels are those of an SDE at times t = (k + 1)/N for any increasing B(t) through the B_k. Here B is the cubic
Hermite interpolant with the slopes (B_{k+1} - B_{k-1})/2, each at most three times its neighbouring differences, which
keeps B increasing (Fritsch and Carlson 1980). So alpha and sigma are exactly the discrete ones at every step, drift and
diffusion are continuous between them, and the network's step k = N t - 1 becomes a real number. The linear schedule is
within a percent of VP(N beta_0, N beta_{N-1}), which does not meet the levels. Time runs from t_min = 1/N, the first
level that the network has seen, to t_max = 1.

A chain of zero terminal SNR ends with beta = 1 and B = infinity. There the score is -x whatever the data are: what a
network knows of x_0 is in (x + sigma^2 score)/alpha, which has no value at alpha = 0 and loses digits near it. The last
level is taken at alpha = 2^-12, where the two errors, alpha and float32's rounding over alpha, are alike and 2e-4 of
x, or at half the alpha of the level before if that is less (3e-5 of the linear chain, an error of 2e-3). These are
errors of the first estimate of the data, of which a step takes over alpha at its end. The prior is N(0, I) to 1e-7.

References: Ho et al. (2020), "Denoising diffusion probabilistic models", equation 2; Nichol and Dhariwal (2021),
equation 17 (cosine); Lin et al. (2024), "Common diffusion noise schedules are flawed", algorithm 1 (zero terminal SNR).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from scoresde import nn, precond
from scoresde.arrays import expand
from scoresde.sde import SDE

MOST_STEPS = 100_000
LEAST_ALPHA = 2.0**-12  # of the last level of a chain that ends without signal


@dataclasses.dataclass(frozen=True)
class DiscreteVP(SDE):
    """Variance preserving through given levels: alpha^2 = exp(-B), sigma^2 = 1 - exp(-B), B(t) through ``integrals``.

    Args:
        integrals: B_k = -log(alpha_k^2) of the N levels, positive and increasing, at least 3; the last may be
            infinite, a level without signal.
    """

    integrals: tuple[float, ...] = dataclasses.field(repr=False)

    def _validate(self) -> None:
        steps = np.diff(np.asarray(self.integrals, np.float64), prepend=0.0)
        if not (3 <= len(steps) <= MOST_STEPS and np.all(np.isfinite(steps[:-1])) and np.all(steps > 0)):
            raise ValueError(
                f"DiscreteVP: integrals must be 3 to {MOST_STEPS} numbers that increase from above 0, all but the last "
                "finite"
            )

    @property
    def levels(self) -> int:
        """N, how many there are: level k + 1 is at time (k + 1)/N."""
        return len(self.integrals)

    def _default_t_min(self) -> float:
        return float(np.float32(1 / self.levels))

    def _default_t_max(self) -> float:
        return 1.0

    def step(self, t: ArrayLike) -> jax.Array:
        """k = N t - 1, the (real) step of the chain at time t, in [0, N - 1] within [t_min, t_max]."""
        return self.levels * jnp.asarray(t, jnp.result_type(float, t)) - 1

    def _integral(self, t: ArrayLike) -> jax.Array:
        k = self.step(t)
        i = jnp.clip(jnp.floor(k), 0, self.levels - 2).astype(int)
        a, b, c, d = jnp.moveaxis(jnp.asarray(_cubics(self.integrals), k.dtype)[i], -1, 0)
        u = k - i
        return a + u * (b + u * (c + u * d))

    def log_alpha(self, t: ArrayLike) -> jax.Array:
        return -0.5 * self._integral(t)

    def variance(self, t: ArrayLike) -> jax.Array:
        return -jnp.expm1(-self._integral(t))


@functools.lru_cache(maxsize=16)
def _cubics(integrals: tuple[float, ...]) -> np.ndarray:
    """(N - 1, 4): the coefficients of B on each interval in powers of k - i."""
    B = np.asarray(integrals, np.float64)
    if np.isinf(B[-1]):
        B = np.append(B[:-1], max(-2 * np.log(LEAST_ALPHA), B[-2] + 2 * np.log(2)))
    h = np.diff(B)
    slope = np.concatenate([[1.5 * h[0] - 0.5 * h[1]], 0.5 * (h[:-1] + h[1:]), [1.5 * h[-1] - 0.5 * h[-2]]])
    limit = 3 * np.minimum(np.append(h, h[-1]), np.append(h[0], h))
    slope = np.clip(slope, 0, limit)
    left, right = slope[:-1], slope[1:]
    return np.stack([B[:-1], left, 3 * h - 2 * left - right, left + right - 2 * h], -1)


def _linear(config: Mapping[str, Any], n: int) -> np.ndarray:
    return np.linspace(config["beta_start"], config["beta_end"], n)


def _scaled_linear(config: Mapping[str, Any], n: int) -> np.ndarray:
    return np.linspace(config["beta_start"] ** 0.5, config["beta_end"] ** 0.5, n) ** 2


def _cosine(config: Mapping[str, Any], n: int) -> np.ndarray:
    alpha_bar = np.cos((np.arange(n + 1) / n + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)


def _sigmoid(config: Mapping[str, Any], n: int) -> np.ndarray:
    return config["beta_start"] + (config["beta_end"] - config["beta_start"]) / (1 + np.exp(-np.linspace(-6, 6, n)))


SCHEDULES = {"linear": _linear, "scaled_linear": _scaled_linear, "squaredcos_cap_v2": _cosine, "sigmoid": _sigmoid}
DEFAULTS = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": 1000}


def scheduler_sde(config: Mapping[str, Any]) -> DiscreteVP:
    """The SDE of a scheduler of diffusers that has betas (DDPM, DDIM, PNDM, DPM-Solver and others).

    Args:
        config: its ``scheduler_config.json``: ``beta_schedule``, ``beta_start``, ``beta_end``, ``num_train_timesteps``,
            ``trained_betas``, of which the last may be 1, ``rescale_betas_zero_snr``, which makes it 1.

    Raises:
        ValueError: a schedule that is not known, or numbers that are none.
    """
    config = DEFAULTS | dict(config)
    n = config["num_train_timesteps"]
    if type(n) is not int or not 3 <= n <= MOST_STEPS:
        raise ValueError(f"num_train_timesteps must be a whole number from 3 to {MOST_STEPS}, got {n!r}")
    if config["beta_schedule"] not in SCHEDULES:
        raise ValueError(f"beta_schedule must be one of {', '.join(SCHEDULES)}, got {config['beta_schedule']!r}")
    if not all(isinstance(config[name], int | float) and 0 < config[name] < 1 for name in ("beta_start", "beta_end")):
        raise ValueError(f"betas must be between 0 and 1, got {config['beta_start']!r} and {config['beta_end']!r}")
    betas = SCHEDULES[config["beta_schedule"]](config, n)
    if config.get("trained_betas") is not None:
        betas = np.asarray(config["trained_betas"], np.float64)
    if betas.ndim != 1 or not np.all(
        (betas > 0) & (betas < 1) | (betas == 1) & (np.arange(betas.size) == betas.size - 1)
    ):
        raise ValueError("betas must be numbers between 0 and 1; the last may be 1")
    with np.errstate(divide="ignore"):  # a last level without signal: infinity
        integrals = np.cumsum(-np.log1p(-betas))
        if config.get("rescale_betas_zero_snr"):
            alpha = np.exp(-0.5 * integrals)
            integrals = -2 * np.log((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1]))
    return DiscreteVP(tuple(integrals.tolist()))


def stepwise_score(
    bare: Callable[..., jax.Array],
    sde: DiscreteVP,
    predict: precond.Prediction,
    params: nn.Params,
    x: jax.Array,
    t: jax.Array,
    cond: Any = None,
) -> jax.Array:
    """The score of a network ``bare(params, x, k, cond)`` called with the step; ``predict`` says what F means."""
    t = jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape[:1])
    F = bare(params, x, sde.step(t), cond)[..., : x.shape[-1]]
    sigma = sde.sigma(t)
    p, q = predict(sde.alpha(t), sigma, 1.0)
    return -(expand(p, x) * x + expand(q, x) * F) / expand(sigma, x)
