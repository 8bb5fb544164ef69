"""The spacing law of each grid, exact ends, what a solver accepts as a grid, and grids chosen by measurement."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from family import OTHER_PARAMETERS, SDES, VE, VP, name, ring, textbook

from scoresde import (
    Cosine,
    RectifiedFlow,
    ancestral,
    angle_grid,
    ddim,
    deis,
    discrete_grid,
    dpm_solver,
    integrate,
    karras_grid,
    log_snr_grid,
    uniform_grid,
    unipc,
)
from scoresde.grids import (
    beta_grid,
    check_grid,
    leading_levels,
    linspace_levels,
    polyexponential_grid,
    quadratic_grid,
    shifted_grid,
    trailing_levels,
)
from scoresde.solvers import mean_distance, optimise_grid, smooth_grid

GRIDS = (
    uniform_grid,
    quadratic_grid,
    beta_grid,
    log_snr_grid,
    polyexponential_grid,
    karras_grid,
    shifted_grid,
    angle_grid,
)


def angle_progress(sde, t):
    lam, ends = log_rho(sde, t), log_rho(sde, np.array([sde.t_min, sde.t_max]))
    p = (lam - ends[0]) / (ends[1] - ends[0])
    angle, angles = np.arctan(np.exp(lam) / 0.3), np.arctan(np.exp(ends) / 0.3)
    return 0.3 * p + 0.7 * (angle - angles[0]) / (angles[1] - angles[0])


def log_rho(sde, t):
    alpha, variance, _, _ = textbook(sde, t)
    return 0.5 * np.log(variance) - np.log(alpha)


LAWS = {
    uniform_grid: lambda sde, t: t,
    log_snr_grid: log_rho,
    quadratic_grid: lambda sde, t: np.sqrt(t),
    beta_grid: lambda sde, t: scipy.stats.beta.cdf((t - sde.t_min) / (sde.t_max - sde.t_min), 0.6, 0.6),
    polyexponential_grid: log_rho,
    karras_grid: lambda sde, t: np.exp(log_rho(sde, t) / 7),
    angle_grid: angle_progress,
    shifted_grid: lambda sde, t: 1 / (1 + 3 * np.exp(-log_rho(sde, t))),
}


@pytest.mark.parametrize("sde", SDES + OTHER_PARAMETERS, ids=name)
@pytest.mark.parametrize("grid", GRIDS, ids=name)
def test_shape_ends_and_spacing(sde, grid):
    """float64 to full precision although x64 is off."""
    for n in (1, 2, 17):
        t = grid(sde, n)
        assert t.shape == (n + 1,) and t.dtype == np.float64 and isinstance(t, np.ndarray)
        assert t[0] == sde.t_max and t[-1] == sde.t_min
        assert np.all(np.diff(t) < 0)
        steps = np.diff(LAWS[grid](sde, t))
        np.testing.assert_allclose(steps, steps[0], rtol=1e-6)
        np.testing.assert_array_equal(check_grid(sde, t), t)


def test_karras_is_edms_schedule_on_ve():
    """Karras et al. (2022), equation 5."""
    sde, n = VE(0.002, 80.0), 18
    i = np.arange(n + 1) / n
    for rho in (7.0, 3.0):
        sigma = (80.0 ** (1 / rho) + i * (0.002 ** (1 / rho) - 80.0 ** (1 / rho))) ** rho
        np.testing.assert_allclose(np.sqrt(textbook(sde, karras_grid(sde, n, rho))[1]), sigma, rtol=1e-9)


@pytest.mark.parametrize("rho", [0.5, 1.0, 3.0])
def test_polyexponential_is_its_formula(rho):
    """sigma = exp(ramp^rho (log sigma_max - log sigma_min) + log sigma_min), ramp from 1 to 0, on VE."""
    sigma = np.exp(np.linspace(1, 0, 12) ** rho * np.log(80.0 / 0.002) + np.log(0.002))
    grid = polyexponential_grid(VE(0.002, 80.0), 11, rho)
    np.testing.assert_allclose(np.sqrt(textbook(VE(0.002, 80.0), grid)[1]), sigma, rtol=1e-9)


@pytest.mark.parametrize("shift", [0.3, 1.0, 3.0])
def test_the_shift_is_flow_matchings(shift):
    """On the straight path the grid is t -> s t/(1 + (s - 1) t) of equally spaced times, and s = 1 changes nothing."""
    sde = RectifiedFlow()
    grid = shifted_grid(sde, 13, shift)
    before = grid / (shift - (shift - 1) * grid)  # the inverse of the shift
    np.testing.assert_allclose(np.diff(before), np.diff(before)[0], rtol=1e-7)
    if shift == 1:
        np.testing.assert_allclose(grid, uniform_grid(sde, 13), rtol=1e-9)


@pytest.mark.parametrize(("a", "b"), [(0.6, 0.6), (0.3, 2.0), (1.0, 1.0)])
def test_beta_quantiles_are_scipys(a, b):
    sde = Cosine()
    quantile = scipy.stats.beta.ppf(1 - np.arange(41) / 40, a, b)
    np.testing.assert_allclose(
        beta_grid(sde, 40, a, b), sde.t_min + quantile * (sde.t_max - sde.t_min), rtol=1e-9, atol=1e-12
    )


def test_levels_of_a_discrete_model():
    """The three published spacings of 1,000 levels (Lin et al. 2024, table 2), here counted from 1, and rounding."""
    assert trailing_levels(10, 1000).tolist() == [1000, 900, 800, 700, 600, 500, 400, 300, 200, 100]
    assert leading_levels(10, 1000).tolist() == [901, 801, 701, 601, 501, 401, 301, 201, 101, 1]
    assert linspace_levels(10, 1000).tolist() == [1000, 889, 778, 667, 556, 445, 334, 223, 112, 1]
    assert trailing_levels(3, 10).tolist() == [10, 7, 3] and trailing_levels(4, 10).tolist() == [10, 8, 5, 2]
    for n in (1, 7, 999, 1000):  # all distinct, all inside
        for spacing in (trailing_levels, leading_levels, linspace_levels):
            k = spacing(n, 1000)
            assert len(set(k.tolist())) == n and k.min() >= 1 and k.max() <= 1000 and np.all(np.diff(k) < 0)


@pytest.mark.parametrize("spacing", [trailing_levels, leading_levels, linspace_levels], ids=name)
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_a_discrete_grid_looks_at_trained_times_only(sde, spacing):
    grid = discrete_grid(sde, 20, levels=100, spacing=spacing)
    looks = ddim(sde, grid).look.t
    level = 100 * looks / sde.t_max
    np.testing.assert_allclose(level, np.round(level), rtol=1e-12)
    assert grid[-1] == sde.t_min and grid.shape == (21,)
    assert (grid[0] == sde.t_max) == (spacing is not leading_levels)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": 11, "levels": 10}, r"n must be at most levels = 10, got 11"),
        ({"levels": 0}, r"levels must be a whole number of at least 1, got 0"),
        ({"levels": 2_000_000}, r"levels must be at most t_max/t_min = 1\.001e\+05 for this SDE, got 2000000"),
        ({"spacing": lambda n, levels: np.arange(1, n + 1)}, r"spacing must return 5 decreasing whole numbers in \[1,"),
        ({"spacing": lambda n, levels: np.linspace(9, 1, n)}, r"spacing must return 5 decreasing whole numbers"),
        ({"spacing": lambda n, levels: np.arange(n, 0, -1) + levels}, r"spacing must return .*, got \[1005, 1004"),
    ],
)
def test_refusals_of_discrete_grids(settings, message):
    with pytest.raises(ValueError, match="^" + message):
        discrete_grid(VP(), **{"n": 5} | settings)


@pytest.mark.parametrize("value", [0, -1.0, np.nan, np.inf])
def test_wrong_parameters_are_refused(value):
    for make, parameter in ((polyexponential_grid, "rho"), (shifted_grid, "shift"), (beta_grid, "a"), (beta_grid, "b")):
        with pytest.raises(ValueError, match=f"^{parameter} must be positive and finite"):
            make(VP(), 5, **{parameter: value})


@pytest.mark.parametrize("grid", (*GRIDS, discrete_grid), ids=name)
@pytest.mark.parametrize("n", [0, -3, 2.0, True, "10", None])
def test_a_wrong_number_of_steps_is_refused(grid, n):
    with pytest.raises(ValueError, match="^n must be a whole number of at least 1, got "):
        grid(VP(), n)


@pytest.mark.parametrize("rho", [0, -1.0, np.nan, np.inf])
def test_a_wrong_rho_is_refused(rho):
    with pytest.raises(ValueError, match="^rho must be positive and finite"):
        karras_grid(VP(), 5, rho)


def test_numpy_integers_count():
    assert uniform_grid(VP(), np.int64(4)).shape == (5,)


def test_grids_made_under_x64_and_inside_jit_are_the_same():
    outside = karras_grid(Cosine(), 6)
    with jax.enable_x64(True):
        np.testing.assert_array_equal(karras_grid(Cosine(), 6), outside)

    @jax.jit
    def f(x):
        np.testing.assert_array_equal(karras_grid(Cosine(), 6), outside)
        return x

    f(1.0)


def test_check_grid_takes_any_decreasing_times_inside():
    sde = VP()
    for t in ([0.9, 0.2], (0.5, 0.4, 0.1), np.float32([1.0, 0.3, sde.t_min])):
        np.testing.assert_allclose(check_grid(sde, t), t, rtol=1e-7)
    rounded = np.float32(uniform_grid(VP(t_min=0.0123, t_max=0.7), 5))
    checked = check_grid(VP(t_min=0.0123, t_max=0.7), rounded)  # float32 rounding at an end is forgiven, and undone
    assert checked[0] <= 0.7 and checked[-1] >= 0.0123
    np.testing.assert_allclose(checked, rounded, rtol=1e-6)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([1.0], r"a grid must be one-dimensional with at least two times, got shape \(1,\)"),
        ([[1.0, 0.5]], r"a grid must be one-dimensional with at least two times, got shape \(1, 2\)"),
        (0.5, r"a grid must be one-dimensional with at least two times, got shape \(\)"),
        ([1.01, 0.5], r"grid times must lie in \[t_min, t_max\] = \[9\.99006e-06, 1\], got 1\.01"),
        ([1.0, 0.5, 0.0], r"grid times must lie in \[t_min, t_max\] = .*, got 0"),
        ([1.0, np.nan, 0.1], r"grid times must lie in .*, got nan"),
        ([1.0, 0.5, 0.5], r"a grid must decrease strictly from noise to data"),
        ([0.1, 0.5, 1.0], r"a grid must decrease strictly from noise to data"),
    ],
)
def test_refusals(grid, message):
    with pytest.raises(ValueError, match="^" + message) as error:
        check_grid(VP(), grid)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_smooth_grids_are_their_formula(sde):
    np.testing.assert_allclose(smooth_grid(sde, 7, np.zeros(3)), log_snr_grid(sde, 7), rtol=1e-9)
    grid = smooth_grid(sde, 9, [0.4, -0.2])
    i = (np.arange(9) + 0.5) / 9
    length = np.exp(0.4 * np.cos(np.pi * i) - 0.2 * np.cos(2 * np.pi * i))
    steps = -np.diff(log_rho(sde, grid))
    np.testing.assert_allclose(steps / np.sum(steps), length / np.sum(length), rtol=1e-5)
    assert grid[0] == sde.t_max and grid[-1] == sde.t_min
    for wrong in ([np.nan], 1.0, [[0.1]]):
        with pytest.raises(ValueError, match=r"^coefficients must be finite numbers of shape \(K,\), got"):
            smooth_grid(sde, 5, wrong)


def held_out_error(sde, mixture, table, x, exact):
    return float(mean_distance(integrate(jax.random.key(0), mixture.score(sde), table, x), exact))


@pytest.mark.slow
def test_an_optimised_grid_halves_the_error_on_starts_that_it_has_not_seen():
    """Ring of std 0.3, VP, 20 evaluations: less than half the error of the best of DEIS, DPM-Solver and UniPC of order
    3 on the log-SNR grid, for starts that played no part; and the given starts' errors are as reported."""
    sde, mixture, n = VP(), ring(8, 0.3), 20
    x, fresh = sde.prior_sample(jax.random.key(1), (128, 2)), sde.prior_sample(jax.random.key(2), (512, 2))
    result = optimise_grid(sde, mixture.score(sde), x, unipc, n, evaluations=90)
    exact = integrate(jax.random.key(0), mixture.score(sde), unipc(sde, log_snr_grid(sde, 160)), fresh)
    plain = log_snr_grid(sde, n)
    textbook = min(
        held_out_error(sde, mixture, solver(sde, plain, 3), fresh, exact) for solver in (deis, dpm_solver, unipc)
    )
    best = held_out_error(sde, mixture, unipc(sde, result.grid), fresh, exact)
    assert 1e-3 < textbook < 3e-3 and best < 0.4 * textbook, (best, textbook)
    assert result.error < 0.2 * result.start_error
    np.testing.assert_allclose(result.grid, smooth_grid(sde, n, result.coefficients))


