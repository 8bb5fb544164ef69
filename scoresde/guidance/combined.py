"""Guided scores that are sums of scores: s = sum_i w_i s_i with weights given, from logits or from Bayes' rule."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jax.typing import ArrayLike

from scoresde.arrays import expand
from scoresde.checks import check_sde, weight
from scoresde.score import Rows, Score, as_partial, check_score, of_rows, rows, tweedie
from scoresde.sde import SDE


def partials(*functions: Callable[..., Any]) -> tuple[Partial, ...]:
    """The functions as pytrees, so that their arrays stay traced arguments."""
    return tuple(as_partial(f) for f in functions)


def unconditioned(score: Score) -> Partial:
    """The score, which takes a condition and ignores it."""
    return Partial(_ignore_condition, as_partial(score))


def _ignore_condition(score: Partial, x: jax.Array, t: jax.Array, *cond: Any) -> jax.Array:
    return score(x, t)


def product(scores: Sequence[Score], weights: Sequence[ArrayLike]) -> Score:
    """sum_i w_i s_i, the score of prod_i p_i^(w_i) up to a constant: experts that must all agree.

    Args:
        scores: functions (x, t) -> like x.
        weights: as many numbers or arrays (B,), of any sign. A score whose weight is the number 0 is never evaluated.

    Raises:
        ValueError: lengths that differ, a weight that is not finite, or no weight other than 0.
    """
    if len(scores) != len(weights):
        raise ValueError(f"scores and weights must be as many, got {len(scores)} and {len(weights)}")
    pairs = [(as_partial(s), weight("weights", w)) for s, w in zip(scores, weights, strict=True)]
    kept = [(s, w) for s, w in pairs if not (isinstance(w, float) and w == 0)]
    if not kept:
        raise ValueError("weights must hold one that is not 0")
    return Partial(_product, tuple(s for s, _ in kept), tuple(rows(w) for _, w in kept))


def classifier_free(conditional: Score, unconditional: Score, w: ArrayLike) -> Score:
    """(1 - w) s_u + w s_c: Ho and Salimans, "Classifier-free diffusion guidance" (2022), equation 6 with 1 + their w.

    With w the number 0 or 1 only the one score is evaluated. For a negative condition give its score as
    ``unconditional``: the result leads from the unwanted to the wanted one; ``composed`` subtracts it beside a third.

    Args:
        conditional: the score of p_t(x | c).
        unconditional: the score of p_t(x).
        w: the weight, a number or (B,): 0 unconditional, 1 conditional, above 1 extrapolated.
    """
    w = weight("w", w)
    return product((unconditioned(unconditional), conditional), (1 - w, w))


def classifier_free_batched(score: Callable[..., jax.Array], cond: Any, null: Any, w: ArrayLike) -> Score:
    """``classifier_free`` of one conditional score, evaluated once for both conditions on a batch of 2B.

    Args:
        score: ``score(x, t, cond)``.
        cond: the conditions, arrays (B, ...) or a pytree of them; a third argument to the result takes their place.
            A leading axis of 1 serves every example.
        null: the same for no condition, such as ``ss.nn.null(cond)``; of one example, (1, ...), if all have the same.
        w: the weight, a number or (B,); only one condition is evaluated if it is the number 0 or 1.
    """
    score, w = as_partial(score), weight("w", w)
    if isinstance(w, float) and w == 0:
        return unconditioned(Partial(_conditioned, score, Rows(null)))
    if isinstance(w, float) and w == 1:
        return Partial(_conditioned, score, Rows(cond))
    return Partial(_batched, score, Rows(cond), Rows(null), rows(w))


def autoguidance(score: Score, weaker: Score, w: ArrayLike) -> Score:
    """(1 - w) s_weaker + w s: away from the errors of a smaller or less trained network on the same data.

    Karras et al., "Guiding a diffusion model with a bad version of itself" (2024), equation 3.

    Args:
        score: the score of the better network.
        weaker: any second score of the same law.
        w: the weight, a number or (B,): 1 is ``score``; the paper's values lie between 1.5 and 3.
    """
    w = weight("w", w)
    return product((weaker, score), (1 - w, w))


def composed(unconditional: Score, conditionals: Sequence[Score], weights: Sequence[ArrayLike]) -> Score:
    """s_u + sum_i w_i (s_i - s_u): several conditions at once, and negative ones.

    The score of p(x) prod_i (p(x | c_i)/p(x))^(w_i): for conditions independent given x, weights of 1 mean all of them
    (AND); a negative weight turns away from its condition (NOT). Liu et al., "Compositional visual generation with
    composable diffusion models" (2022), equations 11 and 12.
    """
    weights = [weight("weights", w) for w in weights]
    rest = 1 - sum(weights[1:], start=weights[0]) if weights else 1.0
    return product((unconditioned(unconditional), *conditionals), (rest, *weights))


def mixture(scores: Sequence[Score], log_weights: Callable[..., jax.Array]) -> Score:
    """sum_k r_k s_k with r = softmax(log_weights): the exact score of the mixture of laws, any of them (OR).

    Args:
        scores: K scores of p_t(x | k).
        log_weights: (x, t) -> (B, K), log p_t(k | x) up to a constant of each example: the logits of a classifier of
            noisy data, or log pi_k + log p_t(x | k). Diffusion and mixing commute, so weights of all times agree.
    """
    if not scores:
        raise ValueError("scores must hold at least one score")
    return Partial(_mixture, tuple(as_partial(s) for s in scores), as_partial(log_weights))


def classifier(
    sde: SDE, score: Score, log_prob_y: Callable[..., jax.Array], *, w: ArrayLike = 1.0, denoised: bool = False
) -> Score:
    """s + w grad_x log p_t(y | x_t): by Bayes' rule the gradient is a score already, whatever the SDE: no factor.

    Dhariwal and Nichol, "Diffusion models beat GANs on image synthesis" (2021), equation 13, whose factor
    -sqrt(1 - alpha_bar) turns the same gradient into noise.

    Args:
        sde: the SDE; only ``denoised`` needs its alpha and sigma.
        score: the score of p_t(x).
        log_prob_y: (x, t) -> (B,) log-probability of the wanted y given x_t in nats, row i a function of example i.
            A third argument to the result, if any, goes here alone.
        w: the weight, a number or (B,); 1 is Bayes' rule.
        denoised: whether ``log_prob_y`` is of clean data and is given D in place of x_t: log p(y | E[x_0 | x_t])
            instead of log E[p(y | x_0) | x_t], an approximation (Bansal et al. 2023, "Universal guidance").
    """
    check_sde(sde)
    guided = _clean_classifier if denoised else _classifier
    return Partial(guided, sde, *partials(score, log_prob_y), rows(weight("w", w)))


def of_class(log_probs: Callable[..., jax.Array]) -> Partial:
    """(x, t, y) -> log p_t(y | x), (B,), of a classifier (x, t) -> log p_t(c | x), (B, K): a ``log_prob_y``.

    y (B,) or (1,) are whole numbers; where y is outside 0..K-1 (-1 means none) nothing is asked, the result is 0. So
    ``ss.given(classifier(sde, score, of_class(log_probs)), y)`` is the score of examples of the classes y.
    """
    return Partial(_of_class, as_partial(log_probs))


def weighted(parts: Sequence[tuple[Any, jax.Array]]) -> jax.Array:
    """sum_i w_i s_i for w_i numbers, (B,) or ``Rows`` of them, s_i (B, *event)."""
    total = None
    for w, s in parts:
        term = expand(of_rows(w, s), s) * s
        total = term if total is None else total + term
    assert total is not None
    return total


def _product(
    scores: tuple[Partial, ...], weights: tuple[Any, ...], x: jax.Array, t: jax.Array, *cond: Any
) -> jax.Array:
    return weighted([(w, check_score(s(x, t, *cond), x)) for s, w in zip(scores, weights, strict=True)])


def _for_each(cond: Any, batch: int) -> Any:
    """Conditions (1, ...) or (B, ...) as (B, ...)."""

    def whole(leaf: jax.Array) -> jax.Array:
        leaf = jnp.asarray(leaf)
        if leaf.ndim < 1 or leaf.shape[0] not in (1, batch):
            raise ValueError(f"conditions must be arrays (B, ...) or (1, ...) with B = {batch}, got {leaf.shape}")
        return jnp.broadcast_to(leaf, (batch, *leaf.shape[1:]))

    return jax.tree.map(whole, cond)


def _conditioned(score: Partial, cond: Rows, x: jax.Array, t: jax.Array, other: Any = None) -> jax.Array:
    return check_score(score(x, t, _for_each(cond.value if other is None else other, x.shape[0])), x)


def _batched(
    score: Partial, cond: Rows, null: Rows, w: Any, x: jax.Array, t: jax.Array, other: Any = None
) -> jax.Array:
    pair = (_for_each(c, x.shape[0]) for c in (cond.value if other is None else other, null.value))
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b.astype(a.dtype)]), *pair)
    t, doubled = jnp.asarray(t), jnp.concatenate([x, x])
    times = jnp.concatenate([t, t]) if t.ndim else t
    conditional, unconditional = jnp.split(check_score(score(doubled, times, both), doubled), 2)
    w = of_rows(w, x)
    return weighted([(1 - w, unconditional), (w, conditional)])


def _mixture(scores: tuple[Partial, ...], log_weights: Partial, x: jax.Array, t: jax.Array, *cond: Any) -> jax.Array:
    logits = log_weights(x, t, *cond)
    if jnp.shape(logits) != (x.shape[0], len(scores)):
        raise ValueError(f"log_weights must return (B, K) = {(x.shape[0], len(scores))}, got {jnp.shape(logits)}")
    r = jax.nn.softmax(logits, axis=1)
    return weighted([(r[:, k], check_score(s(x, t, *cond), x)) for k, s in enumerate(scores)])


def _gradient(log_prob_y: Callable[..., Any], x: jax.Array) -> tuple[jax.Array, Any]:
    """The gradient of each example's log-probability, and what else ``log_prob_y`` returned."""
    log_prob, pull, rest = jax.vjp(log_prob_y, x, has_aux=True)
    if log_prob.shape != x.shape[:1]:
        raise ValueError(f"log_prob_y(x, t) must return (B,) = {x.shape[:1]}, got {log_prob.shape}")
    return pull(jnp.ones_like(log_prob))[0], rest


