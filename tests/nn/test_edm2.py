"""EDM2's U-Net against NumPy written from the paper in the original's layout, and what magnitudes do."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import streams

from experiments import convert
from scoresde import nn
from scoresde.interop import edm_file
from scoresde.interop.originals import converted
from scoresde.interop.projects.edm import edm
from scoresde.interop.projects.edm2 import edm2
from scoresde.nn.unets import magnitude

KEY = jax.random.key(0)
SMALL = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention_levels": (1,), "head_channels": 8, "key": KEY}
WIDTHS, CLASSES, SIZE = (8, 16), 3, 6


def original_state():
    """The names and shapes of the published network for images (2, 6, 6), random numbers."""
    shapes = {
        "emb_fourier.freqs": (8,),
        "emb_fourier.phases": (8,),
        "emb_noise.weight": (16, 8),
        "emb_label.weight": (16, CLASSES),
        "enc.6x6_conv.weight": (8, 3, 3, 3),
        "out_conv.weight": (2, 8, 3, 3),
        "out_gain": (),
    }
    blocks = {  # inputs, outputs, whether attention follows
        "enc.6x6_block0": (8, 8, False),
        "enc.3x3_down": (8, 8, False),
        "enc.3x3_block0": (8, 16, True),
        "dec.3x3_in0": (16, 16, True),
        "dec.3x3_in1": (16, 16, False),
        "dec.3x3_block0": (16 + 16, 16, True),
        "dec.3x3_block1": (16 + 8, 16, True),
        "dec.6x6_up": (16, 16, False),
        "dec.6x6_block0": (16 + 8, 8, False),
        "dec.6x6_block1": (8 + 8, 8, False),
    }
    for name, (inputs, outputs, attention) in blocks.items():
        first = outputs if name.startswith("enc") else inputs
        shapes |= {f"{name}.emb_gain": (), f"{name}.emb_linear.weight": (outputs, 16)}
        shapes |= {f"{name}.conv_res0.weight": (outputs, first, 3, 3)}
        shapes |= {f"{name}.conv_res1.weight": (outputs, outputs, 3, 3)}
        if inputs != outputs:
            shapes[f"{name}.conv_skip.weight"] = outputs, inputs, 1, 1
        if attention:
            shapes[f"{name}.attn_qkv.weight"] = 3 * outputs, outputs, 1, 1
            shapes[f"{name}.attn_proj.weight"] = outputs, outputs, 1, 1
    rng = np.random.default_rng(4)
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


def unit(a, axes):
    return a / (1e-4 + np.sqrt(np.mean(a**2, axis=axes, keepdims=True)))


def layer(w, h, gain=1.0):
    w = unit(w, tuple(range(1, w.ndim))) * gain / math.sqrt(w[0].size)
    if w.ndim == 2:
        return h @ w.T
    reach, (rows, columns) = w.shape[2] // 2, h.shape[2:]
    h = np.pad(h, ((0, 0), (0, 0), (reach, reach), (reach, reach)))
    shifts = [(i, j) for i in range(w.shape[2]) for j in range(w.shape[3])]
    return sum(np.einsum("oi,nihw->nohw", w[:, :, i, j], h[:, :, i : i + rows, j : j + columns]) for i, j in shifts)


def silu(h):
    return h / (1 + np.exp(-h)) / 0.596


def lerp(a, b, t):
    return (a + t * (b - a)) / math.sqrt((1 - t) ** 2 + t**2)


def block(state, name, h, e):
    get = lambda part: state.get(f"{name}.{part}")  # noqa: E731
    skip = lambda h: h if get("conv_skip.weight") is None else layer(get("conv_skip.weight"), h)  # noqa: E731
    encoder = name.startswith("enc")
    if encoder:
        h = unit(skip(h), (1,))
    scale = layer(get("emb_linear.weight"), e, get("emb_gain")) + 1
    r = layer(get("conv_res1.weight"), silu(layer(get("conv_res0.weight"), silu(h)) * scale[:, :, None, None]))
    h = lerp(h if encoder else skip(h), r, 0.3)
    if get("attn_qkv.weight") is not None:
        n, channels, *sizes = h.shape
        qkv = layer(get("attn_qkv.weight"), h).reshape(n, channels // 8, 8, 3, -1)
        q, k, v = np.moveaxis(unit(qkv, (2,)), 3, 0)
        p = np.exp(np.einsum("nhcq,nhck->nhqk", q, k) / math.sqrt(8))
        values = np.einsum("nhqk,nhck->nhcq", p / p.sum(-1, keepdims=True), v)
        h = lerp(h, layer(get("attn_proj.weight"), values.reshape(n, channels, *sizes)), 0.3)
    return np.clip(h, -256, 256)


def original(state, x, c, onehot):
    """The published network on x (B, 2, 6, 6)."""

    def cat(a, b):
        n, m = a.shape[1], b.shape[1]
        scale = math.sqrt((n + m) / 0.5) / 2
        return np.concatenate([a * scale / math.sqrt(n), b * scale / math.sqrt(m)], axis=1)

    waves = math.sqrt(2) * np.cos(np.outer(c, state["emb_fourier.freqs"]) + state["emb_fourier.phases"])
    label = layer(state["emb_label.weight"], onehot * math.sqrt(CLASSES))
    e = silu(lerp(layer(state["emb_noise.weight"], waves), label, 0.5))
    h = layer(state["enc.6x6_conv.weight"], np.concatenate([x, np.ones_like(x[:, :1])], axis=1))
    skips = [h]
    skips.append(block(state, "enc.6x6_block0", h, e))
    skips.append(block(state, "enc.3x3_down", skips[-1].reshape(-1, 8, 3, 2, 3, 2).mean(axis=(3, 5)), e))
    skips.append(block(state, "enc.3x3_block0", skips[-1], e))
    h = block(state, "dec.3x3_in1", block(state, "dec.3x3_in0", skips[-1], e), e)
    for name in ("dec.3x3_block0", "dec.3x3_block1"):
        h = block(state, name, cat(h, skips.pop()), e)
    h = block(state, "dec.6x6_up", h.repeat(2, axis=2).repeat(2, axis=3), e)
    for name in ("dec.6x6_block0", "dec.6x6_block1"):
        h = block(state, name, cat(h, skips.pop()), e)
    return layer(state["out_conv.weight"], h, state["out_gain"])


@pytest.fixture(scope="module")
def network():
    return nn.functional(nn.EDM2((SIZE, SIZE, 2), conditions=nn.Classes(CLASSES), **SMALL))


CONFIG = {
    "img_resolution": SIZE,
    "img_channels": 2,
    "label_dim": CLASSES,
    "model_channels": 8,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [3],
    "channels_per_head": 8,
    "sigma_data": 0.7,
    "use_fp16": True,
}
LOGVAR = {
    "logvar_fourier.freqs": np.ones(4),
    "logvar_fourier.phases": np.ones(4),
    "logvar_linear.weight": np.ones((1, 4)),
}


def published():
    """The state as EDM2's pickles hold it."""
    return {f"unet.{name}": array for name, array in original_state().items()} | LOGVAR


