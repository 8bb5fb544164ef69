"""Blocks one after another, h <- call(block, h, key, extra), computed again in the backward pass or compiled once.

Blocks whose parameters have the same names and shapes are the same program with other numbers. With ``scan`` each run
of them is one loop over their stacked parameters: however many there are, one is compiled. The parameters themselves
stay as they are, a list of blocks; stacking copies them once a call, and each h of a run.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

Call = Callable[[Any, jax.Array, Any, Any], jax.Array]
"""(block, h, key or None, extra or None) -> h."""


def through(
    blocks: Sequence[Any],
    call: Call,
    h: jax.Array,
    keys: Sequence[jax.Array | None],
    extras: Sequence[Any] | None = None,
    *,
    remat: bool,
    scan: bool,
) -> list[jax.Array]:
    """What h is after each of the blocks.

    Args:
        blocks: modules, or tuples of modules, built alike but for their sizes.
        call: what a block does to h.
        h: what the first block is given.
        keys: a random key for each block, or None for each.
        extras: an array (or a tree of them) for each block, None for none.
        remat: compute the blocks again in the backward pass instead of remembering their insides.
        scan: loop over blocks that follow each other and are alike, with alike extras.
    """
    wrap: Callable[..., Any] = jax.checkpoint if remat else lambda function: function
    states = []
    for graph, rows in _runs(blocks, keys, [None] * len(blocks) if extras is None else extras, scan=scan):

        def step(h: jax.Array, row: Any, graph: Any = graph) -> tuple[jax.Array, jax.Array]:
            block, key, extra = row
            h = call(nnx.merge(graph, block), h, key, extra)
            return h, h

        if len(rows) == 1:
            h, _ = wrap(step)(h, rows[0])
            states.append(h)
        else:
            h, found = jax.lax.scan(wrap(step), h, jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows))
            states += list(found)
    return states


def _runs(blocks: Any, keys: Any, extras: Any, *, scan: bool) -> Iterator[tuple[Any, list[Any]]]:
    """The graph of the first block and the (parameters, key, extra) of each block of every run, of one without scan."""
    rows = [(*nnx.split(block), key, extra) for block, key, extra in zip(blocks, keys, extras, strict=True)]

    def kind(i: int) -> Any:
        _, state, _, extra = rows[i]
        leaves = jax.tree_util.tree_leaves_with_path((state, extra))
        return [(jax.tree_util.keystr(path), leaf.shape, leaf.dtype) for path, leaf in leaves] if scan else i

    for _, run in groupby(range(len(rows)), kind):
        (graph, *first), *others = [rows[i] for i in run]
        yield graph, [tuple(first), *(tuple(row) for _, *row in others)]
