"""The spacing law of each grid, exact ends, and what a solver accepts as a grid."""

import jax
import numpy as np
import pytest
from family import OTHER_PARAMETERS, SDES, VE, VP, name, textbook

from scoresde import Cosine, karras_grid, log_snr_grid, uniform_grid
from scoresde.grids import check_grid

GRIDS = (uniform_grid, log_snr_grid, karras_grid)


def log_rho(sde, t):
    alpha, variance, _, _ = textbook(sde, t)
    return 0.5 * np.log(variance) - np.log(alpha)


LAWS = {
    uniform_grid: lambda sde, t: t,
    log_snr_grid: log_rho,
    karras_grid: lambda sde, t: np.exp(log_rho(sde, t) / 7),
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


@pytest.mark.parametrize("grid", GRIDS, ids=name)
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
