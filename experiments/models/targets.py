"""What a run can learn, and the functions that ``build`` makes it of."""

from collections.abc import Callable
from typing import Any, NamedTuple

from experiments.models import classifier_objective, networks, score_objective


class Target(NamedTuple):
    """How one of them is set up."""

    preset: Callable[..., networks.Preset]
    """(data, word of --network or None) -> how it is trained."""
    check: Callable[..., None]
    """(objective, data): InputError for flags that do not go together."""
    network: Callable[..., Any]
    """(architecture, objective, data, key)"""
    minimised: Callable[..., score_objective.Minimised]
    """(objective, data, preconditioner, apply, law of the noise levels)"""
    initial: Callable[..., tuple[Any, Any]]
    """(objective, data, sde, parameters) -> all parameters, and what training carries along."""
    waves: Callable[..., dict[str, Any]]
    """(data, word of --network) -> the waves by which the network sees its input."""


TARGETS = {
    "score": Target(
        networks.preset,
        score_objective.check,
        networks.network,
        score_objective.minimised,
        score_objective.initial,
        networks.waves,
    ),
    "class": Target(
        classifier_objective.preset,
        classifier_objective.check,
        classifier_objective.network,
        classifier_objective.minimised,
        classifier_objective.initial,
        lambda data, word: {},
    ),
}
