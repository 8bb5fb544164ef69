"""The order of the examples: a permutation of each epoch, as good as uniform, exact after any number of steps."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scoresde import Trainer
from scoresde.training.order import Order, places

KEY = jax.random.key(3)


def order(n, epochs, key=KEY):
    """(epochs, n) the examples of each epoch."""
    epoch, place = jnp.repeat(jnp.arange(epochs), n), jnp.tile(jnp.arange(n, dtype=jnp.uint32), epochs)
    return np.asarray(Order.of(key, jnp.arange(epochs), n).examples(epoch, place)).reshape(epochs, n)


@pytest.mark.parametrize("x64", [False, True])
def test_epoch_and_place_are_those_of_unlimited_integers(x64):
    """ImageNet at a batch of 4096 passes 2^31 examples at step 524,288; sizes near the limits, more than the data."""
    last = 2**31 - 1
    cases = [(1_281_167, 4096), (60_000, 128), (7, 4096), (1, 5), (last, last - 1), (2**30 + 3, 2**30 + 1)]
    with jax.enable_x64(x64):
        for n, batch in cases:
            for step in (0, 1, 524_287, 524_288, 10**9 + 7, last):
                epoch, place = places(jnp.asarray(step, jnp.int32), batch, n)
                exact = divmod(step * batch, n)
                assert (int(epoch), int(place)) == (exact[0] % 2**32, exact[1]), (n, batch, step)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 1000, 4099])
def test_each_epoch_is_a_permutation_of_its_own(n):
    epochs = order(n, 3)
    np.testing.assert_array_equal(np.sort(epochs, 1), np.broadcast_to(np.arange(n), (3, n)))
    assert n < 64 or len({tuple(epoch) for epoch in epochs}) == 3
    np.testing.assert_array_equal(order(n, 2), epochs[:2])
    assert n < 64 or not np.array_equal(order(n, 1, jax.random.key(4)), epochs[:1])


def excess(counts):
    """How many of its standard deviations chi-square is above its mean, for counts of equal expectation."""
    expected, freedom = counts.mean(), counts.size - 1
    return (np.sum((counts - expected) ** 2) / expected - freedom) / math.sqrt(2 * freedom)


@pytest.mark.parametrize("n", [3, 5])
def test_all_permutations_of_few_examples_are_equally_likely(n):
    """Odd and even ones too, which rounds of odd sides could not mix."""
    found = order(n, 24_000) @ n ** np.arange(n)
    _, counts = np.unique(found, return_counts=True)
    assert len(counts) == math.factorial(n) and abs(excess(counts)) < 5


def test_any_two_places_hold_all_pairs_equally_often():
    n = 30
    epochs = order(n, 20_000)
    for i, j in ((0, 1), (3, 4), (0, 16), (14, 29)):
        counts = np.zeros((n, n))
        np.add.at(counts, (epochs[:, i], epochs[:, j]), 1)
        assert abs(excess(counts[~np.eye(n, dtype=bool)])) < 5


def test_training_past_2_to_the_31_examples_takes_its_rows_and_sorts_nothing():
    """Step 524,288 and on, over the end of an epoch: each row once, none of another epoch."""
    n, batch, start = 1009, 4096, 2**19
    trainer = Trainer(lambda p, key, batch: p * 0 + batch, optax.sgd(0.0))

    def run(steps):
        state = dataclasses.replace(trainer.init(KEY, jnp.array(0.0)), step=jnp.array(start, jnp.int32))
        return trainer.run(state, jnp.arange(n, dtype=jnp.float32), steps=steps, batch_size=batch)[1]["loss"]

    epochs, at = np.divmod(start * batch + np.arange(3 * batch), n)
    orders = Order.of(jax.random.fold_in(KEY, 1), jnp.asarray(np.unique(epochs), jnp.uint32), n)
    seen = orders.examples(jnp.asarray(epochs - epochs[0]), jnp.asarray(at, jnp.uint32))
    np.testing.assert_allclose(run(3), np.reshape(seen, (3, batch)).astype(float).mean(1), rtol=1e-5)
    assert " sort" not in str(jax.make_jaxpr(lambda: run(2))())
