"""What a GPU or TPU makes of the U-Net: images a second, memory, model FLOP utilisation, and where the rest goes.

    python -m experiments.benchmarks.accelerator
    python -m experiments.benchmarks.accelerator --batches 128 --trace runs/trace

For each batch the forward pass, the gradient and the whole training step (times, noise, loss, gradient, clipping,
AdamW, moving average) take turns, each inside one compiled loop, as in training. Floating-point operations are those
of the program before the compiler's work (``Lowered.cost_analysis``), so that what is computed twice counts once:

    utilisation = operations of the training step / (its seconds * peak operations a second of the device).

With --trace the steps of the last batch are recorded for TensorBoard's or Perfetto's profiler.
"""

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.tree_util import Partial

from experiments.benchmarks.overhead import alternate
from experiments.data.load import load
from experiments.models.build import Model, build
from experiments.models.flags import Config

# Dense bfloat16 operations a second, from the makers' data sheets, by a part of JAX's name of the device.
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L4": 121e12, "T4": 65e12, "v5 lite": 197e12, "v4": 275e12}


def peak(kind: str) -> float | None:
    """Operations a second of a device of this kind, None where it is not known."""
    return next((value for name, value in PEAKS.items() if name in kind), None)


def operations(model: Model, batch: Any) -> float:
    """Of one training step."""
    state = jax.eval_shape(model.trainer.init, jax.random.key(0), model.init().params)
    analysis = jax.jit(model.trainer.step).lower(state, batch).cost_analysis()
    return float(analysis["flops"])  # pyright: ignore[reportOptionalSubscript, reportArgumentType, reportCallIssue]


def loops(model: Model, images: jax.Array, batch: int, steps: int) -> dict[str, Any]:
    """Functions that do ``steps`` of each kind; parameters and inputs move, so that nothing leaves the loops."""
    state = model.init()
    params = jax.tree.map(jnp.array, state.params)
    u, c = jax.random.normal(jax.random.key(1), (batch, *images.shape[1:])), jnp.linspace(-5, 4, batch)

    @jax.jit
    def forward(params: Any, u: jax.Array) -> jax.Array:
        body = lambda u, _: (u + 1e-3 * model.apply(params, u, c), None)  # noqa: E731
        return jax.lax.scan(body, u, length=steps)[0]

    @jax.jit
    def gradient(params: Any) -> Any:
        def body(params: Any, _: None) -> tuple[Any, None]:
            grads = jax.grad(lambda p: jnp.mean(model.apply(p, u, c).astype(jnp.float32) ** 2))(params)
            return jax.tree.map(lambda p, g: p - 1e-6 * g, params, grads), None

        return jax.lax.scan(body, params, length=steps)[0]

    def train() -> Any:
        nonlocal state
        state, metrics = model.trainer.run(state, images, steps=steps, batch_size=batch)
        return metrics

    return {"forward": Partial(forward, params, u), "gradient": Partial(gradient, params), "step": train}


def main(
    batches: tuple[int, ...] = (128, 256, 512),
    size: int = 32,
    width: int = 128,
    depth: int = 2,
    dtype: str = "bf16",
    remat: bool = False,
    steps: int = 20,
    turns: int = 3,
    trace: Path | None = None,
) -> None:
    """Print a row for each batch.

    Args:
        batches: examples a step.
        size: height and width of the colour images of noise.
        width: channels of the U-Net at full resolution.
        depth: its blocks a level.
        dtype: bf16 or f32.
        remat: compute the blocks again in the backward pass.
        steps: steps a compiled call.
        turns: turns of each alternative, after one that is not counted.
        trace: folder for the profiler's record.
    """
    device = jax.local_devices()[0]
    most = peak(device.device_kind)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "noise.npz"
        shape = max(16, 2 * max(batches)), size, size, 3
        np.savez(path, x=np.random.default_rng(0).integers(0, 256, shape, np.uint8))
        data = load(f"npz:{path}")
    print(f"{device.device_kind}, jax {jax.__version__}, U-Net {size}x{size}x3, width {width}, depth {depth}, {dtype}")
    print("batch  images/s  forward ms  gradient ms  step ms  peak MiB  TFLOP a step  utilisation")
    images, run = jnp.asarray(data.train), None
    for batch in batches:
        flags = {"width": width, "depth": depth, "dtype": dtype, "remat": remat, "batch": batch}
        config = Config.of(data=data.name, network="unet", **flags)
        model = build(config.resolve(data), data)
        candidates = loops(model, images, batch, steps)
        seconds = {name: value / steps for name, value in alternate(candidates, turns).items()}
        flops, memory = operations(model, images[:batch]), device.memory_stats() or {}
        used = f"{memory['peak_bytes_in_use'] / 2**20:.0f}" if "peak_bytes_in_use" in memory else "unknown"
        share = "unknown" if most is None else f"{flops / seconds['step'] / most:.1%}"
        times = "  ".join(f"{1e3 * seconds[name]:.2f}" for name in candidates)
        print(f"{batch}  {batch / seconds['step']:,.0f}  {times}  {used}  {flops / 1e12:.4g}  {share}", flush=True)
        run = candidates["step"]
    with jax.profiler.trace(str(trace)) if trace else contextlib.nullcontext():
        jax.block_until_ready(run()) if trace and run else None


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
