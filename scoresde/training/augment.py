"""Augmentation that does not leak: every transformation comes with labels that tell the network what was done.

A network trained on transformed images would draw transformed images. Told of the transformation, it learns one law for
each, and labels of zero are the law of the data: nothing leaks into samples, while small data serve as much more.

    y = T_L ... T_1 x,    each T_j applied with probability p, else the identity and zero labels.

First the exact ones, by array operations: flips, quarter turns, shifts by whole pixels. Then the affine ones, composed
into one map q = M p + t of positions in pixels from the centre (x to the right, y down) and one resampling

    y(q) = x(M^-1 (q - t)),    linear between pixels, mirrored at the border pixels.

The labels of each transformation are of order one and determine it. For the stretch M = R(r) diag(s, 1/s) R(-r) they
are w (cos 2r, sin 2r), s = 2^(std w), since M = exp(std ln 2 w [[cos 2r, sin 2r], [sin 2r, -cos 2r]]). (With r instead
of 2r, as published, w and -w turned by half a turn have the same labels and are not the same map.)

References: Karras et al., "Elucidating the design space of diffusion-based generative models" (2022), appendix F.2;
Karras et al., "Training generative adversarial networks with limited data" (2020), section 2.2.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

Exact = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
"""(key, images (B, H, W, C)) -> all of them transformed, and labels (B, L)."""

Affine = Callable[[jax.Array, int, tuple[int, int]], tuple[jax.Array, jax.Array, jax.Array]]
"""(key, B, (H, W)) -> M (B, 2, 2), t (B, 2) in pixels and labels (B, L)."""


def _positive(std: float) -> None:
    if not std > 0:
        raise ValueError(f"std must be positive, got {std!r}")


def x_flip(key: jax.Array, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Left and right exchanged; label 1."""
    return images[:, :, ::-1], jnp.ones((len(images), 1))


