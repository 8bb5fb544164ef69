"""Which tensors of an original make which leaf of our parameters.

A ``Leaf`` says it for one leaf: the original names, their shapes as our shape implies them, and the function that makes
ours of them. The functions below yield the leaves of a layer: convolutions are (o, i, *k) there and (*k, i, o) here,
dense layers (o, i) there and (i, o) here, norms have (weight, bias) there and (scale, bias) here.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scoresde import nn
from scoresde.interop.projects.pretrained import take

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Leaf:
    """The leaf at ``path`` ("down/0/1/conv_1/kernel"), made of the tensors ``names`` of the original.

    Attributes:
        path: names of our tree, joined by "/".
        names: names of the original.
        shapes: from the shape of our leaf, those of the originals.
        make: our leaf from the originals, as NumPy arrays.
    """

    path: str
    names: tuple[str, ...]
    shapes: Callable[[Shape], tuple[Shape, ...]]
    make: Callable[..., np.ndarray]


def same(path: str, name: str) -> Leaf:
    """A tensor of the same shape and meaning."""
    return Leaf(path, (name,), lambda shape: (shape,), lambda v: v)


def norm(path: str, name: str) -> Iterator[Leaf]:
    """A group norm."""
    yield same(f"{path}/scale", f"{name}.weight")
    yield same(f"{path}/bias", f"{name}.bias")


def conv(path: str, name: str) -> Iterator[Leaf]:
    """A convolution."""
    axes = lambda shape: (shape[-1], shape[-2], *shape[:-2])  # noqa: E731
    yield Leaf(f"{path}/kernel", (f"{name}.weight",), lambda s: (axes(s),), lambda w: np.moveaxis(w, (1, 0), (-2, -1)))
    yield same(f"{path}/bias", f"{name}.bias")


def dense(path: str, name: str, *, sizes: int = 0, bias: bool = True, swapped: bool = False) -> Iterator[Leaf]:
    """A dense layer, there with ``sizes`` axes of length one behind; ``swapped`` exchanges the halves of its inputs."""

    def make(w: np.ndarray) -> np.ndarray:
        w = w.reshape(w.shape[:2]).T
        return np.roll(w, len(w) // 2, axis=0) if swapped else w

    ones = (1,) * sizes
    yield Leaf(f"{path}/kernel", (f"{name}.weight",), lambda s: ((s[1], s[0], *ones),), make)
    if bias:
        yield same(f"{path}/bias", f"{name}.bias")


def joined(path: str, *names: str) -> Iterator[Leaf]:
    """Dense layers of one input, there apart, here side by side."""
    n = len(names)
    weights, biases = (tuple(f"{name}.{part}" for name in names) for part in ("weight", "bias"))
    yield Leaf(
        f"{path}/kernel",
        weights,
        lambda shape: ((shape[1] // n, shape[0]),) * n,
        lambda *parts: np.concatenate([w.T for w in parts], axis=1),
    )
    yield Leaf(f"{path}/bias", biases, lambda shape: ((shape[0] // n,),) * n, lambda *parts: np.concatenate(parts))


def abstract(build: Callable[[jax.Array], Any]) -> tuple[nn.Apply, nn.Params]:
    """``apply`` and the shapes of the parameters of the network ``build(key)``, for which no array is made."""
    found = []

    def init(key: jax.Array) -> nn.Params:
        apply, params = nn.functional(build(key))
        found.append(apply)
        return params

    shapes = jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)))
    return found[0], shapes


def any_size(build: Callable[[tuple[int, ...], jax.Array], Any]) -> Callable[..., jax.Array]:
    """``apply(params, x, c, cond=None)`` of the networks ``build(sizes, key)`` for the sizes that x has, where no
    parameter depends on them."""

    @functools.cache
    def built(sizes: tuple[int, ...]) -> nn.Apply:
        return abstract(functools.partial(build, sizes))[0]

    def apply(params: nn.Params, x: jax.Array, c: jax.Array, cond: Any = None) -> jax.Array:
        return built(x.shape[1:-1])(params, x, c, cond=cond)

    return apply


def flat(params: nn.Params) -> dict[str, Any]:
    """Leaves by path."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(str(entry.key) for entry in path): leaf for path, leaf in leaves}


def convert(
    leaves: Iterable[Leaf], params: nn.Params, state: Mapping[str, np.ndarray], others: Mapping[str, Shape]
) -> tuple[nn.Params, dict[str, np.ndarray]]:
    """Our parameters, in float32, from the original's state.

    Args:
        leaves: how each leaf is made; together they must cover the parameters.
        params: our parameters' shapes, a nested dict.
        state: the original's tensors by name.
        others: names and shapes of its tensors that are no parameters of ours.

    Returns:
        The parameters, and the tensors of ``others``.

    Raises:
        ValueError: tensors are missing, left over or misshapen; one line lists them. Or one is not finite.
    """
    wanted, rows = flat(params), {leaf.path: leaf for leaf in leaves}
    if rows.keys() != wanted.keys():
        raise ValueError(f"no tensors are known for {sorted(rows.keys() ^ wanted.keys())}")
    shapes = {name: shape for path, leaf in rows.items() for name, shape in _originals(leaf, wanted[path].shape)}
    found = take(state, {**shapes, **others})
    tree: nn.Params = {}
    for path, leaf in rows.items():
        *branch, last = path.split("/")
        node = tree
        for name in branch:
            node = node.setdefault(name, {})
        array = leaf.make(*(np.asarray(found[name], np.float32) for name in leaf.names))
        node[last] = jnp.asarray(array)
    return tree, {name: found[name] for name in others}


def _originals(leaf: Leaf, shape: Shape) -> list[tuple[str, Shape]]:
    return list(zip(leaf.names, leaf.shapes(shape), strict=True))


def count(params: nn.Params) -> int:
    """Number of parameters, of arrays or their shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
