"""A network as a pure function: the one place where a module is split into parameters and program and merged again."""

from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.core
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from scoresde.nn.layers.layers import narrow

Params = dict[str, Any]
"""A nested plain dict of arrays with string keys."""


class Apply(Protocol):
    """A network as a pure function."""

    def __call__(
        self,
        params: Params,
        x: jax.Array,
        c: jax.Array,
        *,
        key: jax.Array | None = None,
        labels: jax.Array | None = None,
        cond: Any = None,
    ) -> jax.Array: ...


def functional(net: nnx.Module, *, dtype: DTypeLike = jnp.float32) -> tuple[Apply, Params]:
    """Split a module into ``apply(params, x, c, *, key=None, labels=None, cond=None)`` and ``params``.

    With ``dtype`` bfloat16, ``apply`` casts the parameters (but those marked ``fixed``, such as stored frequencies) and
    computes in it; the parameters themselves, their gradients and the result stay as they are.

    The parameters are a nested plain dict with string keys (a list's places become "0", "1", ...), so that optimisers,
    checkpoints and JAX see an ordinary pytree. ``apply`` gives what ``net`` itself would with these parameters.

    Raises:
        ValueError: the module holds variables other than ``nnx.Param``: random state, running statistics.
    """
    graph, state = nnx.split(net)
    paths = [path for path, _ in nnx.to_flat_state(state)]
    fixed = {path for path, variable in nnx.to_flat_state(state) if variable.get_metadata().get("fixed")}
    for path, variable in nnx.to_flat_state(state):
        if type(variable) is not nnx.Param:
            name = ".".join(map(str, path))
            raise ValueError(f"a network may hold nnx.Param only, got {type(variable).__name__} at {name}")

    def apply(
        params: Params,
        x: jax.Array,
        c: jax.Array,
        *,
        key: jax.Array | None = None,
        labels: jax.Array | None = None,
        cond: Any = None,
    ) -> jax.Array:
        options = {name: value for name, value in (("labels", labels), ("cond", cond)) if value is not None}
        kept = {path: _get(params, path) for path in paths}
        variables = [(path, nnx.Param(v if path in fixed else narrow(v, dtype))) for path, v in kept.items()]
        return nnx.merge(graph, nnx.from_flat_state(variables))(x, c, key=key, **options)

    params: Params = {}
    for path, variable in nnx.to_flat_state(state):
        *branch, leaf = map(str, path)
        node = params
        for name in branch:
            node = node.setdefault(name, {})
        node[leaf] = variable[...]
    return apply, params


def _get(params: Params, path: Sequence[Any]) -> Any:
    node: Any = params
    for name in path:
        node = node[str(name)]
    return node
