"""What a reader of the field's weights returns, and how it takes named tensors from a state.

``params`` and ``apply`` are the bare network in the original's own inputs; ``score`` is the gradient of log p_t(x) of
``sde`` in the original's scaling of the data, so that it enters every solver, guidance and likelihood unchanged.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial

from scoresde.sde import SDE

MOST_NAMES = 40  # of one kind in an error's line


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A converted network, ready for use.

    Attributes:
        sde: the SDE whose marginals the network was trained on.
        params: the network's parameters, a nested plain dict of arrays.
        apply: ``apply(params, x, c, cond=None)``: the bare network in the original's own inputs, x (B, *sizes, C) with
            channels last, c (B,) what the original is called with (999 t or sigma for score_sde, c_noise for EDM, the
            step for diffusers); ``cond`` what it is conditioned on, such as classes (B,), None for nothing.
        score: ``score(x, t, cond=None)``, the score of ``sde`` at x (B, *sizes, C) in the scaling of ``data_range``,
            t a scalar or (B,); a ``jax.tree_util.Partial`` over ``params``, so that arrays are traced, not compiled in.
        data_range: (low, high) that the original's training data filled; infinite for latents.
        config: for networks in diffusers' layout what ``to_diffusers`` writes: the network's configuration, with its
            scheduler's under "scheduler"; None for others.
    """

    sde: SDE
    params: dict[str, Any]
    apply: Callable[..., jax.Array]
    score: Partial
    data_range: tuple[float, float]
    config: dict[str, Any] | None = None


def take(state: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The tensors of ``state``, whose names and shapes must be exactly those of ``shapes``, in the order of these.

    Raises:
        ValueError: one line that lists every missing, extra and misshapen name.
    """
    missing = [name for name in shapes if name not in state]
    extra = [name for name in state if name not in shapes]
    misshapen = [
        f"{name} has {tuple(state[name].shape)}, expected {tuple(shape)}"
        for name, shape in shapes.items()
        if name in state and tuple(state[name].shape) != tuple(shape)
    ]
    kinds = {"missing": missing, "extra": extra, "misshapen": misshapen}
    found = [f"{kind} {_listed(names)}" for kind, names in kinds.items() if names]
    if found:
        raise ValueError(f"the state does not fit its configuration: {'; '.join(found)}; give the two that belong")
    return {name: state[name] for name in shapes}


def _listed(names: list[str]) -> str:
    rest = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {rest} more" if rest > 0 else "")
