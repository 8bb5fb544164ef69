"""What is made anew of the same values compiles once: operators, guidance, networks, numbers of a first example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import scoresde as ss
from scoresde.arrays import Applied, number
from scoresde.likelihood.adaptive import _log_likelihood
from scoresde.likelihood.fixed_grid import _compiled
from scoresde.solvers.table import _integrate

SDE, KEY = ss.VP(), jax.random.key(0)
IMAGES = jax.random.normal(KEY, (2, 4, 4, 2))
LOW = np.zeros((4, 4), bool)
LOW[:2, :2] = True
OPERATORS = {
    "downsample": lambda: ss.inverse.operators.downsample(2),
    "fourier": lambda: ss.inverse.operators.fourier(LOW),
    "columns": lambda: ss.inverse.operators.columns([1]),
    "spans": lambda: ss.inverse.operators.spans([(1, 3)], 4),
    "mask": lambda: ss.inverse.operators.mask(LOW[:, :, None]),
    "blur": lambda: ss.inverse.operators.blur(1.0),
}
CONDITIONAL, PLAIN = (ss.GaussianMixture([[m, 0.0]], [1.0], [1.0]).score(SDE) for m in (1.0, 0.0))
GUIDED = {
    "classifier_free": lambda w: ss.guidance.classifier_free(CONDITIONAL, PLAIN, w),
    "autoguidance": lambda w: ss.guidance.autoguidance(CONDITIONAL, PLAIN, w),
    "interval": lambda w: ss.guidance.interval(SDE, CONDITIONAL, PLAIN, -w, w),
    "projected": lambda w: ss.guidance.projected(SDE, CONDITIONAL, PLAIN, w),
    "rescaled": lambda w: ss.guidance.rescaled(SDE, CONDITIONAL, PLAIN, w / 9),
    "cfg_plus_plus": lambda w: ss.guidance.cfg_plus_plus(SDE, CONDITIONAL, PLAIN, [1.0, 0.5, 0.1], w / 9),
    "temperature": lambda w: ss.guidance.temperature(SDE, CONDITIONAL, w),
    "classifier": lambda w: ss.guidance.classifier(SDE, PLAIN, _log_prob_y, w=w),
}


def _log_prob_y(x, t):
    return jnp.sum(x, axis=1)


def count(function, arguments):
    """How often a jitted function of one argument compiles over several."""
    jitted = jax.jit(lambda argument: function(argument))
    for argument in arguments:
        jitted(argument)
    return jitted._cache_size()


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_made_twice_compiles_once(name):
    x = IMAGES[:, :, 0] if name == "spans" else IMAGES
    assert count(lambda operator: operator(x), [OPERATORS[name](), OPERATORS[name]()]) == 1


def test_operators_that_differ_are_told_apart():
    one, other = (ss.inverse.operators.columns([k]) for k in (0, 1))
    assert count(lambda operator: operator(IMAGES), [one, other]) == 2
    assert one.func != other.func and hash(one.func) == hash(ss.inverse.operators.columns([0]).func)
    assert Applied(max, (1,))(0, 2) == 2


@pytest.mark.parametrize("name", GUIDED)
def test_guidance_of_another_weight_compiles_once(name):
    x, t = IMAGES[:, 0, 0], jnp.array(0.5)
    assert count(lambda score: score(x, t), [GUIDED[name](w) for w in (1.5, 3.0)]) == 1


def test_networks_alike_compile_once_whatever_their_parameters():
    x, c = jnp.ones((2, 3)), jnp.zeros(2)
    made = [ss.nn.functional(ss.nn.ResidualMLP((3,), width=8, depth=1, key=jax.random.key(k))) for k in (0, 1)]
    precond = ss.Preconditioner(SDE)
    assert made[0][0] == made[1][0] and hash(made[0][0]) == hash(made[1][0])
    assert count(lambda network: network(x, c), [Partial(apply, params) for apply, params in made]) == 1
    assert count(lambda score: score(x, jnp.array(0.5)), [precond.score(Partial(*one)) for one in made]) == 1
    wider = ss.nn.functional(ss.nn.ResidualMLP((3,), width=9, depth=1, key=KEY))[0]
    other = ss.nn.functional(ss.nn.ResidualMLP((3,), width=8, depth=1, key=KEY), dtype=jnp.bfloat16)[0]
    assert len({made[0][0], wider, other}) == 3


@pytest.mark.parametrize("call", ["integrate", "log_likelihood", "table_log_likelihood"])
def test_any_kind_of_first_compiles_once(call):
    x, grid = IMAGES[:, 0, 0], ss.log_snr_grid(SDE, 3)
    calls = {
        "integrate": (_integrate, lambda f: ss.integrate(KEY, PLAIN, ss.ddim(SDE, grid, eta=1.0), x, first=f)),
        "log_likelihood": (
            _log_likelihood,
            lambda f: ss.log_likelihood(KEY, SDE, PLAIN, x, steps=2, first=f).log_prob,
        ),
        "table_log_likelihood": (
            _compiled,
            lambda f: ss.table_log_likelihood(KEY, SDE, PLAIN, x, grid, estimate_error=False, first=f).log_prob,
        ),
    }
    compiled, run = calls[call]
    before = compiled._cache_size()
    got = [run(f) for f in (3, np.int64(3), np.uint8(3), jnp.array(3), np.array(3))]
    assert compiled._cache_size() - before <= 1
    for other in got[1:]:
        np.testing.assert_array_equal(other, got[0])


@pytest.mark.parametrize("first", [-1, 1.0, True, np.array([1, 2]), "3"])
def test_what_is_no_number_of_an_example_is_refused(first):
    with pytest.raises(ValueError, match="first must be a whole number of at least 0, got"):
        number(first)
