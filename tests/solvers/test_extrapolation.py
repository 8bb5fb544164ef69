"""DEIS, LMS and iPNDM: the polynomials that they integrate exactly."""

import numpy as np
import pytest
from family import VE
from scipy.integrate import quad

from scoresde.arrays import on_host
from scoresde.solvers import deis, ipndm, lms


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_adams_methods_integrate_their_polynomials_exactly(order):
    """A noise that is a polynomial of degree order - 1 in rho (lms), log rho (deis), or the step's number with equal
    steps in rho (ipndm); from step ``order`` on, when all values are there."""
    sde = VE()
    for make, coordinate in ((lms, lambda rho: rho), (deis, np.log), (ipndm, lambda rho: rho)):
        rho = np.linspace(4.0, 1.0, 7) if make is ipndm else np.geomspace(4.0, 1.0, 7)
        table = make(sde, np.asarray(on_host(sde.time, -2 * np.log(rho))), order)
        for i in range(order - 1, 6):
            for degree in range(order):
                past = np.array([coordinate(rho[i - j]) ** degree for j in range(order)])
                exact = quad(lambda r, p=degree, f=coordinate: f(r) ** p, rho[i], rho[i + 1])[0]
                np.testing.assert_allclose(table.commit.A[i + 1] @ past, exact, rtol=1e-8, atol=1e-9)
