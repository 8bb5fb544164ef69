"""Where the examples of a trajectory stopped being finite.

A value that is not finite stays in the history and the state: the first such state was made with the score asked in
the row before it. The loop is linear element by element, so the elements lost are those that the score (or the step, by
overflow) lost.
"""

import dataclasses

import jax
import numpy as np

from scoresde.solvers.table import Table


@dataclasses.dataclass(frozen=True)
class NonFinite:
    """The first state of each example that is not finite; NaN for examples that are finite throughout.

    Attributes:
        time: (B,) the time of that state.
        asked: (B,) the time at which the score was asked last before it; NaN too for a start that is not finite.
        message: one line for people about the first such example, empty if there is none.
    """

    time: np.ndarray
    asked: np.ndarray
    message: str


def first_nonfinite(table: Table, path: jax.Array) -> NonFinite:
    """Where each example of ``path`` (num_evals + 1, B, *event) stopped being finite, on the host.

    Args:
        table: the table that was run.
        path: what ``sample`` or ``integrate`` returned with ``trajectory=True``.

    Raises:
        ValueError: the path is not one of this table.
    """
    states = np.asarray(path)
    if states.ndim < 2 or len(states) != table.num_evals + 1:
        raise ValueError(f"path must have shape ({table.num_evals + 1}, B, *event), got {states.shape}")
    states = states.reshape(*states.shape[:2], -1)
    lost = ~np.all(np.isfinite(states), axis=2)
    row, failed = np.argmax(lost, axis=0), np.any(lost, axis=0)
    time = np.where(failed, np.asarray(table.times)[row], np.nan)
    asked = np.where(failed & (row > 0), np.asarray(table.look.t)[row - 1], np.nan)
    if not np.any(failed):
        return NonFinite(time, asked, "")
    i = int(np.argmax(failed))
    x, before = states[row[i], i], np.max(np.abs(states[row[i] - 1, i]))
    cause = (
        f"the score was asked at t = {asked[i]:.4g}, max |x| was {before:.3g} before" if row[i] else "as it was given"
    )
    message = (
        f"{np.sum(failed)} of {len(failed)} examples (first: {i}) are not finite: example {i} at t = {time[i]:.4g} has "
        f"{np.sum(np.isnan(x))} nan and {np.sum(np.isinf(x))} inf of {x.size} elements; {cause}"
    )
    return NonFinite(time, asked, message)
