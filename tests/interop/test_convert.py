"""Checkpoints of score_sde and EDM from file to network, their configuration guessed, and the command that converts."""

import json
import re
import sys
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import linen_originals
import msgpack
import numpy as np
import pytest
import streams
from flax.serialization import msgpack_serialize

import scoresde.checkpoint
from experiments import convert
from scoresde.interop import edm_file, score_sde_file
from scoresde.interop.checkpoints import read_score_sde
from scoresde.interop.files.flax_files import read_flax
from scoresde.interop.originals import converted, read_original, write_converted
from scoresde.interop.projects.diffusers import diffusers
from scoresde.interop.projects.edm import edm
from scoresde.interop.projects.flax_names import read_score_sde_flax
from scoresde.interop.projects.guess import guess_config
from scoresde.interop.projects.score_sde import score_sde
from scoresde.interop.writing.skip_layout import skip_config

pytest.importorskip("safetensors")
GOLDEN = Path(__file__).parents[3] / "shared" / "golden"
golden = pytest.mark.skipif(not GOLDEN.exists(), reason="the golden files are not here")
LAYOUTS = {
    "ddpm++": {"image_size": 32, "nf": 8, "ch_mult": [1, 2, 2, 2], "num_res_blocks": 2, "attn_resolutions": [16]},
    "ncsn++": {"image_size": 32, "nf": 8, "ch_mult": [1, 2, 2, 2], "num_res_blocks": 1, "attn_resolutions": [16],
               "sde": "ve", "embedding_type": "fourier", "progressive_input": "residual"},
    "256": {"image_size": 256, "nf": 8, "ch_mult": [1, 1, 2, 2, 2, 2, 2], "num_res_blocks": 1, "attn_resolutions": [16],
            "sde": "ve", "embedding_type": "fourier", "progressive_input": "input_skip", "progressive": "output_skip"},
}  # fmt: skip


def layout(config):
    """Names and shapes of a network of score_sde in the order of its modules, BigGAN blocks, three channels."""
    nf, mult, n, size = config["nf"], config["ch_mult"], config["num_res_blocks"], config["image_size"]
    fourier, modules, skips = "embedding_type" in config, [], [nf]

    def dense(i, o):
        return {"weight": (o, i), "bias": (o,)}

    def conv(i, o, k=3, name=""):
        return {f"{name}weight": (o, i, k, k), f"{name}bias": (o,)}

    def norm(c, name=""):
        return {f"{name}weight": (c,), f"{name}bias": (c,)}

    def block(i, o, resample=False):
        found = (
            norm(i, "GroupNorm_0.") | conv(i, o, 3, "Conv_0.") | {"Dense_0.weight": (o, 4 * nf), "Dense_0.bias": (o,)}
        )
        found |= norm(o, "GroupNorm_1.") | conv(o, o, 3, "Conv_1.")
        return found | (conv(i, o, 1, "Conv_2.") if i != o or resample else {})

    def attention(c):
        return norm(c, "GroupNorm_0.") | {f"NIN_{k}.{p}": (c,) * r for k in range(4) for p, r in (("W", 2), ("b", 1))}

    modules += [{"W": (nf,)}] * fourier + [dense(nf * (1 + fourier), 4 * nf), dense(4 * nf, 4 * nf), conv(3, nf)]
    c, pyramid = nf, 3
    for level, m in enumerate(mult):
        for _ in range(n):
            modules += [block(c, m * nf)] + [attention(m * nf)] * (size >> level in config["attn_resolutions"])
            c = m * nf
            skips.append(c)
        if level < len(mult) - 1:
            modules.append(block(c, c, True))
            if config.get("progressive_input") == "residual":
                modules.append(conv(pyramid, c, 3, "Conv2d_0."))
                pyramid = c
            elif config.get("progressive_input"):
                modules.append(conv(3, c, 1, "Conv_0."))
            skips.append(c)
    modules += [block(c, c), attention(c), block(c, c)]
    for level in reversed(range(len(mult))):
        for _ in range(n + 1):
            modules.append(block(c + skips.pop(), mult[level] * nf))
            c = mult[level] * nf
        modules += [attention(c)] * (size >> level in config["attn_resolutions"])
        modules += [norm(c), conv(c, 3)] * (config.get("progressive") == "output_skip")
        modules += [block(c, c, True)] * (level > 0)
    modules += [norm(c), conv(c, 3)] * ("progressive" not in config)
    shapes = {f"all_modules.{i}.{k}": shape for i, module in enumerate(modules) for k, shape in module.items()}
    rng = np.random.default_rng(0)
    sigmas = np.exp(np.linspace(np.log(50), np.log(0.01), 1000))
    return {"sigmas": sigmas} | {k: rng.standard_normal(shape).astype(np.float32) for k, shape in shapes.items()}


