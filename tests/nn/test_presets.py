"""The U-Nets of the papers: their sizes, their filters against loops, what they are at initialisation."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from scoresde import nn
from scoresde.nn.layers import resample
from scoresde.nn.layers.noise import NoiseEmbedding
from scoresde.nn.unets import presets
from scoresde.nn.unets.blocks import SILU_RMS, ResBlock

KEY = jax.random.key(0)
MILLIONS = {
    "ddpm": (32, 35.7),
    "ddpmpp": (32, 61.8),
    "ddpmpp_deep": (32, 106.6),
    "ncsnpp": (32, 62.8),
    "ncsnpp_deep": (32, 107.6),
    "ncsnpp_256": (256, 65.6),
    "ncsnpp_1024": (1024, 105.8),
    "edm_ddpmpp": (32, 55.7),
    "edm_ncsnpp": (32, 56.4),
    "adm": (64, 295.9),
}
SMALL = {"channels": 16, "features": 16, "multipliers": (1, 2), "blocks": 1, "attention_levels": (1,), "key": KEY}
FAMILIES = {
    "ddpm": partial(presets.ddpm, **SMALL),
    "ddpmpp": partial(presets.ddpmpp, **SMALL),
    "ncsnpp": partial(presets.ncsnpp, **SMALL),
    "ncsnpp_256": partial(presets.ncsnpp_256, **SMALL),
    "adm": partial(presets.adm, layout=nn.Layout(**(vars(presets.ADM) | {"head_channels": 8})), **SMALL),
}
SHAPES = {"1d": (32, 2), "2d": (16, 16, 3), "3d": (8, 8, 8, 1), "odd": (7, 5, 1)}


@pytest.mark.parametrize(
    "name", [n if n == "edm_ncsnpp" else pytest.param(n, marks=pytest.mark.slow) for n in MILLIONS]
)
def test_published_numbers_of_parameters(name):
    size, millions = MILLIONS[name]

    def parameters(key):
        return nn.functional(getattr(presets, name)((size, size, 3), key=key))[1]

    shapes = jax.eval_shape(parameters, KEY)
    assert round(sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) / 1e6, 1) == millions


def naive(h, taps, outputs, position):
    """sum_j taps_j h[position(o) + j] along the first axis, zero outside."""
    y = np.zeros((outputs, *h.shape[1:]))
    for o in range(outputs):
        for j, k in enumerate(taps):
            if 0 <= position(o) + j < len(h):
                y[o] += k * h[position(o) + j]
    return y


@pytest.mark.parametrize(
    ("taps", "shape"), [((1, 1), (6, 2)), ((1, 3, 3, 1), (2, 4, 2, 3)), ((1, 2, 5, 5, 2, 1), (4, 6, 1))]
)
def test_filters_are_their_sums(taps, shape):
    """Along each axis in turn, against loops over zero-padded positions."""
    h, k = np.random.default_rng(0).standard_normal(shape).astype(np.float32), resample.checked(taps)
    p, axes = len(taps) // 2 - 1, range(len(shape) - 1)
    down, low, up, wide = h, h, h, h
    for axis in axes:
        along = partial(np.moveaxis, source=axis, destination=0), partial(np.moveaxis, source=0, destination=axis)
        n = shape[axis]
        down = along[1](naive(along[0](down), k, n // 2, lambda i: 2 * i - p))
        low = along[1](naive(along[0](low), k, n + 1, lambda i: i - 1 - p))
        for margin in (0, 1):
            before = along[0](wide if margin else up)
            stretched = np.zeros((2 * n, *before.shape[1:]))
            stretched[::2] = before
            out = naive(stretched, 2 * np.array(k), 2 * n + 2 * margin, lambda o, m=margin: o - m - p - 1)
            up, wide = (up, along[1](out)) if margin else (along[1](out), wide)
    every = jax.jit(lambda h: [resample.down(h, k), resample.low_pass(h, k), resample.up(h, k)])
    widened = jax.jit(lambda h: resample.up(h, k, margin=1))
    for y, expected in zip([*every(h[None]), widened(h[None])], (down, low, up, wide), strict=True):
        np.testing.assert_allclose(y[0], expected, atol=1e-6)


def test_pairs_are_means_and_repetitions_and_odd_sizes_are_rounded_up():
    h, pair = np.arange(5.0, dtype=np.float32)[None, :, None], (0.5, 0.5)
    down, up = jax.jit(lambda h: (resample.down(h, pair), resample.up(h, pair)))(h)
    np.testing.assert_array_equal(down[0, :, 0], [0.5, 2.5, 4.0])
    np.testing.assert_array_equal(up, np.repeat(h, 2, axis=1))
    assert jax.eval_shape(lambda h: resample.low_pass(h, pair), h).shape == (1, 7, 1)


@pytest.mark.parametrize("taps", [(1, 2, 1), (1, 2), (), (-1, -1), (1, math.inf, math.inf, 1)])
def test_taps_refused(taps):
    with pytest.raises(ValueError, match="taps must"):
        nn.Layout(taps=taps)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rescale": 2.0}, r"rescale must be in \(0, 1\], got 2.0"),
        ({"head_channels": -1}, "head_channels must be a whole number of at least 0, got -1"),
        ({"padding": 2}, "padding must be None or 1, got 2"),
    ],
)
def test_layouts_refused(options, message):
    with pytest.raises(ValueError, match=message):
        nn.Layout(**options)


def states(net, x, c, **options):
    """The network's output and what each of its blocks returned, in one program."""

    @jax.jit
    def call(params, x, c):
        found = []

        def record(block, *args, **options):
            found.append(plain(block, *args, **options))
            return found[-1]

        plain = ResBlock.__call__
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ResBlock, "__call__", record)
            return apply(params, x, c, **options), found

    apply, params = nn.functional(net)
    return call(params, x, c)


