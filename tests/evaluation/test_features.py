"""Fréchet and kernel distance against closed forms of normal laws, SciPy, double loops and their own expansions."""

import numpy as np
import pytest
import scipy.linalg

from scoresde.evaluation.features import frechet_distance, kernel_distance, moments


def normal(n, mean, scale, *, seed):
    """(n, F) of a normal law with independent features."""
    return np.random.default_rng(seed).normal(size=(n, len(mean))) * scale + mean


def mixed(n, F, *, seed):
    """(n, F) of dependent features of unlike sizes."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, F)) @ rng.normal(size=(F, F)) * np.geomspace(1, 1e-3, F) + rng.normal(size=F)


def by_scipy(x, y):
    S, T = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = np.trace(scipy.linalg.sqrtm(S @ T)).real
    return np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(S) + np.trace(T) - 2 * root


def test_the_frechet_distance_is_scipys():
    for F in (1, 2, 17):
        x, y = mixed(100, F, seed=1), mixed(80, F, seed=2)
        expected = by_scipy(x, y) if F > 1 else (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2
        assert frechet_distance(x, y).distance == pytest.approx(expected, rel=1e-7)


def test_fewer_examples_than_features_are_exact():
    """tr (S T)^(1/2) is the nuclear norm of X Y^T/sqrt((n - 1)(m - 1)), X and Y centred."""
    x, y = mixed(30, 90, seed=1), mixed(24, 90, seed=2)
    X, Y = x - x.mean(0), y - y.mean(0)
    root = np.linalg.norm(X @ Y.T, "nuc") / np.sqrt(29 * 23)
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.sum(X**2) / 29 + np.sum(Y**2) / 23 - 2 * root
    assert frechet_distance(x, y).distance == pytest.approx(expected, rel=1e-7)
    assert frechet_distance(x, x).distance == pytest.approx(0, abs=1e-7 * np.sum(X**2) / 29)


def test_batches_give_what_the_whole_gives():
    x, y = (mixed(n, 12, seed=n).astype("f4") + 300 for n in (211, 97))
    whole = frechet_distance(x, y)
    for size in (1, 7, 64):
        batches = moments(x[i : i + size] for i in range(0, len(x), size))
        np.testing.assert_allclose(frechet_distance(batches, y), whole, rtol=1e-8)
    assert whole.distance == pytest.approx(by_scipy(x.astype("f8"), y.astype("f8")), rel=1e-8)


def test_symmetry_rotation_shift_and_scale():
    x, y = mixed(90, 6, seed=3), mixed(70, 6, seed=4)
    d = frechet_distance(x, y)
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0]
    np.testing.assert_allclose(frechet_distance(y, x), d, rtol=1e-9)
    np.testing.assert_allclose(frechet_distance(x @ q + 5, y @ q + 5), d, rtol=1e-8)
    np.testing.assert_allclose(frechet_distance(3 * x, 3 * y), 9 * np.array(d), rtol=1e-9)
    np.testing.assert_allclose(kernel_distance(x @ q, y @ q), kernel_distance(x, y), rtol=1e-8)


MEAN, NU, S, T = (
    np.array([0.0, 1, 0, 2]),
    np.array([0.5, 1, 0, 2]),
    np.array([1.0, 2, 0.5, 1]),
    np.array([1, 1.5, 1, 1]),
)
TRUTH = np.sum((MEAN - NU) ** 2) + np.sum((S - T) ** 2)


@pytest.mark.parametrize("equal", [False, True])
def test_the_limit_is_the_distance_of_the_laws_and_its_error_is_its_spread(equal):
    """Of 200 pairs of samples; that of the samples themselves is biased, which the test must be able to see."""
    law = (MEAN, S) if equal else (NU, T)
    found = np.array(
        [frechet_distance(normal(150, MEAN, S, seed=i), normal(100, *law, seed=-i % 10**6)) for i in range(1, 201)]
    )
    distance, limit, _ = found.mean(axis=0)
    errors = found.std(axis=0, ddof=1) / np.sqrt(len(found))
    truth = 0 if equal else TRUTH
    assert abs(limit - truth) < 5 * errors[1]
    assert distance - truth > 10 * errors[0]
    if not equal:  # the error of a mean square over 18 degrees of freedom, and those of 200 draws
        assert np.sqrt(np.mean(found[:, 2] ** 2)) == pytest.approx(found[:, 1].std(ddof=1), rel=0.3)


def test_the_bias_falls_as_one_over_n():
    """For equal unit normal laws it is (F + F (F + 1)/4)(1/n + 1/m) up to order 1/n^2."""
    F, rng = 10, np.random.default_rng(0)
    for n in (100, 200):
        draws = [frechet_distance(*rng.normal(size=(2, n, F))).distance for _ in range(100)]
        expected = 2 * (F + F * (F + 1) / 4) / n
        assert abs(np.mean(draws) - expected) < 5 * np.std(draws) / 10 + expected * F / n


def test_little_of_the_bias_is_left_where_there_are_as_many_examples_as_features():
    rng = np.random.default_rng(0)
    found = np.array([frechet_distance(*rng.normal(size=(2, 24, 24))) for _ in range(100)])
    distance, limit, _ = found.mean(axis=0)
    assert abs(limit) < 0.1 * distance + 5 * found[:, 1].std() / 10


def kernel_loops(x, y):
    def k(a, b):
        return (a @ b / len(a) + 1) ** 3

    def mean(p, q, distinct):
        return np.mean([k(a, b) for i, a in enumerate(p) for j, b in enumerate(q) if not (distinct and i == j)])

    return mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)


def test_the_kernel_distance_is_the_double_loop_and_its_error_the_jackknifes():
    x, y = mixed(13, 5, seed=5), mixed(9, 5, seed=6)
    rng = np.random.default_rng(0)
    out = [np.array_split(rng.permutation(len(v)), 3) for v in (x, y)]
    left = [
        [kernel_loops(np.delete(x, i, axis=0), y) for i in out[0]],
        [kernel_loops(x, np.delete(y, i, axis=0)) for i in out[1]],
    ]
    found = kernel_distance(x, y, groups=3)
    assert found.distance == pytest.approx(kernel_loops(x, y), rel=1e-9)
    assert found.std_error == pytest.approx(np.sqrt(2 * np.var(left, axis=1).sum()), rel=1e-9)


def test_the_kernel_distance_of_normal_laws_has_its_closed_form():
    """In one dimension E (x y + 1)^3 = sum_j C(3, j) E x^j E y^j of independent x and y."""
    raw = [np.array([1, m, m**2 + s**2, m**3 + 3 * m * s**2]) for m, s in ((0.3, 1.0), (-0.2, 1.3))]
    c = np.array([1, 3, 3, 1])
    exact = c @ (raw[0] - raw[1]) ** 2
    for law, truth in (((np.array([-0.2]), 1.3), exact), ((np.array([0.3]), 1.0), 0.0)):
        draws = np.array(
            [
                kernel_distance(normal(300, np.array([0.3]), 1, seed=i), normal(200, *law, seed=1000 + i))
                for i in range(80)
            ]
        )
        spread = draws[:, 0].std(ddof=1)
        assert abs(draws[:, 0].mean() - truth) < 5 * spread / np.sqrt(80)
        ratio = np.sqrt(np.mean(draws[:, 1] ** 2)) / spread
        assert 0.7 < ratio < (1.9 if truth == 0 else 1.4)


def test_refusals():
    x = np.ones((40, 3))
    for bad, words in (
        (x[0], r"expected features \(n, F\) of real numbers, got float64 \(3,\)"),
        (x.astype(complex), "real numbers"),
        (np.where(np.arange(40)[:, None] == 3, np.nan, x), "1 of .* examples have features that are not finite"),
        (x[:, :2], "same length|expected"),
        (x[:3], "2 examples"),
    ):
        for distance in (frechet_distance, kernel_distance):
            with pytest.raises(ValueError, match=words):
                distance(x, bad)
    with pytest.raises(ValueError, match="2 examples in each of 10 groups, got 19 in all"):
        moments([x[:19]])
    with pytest.raises(ValueError, match="in all batches"):
        moments([x, x[:, :1]])
    with pytest.raises(ValueError, match="got 0 in all"):
        moments([])
    for groups in (0, 1):
        with pytest.raises(ValueError, match=f"groups must be at least 2, got {groups}"):
            moments([x], groups=groups)
    for groups in (0, 1, 21):
        with pytest.raises(ValueError, match=f"at least 2 groups .*got {groups}, "):
            kernel_distance(x, x, groups=groups)
