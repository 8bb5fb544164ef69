"""Augmentation: exact ones against NumPy, affine ones against SciPy's resampling, labels that tell all."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.ndimage

from scoresde.training.augment import (
    augmented,
    quarter_turns,
    resample,
    rotation,
    scaling,
    shifts,
    stretching,
    translation,
    x_flip,
    y_flip,
)

KEY = jax.random.key(31)
IMAGES = np.random.default_rng(0).normal(size=(24, 7, 9, 2)).astype("f4")
SQUARE = IMAGES[:, :, :7]
AFFINE = {"scaling": scaling(0.3), "rotation": rotation, "stretching": stretching(0.4), "translation": translation(0.2)}


def test_flips_and_turns_are_numpys():
    np.testing.assert_array_equal(x_flip(KEY, jnp.asarray(IMAGES))[0], np.flip(IMAGES, 2))
    np.testing.assert_array_equal(y_flip(KEY, jnp.asarray(IMAGES))[0], np.flip(IMAGES, 1))
    turned, labels = quarter_turns(KEY, jnp.asarray(SQUARE))
    turns = np.round(np.arctan2(labels[:, 1], labels[:, 0] + 1) / (np.pi / 2)).astype(int) % 4
    assert set(turns) == {1, 2, 3}
    for image, k, got in zip(SQUARE, turns, turned, strict=True):
        np.testing.assert_array_equal(got, np.rot90(image, k))


def test_shifts_are_by_the_whole_pixels_that_the_labels_say():
    moved, labels = shifts(0.4)(KEY, jnp.asarray(IMAGES))
    d = np.asarray(labels) * np.array([9, 7]) * 0.4
    np.testing.assert_allclose(d, np.round(d), atol=1e-5)
    assert np.ptp(d[:, 0]) >= 5
    for image, (x, y), got in zip(IMAGES, np.round(d).astype(int), moved, strict=True):
        np.testing.assert_array_equal(got, scipy.ndimage.shift(image, (y, x, 0), order=0, mode="mirror"))


def matrix_of(name, label, size=(7, 9)):
    """M, t of an affine transformation from its labels alone."""
    if name == "scaling":
        return 2 ** (0.3 * label[0]) * np.eye(2), np.zeros(2)
    if name == "rotation":
        return np.array([[label[0] + 1, -label[1]], [label[1], label[0] + 1]]), np.zeros(2)
    if name == "stretching":
        a, b = label
        return scipy.linalg.expm(0.4 * math.log(2) * np.array([[a, b], [b, -a]])), np.zeros(2)
    return np.eye(2), 0.2 * label * np.array([size[1], size[0]])


def by_scipy(image, M, t):
    """SciPy's affine resampling in (row, column) order, from the centre."""
    swap = np.array([[0.0, 1.0], [1.0, 0.0]])
    inverse, centre = swap @ np.linalg.inv(M) @ swap, (np.array(image.shape[:2]) - 1) / 2
    offset = centre - inverse @ (centre + t[::-1])
    move = partial(scipy.ndimage.affine_transform, matrix=inverse, offset=offset, order=1, mode="mirror")
    return np.stack([move(image[..., c]) for c in range(image.shape[-1])], axis=-1)


@pytest.mark.parametrize("kind", AFFINE)
def test_an_affine_transformation_is_scipys_of_what_its_labels_say(kind):
    moved, labels = jax.jit(partial(augmented, probability=1.0, exact=(), affine=(AFFINE[kind],)))(KEY, IMAGES)
    labels = np.asarray(labels, np.float64)
    assert 0.3 < np.std(labels) < 1.5
    for image, label, got in zip(IMAGES, labels, moved, strict=True):
        np.testing.assert_allclose(got, by_scipy(image, *matrix_of(kind, label)), atol=2e-4)


def test_all_together_are_composed_in_order_and_resampled_once():
    chain = tuple(AFFINE.values())
    moved, labels = jax.jit(partial(augmented, probability=0.7, exact=(x_flip, y_flip), affine=chain))(KEY, IMAGES)
    assert labels.shape == (24, 2 + 1 + 2 + 2 + 2)
    for image, label, got in zip(IMAGES, np.asarray(labels, np.float64), moved, strict=True):
        image = image[:, ::-1] if label[0] else image
        image = image[::-1] if label[1] else image
        M, t = np.eye(2), np.zeros(2)
        for kind, part in zip(AFFINE, np.split(label[2:], [1, 3, 5]), strict=True):
            matrix, offset = matrix_of(kind, part)
            M, t = matrix @ M, matrix @ t + offset
        np.testing.assert_allclose(got, by_scipy(image, M, t), atol=5e-4)


def test_what_was_not_transformed_has_zero_labels_and_its_own_bits():
    moved, labels = jax.jit(partial(augmented, probability=0.15))(KEY, np.tile(IMAGES, (40, 1, 1, 1)))
    kept = np.all(np.asarray(labels) == 0, axis=1)
    assert abs(kept.mean() - 0.85**6) < 5 * math.sqrt(0.25 / 960)
    np.testing.assert_array_equal(np.asarray(moved)[kept], np.tile(IMAGES, (40, 1, 1, 1))[kept])
    rates = np.mean(np.asarray(labels) != 0, axis=0)  # each with its probability
    assert labels.shape[1] == 9 and np.all(np.abs(rates - 0.15) < 5 * math.sqrt(0.15 * 0.85 / 960))
    same, zero = jax.jit(partial(augmented, probability=0.0))(KEY, IMAGES)
    np.testing.assert_array_equal(same, IMAGES)
    np.testing.assert_array_equal(zero, 0)


def test_a_quarter_of_rotation_is_the_exact_one():
    M = jnp.broadcast_to(jnp.array([[0.0, 1.0], [-1.0, 0.0]]), (24, 2, 2))
    np.testing.assert_array_equal(resample(jnp.asarray(SQUARE), M, jnp.zeros((24, 2))), np.rot90(SQUARE, 1, (1, 2)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: augmented(KEY, jnp.ones((2, 3)), 0.1), r"images must be floating point of shape \(B, H, W, C\), got"),
        (lambda: augmented(KEY, jnp.ones((2, 3, 3, 1), int), 0.1), r"images must be floating point of shape"),
        (lambda: augmented(KEY, jnp.ones((2, 3, 3, 1)), 1.2), r"probability must be in \[0, 1\], got 1\.2"),
        (lambda: quarter_turns(KEY, jnp.ones((2, 3, 4, 1))), r"quarter_turns needs square images"),
        (lambda: shifts(0.0), r"fraction must be in \(0, 1\], got 0\.0"),
        (lambda: scaling(0.0), r"std must be positive, got 0\.0"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match="^" + message):
        make()
