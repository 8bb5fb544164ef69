"""SEEDS against a naive loop."""

import jax
import numpy as np
import pytest
from family import run_in_numpy, score_in_numpy, textbook

from scoresde import SubVP
from scoresde.arrays import on_host
from scoresde.solvers import ancestral, seeds


@pytest.mark.parametrize("tau", [0.5, 1.0])
@pytest.mark.parametrize("noise_prediction", [False, True])
def test_seeds_is_the_naive_loop(noise_prediction, tau):
    """Algorithm 2 with one noise per half step, for any tau, from the closed forms of both predictions."""
    sde = SubVP()
    grid = np.asarray(on_host(sde.time, np.linspace(-2.0, 6.0, 5)))
    score = score_in_numpy(sde, np.array([-1.0, 0.8]), np.array([0.45, 0.6]), np.array([0.4, 0.6]))
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=5), rng.normal(size=(9, 5))
    table = seeds(sde, grid, tau=tau, noise_prediction=noise_prediction)
    got = run_in_numpy(table, x, score, noise)

    def parts(t, s):  # (factor of x, of the value, std of the noise) between two times
        (a, b), (v, w) = textbook(sde, np.array([t, s]))[:2]
        h = np.log(b / a) + 0.5 * np.log(v / w)
        if noise_prediction:
            return b / a, -(1 + tau**2) * np.sqrt(w) * np.expm1(h), tau * np.sqrt(w * np.expm1(2 * h))
        k = 1 + tau**2
        return np.sqrt(w / v) * np.exp(-(tau**2) * h), b * -np.expm1(-k * h), np.sqrt(w * -np.expm1(-2 * tau**2 * h))

    def value(x, t):
        a, v, _, _ = textbook(sde, t)
        return -np.sqrt(v) * score(x, t) if noise_prediction else (x + v * score(x, t)) / a

    for i, (t, s) in enumerate(zip(grid[:-1], grid[1:], strict=True)):
        r = on_host(sde.time, (np.asarray(on_host(sde.log_snr, t)) + np.asarray(on_host(sde.log_snr, s))) / 2)
        a_1, w_1, s_1 = parts(t, r)
        a, w, _ = parts(t, s)
        inner = a_1 * x + w_1 * value(x, t) + s_1 * noise[2 * i + 1]
        carried, _, s_2 = parts(r, s)
        x = a * x + w * value(inner, r) + carried * s_1 * noise[2 * i + 1] + s_2 * noise[2 * i + 2]
    np.testing.assert_allclose(got, x, rtol=1e-5)
    if not noise_prediction and tau == 1:
        one = seeds(sde, grid, 1, noise_prediction=False)
        for mine, theirs in zip(jax.tree.leaves(one), jax.tree.leaves(ancestral(sde, grid)), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-9)
