"""The order in which an epoch visits its examples, one place at a time: a random permutation that is never written out.

Step s of batches of B begins at example s B of all that are ever seen; in int32, with B = q n + r and r < n,

    s B = (s q + m) n + place,       m n + place = s r        (doubling and adding modulo n, bit by bit of s).

The example at a place of an epoch is found as in a cipher. Write a place as (u, v) in Z_a x Z_b, a b >= n, a and b
near sqrt(n) and a a power of two, without which all would be even permutations. Each round of a Feistel network,

    u <- u + F(v) mod a,             v <- v + G(u) mod b,

is a permutation of the a b places whatever F and G are; these are tables of random numbers, drawn from the epoch's key.
Four such steps make a pseudorandom permutation of a large set (Luby and Rackoff 1988); with ``ROUNDS`` pairs those of
few examples cannot be told from uniform ones either. Going on from a place beyond n until one of the n is met permutes
those n (Black and Rogaway 2002). So an epoch costs some sqrt(n) random numbers and a step its own B places, where a
shuffle would sort all n.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

ROUNDS = 12


def places(step: jax.Array, batch_size: int, n: int) -> tuple[jax.Array, jax.Array]:
    """Epoch (), modulo 2^32, and place in it () of the first example of a step, for n below 2^31."""
    q, r = divmod(batch_size, n)
    step = jnp.asarray(step, jnp.uint32)

    def double_and_add(i: jax.Array, found: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        m, place = found
        m, place = _carried(2 * m, 2 * place, n)
        bit = (step >> (jnp.uint32(31) - i.astype(jnp.uint32))) & jnp.uint32(1)
        return _carried(m, place + bit * jnp.uint32(r), n)

    m, place = jax.lax.fori_loop(0, 32, double_and_add, (jnp.uint32(0), jnp.uint32(0)))
    return step * jnp.uint32(q % 2**32) + m, place


def _carried(m: jax.Array, place: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
    over = (place >= jnp.uint32(n)).astype(jnp.uint32)
    return m + over, place - over * jnp.uint32(n)


class Order(NamedTuple):
    """The orders of some epochs."""

    left: jax.Array
    """(E, ROUNDS, b) F, numbers below a."""
    right: jax.Array
    """(E, ROUNDS, a) G, numbers below b."""
    n: int
    """The number of examples."""

    @classmethod
    def of(cls, key: jax.Array, epochs: jax.Array, n: int) -> "Order":
        """Those of epochs (E,) of n examples, each a function of (key, epoch, n) alone."""
        a = 1 << math.ceil(math.log2(n) / 2)
        b = -(-n // a)

        def tables(epoch: jax.Array) -> tuple[jax.Array, jax.Array]:
            for_left, for_right = jax.random.split(jax.random.fold_in(key, epoch))
            below = partial(jax.random.randint, minval=0, dtype=jnp.uint32)
            return below(for_left, (ROUNDS, b), maxval=a), below(for_right, (ROUNDS, a), maxval=b)

        return cls(*jax.vmap(tables)(epochs), n)

    def examples(self, epoch: jax.Array, place: jax.Array) -> jax.Array:
        """The examples (B,) at places (B,) of epochs (B,), numbers of their rows in the tables."""
        b, a = (jnp.uint32(table.shape[-1]) for table in (self.left, self.right))

        def one_round(i: jax.Array, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            u, v = pair
            u = (u + self.left[epoch, i, v]) % a
            return u, (v + self.right[epoch, i, u]) % b

        def go_on(found: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            place, away = found
            u, v = jax.lax.fori_loop(0, ROUNDS, one_round, (place // b, place % b))
            place = jnp.where(away, u * b + v, place)
            return place, place >= jnp.uint32(self.n)

        return jax.lax.while_loop(lambda found: jnp.any(found[1]), go_on, (place, jnp.ones(place.shape, bool)))[0]
