"""The SDE through a chain's levels, against the chain itself and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family import run_in_numpy

import scoresde as ss
from scoresde.arrays import on_host
from scoresde.interop.projects.discrete import SCHEDULES, DiscreteVP, scheduler_sde

CONFIGS = [{"beta_schedule": name} for name in SCHEDULES] + [
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "rescale_betas_zero_snr": True},
    {"beta_schedule": "linear", "rescale_betas_zero_snr": True},
    {"trained_betas": [0.01, 0.3, 0.02, 0.5, 0.05]},
    {"trained_betas": [0.01, 0.3, 0.02, 0.5, 1.0]},
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
        levels = [(a - levels[-1]) * levels[0] / (levels[0] - levels[-1]) for a in levels]
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(sde.integrals, -2 * np.log(levels), rtol=1e-9)
    assert (sde.t_min, sde.t_max, sde.levels) == (np.float32(1 / len(levels)), 1.0, len(levels))
    got = on_host(sde.alpha, np.arange(1, len(levels) + 1) / len(levels))
    np.testing.assert_allclose(got[:-1], levels[:-1], rtol=1e-7)
    np.testing.assert_allclose(got[-1], levels[-1], rtol=1e-7, atol=2.5e-4 if levels[-1] == 0 else 0)
    assert got[-1] < got[-2] and (levels[-1] or abs(float(sde.variance(1.0)) - 1) < 1e-6)


def walked(config, v, x, noise):
    """DDPM's sampler (Ho et al. 2020, algorithm 2, with the posterior variance) of a velocity v(x, k), as a loop; from
    x_0 = alpha x - sigma v, which has a value at a level without signal, too (Lin et al. 2024)."""
    bars = np.cumprod(1 - np.asarray(betas_of(config)))
    if config.get("rescale_betas_zero_snr"):
        roots = np.sqrt(bars)
        bars = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2
    for k in range(len(bars) - 1, -1, -1):
        bar, before = bars[k], bars[k - 1] if k else 1.0
        beta = 1 - bar / before
        data = np.sqrt(bar) * x - np.sqrt(1 - bar) * v(x, k)
        x = (np.sqrt(before) * beta * data + np.sqrt(1 - beta) * (1 - before) * x) / (1 - bar)
        x = x + np.sqrt(beta * (1 - before) / (1 - bar)) * noise[len(bars) - 1 - k]
    return x


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_chain_is_walked_through_all_its_levels(config):
    sde = scheduler_sde(config)
    table = ss.with_denoising(sde, ss.ancestral(sde, ss.discrete_grid(sde, sde.levels)))
    np.testing.assert_allclose(sde.levels * table.look.t, np.arange(sde.levels, 0, -1), rtol=1e-6)
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=5), rng.normal(size=(sde.levels + 1, 5))
    alphas, sigmas = on_host(lambda t: (sde.alpha(t), sde.sigma(t)), table.look.t)

    def v(x, k):
        return np.sin(3 * x) + 0.3 * np.cos(k / sde.levels)

    def score(x, t):
        k = round(sde.levels * t) - 1
        alpha, sigma = alphas[-1 - k], sigmas[-1 - k]
        return -(sigma * x + alpha * v(x, k)) / sigma

    wanted = walked(config, v, x, noise[1:])
    zero = np.isinf(sde.integrals[-1])
    np.testing.assert_allclose(run_in_numpy(table, x, score, noise), wanted, rtol=2e-3 if zero else 1e-6)


@pytest.mark.parametrize("spacing", [ss.grids.trailing_levels, ss.grids.leading_levels, ss.grids.linspace_levels])
def test_any_number_of_the_levels_of_a_chain_is_asked(spacing):
    for config in ({}, {"num_train_timesteps": 37}, {"rescale_betas_zero_snr": True}):
        sde = scheduler_sde(config)
        for n in (2, 5, sde.levels - 1, sde.levels):
            grid = ss.discrete_grid(sde, n, spacing=spacing)
            table = ss.ddim(sde, grid)
            table = table if len(grid) == n + 1 else ss.with_denoising(sde, table)
            k = np.round(sde.levels * table.look.t).astype(int)
            np.testing.assert_array_equal(k, spacing(n, sde.levels))
            np.testing.assert_allclose(sde.levels * table.look.t, k, rtol=1e-6)


def test_a_chain_without_signal_at_its_end_starts_from_pure_noise():
    """DDIM from N(0, I) with the score of a mixture: its law, and a velocity that the last level alone knows."""
    sde = scheduler_sde({"rescale_betas_zero_snr": True})
    law = ss.GaussianMixture(np.array([[-1.0], [2.0]]), np.array([0.3, 0.2]), np.array([0.3, 0.7]))
    x = ss.sample(jax.random.key(0), law.score(sde), ss.ddim(sde, ss.discrete_grid(sde, 50)), (4000, 1))
    share = float(np.mean(np.asarray(x) > 0.5))
    assert abs(share - 0.7) < 5 * np.sqrt(0.21 / 4000) + 0.01
    start = jax.random.normal(jax.random.key(1), (64, 3))
    one = ss.ddim(sde, ss.discrete_grid(sde, 1))
    got = ss.integrate(jax.random.key(2), jax.tree_util.Partial(_steps_to, sde), one, start)
    alpha, sigma = on_host(lambda t: (sde.alpha(t), sde.sigma(t)), sde.t_min)
    np.testing.assert_allclose(got, alpha * np.sin(np.asarray(start)) + sigma * np.asarray(start), atol=1e-2)


def _steps_to(sde, x, t):
    """The score of a network of velocity -sin(x) at every level."""
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    return -(sigma * x - alpha * jnp.sin(x)) / sigma


@pytest.mark.parametrize("config", [CONFIGS[2], CONFIGS[-2]], ids=str)
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
        ({"trained_betas": [0.1, 1.0, 0.1]}, "the last may be 1"),
    ],
)
def test_configurations_that_are_no_schedule_are_refused(config, match):
    with pytest.raises(ValueError, match=match):
        scheduler_sde(config)
