"""The other processes that a program works with, and what is said where a device has not enough memory.

Processes on several hosts become one program by `jax.distributed`: each runs the same command with its own
--process-id, process 0 at --coordinator; on a pod whose environment says all that, --distributed auto.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.cli.errors import InputError
from experiments.models.values import Engine

SHUTDOWN_SECONDS = 24 * 3600  # how long the others wait for process 0, which evaluates alone


def join(engine: Engine) -> None:
    """Find the other processes, where there are any; to be called once, before JAX looks for devices.

    Raises:
        InputError: flags are missing, or the processes do not find each other.
    """
    by_hand = (engine.coordinator, engine.processes, engine.process_id)
    if engine.distributed == "none" and by_hand == (None, None, None):
        return
    if engine.distributed == "none" and None in by_hand:
        raise InputError("--coordinator HOST:PORT, --processes and --process-id go together; one of them is missing")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(*by_hand, shutdown_timeout_seconds=SHUTDOWN_SECONDS)
    except (RuntimeError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), "")
        raise InputError(f"the processes did not find each other ({reason}); check --coordinator") from None


def main_process() -> bool:
    """Whether this is the process that writes files and prints."""
    return jax.process_index() == 0


def in_any_process(flag: bool) -> bool:
    """Whether the flag is set in one of the processes, the same answer in all; all must ask."""
    return flag if jax.process_count() == 1 else bool(np.any(multihost_utils.process_allgather(np.array(flag))))


@contextmanager
def memory_errors() -> Iterator[None]:
    """One line with the flags that save memory, where a device has not enough."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "out of memory" not in str(error).lower():
            raise
        raise InputError(
            f"out of memory on {jax.devices()[0].device_kind}: try --microbatches 2 (or more), --remat, --dtype bf16, "
            "--fsdp with several devices, or a smaller --batch"
        ) from None
