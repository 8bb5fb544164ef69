"""Networks of score_sde and EDM: against the golden files, against the originals written as NumPy loops, refusals."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import originals
import pytest
import streams

import scoresde as ss
from scoresde import interop

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden"
SONG = {
    "name": "ncsnpp",
    "image_size": 8,
    "num_channels": 2,
    "centered": False,
    "scale_by_sigma": True,
    "nf": 8,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [4],
    "fir": True,
    "fir_kernel": [1, 3, 3, 1],
    "resblock_type": "biggan",
    "progressive": "none",
    "progressive_input": "residual",
    "progressive_combine": "sum",
    "embedding_type": "fourier",
    "skip_rescale": True,
    "sde": "ve",
    "num_scales": 50,
}
VARIANTS = {
    "NCSN++": {},
    "NCSN++ of 256": {"progressive": "output_skip", "progressive_input": "input_skip", "ch_mult": [1, 1, 2]},
    "side by side": {"progressive_input": "input_skip", "progressive_combine": "cat", "skip_rescale": False},
    "residual output": {"progressive": "residual", "resblock_type": "ddpm"},
    "plain": {"fir": False, "progressive": "residual", "embedding_type": "positional", "resblock_type": "ddpm"},
    "DDPM++": {"fir": False, "progressive_input": "none", "embedding_type": "positional", "sde": "subvp"}
    | {"centered": True, "scale_by_sigma": False, "attn_resolutions": [8, 4]},
    "DDPM": {"name": "ddpm", "fir": False, "progressive_input": "none", "embedding_type": "positional", "sde": "vp"}
    | {"centered": True, "scale_by_sigma": False, "skip_rescale": False, "resblock_type": "ddpm", "nf": 32},
}
EDM = {
    "model_type": "SongUNet",
    "img_resolution": 8,
    "img_channels": 2,
    "label_dim": 0,
    "augment_dim": 0,
    "model_channels": 8,
    "channel_mult": [1, 2],
    "channel_mult_emb": 4,
    "num_blocks": 1,
    "attn_resolutions": [4],
    "embedding_type": "positional",
    "encoder_type": "standard",
    "decoder_type": "standard",
    "channel_mult_noise": 1,
    "resample_filter": [1, 1],
}
ARCHITECTURES = {
    "DDPM++": {"label_dim": 3, "augment_dim": 2, "channel_mult": [1, 1]},
    "NCSN++": {"embedding_type": "fourier", "channel_mult_noise": 2, "encoder_type": "residual"}
    | {"resample_filter": [1, 3, 3, 1]},
    "skips": {"encoder_type": "skip", "decoder_type": "skip", "channel_mult": [2, 1, 2], "label_dim": 3},
    "residual of pairs": {"encoder_type": "residual", "attn_resolutions": [8]},
    "ADM": {"model_type": "DhariwalUNet", "model_channels": 64, "channel_mult": [2, 1], "attn_resolutions": [8, 4]}
    | {"label_dim": 3, "augment_dim": 2},
}


def mostly_slow(names, quick):
    return [name if name == quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


def close(y, expected, tolerance):
    """Relative error of an array (B, H, W, C) to an original's (B, C, H, W)."""
    expected = np.moveaxis(expected, 1, -1)
    assert np.linalg.norm(y - expected) < tolerance * np.linalg.norm(expected)


def last(x):
    """(B, C, H, W) with channels last."""
    return jnp.asarray(np.moveaxis(x, 1, -1), jnp.float32)


@pytest.mark.parametrize("name", mostly_slow(VARIANTS, "side by side"))
def test_score_sde_is_the_original(name):
    config = SONG | VARIANTS[name]
    original = originals.ScoreSDE(config)
    x = np.random.default_rng(1).standard_normal((2, 2, 8, 8))
    c = np.array([0.5, 3.0]) if config["embedding_type"] == "fourier" else np.array([3.0, 41.0])
    expected = original(x, c)
    network = interop.score_sde(config, original.s)
    y = jax.jit(network.apply)(network.params, last(x), jnp.asarray(c, jnp.float32))
    close(y, expected, 1e-5)


