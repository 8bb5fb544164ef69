"""Whether the input pipeline keeps up: training steps on streamed batches beside the same steps on one fixed batch.

    python -m experiments.benchmarks.pipeline
    python -m experiments.benchmarks.pipeline --data images:PATH --network unet --batch 128

Without `--data`, 32x32 colour images of noise in a .npy file stand for data larger than memory. First the stream alone
is timed beside plain NumPy indexing of the same examples in memory; then compiled calls of k steps take turns on a
batch that stays on the device and on what `experiments.data.stream` brings. A ratio above 1.03 means that steps wait
for data; on a CPU it also holds what reading takes from the cores that train.
"""

import contextlib
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.data.arrays import Options
from experiments.data.dataset import Data
from experiments.data.load import load
from experiments.data.stream import batches, positions
from experiments.models.build import build
from experiments.models.flags import Config


@contextlib.contextmanager
def source(data: str | None, examples: int) -> Iterator[Data]:
    """The data on disk, whatever their size."""
    on_disk = Options(in_memory_gib=0)
    if data is not None:
        yield load(data, options=on_disk)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "noise.npy"
        np.save(path, np.random.default_rng(0).integers(0, 256, (examples, 32, 32, 3), np.uint8))
        yield load(f"npy:{path}", options=on_disk)


def rates(data: Data, steps: int, batch: int, calls: int) -> tuple[float, float]:
    """Examples a second of the stream alone, and of NumPy indexing into memory."""
    stream = batches(data, seed=0, step=0, total=10**9, steps_per_call=steps, batch=batch)
    next(stream)
    started = time.perf_counter()
    for _ in range(calls):
        next(stream)
    streamed = time.perf_counter() - started
    stream.close()
    memory = data.train[:]
    started = time.perf_counter()
    for call in range(calls):
        memory[positions(len(memory), 0, call * steps * batch, steps * batch)]
    indexed = time.perf_counter() - started
    return calls * steps * batch / streamed, calls * steps * batch / indexed


def main(
    data: str | None = None,
    network: str = "mlp",
    width: int = 256,
    depth: int = 3,
    batch: int = 128,
    steps: int = 10,
    calls: int = 5,
    turns: int = 5,
    examples: int = 20_000,
) -> None:
    """Print both comparisons.

    Args:
        data: images: or npy: and a path; by default noise.
        network: mlp or unet.
        width: its width.
        depth: its depth.
        batch: examples a step.
        steps: steps a compiled call.
        calls: calls a turn.
        turns: turns of each alternative, after one that is not counted.
        examples: of the noise.
    """
    with source(data, examples) as images:
        shape = "x".join(map(str, images.event_shape))
        print(f"{images.counts[0]} examples of {shape} on disk, batch {batch}, {steps} steps a call")
        streamed, indexed = rates(images, steps, batch, calls)
        print(f"stream alone {streamed:,.0f} examples/s; NumPy indexing in memory {indexed:,.0f} examples/s")
        config = Config.of(data=images.name, network=network, width=width, depth=depth, batch=batch).resolve(images)
        model = build(config, images)

        @partial(jax.jit, donate_argnums=0)
        def run(state: Any, stacked: Any) -> Any:
            return jax.lax.scan(model.trainer.step, state, stacked)

        def turn(state: Any, stream: Iterator[Any]) -> tuple[Any, float]:
            """Seconds a step of `calls` calls; the next batch is asked for while the device works, as in training."""
            stacked = next(stream)
            started = time.perf_counter()
            for _ in range(calls):
                state, _ = run(state, jax.device_put(stacked))
                stacked = next(stream)
            jax.block_until_ready(state)
            return state, (time.perf_counter() - started) / (calls * steps)

        state, seconds = model.init(), {"fixed": [], "streamed": []}
        rows = np.arange(steps * batch).reshape(steps, batch) % images.counts[0]
        fixed = jax.tree.map(jnp.asarray, images.batch(rows))
        for k in range(turns + 1):
            stream = batches(images, seed=k, step=0, total=(calls + 1) * steps, steps_per_call=steps, batch=batch)
            for name, feed in (("fixed", iter([fixed] * (calls + 1))), ("streamed", stream)):
                state, each = turn(state, feed)
                if k:
                    seconds[name].append(each)
        medians = {name: float(np.median(values)) for name, values in seconds.items()}
        print(
            f"{model.parameters:,} parameters on {jax.devices()[0].device_kind}: "
            f"fixed batch {1e3 * medians['fixed']:.2f} ms a step, streamed {1e3 * medians['streamed']:.2f} ms, "
            f"ratio {medians['streamed'] / medians['fixed']:.3f}"
        )


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
