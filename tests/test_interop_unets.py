"""Networks of score_sde and EDM: against the golden files, against the originals written as NumPy loops, refusals."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import originals
import pytest

from scoresde import interop

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"
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


@pytest.mark.parametrize("name", mostly_slow(VARIANTS, "NCSN++ of 256"))
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


def golden(name):
    """Configuration, state and the other arrays of a golden file, skipped where there is none."""
    path = GOLDEN / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    with np.load(path) as file:
        arrays = dict(file)
    state = {key.removeprefix("param/"): value for key, value in arrays.items() if key.startswith("param/")}
    return json.loads(str(arrays["config"])), state, arrays


@pytest.mark.parametrize(
    "name",
    mostly_slow(("score_sde_ddpmpp_vp", "score_sde_ncsnpp_ve", "score_sde_ncsnpp_ve_skip"), "score_sde_ncsnpp_ve"),
)
def test_score_sde_reproduces_the_golden_files(name):
    config, state, arrays = golden(name)
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
