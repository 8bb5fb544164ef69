"""Data for the command line: one typed object, whatever the source.

Raw values are integers 0..levels-1 or measurements. The model sees them centred, with unit standard
deviation:

    integers      y = (level + u - shift) / scale,   u ~ U[0, 1) the dequantisation noise,   bin_width = 1 /
    scale measurements  y = (x - shift) / scale,           log p(x) = log p(y) + log_det,   log_det = -sum
    log scale

`shift` is the mean of each element over the training part alone (plus 1/2, the mean of u). `scale` is one
number, the root of the mean variance over elements (plus 1/12, the variance of u); only examples that are
vectors of measurements (points, tables) have one per column, since their units may differ. A source without
a test part of its own is split by `numpy.random.default_rng(seed).permutation(n)`: its last tenth is held
out.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from experiments import archives, files, toys
from experiments.files import InputError as InputError
from experiments.files import Raw

TOY_TRAIN, TOY_HELD_OUT = 100_000, 2000
TOYS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "mixture": toys.mixture,
    "moons": toys.moons,
    "spirals": toys.spirals,
    "checkerboard": toys.checkerboard,
}
ARCHIVES: dict[str, Callable[[Path | None], Raw]] = {
    "mnist": lambda folder: archives.mnist("mnist", folder),
    "fashion-mnist": lambda folder: archives.mnist("fashion-mnist", folder),
    "cifar10": archives.cifar10,
}
READERS: dict[str, Callable[[str], Raw]] = {
    "npz": files.read_npz,
    "npy": files.read_npy,
    "images": files.read_images,
    "csv": files.read_csv,
}


@dataclass(frozen=True, eq=False)
class Data:
    """A training and a held-out part in raw storage, and the way to model units and back."""

    name: str
    """What was asked for: `digits`, `npz:PATH`, ..."""
    train: np.ndarray
    """(n, *event), integers or float32."""
    held_out: np.ndarray
    """(m, *event), never used to choose or measure anything."""
    levels: int | None
    """Number of integer levels; None for measurements."""
    mean: np.ndarray
    """Mean of the raw training values, of the event's shape."""
    std: np.ndarray
    """Their standard deviation: one number, or one per column of measurements."""
    train_labels: np.ndarray | None = None
    held_out_labels: np.ndarray | None = None
    mixture: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
    """Means (K, D), standard deviations (K,) and weights (K,) of the law in raw units, where it is a known mixture."""
    sigma_data: float = 1.0
    """Standard deviation of the training part in model units."""

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return self.train.shape[1:]

    @property
    def shift(self) -> np.ndarray:
        """What is subtracted, of the event's shape, in raw units."""
        return self.mean if self.levels is None else self.mean + 0.5

    @property
    def scale(self) -> np.ndarray:
        """What is divided by, in raw units: a scalar, or one per column of measurements."""
        return self.std if self.levels is None else np.sqrt(self.std**2 + 1 / 12)

    @property
    def bin_width(self) -> float | None:
        """Width of one level in model units; None for measurements."""
        return None if self.levels is None else float(1 / self.scale)

    @property
    def log_det(self) -> float:
        """log |dy/dx|: add it to a log-density in model units to have it per raw unit."""
        return -float(np.sum(np.log(np.broadcast_to(self.scale, self.event_shape))))

    def to_model(self, x: ArrayLike, noise: ArrayLike | None = None) -> jax.Array:
        """Raw values (n, *event) in model units, traceable.

        `noise` is u in [0, 1), shaped like x; None puts integers in the middle of their bins. Measurements need
        none and ignore it.
        """
        x = jnp.asarray(x, dtype=float)
        if self.levels is not None:
            x = x + (0.5 if noise is None else jnp.asarray(noise, x.dtype))
        return (x - jnp.asarray(self.shift, x.dtype)[None]) / self._scale_of(x)

    def from_model(self, y: ArrayLike, *, round_levels: bool = True) -> np.ndarray:
        """Raw values of points (n, *event) in model units, on the host.

        Integers are rounded down to their bin and clipped to 0..levels-1; with `round_levels=False` they stay
        real numbers, where the middle of a bin is its level (for pictures of a path).
        """
        y = np.asarray(y, np.float32)
        x = y * np.asarray(self.scale, np.float32) + self.shift.astype(np.float32)
        if self.levels is None:
            return x
        if not round_levels:
            return x - np.float32(0.5)
        return np.clip(np.nan_to_num(np.floor(x)), 0, self.levels - 1).astype(self.train.dtype)

    def describe(self) -> str:
        """One line for the log."""
        shape = "x".join(map(str, self.event_shape))
        kind = "measurements" if self.levels is None else f"{self.levels} levels"
        std = f"{self.std:.4g}" if self.std.ndim == 0 else f"{self.std.min():.4g}..{self.std.max():.4g}"
        return (
            f"{self.name}: {len(self.train)} train + {len(self.held_out)} held out, {shape}, {kind}, "
            f"mean {self.mean.mean():.4g}, std {std}"
        )

    def record(self) -> dict[str, Any]:
        """What a checkpoint says of the data, as JSON."""
        return {
            "name": self.name,
            "event_shape": list(self.event_shape),
            "levels": self.levels,
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
            "shift": np.asarray(self.shift).tolist(),
            "scale": np.asarray(self.scale).tolist(),
        }

    def _scale_of(self, x: jax.Array) -> jax.Array:
        scale = jnp.asarray(self.scale, x.dtype)
        return scale if scale.ndim == 0 else scale[None]


