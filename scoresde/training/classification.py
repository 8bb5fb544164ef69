"""Classifiers of noisy data: p(c | x_t) learned at random noise levels, by the cross entropy

    L = E_t~U[t_min, t_max]  w(t) E[-log p_theta(c | x_t, t)],      x_t = alpha x_0 + sigma eps.

Its least value at each t is the entropy of c given x_t, reached by the true p_t(c | x) alone, whose gradient turns the
score of p_t(x) into that of p_t(x | c) (``ss.guidance.classifier``). Times, noise, masks and weights are those of
denoising score matching (module ``loss``).

A classifier is any function (x, t) -> log p_t(c | x), (B, K), such as ``Preconditioner.classifier(network)``.

Reference: Song et al. (2021), appendix I; Dhariwal and Nichol (2021), section 4.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from scoresde.sde import SDE
from scoresde.training.loss import Noised, TimeDraw, noised, stratified
from scoresde.training.weights import Weight, noise_weight

LogProbs = Callable[[jax.Array, jax.Array], jax.Array]
"""(x (B, *event), t) -> log p_t(c | x), (B, K)."""


class Classified(NamedTuple):
    """What a batch says of a classifier at random times.

    Attributes:
        t: (B,) the times.
        importance: (B,) 1/q, q their density relative to the uniform one.
        error: (B,) -log p(c | x_t) of the true class, in nats.
        right: (B,) whether the true class is the most probable one.
    """

    t: jax.Array
    importance: jax.Array
    error: jax.Array
    right: jax.Array


def classified(log_probs: LogProbs, batch: Noised, classes: ArrayLike) -> Classified:
    """A classifier on a noised batch: the half of ``cross_entropy`` in which nothing is random.

    Args:
        log_probs: (x, t) -> (B, K).
        batch: from ``noised``.
        classes: (B,) whole numbers 0..K-1. One outside makes its error NaN.

    Raises:
        ValueError: classes or log-probabilities of another shape or type.
    """
    classes, log_p = jnp.asarray(classes), log_probs(batch.x_t, batch.t)
    if classes.shape != batch.t.shape or not jnp.issubdtype(classes.dtype, jnp.integer):
        raise ValueError(f"classes must be integers (B,) = {batch.t.shape}, got {classes.dtype} {classes.shape}")
    if log_p.ndim != 2 or log_p.shape[0] != len(classes):
        raise ValueError(f"log_probs(x, t) must return (B, K) with B = {len(classes)}, got {log_p.shape}")
    known = (classes >= 0) & (classes < log_p.shape[1])
    chosen = jnp.take_along_axis(log_p, jnp.where(known, classes, 0)[:, None], axis=1)[:, 0]
    right = known & (jnp.argmax(log_p, axis=1) == classes)
    return Classified(batch.t, batch.importance, jnp.where(known, -chosen, jnp.nan), right)


def cross_entropy(
    key: jax.Array,
    sde: SDE,
    log_probs: LogProbs,
    x: ArrayLike,
    classes: ArrayLike,
    *,
    weight: Weight = noise_weight,
    times: TimeDraw = stratified,
    mask: ArrayLike | None = None,
) -> jax.Array:
    """The loss of each example, (B,), in nats; its mean estimates L.

    Args:
        key: random key for times and noise.
        sde: the SDE.
        log_probs: (x, t) -> (B, K) with t of shape (B,); for a network, ``Preconditioner.classifier(network)``.
        x: (B, *event) data.
        classes: (B,) their classes, whole numbers 0..K-1.
        weight: w, as for ``denoising_score_matching``; ``noise_weight`` is 1 at all times.
        times: as for ``denoising_score_matching``.
        mask: shaped like x, true where a value was observed; x_t is 0 where it was not.

    Raises:
        ValueError: x, mask, classes or log-probabilities of another type or shape.
    """
    found = classified(log_probs, noised(key, sde, x, times=times, mask=mask), classes)
    return weight(sde, found.t) * found.importance * found.error
