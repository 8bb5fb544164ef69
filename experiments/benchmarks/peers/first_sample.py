"""The first samples of a fresh process, ours; run by ``experiments.benchmarks.peers``, which times the process.

    python -m experiments.benchmarks.peers.first_sample

4,096 samples of the ring, 20 evaluations of its exact score, float32, compiled programs kept where
``experiments.cli.compile_cache`` keeps them.
"""

import jax

import scoresde as ss
from experiments.cli import compile_cache
from experiments.data.toys import RING


def main() -> None:
    """Draw them."""
    compile_cache.set_up()
    sde = ss.VP()
    samples = ss.sample(jax.random.key(0), ss.GaussianMixture(*RING).score(sde), ss.best_solver(sde, 20), (4096, 2))
    jax.device_get(samples)


if __name__ == "__main__":
    main()
