"""One Brownian path per example: exact law of its increments, pathwise convergence, independence of the examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family import SDES, assert_moments, float64, gaussian, name, ring, score_on

from scoresde import VP, karras_grid, log_snr_grid, uniform_grid
from scoresde.solvers import (
    ancestral,
    brownian_path,
    ddim,
    dpm_solver,
    euler_maruyama,
    heun,
    integrate,
    padded,
    predictor_corrector,
    sample,
)
from scoresde.solvers.brownian import DEPTH, path_normal
from scoresde.solvers.table import Nodes, single_step

KEY = jax.random.key(5)
STEPS = (32, 64, 128, 256)
FINE = 2048


def paths(sde, mixture, solver, n, grid=log_snr_grid):
    """64 states at t_min of the same prior draws and Brownian paths."""
    table = solver(sde, grid(sde, n))
    x = float64(sde.prior_sample(KEY, (64, 2)))
    padding = padded(table, num_evals=FINE)
    return np.asarray(integrate(KEY, score_on(sde, padding, mixture), padding, x, noise=brownian_path(sde)))


@pytest.mark.parametrize("sde", [VP(), *(pytest.param(sde, marks=pytest.mark.slow) for sde in SDES[1:])], ids=name)
def test_strong_convergence_path_by_path(x64, sde):
    """Root-mean-square distance from the finest ancestral path, in the units of the data: every solver of the reverse
    SDE converges to the same path, with strong order one."""
    reference = paths(sde, gaussian(), ancestral, FINE)
    for solver in (euler_maruyama, ancestral):
        error = [np.sqrt(np.mean((paths(sde, gaussian(), solver, n) - reference) ** 2)) for n in STEPS]
        order = -np.polyfit(np.log(STEPS), np.log(error), 1)[0]
        assert order > 0.75 and error[-1] < 0.08, (name(solver), order, error)
    other = paths(sde, gaussian(), lambda sde, grid: dpm_solver(sde, grid, 2, eta=1.0), 256)
    assert np.sqrt(np.mean((other - reference) ** 2)) < 0.06


@pytest.mark.slow
def test_without_the_option_paths_do_not_converge_and_with_it_those_of_a_mixture_do(x64):
    sde = VP()
    reference = paths(sde, ring(8, 0.3), ancestral, FINE)
    error = [np.sqrt(np.mean((paths(sde, ring(8, 0.3), ancestral, n) - reference) ** 2)) for n in (32, 256)]
    assert error[1] < 0.2 * error[0]
    padding = padded(ancestral(sde, log_snr_grid(sde, 256)), num_evals=FINE)
    x = float64(sde.prior_sample(KEY, (64, 2)))
    fresh = integrate(KEY, score_on(sde, padding, ring(8, 0.3)), padding, x)
    assert np.sqrt(np.mean((np.asarray(fresh) - reference) ** 2)) > 5 * error[0]


def test_increments_are_exactly_independent_normals_and_add_up():
    """Of one path over neighbouring, distant and crossing stretches: covariance = the overlap, mean 0, variance 1."""
    top = 2**DEPTH - 1
    stretches = np.array([[0, 1], [1, 7], [7, 70_000], [70_000, 70_001], [70_001, 700_000], [700_000, top], [3, top]])
    keys = jax.random.split(KEY, 6000)
    draw = jax.jit(jax.vmap(lambda key, cells: path_normal(key, cells, (), jnp.float32), in_axes=(0, None)))
    z = np.stack([np.asarray(draw(keys, cells), np.float64) for cells in stretches], 1)
    assert_moments(z, np.zeros(7), np.ones(7))
    overlap = np.array([[max(0, min(a[1], b[1]) - max(a[0], b[0])) for a in stretches] for b in stretches])
    length = np.diag(overlap)
    np.testing.assert_allclose(np.corrcoef(z.T), overlap / np.sqrt(np.outer(length, length)), atol=5 / np.sqrt(6000))
    # neighbours add up to the whole: W(top) - W(7) from three pieces
    whole = draw(keys[:50], np.array([7, top])) * np.sqrt(top - 7)
    pieces = sum(z[:50, i] * np.sqrt(length[i]) for i in (2, 3, 4, 5))
    np.testing.assert_allclose(whole, pieces, rtol=1e-4, atol=1e-3 * np.sqrt(top))


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_each_stretch_of_the_path_is_used_once(sde):
    """Descending rows take consecutive stretches, in proportion to the log-SNR; all others draw afresh."""
    grid = log_snr_grid(sde, 9)
    cells = brownian_path(sde)(ancestral(sde, grid).times)
    assert cells[0, 0] == cells[0, 1] == 0 and cells[-1, 1] == 2**DEPTH - 1
    np.testing.assert_array_equal(cells[1:, 0], cells[:-1, 1])
    np.testing.assert_allclose(np.diff(cells[1:]), (2**DEPTH - 1) / 9, atol=1)
    langevin = brownian_path(sde)(predictor_corrector(sde, grid, corrector_steps=2).times)
    predicted = np.insert(np.arange(27) % 3 == 2, 0, False)  # two Langevin rows, then a step
    np.testing.assert_array_equal(langevin[:, 1] > langevin[:, 0], predicted)
    times = np.concatenate([grid[:6], grid[2:]])  # noise is added back once, as restart sampling does
    stretches = [tuple(c) for c in brownian_path(sde)(times) if c[0] < c[1]]
    assert len(stretches) == len(set(stretches)) == 9 and sorted(stretches) == stretches


def test_the_law_of_a_table_is_the_same_with_and_without():
    """Unit noise in every row of Langevin correctors, churn and reverse steps: uncorrelated, of variance one."""
    sde = VP()
    grid = karras_grid(sde, 4)
    times = np.concatenate([np.repeat(grid[:-1], 2), grid[-1:], grid[-2:]])
    nodes = Nodes.at(sde, times)
    table = single_step(nodes, a=1.0, A=0.0, s=1.0, c=0.0, d=0.0)
    path = sample(KEY, lambda x, t: x, table, (2000, 3), noise=brownian_path(sde), trajectory=True)
    columns = np.diff(np.asarray(path), axis=0).transpose(1, 0, 2).reshape(2000, -1)
    assert_moments(columns, np.zeros(columns.shape[1]), np.ones(columns.shape[1]))
    assert np.max(np.abs(np.corrcoef(columns.T) - np.eye(columns.shape[1]))) < 5 / np.sqrt(2000)


@pytest.mark.parametrize("event", [pytest.param((), marks=pytest.mark.slow), (2, 3)])
def test_example_i_depends_on_the_key_and_i_alone_and_one_compilation_serves_all(event):
    traces = []

    def score(x, t):
        traces.append(1)
        return -x

    for sde in SDES:
        for solver, grid in ((ancestral, log_snr_grid), (euler_maruyama, uniform_grid), (ddim, log_snr_grid)):
            sample(KEY, score, solver(sde, grid(sde, 5)), (4, *event), noise=brownian_path(sde))
    assert len(traces) == 1
    sde = VP()
    table, noise = ancestral(sde, log_snr_grid(sde, 5)), brownian_path(sde)
    x = sample(KEY, score, table, (9, *event), noise=noise)
    np.testing.assert_allclose(sample(KEY, score, table, (4, *event), noise=noise), x[:4], rtol=1e-5, atol=1e-6)
    inside = jax.jit(lambda key: sample(key, score, table, (9, *event), noise=noise))(KEY)
    np.testing.assert_allclose(inside, x, rtol=1e-5, atol=1e-6)
    assert np.all(np.abs(sample(jax.random.key(6), score, table, (9, *event), noise=noise) - x) > 1e-6)


def test_traced_tables_are_refused():
    sde = VP()
    table = heun(sde, log_snr_grid(sde, 3), churn=1.0)
    assert np.all(np.isfinite(integrate(KEY, lambda x, t: -x, table, jnp.ones((2, 1)), noise=brownian_path(sde))))
    with pytest.raises(ValueError, match="^a Brownian path needs one table of concrete times"):
        jax.jit(lambda table: integrate(KEY, lambda x, t: -x, table, jnp.ones((2, 1)), noise=brownian_path(sde)))(table)
