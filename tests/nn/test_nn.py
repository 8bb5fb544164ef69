"""Networks against formulas written out in NumPy, against themselves called another way; refusals."""

import functools
import math
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from scoresde import nn
from scoresde.nn.layers import layers, resample
from scoresde.nn.layers.attention import Attention

KEY = jax.random.key(0)
SMALL = {"features": 8, "dropout": 0.3, "key": KEY}
NETS = {
    "mlp": lambda: nn.ResidualMLP((5, 3), width=24, depth=2, input_frequencies=(0.1, 0.4), **SMALL),
    "mlp of a scalar": lambda: nn.ResidualMLP((), width=8, depth=1, **SMALL),
    "unet 1d": lambda: nn.UNet((11, 2), channels=4, input_frequencies=(0.3,), blocks=2, attention_levels=(1,), **SMALL),
    "unet 2d": lambda: nn.UNet((7, 5, 1), channels=4, multipliers=(1, 3), **SMALL),
    "unet 3d": lambda: nn.UNet(
        (4, 6, 2, 1), channels=4, patch=2, multipliers=(1,), heads=2, attention_levels=(0,), **SMALL
    ),
}


class Case:
    """A network, its functional form compiled once, parameters moved off their start, and data."""

    def __init__(self, name, batch=4):
        self.net = NETS[name]()
        self.apply, self.start = nn.functional(self.net)
        self.jitted = jax.jit(self.apply)
        rng = np.random.default_rng(2)
        self.params = jax.tree.map(lambda p: p + rng.normal(0, 0.3, p.shape).astype(np.float32), self.start)
        self.x = jax.random.normal(jax.random.key(1), (batch, *self.net.event_shape))
        self.c = jnp.linspace(-7.0, 5.0, batch)


@pytest.fixture(
    params=[pytest.param(key, marks=pytest.mark.slow if key in ("unet 1d", "unet 3d") else ()) for key in NETS],
    scope="module",
)
def case(request):
    return Case(request.param)


def test_gaussian_fourier_is_its_formula():
    c = np.linspace(-7, 5, 9)
    f = np.array([NormalDist().inv_cdf(q) for q in (0.5625, 0.6875, 0.8125, 0.9375)]) * 0.7
    angle = 2 * np.pi * c[:, None] * f
    expected = np.concatenate([np.cos(angle), np.sin(angle)], axis=1)
    np.testing.assert_allclose(nn.gaussian_fourier(jnp.array(c), 8, scale=0.7), expected, atol=1e-5)


def test_gaussian_fourier_has_the_kernel_of_the_gaussian_law():
    scale, distance = 0.5, np.array([0.0, 0.1, 0.3, 0.6, 1.0])
    e = nn.gaussian_fourier(jnp.concatenate([jnp.zeros(1), jnp.array(distance)]), 2000, scale=scale)
    kernel = e[1:] @ e[0] / 1000
    np.testing.assert_allclose(kernel, np.exp(-2 * (np.pi * scale * distance) ** 2), atol=2e-3)


def test_positional_is_the_transformers():
    c, half = np.arange(6.0), 4
    angle = c[:, None] * 10_000 ** (-np.arange(half) / (half - 1))
    expected = np.concatenate([np.cos(angle), np.sin(angle)], axis=1)
    periods = {"min_period": 2 * math.pi, "max_period": 2 * math.pi * 10_000}
    np.testing.assert_allclose(nn.positional(jnp.array(c), 2 * half, **periods), expected, atol=1e-5)


def test_input_waves_are_damped_as_noise_damps_them_when_it_is_small():
    x_0, phi, f, offset = 0.7, 0.1, (0.4, 1.5), 0.3
    eps = np.random.default_rng(0).standard_normal(400_000)
    clean = math.cos(phi) * x_0
    mean = np.mean(np.exp(2j * np.pi * np.outer(f, clean + math.sin(phi) * eps + offset)), axis=1)
    features = nn.input_waves(jnp.array([[clean]]), jnp.array([math.log(math.tan(phi))]), f, offset)
    expected = [clean, mean[0].imag, mean[0].real, mean[1].imag, mean[1].real]
    np.testing.assert_allclose(features[0, 0], expected, atol=1e-2)


