"""What an edit is given, a Job in model units, and what it gives: stages in raw units and figures.

An edit is done by ``Job.run``, a batch at a time: a function (first, size) -> arrays (size, ...) whose row i depends on
example first + i and that number alone.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

import scoresde as ss
from experiments.cli.errors import InputError
from experiments.data.dataset import Data
from experiments.figures.stages import Stage
from experiments.measures.jobs import Arrays, Work, rows
from experiments.models.build import Model

TOLERANCE = 1e-3  # of the probability flow, relative and absolute


@dataclasses.dataclass(frozen=True)
class Job:
    """What an edit needs: the examples, the model, and the settings of the command line."""

    key: jax.Array
    flags: Any
    named: dict[str, int | None]
    """The classes that --label, --attribute and --against name."""
    data: Data
    """With its examples."""
    model: Model
    score: Partial
    raw: np.ndarray
    """(n, *event), what is edited."""
    numbers: list[int]
    """What each example is called."""
    classes: np.ndarray | None
    """(n,) of a model that knows classes."""
    measured: tuple[np.ndarray, np.ndarray] | None
    """Examples (m, *event) in raw units from which a direction is measured, and which of them (m,) have the class."""
    table: Callable[[ss.SDE], ss.Table]
    """The table of --solver for an SDE that ends where it is to begin."""
    work: Work

    @property
    def sde(self) -> ss.SDE:
        return self.model.sde

    def run(self, edit: Callable[[int, int], Arrays], count: int | None = None, name: str = "edit") -> Arrays:
        """The arrays of all examples, or of ``count`` of something else."""
        return self.work.run(name, edit, len(self.raw) if count is None else count)

    def x(self, first: int, size: int) -> jax.Array:
        """Examples first, ..., first + size - 1 in model units."""
        return self.data.to_model(rows(self.raw, first, size))

    @property
    def flow(self) -> dict[str, Any]:
        """How the probability flow is solved."""
        return {"rtol": TOLERANCE, "atol": TOLERANCE, "sigma_data": self.model.precond.sigma_data}

    def of_class(self, size: int) -> Partial:
        """The score of so many examples of the class --label, with --guidance; without one that of all of them."""
        label, w = self.named["label"], self.flags.guidance
        if label is None:
            return self.score
        return ss.given(ss.guidance.classifier_free(self.score, self.score, w), jnp.full(size, label))

    def stage(self, name: str, title: str, detail: str, y: Any) -> Stage:
        """Of points y (m, *event) in model units; integers are rounded to their levels except under noise."""
        return Stage(name, title, detail, self.data.from_model(np.asarray(y), round_levels=name != "noisy"))

    def before(self) -> Stage:
        shown = ", ".join(map(str, self.numbers))
        return Stage("before", "Before", f"examples {shown}", self.raw)


Result = tuple[list[Stage], dict[str, Any]]


def succeeded(flow: ss.Flow) -> ss.Flow:
    """The flow, or an InputError if an example did not reach its end."""
    if flow.message:
        raise InputError(f"the probability flow: {flow.message}")
    return flow
