"""Heun's method of EDM, with churn, against the naive loop."""

import numpy as np
import pytest
from family import SDES, name, run_in_numpy, score_in_numpy, textbook

from scoresde import karras_grid
from scoresde.arrays import on_host
from scoresde.solvers import heun


@pytest.mark.parametrize("alpha", [1.0, 2 / 3, 0.5])
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_heun_is_algorithm_2_of_edm(sde, alpha):
    """The naive loop in y = x/alpha and rho = sigma/alpha, with churn in a range and S_noise; appendix B for alpha."""
    n, churn, s_min, s_max, s_noise = 12, 4.0, 0.05, 3.0, 1.3
    grid = karras_grid(sde, n)
    table = heun(sde, grid, churn, s_min=s_min, s_max=s_max, s_noise=s_noise, alpha=alpha)
    score = score_in_numpy(sde, np.array([-1.0, 0.8]), np.array([0.45, 0.6]), np.array([0.4, 0.6]))
    rng = np.random.default_rng(0)
    noise, x = rng.normal(size=(2 * n + 1, 5)), rng.normal(size=5) * table.start_std

    def eps(y, rho):
        t = np.clip(on_host(sde.time, -2 * np.log(rho)), sde.t_min, sde.t_max)
        a, v, _, _ = textbook(sde, t)
        return -np.sqrt(v) * score(a * y, t)

    a, v, _, _ = textbook(sde, grid)
    rho, y, added = np.sqrt(v) / a, x / a[0], 0
    for i in range(n):
        gamma = min(churn / n, np.sqrt(2) - 1) if s_min <= rho[i] <= s_max else 0
        added += gamma > 0
        hat = min(rho[i] * (1 + gamma), rho[0])
        y = y + s_noise * np.sqrt(hat**2 - rho[i] ** 2) * noise[2 * i]
        slope, step = eps(y, hat), rho[i + 1] - hat
        second = eps(y + alpha * step * slope, hat + alpha * step)
        y = y + step * ((1 - 1 / (2 * alpha)) * slope + second / (2 * alpha))
    assert 0 < added < n
    np.testing.assert_allclose(run_in_numpy(table, x, score, noise), a[-1] * y, rtol=1e-4)
    plain = heun(sde, grid, churn, s_min=2 * rho[0], alpha=alpha)
    assert not np.any(plain.commit.s)  # a range that no node is in
