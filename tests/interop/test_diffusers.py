"""Folders of diffusers read as scores and written back. What the networks give is compared with diffusers itself (0.42,
PyTorch 2.13, float32), whose outputs for the weights and inputs drawn below stand here as three projections each."""

import json
import shutil
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import streams

import scoresde as ss
from scoresde.interop.files.folders import read_diffusers
from scoresde.interop.projects.diffusers import PREDICTIONS, described, diffusers, from_state
from scoresde.interop.projects.diffusers_unet import renamed
from scoresde.interop.projects.discrete import scheduler_sde, stepwise_score
from scoresde.interop.projects.tensors import flat
from scoresde.interop.writing.from_unet import from_unet
from scoresde.interop.writing.to_diffusers import to_diffusers

safetensors = pytest.importorskip("safetensors.numpy")
GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "diffusers_ddpm_small"
golden = pytest.mark.skipif(not GOLDEN.exists(), reason="the golden files are not here")
LEVELS = {"_class_name": "DDPMScheduler", "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
SIGMAS = {"_class_name": "ScoreSdeVeScheduler", "sigma_min": 0.01, "sigma_max": 348.0}
CONFIGS = {
    "ddpm": {
        "block_out_channels": [16, 24, 48], "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"], "layers_per_block": 2, "norm_num_groups": 8,
        "num_class_embeds": 5,
    },
    "adm": {
        "out_channels": 6, "block_out_channels": [32, 64], "layers_per_block": 1, "norm_num_groups": 16,
        "down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D"], "attn_norm_num_groups": 16,
        "up_block_types": ["AttnUpBlock2D", "ResnetUpsampleBlock2D"], "attention_head_dim": 16, "freq_shift": 1,
        "resnet_time_scale_shift": "scale_shift", "downsample_type": "resnet", "upsample_type": "resnet",
    },
    "narrow": {
        "in_channels": 1, "out_channels": 1, "block_out_channels": [32, 32], "layers_per_block": 1,
        "down_block_types": ["AttnDownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "AttnUpBlock2D"],
        "add_attention": False, "time_embedding_dim": 64, "center_input_sample": True, "attention_head_dim": None,
        "downsample_padding": 0,
    },
    "ncsnpp": {
        "block_out_channels": [32, 128, 32], "layers_per_block": 1, "norm_num_groups": None, "norm_eps": 1e-6,
        "down_block_types": ["SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"], "attention_head_dim": None,
        "up_block_types": ["SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"], "mid_block_scale_factor": 2**0.5,
        "time_embedding_type": "fourier",
    },
    "dit": {
        "_class_name": "DiTTransformer2DModel", "in_channels": 4, "out_channels": 8, "num_attention_heads": 2,
        "attention_head_dim": 12, "num_layers": 3, "num_embeds_ada_norm": 7, "sample_size": 8,
    },
}  # fmt: skip
CALLS = {"ddpm": ([7, 800], [1, 4]), "ncsnpp": ([0.3, 90.0], None), "dit": ([7, 800], [3, 7])}
THEIRS = {
    "ddpm": [0.697902328, 0.889106947, 0.619163054, 10.154456283380197],
    "adm": [1.09208101, 1.22555896, -1.57630773, 15.96140716886527],
    "narrow": [1.67115142, -1.45587861, -0.780348719, 5.200842182269572],
    "ncsnpp": [-0.391887706, -0.111556599, -0.527391284, 26.819638151261724],
    "dit": [-1.30066126, 0.0234368382, -1.10639961, 34.02649467756871],
}


def drawn(config):
    """The tensors of a network by name, in sorted order from one stream of numbers."""
    network = described(config, True)
    shapes = network.shapes()
    leaves, shapes = network.leaves(shapes), flat(shapes)
    names = {n: s for leaf in leaves for n, s in zip(leaf.names, leaf.shapes(shapes[leaf.path].shape), strict=True)}
    rng, state = np.random.default_rng(0), {}
    for name in sorted(names):
        z = rng.standard_normal(names[name])
        z = z / np.sqrt(np.prod(z.shape[1:])) if z.ndim > 1 else 0.1 * z + name.endswith("weight")
        state[name] = z.astype(np.float32)
    return state


