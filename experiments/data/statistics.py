"""What is measured of data, once: range, moments and covariance of the training part.

One pass over blocks b of rows, which may lie on disk; with counts n, means m and sums of squares S of each element,

    n <- n + n_b,    d = m_b - m,    m <- m + d n_b/n,    S <- S + S_b + d^2 (n - n_b) n_b/n

(Chan, Golub and LeVeque 1983), where a masked value counts for nothing.
"""

from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import track

from experiments.cli.errors import InputError
from experiments.data.arrays import Examples, Raw, blocks

MOST_HELD_OUT = 10_000
LEAST_VARIANCE, ROWS_A_COLUMN = 1e-6, 10  # of ``whitening``


class Moments(NamedTuple):
    """Of the training part in raw units."""

    mean: np.ndarray
    """Of each element, float64."""
    variance: np.ndarray
    low: float
    high: float
    whole: bool
    """Whether all values are whole numbers in 0..65535: levels, whatever their type."""


def is_whole(values: np.ndarray) -> bool:
    """Whether values are in truth levels, which have no density (whole numbers, none negative)."""
    return bool(values.min() >= 0 and values.max() < 2**16 and np.all(values == np.floor(values)))


def measure(values: Examples, name: str, mask: np.ndarray | None = None) -> Moments:
    """The moments of (n, *event) values where `mask` is True; shows its progress where they lie on disk."""
    count: Any = 0
    mean = squares = np.zeros(values.shape[1:])
    low, high, whole = np.inf, -np.inf, True
    for rows in track(
        blocks(values),
        f"measuring {name}",
        console=Console(stderr=True),
        transient=True,
        disable=isinstance(values, np.ndarray),
    ):
        block = values[rows]
        seen = np.ones((len(block), *[1] * (block.ndim - 1)), bool) if mask is None else mask[rows]
        here = seen.sum(axis=0, dtype=np.float64)
        block_mean = block.sum(axis=0, dtype=np.float64, where=seen) / np.maximum(here, 1)
        block_squares = ((block - block_mean) ** 2).sum(axis=0, where=seen)
        count, shift = count + here, block_mean - mean
        share = here / np.maximum(count, 1)
        mean = mean + shift * share
        squares = squares + block_squares + shift**2 * share * (count - here)
        observed = block if mask is None else block[seen]
        if observed.size:
            low, high = min(low, float(observed.min())), max(high, float(observed.max()))
            whole = whole and (block.dtype.kind != "f" or is_whole(observed))
    return Moments(mean, squares / np.maximum(count, 1), low, high, whole)


def whitening(z: np.ndarray) -> np.ndarray | None:
    """W = C^(-1/2), symmetric, of the covariance C of columns z (n, D) whose means are zero.

    Directions of less variance than LEAST_VARIANCE are magnified no more than those that have it: in them the rounding
    of the numbers shows. None where there are fewer than ROWS_A_COLUMN rows a column to know C from.
    """
    n, dims = z.shape
    if n < ROWS_A_COLUMN * dims:
        return None
    z = z.astype(np.float64)
    variances, directions = np.linalg.eigh(z.T @ z / n)
    return (directions / np.sqrt(np.maximum(variances, LEAST_VARIANCE))) @ directions.T


def split(raw: Raw, name: str, seed: int) -> Raw:
    """Holds out the last tenth of a permutation of the examples, or of the files they were cut from.

    A source with a test part is left as it is. Of examples on disk at most MOST_HELD_OUT are held out, in memory.
    """
    if raw.held_out is not None:
        return raw
    n, rng = len(raw.train), np.random.default_rng(seed)
    if raw.groups is None:
        if n < 10:
            raise InputError(f"{name} holds {n} example(s); at least 10 are needed to train and hold out")
        tenth = n // 10 if isinstance(raw.train, np.ndarray) else min(n // 10, MOST_HELD_OUT)
        train, held_out = np.split(rng.permutation(n), [n - tenth])
    else:
        files = rng.permutation(np.unique(raw.groups))
        if len(files) < 2:
            raise InputError(f"{name} holds one usable file; at least 2 are needed, since a split keeps files whole")
        last = np.isin(raw.groups, files[len(files) - max(1, len(files) // 10) :])
        train, held_out = np.flatnonzero(~last), np.flatnonzero(last)

    def part(values: np.ndarray | None, index: np.ndarray) -> np.ndarray | None:
        return None if values is None else values[index]

    stored = raw.train
    return raw._replace(
        train=stored[train] if isinstance(stored, np.ndarray) else stored.take(train),
        held_out=stored[held_out] if isinstance(stored, np.ndarray) else stored.take(held_out).load(),
        train_labels=part(raw.train_labels, train),
        held_out_labels=part(raw.train_labels, held_out),
        train_mask=part(raw.train_mask, train),
        held_out_mask=part(raw.train_mask, held_out),
        groups=part(raw.groups, train),
    )
