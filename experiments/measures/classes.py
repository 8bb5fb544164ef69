"""What a model that knows classes is good for: sheets of samples of each class, and the classifier that it implies.

By Bayes' rule p(c | x) = p(x | c) p(c) / sum p(x | c') p(c'), with p(c) the share of each class in the training part,
and the variational bound, of one noise for all classes, for log p(x | c) (``ss.evaluation``). Guidance of weight
w takes the score s(x, none) + w (s(x, c) - s(x, none)): 1 is the model's own, larger ones show each class more clearly.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

import scoresde as ss
from experiments.data.dataset import Data
from experiments.measures.jobs import Arrays, Work, rows, spread_score
from experiments.measures.likelihoods import Settings, likelihood
from experiments.measures.samples import draw
from experiments.models.build import Model
from experiments.models.values import Objective
from scoresde.likelihood.dequantisation import dequantise

EACH, WEIGHTS, EVALUATIONS, DRAWS = 8, (1.0, 3.0), 40, 32


def known(objective: Objective, data: Data, count: int | None) -> np.ndarray | None:
    """The classes of the first ``count`` held-out examples, or of all; None for a model that knows none."""
    if objective.condition == "none" or data.held_out_labels is None:
        return None
    return data.held_out_labels[:count]


def evaluate(
    key: jax.Array,
    key_classifier: jax.Array,
    data: Data,
    model: Model,
    score: Partial,
    x: np.ndarray,
    known: np.ndarray,
    settings: Settings,
    work: Work,
) -> dict[str, Any]:
    """Of examples x (n, *event) of ``known`` classes (n,): the likelihood without the class, the classifier implied.

    ``key`` is that of the likelihood given the class, so that both are of the same noise.
    """
    assert data.train_labels is not None and data.labels is not None and data.labels.classes
    count = 1 + np.bincount(data.train_labels, minlength=data.labels.classes)  # so that no class is impossible
    _, alone = likelihood(key, data, model, score, x, settings, work, name="unconditional")
    posterior = classifier(key_classifier, data, model, score, count / count.sum(), x, work)
    return {"unconditional": alone, "classifier": accuracy(posterior, known)}


def sheets(key: jax.Array, data: Data, model: Model, score: Partial, work: Work) -> Arrays:
    """``classes_W`` (classes, EACH, *event) in raw units for each weight W of guidance, from the same noise."""
    assert data.labels is not None and data.labels.classes
    count = data.labels.classes
    table = ss.best_solver(model.sde, EVALUATIONS, sigma_data=model.precond.sigma_data)
    classes, found = np.repeat(np.arange(count, dtype=np.int32), EACH), {}
    for w in WEIGHTS:
        guided = ss.guidance.classifier_free(score, score, w)
        x, _ = draw(f"classes_{w:g}", key, data, guided, table, len(classes), work, classes)
        found[f"classes_{w:g}"] = x.reshape(count, EACH, *data.event_shape)
    return found


def classifier(
    key: jax.Array, data: Data, model: Model, score: Partial, shares: np.ndarray, x: np.ndarray, work: Work
) -> np.ndarray:
    """log p(c | x) (n, classes) of examples x (n, *event) in raw units; ``shares`` (classes,) are p(c)."""
    key_noise, key_bound = jax.random.split(key)
    spread, sigma_data = spread_score(score), model.precond.sigma_data

    def job(first: int, size: int) -> Arrays:
        raw = rows(x, first, size)
        if data.bin_width is None:
            y = data.to_model(raw)
        else:
            y, _ = dequantise(key_noise, raw, bin_width=data.bin_width, shift=data.shift, first=first)
        options: dict[str, Any] = {"draws": DRAWS, "repeats": 1, "sigma_data": sigma_data, "first": first}
        bounds = [
            ss.likelihood_bound(key_bound, model.sde, ss.given(spread, jnp.full(size, c)), y, **options).bound
            for c in range(len(shares))
        ]
        return {
            "log_posterior": np.asarray(ss.evaluation.class_log_posterior(jnp.stack(bounds, axis=1), np.log(shares)))
        }

    return work.run("classifier", job, len(x))["log_posterior"]


def accuracy(log_posterior: np.ndarray, classes: np.ndarray) -> dict[str, float]:
    """How often the most probable class is the true one, with its standard error."""
    mean, error = ss.mean_with_error(jnp.asarray(log_posterior.argmax(axis=1) == classes, float))
    return {"accuracy": mean, "std_error": error, "examples": len(classes), "draws": DRAWS}
