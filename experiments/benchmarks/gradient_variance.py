"""How noisy the gradient is under each weight and each draw of times, relative to stratified uniform times.

    python -m experiments.benchmarks.gradient_variance

A small network is trained briefly on the digits with the default objective; then, with its parameters fixed, the
gradient of each weighted loss is taken on many batches of 128 under each draw. Printed is the variance of the gradient,
E|g - E g|^2 over all parameters, divided by that under stratified uniform times: at 0.5 half the batch would do. Every
draw has the same expected gradient. For weights of 1/sigma^2 such as the likelihood's, uniform times are far from it,
hence ratios far below 1. ``adaptive`` uses levels measured on 100 batches before. Behind +- stands the standard error
from the spread over ten groups of batches.
"""

import dataclasses
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.flatten_util import ravel_pytree

import scoresde as ss
from experiments.data.load import load
from experiments.models.build import build
from experiments.models.flags import Config
from experiments.models.networks import preset
from experiments.models.score_objective import TIMES, WEIGHTS

BATCH, GROUPS = 128, 10
DRAWS = {"uniform": lambda law, levels: ss.training.uniform} | TIMES


@dataclasses.dataclass(frozen=True)
class Flags:
    """Print the table of gradient variances."""

    sde: str = "vp"
    steps: int = 600
    width: int = 64
    repeats: int = 50
    """Gradients in each of the ten groups of an entry."""


def variances(gradient: Any, keys: jax.Array) -> np.ndarray:
    """(GROUPS,): the variance of ``gradient(key)`` summed over parameters, within each group of keys."""

    @jax.jit
    def group(keys: jax.Array) -> jax.Array:
        def add(sums: tuple[jax.Array, jax.Array], key: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
            g, _ = ravel_pytree(gradient(key))
            return (sums[0] + g, sums[1] + g**2), None

        zeros = jnp.zeros(sum(a.size for a in jax.tree.leaves(jax.eval_shape(gradient, keys[0]))))
        (first, square), _ = jax.lax.scan(add, (zeros, zeros), keys)
        return jnp.sum(square - first**2 / len(keys)) / (len(keys) - 1)

    return np.array([group(part) for part in keys.reshape(GROUPS, -1)])


def main(flags: Flags) -> None:
    """Print a row for each weight, a column for each draw."""
    data = load("digits")
    config = Config.of(sde=flags.sde, steps=flags.steps, width=flags.width, depth=1).resolve(data)
    model, images = build(config, data), jnp.asarray(data.train)
    state, _ = model.trainer.run(model.init(), images, steps=flags.steps, batch_size=BATCH)
    law = (preset(data).p_mean + float(np.log(data.sigma_data)), preset(data).p_std)

    def errors(params: Any, key: jax.Array, times: Any) -> ss.training.Denoising:
        key_batch, key_noise, key_loss = jax.random.split(key, 3)
        batch = images[jax.random.randint(key_batch, (BATCH,), 0, len(images))]
        x = data.to_model(batch, jax.random.uniform(key_noise, batch.shape))
        return ss.training.denoising_errors(key_loss, model.sde, model.score(params), x, times=times)

    def measured(weight: Any) -> ss.training.Levels:
        start = ss.training.Levels.start(model.sde, sigma_data=data.sigma_data, decay=1.0)

        def update(levels: ss.training.Levels, key: jax.Array) -> tuple[ss.training.Levels, None]:
            return levels.update(errors(state.params, key, ss.training.uniform_log_snr), weight), None

        return jax.jit(lambda k: jax.lax.scan(update, start, k)[0])(jax.random.split(jax.random.key(1), 100))

    def loss(params: Any, key: jax.Array, weight: Any, times: Any) -> jax.Array:
        e = errors(params, key, times)
        return jnp.mean(weight(model.sde, e.t) * e.importance * e.error)

    keys = jax.random.split(jax.random.key(2), GROUPS * flags.repeats)
    print("weight".ljust(12) + "".join(name.rjust(18) for name in DRAWS))
    for word, make in WEIGHTS.items():
        if word == "learned":
            continue  # its draw is part of the objective
        weight, row = make(model.precond, law), {}
        levels = measured(weight)
        for name, draw in DRAWS.items():
            times = draw(law, levels)
            row[name] = variances(partial(jax.grad(loss), state.params, weight=weight, times=times), keys)
        base = row["stratified"]
        cells = []
        for values in row.values():
            ratio, error = np.mean(values) / np.mean(base), np.std(values / np.mean(base), ddof=1) / np.sqrt(GROUPS)
            cells.append(f"{ratio:.3g} +- {error:.1g}".rjust(18))
        print(word.ljust(12) + "".join(cells), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Flags, prog="python -m experiments.benchmarks.gradient_variance", args=sys.argv[1:]))
