"""Weights of denoising score matching: w(t) on ||eps_hat - eps||^2 under times uniform in [t_min, t_max].

A paper states its weight on what its network predicts and under its own draw of times. Both are changes of variables.
With lambda = log(alpha^2/sigma^2) the log-SNR, an error of the noise is one of the data or of the velocity of the
preconditioner (cos(phi) = alpha sigma_d / sqrt(alpha^2 sigma_d^2 + sigma^2)) as

    ||x_0_hat - x_0||^2 = e^-lambda ||eps_hat - eps||^2,        ||F_hat - F||^2 = ||eps_hat - eps||^2 / cos(phi)^2,

and since dlambda/dt = -g^2/sigma^2, uniform times have the density p(lambda) = 1/((t_max - t_min) g^2/sigma^2). So

    int v(lambda) E||eps_hat - eps||^2 dlambda     has the weight    w = v g^2/sigma^2 (here without t_max - t_min),
    E over uniform times s of another schedule     has the weight    w p_schedule(lambda)/p(lambda),

the same objective whatever the SDE (Kingma et al. 2021).

References: Ho et al. (2020); Song et al., "Maximum likelihood training" (2021); Choi et al., "Perception prioritized
training" (2022); Hang et al., "Efficient diffusion training via min-SNR weighting" (2023);
Kingma and Gao, "Understanding diffusion objectives as the ELBO with simple data augmentation" (2023);
Hoogeboom et al., "Simpler diffusion" (2024).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from scoresde.sde import SDE

Weight = Callable[[SDE, jax.Array], jax.Array]
"""(sde, t) -> weight on ||eps_hat - eps||^2 under uniform time."""


def noise_weight(sde: SDE, t: jax.Array) -> jax.Array:
    """w = 1: noise prediction (Ho et al. 2020, "simple" loss)."""
    return jnp.ones_like(t)


def likelihood_weight(sde: SDE, t: jax.Array) -> jax.Array:
    """w = g^2/sigma^2, g^2 on the score: half the loss bounds -log p (Song et al. 2021, "ScoreFlow", theorem 1)."""
    return sde.diffusion(t) ** 2 / sde.variance(t)


def min_snr_weight(gamma: float = 5.0, schedule: SDE | None = None) -> Weight:
    """min(SNR, gamma) on ||x_0_hat - x_0||^2 under uniform times: w = min(SNR, gamma)/SNR = min(1, gamma e^-lambda).

    Hang et al. (2023). Levels of little noise, whose data are easily restored, count no more than at SNR = gamma.

    Args:
        gamma: positive; the SNR is alpha^2/sigma^2, so gamma refers to data of the usual scale: for data of standard
            deviation sigma_d instead of 1 pass gamma/sigma_d^2.
        schedule: the SDE whose times are uniform, such as ``Cosine()``; by default the SDE at hand.
    """
    if not gamma > 0:
        raise ValueError(f"gamma must be positive, got {gamma!r}")

    def weight(sde: SDE, t: jax.Array) -> jax.Array:
        return jnp.minimum(1, gamma * jnp.exp(-sde.log_snr(t))) * _change(schedule, sde, t)

    return weight


def p2_weight(gamma: float = 1.0, k: float = 1.0, schedule: SDE | None = None) -> Weight:
    """lambda_t/(k + SNR)^gamma on the terms of the bound, lambda_t that of the simple loss: w = (k + SNR)^-gamma.

    Choi et al. (2022): the simple loss is the bound's terms times lambda_t, hence w = 1 at gamma = 0.

    Args:
        gamma: at least 0, the strength.
        k: positive.
        schedule: the SDE whose times are uniform; by default the SDE at hand.
    """
    if not gamma >= 0:
        raise ValueError(f"gamma must be at least 0, got {gamma!r}")
    if not k > 0:
        raise ValueError(f"k must be positive, got {k!r}")

    def weight(sde: SDE, t: jax.Array) -> jax.Array:
        return jnp.exp(-gamma * jnp.logaddexp(jnp.log(k), sde.log_snr(t))) * _change(schedule, sde, t)

    return weight


def sigmoid_weight(bias: float = 0.0) -> Weight:
    """sigmoid(bias - lambda) on ||eps_hat - eps||^2 dlambda: w = sigmoid(bias - lambda) g^2/sigma^2.

    Kingma and Gao (2023), Hoogeboom et al. (2024). The bound's own weight up to lambda = ``bias``, falling as 1/SNR
    above. Monotone in lambda, it is the bound of data with noise added (Kingma and Gao).
    """

    def weight(sde: SDE, t: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(bias - sde.log_snr(t)) * likelihood_weight(sde, t)

    return weight


def _change(schedule: SDE | None, sde: SDE, t: jax.Array) -> jax.Array:
    """p_schedule(lambda)/p(lambda), the density of the schedule's uniform times over that of the SDE's."""
    if schedule is None:
        return jnp.ones_like(t)
    s = schedule.time(sde.log_snr(t))
    own = likelihood_weight(sde, t) * (sde.t_max - sde.t_min)
    return own / (likelihood_weight(schedule, s) * (schedule.t_max - schedule.t_min))