def least_deviation(layout, sizes):
    """What is left of one where a block halves white noise. Its filter keeps of the variance of h, along each axis,
    the sum of its squared taps; zeros at the borders keep of a convolution's the share 1 - 2/(3n) that is inside; h
    and a branch of variance g^2 are added. In three dimensions and without rescaling this is 0.38, for 8 and 4
    positions: nothing is amiss where a bound of one half fails.
    """
    inside = lambda factor: math.prod(1 - 2 / (3 * math.ceil(n / factor)) for n in sizes)  # noqa: E731
    if not layout.resampling_blocks:
        return math.sqrt(inside(2))
    kept = sum(k**2 for k in layout.filter) ** len(sizes) * inside(1)
    return layout.rescale * math.sqrt(kept + (layout.gain * SILU_RMS) ** 2 * inside(2))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.slow
def test_variance_is_about_one_and_the_output_zero_at_initialisation(name, shape):
    net = FAMILIES[name](SHAPES[shape])
    x = jax.random.normal(KEY, (16, *SHAPES[shape]))
    y, found = states(net, x, jnp.linspace(-5.0, 3.0, 16))
    np.testing.assert_array_equal(y, np.zeros(x.shape))
    deviations = [float(jnp.std(h)) for h in found]
    assert len(deviations) >= 8
    least = 0.85 * least_deviation(net.layout, SHAPES[shape][:-1])
    assert all(least < deviation < 1.3 for deviation in deviations), (least, deviations)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_forward_mode_is_the_finite_difference_in_float64(x64, name):
    """To nine digits; in float32 one sees the difference's own error, of fourth order in the step, or rounding."""
    apply, start = nn.functional(FAMILIES[name](SHAPES["odd"]))
    rng = np.random.default_rng(2)
    params = jax.tree.map(lambda p: jnp.asarray(p + rng.normal(0, 0.3, p.shape), jnp.float64), start)
    x, z = (jnp.asarray(rng.normal(size=(4, *SHAPES["odd"]))) for _ in range(2))
    field = jax.jit(lambda h: apply(params, x + h * z, jnp.linspace(-7.0, 5.0, 4)))
    tangent, h = jax.jit(lambda: jax.jvp(field, (0.0,), (1.0,))[1])(), 1e-4
    difference = (8 * (field(h) - field(-h)) - (field(2 * h) - field(-2 * h))) / (12 * h)
    np.testing.assert_allclose(tangent, difference, atol=1e-9 * float(jnp.max(jnp.abs(tangent))))


class Told(nnx.Module):
    """A network that returns the first entry of its noise level's embedding."""

    def __init__(self, frequencies):
        function = nn.StoredFrequencies(frequencies)
        self.embedding = NoiseEmbedding(function, 2 * len(frequencies), 4, rngs=nnx.Rngs(KEY))

    def __call__(self, x, c, *, key=None):
        return self.embedding(c)[:, 0]


def test_stored_frequencies_are_neither_trained_nor_narrowed():
    f, c = np.array([3.0001, 16.123], np.float32), jnp.array([0.7])
    apply, params = nn.functional(Told(f), dtype=jnp.bfloat16)
    grads = jax.jit(jax.grad(lambda p: jnp.sum(apply(p, c, c).astype(float))))
    found, moved = grads(params), params["embedding"] | {"function": {"frequencies": jnp.asarray(f + 1e-3)}}
    np.testing.assert_array_equal(found["embedding"]["function"]["frequencies"], 0)
    first = found["embedding"]["linear_1"]["kernel"]
    assert float(jnp.max(jnp.abs(first))) > 0
    # a change that bfloat16 would lose
    assert float(jnp.max(jnp.abs(first - grads({"embedding": moved})["embedding"]["linear_1"]["kernel"]))) > 0
    angle = 2 * np.pi * 0.7 * f.astype(np.float64)
    expected = np.concatenate([np.cos(angle), np.sin(angle)])
    np.testing.assert_allclose(nn.StoredFrequencies(f)(c, 4)[0], expected, atol=1e-5)


def test_transformer_reaches_its_longest_period_or_stops_before():
    c = np.array([0.0, 3.0, 999.0])
    for shift in (0, 1):
        angle = c[:, None] * np.exp(-math.log(1e4) * np.arange(4) / (4 - shift))
        expected = np.concatenate([np.cos(angle), np.sin(angle)], axis=1)
        np.testing.assert_allclose(nn.transformer(jnp.asarray(c), 8, shift=shift), expected, atol=1e-4)
    with pytest.raises(ValueError, match="features must be above 2 shift = 2, got 2"):
        nn.transformer(jnp.zeros(1), 2)


def test_tokens_need_attention():
    with pytest.raises(ValueError, match="give attention_levels, got none"):
        nn.UNet((8, 1), conditions=nn.Tokens(3), key=KEY)