def y_flip(key: jax.Array, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Top and bottom exchanged; label 1."""
    return images[:, ::-1], jnp.ones((len(images), 1))


def quarter_turns(key: jax.Array, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One to three quarter turns against the clock; labels cos a - 1, sin a. Images must be square."""
    if images.shape[1] != images.shape[2]:
        raise ValueError(f"quarter_turns needs square images (B, n, n, C), got {images.shape}; leave it out")
    turns = jax.random.randint(key, (len(images),), 1, 4)
    turned = jnp.stack([jnp.rot90(images, k, axes=(1, 2)) for k in (1, 2, 3)])
    angle = 0.5 * math.pi * turns
    return turned[turns - 1, jnp.arange(len(images))], jnp.stack([jnp.cos(angle) - 1, jnp.sin(angle)], axis=1)


def shifts(fraction: float = 0.125) -> Exact:
    """Shifts by whole pixels, uniform up to ``fraction`` in (0, 1] of the sizes each way; labels dx/W, dy/H over it."""
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction!r}")

    def transform(key: jax.Array, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        n, height, width = images.shape[:3]
        limit = jnp.array([width, height]) * fraction
        d = jnp.round(jax.random.uniform(key, (n, 2), minval=-1, maxval=1) * limit[None])
        rows = _mirrored(jnp.arange(height)[None] - d[:, 1:].astype(int), height)
        columns = _mirrored(jnp.arange(width)[None] - d[:, :1].astype(int), width)
        return jax.vmap(lambda image, i, j: image[i][:, j])(images, rows, columns), d / limit[None]

    return transform


def scaling(std: float = 0.2) -> Affine:
    """Larger or smaller by s = 2^(std w), w ~ N(0, 1); label w."""
    _positive(std)

    def draw(key: jax.Array, n: int, size: tuple[int, int]) -> tuple[jax.Array, jax.Array, jax.Array]:
        w = jax.random.normal(key, (n, 1))
        return 2 ** (std * w)[:, :, None] * jnp.eye(2)[None], jnp.zeros((n, 2)), w

    return draw


def rotation(key: jax.Array, n: int, size: tuple[int, int]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Turned by any angle a, clockwise with y down; labels cos a - 1, sin a."""
    angle = jax.random.uniform(key, (n,), minval=-math.pi, maxval=math.pi)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return _matrix(cos, -sin, sin, cos), jnp.zeros((n, 2)), jnp.stack([cos - 1, sin], axis=1)


def stretching(std: float = 0.2) -> Affine:
    """Longer by s = 2^(std w) along an axis of any direction r, shorter by s across; labels w cos 2r, w sin 2r."""
    _positive(std)

    def draw(key: jax.Array, n: int, size: tuple[int, int]) -> tuple[jax.Array, jax.Array, jax.Array]:
        key_w, key_r = jax.random.split(key)
        w, twice = jax.random.normal(key_w, (n,)), jax.random.uniform(key_r, (n,), maxval=2 * math.pi)
        k, cos, sin = std * math.log(2) * w, jnp.cos(twice), jnp.sin(twice)
        a, b = jnp.cosh(k), jnp.sinh(k)
        M = _matrix(a + b * cos, b * sin, b * sin, a - b * cos)
        return M, jnp.zeros((n, 2)), w[:, None] * jnp.stack([cos, sin], axis=1)

    return draw


def translation(std: float = 0.125) -> Affine:
    """Moved by std (w_x W, w_y H), w ~ N(0, 1); labels w."""
    _positive(std)

    def draw(key: jax.Array, n: int, size: tuple[int, int]) -> tuple[jax.Array, jax.Array, jax.Array]:
        w = jax.random.normal(key, (n, 2))
        return jnp.broadcast_to(jnp.eye(2), (n, 2, 2)), std * w * jnp.array([[size[1], size[0]]]), w

    return draw


def augmented(
    key: jax.Array,
    images: jax.Array,
    probability: float,
    *,
    exact: tuple[Exact, ...] = (x_flip, y_flip),
    affine: tuple[Affine, ...] = (scaling(), rotation, stretching(), translation()),
) -> tuple[jax.Array, jax.Array]:
    """Images after random transformations, and what was done to each.

    Args:
        key: random key.
        images: (B, H, W, C) floats, any scale.
        probability: that of each transformation, in [0, 1]; EDM uses 0.12 to 0.15.
        exact: ``x_flip``, ``y_flip``, ``quarter_turns``, ``shifts()`` or functions like them, applied in this order.
        affine: ``scaling()``, ``rotation``, ``stretching()``, ``translation()`` or functions like them, after those.

    Returns:
        images of the same shape, and labels (B, L): zero where a transformation was not applied. Give the network these
        labels in training, and none or zeros in sampling.

    Raises:
        ValueError: images of another shape or not floating point; probability out of range.
    """
    if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be floating point of shape (B, H, W, C), got {images.dtype} {images.shape}")
    if not 0 <= probability <= 1:
        raise ValueError(f"probability must be in [0, 1], got {probability!r}")
    n, height, width = images.shape[:3]
    key_chance, key_draw = jax.random.split(key)
    keys = jax.random.split(key_draw, len(exact) + len(affine))
    chosen = jax.random.bernoulli(key_chance, probability, (len(keys), n))
    labels = [jnp.zeros((n, 0))]
    for transform, k, on in zip(exact, keys, chosen, strict=False):
        moved, label = transform(k, images)
        images = jnp.where(on[:, None, None, None], moved, images)
        labels.append(jnp.where(on[:, None], label, 0))
    M, t = jnp.broadcast_to(jnp.eye(2), (n, 2, 2)), jnp.zeros((n, 2))
    for draw, k, on in zip(affine, keys[len(exact) :], chosen[len(exact) :], strict=True):
        matrix, offset, label = draw(k, n, (height, width))
        matrix, offset = jnp.where(on[:, None, None], matrix, jnp.eye(2)[None]), jnp.where(on[:, None], offset, 0)
        M, t = jnp.einsum("nij,njk->nik", matrix, M), jnp.einsum("nij,nj->ni", matrix, t) + offset
        labels.append(jnp.where(on[:, None], label, 0))
    return resample(images, M, t) if affine else images, jnp.concatenate(labels, axis=1)


def resample(images: jax.Array, M: jax.Array, t: jax.Array) -> jax.Array:
    """y(q) = x(M^-1 (q - t)) for images (B, H, W, C), M (B, 2, 2) invertible and t (B, 2) in pixels."""
    height, width = images.shape[1:3]
    determinant = M[:, 0, 0] * M[:, 1, 1] - M[:, 0, 1] * M[:, 1, 0]
    inverse = _matrix(M[:, 1, 1], -M[:, 0, 1], -M[:, 1, 0], M[:, 0, 0]) / determinant[:, None, None]
    centre = (width - 1) / 2, (height - 1) / 2
    q_x, q_y = jnp.meshgrid(jnp.arange(width) - centre[0], jnp.arange(height) - centre[1])

    def one(image: jax.Array, inverse: jax.Array, t: jax.Array) -> jax.Array:
        d_x, d_y = q_x - t[0], q_y - t[1]
        x = inverse[0, 0] * d_x + inverse[0, 1] * d_y + centre[0]
        y = inverse[1, 0] * d_x + inverse[1, 1] * d_y + centre[1]
        return jax.vmap(partial(map_coordinates, coordinates=[y, x], order=1, mode="mirror"), -1, -1)(image)

    return jax.vmap(one)(images, inverse, t)


def _matrix(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> jax.Array:
    """[[a, b], [c, d]] of numbers (n,): (n, 2, 2)."""
    return jnp.stack([jnp.stack([a, b], axis=-1), jnp.stack([c, d], axis=-1)], axis=-2)


def _mirrored(index: jax.Array, size: int) -> jax.Array:
    """Indices outside 0..size-1 reflected at the border pixels."""
    period = max(1, 2 * (size - 1))
    index = index % period
    return jnp.where(index < size, index, period - index)
