"""What a program sets up before its first array: the cache of compiled programs, and the other processes it works with.

Programs compile once: XLA's output is kept in the user's cache folder and read by the next process that asks for the
same program on the same kind of device. JAX_COMPILATION_CACHE_DIR names another folder; --no-compile-cache, or
SCORESDE_COMPILE_CACHE=off, keeps none.

Processes on several hosts become one program by `jax.distributed`: each runs the same command with its own
--process-id, process 0 at --coordinator; on a pod whose environment says all that, --distributed auto.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.data import InputError
from experiments.setup import Config

SHUTDOWN_SECONDS = 24 * 3600  # how long the others wait for process 0, which evaluates alone


def prepare(config: Config) -> None:
    """Set up compile cache and processes; to be called once, before JAX looks for devices.

    Raises:
        InputError: the cache folder cannot be made, flags are missing, or the processes do not find each other.
    """
    if config.compile_cache and os.environ.get("SCORESDE_COMPILE_CACHE", "on") != "off":
        _cache()
    by_hand = (config.coordinator, config.processes, config.process_id)
    if config.distributed == "none" and by_hand == (None, None, None):
        return
    if config.distributed == "none" and None in by_hand:
        raise InputError("--coordinator HOST:PORT, --processes and --process-id go together; one of them is missing")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(*by_hand, shutdown_timeout_seconds=SHUTDOWN_SECONDS)
    except (RuntimeError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), "")
        raise InputError(f"the processes did not find each other ({reason}); check --coordinator") from None


def _cache() -> None:
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if not folder:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = str(root / "scoresde" / "compiled")
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the compile cache {folder} ({error.strerror}); use --no-compile-cache") from None
    jax.config.update("jax_compilation_cache_dir", folder)


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
