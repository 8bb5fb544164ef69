"""A fixed-grid solver is a table of numbers, and one loop runs them all.

Every solver of the reverse SDE or the probability flow that is linear in the state, in the scores seen so far and in
fresh noise is a list of rows. Row k commits a state, chooses where to look, and looks there once:

    base  <- a_k base + sum_j A_kj h_j + s_k z_k          (commit; z_k fresh standard normal noise)
    point <- b_k base + sum_j B_kj h_j
    h     <- [c_k point + d_k score(point, t_k), h ...]   (one network evaluation; h_0 is the newest)

and one more commit ends the table. c and d choose what the history holds: by Tweedie's formula D = E[x_0 | x_t] is
(c, d) = (1/alpha, sigma^2/alpha), the noise is (0, -sigma), the score is (0, 1). Two registers (base and point) are
enough for predictor-corrector schemes; R rows take exactly R network evaluations.

A commit marked adaptive is a Langevin step whose size follows the norms (Song et al. 2021, algorithms 4 and 5): with
m = ||z||^2 / ||h_0||^2 of each example, its sum over the history is multiplied by m and its noise by sqrt(m).
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jax.typing import ArrayLike

from scoresde.angle import rho_of
from scoresde.arrays import example_keys, flatten, normal_per_example, number, on_host, widened
from scoresde.checks import examples
from scoresde.grids import check_grid
from scoresde.score import Score, as_partial, check_score
from scoresde.sde import SDE
from scoresde.solvers.brownian import Cells, path_normal


@partial(jax.tree_util.register_dataclass, meta_fields=[], data_fields=["look", "commit", "start_std"])
@dataclasses.dataclass(frozen=True)
class Table:
    """The coefficients of a solver, float64 NumPy arrays: a pytree, to be printed, stored, ``vmap``ped or optimised.

    Attributes:
        look: R rows: ``t`` (R,) times of evaluation, ``b`` (R,), ``B`` (R, H), ``c`` (R,), ``d`` (R,).
        commit: R + 1 rows: ``t`` times of the committed states, ``a``, ``A`` (R + 1, H), ``s``, ``adaptive`` (0 or 1).
        start_std: standard deviation of the prior at the first time.
    """

    look: "Look"
    commit: "Commit"
    start_std: Any

    @property
    def num_evals(self) -> int:
        """The exact number of network evaluations."""
        return self.look.t.shape[-1]

    @property
    def times(self) -> np.ndarray:
        """The time of each committed state, as returned with ``trajectory=True``: (num_evals + 1,)."""
        return self.commit.t


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Look:
    """Where each row evaluates the score and what it keeps; see ``Table``."""

    t: Any
    b: Any
    B: Any
    c: Any
    d: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Commit:
    """How each row moves the state; see ``Table``."""

    t: Any
    a: Any
    A: Any
    s: Any
    adaptive: Any


@dataclasses.dataclass(frozen=True)
class Nodes:
    """alpha, sigma and log-SNR at the n + 1 times of a checked grid, float64 on the host."""

    t: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray
    log_snr: np.ndarray

    @property
    def rho(self) -> np.ndarray:
        """sigma/alpha."""
        return rho_of(self.log_snr)

    @classmethod
    def of(cls, sde: SDE, grid: ArrayLike) -> "Nodes":
        return cls.at(sde, check_grid(sde, grid))

    @classmethod
    def at(cls, sde: SDE, t: np.ndarray) -> "Nodes":
        return cls(t, *on_host(lambda t: (sde.alpha(t), sde.sigma(t), sde.log_snr(t)), t))

    def __getitem__(self, part: slice) -> "Nodes":
        return Nodes(self.t[part], self.alpha[part], self.sigma[part], self.log_snr[part])


def stages(nodes: Nodes, look: Look, commit: Commit) -> Table:
    """The table of n steps of m rows, each of which looks and then commits: arrays (n, m) and, for A and B, (n, m, H).

    Times of the looks and of the states committed are given; the first state is that of the first node.
    """
    rows, history = np.size(look.t), np.shape(look.B)[-1]

    def flat(v: np.ndarray) -> np.ndarray:
        return np.reshape(v, (rows, *np.shape(v)[2:]))

    first = Commit(nodes.t[0], 1.0, np.zeros(history), 0.0, 0.0)  # leaves the state as it is
    commit = jax.tree.map(lambda one, v: np.concatenate([np.asarray(one)[None], flat(v)]), first, commit)
    return Table(jax.tree.map(flat, look), commit, nodes.sigma[0])


def single_step(nodes: Nodes, *, a: ArrayLike, A: ArrayLike, s: ArrayLike, c: ArrayLike, d: ArrayLike) -> Table:
    """The table of n steps that each look once, where they start: x' = a x + sum_j A_j h_j + s z, h = c x + d score.

    Coefficients are (n,) or scalars, A also (n, H) over the newest and older values.
    """
    n = len(nodes.t) - 1
    a, s, c, d = (np.broadcast_to(np.asarray(v, np.float64), (n,))[:, None] for v in (a, s, c, d))
    A = np.asarray(A, np.float64)
    A = (A if A.ndim == 2 else np.broadcast_to(A, (n,))[:, None])[:, None]
    look = Look(nodes.t[:-1, None], np.ones((n, 1)), np.zeros_like(A), c, d)
    return stages(nodes, look, Commit(nodes.t[1:, None], a, A, s, np.zeros((n, 1))))


def sample(
    key: jax.Array,
    score: Score,
    table: Table,
    shape: tuple[int, ...],
    *,
    noise: Cells | None = None,
    trajectory: bool = False,
    first: ArrayLike = 0,
) -> jax.Array:
    """Draw the prior N(0, sigma^2 I) at the table's first time and run the table.

    Args:
        key: random key. Example i depends on (key, i) alone, not on the batch size or its neighbours.
        score: ``score(x, t)`` with x of shape (B, *event) and t a scalar.
        table: a solver's table, such as ``ss.ddim(sde, ss.log_snr_grid(sde, 50))``.
        shape: (B, *event).
        noise: None for fresh noise in each row, or ``ss.solvers.brownian_path(sde)`` to take it from one Brownian path
            per example, shared by all tables of that SDE.
        trajectory: return every committed state instead, (num_evals + 1, B, *event), at ``table.times``.
        first: number of the first example: row i is example first + i of ``key``, as in a larger batch.

    Returns:
        (B, *event), at the table's last time.
    """
    key_prior, key_noise = jax.random.split(key)
    first = number(first)
    prior = normal_per_example(example_keys(key_prior, shape[0], first), tuple(shape[1:]))
    start_std = jnp.asarray(check_table(table).start_std, prior.dtype)
    return integrate(key_noise, score, table, start_std * prior, noise=noise, trajectory=trajectory, first=first)


def integrate(
    key: jax.Array,
    score: Score,
    table: Table,
    x: ArrayLike,
    *,
    noise: Cells | None = None,
    trajectory: bool = False,
    first: ArrayLike = 0,
) -> jax.Array:
    """Run the table from the state ``x`` (B, *event) at its first time; the rest as for ``sample``.

    Compiled once per score function, shape of ``x`` and shape of the table: the SDE, grid and solver are only numbers.
    Arrays inside a ``jax.tree_util.Partial`` score (as made by this library) are arguments too.
    """
    x = widened(jnp.asarray(x, jnp.result_type(float, x)))
    examples(x)
    cells = None if noise is None else noise(check_table(table).times)
    return _integrate(key, as_partial(score), check_table(table), x, cells, number(first), trajectory)


def check_table(table: Table) -> Table:
    """The table, or a ValueError if it is none."""
    if not isinstance(table, Table):
        raise ValueError(f"table must be a solver's table such as ss.ddim(sde, grid), got {type(table).__name__}")
    return table


@partial(jax.jit, static_argnames="trajectory")
def _integrate(
    key: jax.Array, score: Partial, table: Table, x: jax.Array, cells: Any, first: ArrayLike, trajectory: bool
) -> jax.Array:
    keys = example_keys(key, x.shape[0], first)
    table = jax.tree.map(lambda v: jnp.asarray(v, x.dtype), table)
    index = jnp.arange(table.num_evals + 1)
    rows = jax.tree.map(lambda v: v[:-1], ((index, cells), table.commit))
    last = jax.tree.map(lambda v: v[-1], ((index, cells), table.commit))

    def body(state: tuple[jax.Array, jax.Array], row: Any) -> Any:
        ((k, cell), commit), look = row
        base, history = state
        base = _commit(keys, k, cell, commit, base, history)
        point = look.b * base + _combine(look.B, history)
        x = point.reshape(shape)
        h = look.c * point + look.d * flatten(check_score(score(x, look.t), x))
        return (base, jnp.concatenate([h[None].astype(x.dtype), history[:-1]])), base if trajectory else None

    shape, x = x.shape, flatten(x)
    start = x, jnp.zeros((table.commit.A.shape[-1], *x.shape), x.dtype)
    (base, history), path = jax.lax.scan(body, start, (rows, table.look))
    (k, cell), commit = last
    base = _commit(keys, k, cell, commit, base, history)
    return jnp.concatenate([path, base[None]]).reshape(-1, *shape) if trajectory else base.reshape(shape)


def _combine(coefficients: jax.Array, history: jax.Array) -> jax.Array:
    return sum((coefficients[j] * history[j] for j in range(1, len(history))), coefficients[0] * history[0])


def _normal(keys: jax.Array, k: jax.Array, cells: Any, x: jax.Array) -> jax.Array:
    """The noise of row k like ``x``: example i's drawn from (keys[i], k), or from its path where ``cells`` differ."""

    def fresh() -> jax.Array:
        return normal_per_example(jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, k), x.shape[1:], x.dtype)

    if cells is None:
        return fresh()
    on_path = jax.vmap(partial(path_normal, cells=cells, shape=x.shape[1:], dtype=x.dtype))
    return jax.lax.cond(cells[1] > cells[0], lambda: on_path(keys), fresh)


def _commit(keys: jax.Array, k: jax.Array, cells: Any, row: Commit, base: jax.Array, history: jax.Array) -> jax.Array:
    """a base + sum_j A_j h_j + s z; noise is drawn only where s is not zero."""
    direction = _combine(row.A, history)

    def with_noise() -> jax.Array:
        z = _normal(keys, k, cells, base)
        noise_square, square = (jnp.sum(v**2, axis=1, keepdims=True) for v in (z, history[0]))
        m = jnp.where(row.adaptive > 0, noise_square / jnp.maximum(square, jnp.finfo(base.dtype).tiny), 1)
        return m * direction + jnp.sqrt(m) * row.s * z

    return row.a * base + jax.lax.cond(row.s != 0, with_noise, lambda: direction)
