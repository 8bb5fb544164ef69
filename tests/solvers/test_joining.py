"""Tables joined, padded and ended by Tweedie's formula."""

import jax
import numpy as np
import pytest
from family import SDES_IN_TURN, VP, float64, name, run_in_numpy, score_in_numpy, score_on, textbook, two_modes
from solver_family import EVERY

from scoresde import SubVP, log_snr_grid
from scoresde.solvers import dpm_solver, heun, integrate, join, padded, with_denoising

KEY = jax.random.key(11)


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
