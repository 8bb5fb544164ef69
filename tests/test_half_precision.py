"""A state of bfloat16 or float16: times and coefficients are float32 for whatever asks a score, and so is the state."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family import SDES, name

import scoresde as ss
from scoresde.training import Levels

VP, KEY = ss.VP(), jax.random.key(0)
GRID = ss.log_snr_grid(VP, 4)


def asked(seen, x, t):
    seen.extend((jnp.asarray(t).dtype, x.dtype))
    return -x


def log_probs(seen, x, t):
    return jax.nn.log_softmax(asked(seen, x, t), axis=1)


def levels(score, x):
    errors = ss.training.denoising_errors(KEY, VP, score, x)
    return Levels.start(VP).update(errors, ss.training.likelihood_weight)


ASKING = {
    "integrate": lambda s, x: ss.integrate(KEY, s, ss.euler_maruyama(VP, GRID), x),
    "trajectory": lambda s, x: ss.integrate(KEY, s, ss.unipc(VP, GRID), x, trajectory=True),
    "langevin": lambda s, x: ss.integrate(KEY, s, ss.predictor_corrector(VP, GRID), x),
    "reverse_sde": lambda s, x: ss.reverse_sde(KEY, VP, s, x, VP.t_max, VP.t_min, steps=4).x,
    "flow": lambda s, x: ss.probability_flow(VP, s, x, VP.t_min, VP.t_max).x,
    "likelihood": lambda s, x: ss.log_likelihood(KEY, VP, s, x).log_prob,
    "table": lambda s, x: ss.likelihood.table_log_likelihood(KEY, VP, s, x, GRID).log_prob,
    "bound": lambda s, x: ss.likelihood_bound(KEY, VP, s, x, draws=2, repeats=2).bound,
    "loss": lambda s, x: ss.denoising_score_matching(KEY, VP, s, x),
    "levels": lambda s, x: levels(s, x).square,
}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("ask", ASKING)
def test_whatever_asks_a_score_asks_in_float32(ask, dtype):
    seen = []
    x = jax.ShapeDtypeStruct((3, 2), dtype)
    result = jax.eval_shape(lambda x: ASKING[ask](partial(asked, seen), x), x)
    assert seen and set(seen) == {np.dtype(np.float32)} and result.dtype == jnp.float32


def test_a_classifier_is_asked_in_float32():
    seen = []
    x = jax.ShapeDtypeStruct((3, 2), jnp.bfloat16)
    ask = lambda x: ss.training.cross_entropy(KEY, VP, partial(log_probs, seen), x, jnp.zeros(3, int))  # noqa: E731
    assert jax.eval_shape(ask, x).dtype == jnp.float32 and set(seen) == {np.dtype(np.float32)}


@pytest.mark.parametrize("sde", SDES[:-1], ids=name)  # a subclass answers for its own two functions
def test_coefficients_at_a_coarse_time_are_float32(sde):
    """bfloat16 has 8 bits: a coefficient computed in it is 0.4 % off; that of the time as it came is exact."""
    t = jnp.asarray([0.3, 0.7], jnp.bfloat16)
    for quantity in (sde.alpha, sde.sigma, sde.log_snr, sde.drift, sde.diffusion):
        found = quantity(t)
        assert found.dtype == jnp.float32
        np.testing.assert_array_equal(found, quantity(t.astype(jnp.float32)))
    x = jnp.ones((2, 1), jnp.bfloat16)
    assert sde.perturb(x, t, x).dtype == sde.prior_log_prob(x).dtype == jnp.float32


def test_an_exact_score_of_a_coarse_state_is_that_of_its_value():
    law = ss.GaussianMixture(np.array([[-1.0, 0.5], [1.0, 0.0]]), np.array([0.3, 0.5]), np.array([0.4, 0.6]))
    x = jnp.asarray([[0.3, -0.2], [2.0, 1.0]], jnp.bfloat16)
    np.testing.assert_array_equal(law.score(VP)(x, 0.3), law.score(VP)(x.astype(jnp.float32), 0.3))