def load(spec: str, *, data_dir: str | Path | None = None, seed: int = 0) -> Data:
    """The data that `--data` names: digits, a toy, a public set, or `npz: npy: images: csv:` and a path.

    `data_dir` holds the files of mnist, fashion-mnist or cifar10; without it they are downloaded. `seed`
    draws the toys and the split of sources that have none. Raises InputError, one line, for whatever is
    wrong.
    """
    kind, colon, path = spec.partition(":")
    if kind in READERS and not path:
        raise InputError(f"--data {kind} needs a path: {kind}:PATH")
    if colon and kind not in READERS:
        raise InputError(f"--data {spec}: a path follows only {', '.join(k + ':' for k in READERS)}")
    if data_dir is not None and kind not in ARCHIVES:
        raise InputError(f"--data-dir is for {', '.join(ARCHIVES)}; --data {kind} does not read it")
    if kind in READERS:
        return _data(spec, _split(READERS[kind](path), spec, seed))
    if kind in TOYS:
        points = TOYS[kind](np.random.default_rng(seed), TOY_TRAIN + TOY_HELD_OUT)
        return _data(kind, Raw(points[:TOY_TRAIN], points[TOY_TRAIN:]), toys.RING if kind == "mixture" else None)
    if kind in ARCHIVES:
        return _data(kind, ARCHIVES[kind](None if data_dir is None else Path(data_dir)))
    if kind == "digits":
        return _data(kind, archives.digits())
    known = ["digits", *TOYS, *ARCHIVES, *(k + ":PATH" for k in READERS)]
    close = difflib.get_close_matches(kind, known, n=1, cutoff=0.5)
    raise InputError(
        f"--data {spec} is unknown; "
        + (f"did you mean {close[0]}? " if close else "")
        + f"expected one of {', '.join(known)}"
    )


def _split(raw: Raw, spec: str, seed: int) -> Raw:
    """Holds out the last tenth of a permutation, unless the source brings its own test part."""
    if raw.held_out is not None:
        return raw
    n = len(raw.train)
    if n < 10:
        raise InputError(f"{spec} holds {n} example(s); at least 10 are needed to train and hold out")
    order = np.random.default_rng(seed).permutation(n)
    train, held_out = np.split(order, [n - n // 10])
    labels = raw.train_labels
    return raw._replace(
        train=raw.train[train],
        held_out=raw.train[held_out],
        train_labels=None if labels is None else labels[train],
        held_out_labels=None if labels is None else labels[held_out],
    )


def _data(name: str, raw: Raw, mixture: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None) -> Data:
    train, held_out, levels = raw.train, raw.held_out, raw.levels
    assert held_out is not None
    if levels is None and _whole(train) and _whole(held_out):
        levels = int(max(train.max(), held_out.max())) + 1
        train, held_out = (a.astype(np.uint8 if levels <= 256 else np.uint16) for a in (train, held_out))
    mean, variance = _moments(train)
    per_column = levels is None and train.ndim == 2
    std = np.sqrt(variance if per_column else variance.mean())
    if not np.all(std > 0):
        where = f"column {np.argmin(std) + 1} has" if per_column else "all training examples have"
        raise InputError(f"{name}: {where} one value only, so there is no density to learn; leave it out")
    if levels is None and np.any(np.abs(mean) * 2.0**-24 > 1e-3 * std):
        raise InputError(
            f"{name}: values lie so far from zero that 32-bit floats lose them (mean "
            f"{np.abs(mean).max():.4g}, std {std.min():.4g}); subtract the mean first"
        )
    return Data(name, train, held_out, levels, mean, std, raw.train_labels, raw.held_out_labels, mixture)


def _whole(values: np.ndarray) -> bool:
    """Whether floats are in truth levels, which have no density (whole numbers, none negative)."""
    return bool(values.min() >= 0 and values.max() < 2**16 and np.all(values == np.floor(values)))


def _moments(values: np.ndarray, rows: int = 1024) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of every element in float64, a block of rows at a time."""
    blocks = [slice(i, i + rows) for i in range(0, len(values), rows)]
    mean = sum(values[b].sum(axis=0, dtype=np.float64) for b in blocks) / len(values)
    variance = sum(((values[b] - mean) ** 2).sum(axis=0) for b in blocks) / len(values)
    return np.asarray(mean), np.asarray(variance)
