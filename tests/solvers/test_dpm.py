"""DPM-Solver and DPM-Solver++ against the papers' formulas, and exact where they must be."""

import numpy as np
import pytest
from family import SDES, gaussian_law, name, textbook
from solver_family import MEAN, phi

from scoresde import log_snr_grid
from scoresde.arrays import on_host
from scoresde.solvers import dpm_solver, dpm_solver_single


def combined(sde, grid, make):
    """One step from grid[-2] to grid[-1] as coefficients on (x, h newest first), of a table whose last step it is."""
    table = make(sde, grid)
    return np.append(table.commit.a[-1], table.commit.A[-1])


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_dpm_solver_is_the_papers_formula(sde):
    """Both predictions of multistep order 2 and 3 and of single-step order 2 and 3, written with phi functions.

    Lu et al. (2022a), equations 3.7, 4.1 and algorithms 1 and 2; (2022b), algorithm 2, the third-order term with the
    factor 2 of the divided difference, which published codes drop.
    """
    lam = np.array([-1.0, -0.3, 0.6, 1.2])
    grid = np.asarray(on_host(sde.time, 2 * lam))
    alpha, variance, _, _ = textbook(sde, grid)
    sigma, h = np.sqrt(variance), np.diff(lam)
    step, r0, r1 = h[-1], h[1] / h[2], h[0] / h[2]
    for noise in (False, True):
        scale, z = (-sigma[-1], step) if noise else (alpha[-1], -step)
        ratio = (alpha if noise else sigma)[-1] / (alpha if noise else sigma)[-2]
        first, second, third = step * phi(1, z), step * phi(2, z), step * phi(3, z)
        newest, middle, oldest = np.eye(3)
        d10, d11 = (newest - middle) / r0, (middle - oldest) / r1
        d1, d2 = d10 + r0 / (r0 + r1) * (d10 - d11), 2 * (d10 - d11) / (r0 + r1)
        expected = scale * (first * newest + second * d1 + third * d2)
        got = combined(sde, grid, lambda s, g, noise=noise: dpm_solver(s, g, 3, noise_prediction=noise))
        np.testing.assert_allclose(got, np.append(ratio, expected), rtol=2e-5, atol=1e-7)
        got = combined(sde, grid, lambda s, g, noise=noise: dpm_solver(s, g, 2, noise_prediction=noise))
        expected = scale * first * (newest + d10 / 2)
        np.testing.assert_allclose(got, np.append(ratio, expected[:2]), rtol=2e-5, atol=1e-7)
        got = combined(sde, grid[-2:], lambda s, g, noise=noise: dpm_solver_single(s, g, 2, noise_prediction=noise))
        np.testing.assert_allclose(got, [ratio, scale * first, 0], rtol=2e-5, atol=1e-7)
        got = combined(sde, grid[-2:], lambda s, g, noise=noise: dpm_solver_single(s, g, 3, noise_prediction=noise))
        expected = scale * (first * oldest + 1.5 * second * (newest - oldest))
        np.testing.assert_allclose(got, np.append(ratio, expected), rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_the_exponential_forms_keep_the_law_when_the_value_is_known(sde, noise):
    """With data at one point D is constant and eps in a step is known from x: for every tau the variance added and the
    contraction balance. Here: D = mean exactly and std 0, so data prediction of any order and eta is exact."""
    grid = log_snr_grid(sde, 7)
    if noise:  # eps is constant along the flow's exact paths of a point: order 1 without noise is exact
        table = dpm_solver(sde, grid, 1, noise_prediction=True)
        got, want = gaussian_law(sde, table, MEAN, 0.0), textbook(sde, sde.t_min)
        np.testing.assert_allclose(got, [want[0] * MEAN, np.sqrt(want[1])], rtol=1e-5)
        return
    for order in (1, 2, 3):
        for eta in (0.0, 0.6, 1.0):
            got = gaussian_law(sde, dpm_solver(sde, grid, order, eta), MEAN, 0.0)
            want = textbook(sde, sde.t_min)
            np.testing.assert_allclose(got, [want[0] * MEAN, np.sqrt(want[1])], rtol=1e-5)
