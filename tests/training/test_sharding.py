"""Shardings on eight virtual devices, in one process of its own, against the same training on one device."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from scoresde.training import device_mesh

CODE = """
import dataclasses, sys
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import NamedSharding, PartitionSpec as P
import scoresde as ss
from scoresde.checkpoint.leaves import to_devices, to_numpy

assert jax.device_count() == 8

def loss(params, key, batch):
    noise = jax.random.normal(key, batch.shape)
    out = jnp.tanh((batch + noise) @ params["in"]) @ params["out"] + params["b"][None]
    return jnp.mean((out - noise) ** 2, axis=1)

draw = np.random.default_rng(0).normal
params = {"in": draw(size=(12, 256)) / 4, "out": draw(size=(256, 12)) / 16, "b": np.zeros(12)}
params = jax.tree.map(jnp.float32, params)
data = draw(size=(40, 12)).astype(np.float32)
plain = ss.Trainer(loss, optax.adam(0.01), averages=(ss.training.warmed(0.9), ss.training.warmed(0.5)))

def prepared(mesh):
    state = plain.init(jax.random.key(0), params)
    def place(a, at):
        return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=at)
    return to_devices(state, jax.tree.map(place, state, ss.training.state_sharding(mesh, state)))

def numbers(state):
    return jax.tree.leaves(to_numpy(state))

whole, metrics = plain.run(plain.init(jax.random.key(0), params), data, steps=7, batch_size=16)
results = {}
for fsdp in (1, 2, 8):
    mesh = ss.training.device_mesh(fsdp)
    state = prepared(mesh)
    cut = {1: P(), 2: P(None, "fsdp"), 8: P(None, "fsdp")}[fsdp]
    for tree in (state.params, *state.averages, state.opt_state[0].mu):
        assert tree["in"].sharding.is_equivalent_to(NamedSharding(mesh, cut), 2)
        assert tree["in"].addressable_shards[0].data.size == 12 * 256 // fsdp
        assert tree["b"].sharding.is_fully_replicated
    trainer = dataclasses.replace(plain, mesh=mesh)
    state, m = trainer.run(state, jax.device_put(data, NamedSharding(mesh, P())), steps=7, batch_size=16)
    assert state.params["in"].addressable_shards[0].data.size == 12 * 256 // fsdp
    assert state.opt_state[0].nu["out"].addressable_shards[0].data.size == 12 * 256 // fsdp
    np.testing.assert_allclose(m["loss"], metrics["loss"], rtol=1e-5)
    for a, b in zip(numbers(state), numbers(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    results[fsdp] = state
ss.checkpoint.save(sys.argv[1], results[8], {})
for target in (results[2], results[1], whole):
    got, _ = ss.checkpoint.restore(sys.argv[1], target)
    for a, b, t in zip(jax.tree.leaves(got.params), jax.tree.leaves(results[8].params), jax.tree.leaves(target.params)):
        assert a.sharding.is_equivalent_to(t.sharding, a.ndim) and np.array_equal(a, b)
try:
    ss.training.device_mesh(3)
except ValueError as error:
    print(error)
"""


def test_eight_devices_and_any_cut_of_the_state_agree_with_one(tmp_path):
    """Losses, parameters, both averages and Adam's moments; a checkpoint of one cut is restored on the others."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, "-c", CODE, str(tmp_path / "c")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "fsdp must divide the 8 device(s), got 3\n"


def test_a_mesh_needs_a_divisor():
    with pytest.raises(ValueError, match=r"fsdp must divide the \d+ device\(s\), got 0"):
        device_mesh(0)
    assert device_mesh().shape == {"data": jax.device_count(), "fsdp": 1}
