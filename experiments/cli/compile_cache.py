"""Programs compile once: XLA's output is kept on disk, and read by the next process that asks for the same program on
the same kind of device, whichever command it is.

The folder is ~/.cache/scoresde/compiled (or below XDG_CACHE_HOME). Each process that begins removes from it what was
not used for longest, down to LARGEST bytes; JAX's own bound, jax_compilation_cache_max_size, looks through the whole
folder, under a lock, for each program that is written: long, with thousands of small ones. Another folder, named by
JAX_COMPILATION_CACHE_DIR, is left to JAX and to you; SCORESDE_COMPILE_CACHE=off keeps nothing.
"""

import contextlib
import os
import sys
import warnings
from pathlib import Path

import jax

LARGEST = 4 * 2**30


def set_up(on: bool = True) -> None:
    """Use the cache, or none; to be called once, before JAX compiles anything. An unusable folder is a warning."""
    named = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(named) if named else root / "scoresde" / "compiled"
    on = on and os.environ.get("SCORESDE_COMPILE_CACHE", "on") != "off" and _usable(folder)
    if on and not named:
        bound(folder)
        # The smallest programs too: a grid or a key takes 50 ms to compile and 5 ms to read.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # What another process is just writing is compiled here as well.
    warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry")
    jax.config.update("jax_compilation_cache_dir", str(folder) if on else None)


def bound(folder: Path, largest: int = LARGEST) -> None:
    """Remove the programs that were not used for longest until ``largest`` bytes are left; others may do so as well."""
    found = []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            about = path.stat()
            found.append((max(about.st_atime, about.st_mtime), about.st_size, path))
    size = sum(length for _, length, _ in found)
    for _, length, path in sorted(found):
        if size <= largest:
            break
        with contextlib.suppress(OSError):
            path.unlink()
            size -= length


def _usable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = "" if os.access(folder, os.W_OK) else "not writable"
    except OSError as error:
        reason = error.strerror
    if reason:
        advice = "JAX_COMPILATION_CACHE_DIR names another folder, SCORESDE_COMPILE_CACHE=off none"
        print(f"warning: no compile cache in {folder} ({reason}); {advice}", file=sys.stderr)
    return not reason
