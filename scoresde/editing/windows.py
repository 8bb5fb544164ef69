"""A larger canvas than the network's: the score whose denoised data are the mean over overlapping windows.

MultiDiffusion (Bar-Tal et al. 2023) denoises every window of the canvas and takes, in each place, the mean of what the
windows that cover it say (their equation 5). All windows see the same x_t and time, and D = (x_t + sigma^2 s)/alpha is
linear in the score, so that this is the mean of the scores themselves, for every SDE:

    s(x, t)[place] = mean over windows W that hold the place of s_W(x[W], t)[place - corner of W].

It is the canvas's own score where places are independent. Otherwise it is a compromise, good for what looks alike
wherever a window lies (textures, landscapes, sound); data with a fixed place in the frame, such as one digit in the
middle, contradict themselves from window to window. As a score it runs in every solver, and under ``ss.inverse`` with a
part that is known (outpainting: ``ss.inverse.operators.mask``).
"""

import itertools
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from scoresde.checks import whole
from scoresde.score import Score, as_partial, check_score


def panorama(score: Score, window: Sequence[int], stride: Sequence[int] | int) -> Score:
    """A score of canvases (B, *canvas) from one of windows (B, *window, ...), asked once for all windows together.

    The first axes of the canvas may be larger than the window; those that ``window`` does not name are kept whole. The
    last window of an axis ends with the canvas, whatever the stride. Conditions of the score (``ss.given``) hold for
    all windows of their example.

    Args:
        score: ``score(x, t)`` of x (B, *window, ...).
        window: sizes of the first event axes, such as (32, 32) of images (32, 32, 3).
        stride: steps from window to window, one for all axes or one for each; at most the window's size, smaller for
            smoother seams: a half of it is usual.

    Raises:
        ValueError: a stride that leaves gaps; later, while tracing: a canvas smaller than the window.
    """
    sizes = tuple(whole("window", n) for n in window)
    steps = (stride,) * len(sizes) if isinstance(stride, int) else tuple(stride)
    if not sizes or len(steps) != len(sizes) or any(whole("stride", k) > n for k, n in zip(steps, sizes, strict=False)):
        raise ValueError(f"stride must be one for each axis of window {sizes} and at most its size, got {steps}")
    return Partial(partial(_panorama, sizes, steps), as_partial(score))


def _places(canvas: tuple[int, ...], window: tuple[int, ...], stride: tuple[int, ...]) -> np.ndarray:
    """The places of the canvas, counted along all its axes, that each window covers: (n, prod(window))."""
    corners = [sorted({*range(0, side - n, k), side - n}) for side, n, k in zip(canvas, window, stride, strict=True)]
    numbers, covered = np.arange(np.prod(canvas)).reshape(canvas), []
    for corner in itertools.product(*corners):
        cut = tuple(slice(c, c + n) for c, n in zip(corner, window, strict=True))
        covered.append(numbers[cut].ravel())
    return np.stack(covered)


def _panorama(
    window: tuple[int, ...], stride: tuple[int, ...], score: Partial, x: jax.Array, t: jax.Array, *cond: object
) -> jax.Array:
    batch, canvas, rest = x.shape[0], x.shape[1 : 1 + len(window)], x.shape[1 + len(window) :]
    if len(canvas) < len(window) or any(side < n for side, n in zip(canvas, window, strict=True)):
        raise ValueError(f"x must have shape (B, *canvas, ...) with a canvas of at least {window}, got {x.shape}")
    places = _places(canvas, window, stride)
    count = np.bincount(places.ravel(), minlength=places.max() + 1)

    def of_window(part: jax.Array) -> jax.Array:
        return check_score(score(part, t, *cond), part)

    flat = x.reshape(batch, len(count), *rest)
    parts = jnp.moveaxis(flat[:, places], 1, 0).reshape(len(places), batch, *window, *rest)
    values = jnp.moveaxis(jax.vmap(of_window)(parts), 0, 1).reshape(batch, places.size, *rest)
    total = jnp.zeros_like(flat).at[:, places.ravel()].add(values)
    weight = jnp.asarray(count, x.dtype).reshape(1, -1, *(1,) * len(rest))
    return (total / weight).reshape(x.shape)
