"""What the command line makes of the shape and the levels of data."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.cli.errors import InputError
from experiments.data.load import load
from experiments.models.build import build
from experiments.models.flags import Config
from experiments.models.networks import NETWORKS, attention_levels, multipliers, waves


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((28, 28, 1), (1, 2, 4)),
        ((32, 32, 3), (1, 2, 4)),
        ((8, 8, 1), (1,)),
        ((5, 64, 2), (1,)),
        ((128, 1), (1, 2, 4, 4, 4)),
    ],
)
def test_the_unet_halves_while_seven_positions_are_left(shape, expected):
    assert multipliers(shape) == expected


def test_waves_are_for_levels_that_stand_out():
    digits = load("digits")
    level = digits.bin_width / digits.sigma_data
    np.testing.assert_allclose(waves(digits)["input_frequencies"], [1 / (level * n) for n in (32, 16, 8, 4, 2, 1)])
    assert waves(dataclasses.replace(digits, levels=65_536)) == waves(load("moons")) == {}
    assert waves(digits, "dit") == {}


@pytest.mark.parametrize(("shape", "level"), [((28, 28, 1), 1), ((32, 32, 3), 1), ((8, 8, 1), 0), ((256, 1), 4)])
def test_attention_begins_at_sixteen_positions(shape, level):
    assert attention_levels(shape) == (level,)


@pytest.fixture(scope="module")
def clouds(tmp_path_factory):
    """Sixty clouds of six points."""
    file = tmp_path_factory.mktemp("clouds") / "clouds.npz"
    np.savez(file, x=np.random.default_rng(0).normal(size=(60, 6, 2)).astype(np.float32))
    return load(f"npz:{file}")


@pytest.mark.parametrize(
    "word", [w if w in ("edm2", "set_transformer") else pytest.param(w, marks=pytest.mark.slow) for w in NETWORKS]
)
def test_every_word_is_a_network_that_trains(word, clouds):
    """As shapes: a step of the optimiser, and the score; nothing is compiled."""
    data = clouds if word == "set_transformer" else load("digits")
    config = Config.of(network=word, width=8, depth=1, batch=4).resolve(data)
    config.check()
    model = build(config, data)

    def step(state):
        drawn = model.trainer.draw(state.key, data.train[:4], state.carry)
        losses = lambda params: jnp.mean(model.trainer.loss(params, None, drawn, state.carry)[0])  # noqa: E731
        updates, _ = model.trainer.optimizer.update(jax.grad(losses)(state.params), state.opt_state, state.params)
        return updates, model.score(state.params)(jnp.ones((2, *data.event_shape)), jnp.full(2, 0.5))

    updates, score = jax.eval_shape(step, state := jax.eval_shape(model.init))
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, state.params)
    assert score.shape == (2, *data.event_shape)
    assert model.record["network"]["name"] == word
    assert ("input_frequencies" in model.record["network"]) == (data.levels is not None and NETWORKS[word].waves)


def test_a_network_of_another_kind_than_the_presets_has_its_own_size(clouds):
    sizes = {word: Config.of(network=word).resolve(load("digits")) for word in ("unet", "dit")}
    assert [(c.architecture.width, c.architecture.depth) for c in sizes.values()] == [(16, 1), (128, 6)]
    assert Config.of(network="mlp").resolve(load("digits")) == Config().resolve(load("digits"))


@pytest.mark.parametrize(
    ("source", "flags", "message"),
    [
        ("moons", {"network": "dit"}, r"--network dit is for data \(\*sizes, channels\), .* shape \(2,\): take mlp$"),
        (
            "digits",
            {"network": "set_transformer"},
            r"is for clouds \(points, dim\), .* \(8, 8, 1\): take mlp or unet or",
        ),
        ("digits", {"network": "uvit", "depth": 4}, r"--network uvit --width 128 --depth 4: UViT: depth must be odd"),
        ("digits", {"network": "u-vit"}, r"--network must be one of mlp, .*, got 'u-vit'; did you mean uvit\?"),
    ],
)
def test_what_cannot_be_is_one_line(source, flags, message):
    data = load(source)
    with pytest.raises(InputError, match=message) as error:
        config = Config.of(**flags)
        config.check()
        build(config.resolve(data), data)
    assert "\n" not in str(error.value)