def written(folder, config, state, scheduler=None):
    """A pipeline's folder as diffusers lays it out."""
    part = folder / ("transformer" if "num_layers" in config else "unet")
    part.mkdir(parents=True)
    (part / "config.json").write_text(json.dumps(config))
    safetensors.save_file(state, part / "diffusion_pytorch_model.safetensors")
    (folder / "scheduler").mkdir()
    default = SIGMAS if config.get("time_embedding_type") == "fourier" else LEVELS
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler or default))
    return folder


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n == "narrow" else pytest.mark.slow) for n in CONFIGS])
def test_networks_give_what_diffusers_gives_and_are_written_back(tmp_path, name):
    config, (steps, classes) = CONFIGS[name], CALLS.get(name, ([7, 800], None))
    state = drawn(config)
    found = diffusers(written(tmp_path / "in", config, state))
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, config.get("in_channels", 3), 8, 8)).astype(np.float32)
    cond = None if classes is None else jnp.array(classes)
    out = jax.jit(found.apply)(found.params, jnp.moveaxis(x, 1, -1), jnp.array(steps), cond)
    out = np.moveaxis(np.asarray(out, np.float64), -1, 1)
    size = np.linalg.norm(out)
    projections = (rng.standard_normal((3, *out.shape)) * out).sum((1, 2, 3, 4)) / size
    np.testing.assert_allclose([*projections, size], THEIRS[name], rtol=1e-5, atol=2e-5)
    to_diffusers(found, tmp_path / "out")
    again = read_diffusers(tmp_path / "out")
    assert again.config.items() >= config.items() and again.state.keys() == state.keys()
    for key, tensor in state.items():
        np.testing.assert_array_equal(again.state[key], tensor)


@golden
@pytest.mark.slow
def test_the_golden_pipeline_is_reproduced():
    found, case = diffusers(GOLDEN), np.load(GOLDEN / "golden.npz")
    x, steps, noise = (np.moveaxis(case[k], 1, -1) if case[k].ndim > 1 else case[k] for k in ("x", "t", "noise"))
    t = jnp.asarray((steps + 1) / 1000, jnp.float32)
    out = jax.jit(found.apply)(found.params, x, steps)
    assert np.linalg.norm(out - noise) < 1e-5 * np.linalg.norm(noise)
    implied = -found.sde.sigma(t)[:, None, None, None] * jax.jit(found.score)(x, t)
    assert np.linalg.norm(implied - noise) < 1e-5 * np.linalg.norm(noise)
    assert found.data_range == (-1, 1) and found.sde.t_max == 1


def conditioned(score, classes, x, t):
    return score(x, t, classes)


def test_a_converted_network_is_sampled_and_guided():
    config = CONFIGS["dit"] | {"num_layers": 1, "num_attention_heads": 1, "out_channels": 4, "sample_size": 4}
    found, key = from_state(config, drawn(config)), jax.random.key(0)
    guided = ss.guidance.classifier_free(
        jax.tree_util.Partial(conditioned, found.score, jnp.array([3])), found.score, 1.5
    )
    table = ss.unipc(found.sde, ss.log_snr_grid(found.sde, 4), order=2)
    samples = ss.sample(key, guided, table, (1, 4, 4, 4))
    assert samples.shape == (1, 4, 4, 4) and jnp.all(jnp.isfinite(samples))


@golden
@pytest.mark.slow
def test_a_golden_network_is_sampled_guided_and_has_a_likelihood():
    found, key = diffusers(GOLDEN), jax.random.key(0)
    guided = ss.guidance.classifier_free(found.score, found.score, 1.5)  # its own score, since it has no classes
    table = ss.unipc(found.sde, ss.log_snr_grid(found.sde, 4))
    samples, led = (ss.sample(key, score, table, (1, 8, 8, 3)) for score in (found.score, guided))
    np.testing.assert_allclose(led, samples, rtol=1e-3, atol=1e-3)
    for score in (found.score, guided):
        result = ss.log_likelihood(key, found.sde, score, samples.clip(-1, 1), rtol=0.1, atol=0.1)
        assert result.success.all() and jnp.all(jnp.isfinite(result.log_prob))


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_every_prediction_implies_the_score_of_a_gaussian(kind):
    """With data N(0, 1) the exact output of each kind is a multiple of x, and the score is -x."""
    sde = scheduler_sde(LEVELS)

    def exact(params, x, k, cond):
        t = (k + 1) / 1000
        factor = {"epsilon": sde.sigma(t), "sample": sde.alpha(t), "v_prediction": 0 * t}[kind]
        return jnp.concatenate([factor[:, None] * x, x], axis=-1)  # and a variance, which is not read

    x = jax.random.normal(jax.random.key(0), (3, 8))
    score = stepwise_score(exact, sde, PREDICTIONS[kind], {}, x, jnp.array([0.01, 0.5, 1.0]))
    np.testing.assert_allclose(score, -x, rtol=1e-4, atol=2e-4)


