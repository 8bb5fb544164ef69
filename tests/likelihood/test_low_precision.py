"""Data of bfloat16 and float16: whatever solves or integrates computes in float32, as if they had come so."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import scoresde as ss

LAW = ss.GaussianMixture(np.array([[-1.0, 0.5], [1.0, 0.0]]), np.array([0.3, 0.5]), np.array([0.4, 0.6]))
SDE = ss.VP()
SCORE, KEY = LAW.score(SDE), jax.random.key(0)
X = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float16)
GRID = ss.log_snr_grid(SDE, 8)
SOLVES = {
    "flow": lambda x: ss.probability_flow(SDE, SCORE, x, SDE.t_min, SDE.t_max).x,
    "slerp": lambda x: ss.flow.slerp(x, x[::-1], 0.3),
    "reverse": lambda x: ss.reverse_sde(KEY, SDE, SCORE, x, SDE.t_max, SDE.t_min, steps=8).x,
    "log_likelihood": lambda x: ss.log_likelihood(KEY, SDE, SCORE, x).log_prob,
    "table": lambda x: ss.likelihood.table_log_likelihood(KEY, SDE, SCORE, x, GRID).log_prob,
    "bound": lambda x: ss.likelihood_bound(KEY, SDE, SCORE, x, draws=2, repeats=2).bound,
    "rate": lambda x: jnp.asarray(ss.likelihood.rate_distortion(KEY, SDE, SCORE, x, GRID, repeats=2).rate, float),
    "sdedit": lambda x: ss.editing.sdedit(KEY, SDE, SCORE, x, ss.ddim(SDE, GRID)),
}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("solve", SOLVES)
def test_half_precision_is_solved_in_float32(solve, dtype):
    x = jnp.asarray(X, dtype)
    with jax.enable_x64(False):
        given, wide = SOLVES[solve](x), SOLVES[solve](x.astype(jnp.float32))
    assert given.dtype == jnp.float32 and bool(jnp.all(jnp.isfinite(given)))
    np.testing.assert_array_equal(given, wide)
