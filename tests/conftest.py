"""Shared by all tests: implicit broadcasting is an error, and mathematics is tested in float64 (fixture ``x64``)."""

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield
