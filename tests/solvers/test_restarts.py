"""Steps split in flow and noise, and Restart: the rows of the naive loops."""

import numpy as np
from family import VE, textbook

from scoresde import karras_grid
from scoresde.solvers import ancestral_split, ddim, restart


def test_the_ancestral_split_is_that_of_k_diffusion():
    """sigma_up = min(s, eta sqrt(s^2 (t^2 - s^2)/t^2)), sigma_down = sqrt(s^2 - sigma_up^2), and Euler in sigma."""
    sde, eta = VE(), 0.8
    grid = karras_grid(sde, 8)
    table = ancestral_split(sde, grid, ddim, eta=eta)
    sigma = np.sqrt(textbook(sde, grid)[1])
    up = np.minimum(sigma[1:], eta * np.sqrt(sigma[1:] ** 2 * (sigma[:-1] ** 2 - sigma[1:] ** 2) / sigma[:-1] ** 2))
    down = np.sqrt(sigma[1:] ** 2 - up**2)
    inside = down > sde.sigma_min
    assert np.all(inside[:-1]) and not inside[-1]
    np.testing.assert_allclose(table.commit.s[1:-1], up[:-1], rtol=1e-6)
    np.testing.assert_allclose(table.commit.a[1:-1], (down / sigma[:-1])[:-1], rtol=1e-6)
    assert table.commit.s[-1] == 0 and table.num_evals == 8
    np.testing.assert_array_equal(table.times, grid)


def test_restart_re_noises_where_it_says():
    """The rows of the naive loop: flow, noise up, flow again, as many times; evaluations counted."""
    sde = VE()
    grid, rho = karras_grid(sde, 10), np.sqrt(textbook(VE(), karras_grid(VE(), 10))[1])
    table = restart(sde, grid, [(rho[6], 5.0, 3, 2)], ddim)
    assert table.num_evals == 10 + 2 * 3
    (raised,) = np.nonzero(table.commit.s)
    np.testing.assert_array_equal(raised, [6, 9])
    np.testing.assert_allclose(table.commit.s[raised], np.sqrt(25 - rho[6] ** 2), rtol=1e-6)
    looks = np.sqrt(textbook(sde, table.look.t)[1])
    np.testing.assert_allclose(looks[[6, 9]], 5.0, rtol=1e-6)
    np.testing.assert_allclose(np.delete(looks, [6, 7, 8, 9, 10, 11]), rho[:-1], rtol=1e-6)
