"""Tables made from tables: one after another, lengthened to a common shape, or with noise added to some states."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jax.typing import ArrayLike

from scoresde.sde import SDE
from scoresde.solvers.table import Commit, Look, Nodes, Table, single_step


def lifted(table: Table, rows: np.ndarray, t: ArrayLike, gain: ArrayLike, noise: ArrayLike) -> Table:
    """The table whose states of these commits x become gain x + noise z, at times t."""
    one = table.commit
    commit = Commit(*(np.array(v) for v in (one.t, one.a, one.A, one.s, one.adaptive)))
    commit.t[rows] = t
    commit.a[rows] *= gain
    commit.A[rows] *= np.expand_dims(gain, -1)
    commit.s[rows] = np.hypot(gain * commit.s[rows], noise)
    return dataclasses.replace(table, commit=commit)


def padded(table: Table, *, num_evals: int = 0, history: int = 0) -> Table:
    """The same table with a longer history, and with evaluations at its end that change nothing.

    ``sample`` and ``integrate`` compile once per shape of the table: brought to one shape, all solvers, grids and SDEs
    share that compilation. Each row added costs an evaluation of the score at the result, where it must be finite.

    Args:
        num_evals: evaluations of the result; a smaller number than the table's leaves it as it is.
        history: values kept, ``table.commit.A.shape[1]`` of the result; a smaller number leaves it as it is.
    """
    rows, width = max(num_evals - table.num_evals, 0), max(history - table.commit.A.shape[1], 0)

    def longer(v: np.ndarray, value: float) -> np.ndarray:
        v = np.pad(v, ((0, 0), (0, width))) if v.ndim == 2 else v
        return np.concatenate([v, np.full((rows, *v.shape[1:]), value)])

    look, commit, end = table.look, table.commit, float(table.times[-1])
    stay = Look(end, 1.0, 0.0, 0.0, 0.0), Commit(end, 1.0, 0.0, 0.0, 0.0)
    return Table(jax.tree.map(longer, look, stay[0]), jax.tree.map(longer, commit, stay[1]), table.start_std)


def join(tables: Sequence[Table]) -> Table:
    """The tables one after another, each from the state that the one before it left, which must begin with that state.

    A table's first commit cannot depend on values, of which there are none: it is carried into the last one before it.
    """
    history = max(table.commit.A.shape[1] for table in tables)
    parts = [padded(table, history=history) for table in tables]
    for i, after in enumerate(parts[1:]):
        first = jax.tree.map(lambda v: v[:1], after.commit)
        parts[i] = lifted(parts[i], np.array([-1]), first.t, first.a, first.s)
    look = jax.tree.map(lambda *v: np.concatenate(v), *(part.look for part in parts))
    commit = jax.tree.map(lambda v, *w: np.concatenate([v, *(u[1:] for u in w)]), *(part.commit for part in parts))
    return Table(look, commit, parts[0].start_std)


def with_denoising(sde: SDE, table: Table) -> Table:
    """The table followed by one evaluation at its last time that returns E[x_0 | x_t] (Tweedie's formula)."""
    nodes = Nodes.at(sde, np.repeat(table.commit.t[-1:], 2))
    alpha, sigma = nodes.alpha[:1], nodes.sigma[:1]
    return join([table, single_step(nodes, a=0.0, A=1.0, s=0.0, c=1 / alpha, d=sigma**2 / alpha)])