def test_input_waves_vanish_with_their_derivatives_where_all_is_noise():
    c = jnp.array([5.0, 8.0])
    features, tangents = jax.jvp(lambda x: nn.input_waves(x, c, (0.5, 4.0)), (jnp.ones((2, 3)),), (jnp.ones((2, 3)),))
    np.testing.assert_array_equal(features[..., 1:], 0)
    np.testing.assert_array_equal(tangents[..., 1:], 0)


@pytest.mark.parametrize("embedding", [nn.gaussian_fourier, nn.positional])
def test_embedding_refusals(embedding):
    for features in (0, 3, 2.0, True):
        with pytest.raises(ValueError, match="features must be an even whole number"):
            embedding(jnp.zeros(2), features)


def test_embedding_ranges():
    with pytest.raises(ValueError, match="scale must be positive"):
        nn.gaussian_fourier(jnp.zeros(2), 4, scale=0.0)
    with pytest.raises(ValueError, match="min_period < max_period"):
        nn.positional(jnp.zeros(2), 4, min_period=2.0, max_period=1.0)


def test_functional_is_the_module(case):
    state = nnx.state(case.net)
    for path, variable in nnx.to_flat_state(state):
        variable[...] = functools.reduce(lambda node, name: node[str(name)], path, case.params)
    moved = nnx.merge(nnx.graphdef(case.net), state)
    for key in (None, jax.random.key(5)):
        y = jax.jit(lambda x, c, key=key: moved(x, c, key=key))(case.x, case.c)
        scale = float(jnp.std(y))
        assert scale > 0.01
        np.testing.assert_allclose(case.jitted(case.params, case.x, case.c, key=key), y, atol=1e-5 * scale)


def test_parameters_are_plain_dicts_with_string_keys(case):
    def plain(node):
        if type(node) is dict:
            return all(type(name) is str and plain(child) for name, child in node.items())
        return type(node) is type(jnp.zeros(1))

    assert plain(case.start)


def test_lists_longer_than_ten_keep_their_order():
    net = nn.ResidualMLP((3,), width=4, depth=12, features=4, key=KEY)
    _, params = nn.functional(net)
    assert sorted(params["blocks"], key=int) == [str(i) for i in range(12)]
    for i, block in enumerate(net.blocks):
        np.testing.assert_array_equal(block.first.kernel[...], params["blocks"][str(i)]["first"]["kernel"])


def test_functional_refuses_state_that_is_not_a_parameter():
    class Stateful(nnx.Module):
        def __init__(self):
            self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

    with pytest.raises(ValueError, match=r"nnx.Param only, got Rng\w+ at dropout"):
        nn.functional(Stateful())


def test_output_is_zero_at_the_start(case):
    np.testing.assert_array_equal(case.jitted(case.start, case.x, case.c, key=KEY), np.zeros(case.x.shape))


def test_no_parameter_is_dead_after_one_step(case):
    target = jax.random.normal(jax.random.key(3), case.x.shape)
    grad = jax.jit(jax.grad(lambda p: jnp.mean((case.apply(p, case.x, case.c) - target) ** 2)))
    params = jax.tree.map(lambda p, g: p - 0.1 * jnp.sign(g), case.start, grad(case.start))
    for path, g in jax.tree_util.tree_leaves_with_path(grad(params)):
        assert float(jnp.max(jnp.abs(g))) > 1e-6, jax.tree_util.keystr(path)


def test_example_is_independent_of_its_batch(case):
    y = case.jitted(case.params, case.x, case.c)
    close = functools.partial(np.testing.assert_allclose, atol=2e-5 * float(jnp.std(y)), rtol=1e-5)
    order = jnp.array([3, 0, 2, 1])
    close(case.jitted(case.params, case.x[order], case.c[order]), y[order])
    others_changed = case.x.at[jnp.array([0, 2, 3])].multiply(7)
    close(case.jitted(case.params, others_changed, case.c)[1], y[1])
    one_by_one = jax.jit(jax.vmap(lambda p, x, c: case.apply(p, x[None], c[None])[0], in_axes=(None, 0, 0)))
    close(one_by_one(case.params, case.x, case.c), y)


