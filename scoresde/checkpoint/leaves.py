"""The leaves of a pytree by name, as NumPy arrays on the host and back on any devices.

A leaf is a JAX or NumPy array, a typed PRNG key (as its `key_data`) or a Python number. An array that lies on several
processes is gathered, so all of them must ask for it; each then puts back its own part.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

_SCALARS = (bool, int, float, complex)


class Record(NamedTuple):
    """What JSON remembers of a leaf."""

    name: str
    shape: list[int]
    dtype: str
    key_impl: str | None
    stored_shape: list[int]

    @property
    def stored_dtype(self) -> str:
        return self.dtype if self.key_impl is None else "uint32"


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """(name, leaf) in the order of `jax.tree.leaves`."""
    return [(jax.tree_util.keystr(keys) or "(the tree)", x) for keys, x in jax.tree.leaves_with_path(tree)]


def spec(name: str, leaf: Any) -> tuple[list[int], str]:
    """Shape and dtype of an array, a ShapeDtypeStruct or a Python number."""
    if not isinstance(leaf, (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct, *_SCALARS)):
        raise ValueError(
            f"checkpoint leaf {name} is a {type(leaf).__name__}, expected an array or a number; "
            "put text and settings into the metadata"
        )
    like = np.asarray(leaf) if isinstance(leaf, _SCALARS) else leaf
    if not (like.dtype == bool or any(jnp.issubdtype(like.dtype, k) for k in (np.number, jax.dtypes.prng_key))):
        raise ValueError(f"checkpoint leaf {name} has dtype {like.dtype}, expected numbers or PRNG keys")
    return list(like.shape), str(like.dtype)


def to_host(name: str, leaf: Any) -> tuple[Record, np.ndarray]:
    """A leaf's record, and the leaf as a NumPy array (no copy on a CPU)."""
    shape, dtype = spec(name, leaf)
    if isinstance(leaf, jax.ShapeDtypeStruct):
        raise ValueError(f"checkpoint leaf {name} is a ShapeDtypeStruct without values; save arrays")
    implementation = None
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        implementation, leaf = str(jax.random.key_impl(leaf)), jax.random.key_data(leaf)
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        leaf = multihost_utils.process_allgather(leaf, tiled=True)
    return Record(name, shape, dtype, implementation, list(np.shape(leaf))), np.asarray(leaf)


def check_alike(what: str, records: list[Record], target: Any) -> None:
    """ValueError naming the first leaf of ``target`` whose name, shape or dtype is not that of its record."""
    wanted = named_leaves(target)
    for (name, leaf), record in zip(wanted, records, strict=False):
        shape, dtype = spec(name, leaf)
        if (name, shape, dtype) != record[:3]:
            raise ValueError(
                f"{what} has the leaf {record.name}: {record.dtype}{record.shape} where the "
                f"target has {name}: {dtype}{shape}; it was saved from another structure or configuration"
            )
    if len(wanted) != len(records):
        extra = wanted[len(records)][0] if len(wanted) > len(records) else records[len(wanted)].name
        only = f"only the {'target' if len(wanted) > len(records) else 'checkpoint'} has {extra}"
        raise ValueError(f"{what} has {len(records)} leaves, the target {len(wanted)}: {only}")


def from_host(leaf: Any, record: Record, array: np.ndarray) -> Any:
    """The array as the target's `leaf` is; an uncommitted array stays free to move to another device."""
    free = isinstance(leaf, jax.Array) and not leaf.committed
    sharding = None if free or not isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct)) else leaf.sharding
    if record.key_impl is not None:
        return jax.random.wrap_key_data(place(array, sharding), impl=record.key_impl)
    if type(leaf) in _SCALARS:
        return array.item()
    if isinstance(leaf, (np.ndarray, np.generic)):
        return array
    if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        raise ValueError(f"checkpoint leaf {record.name} is {record.dtype}: set jax_enable_x64, or give a NumPy target")
    return place(array, sharding)


def place(array: np.ndarray, sharding: Any) -> jax.Array:
    """The array on its devices (None: the default one); of several processes each puts its part, and none asks."""
    if sharding is None or sharding.is_fully_addressable:
        return jax.device_put(array, sharding, may_alias=False)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def to_devices(tree: Any, target: Any) -> Any:
    """The tree's arrays where those of ``target``, ``jax.ShapeDtypeStruct``s with shardings, lie."""
    return jax.tree.map(lambda leaf, like: from_host(like, *to_host("", leaf)), tree, target)


def to_numpy(tree: Any) -> Any:
    """The tree with NumPy arrays, each gathered from wherever its parts lie."""
    return jax.tree.unflatten(jax.tree.structure(tree), [to_host(*leaf)[1] for leaf in named_leaves(tree)])
