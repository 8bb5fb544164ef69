"""Solver tables and the one loop: exact laws on Gaussians, measured orders, naive loops, counted evaluations."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family import (
    SDES,
    SDES_IN_TURN,
    SOLVERS,
    VE,
    VP,
    assert_moments,
    float64,
    gaussian,
    gaussian_law,
    mixture_moments,
    name,
    run_in_numpy,
    score_in_numpy,
    score_on,
    shifted,
    textbook,
    times_of,
    two_modes,
)
from scipy.integrate import quad, solve_ivp

from scoresde import Cosine, RectifiedFlow, SubVP, karras_grid, log_snr_grid, uniform_grid
from scoresde.arrays import on_host
from scoresde.grids import shifted_grid
from scoresde.solvers import (
    Table,
    adams,
    ancestral,
    ancestral_split,
    bh1,
    bh2,
    ddim,
    deis,
    dpm_solver,
    dpm_solver_single,
    euler_maruyama,
    first_nonfinite,
    heun,
    integrate,
    ipndm,
    join,
    lms,
    padded,
    predictor_corrector,
    restart,
    reverse_diffusion,
    sa_solver,
    sample,
    seeds,
    unipc,
    with_denoising,
)
from scoresde.solvers.table import Nodes, single_step

KEY = jax.random.key(11)
MEAN, STD = 0.7, 0.4


def restarted(sde, grid):
    """Two intervals, of 2 repeats and one, with half the steps of the grid each; from five inner nodes on."""
    if len(grid) < 6:
        return heun(sde, grid)
    high, n = np.exp(-0.5 * np.asarray(on_host(sde.log_snr, grid[0]))), len(grid) - 1
    return restart(sde, grid, [(high / 3000, high / 50, n // 2, 2), (high / 30, high / 2, n // 2, 1)])


ORDERS = {
    "euler_maruyama": (euler_maruyama, 1),
    "reverse_diffusion": (reverse_diffusion, 1),
    "ancestral": (ancestral, 1),
    "ddim": (ddim, 1),
    "ddim_half": (SOLVERS["ddim_half"], 1),
    "heun": (heun, 2),
    "ralston": (lambda sde, grid: heun(sde, grid, alpha=2 / 3), 2),
    "midpoint": (lambda sde, grid: heun(sde, grid, alpha=0.5), 2),
    "heun_churn": (lambda sde, grid: heun(sde, grid, churn=3.0), 2),
    "dpm_solver_1": (lambda sde, grid: dpm_solver(sde, grid, 1), 1),
    "dpm_solver_2": (dpm_solver, 2),
    "dpm_solver_3": (lambda sde, grid: dpm_solver(sde, grid, 3), 3),
    "dpm_solver_2_noise": (lambda sde, grid: dpm_solver(sde, grid, noise_prediction=True), 2),
    "dpm_solver_2_sde": (lambda sde, grid: dpm_solver(sde, grid, eta=1.0), 2),
    "dpm_solver_2_noise_sde": (lambda sde, grid: dpm_solver(sde, grid, eta=1.0, noise_prediction=True), 2),
    "dpm_solver_single_2": (dpm_solver_single, 2),
    "dpm_solver_single_3": (lambda sde, grid: dpm_solver_single(sde, grid, 3), 3),
    "dpm_solver_single_2_noise": (lambda sde, grid: dpm_solver_single(sde, grid, noise_prediction=True), 2),
    "dpm_solver_single_3_noise": (lambda sde, grid: dpm_solver_single(sde, grid, 3, noise_prediction=True), 3),
    "deis_2": (lambda sde, grid: deis(sde, grid, 2), 2),
    "deis_3": (deis, 3),
    "deis_4": (lambda sde, grid: deis(sde, grid, 4), 4),
    "lms_2": (lambda sde, grid: lms(sde, grid, 2), 2),
    "lms_3": (lambda sde, grid: lms(sde, grid, 3), 3),
    "lms_4": (lms, 4),
    "ipndm_2": (lambda sde, grid: ipndm(sde, grid, 2), 2),
    "ipndm_3": (lambda sde, grid: ipndm(sde, grid, 3), 2),
    "ipndm_4": (ipndm, 2),  # whatever its name says
    "unip_2": (lambda sde, grid: unipc(sde, grid, 2, corrector=False), 2),
    "unip_3": (lambda sde, grid: unipc(sde, grid, corrector=False), 3),
    "unipc_1_bh1": (lambda sde, grid: unipc(sde, grid, 1, B=bh1), 2),
    "unipc_1_bh2": (lambda sde, grid: unipc(sde, grid, 1, B=bh2), 2),
    "unipc_2_bh1": (lambda sde, grid: unipc(sde, grid, 2, B=bh1), 3),
    "unipc_2_bh2": (lambda sde, grid: unipc(sde, grid, 2, B=bh2), 3),
    "adams_2": (lambda sde, grid: adams(sde, grid, 2), 3),
    "adams_3": (lambda sde, grid: adams(sde, grid, 3), 4),
    "unipc_4": (lambda sde, grid: unipc(sde, grid, 4), 5),
    "sa_solver_flow": (lambda sde, grid: sa_solver(sde, grid, 1, tau=0.0, corrector=2), 2),
    "sa_solver": (sa_solver, 2),
    "sa_solver_part": (lambda sde, grid: sa_solver(sde, grid, 2, tau=lambda t: t > sde.t_max / 3, corrector=0), 1),
    "seeds_1": (lambda sde, grid: seeds(sde, grid, 1), 1),
    "seeds_2": (seeds, 2),
    "seeds_2_data": (lambda sde, grid: seeds(sde, grid, noise_prediction=False), 2),
    "seeds_2_flow": (lambda sde, grid: seeds(sde, grid, tau=0.0), 2),
    "ancestral_split": (ancestral_split, 2),
    "ancestral_split_noise": (
        lambda sde, grid: ancestral_split(sde, grid, lambda s, g: dpm_solver_single(s, g, noise_prediction=True)),
        2,
    ),
    "ancestral_split_flow": (lambda sde, grid: ancestral_split(sde, grid, eta=0.0), 2),
    "restart": (restarted, 2),
    "unipc_1": (lambda sde, grid: unipc(sde, grid, 1), 2),
    "unipc_2": (lambda sde, grid: unipc(sde, grid, 2), 3),
    "unipc_3": (unipc, 4),
}
EVERY = SOLVERS | {k: v for k, (v, _) in ORDERS.items()}


def error_of_the_law(sde, table, mean=MEAN, std=STD):
    """How far the mean and std of the result are from those of x at t_min, for data N(mean, std^2)."""
    alpha, variance, _, _ = textbook(sde, table.times[-1])
    got = gaussian_law(sde, table, mean, std)
    return np.hypot(got[0] - alpha * mean, got[1] - np.sqrt(alpha**2 * std**2 + variance))


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


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_the_loop_has_the_law_of_the_table(sde, solver):
    """``integrate`` against the exact law of its own table, by samples, at five standard errors."""
    table = SOLVERS[solver](sde, log_snr_grid(sde, 40))
    mixture = gaussian()
    x = sample(KEY, score_on(sde, table, mixture), table, (8000, 2))
    for i, std in enumerate(np.asarray(mixture.stds)[0]):
        mean, spread = gaussian_law(sde, table, 0.0, std, start=(0.0, float(table.start_std)))
        assert_moments(x[:, i : i + 1], mean, spread)


@pytest.mark.parametrize("make", [pytest.param(shifted, marks=pytest.mark.slow), two_modes])
@pytest.mark.parametrize("sde", SDES_IN_TURN, ids=name)
def test_samples_have_the_moments_of_the_data(sde, make):
    """Every solver of the family with the exact score; 200 steps of order one leave a bias below 2 %, and the prior's
    mean of 0 instead of alpha m an offset that the flow keeps."""
    mixture = make()
    mean, std = mixture_moments(mixture.marginal(sde, sde.t_min))
    offset = float(sde.alpha(sde.t_max) / sde.sigma(sde.t_max)) * np.abs(np.asarray(mixture.means)).max()
    for solver in SOLVERS:
        table = SOLVERS[solver](sde, log_snr_grid(sde, 200))
        x = sample(KEY, score_on(sde, table, mixture), table, (3000, 2))
        assert_moments(x, mean, std, bias=0.02 + offset)
        if make is two_modes:
            left = np.mean(np.asarray(x)[:, 0] < -0.2)
            assert abs(left - 0.35) < 5 * np.sqrt(0.35 * 0.65 / 3000) + 0.01 + offset / 2


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


def phi(k, h):
    """phi_k(h) = (phi_(k-1)(h) - 1/(k-1)!)/h with phi_0 = exp, as the papers write it."""
    return np.exp(h) if k == 0 else (phi(k - 1, h) - 1 / math.factorial(k - 1)) / h


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


def test_reverse_diffusion_on_ve_is_songs():
    """x_s = x_t + (sigma_t^2 - sigma_s^2) score + sqrt(sigma_t^2 - sigma_s^2) z: Song et al. (2021), equation 47."""
    sde = VE()
    grid = karras_grid(sde, 9)
    table, variance = reverse_diffusion(sde, grid), textbook(sde, grid)[1]
    assert not np.any(table.look.c) and np.all(table.look.d == 1)
    np.testing.assert_allclose(table.commit.a[1:], 1, rtol=1e-12)
    np.testing.assert_allclose(table.commit.A[1:, 0], -np.diff(variance), rtol=1e-9)
    np.testing.assert_allclose(table.commit.s[1:], np.sqrt(-np.diff(variance)), rtol=1e-9)


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


def test_joined_tables_are_run_one_after_another():
    """Tables of different histories, with fresh noise at the beginning of the second, as two runs."""
    sde, (first, second) = VP(), np.split(log_snr_grid(VP(), 9), [5])
    parts = dpm_solver(sde, first, 2, eta=0.5), heun(sde, np.append(first[-1], second), churn=3.0)
    table = join(parts)
    rng = np.random.default_rng(0)
    score = score_in_numpy(sde, np.array([-1.0, 0.8]), np.array([0.45, 0.6]), np.array([0.4, 0.6]))
    x, noise = rng.normal(size=5), rng.normal(size=(table.num_evals + 1, 5))
    cut = parts[0].num_evals
    noise[cut] = 0  # where two independent draws meet: their sum is one draw
    twice = run_in_numpy(parts[1], run_in_numpy(parts[0], x, score, noise[: cut + 1]), score, noise[cut:])
    np.testing.assert_allclose(run_in_numpy(table, x, score, noise), twice, rtol=1e-12)
    expected = np.hypot(parts[1].commit.a[0] * parts[0].commit.s[-1], parts[1].commit.s[0])
    np.testing.assert_allclose(table.commit.s[cut], expected)


def noise_of(key, row, batch, event):
    """The contract: example i draws at row k from fold_in(fold_in(key, i), k)."""
    keys = [jax.random.fold_in(jax.random.fold_in(key, i), row) for i in range(batch)]
    return np.stack([np.asarray(jax.random.normal(k, event, jnp.float64)) for k in keys])


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


@pytest.mark.parametrize("norm_rule", [False, True])
@pytest.mark.parametrize("sde", [VP(), SubVP(), VE()], ids=name)
def test_predictor_corrector_is_the_naive_loop(x64, sde, norm_rule):
    """Langevin steps at t, then the predictor's step from t to s; in 64 dimensions, where the norm rule is sound."""
    grid, snr, batch = karras_grid(sde, 4), 0.16, 3

    def score(x, t):
        return (0.1 * jnp.sin(x) - x) / (1 + sde.variance(t))

    x = start = np.asarray(sde.prior_sample(KEY, (batch, 64)), np.float64)
    row = 0
    for t, s in zip(grid[:-1], grid[1:], strict=True):
        (alpha_t, alpha_s), (var_t, var_s) = (v for v in textbook(sde, np.array([t, s]))[:2])
        for _ in range(2):
            row += 1
            z, gradient = noise_of(KEY, row, batch, (64,)), np.asarray(score(float64(x), float64(t)))
            ratio = np.sqrt(var_t)
            if norm_rule:
                ratio = np.linalg.norm(z, axis=1, keepdims=True) / np.linalg.norm(gradient, axis=1, keepdims=True)
            step = 2 * (snr * ratio) ** 2
            x = x + step * gradient + np.sqrt(2 * step) * z
        row += 1
        r = alpha_t / alpha_s
        v = var_t - r**2 * var_s
        x = (2 - r) * x + v * np.asarray(score(float64(x), float64(t))) + np.sqrt(v) * noise_of(KEY, row, batch, (64,))
    table = predictor_corrector(sde, grid, snr=snr, corrector_steps=2, norm_rule=norm_rule)
    got = integrate(KEY, score, table, float64(start))
    np.testing.assert_allclose(got, x, rtol=1e-6, atol=1e-8)


