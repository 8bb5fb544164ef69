"""Shared by all tests: implicit broadcasting is an error, and mathematics is tested in float64 (fixture ``x64``).

Most of the time goes into compiling small programs that run once, so LLVM is told not to optimise them; programs
started by a test inherit that.
"""

import os

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield
