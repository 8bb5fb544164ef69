"""What a network is told of its examples besides their noise, and the null of it for classifier-free guidance.

A network's argument ``conditions`` is a description or a pytree of descriptions, such as a dict by name. Its call takes
``cond``, the same tree with values, B examples first, or 1 for all examples alike:

    description                value                                    enters
    Classes(n)                 int (B,) of 0..n-1                       the embedding, one_hot(value) W
    Vector(n)                  float (B, n)                             the embedding, value W
    Map(n)                     float (B, *sizes, n)                     beside the channels of the input
    Patches(n, patch)          float (B, H, W, n), any H and W          cross-attention to its patches
    Tokens(n)                  float (B, N, n), bool (B, N), any N      cross-attention to the tokens whose mask is True
    Present()                  Kept(bool (B, N))                        which points of a cloud are there

The null of a value is -1 for integers, 0 for floats and False for booleans. It acts exactly as if nothing were given:
W has no bias, a map of zeros adds nothing, and attention to no token is zero. So the ``cond`` of a network is its null
where it is None, as a whole or for one description. What is wrapped in ``Kept`` belongs to the example itself and has
no null. Values are of order one. W, and the last layer of each attention, are zero at first: a network begins as the
one without these conditions.

References: Ho and Salimans (2022), classifier-free guidance; Rombach et al. (2022), section 3.3, cross-attention.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from scoresde.nn.conditions.descriptions import Condition, Kept, Present
from scoresde.nn.layers.layers import linear, narrow
from scoresde.nn.layers.transformer_blocks import Context


class Given(NamedTuple):
    """A network's conditions as its layers use them; None where it has no such condition."""

    vector: jax.Array | None
    """(B, features) for the embedding."""
    channels: jax.Array | None
    """(B, *sizes, channels) beside the input's."""
    context: Context | None
    """Tokens (B, N, width) and their mask (B, N)."""
    present: jax.Array | None
    """(B, N): the points that are there."""

    def beside(self, h: jax.Array) -> jax.Array:
        """h (B, *sizes, C) with the channels of the conditions after its own."""
        return h if self.channels is None else jnp.concatenate([h, self.channels.astype(h.dtype)], axis=-1)


class Conditions(nnx.Module):
    """Reads ``cond`` for a network; ``features``, ``channels`` and ``width`` (0 without tokens) are sizes of ``Given``.

    Args:
        owner: the network's name, for its errors.
        conditions: a description or a pytree of them; None for a network without.
        width: width of the tokens that the network attends to, 0 for none.
        present: whether the network takes ``Present``.

    Raises:
        ValueError: something that is no description; at the call, a ``cond`` of another structure, kind or shape.
    """

    def __init__(self, owner: str, conditions: Any, *, width: int, present: bool = False, rngs: nnx.Rngs) -> None:
        described, self.tree = jax.tree.flatten(conditions)
        for d in described:
            kinds = "Classes, Vector, Map" + ", Patches, Tokens" * bool(width) + ", Present" * present
            if not isinstance(d, Condition) or (isinstance(d, Present) and not present) or (d.token and not width):
                raise ValueError(f"{owner}: conditions must be a pytree of ss.nn's {kinds}, got {d!r}")
        self.owner, self.described = owner, tuple(described)
        self.features = sum(d.features for d in described)
        self.scales = tuple(d.scale for d in described for _ in range(d.features))
        self.channels = sum(d.channels for d in described)
        self.width = width if any(d.token for d in described) else 0
        self.tokens = nnx.List([linear(d.token, width, rngs=rngs) for d in described if d.token])

    def __call__(self, x: jax.Array, cond: Any) -> Given:
        """The conditions of x (B, *sizes, channels), or of points (B, N, dim), or (B,)."""
        vector, channels, context, present = [], [], [], None
        layers = iter(self.tokens)
        for d, value in zip(self.described, self._values(x, cond), strict=True):
            if d.features:
                vector.append(jnp.zeros((len(x), d.features), x.dtype) if value is None else d.read(value))
            elif d.channels:
                zeros = partial(jnp.zeros, (*x.shape[:-1], d.channels), x.dtype)
                channels.append(zeros() if value is None else d.read(value))
            elif d.token:
                layer = next(layers)
                context += [] if value is None else [_tokens(layer, *d.read(value))]
            elif value is not None:
                present = d.read(value)
        return Given(
            jnp.concatenate(vector, axis=-1) if vector else None,
            jnp.concatenate(channels, axis=-1) if channels else None,
            (_joined(tokens for tokens, _ in context), _joined(mask for _, mask in context)) if context else None,
            present,
        )

    def _values(self, x: jax.Array, cond: Any) -> list[Any]:
        """The values of the descriptions, checked; None where there is none."""
        if cond is None:
            return [None] * len(self.described)
        expected = [d.entries(x.shape[1:-1]) for d in self.described]
        try:
            values = self.tree.flatten_up_to(cond)
            fits = [v is None or _fits(e, v, len(x)) for e, v in zip(expected, values, strict=True)]
        except (ValueError, TypeError):
            values, fits = [], [False]
        if all(fits) and self.described:
            for description, value in zip(self.described, values, strict=True):
                if value is not None:
                    description.check(value)
            return jax.tree.map(lambda a: jnp.broadcast_to(a, (len(x), *jnp.shape(a)[1:])), values)
        wanted = (
            f"{self.tree.unflatten(expected)} with B = {len(x)} or 1"
            if self.described
            else "None: it has no conditions"
        )
        found = jax.tree.map(lambda a: f"{jnp.result_type(a)} {jnp.shape(a)}", cond)
        raise ValueError(f"{self.owner}: cond must be {wanted}; got {found}")


def _fits(expected: Any, value: Any, batch: int) -> bool:
    sizes: dict[str, int] = {}
    entries, tree = jax.tree.flatten(expected)
    same = tree == jax.tree.structure(value)
    return same and all(e.fits(leaf, batch, sizes) for e, leaf in zip(entries, jax.tree.leaves(value), strict=True))


def _joined(sequences: Iterable[jax.Array]) -> jax.Array:
    return jnp.concatenate(list(sequences), axis=1)


def _tokens(layer: nnx.Linear, tokens: jax.Array, mask: jax.Array) -> Context:
    """Tokens after their layer; what is masked is replaced by zeros first, so that not even its NaNs are seen."""
    return layer(narrow(jnp.where(mask[..., None], tokens, 0), layer.kernel[...].dtype)), mask


def null(cond: Any) -> Any:
    """The null of every example: -1 for integers, 0 for floats, False for booleans; ``Kept`` parts as they are.

    Args:
        cond: a pytree of arrays (B, ...).

    >>> null({"class": jnp.array([3, 1]), "text": (jnp.ones((2, 1, 1)), jnp.ones((2, 1), bool))})["class"].tolist()
    [-1, -1]
    """
    return jax.tree.map(
        lambda leaf: leaf if isinstance(leaf, Kept) else jnp.full_like(*_null(leaf)), cond, is_leaf=_kept
    )


def drop(key: jax.Array, cond: Any, rate: float) -> Any:
    """``cond`` where each example has, with probability ``rate``, its null instead: the training of guidance.

    All parts of an example are dropped together; drop parts one by one, {"class": drop(k, c, 0.1), ...}, to drop them
    independently. Whether example i is dropped depends on (key, i) alone.

    Args:
        key: random key, or (B,) keys, one for each example.
        cond: a pytree of arrays (B, ...); ``Kept`` parts stay. Unsigned integers become signed ones.
        rate: in [0, 1].

    Raises:
        ValueError: a rate out of range, or arrays that differ in B.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"drop: rate must be in [0, 1], got {rate!r}")
    leaves = [leaf for leaf in jax.tree.leaves(cond, is_leaf=_kept) if not isinstance(leaf, Kept)]
    batches = {jnp.shape(leaf)[:1] for leaf in leaves}
    if len(batches) > 1 or () in batches:
        raise ValueError(f"drop: arrays must be (B, ...) with one B, got {[jnp.shape(leaf) for leaf in leaves]}")
    if not leaves:
        return cond
    (batch,) = batches.pop()
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch)) if key.ndim == 0 else key
    dropped = jax.vmap(jax.random.uniform)(keys) < rate

    def choose(leaf: Any) -> Any:
        if isinstance(leaf, Kept):
            return leaf
        value, none = _null(leaf)
        return jnp.where(jnp.expand_dims(dropped, range(1, value.ndim)), none, value)

    return jax.tree.map(choose, cond, is_leaf=_kept)


def _kept(leaf: Any) -> bool:
    return isinstance(leaf, Kept)


def _null(leaf: Any) -> tuple[jax.Array, Any]:
    """The leaf, signed, and its null."""
    value = jnp.asarray(leaf)
    if value.dtype == bool:
        return value, False
    if jnp.issubdtype(value.dtype, jnp.integer):
        return value.astype(jnp.promote_types(value.dtype, jnp.int8)), -1
    return value, 0
