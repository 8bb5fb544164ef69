"""Scores of which more is known of each example: every solve, one by one or of all at once, against each example's own.

Two classes have an exact mixture each, and the score of a batch is chosen row by row.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family import ring, two_modes
from jax.tree_util import Partial

import scoresde as ss
from scoresde import nn

KEY, SDE, LAWS = jax.random.key(0), ss.VP(), (ring(3, 0.5), two_modes())
CLASSES = jnp.array([1, 0, 1])
X = jnp.array([[0.2, -0.3], [0.5, 0.1], [-1.0, 0.7]])
GRID = ss.log_snr_grid(SDE, 8)


def conditional(x, t, cond):
    """The score of the class in ``cond["class"]`` (B,), and of none, an example of class -1, zero."""
    by_class = jnp.stack([law.score(SDE)(x, t) for law in LAWS])
    classes = cond["class"]
    assert classes.shape == x.shape[:1]
    return jnp.where(classes[:, None] < 0, 0, jnp.take_along_axis(by_class, jnp.abs(classes)[None, :, None], axis=0)[0])


def guided(positive, negative, weight, x, t):
    return weight * positive(x, t) + (1 - weight) * negative(x, t)


SOLVES = {
    "sample": lambda score, first, n: ss.sample(KEY, score, ss.ancestral(SDE, GRID), (n, 2), first=first),
    "flow": lambda score, first, n: ss.probability_flow(SDE, score, X[first : first + n], SDE.t_min, 0.6).x,
    "joint flow": lambda score, first, n: (
        ss.probability_flow(SDE, score, X[first : first + n], SDE.t_min, 0.6, steps=6, joint=True).x
    ),
    "path": lambda score, first, n: ss.probability_flow(
        SDE, score, X[first : first + n], SDE.t_min, 0.6, steps=6, save_at=[0.3]
    ).path[0],
    "likelihood": lambda score, first, n: (
        ss.log_likelihood(KEY, SDE, score, X[first : first + n], first=first, steps=10).log_prob
    ),
    "table likelihood": lambda score, first, n: (
        ss.table_log_likelihood(KEY, SDE, score, X[first : first + n], GRID, first=first).log_prob
    ),
}


@pytest.mark.parametrize("name", [n if n == "likelihood" else pytest.param(n, marks=pytest.mark.slow) for n in SOLVES])
def test_each_example_has_its_own_condition(name):
    solve = SOLVES[name]
    got = solve(ss.given(conditional, {"class": CLASSES}), 0, 3)
    for i, label in enumerate(CLASSES.tolist()):
        alone = solve(LAWS[label].score(SDE), i, 1)
        np.testing.assert_allclose(got[i], alone[0], atol=1e-4, err_msg=str(i))


@pytest.mark.slow
def test_the_reverse_sde_and_the_error_budget_take_conditions():
    score = ss.given(conditional, {"class": CLASSES})
    got = ss.reverse_sde(KEY, SDE, score, X, SDE.t_max, 0.1, steps=8).x
    budget = ss.error_budget(KEY, SDE, score, X)
    for label in (0, 1):
        alike = np.asarray(CLASSES) == label
        wanted = ss.reverse_sde(KEY, SDE, LAWS[label].score(SDE), X, SDE.t_max, 0.1, steps=8).x
        np.testing.assert_allclose(got[alike], wanted[alike], atol=2e-5)
        truth = ss.error_budget(KEY, SDE, LAWS[label].score(SDE), X)
        np.testing.assert_allclose(budget.truncation[alike], truth.truncation[alike], atol=1e-6)


@pytest.mark.slow
def test_conditions_are_seen_inside_functions_of_scores_and_one_row_serves_all():
    """Half of one class's score and half of the other's, the second given once for all examples."""
    weight = jnp.float32(0.25)
    classes = ss.given(conditional, {"class": CLASSES}), ss.given(conditional, {"class": jnp.array([0])})
    got = SOLVES["likelihood"](Partial(guided, *classes, weight), 0, 3)
    mixed = Partial(guided, LAWS[1].score(SDE), LAWS[0].score(SDE), weight)
    wanted = SOLVES["likelihood"](mixed, 0, 3)
    np.testing.assert_allclose(np.delete(got, 1), np.delete(wanted, 1), atol=2e-5)
    np.testing.assert_allclose(got[1], SOLVES["likelihood"](LAWS[0].score(SDE), 1, 1)[0], atol=2e-5)


@pytest.mark.slow
def test_a_network_with_classes_and_text_goes_through_the_likelihood():
    described = {"class": nn.Classes(3), "text": nn.Tokens(3)}
    net = nn.ResidualMLP((2,), width=8, depth=1, features=8, heads=2, conditions=described, key=KEY)
    apply, start = nn.functional(net)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: p + jnp.asarray(rng.normal(0, 0.2, p.shape), jnp.float32), start)
    text = jnp.asarray(rng.normal(size=(3, 4, 3)), jnp.float32), jnp.arange(4)[None] < jnp.array([[4], [2], [1]])
    cond = {"class": jnp.array([2, -1, 0]), "text": text}
    precond = ss.Preconditioner(SDE)
    score = precond.score(Partial(apply, params))
    got = SOLVES["likelihood"](ss.given(score, cond), 0, 3)
    for i in range(3):
        row = jax.tree.map(lambda a, i=i: a[i : i + 1], cond)
        alone = SOLVES["likelihood"](precond.score(Partial(apply, params, cond=row)), i, 1)
        np.testing.assert_allclose(got[i], alone[0], atol=1e-4)
    assert float(jnp.max(jnp.abs(got - SOLVES["likelihood"](score, 0, 3)))) > 1e-3


def test_conditions_of_another_batch_are_refused():
    score = ss.given(conditional, {"class": CLASSES[:2]})
    with pytest.raises(ValueError, match=r"a condition or weight, must be arrays \(B, \.\.\.\) with B = 3 or 1, got"):
        SOLVES["likelihood"](score, 0, 3)
    with pytest.raises(ValueError, match="score must be a function"):
        ss.given(3, CLASSES)