def test_it_is_the_published_network_and_its_score_that_of_the_denoiser():
    converted, state = edm2(CONFIG, published()), original_state()
    x, t = np.random.default_rng(5).normal(size=(3, 2, SIZE, SIZE)), np.array([0.05, 0.4, 0.9])
    onehot = np.eye(CLASSES)[[2, 0, 0]] * np.array([1, 1, 0])[:, None]
    classes, last = jnp.array([2, 0, -1]), jnp.float32(x.transpose(0, 2, 3, 1))
    sigma = np.asarray(converted.sde.sigma(jnp.asarray(t)), np.float64)
    c_skip, c_in = 0.7**2 / (sigma**2 + 0.7**2), 1 / np.sqrt(sigma**2 + 0.7**2)
    expand = lambda a: a[:, None, None, None]  # noqa: E731
    F = original(state, expand(c_in) * x, np.log(sigma) / 4, onehot)
    D = expand(c_skip) * x + expand(0.7 * sigma * c_in) * F
    score = jax.jit(lambda score: score(last, jnp.float32(t), classes))(converted.score)
    for got, wanted in zip(np.asarray(score).transpose(0, 3, 1, 2), (D - x) / expand(sigma) ** 2, strict=True):
        assert np.linalg.norm(got - wanted) < 5e-6 * np.linalg.norm(wanted)
    assert converted.data_range == (-math.inf, math.inf)


