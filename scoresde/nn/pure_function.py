"""A network as a pure function: the one place where a module is split into parameters and program and merged again."""

import dataclasses
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


@dataclasses.dataclass(frozen=True, eq=False)
class PureFunction:
    """The program of a network. Those of networks alike are equal, whatever their parameters: ``jit`` compiles once.

    Attributes:
        graph: the module without its variables.
        paths: where they were.
        fixed: the paths of those that are not cast.
        dtype: what the others are cast to.
    """

    graph: nnx.GraphDef[Any]
    paths: tuple[tuple[Any, ...], ...]
    fixed: frozenset[tuple[Any, ...]]
    dtype: DTypeLike

    def __post_init__(self) -> None:
        try:
            known = hash(self._parts())
        except TypeError:  # a module that holds something unhashable equals itself alone
            known = id(self)
        object.__setattr__(self, "_hash", known)  # once: every call of a jitted function asks for it

    def _parts(self) -> tuple[Any, ...]:
        return self.graph, self.paths, self.fixed, jnp.dtype(self.dtype)

    def __hash__(self) -> int:
        return self._hash  # pyright: ignore[reportAttributeAccessIssue]

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, PureFunction) and hash(self) == hash(other) and self._parts() == other._parts()

    def __call__(
        self,
        params: Params,
        x: jax.Array,
        c: jax.Array,
        *,
        key: jax.Array | None = None,
        labels: jax.Array | None = None,
        cond: Any = None,
    ) -> jax.Array:
        """What the network itself would give with these parameters."""
        options = {name: value for name, value in (("labels", labels), ("cond", cond)) if value is not None}
        kept = {path: _get(params, path) for path in self.paths}
        variables = [(path, nnx.Param(v if path in self.fixed else narrow(v, self.dtype))) for path, v in kept.items()]
        return nnx.merge(self.graph, nnx.from_flat_state(variables))(x, c, key=key, **options)


def functional(net: nnx.Module, *, dtype: DTypeLike = jnp.float32) -> tuple[Apply, Params]:
    """Split a module into ``apply(params, x, c, *, key=None, labels=None, cond=None)`` and ``params``.

    With ``dtype`` bfloat16, ``apply`` casts the parameters (but those marked ``fixed``, such as stored frequencies) and
    computes in it; the parameters themselves, their gradients and the result stay as they are.

    The parameters are a nested plain dict with string keys (a list's places become "0", "1", ...), so that optimisers,
    checkpoints and JAX see an ordinary pytree. ``apply`` gives what ``net`` itself would with these parameters; it is
    hashable, and equal for networks that differ in them alone.

    Raises:
        ValueError: the module holds variables other than ``nnx.Param``: random state, running statistics.
    """
    graph, state = nnx.split(net)
    leaves = nnx.to_flat_state(state)
    for path, variable in leaves:
        if type(variable) is not nnx.Param:
            name = ".".join(map(str, path))
            raise ValueError(f"a network may hold nnx.Param only, got {type(variable).__name__} at {name}")
    fixed = frozenset(path for path, variable in leaves if variable.get_metadata().get("fixed"))

    params: Params = {}
    for path, variable in leaves:
        *branch, leaf = map(str, path)
        node = params
        for name in branch:
            node = node.setdefault(name, {})
        node[leaf] = variable[...]
    return PureFunction(graph, tuple(path for path, _ in leaves), fixed, dtype), params


def _get(params: Params, path: Sequence[Any]) -> Any:
    node: Any = params
    for name in path:
        node = node[str(name)]
    return node
