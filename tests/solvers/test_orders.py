"""Every solver: the order of convergence that it states, and its error in a given number of steps."""

import jax
import numpy as np
import pytest
from family import SDES, SDES_IN_TURN, VP, name, run_in_numpy, score_in_numpy, textbook
from scipy.integrate import solve_ivp
from solver_family import ORDERS, SOLVERS, error_of_the_law

from scoresde import karras_grid, log_snr_grid


@pytest.mark.parametrize("solver", ORDERS)
@pytest.mark.parametrize("sde", SDES_IN_TURN, ids=name)
def test_order_of_convergence_on_a_gaussian(sde, solver):
    """The law of the result is exact (no samples, no network, float64): its error falls as n^-order or faster, since
    on a Gaussian some methods gain an order (DEIS-3 and DPM-Solver-3, and Euler-Maruyama on VE)."""
    make, order = ORDERS[solver]
    steps = {1: (64, 512), 2: (64, 256), 3: (128, 384), 4: (192, 384), 5: (96, 192)}[order]
    errors = [error_of_the_law(sde, make(sde, log_snr_grid(sde, n))) for n in steps]
    slope = np.log(errors[0] / errors[1]) / np.log(steps[1] / steps[0])
    assert errors[1] < 0.02 and slope > order - 0.2, (slope, errors)


def evaluations(solver, n):
    """How many evaluations n steps take, as documented."""
    if solver == "restart":
        return 2 * n + 3 * 2 * (n // 2)
    two = ("heun", "ralston", "midpoint", "dpm_solver_single_2", "seeds_2", "ancestral_split")
    return n * (3 if solver.startswith("dpm_solver_single_3") else 2 if solver.startswith(two) else 1)


WITHIN = {1: 0.1, 2: 0.01, 3: 3e-3, 4: 1.5e-3, 5: 2e-5}  # of mean and std at 64 steps, by order


@pytest.mark.parametrize("solver", ORDERS)
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_solver_matrix(sde, solver):
    """Every solver and SDE, a Gaussian and a shifted one, 5, 6, 17 and 64 steps: evaluations as documented, a finite
    law, and mean and std at t_min within the bound of the order at 64 steps, a third of the error at 17 or less."""
    make, order = ORDERS[solver]
    errors = []
    for n in (5, 6, 17, 64):
        table = make(sde, log_snr_grid(sde, n))
        assert table.num_evals == evaluations(solver, n)
        errors.append([error_of_the_law(sde, table, *law) for law in ((0.0, 0.5), (1.5, 0.7))])
    assert np.all(np.isfinite(errors))
    assert max(errors[3]) < WITHIN[order] and np.all(np.array(errors[3]) < 0.35 * np.array(errors[2])), errors


NARROW = VP(t_min=float(VP().time(5.0)))  # down to sigma/alpha = 0.08, so that orders show above rounding


@pytest.fixture(scope="module")
def mixture_flow():
    """A one-dimensional mixture: score, starts at t_max and their exact images at t_min, by SciPy in u = log rho."""
    score = score_in_numpy(NARROW, np.array([-1.0, 0.8]), np.array([0.45, 0.6]), np.array([0.4, 0.6]))

    def velocity(u, y):
        alpha = 1 / np.hypot(1, np.exp(u))
        return -np.exp(2 * u) * alpha * score(alpha * y, NARROW.time(-2 * u))

    with jax.enable_x64(True):
        alpha, variance, _, _ = textbook(NARROW, np.array([NARROW.t_max, NARROW.t_min]))
        start = np.linspace(-1.8, 1.8, 7) * np.sqrt(variance[0])
        u = 0.5 * np.log(variance) - np.log(alpha)
        exact = solve_ivp(velocity, u, start / alpha[0], method="DOP853", rtol=1e-12, atol=1e-13).y[:, -1] * alpha[1]
    return score, start, exact


def is_deterministic(make):
    return not np.any(make(VP(), log_snr_grid(VP(), 6)).commit.s)


@pytest.mark.parametrize("grid", [log_snr_grid, karras_grid], ids=name)
@pytest.mark.parametrize("solver", [k for k, (make, _) in ORDERS.items() if is_deterministic(make)])
def test_deterministic_solvers_have_the_order_they_state(mixture_flow, solver, grid):
    """Fitted on a mixture, on which no method gains an order, in float64: within 0.2 on both sides."""
    (make, order), (score, start, exact) = ORDERS[solver], mixture_flow
    steps = (80, 160) if order == 5 else (160, 320)
    errors = [np.linalg.norm(run_in_numpy(make(NARROW, grid(NARROW, n)), start, score) - exact) for n in steps]
    assert abs(np.log2(errors[0] / errors[1]) - order) < 0.2, errors


@pytest.mark.parametrize("solver", [k for k, (make, _) in ORDERS.items() if not is_deterministic(make)])
def test_stochastic_solvers_have_their_weak_order_on_a_karras_grid_too(solver):
    (make, order), sde = ORDERS[solver], VP()
    errors = [error_of_the_law(sde, make(sde, karras_grid(sde, n))) for n in (128, 256)]
    assert np.log2(errors[0] / errors[1]) > order - 0.25, errors


@pytest.mark.parametrize("solver", ["ddim", "ancestral", "euler_maruyama", "reverse_diffusion"])
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_grids_may_start_and_end_inside(sde, solver):
    """From the exact marginal at an inner time the law at another inner time is right to first order."""
    start, end = (sde.t_min + place * (sde.t_max - sde.t_min) for place in (0.8, 0.3))
    errors = []
    for n in (50, 200):
        table = SOLVERS[solver](sde, np.linspace(start, end, n + 1))
        assert table.times[0] == start and table.times[-1] == end
        np.testing.assert_allclose(table.start_std, np.sqrt(textbook(sde, start)[1]), rtol=1e-9)
        errors.append(error_of_the_law(sde, table))
    assert errors[1] < 0.02 and errors[0] / errors[1] > 3.5