STATE = layout({"image_size": 32, "nf": 8, "ch_mult": [1], "num_res_blocks": 1, "attn_resolutions": []})


def saved(path, state, averages=None, prefix="module."):
    """A checkpoint as score_sde_pytorch saves it."""
    storages, ema = {}, {}
    model = {prefix + k: streams.of(storages, str(i), v) for i, (k, v) in enumerate(state.items())}
    if averages is not None:
        shadow = [streams.of(storages, f"e{i}", v) for i, v in enumerate(averages)]
        ema = {"decay": 0.999, "num_updates": 3, "shadow_params": shadow}
    path.write_bytes(streams.zipped({"model": model, "ema": ema, "optimizer": {}, "step": 3}, storages))
    return path


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_configuration_is_read_off_the_tensors(name):
    config = LAYOUTS[name]
    state = layout(config)
    guessed = guess_config(state)
    assert guessed.items() >= config.items() and (guessed["sigma_min"], guessed["sigma_max"]) == (0.01, 50.0)
    assert guessed["centered"] is ("sde" not in config) and guessed["fir"] is ("sde" in config)


def test_states_of_other_networks_are_refused():
    for state in ({}, {"conv.weight": np.zeros((3, 3, 3, 3))}, {"all_modules.0.weight": np.zeros((3, 3, 3, 3))}):
        with pytest.raises(ValueError, match="give its config"):
            guess_config(state)


@golden
@pytest.mark.parametrize("name", ["score_sde_ddpmpp_vp", "score_sde_ncsnpp_ve", "score_sde_ncsnpp_ve_skip"])
def test_the_golden_configurations_are_guessed_but_for_the_size(name):
    case = np.load(GOLDEN / f"{name}.npz")
    config = json.loads(str(case["config"]))
    guessed = guess_config({k.removeprefix("param/"): case[k] for k in case.files if k.startswith("param/")})
    free = {"image_size", "attn_resolutions"}
    assert all(guessed[k] == v for k, v in config.items() if k not in free)
    assert guessed["attn_resolutions"] == [16] and guessed["image_size"] == 32


def test_averages_replace_what_was_trained_in_its_order(tmp_path):
    fourier = layout(LAYOUTS["ncsn++"])
    trained = [k for k in fourier if k not in ("sigmas", "all_modules.0.W")]
    averages = [fourier[k] + 1 for k in trained]
    path = saved(tmp_path / "a.pth", fourier, averages)
    raw, smooth = read_score_sde(path, ema=False), read_score_sde(path)
    assert list(raw) == list(smooth) == list(fourier)
    for name, tensor in fourier.items():
        np.testing.assert_array_equal(raw[name], tensor)
        np.testing.assert_array_equal(smooth[name], tensor + (name in trained))
    with pytest.raises(ValueError, match="no averaged weights; take the trained ones"):
        read_score_sde(saved(tmp_path / "b.pth", fourier))
    with pytest.raises(ValueError, match="not like the"):
        read_score_sde(saved(tmp_path / "c.pth", fourier, averages[1:]))
    (tmp_path / "d.pth").write_bytes(streams.zipped({"state_dict": {}}, {}))
    with pytest.raises(ValueError, match="found no model"):
        read_score_sde(tmp_path / "d.pth")