def test_the_output_depends_on_the_noise_coordinate(case):
    y, shifted = (case.jitted(case.params, case.x, case.c + shift) for shift in (0, 0.5))
    assert float(jnp.min(jnp.max(jnp.abs(y - shifted).reshape(len(y), -1), axis=1))) > 1e-2


def test_forward_mode_is_the_finite_difference_and_the_transpose_of_reverse_mode(case):
    z, w = (jax.random.normal(jax.random.key(i), case.x.shape) for i in (7, 8))

    @jax.jit
    def differentiate(params):
        def field(x):
            return case.apply(params, x, case.c)

        return jax.jvp(field, (case.x,), (z,))[1], jax.vjp(field, case.x)[1](w)[0]

    tangent, cotangent = differentiate(case.params)
    step = [case.jitted(case.params, case.x + h * z, case.c) for h in (-2e-2, -1e-2, 1e-2, 2e-2)]
    difference = (8 * (step[2] - step[1]) - (step[3] - step[0])) / 0.12
    np.testing.assert_allclose(tangent, difference, atol=2e-3 * float(jnp.max(jnp.abs(tangent))))
    scale = float(jnp.linalg.norm(w) * jnp.linalg.norm(tangent))
    assert abs(float(jnp.vdot(w, tangent) - jnp.vdot(cotangent, z))) < 1e-5 * scale


@pytest.mark.parametrize("name", ["mlp", "unet 3d"])
@pytest.mark.slow
def test_rematerialisation_changes_nothing(name):
    case = Case(name)

    def gradient(apply):
        return jax.jit(jax.grad(lambda p: jnp.sum(apply(p, case.x, case.c, key=KEY) ** 2)))(case.params)

    plain, again = (jax.tree.leaves(gradient(f)) for f in (case.apply, jax.checkpoint(case.apply)))
    for a, b in zip(plain, again, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(jnp.max(jnp.abs(a))))


def test_dropout_follows_its_key(case):
    y, again, other = (case.jitted(case.params, case.x, case.c, key=jax.random.key(i)) for i in (1, 1, 2))
    np.testing.assert_array_equal(y, again)
    assert float(jnp.max(jnp.abs(y - other))) > 1e-3
    quiet = case.jitted(case.params, case.x, case.c)
    np.testing.assert_array_equal(quiet, case.jitted(case.params, case.x, case.c))
    assert float(jnp.max(jnp.abs(y - quiet))) > 1e-3


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.9])
def test_dropout_keeps_the_mean_and_drops_at_its_rate(rate):
    x = jnp.full((400, 500), 2.0)
    y = layers.dropout(x, rate, KEY)
    n, dropped = y.size, float(jnp.mean(y == 0))
    assert abs(dropped - rate) < 4 * math.sqrt(rate * (1 - rate) / n) + 1 / 65536
    assert abs(float(jnp.mean(y)) - 2) < 4 * 2 * math.sqrt(rate / (1 - rate) / n)
    np.testing.assert_allclose(y[y > 0], 2 / (1 - rate), rtol=2e-4)


def test_group_norm_survives_a_large_mean():
    norm = layers.group_norm(8, rngs=nnx.Rngs(KEY))
    h = 50 + 0.01 * jax.random.normal(KEY, (4, 16, 16, 8))
    y = norm(h)
    epsilon = 1e-6 / 0.01**2
    np.testing.assert_allclose(np.std(y, axis=(1, 2, 3)), 1 / math.sqrt(1 + epsilon), rtol=2e-2)


@pytest.mark.parametrize("channels", [1, 2, 3, 6, 7, 20, 96, 100, 256])
def test_group_norm_groups_divide_the_channels(channels):
    norm = layers.group_norm(channels, rngs=nnx.Rngs(KEY))
    assert channels % norm.num_groups == 0
    assert norm.num_groups == 1 or channels // norm.num_groups >= 4


