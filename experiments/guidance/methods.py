"""The words of ``experiments.guide --method``, each a function (sources, w) -> score, called ``score(x, t, class)``.

Everywhere w = 0 is without the class (or the weaker score alone) and w = 1 what the model or Bayes' rule has, but for
cfg++, whose w is the strength of its paper, in [0, 1].
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np

import scoresde as ss

MethodWord = Literal["classifier-free", "interval", "rescaled", "projected", "cfg++", "autoguidance", "classifier"]


class Sources(NamedTuple):
    """What guidance is made of; None where the method does not take it."""

    sde: ss.SDE
    score: Any
    """score(x, t, class), and score(x, t) without the class."""
    other: Any
    """What is turned away from: the score without the class, or that of a negative class."""
    log_probs: Any
    """(x, t) -> log p_t(c | x), of a classifier."""
    weaker: Any
    """score(x, t, class) of a weaker model."""
    interval: tuple[float, float]
    """Of the log-SNR, where guidance acts."""
    grid: np.ndarray
    """The times of the solver."""


class Method(NamedTuple):
    """A word of --method."""

    guided: Callable[[Sources, float], Any]
    needs: str = "a model of classes"
    """Or a classifier, a weaker model, ddim."""


def _free(s: Sources, w: float) -> Any:
    return ss.guidance.classifier_free(s.score, s.other, w)


METHODS: dict[MethodWord, Method] = {
    "classifier-free": Method(_free),
    "interval": Method(lambda s, w: ss.guidance.interval(s.sde, _free(s, w), s.score, *s.interval)),
    "rescaled": Method(lambda s, w: ss.guidance.rescaled(s.sde, _free(s, w), s.score)),
    "projected": Method(lambda s, w: ss.guidance.projected(s.sde, s.score, s.other, w)),
    "cfg++": Method(lambda s, w: ss.guidance.cfg_plus_plus(s.sde, s.score, s.other, s.grid, w), "ddim"),
    "autoguidance": Method(lambda s, w: ss.guidance.autoguidance(s.score, s.weaker, w), "a weaker model"),
    "classifier": Method(
        lambda s, w: ss.guidance.classifier(s.sde, s.score, ss.guidance.of_class(s.log_probs), w=w), "a classifier"
    ),
}