def snapshot(state):
    """What EDM2 pickles: its dict {encoder, dataset_kwargs, loss_fn, ema}, the network in half precision."""
    halves = {name: array.astype(np.float16) for name, array in state.items()}
    arguments = {k: v for k, v in CONFIG.items() if k != "use_fp16"} | {"use_fp16": True, "dropout": 0.1}
    scale = {"scale": streams.array(np.ones(4, np.float32)), "_vae": None, "_init_args": (), "_init_kwargs": {}}
    loss = {"P_mean": -0.4, "P_std": 1.0, "_init_args": (), "_init_kwargs": {"P_mean": -0.4}}
    content = {
        "encoder": streams.persistent("StabilityVAEEncoder", scale),
        "dataset_kwargs": streams.Filled("dnnlib.util.EasyDict", {"class_name": "ImageFolderDataset", "xflip": True}),
        "loss_fn": streams.persistent("EDM2Loss", loss),
        "ema": streams.tree_of(halves, "Precond", arguments),
    }
    return halves, streams.stream(streams.Filled("dnnlib.util.EasyDict", content))


def test_a_pickle_of_edm2_is_read_by_the_door_of_edm_and_converted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    halves, content = snapshot(published())
    (tmp_path / "edm2-img512-xs.pkl").write_bytes(content)
    found, expected = edm_file("edm2-img512-xs.pkl"), edm2(CONFIG, halves)
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
    assert (found.sde, found.data_range) == (expected.sde, expected.data_range)
    line, _ = convert.convert(convert.Flags(tmp_path / "edm2-img512-xs.pkl", tmp_path / "out"))
    assert line.startswith("edm: ") and "VE(" in line
    again = converted(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, again.params, expected.params)
    assert again.sde == expected.sde
    assert not (tmp_path / "executed").exists()


def test_refusals_of_the_reader():
    state = published()
    del state["unet.out_gain"]
    state |= {"unet.more": np.ones(3), "unet.emb_noise.weight": np.ones((16, 9))}
    lists = (
        r"missing unet\.out_gain; extra unet\.more; misshapen unet\.emb_noise\.weight has \(16, 9\), expected \(16, 8\)"
    )
    with pytest.raises(ValueError, match=lists):
        edm2(CONFIG, state)
    with pytest.raises(ValueError, match="edm2: config lacks img_resolution, img_channels"):
        edm({"precond": "Precond"}, state)  # what EDM2 calls its preconditioning in its pickles
    with pytest.raises(ValueError, match=r"edm2: config's res_balance must be 0\.3, got 0\.5"):
        edm2(CONFIG | {"res_balance": 0.5}, state)


@pytest.fixture(scope="module")
def moved(network):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda p: p + jnp.asarray(rng.normal(0, 0.5, p.shape), jnp.float32), network[1])


@pytest.mark.slow
def test_weights_are_normalised_and_nothing_else(network, moved):
    assert network[1]["gain"] == 0  # of the output, which is zero at first
    normal = jax.jit(nn.normalise_weights)(moved)
    for (path, leaf), was in zip(jax.tree_util.tree_leaves_with_path(normal), jax.tree.leaves(moved), strict=True):
        if path[-1].key == "weight":
            np.testing.assert_allclose(np.mean(np.square(leaf), axis=tuple(range(leaf.ndim - 1))), 1, rtol=1e-3)
        else:
            np.testing.assert_array_equal(leaf, was)


@pytest.mark.slow
def test_the_length_of_weights_does_not_matter(network, moved):
    """Outputs stay where weights are normalised, gradients are orthogonal to each output's weights, waves get none."""
    x, c = jax.random.normal(KEY, (2, SIZE, SIZE, 2)), jnp.array([-0.5, 0.5])
    value = jax.jit(lambda p: jnp.sum(network[0](p, x, c) ** 2))
    np.testing.assert_allclose(value(nn.normalise_weights(moved)), value(moved), rtol=2e-2)
    gradient = jax.jit(jax.grad(value))(moved)
    for (path, g), p in zip(jax.tree_util.tree_leaves_with_path(gradient), jax.tree.leaves(moved), strict=True):
        if path[-1].key == "weight":
            along, lengths = np.sum(g * p, axis=tuple(range(p.ndim - 1))), np.linalg.norm(g) * np.linalg.norm(p)
            assert np.max(np.abs(along)) < 1e-3 * lengths + 1e-6, jax.tree_util.keystr(path)
        if path[0].key == "waves":
            assert not np.any(g)


def test_every_part_preserves_magnitude():
    a, b = (jnp.asarray(np.random.default_rng(i).normal(size=(4000, 8)), jnp.float32) for i in (1, 2))

    @jax.jit
    def squares(a, b):
        parts = magnitude.lerp(a, b, 0.3), magnitude.cat(a, b[:, :4], 0.5), magnitude.silu(a), magnitude.unit(3 * a)
        waves = magnitude.Waves(4000)(a[:8, 0])
        zero = jax.grad(lambda h: jnp.sum(magnitude.unit(h)))(jnp.zeros((2, 3)))
        return [jnp.mean(part**2) for part in (*parts, waves)], zero

    found, zero = squares(a, b)
    np.testing.assert_allclose(found, 1, atol=0.05)
    assert np.all(np.isfinite(zero))


