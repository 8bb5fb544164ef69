"""Ready-made operators against NumPy, index by index, and their transposes against the inner product."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import scoresde as ss

KEY = jax.random.key(0)
IMAGE = (2, 4, 6, 3)
KEEP = np.random.default_rng(0).random((4, 6)) < 0.5


def blurred(x, std):
    """Periodic convolution with a normalised Gaussian on axes 1 and 2, by sums."""
    radius = int(np.ceil(3 * std))
    w = np.exp(-0.5 * (np.arange(-radius, radius + 1) / std) ** 2)
    w /= w.sum()
    for axis in (1, 2):
        x = sum(w[k + radius] * np.roll(x, k, axis) for k in range(-radius, radius + 1))
    return x


def kept_fourier(x):
    z = np.fft.fft2(x, axes=(1, 2))[:, KEEP] / np.sqrt(24)
    return np.stack([z.real, z.imag], -1)


W = np.random.default_rng(1).normal(size=(5, 72))
CASES = {
    "mask": (ss.inverse.operators.mask(KEEP[:, :, None]), IMAGE, lambda x: x * KEEP[None, :, :, None]),
    "grey": (ss.inverse.operators.grey(), IMAGE, lambda x: x.sum(-1, keepdims=True) / np.sqrt(3)),
    "downsample": (ss.inverse.operators.downsample(2), IMAGE, lambda x: x.reshape(2, 2, 2, 3, 2, 3).mean((2, 4))),
    "blur": (ss.inverse.operators.blur(0.6), IMAGE, lambda x: blurred(x, 0.6)),
    "fourier": (ss.inverse.operators.fourier(KEEP), IMAGE, kept_fourier),
    "matrix": (ss.inverse.operators.matrix(W), IMAGE, lambda x: x.reshape(2, 72) @ W.T),
    "columns": (ss.inverse.operators.columns([4, 0]), (3, 5), lambda x: x[:, [4, 0]]),
    "spans": (ss.inverse.operators.spans([(1, 3), (5, 6)], 7), (2, 7, 2), lambda x: x[:, [0, 3, 4, 6]]),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_an_operator_is_numpys_and_its_transpose_the_adjoint(case):
    operator, shape, expected = case
    x = jax.random.normal(KEY, shape)
    value = operator(x)
    np.testing.assert_allclose(value, expected(np.asarray(x, np.float64)), rtol=1e-4, atol=1e-5)
    u = jax.random.normal(jax.random.key(1), value.shape)
    (back,) = jax.linear_transpose(operator, x)(u)
    np.testing.assert_allclose(jnp.vdot(value, u), jnp.vdot(x, back), rtol=1e-4)
    np.testing.assert_allclose(operator(x[:1]), value[:1], rtol=1e-6, atol=1e-6)


def test_compressed_sensing_is_a_random_matrix():
    operator = ss.inverse.operators.compressed_sensing(KEY, 400, 50)
    rows = operator(jnp.eye(50))
    np.testing.assert_allclose(rows @ rows.T, np.eye(50), atol=0.3)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("keep must be an array of booleans like one example, got", lambda o: o.mask(np.ones(3))),
        ("keep (3,) must broadcast to an example of x, (4,)", lambda o: o.mask(np.ones(3, bool))(jnp.ones((2, 4)))),
        ("downsample: 4 must divide the sides of x, (4, 6)", lambda o: o.downsample(4)(jnp.ones(IMAGE))),
        ("x must have shape (B, ..., C)", lambda o: o.downsample(2)(jnp.ones((2, 4)))),
        ("factor must be", lambda o: o.downsample(0)),
        ("std must be positive and finite, got 0", lambda o: o.blur(0)),
        ("keep (4, 6) must have the inner axes of x, (6, 4)", lambda o: o.fourier(KEEP)(jnp.ones((2, 6, 4, 1)))),
        ("keep must be booleans (H, W) with one", lambda o: o.fourier(np.zeros((2, 2), bool))),
        ("weights must have shape (m, D), got (3,)", lambda o: o.matrix(np.ones(3))),
        ("weights (5, 72) must have a column for each", lambda o: o.matrix(W)(jnp.ones((2, 3)))),
        ("kept must be different column numbers of at least 0, got [1, 1]", lambda o: o.columns([1, 1])),
        ("kept must be columns of x, below 2, got [2]", lambda o: o.columns([2])(jnp.ones((1, 2)))),
        ("a span must have 0 <= start < stop <= 4, got (3, 5)", lambda o: o.spans([(3, 5)], 4)),
        ("missing must leave something to measure", lambda o: o.spans([(0, 4)], 4)),
        ("x must have length 4 on its second axis", lambda o: o.spans([(0, 1)], 4)(jnp.ones((1, 3, 1)))),
    ],
)
def test_refusals(message, call):
    with pytest.raises(ValueError) as caught:
        call(ss.inverse.operators)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
