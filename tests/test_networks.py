"""What the command line makes of the shape and the levels of data."""

import dataclasses

import numpy as np
import pytest

from experiments.data import load
from experiments.networks import multipliers, waves


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((28, 28, 1), (1, 2, 4)),
        ((32, 32, 3), (1, 2, 4)),
        ((8, 8, 1), (1,)),
        ((5, 64, 2), (1,)),
        ((128, 1), (1, 2, 4, 4, 4)),
    ],
)
def test_the_unet_halves_while_seven_positions_are_left(shape, expected):
    assert multipliers(shape) == expected


def test_waves_are_for_levels_that_stand_out():
    digits = load("digits")
    level = digits.bin_width / digits.sigma_data
    np.testing.assert_allclose(waves(digits)["input_frequencies"], [1 / (level * n) for n in (32, 16, 8, 4, 2, 1)])
    assert waves(dataclasses.replace(digits, levels=65_536)) == waves(load("moons")) == {}