PRESETS = {nn.edm2_xxs: 31, nn.edm2_s: 280, nn.edm2_m: 498, nn.edm2_l: 777, nn.edm2_xl: 1119, nn.edm2_xxl: 1523}
SMALL_LEVELS = {"multipliers": (1, 2), "attention_levels": (1,), "blocks": 1, "labels": 2, "key": KEY}


@pytest.mark.parametrize(
    "make",
    [pytest.param(make, marks=pytest.mark.slow) for make in (nn.edm2_xs, *PRESETS)],
)
def test_the_output_has_unit_variance_where_its_gain_is_one(make):
    """In the mean over the draws of the last layer's weights: sixteen outputs."""
    apply, params = nn.functional(make((8, 8, 16), **SMALL_LEVELS))
    params["gain"] = jnp.ones(())
    x, labels = jax.random.normal(KEY, (4, 8, 8, 16)), jax.random.normal(jax.random.key(1), (4, 2))
    y = jax.jit(apply)(params, x, jnp.linspace(-1, 1, 4), labels=labels)
    assert 0.6 < float(jnp.sqrt(jnp.mean(y**2))) < 1.4


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(9, 2), (5, 7, 1), (4, 6, 2, 1)])
def test_any_sizes_in_one_to_three_dimensions_with_dropout_and_remat(shape):
    conditions = {"class": nn.Classes(2), "map": nn.Map(1)}
    plain, start = nn.functional(nn.EDM2(shape, dropout=0.5, conditions=conditions, **SMALL))
    again, _ = nn.functional(nn.EDM2(shape, dropout=0.5, conditions=conditions, remat=True, **SMALL))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: p + jnp.asarray(rng.normal(0, 0.3, p.shape), jnp.float32), start)
    x, c = jax.random.normal(KEY, (2, *shape)), jnp.array([-0.5, 0.5])
    cond = {"class": jnp.array([0, 1]), "map": jnp.ones((2, *shape[:-1], 1))}

    def gradient(apply, key):
        return jax.jit(jax.grad(lambda p: jnp.sum(apply(p, x, c, key=key, cond=cond) ** 2)))(params)

    dropped = gradient(plain, KEY)
    for a, b in zip(jax.tree.leaves(dropped), jax.tree.leaves(gradient(again, KEY)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * float(jnp.max(jnp.abs(b))) + 1e-6)
    quiet, noisy = (jax.jit(plain)(params, x, c, key=key) for key in (None, KEY))
    assert quiet.shape == x.shape and float(jnp.max(jnp.abs(quiet - noisy))) > 1e-3


@pytest.mark.parametrize(
    ("make", "millions"),
    [
        (nn.edm2_xs, 125),
        *(pytest.param(*preset, marks=pytest.mark.slow) for preset in PRESETS.items()),
    ],
)
def test_presets_have_the_published_numbers_of_parameters(make, millions):
    net = functools.partial(make, (64, 64, 4), conditions=nn.Classes(1000))
    params = jax.eval_shape(lambda key: nn.functional(net(key=key))[1], KEY)
    assert abs(sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) / 1e6 - millions) < 0.5


@pytest.mark.parametrize(
    ("message", "options"),
    [
        (r"EDM2: attention_levels must be levels 0\.\.1 of multipliers, got \(2,\)", {"attention_levels": (2,)}),
        (r"EDM2: head_channels = 3 must divide channels = 16", {"head_channels": 3}),
        (r"EDM2: conditions must be a pytree of ss.nn's Classes, Vector, Map, got", {"conditions": nn.Tokens(3)}),
        (r"EDM2: multipliers must be a whole number of at least 1, got 0", {"multipliers": (1, 0)}),
    ],
)
def test_refusals(message, options):
    with pytest.raises(ValueError, match=message):
        nn.EDM2((8, 8, 1), **SMALL | options)


def test_refusals_of_labels(network):
    x, c = jnp.ones((2, SIZE, SIZE, 2)), jnp.ones(2)
    with pytest.raises(ValueError, match=r"labels must have shape \(B, L\) = \(2, 0\), got \(2, 3\)"):
        network[0](network[1], x, c, labels=jnp.ones((2, 3)))
