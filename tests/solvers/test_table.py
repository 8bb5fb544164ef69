"""The table and the one loop: evaluations counted, noise by example and row, one compilation, types and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family import SDES, VE, VP, assert_moments, score_on, textbook, times_of, two_modes
from solver_family import EVERY, SWEEP, stay

from scoresde import Cosine, karras_grid, log_snr_grid, uniform_grid
from scoresde.grids import shifted_grid
from scoresde.solvers import Table, ancestral, ddim, integrate, padded, predictor_corrector, sample
from scoresde.solvers.table import Nodes, single_step

KEY = jax.random.key(11)


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


def test_look_times_lie_inside_for_crowded_grids():
    for sde in SDES:
        grid = times_of(sde)[::-1].astype(np.float64)
        for solver in ("heun_churn", "predictor_corrector", "unipc_3"):
            t = EVERY[solver](sde, grid).look.t
            assert np.all((t >= sde.t_min) & (t <= sde.t_max))


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


def test_tables_are_made_inside_jit_too_when_nothing_is_traced():
    sde = VP()
    x = jnp.ones((2, 2))
    inside = jax.jit(lambda x: integrate(KEY, lambda x, t: -x, ddim(sde, uniform_grid(sde, 3)), x))
    np.testing.assert_allclose(
        inside(x), integrate(KEY, lambda x, t: -x, ddim(sde, uniform_grid(sde, 3)), x), rtol=1e-5
    )


def test_the_prior_of_a_table_is_that_of_its_first_time():
    sde = VE()
    table = stay(sde, [0.5, 0.1])
    assert_moments(sample(KEY, lambda x, t: x, table, (4000, 2)), 0.0, np.sqrt(textbook(sde, 0.5)[1]))


def test_events_of_any_shape():
    sde = VP()
    table = predictor_corrector(sde, log_snr_grid(sde, 3), norm_rule=True)
    for event in ((), (1,), (2, 3, 1)):
        assert sample(KEY, lambda x, t: -x, table, (2, *event)).shape == (2, *event)


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
