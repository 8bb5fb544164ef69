"""Fréchet and kernel distance between two samples of features, and what the size of the samples does to them.

For features x_1..x_n and y_1..y_m of F numbers each, with means mu and nu and covariances S and T (over n - 1, m - 1),

    d     = |mu - nu|^2 + tr S + tr T - 2 tr (S T)^(1/2)             Fréchet; "FID" where they are Inception's
    MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y)                    kernel; "KID" likewise; pairs of distinct points
    k(x, y) = (x . y / F + 1)^3

tr (S T)^(1/2) is the sum of the square roots of the eigenvalues of A^T T A for any A A^T = S, a symmetric matrix, so it
is real, also where n <= F leaves S without full rank.

d is biased upwards by c/n + e/m + ..., with c and e of the laws (both F + F (F + 1)/4 where both are the same normal
law of unit covariance): numbers of different n, m or features do not compare, and that of real examples is not zero.
The extrapolation to n = m = infinity, linear in 1/n and 1/m, is a grouped jackknife: with d_(-g) the distance without
group g of G of one sample,

    limit       = d - sum over both samples (G - 1) (mean_g d_(-g) - d)
    std_error^2 = sum over both samples (G - 1)/G sum_g (d_(-g) - mean d_(-g))^2

It leaves terms of order 1/n^2, which are small from n = F on but not below. MMD^2 over all pairs of distinct points has
no bias; its error is found likewise, and is up to sqrt(2) too large where the laws are equal.

References: Heusel et al. 2017 (FID); Chong and Forsyth 2020 (its limit, by regression on 1/n over subsets); Binkowski
et al. 2018 (KID); Efron and Stein 1981 (jackknife).
"""

import itertools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

_ROWS = 4096


class Frechet(NamedTuple):
    """Of two samples, in squared units of the features.

    Attributes:
        distance: d of these samples, biased upwards.
        limit: extrapolated to samples without end; below zero at times where the laws are equal.
        std_error: of ``limit``, by both samples.
    """

    distance: float
    limit: float
    std_error: float


class Kernel(NamedTuple):
    """Of two samples.

    Attributes:
        distance: MMD^2, without bias: below zero at times where the laws are equal.
        std_error: by both samples.
    """

    distance: float
    std_error: float


class Moments(NamedTuple):
    """Sums over each group of a sample, in float64, of x - offset.

    Attributes:
        examples: (G,) how many.
        total: (G, F).
        products: (G, F, F) of (x - offset)(x - offset)^T.
        offset: (F,) the mean of the first batch.
    """

    examples: np.ndarray
    total: np.ndarray
    products: np.ndarray
    offset: np.ndarray


def moments(batches: Iterable[ArrayLike], *, groups: int = 10) -> Moments:
    """What ``frechet_distance`` needs of a sample that comes in batches (b, F), of any sizes.

    Every next ``groups`` examples go to all groups in an order of their own (always the same), so that neither the
    sizes of the batches nor an order by classes matters.

    Raises:
        ValueError: fewer than two groups, batches of another shape, values that are not finite, fewer than two
            examples a group.
    """
    if groups < 2:
        raise ValueError(f"groups must be at least 2, got {groups}")
    rng, found = np.random.default_rng(0), None
    order = itertools.chain.from_iterable(rng.permutation(groups).tolist() for _ in itertools.count())
    for given in batches:
        batch = _finite(_features(given))
        if found is None:
            shape, width = (groups, batch.shape[1]), batch.shape[1]
            found = Moments(np.zeros(groups, int), np.zeros(shape), np.zeros((*shape, width)), batch.mean(axis=0))
        if batch.shape[1:] != found.offset.shape:
            raise ValueError(
                f"features must have one length in all batches, got {batch.shape} after {found.offset.shape}"
            )
        which = np.fromiter(itertools.islice(order, len(batch)), int, len(batch))
        for g in range(groups):
            rows = batch[which == g] - found.offset[None]
            found.examples[g] += len(rows)
            found.total[g] += rows.sum(axis=0)
            found.products[g] += rows.T @ rows
    if found is None or found.examples.min() < 2:
        count = 0 if found is None else found.examples.sum()
        raise ValueError(f"expected at least 2 examples in each of {groups} groups, got {count} in all")
    return found


def frechet_distance(x: ArrayLike | Moments, y: ArrayLike | Moments) -> Frechet:
    """Fréchet distance between the normal laws with the means and covariances of two samples.

    Args:
        x: features (n, F), 20 examples at least, or their ``moments``.
        y: features (m, F), or their ``moments``.

    Raises:
        ValueError: features of different lengths, or as for ``moments``.

    >>> rng = np.random.default_rng(0)
    >>> found = frechet_distance(rng.normal(size=(2000, 8)), 1 + rng.normal(size=(1000, 8)))
    >>> bool(abs(found.limit - 8) < 4 * found.std_error)
    True
    """
    x, y = (v if isinstance(v, Moments) else moments(_slices(v)) for v in (x, y))
    if x.offset.shape != y.offset.shape:
        raise ValueError(f"features must have the same length, got {len(x.offset)} and {len(y.offset)}")
    (mu, S), (nu, T) = _gaussian(x), _gaussian(y)
    A, B = _root(S), _root(T)
    d = limit = _distance(mu, S, nu, T, A)
    variance = 0.0
    for sample, centre, covariance, root in ((x, nu, T, B), (y, mu, S, A)):
        G = len(sample.examples)
        left = np.array([_distance(centre, covariance, *_gaussian(sample, without=g), root) for g in range(G)])
        limit -= (G - 1) * (left.mean() - d)
        variance += (G - 1) * left.var()
    return Frechet(d, float(limit), float(np.sqrt(variance)))


