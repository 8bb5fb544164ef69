"""What a score is: any function (x, t) -> grad log p_t(x), with x of shape (B, *event) and t a scalar or (B,).

Exact scores, networks behind their preconditioning and guided scores share this one type, so that each of them works
with every solver, the probability flow, the likelihood and the loss.

What else is known of the examples, an array (B, ...) or a tree of them, joins a score by ``given(score, cond)``. Where
examples are solved one by one under ``vmap``, x has B = 1 and so have the conditions: each example's row goes with it
(``each``). For that they must be seen, as ``Rows`` in the score's tree: a function of scores that returns
``jax.tree_util.Partial(function, score, rows(weight), ...)`` shows them, one that closes over its score hides them.

Tweedie's formula says what a score knows of the data behind a noisy state x_t = alpha x_0 + sigma eps:

    D(x, t) = E[x_0 | x_t = x] = (x + sigma^2 score(x, t)) / alpha
    Cov[x_0 | x_t = x] = (sigma^2/alpha) dD/dx

Read backwards, a wish about the data is a score: D + change belongs to score + (alpha/sigma^2) change, and where
nothing changes the score keeps its bits.

References: Efron, "Tweedie's formula and selection bias" (2011).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from scoresde.arrays import expand
from scoresde.sde import SDE

Score = Callable[[jax.Array, jax.Array], jax.Array]


def as_partial(score: Callable[..., Any]) -> Partial:
    """A score as a pytree: the arrays of a ``jax.tree_util.Partial`` are leaves, any other function is static."""
    if not callable(score):
        raise ValueError(f"score must be a function (x, t) -> array like x, got {type(score).__name__}")
    return score if isinstance(score, Partial) else Partial(score)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """What belongs to the examples, in the tree of a score: arrays (B, ...), or (1, ...) for all of them."""

    value: Any


def rows(value: Any) -> Any:
    """A weight (B,) as ``Rows``; a number as it is."""
    return Rows(value) if jnp.ndim(value) else value


def of_rows(value: Any, x: jax.Array) -> jax.Array:
    """The other way: a weight as an array (), (1,) or (B,) of the type of ``x`` (B, *event).

    Raises:
        ValueError: as many weights as x has not examples.
    """
    value = jnp.asarray(value.value if isinstance(value, Rows) else value, x.dtype)
    if value.shape not in ((), (1,), x.shape[:1]):
        raise ValueError(f"a weight must be a number or an array (B,) with B = {x.shape[0]}, got shape {value.shape}")
    return value


def given(score: Callable[..., jax.Array], cond: Any) -> Partial:
    """The score (x, t) -> score(x, t, cond) of examples of which ``cond`` is known.

    Args:
        score: ``score(x, t, cond)``, such as those of ``Preconditioner.score`` and ``scoresde.interop``.
        cond: an array (B, ...) or a tree of them, a row for each example, or (1, ...) for all of them.

    >>> import scoresde as ss
    >>> left, right = (ss.GaussianMixture([[m]], [1.0], [1.0]).score(ss.VP()) for m in (-2.0, 2.0))
    >>> score = given(lambda x, t, c: jnp.where(c[:, None] == 0, left(x, t), right(x, t)), jnp.array([0, 1]))
    >>> ends = ss.probability_flow(ss.VP(), score, jnp.zeros((2, 1)), 1.0, ss.VP().t_min).x
    >>> ends.round().tolist()
    [[-2.0], [2.0]]
    """
    return Partial(_given, Rows(cond), as_partial(score))


def _given(cond: Rows, score: Partial, x: jax.Array, t: jax.Array) -> jax.Array:
    return score(x, t, cond.value)


def each(score: Partial, batch: int) -> tuple[Partial, Any]:
    """The score and its axes for ``jax.vmap`` over ``batch`` examples: what belongs to them, and nothing else.

    Raises:
        ValueError: conditions or weights that are not (B, ...) or (1, ...).
    """

    def split(leaf: Any) -> jax.Array:
        if jnp.shape(leaf)[:1] not in ((batch,), (1,)):
            raise ValueError(
                f"what belongs to the examples, a condition or weight, must be arrays (B, ...) with B = {batch} or 1, "
                f"got {jnp.shape(leaf)}"
            )
        leaf = jnp.asarray(leaf)
        return jnp.broadcast_to(leaf, (batch, *leaf.shape[1:]))[:, None]

    def over(part: Callable[[Any], Any]) -> Any:
        return jax.tree.map(part, score, is_leaf=lambda node: isinstance(node, Rows))

    return (
        over(lambda node: jax.tree.map(split, node) if isinstance(node, Rows) else node),
        over(lambda node: Rows(0) if isinstance(node, Rows) else None),
    )


def check_score(value: jax.Array, x: jax.Array) -> jax.Array:
    """The value of a score at ``x``, or a ValueError while tracing if its shape is not that of ``x``."""
    if jnp.shape(value) != x.shape:
        raise ValueError(f"score(x, t) must return the shape of x, {x.shape}, got {jnp.shape(value)}")
    return value


def tweedie(sde: SDE, score: Score, x: jax.Array, t: jax.Array, *cond: object) -> tuple[jax.Array, jax.Array]:
    """(score, D) at x of shape (B, *event), t a scalar or (B,); both like x."""
    s = check_score(score(x, t, *cond), x)
    return s, (x + expand(sde.variance(t), x) * s) / expand(sde.alpha(t), x)


def redirected(sde: SDE, s: jax.Array, t: jax.Array, change: jax.Array) -> jax.Array:
    """The score whose denoised data are those of ``s`` plus ``change``; all (B, *event)."""
    return s + expand(sde.alpha(t) / sde.variance(t), s) * change
