"""One of our networks, timed alone in its process:

    python -m experiments.benchmarks.one_network ddpmpp --batch 8 --repeats 5

is what ``experiments.benchmarks.networks`` runs for each row, beside ``diffusers_peers.py``, which takes its flags too.
The last line printed is JSON: the number of parameters, seconds to compile the forward pass and the training step, the
median milliseconds of each, and the process's peak memory in MiB (on an accelerator, its own). The training step is the
gradient of a mean of squares and Adam; the network's input, its noise coordinate and its classes are random.
"""

import json
import resource
import time
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import scoresde as ss
from experiments.models.build import DTYPES
from experiments.models.values import Dtype

WARM_UP, LEARNING_RATE = 2, 1e-4
NETWORKS: dict[str, tuple[Callable[..., Any], tuple[int, ...], int]] = {
    "ddpmpp": (ss.nn.presets.ddpmpp, (32, 32, 3), 0),
    "ncsnpp": (ss.nn.presets.ncsnpp, (32, 32, 3), 0),
    "adm_small": (partial(ss.nn.presets.adm, channels=64, features=64, conditions=None), (32, 32, 3), 0),
    "edm2_xs": (ss.nn.edm2_xs, (32, 32, 3), 0),
    "dit_s": (partial(ss.nn.dit_s, outputs=8, conditions=ss.nn.Classes(1000)), (32, 32, 4), 1000),
}
"""Name -> network of an event shape, that shape, number of classes."""


def compiled(function: Callable[..., Any], *arguments: Any, donate: tuple[int, ...] = ()) -> tuple[Any, float]:
    """The executable, and the seconds that tracing and compiling took."""
    started = time.perf_counter()
    executable = jax.jit(function, donate_argnums=donate).lower(*arguments).compile()
    return executable, time.perf_counter() - started


def median_ms(call: Callable[[], Any], repeats: int) -> float:
    """Milliseconds of a call, after some that are not counted."""
    taken = []
    for _ in range(WARM_UP + repeats):
        started = time.perf_counter()
        jax.block_until_ready(call())
        taken.append(time.perf_counter() - started)
    return 1e3 * float(np.median(taken[WARM_UP:]))


def peak_mib() -> float:
    """Of the accelerator if it tells, else of this process."""
    memory = jax.local_devices()[0].memory_stats() or {}
    return memory["peak_bytes_in_use"] / 2**20 if memory else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main(
    name: Annotated[str, tyro.conf.Positional],
    batch: int = 8,
    repeats: int = 5,
    dtype: Dtype = "f32",
    steps: int = 1,
    scan: bool = False,
) -> None:
    """Time one network.

    Args:
        name: one of the networks.
        batch: examples.
        repeats: timed calls of each kind.
        dtype: f32 or bf16, of the computation; parameters are f32.
        steps: training steps inside one compiled call.
        scan: compile one of the blocks that are alike and loop over them.
    """
    make, shape, classes = NETWORKS[name]
    apply, params = ss.nn.functional(make(shape, scan=scan, key=jax.random.key(0)), dtype=DTYPES[dtype])
    x, c = jax.random.normal(jax.random.key(1), (batch, *shape)), jnp.linspace(-1, 1, batch)
    cond = jax.random.randint(jax.random.key(2), (batch,), 0, classes) if classes else None
    optimizer = optax.adam(LEARNING_RATE)

    def forward(params: Any, x: jax.Array) -> jax.Array:
        return apply(params, x, c, cond=cond)

    def train(params: Any, state: Any, x: jax.Array) -> tuple[Any, Any]:
        def step(carry: Any, _: None) -> tuple[Any, None]:
            params, state = carry
            grads = jax.grad(lambda p: jnp.mean(forward(p, x).astype(jnp.float32) ** 2))(params)
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, state), length=steps)[0]

    state = optimizer.init(params)
    evaluate, evaluate_s = compiled(forward, params, x)
    forward_ms = median_ms(lambda: evaluate(params, x), repeats)
    advance, advance_s = compiled(train, params, state, x, donate=(0, 1))
    count = sum(leaf.size for leaf in jax.tree.leaves(params))

    def one() -> Any:
        nonlocal params, state
        params, state = advance(params, state, x)
        return params

    step_ms = median_ms(one, repeats) / steps
    found = {"parameters": count, "forward_compile_s": evaluate_s, "step_compile_s": advance_s}
    print(json.dumps(found | {"forward_ms": forward_ms, "step_ms": step_ms, "peak_mib": peak_mib()}))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