def test_the_norm_rule_survives_a_vanishing_score():
    sde = VE()
    table = predictor_corrector(sde, karras_grid(sde, 2), norm_rule=True)
    x = integrate(KEY, lambda x, t: jnp.zeros_like(x), table, jnp.ones((2, 3)))
    assert np.all(np.isfinite(x))


@pytest.mark.parametrize("predictor", [reverse_diffusion, ancestral, ddim, euler_maruyama], ids=name)
def test_without_corrector_or_in_the_limit_it_is_the_predictor(predictor):
    sde, grid = SubVP(), log_snr_grid(SubVP(), 20)
    alone = predictor(sde, grid)
    none = predictor_corrector(sde, grid, predictor, corrector_steps=0)
    for mine, theirs in zip(jax.tree.leaves(none), jax.tree.leaves(alone), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    tiny = predictor_corrector(sde, grid, predictor, snr=1e-6)
    np.testing.assert_allclose(gaussian_law(sde, tiny, MEAN, STD), gaussian_law(sde, alone, MEAN, STD), rtol=1e-8)


def stay(sde, grid):
    """A predictor that does nothing: with it only the Langevin steps at the first time remain."""
    return single_step(Nodes.of(sde, grid), a=1.0, A=0.0, s=0.0, c=0.0, d=0.0)


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize("place", [0.05, 0.5, 1.0])
def test_langevin_leaves_the_marginal_invariant(sde, place):
    """On a Gaussian of variance v the chain's stationary variance is v/(1 - eps/2v), eps = 2 (snr sigma)^2: the std
    drifts by snr^2 sigma^2/2v at most, which vanishes with snr."""
    t = sde.t_min + place * (sde.t_max - sde.t_min)
    alpha, variance, _, _ = textbook(sde, t)
    v = alpha**2 * STD**2 + variance
    for snr, steps in ((0.2, 400), (0.05, 1500)):
        table = predictor_corrector(sde, [t, sde.t_min], stay, snr=snr, corrector_steps=steps)
        assert np.all(table.look.t == t)
        mean, std = gaussian_law(sde, table, MEAN, STD)
        eps = 2 * snr**2 * variance
        left = (1 - eps / v) ** (2 * steps)  # of the start, not yet forgotten
        stationary = v / (1 - eps / (2 * v))
        np.testing.assert_allclose(std**2, stationary + left * (v - stationary), rtol=1e-9)
        np.testing.assert_allclose(mean, alpha * MEAN, rtol=1e-9, atol=1e-12)
        assert 0 <= std / np.sqrt(v) - 1 < 0.51 * snr**2 * variance / v + snr**4


def test_langevin_keeps_the_modes_of_a_mixture():
    """By samples: 100 steps from p_t leave mean, std and the share of each mode (8,000 chains, and one)."""
    sde, mixture, t = SubVP(), two_modes(), 0.3
    start = mixture.marginal(sde, t)
    table = predictor_corrector(sde, [t, sde.t_min], stay, snr=0.1, corrector_steps=100)
    x = integrate(KEY, mixture.score(sde), table, start.sample(KEY, 8000))
    mean, std = mixture_moments(start)
    assert_moments(x, mean, std, bias=0.01)
    one = integrate(KEY, mixture.score(sde), table, start.sample(KEY, 1))
    np.testing.assert_allclose(one, x[:1], rtol=1e-3, atol=1e-4)


CALLS = []


def counted(x, t):
    jax.debug.callback(lambda t: CALLS.append(float(t)), t)
    return -x / (1 + t)


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("solver", EVERY)
def test_num_evals_counts_the_calls_and_none_leaves_the_interval(solver, n):
    for sde in (Cosine(), VE()):
        CALLS.clear()
        table = EVERY[solver](sde, uniform_grid(sde, n))
        path = integrate(KEY, counted, padded(table, history=5), jnp.ones((2, 1)), trajectory=True)
        jax.effects_barrier()
        assert len(CALLS) == table.num_evals
        assert min(CALLS) >= np.float32(sde.t_min) and max(CALLS) <= np.float32(sde.t_max)
        np.testing.assert_allclose(sorted(CALLS), np.sort(table.look.t), rtol=1e-6)
        assert path.shape == (table.num_evals + 1, 2, 1) and table.times.shape == (table.num_evals + 1,)
        assert table.times[0] == sde.t_max and table.times[-1] == sde.t_min  # exactly, for odd and even n


@pytest.mark.parametrize("solver", EVERY)
def test_one_step_of_every_solver_is_a_table_that_reaches_t_min(solver):
    for sde in SDES:
        table = EVERY[solver](sde, [sde.t_max, sde.t_min])
        assert table.times[-1] == sde.t_min and np.all(
            np.isfinite(np.concatenate([*map(np.ravel, jax.tree.leaves(table))]))
        )


@pytest.mark.parametrize(
    "solver", ["predictor_corrector", "ancestral", "ddim_half", "heun_churn", "dpm_solver_2", "unipc_3"]
)
def test_example_i_depends_on_the_key_and_i_alone(solver):
    sde = VP()
    table = padded(EVERY[solver](sde, log_snr_grid(sde, 6)), history=5)
    score = score_on(sde, table, two_modes())
    x = sample(KEY, score, table, (9, 2))
    np.testing.assert_array_equal(sample(KEY, score, table, (9, 2)), x)
    np.testing.assert_allclose(sample(KEY, score, table, (4, 2)), x[:4], rtol=1e-4, atol=1e-5)
    assert np.all(np.any(np.abs(sample(jax.random.key(12), score, table, (9, 2)) - x) > 1e-5, axis=1))
    start = jnp.asarray(np.random.default_rng(0).normal(size=(9, 2)), jnp.float32)
    together = integrate(KEY, score, table, start)
    neighbours = integrate(KEY, score, table, start.at[1:].set(0.0))
    np.testing.assert_allclose(neighbours[0], together[0], rtol=1e-4, atol=1e-5)


def test_examples_rows_and_prior_draw_different_noise():
    """1,000 examples and 3 rows of unit noise, and the prior, are uncorrelated."""
    sde = VE()
    nodes = Nodes.of(sde, uniform_grid(sde, 3))
    table = single_step(nodes, a=1.0, A=0.0, s=1.0, c=0.0, d=0.0)
    path = sample(KEY, lambda x, t: x, table, (1000, 4), trajectory=True)
    noise = np.diff(np.asarray(path), axis=0)
    columns = np.concatenate([np.asarray(path[:1]) / 50, noise]).transpose(1, 0, 2).reshape(1000, -1)
    correlation = np.corrcoef(columns.T) - np.eye(16)
    assert np.max(np.abs(correlation)) < 5 / np.sqrt(1000)
    assert_moments(columns, np.zeros(16), np.ones(16))


SWEEP = (  # solver, evaluations a step
    (euler_maruyama, 1),
    (ancestral, 1),
    (lambda sde, grid: ddim(sde, grid, 0.3), 1),
    (SOLVERS["predictor_corrector"], 2),
    (lambda sde, grid: heun(sde, grid, churn=1.0), 2),
    (lambda sde, grid: dpm_solver_single(sde, grid, 3), 3),
    (lambda sde, grid: dpm_solver(sde, grid, 3), 1),
    (deis, 1),
    (unipc, 1),
    (sa_solver, 1),
)


def test_a_sweep_of_solvers_sdes_and_grids_compiles_once():
    """10 solvers on every SDE and 4 grids, of 5 to 12 evaluations, brought to one table shape."""
    traces = []

    def score(x, t):
        traces.append(1)
        return -x

    x = jnp.ones((2, 3))
    for sde in SDES:
        for make, evals in SWEEP:
            for grid in (uniform_grid, log_snr_grid, karras_grid, shifted_grid):
                table = make(sde, grid(sde, 12 // evals if grid is not karras_grid else 5 // evals))
                integrate(KEY, score, padded(table, num_evals=12, history=4), x)
    assert len(traces) == 1
    integrate(KEY, score, padded(table, num_evals=13, history=4), x)
    assert len(traces) == 2


@pytest.mark.parametrize("solver", EVERY)
def test_padding_changes_nothing_but_the_shape(solver):
    sde = SubVP()
    table = EVERY[solver](sde, log_snr_grid(sde, 5))
    rows, width = table.commit.A.shape
    longer = padded(table, num_evals=table.num_evals + 3, history=7)
    assert longer.num_evals == table.num_evals + 3 and longer.commit.A.shape == (rows + 3, 7)
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=5), rng.normal(size=(rows + 3, 5))
    runs = [run_in_numpy(one, x, lambda x, t: np.sin(x) - x, noise[: one.num_evals + 1]) for one in (longer, table)]
    np.testing.assert_allclose(*runs, rtol=1e-12)
    assert np.all(longer.times[rows - 1 :] == table.times[-1]) and np.all(longer.look.t >= sde.t_min)
    same = padded(table, num_evals=1, history=width)
    for mine, leaf in zip(jax.tree.leaves(same), jax.tree.leaves(table), strict=True):
        np.testing.assert_array_equal(mine, leaf)


@pytest.mark.parametrize("sde", SDES_IN_TURN, ids=name)
@pytest.mark.parametrize("many", ["ten", pytest.param("every", marks=pytest.mark.slow)])
def test_solver_matrix_on_a_mixture(sde, many):
    """Solvers in 5, 6, 17 and 64 evaluations (every solver: steps) of the exact score of two modes, one compilation:
    finite everywhere; at 64 mean, std and the share of each mode, from the exact marginal at t_max."""
    mixture = two_modes()
    mean, std = mixture_moments(mixture.marginal(sde, sde.t_min))
    start = mixture.marginal(sde, sde.t_max).sample(KEY, 2000)
    for make, evals in SWEEP if many == "ten" else [(make, 1) for make in EVERY.values()]:
        for n in (5, 6, 17, 64):
            table = make(sde, log_snr_grid(sde, n // evals))
            table = padded(table, num_evals=64 if many == "ten" else 200, history=4 if many == "ten" else 6)
            x = integrate(KEY, score_on(sde, table, mixture), table, start)
            assert np.all(np.isfinite(x)), n
        left = np.mean(np.asarray(x)[:, 0] < -0.2)
        assert abs(left - 0.35) < 5 * np.sqrt(0.35 * 0.65 / 2000) + 0.02
        assert_moments(x, mean, std, bias=0.08)


def test_trajectory_holds_every_committed_state():
    sde, grid = VP(), log_snr_grid(VP(), 6)
    score = two_modes().score(sde)
    start = sde.prior_sample(KEY, (3, 2))
    path = integrate(KEY, score, ancestral(sde, grid), start, trajectory=True)
    np.testing.assert_array_equal(path[0], start)
    np.testing.assert_array_equal(ancestral(sde, grid).times, grid)
    np.testing.assert_allclose(path[-1], integrate(KEY, score, ancestral(sde, grid), start), rtol=1e-5)
    for k in (1, 4):  # a shorter table stops at the k-th state
        np.testing.assert_allclose(path[k], integrate(KEY, score, ancestral(sde, grid[: k + 1]), start), rtol=1e-4)


@pytest.mark.parametrize("solver", EVERY)
@pytest.mark.parametrize("sde", SDES_IN_TURN, ids=name)
def test_denoising_is_tweedies_formula_at_the_last_time(x64, sde, solver):
    table = padded(EVERY[solver](sde, log_snr_grid(sde, 4)), history=5)
    both = with_denoising(sde, table)
    score, start = score_on(sde, both, two_modes()), float64(sde.prior_sample(KEY, (3, 2)))
    x = np.asarray(integrate(KEY, score, table, start))
    got = integrate(KEY, score, both, start)
    alpha, variance, _, _ = textbook(sde, sde.t_min)
    mixture = two_modes()  # E[x_0 | x] component by component
    m, s2, w = np.asarray(mixture.means), np.asarray(mixture.stds) ** 2, np.asarray(mixture.weights)
    v = alpha**2 * s2 + variance
    logit = np.log(w / v) - np.sum((x[:, None] - alpha * m) ** 2, 2) / (2 * v)
    r = np.exp(logit - logit.max(1, keepdims=True))
    r = (r / r.sum(1, keepdims=True))[..., None]
    posterior = (alpha * s2[:, None] * x[:, None] + variance * m) / v[:, None]
    np.testing.assert_allclose(got, np.sum(r * posterior, 1), rtol=1e-7, atol=1e-9)
    assert both.num_evals == table.num_evals + 1 and both.times[-1] == both.times[-2] == sde.t_min


def test_the_first_state_that_is_not_finite_is_told_with_its_time():
    """x stays about where it is under the score -x of N(0, I), until an element of example 1 is lost in a known row."""
    sde, x = VP(), jnp.array([[0.1, 0.2, 0.0], [5.0, 0.3, 0.1], [0.3, 0.1, 0.5]])
    table = ddim(sde, uniform_grid(sde, 10))

    def path(bad, x=x):
        lost = lambda x, t: (t < 0.25) & (x[:, :1] > 1) & (jnp.arange(3) == 1)[None]  # noqa: E731
        return integrate(KEY, lambda x, t: jnp.where(lost(x, t), bad, -x), table, x, trajectory=True)

    broken = path(np.nan)
    found = first_nonfinite(table, broken)
    np.testing.assert_array_equal(found.time, [np.nan, table.times[9], np.nan])
    np.testing.assert_array_equal(found.asked, [np.nan, table.look.t[8], np.nan])
    assert found.message == (
        "1 of 3 examples (first: 1) are not finite: example 1 at t = 0.1 has 1 nan and 0 inf of 3 elements; "
        f"the score was asked at t = 0.2, max |x| was {np.max(np.abs(broken[8, 1])):.3g} before"
    )
    assert "0 nan and 1 inf of 3 elements" in first_nonfinite(table, path(np.inf)).message
    start = first_nonfinite(table, path(0.0, x.at[2].set(jnp.inf)))
    assert start.message.startswith("1 of 3 examples (first: 2)") and start.message.endswith("; as it was given")
    assert start.time[2] == table.times[0] and np.isnan(start.asked[2])
    fine = first_nonfinite(table, path(0.0))
    assert fine.message == "" and np.all(np.isnan(fine.time))
    for wrong in (x, path(0.0)[:-1]):
        with pytest.raises(ValueError, match=r"^path must have shape \(11, B, \*event\), got \("):
            first_nonfinite(table, wrong)


@pytest.mark.parametrize("sde", SDES_IN_TURN, ids=name)
def test_no_path_blows_up(sde):
    """max |x| along every path stays within six prior or data standard deviations."""
    bound = 6 * max(float(sde.sigma(sde.t_max)), 1.5)
    grids = [log_snr_grid(sde, 60)]
    if not isinstance(sde, Cosine | RectifiedFlow):  # f is 230 at their t_max: a first uniform step is unstable
        grids.append(uniform_grid(sde, 60))
    for solver in SOLVERS:
        for grid in grids:
            table = SOLVERS[solver](sde, grid)
            path = sample(KEY, score_on(sde, table, two_modes()), table, (512, 2), trajectory=True)
            assert float(jnp.max(jnp.abs(path))) < bound, solver


def test_tables_are_float64_numpy_whatever_x64_says():
    grid = log_snr_grid(Cosine(), 3)
    for solver in EVERY.values():
        table = solver(Cosine(), grid)
        with jax.enable_x64(True):
            twin = solver(Cosine(), grid)
        for a, b in zip(jax.tree.leaves(table), jax.tree.leaves(twin), strict=True):
            assert np.asarray(a).dtype == np.float64 and not isinstance(a, jax.Array)
            np.testing.assert_array_equal(a, b)


def test_tables_are_pytrees_to_stack_vmap_differentiate_and_pass_to_jit():
    score = lambda x, t: -x / (1 + t)  # noqa: E731
    x = jnp.ones((2, 3))
    tables = [ancestral(sde, log_snr_grid(sde, 6)) for sde in SDES]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves).astype("f4"), *tables)
    assert isinstance(stacked, Table) and stacked.num_evals == 6
    together = jax.vmap(lambda table: integrate(KEY, score, table, x))(stacked)
    inside = jax.jit(lambda table, x: integrate(KEY, score, table, x))
    drawn = jax.jit(lambda key, table: sample(key, score, table, (2, 3)))
    for got, table in zip(together, tables, strict=True):
        alone = integrate(KEY, score, table, x)
        np.testing.assert_allclose(got, alone, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(inside(table, x), alone, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(drawn(KEY, table), sample(KEY, score, table, (2, 3)), rtol=1e-4, atol=1e-5)
    grads = jax.grad(lambda table: jnp.sum(integrate(KEY, score, table, x) ** 2))(
        jax.tree.map(jnp.asarray, jax.tree.map(np.float32, tables[0]))
    )
    assert np.any(np.asarray(grads.commit.a) != 0)


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


def test_the_prior_of_a_table_is_that_of_its_first_time():
    sde = VE()
    table = stay(sde, [0.5, 0.1])
    assert_moments(sample(KEY, lambda x, t: x, table, (4000, 2)), 0.0, np.sqrt(textbook(sde, 0.5)[1]))


@pytest.mark.parametrize("solver", ["ddim", "ancestral", "euler_maruyama", "reverse_diffusion", "predictor_corrector"])
@pytest.mark.parametrize("sde", SDES_IN_TURN, ids=name)
def test_float32_runs_follow_float64(sde, solver):
    """The same table, without its noise, in both precisions, from the noise end to the data end."""
    table = SOLVERS[solver](sde, log_snr_grid(sde, 30))
    quiet = dataclasses.replace(table, commit=dataclasses.replace(table.commit, s=np.zeros_like(table.commit.s)))
    start = np.asarray(sde.prior_sample(KEY, (4, 2)))
    single = integrate(KEY, score_on(sde, quiet, gaussian()), quiet, start)
    assert single.dtype == jnp.float32
    with jax.enable_x64(True):
        double = integrate(KEY, score_on(sde, quiet, gaussian()), quiet, float64(start))
    np.testing.assert_allclose(single, double, rtol=2e-4, atol=2e-5)


def test_events_of_any_shape():
    sde = VP()
    table = predictor_corrector(sde, log_snr_grid(sde, 3), norm_rule=True)
    for event in ((), (1,), (2, 3, 1)):
        assert sample(KEY, lambda x, t: -x, table, (2, *event)).shape == (2, *event)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s, g: ddim(s, g, eta=-0.1), r"eta must be at least 0, got -0\.1"),
        (lambda s, g: ddim(s, g, eta=np.nan), r"eta must be at least 0, got nan"),
        (lambda s, g: ddim(s, g, eta=3.0), r"eta must be at most 1\.\d+ on this grid, got 3\.0"),
        (lambda s, g: predictor_corrector(s, g, snr=0.0), r"snr must be positive and finite, got 0\.0"),
        (lambda s, g: predictor_corrector(s, g, snr=np.nan), r"snr must be positive and finite, got nan"),
        (lambda s, g: predictor_corrector(s, g, snr=np.inf), r"snr must be positive and finite, got inf"),
        (lambda s, g: predictor_corrector(s, g, corrector_steps=-1), r"corrector_steps must be a whole number"),
        (lambda s, g: predictor_corrector(s, g, corrector_steps=1.5), r"corrector_steps must be a whole number"),
        (lambda s, g: predictor_corrector(s, g, corrector_steps=np.nan), r"corrector_steps must be a whole number"),
        (lambda s, g: predictor_corrector(s, g, heun), r"predictor must take one evaluation a step"),
        (lambda s, g: predictor_corrector(s, g, dpm_solver), r"predictor must take one evaluation a step"),
        (lambda s, g: predictor_corrector(s, g, predictor_corrector), r"predictor must take one evaluation a step"),
        (lambda s, g: predictor_corrector(s, g, lambda s, g: with_denoising(s, ddim(s, g))), r"predictor must"),
        (lambda s, g: dpm_solver(s, g, 4), r"order must be a whole number from 1 to 3, got 4"),
        (lambda s, g: dpm_solver(s, g, 2.5), r"order must be a whole number from 1 to 3, got 2\.5"),
        (lambda s, g: dpm_solver(s, g, eta=-0.1), r"eta must be in \[0, 1\], got -0\.1"),
        (lambda s, g: dpm_solver_single(s, g, 1), r"order must be a whole number from 2 to 3, got 1"),
        (lambda s, g: heun(s, g, -1.0), r"churn must be at least 0, got -1\.0"),
        (lambda s, g: heun(s, g, s_min=2.0, s_max=1.0), r"s_min and s_max must satisfy 0 <= s_min <= s_max, got 2\.0"),
        (lambda s, g: heun(s, g, s_noise=np.nan), r"s_noise must be at least 0 and finite, got nan"),
        (lambda s, g: heun(s, g, alpha=0.0), r"alpha must be in \(0, 1\], got 0\.0"),
        (lambda s, g: unipc(s, g, 3.0), r"order must be a whole number from 1 to 4, got 3\.0"),
        (lambda s, g: unipc(s, g, 5), r"order must be a whole number from 1 to 4, got 5"),
        (lambda s, g: deis(s, g, 0), r"order must be a whole number from 1 to 4, got 0"),
        (lambda s, g: lms(s, g, True), r"order must be a whole number from 1 to 4, got True"),
        (lambda s, g: ipndm(s, g, 5), r"order must be a whole number from 1 to 4, got 5"),
        (lambda s, g: sa_solver(s, g, corrector=5), r"corrector must be a whole number from 0 to 4, got 5"),
        (lambda s, g: sa_solver(s, g, tau=-1.0), r"tau must be at least 0 and finite, got -1\.0"),
        (lambda s, g: sa_solver(s, g, tau=lambda t: np.nan), r"tau must be at least 0 and finite, got nan"),
        (lambda s, g: seeds(s, g, 3), r"order must be a whole number from 1 to 2, got 3"),
        (lambda s, g: seeds(s, g, tau=-1.0), r"tau must be at least 0 and finite, got -1\.0"),
        (lambda s, g: ancestral_split(s, g, eta=-1.0), r"eta must be at least 0 and finite, got -1\.0"),
        (lambda s, g: restart(s, g, [(1.0, 0.5, 3, 1)]), r"an interval must have 0 < rho_low < rho_high <= 152\.\d"),
        (lambda s, g: restart(s, g, [(0.1, 500, 3, 1)]), r"an interval must have 0 < rho_low < rho_high <= 152\.\d"),
        (lambda s, g: restart(s, g, [(0.1, 1, 0, 1)]), r"steps of an interval must be a whole number from 1 to"),
        (lambda s, g: restart(s, g, [(0.1, 1, 3, 0)]), r"repeats of an interval must be a whole number from 1 to"),
        (lambda s, g: restart(s, g, [(0.1, 1, 3, 1)] * 2), r"rho_low stands for the node at 0\.\d+: it must be below"),
        (lambda s, g: ddim(s, g[::-1]), r"a grid must decrease strictly"),
        (lambda s, g: euler_maruyama(s, [1.2, 0.1]), r"grid times must lie in \[t_min, t_max\]"),
        (lambda s, g: reverse_diffusion(s, [1.0, 0.0]), r"grid times must lie in \[t_min, t_max\]"),
        (lambda s, g: ancestral(s, [1.0]), r"a grid must be one-dimensional with at least two times"),
    ],
)  # fmt: skip
def test_refusals(make, message):
    with pytest.raises(ValueError, match="^" + message) as error:
        make(VP(), log_snr_grid(VP(), 20))
    assert "\n" not in str(error.value)


def test_a_whole_float_of_corrector_steps_is_that_number_or_refused():
    try:
        table = predictor_corrector(VP(), uniform_grid(VP(), 4), corrector_steps=2.0)
    except ValueError as error:
        assert "corrector_steps must be a whole number" in str(error)
    else:
        assert table.num_evals == 12


def test_wrong_scores_states_and_tables_are_refused_by_name():
    sde = VP()
    table = ddim(sde, uniform_grid(sde, 2))
    x = jnp.ones((2, 3))
    with pytest.raises(ValueError, match=r"score\(x, t\) must return the shape of x, \(2, 3\), got \(2,\)"):
        integrate(KEY, lambda x, t: x[:, 0], table, x)
    with pytest.raises(ValueError, match=r"score must be a function \(x, t\) -> array like x, got float"):
        integrate(KEY, 1.0, table, x)
    with pytest.raises(ValueError, match=r"table must be a solver's table such as .*, got ndarray"):
        integrate(KEY, lambda x, t: x, uniform_grid(sde, 2), x)
    with pytest.raises(ValueError, match=r"table must be a solver's table"):
        sample(KEY, lambda x, t: x, sde, (2, 3))
    for state in (jnp.array(1.0), jnp.ones((0, 3))):
        with pytest.raises(ValueError, match=r"x must have shape \(B, \*event\) with B >= 1, got"):
            integrate(KEY, lambda x, t: x, table, state)


def test_tables_are_made_inside_jit_too_when_nothing_is_traced():
    sde = VP()
    x = jnp.ones((2, 2))
    inside = jax.jit(lambda x: integrate(KEY, lambda x, t: -x, ddim(sde, uniform_grid(sde, 3)), x))
    np.testing.assert_allclose(
        inside(x), integrate(KEY, lambda x, t: -x, ddim(sde, uniform_grid(sde, 3)), x), rtol=1e-5
    )


def test_look_times_lie_inside_for_crowded_grids():
    for sde in SDES:
        grid = times_of(sde)[::-1].astype(np.float64)
        for solver in ("heun_churn", "predictor_corrector", "unipc_3"):
            t = EVERY[solver](sde, grid).look.t
            assert np.all((t >= sde.t_min) & (t <= sde.t_max))