@golden
def test_the_golden_checkpoint_holds_the_golden_weights():
    case, found = np.load(GOLDEN / "score_sde_ddpmpp_vp.npz"), read_score_sde(GOLDEN / "score_sde_ddpmpp_vp.pth")
    assert {f"param/{name}" for name in found} == {name for name in case.files if name.startswith("param/")}
    for name, tensor in found.items():
        assert tensor.dtype == case[f"param/{name}"].dtype
        np.testing.assert_array_equal(tensor, case[f"param/{name}"])


@golden
@pytest.mark.slow
def test_the_golden_checkpoint_gives_the_golden_score_without_a_configuration():
    case, found = np.load(GOLDEN / "score_sde_ddpmpp_vp.npz"), score_sde_file(GOLDEN / "score_sde_ddpmpp_vp.pth")
    score = np.moveaxis(case["score"], 1, -1)
    error = jax.jit(found.score)(np.moveaxis(case["x"], 1, -1), case["t"]) - score
    assert np.linalg.norm(error) < 1e-5 * np.linalg.norm(score)


def in_jax(state):
    """The state as score_sde in JAX names it: modules numbered kind by kind, kernels with their outputs last."""
    modules, seen, found = {}, Counter(), {}
    for name, tensor in state.items():
        if name != "sigmas":
            modules.setdefault(int(name.split(".")[1]), {})[name.split(".", 2)[2]] = tensor
    for module in modules.values():
        kind = (
            "ResnetBlockBigGANpp" if "Conv_1.weight" in module
            else "AttnBlockpp" if "NIN_3.W" in module
            else "Downsample" if "Conv2d_0.weight" in module
            else "Combine" if "Conv_0.weight" in module
            else "GaussianFourierProjection" if "W" in module
            else {4: "Conv", 2: "Dense", 1: "GroupNorm"}[module["weight"].ndim]
        )  # fmt: skip
        node = found.setdefault(f"{kind}_{seen[kind]}", {})
        seen[kind] += 1
        for name, tensor in module.items():
            *path, leaf = name.split(".")
            inner = node.setdefault(path[0], {}) if path else node
            if leaf == "weight":
                leaf = "scale" if tensor.ndim == 1 else "weight" if path == ["Conv2d_0"] else "kernel"
                tensor = {1: tensor, 2: tensor.T, 4: tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else 0}[
                    tensor.ndim
                ]
            inner[leaf] = tensor
    return found


@pytest.mark.parametrize("name", LAYOUTS)
def test_flax_gives_these_names(name):
    config = LAYOUTS[name]
    assert linen_originals.shapes(config) == jax.tree.map(np.shape, in_jax(layout(config)))


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_checkpoint_of_jax_is_that_of_pytorch_under_other_names(tmp_path, name):
    config = LAYOUTS[name]
    state = layout(config)
    tree, path = in_jax(state), tmp_path / "checkpoint_1"
    more = {"step": 3, "lr": 2e-4, "rng": np.zeros(2, np.uint32), "model_state": {}}
    raw = jax.tree.map(lambda v: v + 1, tree)
    path.write_bytes(msgpack_serialize({"params_ema": tree, "optimizer": {"target": raw}} | more))
    guessed, found = read_score_sde_flax(path)
    assert guessed.items() >= config.items() and found.keys() == state.keys()
    for key, tensor in state.items():
        np.testing.assert_allclose(found[key], tensor, rtol=1e-12)
    _, found = read_score_sde_flax(path, {"sigma_max": 348.0}, ema=False)
    np.testing.assert_array_equal(found["all_modules.2.bias"], state["all_modules.2.bias"] + 1)
    assert found["sigmas"][0] == pytest.approx(348) and read_original(path).kind == "score_sde"
    with pytest.raises(ValueError, match="attn_resolutions and image_size"):
        read_score_sde_flax(path, {"attn_resolutions": [16, 8]})
    path.write_bytes(msgpack_serialize({"params_ema": {"Dense_0": tree["Dense_0"]}}))
    with pytest.raises(ValueError, match="only networks of BigGAN blocks are read from flax"):
        read_score_sde_flax(path)


