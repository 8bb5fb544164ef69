"""SA-Solver: the others at its ends, and a naive loop with SciPy's integrals."""

import jax
import numpy as np
import pytest
from family import SDES_IN_TURN, VP, name, run_in_numpy, score_in_numpy, textbook
from scipy.integrate import quad

from scoresde import karras_grid
from scoresde.solvers import ancestral, dpm_solver, sa_solver, unipc


@pytest.mark.parametrize("sde", SDES_IN_TURN, ids=name)
def test_sa_solver_at_its_ends_is_the_others(sde):
    """tau = 0 is UniP and UniPC; tau = 1 the Gaussian posterior or, of order 3 and after its start, DPM-Solver++."""
    grid = karras_grid(sde, 7)
    rows = [sa_solver(sde, grid, corrector=0).commit.A, dpm_solver(sde, grid, 3, eta=1.0).commit.A]
    np.testing.assert_allclose(rows[0][3:], rows[1][3:], rtol=1e-9)
    for mine, theirs in (
        (sa_solver(sde, grid, 3, tau=0.0, corrector=0), unipc(sde, grid, 3, corrector=False)),
        (sa_solver(sde, grid, 2, tau=0.0, corrector=2), unipc(sde, grid, 2)),
        (sa_solver(sde, grid, 1, tau=1.0, corrector=0), ancestral(sde, grid)),
    ):
        for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)


def test_sa_solver_is_the_naive_loop():
    """Predictor with two values and corrector with one before the new one, both with the same noise, tau by time.

    Equations 14 and 17 of the paper, the integrals by SciPy's adaptive quadrature.
    """
    sde, tau = VP(), lambda t: 0.5 + t
    grid = karras_grid(sde, 6)
    alpha, variance, _, _ = textbook(sde, grid)
    sigma, lam = np.sqrt(variance), 0.5 * np.log(alpha**2 / variance)
    score = score_in_numpy(sde, np.array([-1.0, 0.8]), np.array([0.45, 0.6]), np.array([0.4, 0.6]))
    table = sa_solver(sde, grid, 2, tau=tau, corrector=1)
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=5), rng.normal(size=(7, 5))
    state, values = x, [(x + variance[0] * score(x, grid[0])) / alpha[0]]
    for i in range(6):
        k, h = 1 + tau(grid[i]) ** 2, lam[i + 1] - lam[i]

        def integral(places, j, i=i, k=k):
            def integrand(u):
                line = np.prod([(u - m) / (places[j] - m) for m in np.delete(places, j)])
                return k * np.exp(k * (u - lam[i + 1])) * line

            return alpha[i + 1] * quad(integrand, lam[i], lam[i + 1], epsrel=1e-11)[0]

        known = lam[[i, i - 1]] if i else lam[[0]]
        moved = sigma[i + 1] / sigma[i] * np.exp(-(k - 1) * h) * state
        moved += sigma[i + 1] * np.sqrt(-np.expm1(-2 * (k - 1) * h)) * noise[i + 1]
        predicted = moved + sum(integral(known, j) * values[-1 - j] for j in range(len(known)))
        if i == 5:
            break
        values.append((predicted + variance[i + 1] * score(predicted, grid[i + 1])) / alpha[i + 1])
        state = moved + sum(integral(lam[[i + 1, i]], j) * values[-1 - j] for j in range(2))
    np.testing.assert_allclose(run_in_numpy(table, x, score, noise), predicted, rtol=1e-5)
