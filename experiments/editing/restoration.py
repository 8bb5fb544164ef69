"""What is measured of an example: the words of ``experiments.inverse``, or a file with missing values.

A measurement is y = A(u) + noise n of the elements u = h((x - shift)/scale) of an example, each of which depends on its
own raw value alone (``Data.elements``), so that a missing column of a table is a missing entry of u although the model
sees the columns mixed. Images are (H, W, C), series (T, C), tables (D,).
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

import scoresde as ss
from experiments.cli.errors import InputError
from experiments.cli.keys import stream
from experiments.data.arrays import Options, reading
from experiments.data.dataset import Data
from experiments.data.headers import archive_of, array_of, check_archive
from experiments.data.tables import read_cells
from scoresde.inverse.operators import mask

Operator = Callable[[jax.Array], jax.Array]
Shape = tuple[int, ...]


class Word(NamedTuple):
    """(event shape, flags) -> operator; the lengths of the event shapes that it takes; what it leaves."""

    make: Callable[[Shape, Any], Operator]
    ranks: tuple[int, ...]
    says: str


def _central(shape: Shape) -> np.ndarray:
    """True for the middle half of every side of an image, or of a series."""
    inside = [np.abs(np.arange(n) - (n - 1) / 2) < n / 4 for n in shape[:-1]]
    return np.all(np.stack(np.meshgrid(*inside, indexing="ij")), axis=0, keepdims=True)[0, ..., None]


def _left(shape: Shape) -> np.ndarray:
    """True for the first half along the second axis of an image, or of a series."""
    axis = min(1, len(shape) - 2)
    n = shape[axis]
    return np.moveaxis(np.arange(n).reshape(-1, *[1] * (len(shape) - 1)) < n / 2, 0, axis)


def _chosen(shape: Shape, flags: Any, least: int = 1) -> np.ndarray:
    """True for the share --keep of so many places, drawn by --seed."""
    size = math.prod(shape)
    kept = np.random.default_rng(flags.seed).permutation(size) < max(least, round(flags.keep * size))
    return kept.reshape(shape)


def _fourier(shape: Shape, flags: Any) -> Operator:
    """The mean, and frequencies drawn by --seed."""
    keep = _chosen(shape[:-1], flags)
    keep[(0,) * keep.ndim] = True
    return ss.inverse.operators.fourier(keep)


def _downsample(shape: Shape, flags: Any) -> Operator:
    if any(n % flags.factor for n in shape[:-1]):
        raise InputError(f"--factor {flags.factor} must divide the sides {' x '.join(map(str, shape[:-1]))}")
    return ss.inverse.operators.downsample(flags.factor)


def _columns(shape: Shape, flags: Any) -> Operator:
    words = [word.strip() for word in (flags.missing or "").split(",")]
    if not all(word.isdigit() and 1 <= int(word) <= shape[-1] for word in words):
        raise InputError(f"--operator columns needs --missing, numbers from 1 to {shape[-1]} with commas between")
    missing = {int(word) - 1 for word in words}
    if len(missing) == shape[-1]:
        raise InputError("--missing must leave a column")
    return ss.inverse.operators.columns([j for j in range(shape[-1]) if j not in missing])


def _span(shape: Shape, flags: Any) -> Operator:
    start, colon, stop = (flags.missing or "").partition(":")
    if not (colon and start.isdigit() and stop.isdigit()):
        raise InputError(f"--operator span needs --missing START:STOP within the length {shape[0]}")
    try:
        return ss.inverse.operators.spans([(int(start), int(stop))], shape[0])
    except ValueError as error:
        raise InputError(f"--missing {flags.missing}: {error}") from None


def _grey(shape: Shape, flags: Any) -> Operator:
    if shape[-1] < 2:
        raise InputError("--operator grey needs colour: the examples have one channel")
    return ss.inverse.operators.grey()


OperatorWord = Literal[
    "box", "half", "outpaint", "random", "downsample", "blur", "grey", "fourier", "compressed", "columns", "span"
]
PLACES = (2, 3, 4)
OPERATORS: dict[OperatorWord, Word] = {
    "box": Word(lambda shape, flags: mask(~_central(shape)), PLACES, "all but the middle"),
    "half": Word(lambda shape, flags: mask(_left(shape)), PLACES, "the first half"),
    "outpaint": Word(lambda shape, flags: mask(_central(shape)), PLACES, "the middle alone"),
    "random": Word(lambda shape, flags: mask(_chosen(shape, flags)), (1, *PLACES), "elements at random"),
    "downsample": Word(_downsample, PLACES, "means over blocks"),
    "blur": Word(lambda shape, flags: ss.inverse.operators.blur(flags.std), PLACES, "a blurred picture"),
    "grey": Word(_grey, (3, 4), "the mean of the channels"),
    "fourier": Word(_fourier, PLACES, "Fourier coefficients at random"),
    "compressed": Word(
        lambda shape, flags: ss.inverse.operators.compressed_sensing(
            stream(flags.seed, "operator"), max(1, round(flags.keep * math.prod(shape))), math.prod(shape)
        ),
        (1, *PLACES), "random sums",
    ),
    "columns": Word(_columns, (1,), "the other columns"),
    "span": Word(_span, (2,), "the rest of the series"),
}  # fmt: skip


def operator_of(flags: Any, data: Data) -> Operator:
    """The operator of ``flags.operator`` on elements (B, *event) of this data.

    Raises:
        InputError: it is not for examples of this shape, or a flag of its own is wrong.
    """
    word, shape = OPERATORS[flags.operator], data.event_shape
    if len(shape) not in word.ranks:
        suited = [name for name, other in OPERATORS.items() if len(shape) in other.ranks]
        raise InputError(f"--operator {flags.operator} is not for examples of shape {shape}: take {', '.join(suited)}")
    return word.make(shape, flags)


def read(path: Path, data: Data) -> tuple[np.ndarray, list[str]]:
    """Raw values (n, *event), NaN where missing, of an .npy, .npz (one array) or .csv file, and the header of the last;
    InputError for others."""
    header: list[str] = []
    with reading(path):
        if path.suffix == ".npz":
            with archive_of(path) as stored:
                if len(stored.files) != 1:
                    raise InputError(f"{path} must hold one array, it has {', '.join(stored.files)[:200]}")
                check_archive(stored, stored.files, path, Options.in_memory_gib)
                x = stored[stored.files[0]]
        elif path.suffix == ".npy":
            x = array_of(path, Options.in_memory_gib)
        elif path.name.endswith((".csv", ".csv.gz")):
            x, header = read_cells(path, masked=True)
        else:
            raise InputError(f"--input {path} must end in .npy, .npz, .csv or .csv.gz")
    if x.shape[1:] != data.event_shape or not len(x) or x.dtype.kind not in "buif":
        expected = f"numbers (n{''.join(f', {n}' for n in data.event_shape)})"
        raise InputError(f"{path} holds {x.dtype} {x.shape}, the model takes {expected}, NaN where a value is missing")
    x = np.asarray(x, np.float32)
    if np.isinf(x).any():
        raise InputError(f"{path} holds infinite values; leave missing ones empty, or NaN")
    if not (known := ~np.isnan(x)).any(axis=tuple(range(1, x.ndim))).all():
        row = int(np.argmin(known.any(axis=tuple(range(1, x.ndim)))))
        raise InputError(f"{path}: example {row} (from 0) has no value at all; leave it out")
    return x, header


@dataclasses.dataclass(frozen=True)
class Problem:
    """Measurements y of some examples, by one operator on points (B, *event) in model units."""

    operator: Partial
    y: np.ndarray
    """(m, ...)."""
    live: np.ndarray
    """(m, ...), False where the operator leaves zeros."""
    where: np.ndarray
    """(m,) which examples they are of."""

    def least_squares(self, shape: Shape) -> np.ndarray:
        """A^+ y (m, *event) in model units, by conjugate gradients: what is known, and zero, the mean, elsewhere."""
        y = jnp.asarray(self.y)
        pull = jax.linear_transpose(self.operator, jax.ShapeDtypeStruct((len(y), *shape), y.dtype))
        solution, _ = jax.scipy.sparse.linalg.cg(lambda v: self.operator(pull(v)[0]), y, maxiter=20, tol=1e-4)
        return np.asarray(pull(solution)[0])


def _of_elements(data: Data, operator: Operator, x: jax.Array) -> jax.Array:
    return operator(data.unmixed(x))


def measured(flags: Any, data: Data, x: np.ndarray) -> list[Problem]:
    """Held-out examples by the operator of the flags, with noise where anything is measured."""
    operator = operator_of(flags, data)
    elements = data.elements(x)
    key, probe = (stream(flags.seed, name) for name in ("noise", "probe"))
    y = operator(elements)
    live = operator(jax.random.normal(probe, elements.shape, elements.dtype)) != 0  # a mask leaves zeros
    y = y + jnp.where(live, flags.noise * jax.random.normal(key, y.shape, y.dtype), 0)
    return [Problem(Partial(partial(_of_elements, data), operator), np.asarray(y), np.asarray(live), np.arange(len(x)))]


def incomplete(data: Data, x: np.ndarray) -> list[Problem]:
    """What fills in x (n, *event), NaN where missing: one problem, or one for each example where patterns differ."""
    elements, seen = np.asarray(data.elements(x)), ~np.isnan(x)
    y, of_elements = np.where(seen, elements, 0).astype(np.float32), partial(_of_elements, data)
    rows = [np.arange(len(x))] if (seen == seen[:1]).all() else np.arange(len(x))[:, None]
    return [Problem(Partial(of_elements, mask(seen[where[0]])), y[where], seen[where], where) for where in rows]


def compared(data: Data, problem: Problem, draws: np.ndarray, truth: np.ndarray, noise: float) -> dict[str, float]:
    """How far draws (n, each, *event) in model units are from the measurement and from the raw truth (n, *event).

    residual      |A(u) - y| of a draw, in standard deviations of the noise: about 1
    error         root mean square of the draws' mean - truth, in standard deviations of the data
    error_of_one  that of one draw
    before        that of the least-squares solution
    calibration   mean square of mean - truth over what the spread of the draws makes of it: about 1
    """
    flat, u, many = draws.reshape(-1, *draws.shape[2:]), np.asarray(data.elements(truth)), draws.shape[1]
    predicted = np.asarray(problem.operator(jnp.asarray(flat))).reshape(*draws.shape[:2], -1)
    residual = (predicted - problem.y.reshape(len(u), 1, -1))[:, :, problem.live.reshape(len(u), -1).any(axis=0)]
    x = np.asarray(data.unmixed(flat)).reshape(draws.shape)
    off, spread = x.mean(axis=1) - u, x.var(axis=1, ddof=1) * (1 + 1 / many)

    def root(v: np.ndarray) -> float:
        return float(np.sqrt(np.mean(v**2)))

    return {
        "residual": root(residual) / noise,
        "error": root(off),
        "error_of_one": root(x - u[:, None]),
        "before": root(np.asarray(data.unmixed(problem.least_squares(draws.shape[2:]))) - u),
        "calibration": float(np.sum(off**2) / np.sum(spread)),
    }
