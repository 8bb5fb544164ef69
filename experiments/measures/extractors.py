"""What two sets of examples are compared by: the words of --features in ``experiments.distance``.

    pixels                    the values of an example
    random                    128 random projections of them, rectified; for the same shape always the same
    classifier:RUN            what the last layer of a classifier (experiments.classifier) sees of clean examples
    python:MODULE:FUNCTION    your function of examples (n, *event) that returns features (n, F)

Each is given images of integer levels as uint8 (n, height, width, channels), black 0 and white 255, just as a PNG holds
them, and all other examples as float32 in raw units. The first two move and scale what they are given: images to
[-1, 1], other examples by the means and the standard deviation (of each column of a table) of the training part of the
reference.
"""

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.cli.errors import InputError
from experiments.data.dataset import Data
from experiments.figures import panels, run_figures
from experiments.measures.inputs import Input, of_file, of_model
from experiments.models.saved import open_run

PROJECTIONS = 128


class Extractor(NamedTuple):
    """A feature function and what identifies it."""

    name: str
    of: Callable[[np.ndarray], Any]
    """Examples as ``seen`` gives them (n, *event) -> (n, F)."""
    kind: str
    """The name without that of a file."""
    made_of: Input | None = None
    """The classifier or the source of the function."""


def seen(x: np.ndarray, levels: int | None) -> np.ndarray:
    """Examples in raw units as extractors are given them."""
    if levels is None or not panels.is_image(x.shape[1:]):
        return np.asarray(x, np.float32)
    return panels.pixels(x, *run_figures.scale(x, levels))


def extractor(word: str, data: Data, identity: str | None) -> Extractor:
    """The extractor that --features names, for examples like those of the reference.

    Raises:
        InputError: there is none such, or it is not for these examples, or its identity is not known.
    """
    kind, _, rest = word.partition(":")
    if identity is not None and kind != "python":
        raise InputError(f"--extractor says what your function is; --features {kind} is known: drop it")
    if word == "pixels":
        return Extractor(word, lambda x: _flat(x, data), word)
    if word == "random":
        return Extractor(f"{word}, {PROJECTIONS}", lambda x: _projected(_flat(x, data)), word)
    if kind == "classifier" and rest:
        return _classifier(Path(rest), data)
    module, colon, name = rest.partition(":")
    if kind == "python" and colon:
        return _imported(module, name, identity)
    raise InputError(f"--features must be pixels, random, classifier:RUN or python:MODULE:FUNCTION, got {word!r}")


def _flat(x: np.ndarray, data: Data) -> np.ndarray:
    scaled = x / np.float32(127.5) - 1 if x.dtype == np.uint8 else (x - data.mean) / data.std
    return scaled.reshape(len(x), -1).astype(np.float32)


def _projected(x: np.ndarray) -> np.ndarray:
    """max(0, x W + b), W and b normal, x W of about the variance of the values of x."""
    rng, dims = np.random.default_rng(0), x.shape[1]
    bias = rng.standard_normal(PROJECTIONS, np.float32)
    return np.maximum(x @ rng.standard_normal((dims, PROJECTIONS), np.float32) / np.sqrt(dims) + bias, 0)


def _classifier(path: Path, data: Data) -> Extractor:
    """The trained network with the identity for its last map."""
    opened = open_run(path, "class")
    known, model = opened.data, opened.model
    if known.event_shape != data.event_shape or (known.levels is None) != (data.levels is None):
        raise InputError(f"--features classifier:{path} is of {known.describe()}; the reference is {data.describe()}")
    params, _ = opened.parameters()
    kernel = jnp.eye(len(params["output"]["kernel"]))
    cut = params | {"output": {"kernel": kernel, "bias": jnp.zeros(len(kernel))}}

    @jax.jit
    def pooled(x: jax.Array) -> jax.Array:
        return model.apply(cut, *model.precond.inputs(x, model.sde.t_min))

    def of(x: np.ndarray) -> np.ndarray:
        raw = np.round(x / 255 * ((known.levels or 0) - 1)) if x.dtype == np.uint8 else x
        return np.asarray(pooled(known.to_model(raw)))

    made_of = of_model(path, opened, params)
    return Extractor(f"classifier {path.name}, model {made_of.sha256[:8]}", of, "classifier", made_of)


def _imported(module: str, name: str, identity: str | None) -> Extractor:
    if not identity:
        raise InputError(
            f"what {module}:{name} is, is unknown: give --extractor 'network, weights, resizing', without which its "
            "distances compare with none"
        )
    try:
        function = getattr(importlib.import_module(module), name)
        source = inspect.getsourcefile(function)
        if source is None or not Path(source).is_file():
            raise TypeError("no source")
    except (ImportError, AttributeError, TypeError, OSError) as error:
        raise InputError(f"--features python:{module}:{name}: {error}; it must be a function in a file") from None
    kind = f"{identity} (python:{module}:{name})"
    return Extractor(kind, function, kind, of_file(Path(source)))
