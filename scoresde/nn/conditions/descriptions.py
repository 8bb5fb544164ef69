"""Descriptions of what a network may be told of its examples: the kinds and shapes of the values, and how they enter.

``conditions.py`` has the table of them and the module that reads the values. Another kind is another subclass of
``Condition``.
"""

import abc
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from scoresde.nn.layers.checks import whole
from scoresde.nn.layers.positions import positions
from scoresde.nn.layers.resample import folded

_KINDS = {"int": jnp.integer, "float": jnp.floating, "bool": jnp.bool_}
_POSITION = 64  # places for the position of a patch beside its entries


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Kept:
    """A part of ``cond`` that ``drop`` and ``null`` leave as it is, such as which points are there."""

    value: Any


@dataclasses.dataclass(frozen=True)
class Entry:
    """What one array of ``cond`` must be: its kind and its shape after B, letters standing for any size."""

    kind: str
    shape: tuple[int | str, ...] = ()

    def __repr__(self) -> str:
        return f"{self.kind} ({', '.join(map(str, ('B', *self.shape)))}{'' if self.shape else ','})"

    def fits(self, leaf: Any, batch: int, sizes: dict[str, int]) -> bool:
        """Whether the leaf is of this kind and shape, B being ``batch`` or 1; ``sizes`` remembers those of letters."""
        shape = jnp.shape(leaf)
        if not jnp.issubdtype(jnp.result_type(leaf), _KINDS[self.kind]) or len(shape) != 1 + len(self.shape):
            return False
        wanted = (
            sizes.setdefault(n, m) if isinstance(n, str) else n for n, m in zip(self.shape, shape[1:], strict=True)
        )
        return shape[0] in (batch, 1) and shape[1:] == tuple(wanted)


@dataclasses.dataclass(frozen=True)
class Condition(abc.ABC):
    """A description: what its value must be, and what networks make of it. At most one of the three sizes is not 0."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            whole(self, field.name, getattr(self, field.name), 1)

    @property
    def features(self) -> int:
        """Size of the vector that it adds to the embedding's."""
        return 0

    @property
    def scale(self) -> float:
        """What makes the mean square of its vector 1."""
        return 1.0

    @property
    def channels(self) -> int:
        """Channels that it puts beside the input's."""
        return 0

    @property
    def token(self) -> int:
        """Size of the tokens that the network attends to."""
        return 0

    @abc.abstractmethod
    def entries(self, sizes: tuple[int, ...]) -> Any:
        """The tree of ``Entry`` that the value must be, for an input (B, *sizes, channels)."""

    def check(self, value: Any) -> None:
        """Raise ValueError for a value of the right kind and shape that means nothing, where it is known."""
        return None

    @abc.abstractmethod
    def read(self, value: Any) -> Any:
        """(B, features), (B, *sizes, channels), or tokens (B, N, token) and their mask (B, N)."""


@dataclasses.dataclass(frozen=True)
class Classes(Condition):
    """One of ``count`` classes: int (B,); -1 is none. Any other number is refused, and NaN where it is only traced."""

    count: int

    @property
    def features(self) -> int:
        return self.count

    @property
    def scale(self) -> float:
        return math.sqrt(self.count)

    def entries(self, sizes: tuple[int, ...]) -> Any:
        return Entry("int")

    def check(self, value: Any) -> None:
        if not isinstance(value, Tracer) and not np.all(self._known(np.asarray(value))):
            raise ValueError(f"classes must be within 0..{self.count - 1}, or -1 for none, got {np.unique(value)}")

    def read(self, value: Any) -> Any:
        one = jax.nn.one_hot(value, self.count, dtype=jnp.float32)
        return jnp.where(self._known(jnp.asarray(value))[:, None], one, jnp.nan)

    def _known(self, value: Any) -> Any:
        return (value >= -1) & (value < self.count)


@dataclasses.dataclass(frozen=True)
class Vector(Condition):
    """A vector of ``size`` numbers of order one: float (B, size); zeros are none."""

    size: int

    @property
    def features(self) -> int:
        return self.size

    def entries(self, sizes: tuple[int, ...]) -> Any:
        return Entry("float", (self.size,))

    def read(self, value: Any) -> Any:
        return value


@dataclasses.dataclass(frozen=True)
class Map(Condition):
    """Numbers at each position of the input, as of another image: float (B, *sizes, count); zeros are none."""

    count: int

    @property
    def channels(self) -> int:
        return self.count

    def entries(self, sizes: tuple[int, ...]) -> Any:
        return Entry("float", (*sizes, self.count))

    def read(self, value: Any) -> Any:
        return value


@dataclasses.dataclass(frozen=True)
class Patches(Condition):
    """An image of any sizes, of which the network attends to patches: float (B, *sizes, count) with ``axes`` sizes that
    ``patch`` divides. An example that is zero everywhere is none."""

    count: int
    patch: int = 1
    axes: int = 2

    @property
    def token(self) -> int:
        return self.count * self.patch**self.axes + _POSITION

    def entries(self, sizes: tuple[int, ...]) -> Any:
        return Entry("float", (*(f"n{i}" for i in range(1, self.axes + 1)), self.count))

    def read(self, value: Any) -> Any:
        if any(size % self.patch for size in value.shape[1:-1]):
            raise ValueError(f"Patches: patch = {self.patch} must divide the sizes, got {value.shape[1:-1]}")
        h = folded(value, self.patch)
        batch, *sizes, width = h.shape
        place = positions(sizes, _POSITION).astype(h.dtype)
        tokens = h.reshape(batch, len(place), width), jnp.broadcast_to(place, (batch, *place.shape))
        given = jnp.any(value != 0, axis=range(1, value.ndim))
        return jnp.concatenate(tokens, axis=-1), jnp.broadcast_to(given[:, None], (batch, len(place)))


@dataclasses.dataclass(frozen=True)
class Tokens(Condition):
    """A sequence with a mask, such as a text's embeddings: a pair, float (B, N, size) of order one and bool (B, N),
    True where there is a token. What stands elsewhere is never seen; a mask without True is none."""

    size: int

    @property
    def token(self) -> int:
        return self.size

    def entries(self, sizes: tuple[int, ...]) -> Any:
        return Entry("float", ("N", self.size)), Entry("bool", ("N",))

    def read(self, value: Any) -> Any:
        return value


@dataclasses.dataclass(frozen=True)
class Present(Condition):
    """Which of the N points of a cloud are there: Kept(bool (B, N)); None is all. Only ``SetTransformer`` takes it."""

    def entries(self, sizes: tuple[int, ...]) -> Any:
        return Kept(Entry("bool", sizes))

    def read(self, value: Any) -> Any:
        return value.value
