"""Files of examples to edit are read as the run read its data."""

import types

import numpy as np
import pytest
from PIL import Image

from experiments.cli.errors import InputError
from experiments.data.arrays import Options
from experiments.data.load import load
from experiments.editing.examples import chosen

RNG = np.random.default_rng(0)


def given(path, data, **options):
    flags = types.SimpleNamespace(input=path, n=9, examples=None, edit="denoise")
    return chosen(flags, data, Options(**options))[0]


def test_files_are_read_as_the_run_read_its_data(tmp_path):
    x = RNG.integers(0, 256, (30, 6, 6), np.uint8)
    np.save(tmp_path / "a.npy", x)
    data = load(f"npy:{tmp_path / 'a.npy'}", options=Options(channels="none"))
    np.savez(tmp_path / "mine.npz", x[:3])
    np.testing.assert_array_equal(given(tmp_path / "mine.npz", data, channels="none"), x[:3, :, :, None])
    with pytest.raises(InputError, match=r"has examples of shape \(6, 6\); the model was trained on \(6, 6, 1\)"):
        given(tmp_path / "mine.npz", data)
    grey, alpha = np.full((9, 12), 200, np.uint8), np.full((9, 12), 51, np.uint8)
    Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)]).save(tmp_path / "mine.png")
    assert given(tmp_path / "mine.png", data, size=6, alpha="black").ravel().tolist() == [40] * 36
    assert given(tmp_path / "mine.png", data, size=6).ravel().tolist() == [244] * 36
    with pytest.raises(InputError, match=r"has examples of shape \(9, 12, 1\)"):
        given(tmp_path / "mine.png", data)


def test_sixteen_bits_are_taken_as_they_are(tmp_path):
    x = RNG.integers(0, 4096, (30, 6, 6, 1)).astype(np.uint16)
    np.save(tmp_path / "a.npy", x)
    data = load(f"npy:{tmp_path / 'a.npy'}")
    Image.fromarray(x[4, ..., 0]).save(tmp_path / "mine.png")
    np.testing.assert_array_equal(given(tmp_path / "mine.png", data), x[4:5])
