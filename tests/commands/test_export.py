"""Export: read back with safetensors and json alone, and evaluated by a network written here in NumPy."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.cli.errors import InputError
from experiments.cli.machine import versions
from experiments.data.load import load
from experiments.export import export
from experiments.models.build import build
from experiments.models.flags import Config
from scoresde.checkpoint import folder as checkpoint

safetensors = pytest.importorskip("safetensors.numpy")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    data = load("moons")
    config = Config.of(data="moons", width=8, depth=2, workdir=folder).resolve(data)
    model = build(config, data)
    state = model.init()
    noisy = jax.tree.map(lambda a: a + 0.1 * jnp.arange(a.size, dtype=a.dtype).reshape(a.shape) / a.size, state.params)
    state = state.__class__(**{**state.__dict__, "averages": (noisy,)})
    metadata = {"config": config.training(), "data": data.record(), "model": model.record, "versions": versions()}
    checkpoint.save(folder / "checkpoint", state, metadata)
    export(folder, folder / "out")
    return folder / "out", state, model


def test_every_parameter_is_there_by_name(exported):
    out, state, _ = exported
    arrays = safetensors.load_file(out / "model.safetensors")
    for kind, tree in (("params", state.params), ("averages/0", state.ema)):
        for path, leaf in jax.tree.leaves_with_path(tree):
            name = "/".join([kind, *(key.key for key in path)])
            np.testing.assert_array_equal(arrays.pop(name), leaf)
    assert not arrays


def test_a_network_of_numpy_gives_the_same_denoiser(exported):
    """The MLP of scoresde/nn/mlp.py from the two files alone, in float64."""
    out, state, model = exported
    arrays = safetensors.load_file(out / "model.safetensors")
    p = {k.removeprefix("averages/0/"): v.astype(np.float64) for k, v in arrays.items() if k.startswith("averages/0/")}
    facts = json.loads((out / "model.json").read_text())
    assert facts["step"] == 0 and facts["model"]["sde"] == {
        "name": "VP", "t_min": model.sde.t_min, "t_max": 1.0, "beta_min": 0.1, "beta_max": 20.0
    }  # fmt: skip
    assert facts["data"]["name"] == "moons" and facts["config"]["width"] == 8 and "jax" in facts["versions"]

    def linear(name, x):
        return x @ p[f"{name}/kernel"] + p[f"{name}/bias"]

    def silu(x):
        return x / (1 + np.exp(-x))

    def norm(h):
        return (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-5)

    x, c = np.array([[0.3, -1.2], [2.0, 0.1]]), np.array([-1.0, 0.5])
    from statistics import NormalDist

    f = np.array([NormalDist(0, 0.5).inv_cdf(0.5 + (i + 0.5) / 64) for i in range(32)])
    angle = 2 * math.pi * c[:, None] * f
    e = silu(linear("embedding/linear", np.concatenate([np.cos(angle), np.sin(angle)], 1)))
    h = linear("input", x)
    for i in range(facts["model"]["network"]["depth"]):
        s, b, g = np.split(linear(f"blocks/{i}/modulation", e), 3, -1)
        h = h + (1 + g) * linear(f"blocks/{i}/second", silu(linear(f"blocks/{i}/first", (1 + s) * norm(h) + b)))
    s, b = np.split(linear("modulation", e), 2, -1)
    mine = linear("output", silu((1 + s) * norm(h) + b))
    theirs = model.apply(state.ema, jnp.asarray(x, jnp.float32), jnp.asarray(c, jnp.float32))
    np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)


def test_mistakes_are_one_line(tmp_path):
    with pytest.raises(InputError, match="does not exist; check the path"):
        export(tmp_path / "none", tmp_path / "out")
