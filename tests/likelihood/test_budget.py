"""The error budget against mixtures, of which every part is known, and against tighter solves."""

import jax
import numpy as np
import pytest
from family import ring

import scoresde as ss
from scoresde import VE, VP, error_budget, hutchinson, log_likelihood

KEY = jax.random.key(23)


def offsets(sde, mixture, x, latent):
    """(log p_0 - log p_tmin at x, log p_tmax - log prior at the latent) in closed form."""
    start, end = mixture.marginal(sde, sde.t_min), mixture.marginal(sde, sde.t_max)
    return mixture.log_prob(x) - start.log_prob(x), end.log_prob(latent) - sde.prior_log_prob(latent)


@pytest.mark.slow
def test_the_budget_covers_the_error_and_its_offsets_are_the_true_ones(x64):
    """This VE has noise of std 0.01 in the data and a prior of std 5, both far from nothing. One example fails."""
    sde, mixture = VE(sigma_max=5.0), ring()
    x, data = np.array(mixture.sample(KEY, 64)), mixture.sample(jax.random.key(3), 4096)
    x[5] = np.nan
    score = mixture.score(sde)
    budget = error_budget(KEY, sde, score, x, data=data, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(budget.success, np.arange(64) != 5)
    assert budget.num_evals.shape == (64,) and np.all(np.delete(budget.num_evals, 5) > 12)
    assert budget.message.startswith("1 of 64 examples (first: 5) stopped at max_steps = 1000")
    report = budget.report().splitlines()
    assert report[0].startswith("log-density of 63 of 64 examples") and len(report) == 8
    assert [line.split()[0] for line in report[1:]] == list(vars(budget))[:7]
    tight = log_likelihood(KEY, sde, score, x, divergence=ss.exact_divergence, rtol=1e-8, atol=1e-8)
    budget, x, tight = jax.tree.map(lambda v: np.delete(v, 5, 0) if np.ndim(v) else v, (budget, x, tight))
    error = np.abs(budget.log_prob - tight.log_prob)
    assert np.mean(error <= budget.solver) > 0.9 and np.mean(error) < np.mean(budget.solver) / 3
    truncation, prior = offsets(sde, mixture, x, tight.latent)
    np.testing.assert_allclose(budget.truncation, truncation, atol=1e-3)  # O(sigma^4) is left
    assert np.mean(np.abs(truncation)) > 20 * np.mean(np.abs(budget.truncation - truncation))
    sampling = 6 * np.linalg.norm(tight.latent, axis=1) / 5.0**2 / np.sqrt(4096)
    assert np.all(np.abs(budget.prior - prior) < sampling + 1e-5) and np.mean(np.abs(prior)) > 5e-3
    assert 0 < np.mean(prior) < np.mean(budget.prior_bound)
    assert np.all(np.asarray(budget.probes) == 0) and np.all(np.asarray(budget.dequantisation) == 0)
    total = budget.log_prob + budget.truncation + budget.prior - mixture.log_prob(x)
    assert np.all(np.abs(total) < 3 * budget.solver + sampling + 1e-3)


@pytest.mark.slow
def test_the_dequantisation_gap_of_integers_is_that_of_the_mass_of_their_bins(x64):
    """Levels of 1.5 standard deviations: log of the mass of a bin over its width, less the mean log-density in it."""
    sde, width, shift = VP(), 1.5, 4.0
    mixture = ss.GaussianMixture(np.zeros((1, 1)), np.ones(1), np.ones(1))
    law = mixture.marginal(sde, sde.t_min)
    levels = np.arange(2, 6).repeat(8)[:, None]
    settings = {"bin_width": width, "shift": shift, "rtol": 1e-6, "atol": 1e-6}
    budget = error_budget(KEY, sde, mixture.score(sde), levels, repeats=64, **settings)
    inside = (levels + (np.arange(2000) + 0.5) / 2000 - shift) * width
    log_p = np.asarray(law.log_prob(inside.reshape(-1, 1))).reshape(inside.shape)
    gap = np.log(np.mean(np.exp(log_p), axis=1)) - np.mean(log_p, axis=1)
    error = np.asarray(budget.dequantisation) - gap
    # 64 draws are a bound that falls short by half the variance of their mean.
    relative = np.exp(log_p) / np.mean(np.exp(log_p), axis=1, keepdims=True)
    spread = np.sqrt((np.var(log_p, axis=1) + np.var(relative, axis=1)) / 64)
    assert np.all(np.abs(error) < 5 * spread) and np.abs(np.mean(error)) < np.mean(gap) / 4
    assert np.all(np.asarray(budget.dequantisation) >= 0) and np.mean(gap) > 0.1
    y = -np.log(np.sqrt(2 * np.pi)) - np.asarray(budget.log_prob)  # a density of one draw inside the bin
    edges = np.sort(((levels + [0, 1] - shift) * width) ** 2 / 2, axis=1)
    assert np.all((y > edges[:, 0] - 1e-4) & (y < edges[:, 1] + 1e-4))


def test_a_sample_of_another_shape_is_refused():
    for data in (np.zeros((4, 3)), np.zeros((0, 2)), 1.0):
        with pytest.raises(ValueError, match=r"^data must have shape \(N, 2\), got"):
            error_budget(KEY, VP(), lambda x, t: -x, np.zeros((4, 2), "f4"), data=data, divergence=hutchinson(1))