@pytest.mark.slow
@pytest.mark.parametrize("n", [20, 40, 80])
def test_optimised_grids_halve_the_errors_at_each_budget(x64, n):
    sde, mixture = VP(), ring(8, 0.3)
    x, fresh = sde.prior_sample(jax.random.key(1), (256, 2)), sde.prior_sample(jax.random.key(2), (1024, 2))
    exact = integrate(jax.random.key(0), mixture.score(sde), unipc(sde, log_snr_grid(sde, 1500)), fresh)
    solvers = [partial(make, order=p) for make in (deis, dpm_solver, unipc) for p in (2, 3)]
    textbook = min(held_out_error(sde, mixture, s(sde, log_snr_grid(sde, n)), fresh, exact) for s in solvers)
    result = optimise_grid(sde, mixture.score(sde), x, unipc, n)
    best = held_out_error(sde, mixture, unipc(sde, result.grid), fresh, exact)
    print(f"{n} evaluations: log-SNR grid, best of order 2 and 3 {textbook:.2e}, optimised UniPC-3 {best:.2e}")
    assert best < 0.3 * textbook


def test_an_objective_of_ones_own_and_grids_of_few_steps():
    """Two steps leave one free number: the search finds the least value that a scan of it finds."""
    sde, mixture = RectifiedFlow(), ring(8, 0.3)
    x = sde.prior_sample(jax.random.key(3), (32, 2))
    reference = integrate(jax.random.key(0), mixture.score(sde), unipc(sde, log_snr_grid(sde, 400)), x)

    def worst(x, reference):
        return jnp.max(jnp.abs(x - reference))

    result = optimise_grid(sde, mixture.score(sde), x, ddim, 2, reference=reference, objective=worst, evaluations=60)
    assert result.coefficients.shape == (1,)
    scan = [
        float(
            worst(integrate(jax.random.key(0), mixture.score(sde), ddim(sde, smooth_grid(sde, 2, [c])), x), reference)
        )
        for c in np.linspace(-2, 2, 41)
    ]
    assert result.error <= min(scan) * 1.01 and result.error < result.start_error
    alone = optimise_grid(sde, mixture.score(sde), x, ddim, 1, reference=reference)
    assert alone.grid.tolist() == [sde.t_max, sde.t_min] and alone.error == alone.start_error


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"solver": ancestral}, r"solver must draw no noise"),
        ({"n": 0}, r"n must be a whole number of at least 1, got 0"),
        ({"terms": 0}, r"terms must be a whole number of at least 1, got 0"),
        ({"evaluations": 2.5}, r"evaluations must be a whole number of at least 1, got 2\.5"),
        ({"reference": np.full((4, 2), np.nan)}, r"objective must be finite on the base grid"),
    ],
)
def test_refusals_of_the_search(settings, message):
    arguments = {"solver": ddim, "n": 3, "x": jnp.ones((4, 2))} | settings
    with pytest.raises(ValueError, match="^" + message):
        optimise_grid(VP(), lambda x, t: -x, **arguments)
