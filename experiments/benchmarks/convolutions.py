"""The backward pass of a convolution on a CPU: what XLA makes of each way to write it, beside PyTorch's oneDNN.

    python -m experiments.benchmarks.convolutions --peers-python ENV/bin/python

x (B, n, n, C) and w (3, 3, C, C) give y = conv(x, w) with zeros around; backward is (dx, dw) of a given dy. Each way is
timed as a program of its own and, since a training step stands inside a compiled loop, as the body of a ``lax.scan``:

    lax, channels last         conv_general_dilated, NHWC and HWIO; its derivatives as JAX writes them
    lax, channels first        the same, NCHW and OIHW
    channels_last              ``scoresde.nn.layers.convolution``: derivatives that keep the layout
    nine products              sum over the shifts of x[shifted] @ w[shift]
    patches                    one product of all shifts side by side (9 times the memory) with w
    torch                      NCHW and channels last, with --peers-python (``torch_convolution.py``)

Every set of XLA's options runs in a process of its own; one that this XLA does not know is reported as such.
"""

import dataclasses
import json
import operator
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial, reduce
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console

from experiments.benchmarks.networks import INSTALL
from experiments.benchmarks.one_network import median_ms
from experiments.cli import commands
from experiments.cli.errors import InputError
from scoresde.nn.layers.convolution import channels_last

PEER = Path(__file__).with_name("torch_convolution.py")
Convolution = Callable[[jax.Array, jax.Array], jax.Array]


def lax_last(x: jax.Array, w: jax.Array) -> jax.Array:
    """Channels last."""
    return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def lax_first(x: jax.Array, w: jax.Array) -> jax.Array:
    """x (B, C, n, n), w (C, C, 3, 3)."""
    return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW"))


def shifted(x: jax.Array) -> list[jax.Array]:
    """x at the nine places of the kernel, zeros around."""
    wide = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return [wide[:, i : i + x.shape[1], j : j + x.shape[2]] for i in range(3) for j in range(3)]


def products(x: jax.Array, w: jax.Array) -> jax.Array:
    """Nine products of matrices."""
    return reduce(operator.add, (s @ k for s, k in zip(shifted(x), w.reshape(9, *w.shape[2:]), strict=True)))


def patches(x: jax.Array, w: jax.Array) -> jax.Array:
    """One product."""
    return jnp.concatenate(shifted(x), axis=-1) @ w.reshape(-1, w.shape[-1])


WAYS: dict[str, Convolution] = {
    "lax, channels last": lax_last,
    "lax, channels first": lax_first,
    "channels_last": partial(channels_last, strides=(1, 1), padding="SAME"),
    "nine products": products,
    "patches": patches,
}
OPTIONS = {
    "": "XLA's defaults",
    "--xla_cpu_use_thunk_runtime=false": "",
    "--xla_cpu_use_onednn=true": "",
    "--xla_cpu_use_xnnpack=true": "",
    "--xla_cpu_multi_thread_eigen=false": "",
    "--xla_cpu_enable_fast_math=true": "",
}
"""Sets of XLA's flags, and their names in the table where those are others."""


@dataclasses.dataclass(frozen=True)
class Flags:
    """Time the passes of a convolution written in several ways."""

    peers_python: Path | None = None
    """Python of an environment with torch; without it PyTorch is left out."""
    batch: int = 64
    """Examples."""
    size: int = 28
    """Height and width n."""
    channels: int = 64
    """Channels C, in and out."""
    repeats: int = 10
    """Timed calls of each kind, after two that are not counted."""
    loop: int = 3
    """Turns of the compiled loop."""
    options: bool = True
    """Try XLA's options."""
    alone: bool = False
    """Print JSON of this process's own figures: what the command runs for each set of options."""


def timed(way: Convolution, flags: Flags, *, first: bool) -> dict[str, float]:
    """Milliseconds of the forward and the backward pass, and of one turn of a loop of backward passes."""
    n, c = flags.size, flags.channels
    shapes = ((flags.batch, c, n, n), (c, c, 3, 3)) if first else ((flags.batch, n, n, c), (3, 3, c, c))
    x, w = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes))
    forward = jax.jit(way)
    backward = jax.jit(lambda x, w, dy: jax.vjp(way, x, w)[1](dy))

    @jax.jit
    def loop(x: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
        def turn(carry: tuple[jax.Array, jax.Array], _: None) -> tuple[Any, None]:
            y, pull = jax.vjp(way, *carry)
            dx, dw = pull(y)
            return (carry[0] - 1e-6 * dx, carry[1] - 1e-6 * dw), None

        return jax.lax.scan(turn, (x, w), length=flags.loop)[0]

    found = {"forward": median_ms(lambda: forward(x, w), flags.repeats)}
    found["backward"] = median_ms(lambda: backward(x, w, x), flags.repeats)
    return found | {"both, in a loop": median_ms(lambda: loop(x, w), flags.repeats) / flags.loop}


def measured(command: list[Any], flags: Flags, environment: dict[str, str]) -> dict[str, dict[str, float]] | str:
    """What a process of its own finds, or the end of what it says instead."""
    sizes = [f"--{name}={getattr(flags, name)}" for name in ("batch", "size", "channels", "repeats")]
    done = subprocess.run([*map(str, command), *sizes], env=environment, capture_output=True, text=True)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["no message"])[-1][:200]
    return json.loads(done.stdout.strip().splitlines()[-1])


def program(flags: Flags, console: Console) -> None:
    """Print the table."""
    if min(flags.batch, flags.size, flags.channels, flags.repeats, flags.loop) < 1:
        raise InputError("--batch, --size, --channels, --repeats and --loop must be at least 1")
    if flags.peers_python is not None and not os.access(flags.peers_python, os.X_OK):
        raise InputError(f"no Python at --peers-python {flags.peers_python}; to make one: {INSTALL}")
    say = partial(console.print, highlight=False, markup=False)
    if flags.alone:
        return say(json.dumps({name: timed(way, flags, first=way is lax_first) for name, way in WAYS.items()}))
    shape = f"{flags.batch}x{flags.size}x{flags.size}x{flags.channels}, kernel 3x3"
    say(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {os.cpu_count()} cores, {shape}, float32, ms\n")
    say("| way | options | forward | backward | both, in a loop |\n|---|---|---|---|---|")
    runs: list[tuple[str, list[Any], dict[str, str]]] = []
    for option, name in OPTIONS.items() if flags.options else [("", OPTIONS[""])]:
        environment = dict(os.environ) | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {option}".strip()}
        command = [sys.executable, "-m", "experiments.benchmarks.convolutions", "--alone", f"--loop={flags.loop}"]
        runs.append((name or f"`{option}`", command, environment))
    if flags.peers_python is not None:
        alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        runs.append(("PyTorch's defaults", [flags.peers_python, PEER], alone))
    for name, command, environment in runs:
        found = measured(command, flags, environment)
        if isinstance(found, str):
            say(f"| | {name} | not run: {found} | | |")
            continue
        for way, values in found.items():
            say(f"| {way} | {name} | {' | '.join(f'{value:.1f}' for value in values.values())} |")
    return None


def main() -> None:
    """Command line; see ``commands.main``."""
    commands.main(Flags, "benchmarks.convolutions", program, cached=lambda flags: False)


if __name__ == "__main__":
    main()
