"""UniPC against the algorithm of its paper."""

import math

import numpy as np
import pytest
from family import SDES_IN_TURN, name, run_in_numpy, score_in_numpy, textbook
from solver_family import phi

from scoresde.arrays import on_host
from scoresde.solvers import bh1, bh2, unipc


def unipc_of_the_paper(lam, alpha, sigma, x, model, p, B):
    """UniPC-p as its algorithm 1: R_p a = phi/B(h) solved at each step, with a = 1/2 for a single difference.

    Every B in the data is taken with hh = -h. The last step is not corrected.
    """
    values = [model(x, 0)]
    for i in range(1, len(lam)):
        h, order = lam[i] - lam[i - 1], min(p, i)
        r = np.array([(lam[i - 1 - m] - lam[i - 1]) / h for m in range(1, order)])
        differences = [(values[-1 - m] - values[-1]) / r[m - 1] for m in range(1, order)]

        def combination(r, differences, h=h):
            if len(r) == 1:
                return differences[0] / 2
            k = np.arange(1, len(r) + 1)
            b = np.array([math.factorial(j) * -h * phi(j + 1, -h) for j in k]) / B(-h)
            return np.linalg.solve(r[None] ** (k[:, None] - 1), b) @ np.array(differences)

        base = sigma[i] / sigma[i - 1] * x - alpha[i] * np.expm1(-h) * values[-1]
        predicted = base - (alpha[i] * B(-h) * combination(r, differences) if order > 1 else 0)
        if i == len(lam) - 1:
            return predicted
        new = model(predicted, i)
        differences.append(new - values[-1])
        x = base - alpha[i] * B(-h) * combination(np.append(r, 1.0), differences)
        values.append(new)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("sde", SDES_IN_TURN, ids=name)
def test_unipc_is_the_papers_algorithm(sde, order):
    """bh1 and bh2 for all orders; where more than one difference is used, exact integrals solve the same system."""
    lam = np.cumsum([-1.5, 0.6, 0.5, 0.8, 0.7, 0.4, 0.6])
    grid = np.asarray(on_host(sde.time, 2 * lam))
    alpha, variance, _, _ = textbook(sde, grid)
    score, x = score_in_numpy(sde, np.array([-1.0, 0.8]), np.array([0.45, 0.6]), np.array([0.4, 0.6])), np.arange(3.0)

    def model(x, i):
        return (x + variance[i] * score(x, grid[i])) / alpha[i]

    for mine, theirs in ((bh1, lambda hh: hh), (bh2, np.expm1)):
        expected = unipc_of_the_paper(lam, alpha, np.sqrt(variance), x, model, order, theirs)
        np.testing.assert_allclose(run_in_numpy(unipc(sde, grid, order, B=mine), x, score), expected, rtol=1e-4)
    if order > 2:  # three values and more: the same predictor whatever B
        rows = [unipc(sde, grid, order, B=B, corrector=False).commit.A[order:] for B in (None, bh1, bh2)]
        np.testing.assert_array_equal(rows[0], rows[1])
        np.testing.assert_array_equal(rows[0], rows[2])