def test_arrays_of_flax_come_back(tmp_path, monkeypatch):
    tree = {"a": {"b": np.arange(6, dtype=np.int8).reshape(2, 3)}, "c": np.asarray(jnp.ones(2, jnp.bfloat16)), "n": 3}
    tree |= {"s": np.float32(2.5), "e": {}, "0": None, "long": np.arange(10.0)}
    monkeypatch.setattr("flax.serialization.MAX_CHUNK_SIZE", 32)
    (tmp_path / "x").write_bytes(msgpack_serialize(tree))
    found = read_flax(tmp_path / "x")
    assert found.keys() == {"a/b", "c", "n", "s", "long"} and found["c"].dtype == jnp.bfloat16
    for key, value in {"a/b": tree["a"]["b"], "n": 3, "s": 2.5, "long": np.arange(10.0)}.items():
        np.testing.assert_array_equal(found[key], value)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "incomplete input"),
        (b"\x81\xa1a\xc7\x01\x02x", "an object of type 2"),
        (b"\x81\xa1a\xdd\xff\xff\xff\xff", "exceeds max_array_len"),
        (b"\x81\xa1a\xdf\xff\xff\xff\xff", "exceeds max_map_len"),
        (b"\x81\xa1a\xc6\xff\xff\xff\xff", "incomplete input"),
        (
            msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(([2**40], "float32", b"")))}),
            r"1099511627776,\) has 0 bytes",
        ),
        (msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(([1], "object", b"x" * 8)))}), "type is none of float16"),
        (
            msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(([1], msgpack.ExtType(1, b""), b"")))}),
            "an object of type 1",
        ),
        (msgpack.packb({"a": "text"}), "has a str at 'a'"),
        (b"\x81\xa1a" * 100 + b"\xc0", "nested deeper than 64"),
        (b"\x81\xa1a" * 5000 + b"\xc0", "malformed MessagePack"),
    ],
)
def test_what_is_no_checkpoint_of_flax_is_refused(tmp_path, content, match):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ValueError, match=match) as caught:
        read_flax(tmp_path / "x")
    assert "\n" not in str(caught.value)


@golden
@pytest.mark.slow
def test_a_pickled_module_gives_the_network_of_its_tensors(tmp_path):
    case = np.load(GOLDEN / "edm_ddpmpp_edm.npz")
    config, state = json.loads(str(case["config"])), {k[6:]: case[k] for k in case.files if k.startswith("param/")}
    arguments = {k: v for k, v in config.items() if k != "precond"}
    module = streams.tree_of(state, config["precond"], arguments)
    (tmp_path / "edm.pkl").write_bytes(streams.stream({"ema": module, "loss_fn": None}))
    same(edm_file(tmp_path / "edm.pkl").params, edm(config, state).params)


def test_a_checkpoint_is_converted_and_read_back(tmp_path, capsys, monkeypatch):
    path = saved(tmp_path / "a.pth", STATE, [v + 1 for k, v in STATE.items() if k != "sigmas"])
    (tmp_path / "more.json").write_text('{"sde": "subvp", "beta_max": 10.0}')
    options = ["--config", str(tmp_path / "more.json"), "--raw"]
    monkeypatch.setattr(sys, "argv", ["convert", str(path), str(tmp_path / "out"), *options])
    convert.main()
    assert "SubVP" in capsys.readouterr().out
    found = converted(tmp_path / "out")
    expected = score_sde(guess_config(STATE) | {"sde": "subvp", "beta_max": 10.0}, STATE)
    assert found.sde == expected.sde and found.data_range == expected.data_range
    same(found.params, expected.params)
    facts = json.loads((tmp_path / "out" / "model.json").read_text())
    assert (facts["kind"], facts["config"]["beta_max"]) == ("score_sde", 10.0)
    with pytest.raises(ValueError, match="cannot write to"):
        write_converted(read_original(tmp_path / "out"), path / "out")


