"""Modules that PyTorch pickled whole, as EDM and EDM2 publish them, read as plain records.

A module is a tree: its tensors are ``_parameters`` and ``_buffers``, its children ``_modules``, and the name of a
tensor is the path to it with dots between, in the order of parameters, buffers, children. EDM's classes come with the
source text that defines them, for whoever unpickles to execute; here it is a text like any other, and nobody reads it.
What is kept of such an object is its class's name and its attributes: ``_init_kwargs`` are the configuration.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from scoresde.interop.files.opening import LONGEST_NAME
from scoresde.interop.files.pickles import Builders, Record
from scoresde.interop.files.storages import empty_dict

MOST_PARTS = 100_000  # modules, tensors and others of a tree; what stands at several places counts as often
DEEPEST = 32
CONTAINERS = ("ModuleDict", "ModuleList", "Sequential", "ParameterDict", "ParameterList")


def _persistent(meta: Any) -> Record:
    if not isinstance(meta, dict) or meta.get("type") != "class" or not isinstance(meta.get("class_name"), str):
        raise ValueError("malformed pickle: an object of torch_utils.persistence without the name of its class")
    return Record(meta["class_name"], (), meta.get("state"))


BUILDERS: Builders = {
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent,
    "dnnlib.util.EasyDict": empty_dict,
    **{f"torch.nn.modules.container.{kind}": lambda kind=kind: Record(kind) for kind in CONTAINERS},
}
"""What pickles of modules may call beside the names in ``storages``."""


def state_of(module: Any) -> dict[str, np.ndarray]:
    """The tensors of a module read as a record, by name, in PyTorch's order.

    Raises:
        ValueError: it is no module, or its tree is too deep or too large, as one that contains itself is.
    """
    state: dict[str, np.ndarray] = {}
    parts = 0
    for prefix, record in _walk(module, "", 0):
        tensors = [_dict(record, kind) for kind in ("_parameters", "_buffers")]
        parts += 1 + sum(map(len, tensors))
        if parts > MOST_PARTS:
            raise ValueError(f"the module has more than {MOST_PARTS} parts")
        transient = record.get("_non_persistent_buffers_set") or set()
        if not isinstance(transient, set):
            raise ValueError("malformed module: the names of its transient buffers are no set")
        for name, tensor in (pair for kind in tensors for pair in kind.items()):
            if isinstance(tensor, np.ndarray) and name not in transient:
                state[f"{prefix}{name}"] = tensor
    return state


def _walk(module: Any, prefix: str, depth: int) -> Iterator[tuple[str, dict[str, Any]]]:
    if not isinstance(module, Record) or not isinstance(module.state, dict):
        kind = module.kind if isinstance(module, Record) else type(module).__name__
        raise ValueError(f"expected a module of PyTorch at {prefix or 'the top'!r}, found {kind} without attributes")
    if depth > DEEPEST:
        raise ValueError(f"the module has parts within parts beyond depth {DEEPEST}")
    yield prefix, module.state
    for name, child in _dict(module.state, "_modules").items():
        if child is not None:
            yield from _walk(child, f"{prefix}{name}.", depth + 1)


def _dict(record: dict[str, Any], name: str) -> dict[str, Any]:
    found = record.get(name, {})
    if not isinstance(found, dict):
        raise ValueError(f"malformed module: its {name} is a {type(found).__name__}")
    if any(not isinstance(key, str) or len(key) > LONGEST_NAME for key in found):
        raise ValueError(f"malformed module: a part whose name is no text of at most {LONGEST_NAME} letters")
    return found


def arguments_of(module: Any, positional: tuple[str, ...]) -> dict[str, Any]:
    """The arguments that a module of torch_utils.persistence was made with; those given without names get theirs.

    Raises:
        ValueError: they are not recorded.
    """
    state = module.state if isinstance(module, Record) and isinstance(module.state, dict) else {}
    given, named = state.get("_init_args", ()), state.get("_init_kwargs", {})
    if not isinstance(given, tuple) or not isinstance(named, dict) or len(given) > len(positional):
        raise ValueError("malformed module: the arguments that it was made with are not recorded")
    return dict(zip(positional, given, strict=False)) | named
