"""The examples that are edited, of the held-out part by number or from a file of the user, and their classes."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.cli.errors import InputError
from experiments.data.arrays import Options, existing, read_npz
from experiments.data.dataset import Data
from experiments.data.images import read_image
from experiments.data.labels import class_of
from experiments.models.saved import Opened


def chosen(flags: Any, data: Data, options: Options) -> tuple[np.ndarray, list[int], np.ndarray | None]:
    """The examples that the flags of ``experiments.edit`` name, their numbers, and their classes where these are known.

    A file of the user is read by the ``options`` of the run.

    Raises:
        InputError: there are none such.
    """
    own = data.held_out, data.held_out_labels
    x, classes = own if flags.input is None else (_given(flags.input, data, options), None)
    where = f"the held-out part of {data.name}" if flags.input is None else str(flags.input)
    try:
        numbers = list(range(min(flags.n, len(x)))) if flags.examples is None else _numbers(flags.examples)
    except ValueError:
        raise InputError(
            f"--examples must be numbers with commas between, such as 0,5,7, got {flags.examples}"
        ) from None
    if beyond := [i for i in numbers if not 0 <= i < len(x)]:
        raise InputError(f"--examples must be in 0..{len(x) - 1}, the examples of {where}, got {beyond[0]}")
    if flags.edit == "interpolate" and (len(numbers) < 2 or len(numbers) % 2):
        raise InputError(f"--edit interpolate needs an even number of examples, got {len(numbers)}")
    return x[numbers], numbers, None if classes is None else classes[numbers]


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _given(path: Path, data: Data, options: Options) -> np.ndarray:
    """The examples of a file, in the units and of the shape of the data."""
    event, top = data.event_shape, (data.levels or 0) - 1
    if path.suffix == ".png":
        if data.levels is None:
            raise InputError(f"--input {path}: {data.name} are measurements, not levels: give an .npz")
        x = read_image(existing(path), options)[None]
        x = np.round(x * (top / 255)).astype(data.train.dtype) if x.dtype == np.uint8 else x
    elif path.suffix == ".npz":
        x = np.asarray(read_npz(str(path), options).train)
    else:
        raise InputError(f"--input {path} must end in .npz or .png")
    if x.shape[1:] != event:
        raise InputError(f"--input {path} has examples of shape {x.shape[1:]}; the model was trained on {event}")
    if data.levels is not None and not (np.all(x == np.round(x)) and x.min() >= 0 and x.max() <= top):
        raise InputError(f"--input {path} must hold whole numbers in 0..{top}, the levels of {data.name}")
    return x


def of_direction(flags: Any, named: dict[str, int | None], data: Data) -> tuple[np.ndarray, np.ndarray]:
    """Training examples in raw units, drawn by --seed, half of each kind, and which of them have --attribute."""
    labels, rng = data.train_labels, np.random.default_rng(flags.seed)
    assert labels is not None
    others = labels != named["attribute"] if named["against"] is None else labels == named["against"]
    pools = np.flatnonzero(labels == named["attribute"]), np.flatnonzero(others)
    rows = [rng.choice(pool, min(len(pool), flags.latents // 2), replace=False) for pool in pools]
    order = np.sort(np.concatenate(rows))
    return data.train[order], np.isin(order, rows[0])


def classes_of(flags: Any, opened: Opened, data: Data) -> dict[str, int | None]:
    """The classes that --label, --attribute and --against name, or an InputError."""
    if flags.label is not None and opened.config.objective.condition == "none":
        raise InputError(f"{flags.checkpoint} knows no classes: drop --label, or train with --condition class")
    if flags.guidance != 1 and flags.label is None:
        raise InputError("--guidance is the weight of --label: give it too")
    if flags.edit == "direction" and not (data.labels and data.labels.classes):
        raise InputError(f"--edit direction needs data with classes; {data.name} has none")
    if flags.attribute is not None and flags.attribute == flags.against:
        raise InputError(f"--attribute and --against must be two classes, got {flags.attribute} twice")
    flagged = ("label", "attribute", "against")
    return {name: class_of(name, getattr(flags, name), data.labels, data.name) for name in flagged}
