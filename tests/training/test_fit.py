"""Training into a folder, in this process: streams, skipped steps, damaged checkpoints, memory, the compile cache."""

import dataclasses
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from experiments import doctor
from experiments.cli import commands, compile_cache
from experiments.cli.errors import InputError
from experiments.data.load import load
from experiments.models.build import build
from experiments.models.flags import Config
from experiments.models.values import Engine
from experiments.training import fit as module
from experiments.training.fit import Plan, fit, start
from experiments.training.processes import join, memory_errors
from scoresde import nn
from scoresde.checkpoint import folder as checkpoint
from scoresde.training.order import Order

QUIET = Console(quiet=True)
LOADED = load("checkerboard")
DATA = dataclasses.replace(LOADED, train=LOADED.train[:200])


def settings(folder, **flags):
    small = {"steps": 6, "width": 8, "depth": 1, "batch": 16, "save_seconds": 1000.0}
    return Config.of(data="checkerboard", workdir=folder, **small | flags).resolve(DATA)


def equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = (jax.random.key_data(v) if jnp.issubdtype(v.dtype, jax.dtypes.prng_key) else v for v in (x, y))
        np.testing.assert_array_equal(x, y)


@pytest.fixture(autouse=True)
def short_calls(monkeypatch):
    monkeypatch.setattr(module, "STEPS_PER_CALL", 3)


@pytest.fixture(scope="module")
def model():
    """The run's model and state, with a loss that compiles quickly."""

    def loss(params, key, batch, levels):
        noisy = batch + jax.random.normal(key, batch.shape)
        return jnp.sum(jnp.tanh(noisy @ params["input"]["kernel"]) ** 2, axis=1), None

    real = build(settings(None), DATA)
    quick = {
        "loss": loss,
        "draw": None,
        "level": lambda batch: 0.1 * jnp.arange(len(batch)),
        "update": lambda levels, seen: levels,
    }
    return dataclasses.replace(real, trainer=dataclasses.replace(real.trainer, **quick))


def run(config, model, console=QUIET):
    config.folder.mkdir(exist_ok=True)
    plan = Plan.of(config)
    return fit(plan, DATA, model, start(plan, model), console)


def batches(data, *, seed, step, total, steps_per_call, batch, process_index, process_count):
    """A stream in the order that the device would use, for calls of ``steps_per_call`` steps, the last shorter."""
    assert (seed, process_index, process_count) == (0, 0, 1)
    key, n = jax.random.fold_in(jax.random.split(jax.random.key(seed))[1], 1), len(data.train)
    order = np.asarray(Order.of(key, jnp.zeros(1, int), n).examples(jnp.zeros(n, int), jnp.arange(n, dtype=jnp.uint32)))
    while step < total:
        steps = min(steps_per_call, total - step)
        yield data.train[order[np.arange(step * batch, (step + steps) * batch)].reshape(steps, batch)]
        step += steps


def test_a_stream_gives_the_bits_of_data_on_the_device_and_resumes(tmp_path, monkeypatch, model):
    whole, _ = run(settings(tmp_path / "device"), model)
    monkeypatch.setattr(type(DATA), "streamed", True)
    monkeypatch.setattr(module, "batches", batches)
    streamed, report = run(settings(tmp_path / "stream"), model)
    equal(streamed, whole)
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("device", "stream")]
    assert lines[0] == lines[1] and report["final_loss"] == json.loads(lines[0].splitlines()[-1])["loss"]
    stop = settings(tmp_path / "again", save_seconds=0.0)
    halfway, _ = run(stop.replace(steps=3), model)
    assert int(halfway.step) == 3
    resumed, _ = run(stop, model)
    equal(resumed, whole)


def test_a_row_of_skipped_steps_stops_the_run_with_one_line(tmp_path, model):
    """The loss of one example is never finite."""

    def bad(params, key, batch, levels):
        losses, seen = model.trainer.loss(params, key, batch, levels)
        return losses / jnp.where(jnp.arange(len(batch)) == 5, jnp.nan, 1), seen

    broken = dataclasses.replace(model, trainer=dataclasses.replace(model.trainer, loss=bad))
    with pytest.raises(InputError) as caught:
        run(settings(tmp_path, skip_limit=3), broken)
    message = str(caught.value)
    assert message.startswith(
        "3 steps in a row were skipped, the first: step 0: loss nan at noise level 0.5, gradient "
    )
    assert "\n" not in message and "lower --learning-rate" in message
    entry = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert entry == {"step": 3, "loss": None, "grad_norm": None, "skipped": 3}
    run(settings(tmp_path / "patient", skip_limit=100), broken)


def test_the_last_good_version_serves_where_the_newest_is_damaged(tmp_path, model, capsys):
    config = settings(tmp_path, save_seconds=0.0, keep=2)
    whole, _ = run(config, model)
    newest = max((tmp_path / "checkpoint").iterdir())
    (newest / "checkpoint.json").write_text("{")
    module.check_folder(Plan.of(config), resume=True)
    resumed, _ = run(config, model)
    assert "warning: checkpoint" in (said := capsys.readouterr().err) and "taking the older version" in said
    equal(resumed, whole)
    assert len(list((tmp_path / "checkpoint").iterdir())) == 2


def test_out_of_memory_is_one_line_with_the_knobs():
    with pytest.raises(InputError, match="--microbatches .* --remat, --dtype bf16") as caught, memory_errors():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nBufferAssignment ...")
    assert "\n" not in str(caught.value)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), memory_errors():
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"fsdp": 3}, "--fsdp 3 must divide the number of devices, 1"),
        ({"microbatches": 5}, "--batch 16 must be a multiple of devices x --microbatches = 1 x 5"),
    ],
)
def test_flags_that_do_not_fit_the_devices(tmp_path, model, flags, message):
    with pytest.raises(InputError, match=message):
        run(settings(tmp_path, **flags), model)


