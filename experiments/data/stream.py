"""Training batches from the host, for data larger than the device or the memory: fast, sharded and resumable.

With n examples and batches of B, step k takes the positions kB .. kB + B - 1 of the endless sequence

    order(seed, 0), order(seed, 1), ...          order(seed, e) a permutation of 0..n-1

so every epoch visits every example once, and a position is a step: nothing else needs to be saved. Process p of P reads
rows pB/P .. (p + 1)B/P - 1 of each batch, so that the batches as a whole do not depend on P. One read serves k steps.
Reads run ahead of the consumer on grain's threads.
"""

import functools
from collections.abc import Generator
from typing import Any

import numpy as np

from experiments.cli.errors import InputError
from experiments.data.arrays import required
from experiments.data.dataset import Data

READ_THREADS, READ_AHEAD = 2, 2


@functools.lru_cache(maxsize=3)
def order(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order of an epoch: a permutation of 0..n-1 that depends on the arguments alone."""
    return np.random.default_rng((seed, epoch)).permutation(n)


def positions(n: int, seed: int, first: int, count: int) -> np.ndarray:
    """Examples at the positions first .. first + count - 1 of the sequence of epochs."""
    at = np.arange(first, first + count)
    rows = np.empty(count, np.int64)
    for epoch in range(first // n, (first + count - 1) // n + 1):
        here = at // n == epoch
        rows[here] = order(seed, epoch, n)[at[here] % n]
    return rows


def batches(
    data: Data,
    *,
    seed: int,
    step: int,
    total: int,
    steps_per_call: int,
    batch: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Generator[Any, None, None]:
    """Batches of the steps `step` .. `total` - 1, stacked for calls of `steps_per_call` steps (the last: the rest).

    Yields `data.batch`es with leading axes (steps, batch / process_count): the part of this process. About
    1 + READ_AHEAD + READ_THREADS calls are in memory at once. Close the iterator to stop its threads early.

    Raises:
        InputError: the batch is not divisible among the processes; or a file cannot be read any more.
    """
    grain = required("grain", "streaming data")
    if batch < 1 or batch % process_count:
        raise InputError(f"--batch {batch} cannot be shared by {process_count} processes; choose a multiple")
    share, n = batch // process_count, data.counts[0]

    def call(first: int) -> Any:
        steps = min(steps_per_call, total - first)
        rows = positions(n, seed, first * batch, steps * batch).reshape(steps, process_count, share)
        return data.batch(rows[:, process_index])

    ahead = grain.ReadOptions(num_threads=READ_THREADS, prefetch_buffer_size=READ_AHEAD)
    source = grain.MapDataset.range(step, total, steps_per_call).map(call).to_iter_dataset(ahead)
    iterator = iter(source)
    try:
        yield from iterator
    finally:
        iterator.close()