@pytest.mark.parametrize("name", mostly_slow(ARCHITECTURES, "DDPM++"))
def test_edm_is_the_original(name):
    config = EDM | ARCHITECTURES[name]
    original = originals.EDM(config)
    rng = np.random.default_rng(1)
    x, c, classes = rng.standard_normal((2, 2, 8, 8)), np.array([-1.0, 0.8]), np.array([2, -1])
    labels = rng.standard_normal((2, 2)) if config["augment_dim"] else None
    expected = original(x, c, classes if config["label_dim"] else None, labels)
    network = interop.edm(config, original.s)
    options = {"cond": jnp.asarray(classes)} if config["label_dim"] else {}
    options |= {} if labels is None else {"labels": jnp.asarray(labels, jnp.float32)}
    y = jax.jit(network.apply)(network.params, last(x), jnp.asarray(c, jnp.float32), **options)
    close(y, expected, 1e-5)


TRAINED = {  # what the original's train.py gives its networks: the rest are defaults of theirs
    "ddpmpp": {
        "model_type": "SongUNet", "embedding_type": "positional", "encoder_type": "standard", "dropout": 0.13,
        "decoder_type": "standard", "channel_mult_noise": 1, "resample_filter": [1, 1], "model_channels": 8,
        "channel_mult": [1], "augment_dim": 9, "use_fp16": True,
    },
    "adm": {"model_type": "DhariwalUNet", "model_channels": 64, "channel_mult": [1], "augment_dim": 9},
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "size", "blocks", "attention"),
    [("ddpmpp", 16, 4, [16]), pytest.param("adm", 8, 3, [32, 16, 8], marks=pytest.mark.slow)],
)
def test_pickles_of_edm_without_the_defaults_of_its_classes_are_read(tmp_path, name, size, blocks, attention):
    arguments = TRAINED[name] | {"img_resolution": size, "img_channels": 3, "label_dim": 0}
    full = EDM | arguments | {"num_blocks": blocks, "attn_resolutions": attention}
    original = originals.EDM(full)
    original(np.zeros((1, 3, size, size)), np.ones(1))
    module = streams.tree_of(original.s, "EDMPrecond", arguments)
    (tmp_path / "edm.pkl").write_bytes(streams.stream({"ema": module, "loss_fn": None, "augment_pipe": None}))
    found, expected = interop.edm_file(tmp_path / "edm.pkl"), interop.edm(full, original.s)
    jax.tree.map(np.testing.assert_allclose, found.params, expected.params)
    state = {name: tensor for name, tensor in original.s.items() if "block2" not in name}
    with pytest.raises(ValueError, match="missing .*block2"):
        interop.edm(arguments, state)


def test_networks_of_discrete_steps_give_the_score_at_the_levels_of_their_chain(small):
    """The original: -F(x, k) / sqrt(1 - alpha_bar_k), with alpha_bar of betas from beta_min / N to beta_max / N."""
    convert, config, state = small["score_sde"]
    n, k = 50, np.array([0, 7, 49])
    config = config | {"sde": "vp", "continuous": False, "num_scales": n, "scale_by_sigma": False}
    network, original = convert(config, state), originals.ScoreSDE(config)
    bars, t = np.cumprod(1 - np.linspace(0.1 / n, 20 / n, n))[k], jnp.asarray((k + 1) / n, jnp.float32)
    x = np.random.default_rng(0).standard_normal((3, 2, 8, 8))
    expected = -original(x, k.astype(float)) / np.sqrt(1 - bars).reshape(-1, 1, 1, 1)
    close(jax.jit(network.score)(last(x), t), expected, 1e-4)
    np.testing.assert_allclose(network.sde.alpha(t), np.sqrt(bars), rtol=1e-5)
    assert convert(config | {"sde": "subvp"}, state).sde == ss.SubVP()


