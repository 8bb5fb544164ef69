"""The SDE through a chain's levels, against the chain itself and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import scoresde as ss
from scoresde.interop.projects.discrete import SCHEDULES, DiscreteVP, scheduler_sde

CONFIGS = [{"beta_schedule": name} for name in SCHEDULES] + [
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "rescale_betas_zero_snr": True},
    {"trained_betas": [0.01, 0.3, 0.02, 0.5, 0.05]},
]


def betas_of(config, n=1000):
    """Ho et al. and Nichol and Dhariwal, as loops."""
    start, end = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    if "trained_betas" in config:
        return config["trained_betas"]
    kind, found = config["beta_schedule"], []
    for i in range(n):
        along = i / (n - 1)
        if kind == "linear":
            found.append(start + along * (end - start))
        elif kind == "scaled_linear":
            found.append((start**0.5 + along * (end**0.5 - start**0.5)) ** 2)
        elif kind == "sigmoid":
            found.append(start + (end - start) / (1 + np.exp(6 - 12 * along)))
        else:
            f = [np.cos((j / n + 0.008) / 1.008 * np.pi / 2) ** 2 for j in (i, i + 1)]
            found.append(min(1 - f[1] / f[0], 0.999))
    return found


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_the_levels_are_exactly_those_of_the_chain(config):
    sde, alpha, levels = scheduler_sde(config), 1.0, []
    for beta in betas_of(config):
        alpha *= np.sqrt(1 - beta)
        levels.append(alpha)
    if config.get("rescale_betas_zero_snr"):
        levels = [(a - levels[-1]) * levels[0] / (levels[0] - levels[-1]) for a in levels][:-1]
    np.testing.assert_allclose(sde.integrals, -2 * np.log(levels), rtol=1e-9)
    assert (sde.t_min, sde.t_max) == (np.float32(1 / len(levels)), 1.0)


@pytest.mark.parametrize("config", [CONFIGS[2], CONFIGS[-1]], ids=str)
def test_noise_grows_smoothly_through_the_levels(config, x64):
    sde = scheduler_sde(config)
    n = len(sde.integrals)
    t = np.linspace(1 / n, 1, 16 * (n - 1) + 1)
    log_alpha, variance, drift = (
        np.asarray(v) for v in jax.jit(lambda t: (sde.log_alpha(t), sde.variance(t), sde.drift(t)))(t)
    )
    np.testing.assert_allclose(log_alpha[::16], -0.5 * np.asarray(sde.integrals), rtol=1e-9)
    np.testing.assert_allclose(variance[::16], 1 - np.exp(-np.asarray(sde.integrals)), rtol=1e-9)
    assert np.all(np.diff(log_alpha) < 0) and np.all(np.diff(variance) > 0)
    walked = np.cumsum(0.5 * (drift[1:] + drift[:-1]) * np.diff(t))
    np.testing.assert_allclose(walked, log_alpha[1:] - log_alpha[0], rtol=2e-3, atol=2e-3 * -log_alpha[-1])


def test_a_linear_schedule_is_near_the_continuous_vp():
    sde, vp = scheduler_sde({}), ss.VP(beta_min=0.1, beta_max=20.0)
    t = np.linspace(0.05, 1, 20, dtype=np.float32)
    np.testing.assert_allclose(sde.log_alpha(t), vp.log_alpha(t), rtol=2e-2)
    np.testing.assert_allclose(sde.time(sde.log_snr(t)), t, atol=1e-5)
    assert sde.step(jnp.float32(sde.t_min)) == 0 and sde.step(1.0) == 999
    assert hash(sde) == hash(DiscreteVP(sde.integrals)) and sde == DiscreteVP(sde.integrals)


@pytest.mark.slow
def test_it_serves_the_exact_likelihood():
    """Densities of a Gaussian along a coarse chain."""
    sde = scheduler_sde({"num_train_timesteps": 100, "beta_start": 1e-3, "beta_end": 0.2})
    law = ss.GaussianMixture(np.zeros((1, 2)), np.ones(1), np.ones(1))
    x = law.sample(jax.random.key(0), 4)
    found = ss.log_likelihood(jax.random.key(1), sde, law.score(sde), x, divergence=ss.exact_divergence)
    np.testing.assert_allclose(found.log_prob, law.log_prob(x), atol=2e-3)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"beta_schedule": "laplace"}, "beta_schedule must be one of linear"),
        ({"num_train_timesteps": 10**9}, "from 3 to 100000"),
        ({"num_train_timesteps": "x"}, "from 3 to 100000"),
        ({"beta_end": 2.0}, "between 0 and 1"),
        ({"beta_end": None}, "between 0 and 1"),
        ({"trained_betas": [0.1, 0.0, 0.2]}, "between 0 and 1"),
        ({"trained_betas": [[0.1]]}, "between 0 and 1"),
        ({"trained_betas": [0.1, 0.1]}, "integrals must be 3 to"),
    ],
)
def test_configurations_that_are_no_schedule_are_refused(config, match):
    with pytest.raises(ValueError, match=match):
        scheduler_sde(config)
