"""The data object: examples, what was measured of them, and the way to model units and back.

`ss.Units` say how raw values become what the model sees. Their mean is that of each element over the
training part alone; their standard deviation is one number, the root of the mean variance over elements; only examples
that are vectors of measurements (points, tables) have one per column, since their units may differ. The columns of a
table may be skewed: the maps of `powers.py` make each nearly Gaussian; and nearly dependent: the symmetric matrix
`whitening` makes their covariance the identity.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

import scoresde as ss
from experiments.cli.errors import InputError
from experiments.data.arrays import Examples, Rows
from experiments.data.labels import Labels
from experiments.data.powers import Powers


@dataclass(frozen=True, eq=False)
class Data:
    """A training and a held-out part in raw storage, what was measured of them, and the way to model units and back.

    One such object serves loss, preconditioner, likelihood and report; its `record` is stored with a checkpoint.
    """

    name: str
    """What was asked for: `digits`, `npz:PATH`, ..."""
    train: Examples
    """(n, *event), integers or float32; an array, or Rows on disk."""
    held_out: np.ndarray
    """(m, *event), never used to choose or measure anything."""
    levels: int | None
    """Number of integer levels; None for measurements."""
    mean: np.ndarray
    """Mean of the raw training values, of the event's shape."""
    std: np.ndarray
    """Their standard deviation: one number, or one per column of measurements."""
    range: tuple[float, float]
    """Smallest and largest raw training value."""
    counts: tuple[int, int]
    """Examples of the training and the held-out part when they were measured."""
    labels: Labels | None = None
    """What the labels are; None without labels."""
    train_labels: np.ndarray | None = None
    """(n,) int32 classes, or (n, ...) float32."""
    held_out_labels: np.ndarray | None = None
    train_mask: np.ndarray | None = None
    """Of the shape of train, True where a value was observed (the others hold the mean); None: all were."""
    mixture: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
    """Means (K, D), standard deviations (K,) and weights (K,) of the law in raw units, where it is a known mixture."""
    note: str = ""
    """What the reader decided."""
    powers: Powers | None = None
    """h, the maps of the standardised columns of a table; None where there are none."""
    whitening: np.ndarray | None = None
    """W (D, D), by which the mapped columns of a table are multiplied; None where they are not."""
    sigma_data: float = 1.0
    """Standard deviation of the training part in model units."""

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return self.train.shape[1:]

    @cached_property
    def units(self) -> ss.Units:
        """The way to model units and back."""
        return ss.Units.standardised(
            self.mean, self.std, levels=self.levels, maps=self.powers, whitening=self.whitening
        )

    @property
    def shift(self) -> np.ndarray:
        """What is subtracted, of the event's shape, in raw units."""
        return self.units.shift

    @property
    def scale(self) -> np.ndarray:
        """What is divided by, in raw units: a scalar, or one per column of measurements."""
        return self.units.scale

    @property
    def bin_width(self) -> float | None:
        """Width of one level in model units; None for measurements."""
        return self.units.bin_width

    def log_det(self, x: ArrayLike) -> np.ndarray:
        """See `Units.log_det`."""
        return self.units.log_det(x)

    def to_model(self, x: ArrayLike, noise: ArrayLike | None = None) -> jax.Array:
        """See `Units.to_model`."""
        return self.units.to_model(x, noise)

    def elements(self, x: ArrayLike, noise: ArrayLike | None = None) -> jax.Array:
        """See `Units.elements`."""
        return self.units.elements(x, noise)

    def unmixed(self, y: ArrayLike) -> jax.Array:
        """See `Units.unmixed`."""
        return self.units.unmixed(y)

    def from_model(self, y: ArrayLike, *, round_levels: bool = True) -> np.ndarray:
        """See `Units.from_model`."""
        return self.units.from_model(y, round_levels=round_levels)

    def batch(self, where: Any) -> Any:
        """The training examples of an index array or slice as the loss takes them: an array (..., *event), or with
        missing values or labels {"x": the array, "mask": True where observed, "label": as stored}."""
        beside = {"mask": self.train_mask, "label": self.train_labels}
        more = {name: values[where] for name, values in beside.items() if values is not None}
        return {"x": self.train[where]} | more if more else self.train[where]

    def prepare(self, key: jax.Array, batch: Any, *, flip: bool = False) -> tuple[jax.Array, jax.Array | None]:
        """What the loss sees of a `batch` (B, ...), traceable: model units with fresh dequantisation noise; the mask.

        With `flip`, images are mirrored at random first. The mask is None where every value was observed.
        """
        x, mask = (batch["x"], batch.get("mask")) if isinstance(batch, dict) else (batch, None)
        if flip:
            key, key_flip = jax.random.split(key)
            x = flipped(key_flip, x)
        return self.to_model(x, jax.random.uniform(key, (len(x), x[0].size)).reshape(x.shape)), mask

    @property
    def streamed(self) -> bool:
        """Whether the training part stays on disk."""
        return isinstance(self.train, Rows)

    def describe(self) -> str:
        """One line for the log."""
        shape = "x".join(map(str, self.event_shape))
        kind = "measurements" if self.levels is None else f"{self.levels} levels"
        std = f"{self.std:.4g}" if self.std.ndim == 0 else f"{self.std.min():.4g}..{self.std.max():.4g}"
        line = (
            f"{self.name}: {self.counts[0]} train + {self.counts[1]} held out, {shape}, {kind}, "
            f"mean {self.mean.mean():.4g}, std {std}, range {self.range[0]:.4g}..{self.range[1]:.4g}"
        )
        if self.labels is not None:
            line += f", {self.labels.describe()}"
        return line + (", streamed from disk" if self.streamed else "") + (f"; {self.note}" if self.note else "")

    def record(self) -> dict[str, Any]:
        """All that was measured, as JSON; `from_record` gives the same scaling back, bit for bit."""
        return {
            "name": self.name,
            "event_shape": list(self.event_shape),
            "dtype": str(self.train.dtype),
            "range": list(self.range),
            "levels": self.levels,
            "bin_width": self.bin_width,
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
            "powers": None if self.powers is None else self.powers.record(),
            "whitening": None if self.whitening is None else self.whitening.tolist(),
            "sigma_data": self.sigma_data,
            "labels": None if self.labels is None else self.labels._asdict(),
            "masked": self.train_mask is not None,
            "counts": list(self.counts),
            "mixture": None if self.mixture is None else [a.tolist() for a in self.mixture],
            "note": self.note,
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Data":
        """The object of a record, without examples: their arrays have length 0."""
        try:
            none = np.empty((0, *record["event_shape"]), record["dtype"])
            labels, mixture = record["labels"], record["mixture"]
            data = cls(
                name=record["name"],
                train=none,
                held_out=none,
                levels=record["levels"],
                mean=np.asarray(record["mean"], np.float64),
                std=np.asarray(record["std"], np.float64),
                range=(record["range"][0], record["range"][1]),
                counts=(record["counts"][0], record["counts"][1]),
                labels=labels and Labels(labels["classes"], labels["names"] and tuple(labels["names"])),
                train_mask=none.astype(bool) if record["masked"] else None,
                mixture=mixture and (np.asarray(mixture[0]), np.asarray(mixture[1]), np.asarray(mixture[2])),
                note=record["note"],
                powers=None if record.get("powers") is None else Powers.from_record(record["powers"]),
                whitening=None if record.get("whitening") is None else np.asarray(record["whitening"], np.float64),
                sigma_data=record["sigma_data"],
            )
            data.units  # noqa: B018  (checks the numbers that make it)
            return data
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"the data record is incomplete or damaged ({type(error).__name__}: {error})") from None


def flipped(key: jax.Array, x: jax.Array) -> jax.Array:
    """Images (B, height, width, channels), each mirrored left to right with probability 1/2."""
    mirrored = jax.random.bernoulli(key, 0.5, (len(x), 1, 1, 1))
    return jnp.where(mirrored, x[:, :, ::-1], x)