def golden(name):
    """Configuration, state and the other arrays of a golden file, skipped where there is none."""
    path = GOLDEN / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    with np.load(path) as file:
        arrays = dict(file)
    state = {key.removeprefix("param/"): value for key, value in arrays.items() if key.startswith("param/")}
    return json.loads(str(arrays["config"])), state, arrays


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddpmpp_vp", "ncsnpp_ve", "ncsnpp_ve_skip"])
def test_score_sde_reproduces_the_golden_files(name):
    config, state, arrays = golden(f"score_sde_{name}")
    network = interop.score_sde(config, state)
    close(jax.jit(network.score)(last(arrays["x"]), jnp.asarray(arrays["t"])), arrays["score"], 1e-5)
    assert network.data_range == ((-1, 1) if config["centered"] else (0, 1))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddpmpp", "ncsnpp", "adm"])
def test_edm_reproduces_the_golden_files(name):
    """The network itself to 1e-5; the score to what (D - x) / sigma^2 in float32 leaves at sigma = 0.005."""
    config, state, arrays = golden(f"edm_{name}_edm")
    network = interop.edm(config, state)
    x, sigma, cond = last(arrays["x"]), jnp.asarray(arrays["sigma"]), arrays.get("labels")
    cond = None if cond is None else jnp.asarray(cond, jnp.int32)
    s = sigma[:, None, None, None]
    F = jax.jit(network.apply)(network.params, x / jnp.sqrt(s**2 + 0.25), jnp.log(sigma) / 4, cond)
    close(0.25 / (s**2 + 0.25) * x + 0.5 * s / jnp.sqrt(s**2 + 0.25) * F, arrays["denoised"], 1e-5)
    assert (network.sde.sigma_min, network.sde.sigma_max, network.data_range) == (0.002, 80.0, (-1, 1))
    score = jax.jit(network.score)(x, network.sde.time(-2 * jnp.log(sigma)), cond)
    d = np.moveaxis(arrays["denoised"].astype(np.float64), 1, -1)
    error = np.asarray(score, np.float64) - (d - x) / np.asarray(s, np.float64) ** 2
    assert np.max(np.linalg.norm((np.asarray(s) * error).reshape(3, -1), axis=1) / np.linalg.norm(d)) < 1e-5


def expected_denoised(name, network, x, sigma, u):
    """D(x, sigma) by the table of the paper in float64, F from ``network(x, c)``."""
    if name == "EDMPrecond":
        total = sigma**2 + 0.25
        return 0.25 / total * x + 0.5 * sigma / np.sqrt(total) * network(x / np.sqrt(total), np.log(sigma) / 4)
    if name == "VEPrecond":
        return x + sigma * network(x, np.log(sigma / 2))
    if name == "VPPrecond":
        c = 999 * (np.sqrt(0.1**2 + 2 * 19.9 * np.log(1 + sigma**2)) - 0.1) / 19.9
    else:
        c = 999 - np.argmin(np.abs(u - sigma))
    return x - sigma * network(x / np.sqrt(sigma**2 + 1), c)[:, :2]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["EDMPrecond", "VPPrecond", "VEPrecond", "iDDPMPrecond"])
def test_preconditioners_are_those_of_the_paper(name):
    """Through the score, at each example's own sigma."""
    config, u = (
        EDM | {"precond": name, "out_channels": 4 if name == "iDDPMPrecond" else 2},
        np.geomspace(90, 0.002, 1001),
    )
    original, x = originals.EDM(config), np.random.default_rng(2).standard_normal((2, 2, 8, 8))
    u = np.concatenate([u[:-1], [0]]).astype(np.float32)
    sigmas = np.array([0.3, 2.0])
    denoised = [
        expected_denoised(name, lambda x, c: original(x, np.array([c])), x[i : i + 1], sigma, u)
        for i, sigma in enumerate(sigmas)
    ]
    state = original.s | ({"u": u} if name == "iDDPMPrecond" else {})
    network = interop.edm(config, state)
    t = network.sde.time(-2 * jnp.log(jnp.asarray(sigmas, jnp.float32)))
    s = sigmas.reshape(-1, 1, 1, 1)
    close(jax.jit(network.score)(last(x), t), (np.concatenate(denoised) - x) / s**2, 2e-5)


