"""JAX's own modes: float64 throughout; and an error at the first NaN, but not at values that are NaN by contract.

The main job runs under ``JAX_DEBUG_NANS`` from its first step to its report in ``tests/commands/test_run.py``.
"""

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

import scoresde as ss
from experiments.models.flags import Config
from experiments.training.session import train
from scoresde.training import Levels

KEY = jax.random.key(0)


def test_in_float64_a_model_is_trained_opened_sampled_and_measured(x64, tmp_path):
    flags = {"data": "moons", "width": 8, "depth": 1, "batch": 32, "ema_lengths": "0.1", "workdir": tmp_path / "run"}
    found, again = (train(Config.of(steps=3, **flags), Console(quiet=True), "test") for _ in range(2))
    assert again.training["steps_per_second"] is None  # it was complete
    model, x = found.model, jnp.asarray(found.data.held_out[:2], float)
    sde, score = model.sde, model.score(again.params)
    drawn = ss.sample(KEY, score, ss.best_solver(sde, 4), (3, 2))
    likelihood = ss.log_likelihood(KEY, sde, score, x, divergence=ss.hutchinson(2), steps=3)
    for values in (drawn, likelihood.log_prob, likelihood.std_error):
        assert values.dtype == jnp.float64 and np.all(np.isfinite(values))


def test_what_is_not_known_is_nan_and_no_error():
    """One probe, one repeat, no coarser grid, empty bins, opposite latents."""
    sde, x = ss.VP(), jnp.ones((2, 2))
    score = ss.GaussianMixture(jnp.zeros((1, 2)), jnp.ones(1), jnp.ones(1)).score(sde)
    with jax.debug_nans(True):
        unknown = [
            ss.log_likelihood(KEY, sde, score, x, steps=2).std_error,
            ss.table_log_likelihood(KEY, sde, score, x, ss.log_snr_grid(sde, 4), estimate_error=False).error,
            ss.likelihood_bound(KEY, sde, score, x, draws=2, repeats=1).std_error,
            Levels.start(sde).curves()["loss"],
            ss.flow.slerp(x, -x, 0.5),
        ]
    assert all(np.all(np.isnan(value)) for value in unknown)
