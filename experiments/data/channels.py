"""Which axis of an example are its channels: networks and pictures take the last, and files may mean another."""

from typing import Any, Literal

import numpy as np

from experiments.cli.errors import InputError

WIDE = 8  # channels from which on an axis may be one of space
Channels = Literal["last", "first", "none"]


def channels_last(values: np.ndarray, how: Channels, where: str) -> np.ndarray:
    """Examples (n, *event) whose last axis are channels, whatever they were stored as."""
    if how == "last":
        return values
    if values.ndim < 3:
        raise InputError(f"--channels {how}: {where} has examples of shape {values.shape[1:]}, which have no such axes")
    return values[..., None] if how == "none" else np.moveaxis(values, 1, -1)


def layout(values: Any, how: Channels) -> str:
    """What is said where the last axis of examples may not be that of the channels."""
    *space, channels = event = values.shape[1:]
    if how != "last" or len(event) < 2 or channels < WIDE:
        return ""
    advice = "first if they stand first" if len(event) > 2 and event[0] < WIDE else "none if they are of one channel"
    shapes = ["x".join(map(str, shape)) for shape in (event, space)]
    return f"examples {shapes[0]} are read as {shapes[1]} positions of {channels} channels (--channels {advice})"