@pytest.fixture(scope="module")
def small():
    """A configuration and a state of each project, whose shapes alone are used."""
    config = SONG | {"fir": False, "progressive_input": "none", "embedding_type": "positional", "ch_mult": [1]}
    song, x = originals.ScoreSDE(config), np.zeros((1, 2, 8, 8))
    song(x, np.ones(1))
    adm = EDM | {"model_type": "DhariwalUNet", "channel_mult": [1], "label_dim": 2}
    edm = originals.EDM(adm)
    edm(x, np.ones(1))
    return {"score_sde": (interop.score_sde, config, dict(song.s)), "edm": (interop.edm, adm, dict(edm.s))}


@pytest.mark.parametrize("project", ["score_sde", "edm"])
def test_tensors_that_do_not_fit_are_listed_in_one_line(small, project):
    convert, config, state = small[project]
    first, second, third, *_ = (name for name in state if name != "sigmas")
    state = state | {"head.weight": np.zeros(3), third: np.zeros((7, 5, 3, 1, 1))}
    del state[first], state[second]
    with pytest.raises(ValueError) as error:
        convert(config, state)
    message = str(error.value)
    assert "\n" not in message
    assert f"missing {first}, {second}" in message and "extra head.weight" in message
    assert f"misshapen {third} has (7, 5, 3, 1, 1)" in message


def test_every_tensor_is_used_once_and_every_parameter_made(small):
    for convert, config, state in small.values():
        network = convert(config, state)
        constants = {"sigmas"} | {name for name in state if name.endswith("resample_filter")}
        entries = np.sort(np.concatenate([np.ravel(v) for name, v in state.items() if name not in constants]))
        ours = np.sort(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(network.params)]))
        np.testing.assert_array_equal(ours, entries)


@pytest.mark.parametrize(
    ("project", "change", "message"),
    [
        ("score_sde", {"nf": None}, "score_sde: config lacks nf"),
        ("score_sde", {"progressive": "grown"}, "config's progressive must be one of .*, got 'grown'"),
        ("score_sde", {"conditional": False}, "config's conditional must be one of"),
        ("score_sde", {"sde": "edm"}, "config's sde must be one of"),
        ("edm", {"model_type": None}, "edm: config lacks model_type"),
        ("edm", {"precond": "MyPrecond"}, "config's precond must be one of .*, got 'MyPrecond'"),
        ("edm", {"encoder_type": "dense"}, "config's encoder_type must be one of"),
    ],
)
def test_configurations_refused(small, project, change, message):
    convert, config, state = small[project]
    config = {name: value for name, value in (config | change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        convert(config, state)


def test_filters_of_a_checkpoint_must_agree():
    config = EDM | {"channel_mult": [1, 1]}
    original = originals.EDM(config)
    original(np.zeros((1, 2, 8, 8)), np.ones(1))
    state = dict(original.s)
    state["model.enc.4x4_down.conv0.resample_filter"] = np.full((1, 1, 2, 2), 0.5)
    with pytest.raises(ValueError, match="resample_filter must be alike"):
        interop.edm(config, state)


def test_an_unconditional_network_refuses_a_condition(small):
    convert, config, state = small["score_sde"]
    network = convert(config, state)
    x = jax.ShapeDtypeStruct((2, 8, 8, 2), jnp.float32)
    with pytest.raises(ValueError, match="cond must be None: it has no conditions"):
        jax.eval_shape(network.score, x, 0.5, jnp.zeros(2, int))


@pytest.mark.slow
def test_a_converted_network_is_sampled_guided_and_has_a_likelihood(small):
    convert, config, state = small["edm"]
    network = convert(config, state)
    sde, shape = network.sde, (2, 8, 8, 2)
    classes = jnp.array([0, 1])

    def guide(score, x, t):
        return 1.5 * score(x, t, classes) - 0.5 * score(x, t)

    guided = jax.tree_util.Partial(guide, network.score)
    x = ss.sample(jax.random.key(0), guided, ss.unipc(sde, ss.karras_grid(sde, 6)), shape)
    assert x.shape == shape and bool(jnp.all(jnp.isfinite(x)))
    result = ss.log_likelihood(jax.random.key(1), sde, network.score, x / 100, rtol=1e-2, atol=1e-2)
    assert bool(jnp.all(jnp.isfinite(result.log_prob))) and bool(jnp.all(result.success))
