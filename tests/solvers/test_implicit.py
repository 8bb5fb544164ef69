"""DDIM and ancestral sampling: the papers' formulas, Bayes' rule and the closed-form flow."""

import jax
import numpy as np
import pytest
from family import SDES, VP, float64, name, score_on, shifted, textbook

from scoresde import log_snr_grid
from scoresde.solvers import ancestral, ddim, integrate

KEY = jax.random.key(11)


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_ddim_has_order_one_in_the_loop_itself(x64, sde):
    """Paths in float64 against the closed-form flow map x_s = alpha_s m + (std_s/std_t)(x_t - alpha_t m)."""
    mixture = shifted()
    m, s = np.asarray(mixture.means), np.asarray(mixture.stds)
    alpha, variance, _, _ = textbook(sde, np.array([sde.t_max, sde.t_min]))
    spread = np.sqrt(alpha**2 * s**2 + variance)
    x = alpha[0] * m + spread[0] * np.random.default_rng(0).normal(size=(16, 2))
    exact = alpha[1] * m + spread[1] / spread[0] * (x - alpha[0] * m)
    errors = []
    for n in (100, 200, 400):
        table = ddim(sde, log_snr_grid(sde, n))
        got = integrate(KEY, score_on(sde, table, mixture), table, float64(x))
        errors.append(np.max(np.abs(np.asarray(got) - exact)))
    np.testing.assert_allclose(np.log2(np.array(errors[:-1]) / errors[1:]), 1, atol=0.08)


def formula_ddim(sde, grid, eta):
    """(coefficient of x_t, of D, std of z) from equation 12 of the DDIM paper, in its own variables.

    With abar = alpha^2/(alpha^2 + sigma^2) and xbar = x/sqrt(alpha^2 + sigma^2) every SDE is variance preserving.
    """
    alpha, variance, _, _ = textbook(sde, grid)
    total = np.sqrt(alpha**2 + variance)
    abar, one_minus = alpha**2 / total**2, variance / total**2
    a_t, a_s, v_t, v_s = abar[:-1], abar[1:], one_minus[:-1], one_minus[1:]
    std = eta * np.sqrt(v_s / v_t) * np.sqrt(1 - a_t / a_s)  # equation 16
    direction = np.sqrt(v_s - std**2) / np.sqrt(v_t)
    return (
        total[1:] * direction / total[:-1],
        total[1:] * (np.sqrt(a_s) - direction * np.sqrt(a_t)),
        total[1:] * std,
    )


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_ddim_is_the_papers_formula(sde, eta):
    grid = np.linspace(sde.t_max, max(sde.t_min, 0.02), 13)
    table, (x, d, z) = ddim(sde, grid, eta), formula_ddim(sde, grid, eta)
    np.testing.assert_allclose(table.commit.a[1:], x, rtol=1e-6)
    np.testing.assert_allclose(table.commit.A[1:, 0], d, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(table.commit.s[1:], z, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_ancestral_is_the_gaussian_posterior(sde):
    """Product of N(x_s; alpha_s D, sigma_s^2) and N(x_t; r x_s, v): precision and mean by Bayes' rule."""
    grid = np.linspace(sde.t_max, max(sde.t_min, 0.02), 13)
    table = ancestral(sde, grid)
    alpha, variance, _, _ = textbook(sde, grid)
    r = alpha[:-1] / alpha[1:]
    v = variance[:-1] - r**2 * variance[1:]
    precision = 1 / variance[1:] + r**2 / v
    np.testing.assert_allclose(table.commit.a[1:], r / v / precision, rtol=1e-6)
    np.testing.assert_allclose(table.commit.A[1:, 0], alpha[1:] / variance[1:] / precision, rtol=1e-6)
    np.testing.assert_allclose(table.commit.s[1:] ** 2, 1 / precision, rtol=1e-6)
    for mine, theirs in zip(jax.tree.leaves(table), jax.tree.leaves(ddim(sde, grid, eta=1.0)), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_large_eta_is_allowed_up_to_its_limit():
    """v = sigma_s^2 is the most: then x_s = alpha_s D + sigma_s z."""
    sde, grid = VP(), log_snr_grid(VP(), 5)
    alpha, variance, _, _ = textbook(sde, grid)
    share = 1 - alpha[:-1] ** 2 * variance[1:] / (alpha[1:] ** 2 * variance[:-1])
    limit = 1 / np.sqrt(share.max())
    table = ddim(sde, grid, eta=limit * (1 - 1e-7))
    assert np.all(table.commit.s[1:] <= np.sqrt(variance[1:]))
    for eta in (limit * 1.001, np.inf):
        with pytest.raises(ValueError, match=rf"^eta must be at most {limit:.4g} on this grid, got"):
            ddim(sde, grid, eta=eta)