def test_flags_of_processes_go_together():
    with pytest.raises(InputError, match="--coordinator HOST:PORT, --processes and --process-id go together"):
        join(Engine(coordinator="localhost:1"))


NETWORKS = (partial(nn.ResidualMLP, width=8, depth=1), partial(nn.UNet, channels=4, attention_levels=(1,)))


@pytest.mark.parametrize("network", [NETWORKS[0], pytest.param(NETWORKS[1], marks=pytest.mark.slow)])
def test_bfloat16_and_remat_agree_to_rounding_and_give_nothing_narrow(network):
    """Gradients: with remat to float32 rounding, in bfloat16 to its own."""
    x, c = jax.random.normal(jax.random.key(1), (3, 4, 4, 1)), jnp.linspace(-2, 2, 3)

    def gradient(dtype=jnp.float32, **flags):
        apply, params = nn.functional(network((4, 4, 1), dropout=0.3, key=jax.random.key(0), **flags), dtype=dtype)
        waved = jax.tree.map(lambda p: jnp.float32(p + 0.05 * np.cos(np.arange(p.size)).reshape(p.shape)), params)

        def loss(p):
            out = apply(p, x, c, key=jax.random.key(2))
            return jnp.mean((out - x) ** 2), out

        (_, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(waved)
        assert {leaf.dtype for leaf in jax.tree.leaves((out, grads))} == {jnp.dtype("float32")}
        return np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(grads)])

    exact = gradient()
    np.testing.assert_allclose(gradient(remat=True), exact, rtol=1e-4, atol=1e-6)
    error = np.linalg.norm(gradient(dtype=jnp.bfloat16) - exact) / np.linalg.norm(exact)
    assert 1e-4 < error < 0.03


@pytest.mark.slow
def test_a_run_in_bfloat16_stores_float32(tmp_path):
    config = settings(tmp_path, dtype="bf16", remat=True)
    state, _ = run(config, build(config, DATA))
    arrays, _ = checkpoint.read_arrays(tmp_path / "checkpoint")
    assert {a.dtype.name for a in arrays.values()} <= {"float32", "int32", "uint32", "bool"}
    model = build(config, DATA)
    equal(state.params, start(Plan.of(config), model).params)


CACHED = """
import jax, sys
from experiments.cli import compile_cache
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
compile_cache.set_up()
jax.jit(lambda x: x @ x + 1)(jax.numpy.ones((8, 8))).block_until_ready()
print(sum("cache_hits" in event for event in hits))
"""


@pytest.mark.slow
def test_the_second_process_finds_what_the_first_compiled(tmp_path):
    def hits(**extra):
        drop = {"JAX_COMPILATION_CACHE_DIR"}
        env = {k: v for k, v in os.environ.items() if k not in drop}
        env |= {"PYTHONPATH": str(Path(__file__).parents[2]), "XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-c", CACHED]
        done = subprocess.run(command, env=env | extra, capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert hits(SCORESDE_COMPILE_CACHE="off") == 0 and not list(tmp_path.iterdir())
    assert hits() == 0 and hits() > 0
    assert (tmp_path / "scoresde" / "compiled").is_dir()


def test_the_cache_is_bounded_and_keeps_what_was_used_last(tmp_path):
    for i, name in enumerate(["old", "read again", "new", "newest"]):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (1000 + i, 1000 + i))
    os.utime(tmp_path / "read again", (2000, 1001))
    for largest, left in ((400, 4), (399, 3), (250, 2), (0, 0)):
        compile_cache.bound(tmp_path, largest)
        kept = sorted(path.name for path in tmp_path.iterdir())
        assert kept == sorted(["read again", "newest", "new", "old"][:left])


def test_every_command_sets_the_cache_up(tmp_path, monkeypatch, capsys):
    """In the user's folder or a named one, or nowhere by a flag or a variable; an unusable folder is a warning."""
    (tmp_path / "file").touch()
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs

    def folder(*, cached=True, **variables):
        with monkeypatch.context() as patch:
            for name in ("JAX_COMPILATION_CACHE_DIR", "SCORESDE_COMPILE_CACHE"):
                patch.delenv(name, raising=False)
            for name, value in variables.items():
                patch.setenv(name, str(value))
            patch.setattr("sys.argv", ["doctor"])
            patch.setattr(commands.signal, "signal", lambda *_: None)
            found = []

            def program(flags, console):
                found.append(jax.config.jax_compilation_cache_dir)

            commands.main(doctor.Flags, "doctor", program, cached=lambda flags: cached)
            return found[0]

    try:
        assert folder(XDG_CACHE_HOME=tmp_path) == str(tmp_path / "scoresde" / "compiled")
        named = {"JAX_COMPILATION_CACHE_DIR": tmp_path / "named"}
        assert folder(**named) == str(tmp_path / "named") and (tmp_path / "named").is_dir()
        assert folder(**named, SCORESDE_COMPILE_CACHE="off") is folder(**named, cached=False) is None
        assert capsys.readouterr().err == ""
        assert folder(XDG_CACHE_HOME=tmp_path / "file") is None
        said = capsys.readouterr().err
        assert said.startswith(f"warning: no compile cache in {tmp_path / 'file'}") and said.count("\n") == 1
    finally:
        jax.config.update("jax_compilation_cache_dir", before[0])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])