def kernel_distance(x: ArrayLike, y: ArrayLike, *, groups: int = 10) -> Kernel:
    """MMD^2 with the cubic kernel over all pairs, in time that grows with (n + m)^2 F.

    Args:
        x: features (n, F).
        y: features (m, F).
        groups: G of the jackknife, between 2 and half the smaller sample.

    Raises:
        ValueError: features of another shape or different lengths, not finite, or too few of them.
    """
    x, y = _features(x), _features(y)
    if x.shape[1] != y.shape[1] or not 2 <= groups <= min(len(x), len(y)) // 2:
        raise ValueError(
            f"expected (n, F), (m, F), at least 2 groups and 2 examples in each, got {groups}, {x.shape} and {y.shape}"
        )
    rng = np.random.default_rng(0)
    parts = [(v, rows) for v in (x, y) for rows in np.array_split(rng.permutation(len(v)), groups)]
    sums = np.zeros((2 * groups, 2 * groups))
    for a, b in itertools.combinations_with_replacement(range(2 * groups), 2):
        sums[a, b] = sums[b, a] = _kernel_sum(*(_finite(v[rows]) for v, rows in (parts[a], parts[b])), same=a == b)
    sizes, of_x = np.array([len(rows) for _, rows in parts]), np.arange(2 * groups) < groups
    left = np.array([_mmd(sums, sizes, of_x, np.arange(2 * groups) != g) for g in range(2 * groups)])
    variance = (groups - 1) * (left[of_x].var() + left[~of_x].var())
    return Kernel(_mmd(sums, sizes, of_x, np.full(2 * groups, True)), float(np.sqrt(variance)))


def _features(given: ArrayLike) -> np.ndarray:
    """Features (n, F) as they are."""
    values = np.asarray(given)
    if values.ndim != 2 or 0 in values.shape or values.dtype.kind not in "buif":
        raise ValueError(f"expected features (n, F) of real numbers, got {values.dtype} {values.shape}")
    return values


def _finite(features: np.ndarray) -> np.ndarray:
    """The same in float64."""
    values = features.astype(np.float64)
    if not (finite := np.isfinite(values).all(axis=1)).all():
        raise ValueError(f"{int((~finite).sum())} of {len(values)} examples have features that are not finite")
    return values


def _slices(given: ArrayLike) -> Iterable[np.ndarray]:
    values = _features(given)
    return (values[i : i + _ROWS] for i in range(0, len(values), _ROWS))


def _gaussian(sample: Moments, without: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean (F,) and covariance (F, F) of all groups, or of all but one."""
    n, total, products = (v.sum(axis=0) - (0 if without is None else v[without]) for v in sample[:3])
    return sample.offset + total / n, (products - np.outer(total, total / n)) / (n - 1)


def _root(S: np.ndarray) -> np.ndarray:
    """A (F, rank) with A A^T = S."""
    values, vectors = np.linalg.eigh(S)
    kept = values > max(values[-1], 0) * len(S) * np.finfo(float).eps
    return vectors[:, kept] * np.sqrt(values[kept])


def _distance(mu: np.ndarray, S: np.ndarray, nu: np.ndarray, T: np.ndarray, A: np.ndarray) -> float:
    """d, with A A^T = S."""
    roots = np.sqrt(np.maximum(np.linalg.eigvalsh(A.T @ T @ A), 0)).sum()
    return float(np.sum((mu - nu) ** 2) + np.trace(S) + np.trace(T) - 2 * roots)


def _kernel_sum(x: np.ndarray, y: np.ndarray, *, same: bool) -> float:
    """Sum of k over all pairs, of distinct points where x and y are the same."""
    k = (x @ y.T / x.shape[1] + 1) ** 3
    return float(k.sum() - (np.trace(k) if same else 0))


def _mmd(sums: np.ndarray, sizes: np.ndarray, of_x: np.ndarray, kept: np.ndarray) -> float:
    """MMD^2 of the groups that are kept, by the sums of k between groups and by which of them are of x."""
    p, q = of_x & kept, ~of_x & kept
    n, m = sizes[p].sum(), sizes[q].sum()
    xx, yy, xy = (sums[np.ix_(a, b)].sum() for a, b in ((p, p), (q, q), (p, q)))
    return float(xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy / (n * m))