@pytest.mark.slow
def test_ncsnpp_with_skips_goes_to_diffusers_and_gives_the_same(tmp_path):
    config = LAYOUTS["256"] | {"nf": 32, "ch_mult": [1, 4, 1], "image_size": 32, "scale_by_sigma": True, "fir": True}
    state = layout(config)
    path = saved(tmp_path / "a.pth", state, [v for k, v in state.items() if k not in ("sigmas", "all_modules.0.W")])
    (tmp_path / "more.json").write_text(json.dumps({"image_size": 32, "attn_resolutions": [16]}))
    convert.convert(convert.Flags(path, tmp_path / "out", config=tmp_path / "more.json", diffusers=True))
    ours, theirs = score_sde_file(path, {"image_size": 32, "attn_resolutions": [16]}), diffusers(tmp_path / "out")
    assert (ours.sde, ours.data_range) == (theirs.sde, theirs.data_range)
    x, t = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3)), jnp.array([0.2, 0.8])
    a, b = jax.jit(ours.score)(x, t), jax.jit(theirs.score)(x, t)
    assert jnp.linalg.norm(a - b) < 1e-5 * jnp.linalg.norm(b)


def test_only_networks_that_diffusers_has_get_its_configuration():
    """Attention on few channels has other norms there; DDPM++ has no counterpart."""
    wide = guess_config(layout(LAYOUTS["256"] | {"nf": 64}))
    assert skip_config(wide)["block_out_channels"] == [64, 64, 128, 128, 128, 128, 128]
    assert all(skip_config(guess_config(layout(LAYOUTS[name]))) is None for name in LAYOUTS)


def test_mistakes_are_one_line(tmp_path, capsys, monkeypatch):
    good = saved(tmp_path / "good.pth", STATE)
    (tmp_path / "evil.pth").write_bytes(streams.zipped(streams.Call("os.system", ("touch executed",)), {}))
    (tmp_path / "evil.pkl").write_bytes(streams.stream(streams.Call("os.system", ("touch executed",))))
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "text.json").write_text('{"beta_max": "x"}')
    (tmp_path / "w.safetensors").write_bytes(b"\x10" + bytes(30))
    np.savez_compressed(tmp_path / "w.npz", x=1)
    scoresde.checkpoint.save(tmp_path / "run" / "checkpoint", {"a": np.ones(2)}, {"config": {}})
    missing = saved(tmp_path / "missing.pth", {k: v for k, v in STATE.items() if k != "all_modules.2.bias"})
    monkeypatch.chdir(tmp_path)
    for arguments, match in [
        (["none", "out"], "No such file"),
        (["evil.pth", "out"], "asks for os.system"),
        (["evil.pkl", "out"], "asks for os.system"),
        (["text", "out"], "wrong magic number"),
        (["empty", "out"], "no folder of diffusers: no config.json"),
        (["w.safetensors", "out"], "give the folder"),
        (["w.npz", "out"], "no data.pkl"),
        ([good, "out", "--raw", "--config", "text.json"], "config's beta_max must be a number, got 'x'"),
        ([good, "out"], "ema=False"),
        ([good, "out", "--raw", "--diffusers"], "not in the layout of diffusers"),
        ([good, "out", "--raw", "--config", "list.json"], "expected a JSON object"),
        ([good, good], "the source itself"),
        ([missing, "out", "--raw"], "missing all_modules.2.bias"),
        (
            ["run", "out"],
            "run is a run of this project, .* experiments.export --checkpoint run --out out",
        ),
        (["run/checkpoint", "out"], "use python -m experiments.export --checkpoint run/checkpoint"),
        ([good], "DEST"),
    ]:
        monkeypatch.setattr(sys, "argv", ["convert", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            convert.main()
        err = capsys.readouterr().err
        assert stop.value.code == 2 and err.startswith("error: ") and err.count("\n") == 1, err
        assert match.lower() in err.lower() or re.search(match, err), err
    assert not (tmp_path / "executed").exists() and not (tmp_path / "out").exists()


def test_converted_folders_are_checked(tmp_path):
    (tmp_path / "model.json").write_text(json.dumps({"format": "scoresde-convert-1", "kind": "x", "config": {}}))
    with pytest.raises(ValueError, match="a kind of"):
        converted(tmp_path)
    (tmp_path / "model.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="cannot be read"):
        converted(tmp_path)
