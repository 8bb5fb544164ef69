"""Data for the command line: one typed object (experiments/data/dataset.py), whatever the source.

A source without a test part of its own is split by `numpy.random.default_rng(seed).permutation(n)`: its last tenth
is held out.
"""

import dataclasses
import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.cli.errors import InputError as InputError
from experiments.data import archives, arrays, audio, hub, images, tables, toys
from experiments.data.arrays import Options as Options
from experiments.data.arrays import Raw, Rows
from experiments.data.dataset import Data as Data
from experiments.data.labels import as_recorded, code
from experiments.data.powers import Powers
from experiments.data.statistics import Moments, is_whole, measure, split, whitening

DEFAULTS = Options()
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
READERS: dict[str, Callable[[str, Options], Raw]] = {
    "npz": arrays.read_npz,
    "npy": arrays.read_npy,
    "images": images.read_images,
    "csv": tables.read_csv,
    "parquet": tables.read_parquet,
    "idx": archives.read_idx_pair,
    "audio": audio.read_audio,
    "hf": hub.read_hub,
}
TABLES = ("csv", "parquet")
READS = dict.fromkeys(("columns", "drop_columns", "test_mask", "split", "missing"), TABLES) | {
    "window": ("audio",),
    "channels": ("npz", "npy"),
    "size": ("images", "hf"),
    "alpha": ("images", "hf"),
    "rate": ("audio",),
    "in_memory_gib": ("images", "npy", "npz", "idx", "audio", "hf"),
}


def load(
    spec: str,
    *,
    data_dir: str | Path | None = None,
    seed: int = 0,
    options: Options = DEFAULTS,
    record: dict[str, Any] | None = None,
) -> Data:
    """The data that `--data` names: digits, a toy, a public set, or one of READERS and a path.

    `data_dir` holds the files of mnist, fashion-mnist or cifar10; without it they are downloaded. `seed`
    draws the toys and the split of sources that have none. `options` are for some readers. `record` is what an
    earlier run measured: classes keep the numbers that they had there, and examples that stay on disk are not measured
    again if their name, counts and shape are the same. Raises InputError, one line, for whatever is wrong.
    """
    kind, colon, path = spec.partition(":")
    if kind in READERS and not path:
        raise InputError(f"--data {kind} needs a path: {kind}:PATH")
    if colon and kind not in READERS:
        raise InputError(f"--data {spec}: a path follows only {', '.join(k + ':' for k in READERS)}")
    if data_dir is not None and kind not in ARCHIVES:
        raise InputError(f"--data-dir is for {', '.join(ARCHIVES)}; --data {kind} does not read it")
    for flag, readers in READS.items():
        if kind not in readers and getattr(options, flag) != getattr(DEFAULTS, flag):
            raise InputError(f"--{flag.replace('_', '-')} is for {', '.join(readers)}; --data {kind} does not read it")
    if kind in READERS:
        return _data(spec, READERS[kind](path, options), seed, record=record)
    if kind in TOYS:
        points = TOYS[kind](np.random.default_rng(seed), TOY_TRAIN + TOY_HELD_OUT)
        return _data(kind, Raw(points[:TOY_TRAIN], points[TOY_TRAIN:]), seed, toys.RING if kind == "mixture" else None)
    if kind in ARCHIVES:
        return _data(kind, ARCHIVES[kind](None if data_dir is None else Path(data_dir)), seed, record=record)
    if kind == "digits":
        return _data(kind, archives.digits(), seed)
    known = ["digits", *TOYS, *ARCHIVES, *(k + ":PATH" for k in READERS)]
    close = difflib.get_close_matches(kind, known, n=1, cutoff=0.5)
    raise InputError(
        f"--data {spec} is unknown; "
        + (f"did you mean {close[0]}? " if close else "")
        + f"expected one of {', '.join(known)}"
    )


def _recorded(record: dict[str, Any] | None, name: str, train: Rows, held_out: np.ndarray) -> Data | None:
    """What was measured of these examples, without them; None if it was of others."""
    if record is None:
        return None
    known = Data.from_record(record)
    same = (known.name, known.counts, known.event_shape) == (name, (len(train), len(held_out)), train.shape[1:])
    return known if same else None


def _data(
    name: str,
    raw: Raw,
    seed: int,
    mixture: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
    record: dict[str, Any] | None = None,
) -> Data:

    raw, labels = code(raw, name)
    if record is not None:
        raw, labels = as_recorded(raw, labels, Data.from_record(record).labels)
    raw = _complete(split(raw, name, seed), name)
    train, held_out, levels = raw.train, raw.held_out, raw.levels
    assert held_out is not None
    own: dict[str, Any] = {"labels": labels}
    own |= {k: getattr(raw, k) for k in ("train_labels", "held_out_labels", "train_mask", "note")}
    if isinstance(train, Rows) and (known := _recorded(record, name, train, held_out)):
        dtype = known.train.dtype
        return dataclasses.replace(known, train=train.cast(dtype), held_out=held_out.astype(dtype), **own)
    moments = measure(train, name, raw.train_mask)
    if levels is None and raw.train_mask is None and moments.whole and is_whole(held_out):
        levels = int(max(moments.high, held_out.max())) + 1
        dtype = np.uint8 if levels <= 256 else np.uint16
        train = train.astype(dtype) if isinstance(train, np.ndarray) else train.cast(dtype)
        held_out = held_out.astype(dtype)
    std = _std(name, moments, per_column=levels is None and train.ndim == 2, measured=levels is None)
    if raw.train_mask is not None and isinstance(train, np.ndarray):
        train = np.where(raw.train_mask, train, moments.mean).astype(np.float32)
    powers = white = None
    if name.partition(":")[0] in TABLES and levels is None and raw.train_mask is None and isinstance(train, np.ndarray):
        powers = Powers.fit(z := (train - moments.mean) / std)
        white = whitening(np.asarray(powers.forward(jnp.asarray(z))))
    return Data(
        name,
        train,
        held_out,
        levels,
        moments.mean,
        std,
        (moments.low, moments.high),
        (len(train), len(held_out)),
        **own,
        mixture=mixture,
        powers=powers,
        whitening=white,
    )


def _complete(raw: Raw, name: str) -> Raw:
    """Only held-out rows without missing values, since a likelihood needs all of them."""
    if raw.held_out is None or raw.held_out_mask is None or (complete := raw.held_out_mask.all(axis=1)).all():
        return raw
    if complete.sum() < 2:
        raise InputError(f"{name}: no two held-out rows are complete, which a likelihood needs; fill some")
    labels = None if raw.held_out_labels is None else raw.held_out_labels[complete]
    note = f"{raw.note}, {(~complete).sum()} incomplete rows not held out"
    return raw._replace(held_out=raw.held_out[complete], held_out_labels=labels, note=note)


def _std(name: str, moments: Moments, *, per_column: bool, measured: bool) -> np.ndarray:
    """The standard deviation, of each column or of all; InputError where it is zero, or too small beside the mean."""
    std = np.sqrt(moments.variance if per_column else moments.variance.mean())
    if not np.all(std > 0):
        where = f"column {np.argmin(std) + 1} has" if per_column else "all training examples have"
        raise InputError(f"{name}: {where} one value only, so there is no density to learn; leave it out")
    if measured and np.any(np.abs(moments.mean) * 2.0**-24 > 1e-3 * std):
        raise InputError(
            f"{name}: values lie so far from zero that 32-bit floats lose them (mean "
            f"{np.abs(moments.mean).max():.4g}, std {std.min():.4g}); subtract the mean first"
        )
    return std