def test_missing_extra_and_misshapen_tensors_are_listed(tmp_path):
    state = drawn(CONFIGS["narrow"])
    del state["conv_in.bias"], state["mid_block.resnets.1.norm2.weight"]
    state |= {"other": np.zeros(1, np.float32), "conv_out.bias": np.zeros(2, np.float32)}
    with pytest.raises(ValueError) as caught:
        diffusers(written(tmp_path / "in", CONFIGS["narrow"], state))
    line = str(caught.value)
    for part in ("missing conv_in.bias", "mid_block.resnets.1.norm2.weight", "extra other", "conv_out.bias has (2,)"):
        assert part in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "expected a network of class UNet2DModel"),
        ({"act_fn": "gelu"}, "act_fn must be one of"),
        ({"layers_per_block": 100}, "layers_per_block must be a whole number from 1 to 64"),
        ({"layers_per_block": 10**9}, "layers_per_block is far beyond"),
        ({"block_out_channels": [2**17, 32]}, "block_out_channels must be"),
        ({"block_out_channels": ["32", 32]}, "block_out_channels must be"),
        ({"up_block_types": ["UpBlock2D", "UpBlock2D"]}, "mirrored on the way up"),
        ({"norm_num_groups": 5}, "norm_num_groups must divide"),
        ({"mid_block_scale_factor": 3}, "mid_block_scale_factor must be 1"),
        ({"norm_eps": "x"}, "cannot be read"),
        ({"attention_head_dim": 5}, "cannot be read"),
    ],
)
def test_configurations_beyond_these_networks_are_refused(tmp_path, change, match):
    with pytest.raises(ValueError, match=match) as caught:
        diffusers(written(tmp_path / "in", CONFIGS["narrow"] | change, {"a": np.zeros(1, np.float32)}))
    assert "\n" not in str(caught.value)


def test_schedulers_that_do_not_belong_are_refused(tmp_path):
    state = drawn(CONFIGS["narrow"])
    folder = written(tmp_path / "in", CONFIGS["narrow"], state)
    for scheduler, match in [
        (SIGMAS, "must be a scheduler with betas"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "must have betas"),
        (LEVELS | {"prediction_type": "flow"}, "prediction_type must be one of"),
    ]:
        with pytest.raises(ValueError, match=match):
            diffusers(folder, scheduler=scheduler)


def test_a_transformer_takes_its_own_sizes_alone():
    """The original stretches its positions for others."""
    network = described(CONFIGS["dit"], False)
    with pytest.raises(ValueError, match=r"takes latents of sizes \(8, 8\), got \(16, 16\)"):
        network.build((16, 16), jax.random.key(0))


def test_a_network_called_with_sigma_has_its_own_scheduler_by_default(tmp_path):
    config = CONFIGS["ncsnpp"] | {"block_out_channels": [32, 32, 32], "center_input_sample": True}
    config |= {"down_block_types": ["SkipDownBlock2D"] * 3, "up_block_types": ["SkipUpBlock2D"] * 3}
    found = from_state(config, drawn(config))
    assert found.sde == ss.VE(sigma_min=0.01, sigma_max=1348.0) and found.data_range == (0, 1)
    to_diffusers(found, tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["_class_name"] == "ScoreSdeVePipeline" and diffusers(tmp_path / "out").sde == found.sde


def test_links_are_followed_inside_the_folder_and_a_hub_cache_alone(tmp_path):
    state = {"a": np.arange(3, dtype=np.float32)}
    cache = tmp_path / "hub" / "models--x"
    made = written(tmp_path / "made", CONFIGS["narrow"], state)
    snapshot = cache / "snapshots" / "1234"
    shutil.copytree(made, snapshot)
    weights = snapshot / "unet" / "diffusion_pytorch_model.safetensors"
    (cache / "blobs").mkdir()
    weights.rename(cache / "blobs" / "abcd")
    weights.symlink_to("../../../blobs/abcd")
    np.testing.assert_array_equal(read_diffusers(snapshot).state["a"], state["a"])
    elsewhere = made / "unet" / "diffusion_pytorch_model.safetensors"
    elsewhere.unlink()
    for target, match in [(cache / "blobs" / "abcd", "leads out of its folder"), ("/dev/zero", "no regular file")]:
        elsewhere.symlink_to(target)
        with pytest.raises(ValueError, match=match):
            read_diffusers(made)
        elsewhere.unlink()
    with pytest.raises(ValueError, match="holds none of"):
        read_diffusers(made)
    with pytest.raises(ValueError, match="is no folder"):
        read_diffusers(tmp_path / "none")


def test_parts_and_pickled_weights_are_read(tmp_path):
    state = {"a": np.arange(3, dtype=np.float32), "b": np.ones((2, 2), np.float16)}
    folder = written(tmp_path / "in", CONFIGS["narrow"], {})
    part = folder / "unet"
    (part / "diffusion_pytorch_model.safetensors").unlink()
    for name, tensor in state.items():
        safetensors.save_file({name: tensor}, part / f"{name}.safetensors")
    index = part / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: f"{name}.safetensors" for name in state}}))
    found = read_diffusers(folder).state
    assert found.keys() == state.keys() and found["b"].dtype == np.float16
    index.write_text(json.dumps({"weight_map": {"a": "../../a.safetensors"}}))
    with pytest.raises(ValueError, match="outside of its folder"):
        read_diffusers(folder)
    index.unlink()
    storages = {}
    content = {name: streams.of(storages, name, tensor) for name, tensor in state.items()}
    (part / "diffusion_pytorch_model.bin").write_bytes(streams.zipped(content, storages))
    assert read_diffusers(folder).state.keys() == state.keys()
    (part / "diffusion_pytorch_model.bin").write_bytes(streams.zipped({"a": 1}, {}))
    with pytest.raises(ValueError, match="named tensors alone"):
        read_diffusers(folder)


