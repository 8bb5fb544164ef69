"""Euler-Maruyama and reverse diffusion: the naive loop, and Song's update."""

import jax
import numpy as np
import pytest
from family import SDES_IN_TURN, VE, float64, name, textbook, two_modes
from solver_family import noise_of

from scoresde import karras_grid, log_snr_grid
from scoresde.solvers import euler_maruyama, integrate, reverse_diffusion

KEY = jax.random.key(11)


def test_reverse_diffusion_on_ve_is_songs():
    """x_s = x_t + (sigma_t^2 - sigma_s^2) score + sqrt(sigma_t^2 - sigma_s^2) z: Song et al. (2021), equation 47."""
    sde = VE()
    grid = karras_grid(sde, 9)
    table, variance = reverse_diffusion(sde, grid), textbook(sde, grid)[1]
    assert not np.any(table.look.c) and np.all(table.look.d == 1)
    np.testing.assert_allclose(table.commit.a[1:], 1, rtol=1e-12)
    np.testing.assert_allclose(table.commit.A[1:, 0], -np.diff(variance), rtol=1e-9)
    np.testing.assert_allclose(table.commit.s[1:], np.sqrt(-np.diff(variance)), rtol=1e-9)


@pytest.mark.parametrize("sde", SDES_IN_TURN, ids=name)
def test_euler_maruyama_is_the_naive_loop(x64, sde):
    grid = log_snr_grid(sde, 6)
    score = jax.jit(two_modes().score(sde))
    x = start = np.asarray(sde.prior_sample(KEY, (3, 2)), np.float64)
    for k, (t, s) in enumerate(zip(grid[:-1], grid[1:], strict=True)):
        _, _, f, g2 = textbook(sde, t)
        z = noise_of(KEY, k + 1, 3, (2,))
        x = x - (f * x - g2 * np.asarray(score(float64(x), float64(t)))) * (t - s) + np.sqrt(g2 * (t - s)) * z
    got = integrate(KEY, score, euler_maruyama(sde, grid), float64(start))
    np.testing.assert_allclose(got, x, rtol=1e-6, atol=1e-9)
