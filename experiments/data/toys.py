"""Two-dimensional toy laws by formula; points are float32 and depend on the seed alone.

mixture        sum_k (1/8) N(m_k, 0.1^2 I), m_k on the unit circle at angles 2 pi k / 8
moons          (cos a, sin a) or (1 - cos a, 1/2 - sin a) with a ~ U[0, pi], plus N(0, 0.1^2 I)
spirals        +-(r cos r, r sin r) / 3 pi with r = 3 pi sqrt(u), u ~ U[0, 1], plus N(0, 0.02^2 I)
checkerboard   uniform on the eight squares of [-2, 2]^2 with floor(x) + floor(y) even: density 1/8 there
"""

import numpy as np

RING = (
    np.stack([np.cos(2 * np.pi * np.arange(8) / 8), np.sin(2 * np.pi * np.arange(8) / 8)], axis=1),
    np.full(8, 0.1),
    np.full(8, 1 / 8),
)


def mixture(rng: np.random.Generator, n: int) -> np.ndarray:
    """Eight modes on a ring: `RING` holds the means, standard deviations and weights."""
    means, stds, weights = RING
    mode = rng.choice(len(weights), n, p=weights)
    return (means[mode] + stds[mode, None] * rng.normal(size=(n, 2))).astype(np.float32)


def moons(rng: np.random.Generator, n: int) -> np.ndarray:
    """Two interleaving half circles."""
    a, lower = np.pi * rng.random(n), rng.random(n) < 0.5
    x, y = np.where(lower, 1 - np.cos(a), np.cos(a)), np.where(lower, 0.5 - np.sin(a), np.sin(a))
    return (np.stack([x, y], axis=1) + 0.1 * rng.normal(size=(n, 2))).astype(np.float32)


def spirals(rng: np.random.Generator, n: int) -> np.ndarray:
    """Two arms of one and a half turns inside the unit disc."""
    r, sign = 3 * np.pi * np.sqrt(rng.random(n)), rng.choice([-1.0, 1.0], n)
    arm = (sign * r / (3 * np.pi))[:, None] * np.stack([np.cos(r), np.sin(r)], axis=1)
    return (arm + 0.02 * rng.normal(size=(n, 2))).astype(np.float32)


def checkerboard(rng: np.random.Generator, n: int) -> np.ndarray:
    """Eight squares of a four by four board."""
    x, row = rng.uniform(-2, 2, n), rng.integers(-1, 1, n)
    y = 2 * row + np.floor(x) % 2 + rng.random(n)
    return np.stack([x, y], axis=1).astype(np.float32)
