"""What the library adds to the network itself: a training step and a solver loop beside bare network evaluations.

    python -m experiments.benchmarks.overhead

The training step (times, noise, dequantisation, loss, gradient, clipping, optimiser, moving average) is compared with
the gradient of the bare network on a batch of the same shape; a solver's loop with a loop of bare network evaluations.
The alternatives take turns, and the median over the turns of each is reported.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import scoresde as ss
from experiments.data.load import load
from experiments.models.build import build
from experiments.models.flags import Config


def alternate(candidates: dict[str, Callable[[], Any]], turns: int) -> dict[str, float]:
    """Median seconds of each candidate, run in turn after one warm-up."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(turns + 1):
        for name, run in candidates.items():
            started = time.perf_counter()
            jax.block_until_ready(run())
            if turn:
                times[name].append(time.perf_counter() - started)
    return {name: float(np.median(values)) for name, values in times.items()}


def main(sde: str = "vp", data: str = "digits", steps: int = 50, turns: int = 9, batch: int = 300) -> None:
    """Print both ratios.

    Args:
        sde: the SDE.
        data: the data, whose preset decides the network and the training batch.
        steps: steps a call.
        turns: turns of each alternative.
        batch: examples sampled at once.
    """
    source = load(data)
    config = Config.of(sde=sde, data=data).resolve(source)
    model = build(config, source)
    images, size = jnp.asarray(source.train), int(config.optimiser.batch or 1)
    state = model.init()
    params = jax.tree.map(jnp.array, state.params)
    u = jax.random.normal(jax.random.key(1), (size, *source.event_shape))
    c = jnp.linspace(-5, 4, size)

    @jax.jit
    def gradients(params: Any, key: jax.Array) -> Any:
        """At parameters that move, as in training: frozen ones would let XLA transpose the weights once for all."""

        def body(params: Any, key: jax.Array) -> tuple[Any, None]:
            grads = jax.grad(lambda p: jnp.mean(model.apply(p, u, c, key=key) ** 2))(params)
            return jax.tree.map(lambda p, g: p - 1e-6 * g, params, grads), None

        return jax.lax.scan(body, params, jax.random.split(key, steps))[0]

    def train() -> Any:
        nonlocal state
        state, metrics = model.trainer.run(state, images, steps=steps, batch_size=size)
        return metrics

    x = model.sde.prior_sample(jax.random.key(2), (batch, *source.event_shape))
    score, grid = model.score(params), ss.log_snr_grid(model.sde, steps)
    coordinates = -0.5 * model.sde.log_snr(grid[:-1])

    @jax.jit
    def evaluations(params: Any, u: jax.Array) -> jax.Array:
        """The network at the noise levels of the solvers and at inputs of the same scale, one after the other."""
        body = lambda u, c: (u + 1e-3 * model.apply(params, u, jnp.full(batch, c)), None)  # noqa: E731
        return jax.lax.scan(body, u, coordinates)[0]

    solve = partial(ss.integrate, jax.random.key(3), score)
    seconds = alternate(
        {
            "network and gradient": lambda: gradients(params, jax.random.key(0)),
            "training step": train,
            "network": lambda: evaluations(params, x / jnp.std(x)),
            "ddim": lambda: solve(ss.ddim(model.sde, grid), x),
            "euler_maruyama": lambda: solve(ss.euler_maruyama(model.sde, grid), x),
        },
        turns,
    )
    network = config.architecture.network
    print(f"{network}, {model.parameters:,} parameters, {steps} steps a call, {jax.devices()[0].device_kind}")
    for name, value in seconds.items():
        base = seconds["network and gradient" if "training" in name or "gradient" in name else "network"]
        print(f"{name:28s} {1e3 * value / steps:8.3f} ms   {value / base:5.2f} x the network alone")


if __name__ == "__main__":
    tyro.cli(main)