@pytest.mark.parametrize("heads", [1, 3])
def test_attention_is_the_softmax_formula(heads):
    attention = Attention(12, heads=heads, rngs=nnx.Rngs(KEY))
    h = 3 * jax.random.normal(KEY, (2, 3, 5, 12))
    y = attention(h)
    a = np.asarray(attention.norm(h), np.float64).reshape(2, 15, 12)
    kernel, bias = (np.asarray(v[...], np.float64) for v in (attention.qkv.kernel, attention.qkv.bias))
    q, k, v = np.split(a @ kernel + bias, 3, -1)
    out = np.empty_like(a)
    for head in np.split(np.arange(12), heads):
        logits = np.einsum("bic,bjc->bij", q[..., head], k[..., head]) / math.sqrt(12 / heads)
        p = np.exp(logits - logits.max(-1, keepdims=True))
        out[..., head] = (p / p.sum(-1, keepdims=True)) @ v[..., head]
    expected = np.asarray(h) + (out @ np.asarray(attention.output.kernel[...])).reshape(h.shape)
    np.testing.assert_allclose(y, expected, atol=2e-5)


def test_attention_softmax_is_float32_for_bfloat16_input():
    attention = Attention(8, rngs=nnx.Rngs(KEY))
    h = jax.random.normal(KEY, (2, 64, 8), jnp.bfloat16)
    jaxpr = jax.make_jaxpr(attention.__call__)(h)
    exps = [eqn for eqn in _equations(jaxpr.jaxpr) if eqn.primitive.name == "exp"]
    assert exps and all(eqn.invars[0].aval.dtype == jnp.float32 for eqn in exps)


def _equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _equations(inner)


def test_one_level_unet_commutes_with_translation_away_from_the_border():
    net = nn.UNet((40, 1), channels=8, multipliers=(1,), features=8, key=KEY)
    apply, params = nn.functional(net)
    params["output"]["kernel"] = jax.random.normal(KEY, params["output"]["kernel"].shape)
    apply = jax.jit(apply)
    x, c = jnp.zeros((1, 40, 1)).at[0, 20, 0].set(1.0), jnp.zeros(1)
    response, moved = apply(params, x, c)[0], apply(params, jnp.roll(x, 3, axis=1), c)[0]
    reach = 10  # ten convolutions of width 3
    np.testing.assert_allclose(moved[reach + 3 : -reach], response[reach : -reach - 3], atol=1e-4)
    assert float(jnp.std(response)) > 0.1


def test_enlarge_is_numpy_repeat_cut_to_size():
    h = jax.random.normal(KEY, (2, 3, 2, 1))
    expected = np.repeat(np.repeat(h, 2, 1), 2, 2)[:, :5, :3]
    np.testing.assert_array_equal(resample.enlarge(h, (5, 3)), expected)


@pytest.mark.parametrize(
    ("message", "build"),
    [
        ("ResidualMLP: width must be a whole number", lambda: nn.ResidualMLP((3,), width=0, key=KEY)),
        ("ResidualMLP: depth must be a whole number", lambda: nn.ResidualMLP((3,), depth=1.5, key=KEY)),
        (r"ResidualMLP: dropout must be in \[0, 1\)", lambda: nn.ResidualMLP((3,), dropout=1.0, key=KEY)),
        ("ResidualMLP: input_frequencies must be pos", lambda: nn.ResidualMLP((3,), input_frequencies=(0.0,), key=KEY)),
        ("UNet: input_frequencies must be pos", lambda: nn.UNet((8, 1), input_frequencies=(-1.0,), key=KEY)),
        ("the product of event_shape", lambda: nn.ResidualMLP((3, 0), key=KEY)),
        ("features must be an even", lambda: nn.ResidualMLP((3,), features=5, key=KEY)),
        (r"UNet: event_shape must be \(\*sizes, channels\)", lambda: nn.UNet((8,), key=KEY)),
        (r"UNet: event_shape must be \(\*sizes, channels\)", lambda: nn.UNet((8, 8, 8, 8, 1), key=KEY)),
        ("UNet: multipliers must be a whole", lambda: nn.UNet((8, 8, 1), multipliers=(1, 0), key=KEY)),
        ("UNet: multipliers must name", lambda: nn.UNet((8, 8, 1), multipliers=(), key=KEY)),
        ("levels are too many", lambda: nn.UNet((8, 8, 1), multipliers=(1, 1, 1, 1, 1), key=KEY)),
        (r"attention_levels must be in 0\.\.1, got 2", lambda: nn.UNet((8, 8, 1), attention_levels=(2,), key=KEY)),
        (r"patch = 3 must divide the sizes \(8, 9\)", lambda: nn.UNet((8, 9, 1), patch=3, key=KEY)),
        ("heads = 3 must divide", lambda: nn.UNet((8, 8, 1), attention_levels=(1,), heads=3, key=KEY)),
        (r"UNet: dropout must be in \[0, 1\)", lambda: nn.UNet((8, 8, 1), dropout=-0.1, key=KEY)),
    ],
)
def test_refusals_at_construction(message, build):
    with pytest.raises(ValueError, match=message) as error:
        build()
    assert "\n" not in str(error.value)


