"""What log-likelihoods are used for: classification, and three answers to "does x belong to this law?".

Classification. With the log-likelihood of x under each class (class-conditional scores, or one score with a label),

    p(c | x) = p(x | c) p(c) / sum_c' p(x | c') p(c')                                               (Bayes).

``likelihood_bound`` may stand for log p(x | c), with one key for all classes so that they share times and noise (Li et
al. 2023, "Your diffusion model is secretly a zero-shot classifier").

Anomaly scores, the larger the stranger, each with a case in which it fails (all are tests):

    -log p(x)          the surprise. Blind where the density is high and nothing lives: the mode of N(0, I) in D
                       dimensions, at radius 0, has the highest density of all and counts as the most normal point,
                       although samples have radius sqrt(D).
    |-mean log p - H|  typicality (Nalisnick et al. 2019): samples have a surprise near the entropy H, so one too small
                       is as strange as one too large. Flags that mode. Blind to a point of the same density
                       elsewhere: where half of 200 standard deviations are 1 and half 0.1, a 14-sigma event
                       in one wide coordinate and 0 in all the others has the density of a sample.
    ||sigma score||    at several noise levels, its distance from what samples have (Mahmood et al. 2021, "MSMA"). Flags
                       that point, since each noise level weighs the coordinates differently. Blind to what moves no
                       norm: for N(0, I) a point (sqrt(D), 0, ..., 0), one coordinate at sqrt(D) sigma, has the norm and
                       the density of a sample at every noise level.

No statistic of this list sees everything; report more than one.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jax.typing import ArrayLike

from scoresde.arrays import flatten, widened
from scoresde.checks import whole
from scoresde.score import Score, as_partial, check_score
from scoresde.sde import SDE


def class_log_posterior(log_likelihoods: ArrayLike, log_prior: ArrayLike | None = None) -> jax.Array:
    """log p(c | x) from log p(x | c), both (B, C); its argmax over axis 1 is the Bayes classifier.

    Args:
        log_likelihoods: (B, C) in nats, for example the ``log_prob`` or ``bound`` of every class, stacked on axis 1.
        log_prior: (C,) logarithms of p(c), normalised here; by default all classes are equal.

    Raises:
        ValueError: shapes that do not belong together.

    >>> jnp.exp(class_log_posterior([[-7.0, -7.0, -jnp.inf]])).tolist()
    [[0.5, 0.5, 0.0]]
    """
    log_likelihoods = jnp.asarray(log_likelihoods, float)
    if log_likelihoods.ndim != 2 or log_likelihoods.shape[1] < 2:
        raise ValueError(f"log_likelihoods must have shape (B, C) with C >= 2, got {log_likelihoods.shape}")
    log_prior = jnp.zeros(log_likelihoods.shape[1]) if log_prior is None else jnp.asarray(log_prior, float)
    if log_prior.shape != log_likelihoods.shape[1:]:
        raise ValueError(f"log_prior must have shape {log_likelihoods.shape[1:]}, got {log_prior.shape}")
    return jax.nn.log_softmax(log_likelihoods + log_prior[None], axis=1)


@dataclasses.dataclass(frozen=True)
class Typicality:
    """The outcome of ``typicality_test``.

    Attributes:
        statistic: (G,) |-mean log-density - entropy| of each group, in nats.
        threshold: the statistic that a share alpha of groups of real data exceeds.
        atypical: (G,) statistic > threshold.
        p_value: (G,) share of the bootstrap groups whose statistic is at least as large (at least 1/(bootstraps + 1)).
        entropy: the estimate of H, the mean surprise of the first half of the reference, in nats.
    """

    statistic: np.ndarray
    threshold: float
    atypical: np.ndarray
    p_value: np.ndarray
    entropy: float


def typicality_test(
    key: jax.Array,
    reference: ArrayLike,
    log_prob: ArrayLike,
    *,
    alpha: float = 0.01,
    bootstraps: int = 10_000,
) -> Typicality:
    """Test groups of examples for typicality (Nalisnick et al. 2019, algorithm 1).

    Half of the reference estimates the entropy; groups drawn with replacement from the other half give the threshold,
    so that an entropy known only roughly makes the threshold larger and not the test wrong.

    Args:
        key: random key of the bootstrap and of the halves.
        reference: (n,) log-densities of real data that did not train the model, n >= 4.
        log_prob: (G, M) log-densities of G groups of M examples each; (G, 1) tests single examples.
        alpha: share of groups of real data called atypical, in (0, 1).
        bootstraps: groups drawn for the threshold; 1/alpha is too few.

    Raises:
        ValueError: shapes or settings out of range, or a log-density of the reference that is not finite.
    """
    reference, log_prob = np.asarray(reference, np.float64), np.asarray(log_prob, np.float64)
    if reference.ndim != 1 or len(reference) < 4 or not np.all(np.isfinite(reference)):
        raise ValueError(f"reference must hold at least 4 finite log-densities (n,), got shape {reference.shape}")
    if log_prob.ndim != 2 or not log_prob.size:
        raise ValueError(f"log_prob must have shape (G, M), groups by examples, got {log_prob.shape}")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be in (0, 1), got {alpha!r}")
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    first, second = np.array_split(rng.permutation(reference), 2)
    entropy = -float(np.mean(first))
    drawn = np.empty(whole("bootstraps", bootstraps))
    for i in range(len(drawn)):  # one group at a time: memory does not grow with M
        drawn[i] = np.mean(rng.choice(second, log_prob.shape[1]))
    drawn = np.sort(np.abs(-drawn - entropy))
    statistic = np.abs(-np.mean(log_prob, axis=1) - entropy)
    threshold = float(np.quantile(drawn, 1 - alpha))
    larger = len(drawn) - np.searchsorted(drawn, statistic, side="left")
    return Typicality(statistic, threshold, ~(statistic <= threshold), (larger + 1) / (len(drawn) + 1), entropy)


def score_norms(sde: SDE, score: Score, x: ArrayLike, times: ArrayLike) -> jax.Array:
    """||sigma_t score(alpha_t x, t)||/sqrt(D) at L times, (B, L): x scaled as at time t, no noise added.

    Mahmood et al., "Multiscale score matching for out-of-distribution detection" (2021), section 3, for any SDE.

    Args:
        sde: the SDE.
        score: ``score(x, t)`` with t a scalar.
        x: (B, *event).
        times: (L,) in [t_min, t_max], for example a ``log_snr_grid``.

    Raises:
        ValueError: x without event axes, or times outside [t_min, t_max].
    """
    x, times = widened(jnp.asarray(x, jnp.result_type(float, x))), np.asarray(times, np.float64)
    if x.ndim < 2:
        raise ValueError(f"x must have shape (B, *event) with at least one event axis, got {x.shape}")
    slack = 1e-6 * sde.t_max
    if times.ndim != 1 or not times.size or times.min() < sde.t_min - slack or times.max() > sde.t_max + slack:
        raise ValueError(
            f"times (L,) must lie in [t_min, t_max] = [{sde.t_min:g}, {sde.t_max:g}], got {times.tolist()}"
        )
    times = np.clip(times, sde.t_min, sde.t_max)
    return _score_norms(sde, as_partial(score), x, jnp.asarray(times, x.dtype))


@jax.jit
def _score_norms(sde: SDE, score: Partial, x: jax.Array, times: jax.Array) -> jax.Array:
    def norm(t: jax.Array) -> jax.Array:
        x_t = sde.alpha(t) * x
        return sde.sigma(t) * jnp.linalg.norm(flatten(check_score(score(x_t, t), x_t)), axis=1)

    return jax.lax.map(norm, times).T / math.sqrt(math.prod(x.shape[1:]))


def mahalanobis(reference: ArrayLike, values: ArrayLike) -> np.ndarray:
    """The distance of values (B, L) from the mean of reference (n, L) in units of its covariance: (B,).

    With the logarithms of ``score_norms`` as features this is the anomaly score of the third line above. For Gaussian
    features its square has a chi-squared law with L degrees of freedom.

    Raises:
        ValueError: shapes that do not belong together, or n <= L.
    """
    reference, values = np.asarray(reference, np.float64), np.asarray(values, np.float64)
    if reference.ndim != 2 or values.ndim != 2 or values.shape[1] != reference.shape[1]:
        raise ValueError(f"reference (n, L) and values (B, L) must agree, got {reference.shape} and {values.shape}")
    if len(reference) <= reference.shape[1]:
        raise ValueError(f"reference must hold more than L = {reference.shape[1]} examples, got {len(reference)}")
    mean = np.mean(reference, axis=0)
    _, scale, axes = np.linalg.svd((reference - mean) / math.sqrt(len(reference) - 1), full_matrices=False)
    kept = scale > scale[0] * 1e-7  # directions in which the reference does not vary say nothing
    return np.linalg.norm((values - mean) @ axes[kept].T / scale[kept], axis=1)
