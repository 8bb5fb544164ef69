"""The objective of the command line: every word, the default against the formula, augmentation, averages afterwards."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import scoresde as ss
from experiments import ema
from experiments.cli.errors import InputError
from experiments.data.load import load
from experiments.models.build import build
from experiments.models.flags import Config
from experiments.models.score_objective import TIMES, WEIGHTS, level_curves
from experiments.training.fit import Plan, fit, start
from experiments.training.snapshots import FOLDER

SMALL = {"width": 8, "depth": 1, "batch": 32}


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def made(data, **flags):
    config = Config.of(**SMALL | flags)
    config.check()
    return build(config.resolve(data), data)


def traced(model, data):
    """State, losses and next levels, as shapes: everything fits together, and nothing is compiled."""

    def once(state):
        drawn = model.trainer.draw(state.key, data.train[:32], state.carry)
        losses, errors = model.trainer.loss(state.params, None, drawn, state.carry)
        return losses, model.trainer.update(state.carry, errors)

    return (state := jax.eval_shape(model.init)), *jax.eval_shape(once, state)


@pytest.mark.parametrize(("weight", "times"), [(w, None) for w in WEIGHTS] + [("noise", t) for t in TIMES])
def test_every_word_makes_a_step(digits, weight, times):
    state, losses, levels = traced(made(digits, weight=weight, times=times), digits)
    assert losses.shape == (32,) and jax.tree.structure(levels) == jax.tree.structure(state.carry)
    assert all(
        a.shape == b.shape and a.dtype == b.dtype
        for a, b in zip(*map(jax.tree.leaves, (levels, state.carry)), strict=True)
    )
    assert ("uncertainty" in state.params) == (weight == "learned")


@pytest.mark.slow
def test_the_default_is_edms_objective_and_its_levels_are_recorded(digits):
    model = made(digits)
    state, key = model.init(), jax.random.key(4)
    batch = jnp.asarray(digits.train[:32])

    @jax.jit
    def both(params, levels):
        drawn = model.trainer.draw(key, batch, levels)
        losses, errors = model.trainer.loss(params, None, drawn, levels)
        key_noise, key_dropout, key_loss = jax.random.split(key, 3)
        x = digits.to_model(batch, jax.random.uniform(key_noise, (32, 64)).reshape(batch.shape))
        score = model.precond.score(lambda u, c: model.apply(params, u, c, key=jax.random.split(key_dropout, 32)))
        law = (-1.0 + np.log(digits.sigma_data), 1.6)
        weight, times = model.precond.karras_weight(*law), ss.log_normal(*law)
        expected = ss.denoising_score_matching(key_loss, model.sde, score, x, weight=weight, times=times)
        return losses, expected, model.trainer.update(levels, errors)

    losses, expected, levels = both(state.params, state.carry)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert float(jnp.sum(levels.count)) == 32
    curves = level_curves(levels)
    assert json.loads(json.dumps(curves)) == curves and None in curves["loss"] and len(curves["log_snr"]) == 32


def test_an_example_has_the_same_loss_beside_any_neighbours(digits):
    """Of a batch drawn whole, in two parts as ``Trainer`` cuts it; and its level is sigma/alpha at its time."""
    model = made(digits, dropout=0.3, batch=8)
    draw, loss, level = model.trainer.draw, model.trainer.loss, model.trainer.level

    @jax.jit
    def both(params, levels):
        drawn = draw(jax.random.key(4), digits.train[:8], levels)
        parts = [jax.tree.map(lambda a, m=m: a[m::2], drawn) for m in range(2)]
        params = jax.tree.map(lambda p: p + 0.1, params)  # an untrained network is zero, whatever is dropped
        cut = jnp.stack([loss(params, None, part, levels)[0] for part in parts], axis=1).ravel()
        losses, errors = loss(params, None, drawn, levels)
        return losses, cut, level(drawn), errors.t

    state = model.init()
    losses, cut, levels, t = both(state.params, state.carry)
    np.testing.assert_allclose(cut, losses, rtol=1e-4)
    assert len(set(np.asarray(losses).tolist())) == 8
    np.testing.assert_allclose(levels, model.sde.sigma(t) / model.sde.alpha(t), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "flags"),
    [
        ("mlp", {"times": "adaptive", "augment": 0.5}),
        ("unet", {"weight": "learned", "flip": True}),
        ("mlp", {"dtype": "bf16", "remat": True}),
    ],
)
def test_parts_of_a_batch_have_the_numbers_of_the_whole_and_a_run_that_diverges_names_its_level(digits, network, flags):
    """With one part and with four: losses, gradients and what was measured of the levels agree; and since the second
    step is infinitely long (the first has length zero), both skip the third and name the noise level of an example."""
    model = made(digits, network=network, dropout=0.3, learning_rate=1e30, **flags)
    images, ends = jnp.asarray(digits.train[:96]).reshape(3, 32, 8, 8, 1), []
    for parts in (1, 4):
        trainer = dataclasses.replace(model.trainer, microbatches=parts)
        ends.append(trainer.run_batches(model.init(), images))
    (whole, metrics), (cut, cut_metrics) = ends
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(cut_metrics[name], metrics[name], rtol=2e-2 if "dtype" in flags else 1e-4)
    for a, b in zip(jax.tree.leaves(cut.carry), jax.tree.leaves(whole.carry), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-2 if "dtype" in flags else 1e-4, atol=1e-5)
    key = jax.random.fold_in(jax.random.fold_in(model.init().key, 0), 2)
    level = jax.jit(lambda levels: trainer.level(trainer.draw(key, images[2], levels))[0])(whole.carry)
    said = f"step 2: loss nan at noise level {float(level):.4g}, gradient not finite in "
    assert all(state.skipped.report(state.params).startswith(said) for state in (whole, cut))


@pytest.mark.parametrize("network", ["mlp", "unet"])
def test_augmentation_gives_the_network_labels(digits, network):
    model = made(digits, augment=0.2, network=network)
    state, losses, _ = traced(model, digits)
    assert state.params["embedding"]["labels"]["kernel"].shape[0] == 9 and losses.shape == (32,)
    x = jax.ShapeDtypeStruct((3, 8, 8, 1), jnp.float32)  # and the score is called as without it
    t = jax.ShapeDtypeStruct((3,), jnp.float32)
    assert jax.eval_shape(lambda params, x, t: model.score(params)(x, t), state.params, x, t).shape == x.shape


@pytest.mark.slow
def test_an_average_of_another_length_is_made_afterwards(digits, tmp_path):
    """From the snapshots of two lengths, against the third one that this run keeps as well; and it is a run folder."""
    steps, target = 640, 0.08
    config = Config.of(**SMALL, steps=steps, ema_lengths=f"0.05,0.10,{target}", workdir=tmp_path).resolve(digits)
    model = build(config, digits)
    (tmp_path / "config.json").write_text(json.dumps(config.flat(), default=str))
    state, _ = fit(Plan.of(config), digits, model, model.init(), Console(quiet=True))
    assert len(list((tmp_path / FOLDER).iterdir())) == steps // 50 + 1
    lines = [json.loads(line) for line in (tmp_path / "levels.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == steps and len(lines[-1]["variance_explained"]) == 32
    for folder in (tmp_path / FOLDER).iterdir():  # what the third length stored is not used
        metadata, target_tree = ss.checkpoint.read_metadata(folder), state.averages[1:]
        two = ss.checkpoint.restore(folder, target_tree)[0][:2]
        ss.checkpoint.save(folder, two, metadata | {"sigma_rels": [0.05, 0.10]})
    plain = config.replace(ema_lengths="0.05,0.10")
    (tmp_path / "config.json").write_text(json.dumps(plain.flat(), default=str))
    kept = dataclasses.replace(state, averages=state.averages[:3])
    ss.checkpoint.save(tmp_path / "checkpoint", kept, {"config": plain.training()})
    line = ema.combine(ema.Flags(tmp_path, target))
    assert line.startswith(f"{tmp_path / 'ema-0.08'}: sigma_rel 0.08 at step 640, relative error of its profile 0.0")
    made_run = dataclasses.replace(plain, workdir=tmp_path / "ema-0.08")
    rebuilt = build(plain, digits)
    got = start(Plan.of(made_run), rebuilt)
    for mine, true, near in zip(*map(jax.tree.leaves, (got.ema, state.averages[3], state.averages[2])), strict=True):
        assert np.linalg.norm(mine - true) <= 0.02 * np.linalg.norm(near - true) + 1e-5


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"weight": "min_snr"},
            "--weight must be one of karras, noise, likelihood, min-snr, p2, sigmoid, l",
        ),
        ({"times": "log"}, "--times must be one of log-normal, stratified, uniform-log-snr, adaptive, got 'log'"),
        ({"augment": 1.5}, r"--augment must be in \[0, 1\], got 1\.5"),
        ({"ema_lengths": "0.05,x"}, "--ema-lengths takes numbers such as 0.05,0.10: could not convert"),
        (
            {"ema_lengths": "0.5"},
            r"--ema-lengths takes numbers such as 0.05,0.10: sigma_rel must be in \(0, 0",
        ),
        ({"weight": "learned", "times": "adaptive"}, "--weight learned balances the levels as their times are drawn"),
    ],
)
def test_refusals(digits, flags, message):
    with pytest.raises(InputError, match="^" + message) as error:
        made(digits, **flags)
    assert "\n" not in str(error.value)


def test_augmenting_what_is_no_image_is_refused():
    data = load("moons")
    with pytest.raises(InputError, match=r"^--augment is for images \(H, W, C\), the data have shape \(2,\): drop it"):
        made(data, augment=0.1)


def test_a_folder_without_a_run_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SCORESDE_COMPILE_CACHE", "off")
    monkeypatch.setattr("sys.argv", ["ema", str(tmp_path), "--sigma-rel", "0.1"])
    with pytest.raises(SystemExit) as stop:
        ema.main()
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