def test_refusals_at_the_call(case):
    with pytest.raises(ValueError, match=r"x must have shape \(B, "):
        case.apply(case.params, case.x[..., None], case.c)
    with pytest.raises(ValueError, match=r"c must have shape \(B,\) = \(4,\), got \(3,\)"):
        case.apply(case.params, case.x, case.c[:3])
    with pytest.raises(ValueError, match=r"c must have shape \(B,\)"):
        case.apply(case.params, case.x, case.c[:, None])


@pytest.mark.parametrize("sizes", [(6,), (6, 4), (4, 2, 6)])
def test_patches_gather_neighbours_and_give_them_back(sizes):
    h = jnp.arange(3 * np.prod(sizes) * 2.0).reshape(3, *sizes, 2)
    cut = resample.folded(h, 2)
    assert cut.shape == (3, *(n // 2 for n in sizes), 2 ** len(sizes) * 2)
    np.testing.assert_array_equal(resample.unfolded(cut, 2), h)
    first = h[(slice(None), *(slice(0, 2) for _ in sizes))].reshape(3, -1)
    np.testing.assert_array_equal(cut[(slice(None), *(0 for _ in sizes))], first)


@pytest.mark.parametrize("make", [nn.ResidualMLP, nn.UNet], ids=["mlp", "unet"])
def test_labels_start_at_nothing_and_zero_labels_stay_nothing(make):
    """A network with labels begins as the one without, bit for bit; with any weights zero labels are no labels, and
    others act."""
    size = {"width": 8, "depth": 1} if make is nn.ResidualMLP else {"channels": 4}
    plain, params = nn.functional(make((6, 6, 1), **size, key=jax.random.key(0)))
    apply, more = nn.functional(make((6, 6, 1), **size, labels=3, key=jax.random.key(0)))
    head = more["embedding"].pop("labels")
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), params, more))
    assert list(head) == ["kernel"] and not np.any(head["kernel"])
    x, c = jax.random.normal(jax.random.key(1), (2, 6, 6, 1)), jnp.array([-1.0, 0.5])
    if make is nn.ResidualMLP:
        rng = np.random.default_rng(0)
        noise = lambda leaf: np.asarray(leaf) + 0.1 * rng.normal(size=leaf.shape).astype("f4")  # noqa: E731
        params = jax.tree.map(noise, params)
        more = params | {"embedding": params["embedding"] | {"labels": {"kernel": noise(head["kernel"])}}}
        labels = (None, jnp.zeros((2, 3)), jnp.ones((2, 3)))
        (without, zero, some), reference = jax.jit(
            lambda more, params: ([apply(more, x, c, labels=v) for v in labels], plain(params, x, c))
        )(more, params)
        np.testing.assert_allclose(without, reference, atol=1e-6)
        np.testing.assert_allclose(zero, without, atol=1e-6)
        assert np.max(np.abs(some - without)) > 1e-3
    with pytest.raises(ValueError, match=r"labels must have shape \(B, L\) = \(2, 3\), got \(2, 2\)"):
        jax.eval_shape(apply, more | {"embedding": more["embedding"] | {"labels": head}}, x, c, labels=jnp.ones((2, 2)))
    with pytest.raises(ValueError, match=r"labels must have shape \(B, L\) = \(2, 0\), got \(2, 3\)"):
        jax.eval_shape(plain, params, x, c, labels=jnp.ones((2, 3)))
