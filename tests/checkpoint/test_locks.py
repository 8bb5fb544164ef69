"""Locks between processes, and the library on a system that has neither them nor ``resource``."""

import os
import subprocess
import sys
from pathlib import Path

from scoresde.checkpoint.locks import locked

WINDOWS = """
import subprocess, sys, types
import jax, orbax.checkpoint, pathlib, tempfile  # others know by themselves where they are
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
held = []
def locking(descriptor, mode, count):
    if held:
        raise PermissionError(13, "Permission denied")
    held.append(descriptor)
sys.modules["msvcrt"] = types.SimpleNamespace(locking=locking, LK_NBLCK=2)
from pathlib import Path
import numpy as np
import scoresde as ss
from experiments import convert, doctor, edit, ema, evaluate, export, guide, inverse, report, run, sample, sweep
from experiments.cli.machine import peak_memory
from experiments.sweeps.workers import claim
folder = Path(sys.argv[1])
for i in range(3):
    ss.checkpoint.save(folder / "c", {"a": np.full(3, i)}, {"i": i}, keep=2)
assert ss.checkpoint.restore(folder / "c", {"a": np.zeros(3, int)})[1] == {"i": 2}
assert len(list((folder / "c").iterdir())) == 2
with claim(folder / "cell") as mine, claim(folder / "cell") as again:
    print(mine, again, peak_memory() >= 0)
"""


def test_all_programs_are_imported_and_checkpoints_kept_without_the_modules_that_windows_lacks(tmp_path):
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", WINDOWS, str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.returncode) == ("True False True\n", 0), done.stderr


def test_many_may_read_and_one_may_remove(tmp_path):
    with locked(tmp_path, shared=True) as one, locked(tmp_path, shared=True) as two:
        assert one and two
        with locked(tmp_path) as alone:
            assert not alone
    with locked(tmp_path) as alone:
        assert alone