def _of_class(log_probs: Partial, x: jax.Array, t: jax.Array, y: Any) -> jax.Array:
    log_p = log_probs(x, t)
    if log_p.ndim != 2 or log_p.shape[0] != x.shape[0]:
        raise ValueError(f"log_probs(x, t) must return (B, K) with B = {x.shape[0]}, got {log_p.shape}")
    chosen = _for_each(y, x.shape[0])[:, None] == jnp.arange(log_p.shape[1])[None]
    return jnp.sum(jnp.where(chosen, log_p, 0), axis=1)


def _classifier(
    sde: SDE, score: Partial, log_prob_y: Partial, w: Any, x: jax.Array, t: jax.Array, *cond: Any
) -> jax.Array:
    gradient, _ = _gradient(lambda x: (log_prob_y(x, t, *cond), None), x)
    return weighted([(1.0, check_score(score(x, t), x)), (w, gradient)])


def _clean_classifier(
    sde: SDE, score: Partial, log_prob_y: Partial, w: Any, x: jax.Array, t: jax.Array, *cond: Any
) -> jax.Array:
    def of_data(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        s, data = tweedie(sde, score, x, t)
        return log_prob_y(data, t, *cond), s

    gradient, s = _gradient(of_data, x)
    return weighted([(1.0, s), (w, gradient)])