def test_names_of_2022_are_those_of_today():
    old = "up_blocks.1.attentions.0.{}.weight"
    names = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    state = {old.format(k): np.zeros(i) for i, k in enumerate(names)}
    state |= {"time_proj.W": np.ones(2), "time_proj.weight": np.ones(2), "conv_in.key.bias": np.ones(1)}
    found = renamed(state)
    assert found.keys() == {*map(old.format, names.values()), "time_proj.weight", "conv_in.key.bias"}
    assert all(found[old.format(new)].size == i for i, new in enumerate(names.values()))


def test_networks_of_other_layouts_are_not_written(tmp_path):
    other = ss.interop.Pretrained(ss.VP(), {}, lambda *_: None, jax.tree_util.Partial(print), (-1.0, 1.0))
    with pytest.raises(ValueError, match="not in the layout of diffusers"):
        to_diffusers(other, tmp_path / "out")


OWN = {
    "all_skips": True, "adaptive": False, "middle": (True, False), "embedding_width": 4,
    "norm": partial(ss.nn.group_norm, group_size=1, most=8),
}  # fmt: skip


def own_unet(**changes):
    layout = ss.nn.Layout(**(OWN | changes.pop("layout", {})))
    options = {"channels": 16, "multipliers": (1, 2), "attention_levels": (1,), "embedding": ss.nn.transformer}
    options |= {"features": 16, "layout": layout, "key": jax.random.key(0)}
    return ss.nn.UNet(changes.pop("shape", (8, 8, 3)), **(options | changes))


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"conditions": ss.nn.Classes(5), "blocks": 2},
        {"layout": {"adaptive": True, "resampling_blocks": True, "head_channels": 8}, "outputs": 6},
    ],
)
def test_a_network_of_this_house_is_written_and_read_back(tmp_path, changes):
    net, sde = own_unet(**changes), scheduler_sde(LEVELS)
    params = jax.tree.map(lambda v: v + 0.1, ss.nn.functional(net)[1])
    made = from_unet(net, params, sde, predict=ss.precond.velocity)
    to_diffusers(made, tmp_path / "out")
    found = diffusers(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, found.params, params)
    np.testing.assert_allclose(found.sde.integrals, sde.integrals, rtol=1e-12)
    x, t = jax.random.normal(jax.random.key(1), (2, 8, 8, 3)), jnp.array([0.1, 0.9])
    np.testing.assert_allclose(jax.jit(found.score)(x, t), jax.jit(made.score)(x, t), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"patch": 2}, "without patches"),
        ({"layout": {"embedding_width": 0}}, "in two layers"),
        ({"conditions": ss.nn.Vector(3)}, "classes alone"),
        pytest.param({"shape": (8, 3)}, "for images", marks=pytest.mark.slow),
        pytest.param({"embedding": ss.nn.gaussian_fourier}, "nn.transformer", marks=pytest.mark.slow),
        pytest.param({"layout": {"all_skips": False}}, "has this layout", marks=pytest.mark.slow),
        pytest.param({"layout": {"rescale": 2**-0.5}}, "gives other values", marks=pytest.mark.slow),
    ],
)
def test_networks_without_a_counterpart_are_refused(changes, match):
    net = own_unet(**changes)
    with pytest.raises(ValueError, match=match):
        from_unet(net, ss.nn.functional(net)[1], scheduler_sde(LEVELS))
