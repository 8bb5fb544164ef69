"""Conditions of networks: attention to them against NumPy, their null against nothing given, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.tree_util import Partial

import scoresde as ss
from scoresde import nn
from scoresde.nn.conditions.conditions import Conditions
from scoresde.nn.layers.transformer_blocks import CrossAttention

KEY = jax.random.key(0)
DESCRIBED = {
    "class": nn.Classes(4),
    "text": nn.Tokens(3),
    "vector": nn.Vector(2),
    "map": nn.Map(2),
    "image": nn.Patches(1, 2),
}
X, C = jax.random.normal(jax.random.key(1), (3, 5, 2)), jnp.array([-2.0, 0.1, 1.0])


def values(batch=3):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=(batch, *shape)), jnp.float32)  # noqa: E731
    mask = jnp.arange(4)[None, :] < jnp.array([4, 2, 1])[:batch, None]
    return {
        "class": jnp.array([3, 0, 1])[:batch],
        "text": (draw(4, 3), mask),
        "vector": draw(2),
        "map": draw(5, 2),
        "image": draw(4, 6, 1),
    }


@pytest.fixture(scope="module")
def mlp():
    """apply, compiled, and parameters moved off their start."""
    net = nn.ResidualMLP((5, 2), width=8, depth=1, features=8, heads=2, conditions=DESCRIBED, key=KEY)
    apply, params = nn.functional(net)
    rng = np.random.default_rng(1)
    return jax.jit(apply), jax.tree.map(lambda p: p + rng.normal(0, 0.3, p.shape).astype(np.float32), params)


def test_cross_attention_is_its_formula_with_one_zero_token_more():
    heads, width, source = 2, 6, 3
    cross = CrossAttention(width, source, heads, gain=1.0, rngs=nnx.Rngs(KEY))
    h, s = (jax.random.normal(jax.random.key(i), shape) for i, shape in ((1, (2, 3, 2, width)), (2, (2, 4, source))))
    mask = np.array([[True, False, True, True], [False, True, False, False]])
    q, kv, out = (np.asarray(a.kernel[...], np.float64) for a in (cross.query, cross.key_value, cross.output))
    expected = np.zeros((2, 6, width))
    for b in range(2):
        query = (np.asarray(h[b]).reshape(6, width) @ q).reshape(6, heads, -1)
        key, value = np.split((np.asarray(s[b])[mask[b]] @ kv).reshape(mask[b].sum(), 2 * heads, -1), 2, axis=1)
        for head in range(heads):
            weight = np.exp(query[:, head] @ key[:, head].T / np.sqrt(width / heads))
            expected[b, :, head * 3 : head * 3 + 3] = weight @ value[:, head] / (1 + weight.sum(1, keepdims=True))
    apply = jax.jit(jax.value_and_grad(lambda s, mask: (jnp.sum(y := cross(h, (s, mask))), y), has_aux=True))
    (_, y), _ = apply(s, jnp.array(mask))
    np.testing.assert_allclose(y, (expected @ out).reshape(h.shape), atol=2e-6)
    (_, y), gradient = apply(s, jnp.zeros((2, 4), bool))
    assert not np.any(y) and not np.any(gradient)  # zeros, of which none is NaN


def test_the_null_is_nothing_and_what_is_masked_is_never_seen(mlp):
    """None is the null of all conditions and of one, values are not; a masked sequence is the null bit by bit."""
    apply, params = mlp
    cond, junk = values(), jnp.full((3, 4, 3), jnp.nan)
    text, mask = cond["text"]
    padded = jnp.pad(text, ((0, 0), (0, 2), (0, 0)), constant_values=jnp.nan), jnp.pad(mask, ((0, 0), (0, 2)))
    nulls = [nn.null(cond), *(cond | {name: nn.null(cond[name])} for name in cond)]
    y = apply(params, X, C, cond=cond)
    gone = [apply(params, X, C, cond=null) for null in nulls]
    masked = apply(params, X, C, cond=cond | {"text": (junk, jnp.zeros_like(mask))})
    np.testing.assert_array_equal(masked, gone[1 + list(cond).index("text")])
    hidden = jnp.where(mask[..., None], text, jnp.inf)
    np.testing.assert_array_equal(apply(params, X, C, cond=cond | {"text": (hidden, mask)}), y)
    others = [None, cond | {"text": None}, cond | {"text": padded}]
    none = jax.jit(lambda: [apply(params, X, C, cond=other) for other in others])()
    np.testing.assert_allclose(np.stack(none), np.stack([gone[0], masked, y]), atol=1e-5)
    assert np.min(np.max(np.abs(np.stack(gone) - np.asarray(y)), axis=(2, 3))) > 1e-4


@pytest.mark.slow
def test_the_gradient_of_a_masked_sequence_is_that_of_none(mlp):
    apply, params = mlp
    cond = values()

    def loss(params, text):
        return jnp.sum(apply(params, X, C, cond=cond | {"text": text}) ** 2)

    nothing = jnp.full((3, 4, 3), jnp.nan), jnp.zeros((3, 4), bool)
    masked, none = jax.jit(lambda params: [jax.grad(loss)(params, text) for text in (nothing, None)])(params)
    for a, b in zip(jax.tree.leaves(masked), jax.tree.leaves(none), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(jnp.max(jnp.abs(b))))


def test_a_network_with_conditions_begins_as_the_one_without():
    described = {name: DESCRIBED[name] for name in ("class", "text", "vector", "image")}
    _, more = nn.functional(nn.ResidualMLP((5, 2), width=16, depth=2, features=8, conditions=described, key=KEY))
    _, plain = nn.functional(nn.ResidualMLP((5, 2), width=16, depth=2, features=8, key=KEY))
    assert not np.any(more["embedding"].pop("vector")["kernel"])
    assert not any(np.any(cross["output"]["kernel"]) for cross in more.pop("cross").values())
    del more["conditions"]
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), plain, more))


@pytest.mark.slow
def test_each_example_has_its_own_conditions(mlp):
    apply, params = mlp
    cond = values()
    y = apply(params, X, C, cond=cond)
    one = jax.vmap(lambda x, c, cond: apply(params, x[None], c[None], cond=jax.tree.map(lambda a: a[None], cond))[0])
    np.testing.assert_allclose(one(X, C, cond), y, atol=1e-5)
    first = jax.tree.map(lambda a: a[:1], cond)
    alike = jax.tree.map(lambda a: jnp.repeat(a, 3, axis=0), first)
    np.testing.assert_array_equal(apply(params, X, C, cond=first), apply(params, X, C, cond=alike))


def test_null_of_each_kind():
    cond = {"a": jnp.arange(3), "b": np.ones((3, 2), bool), "c": 1j * jnp.ones(3), "d": np.arange(3, dtype=np.uint8)}
    gone = nn.null(cond | {"kept": nn.Kept(cond["b"])})
    np.testing.assert_array_equal(gone["a"], -np.ones(3))
    np.testing.assert_array_equal(gone["b"], np.zeros((3, 2)))
    np.testing.assert_array_equal(gone["c"], np.zeros(3))
    assert gone["d"].dtype == jnp.int16 and np.all(gone["d"] == -1)
    np.testing.assert_array_equal(gone["kept"].value, cond["b"])


def test_drop_gives_whole_examples_their_null_at_its_rate():
    n, rate = 4000, 0.3
    there = jnp.ones((n, 2), bool)
    cond = {"class": jnp.arange(n), "text": (jnp.ones((n, 2, 3)), there), "mask": nn.Kept(there)}

    @jax.jit
    def draws():
        keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(n))
        few = nn.drop(KEY, cond["class"][:7], rate)
        return [nn.drop(KEY, cond, p) for p in (rate, 0.0, 1.0)], few, nn.drop(keys, cond["class"], rate)

    (dropped, never, always), few, by_keys = jax.device_get(draws())
    gone = dropped["class"] == -1
    assert abs(np.mean(gone) - rate) < 4 * np.sqrt(rate * (1 - rate) / n)
    np.testing.assert_array_equal(dropped["class"], np.where(gone, -1, np.arange(n)))
    np.testing.assert_array_equal(dropped["text"][0], np.broadcast_to(~gone[:, None, None], (n, 2, 3)))
    np.testing.assert_array_equal(dropped["text"][1], np.broadcast_to(~gone[:, None], (n, 2)))
    np.testing.assert_array_equal(few, dropped["class"][:7])
    np.testing.assert_array_equal(by_keys, dropped["class"])
    for result, expected in (
        (never, cond),
        (always, nn.null(cond)),
        ({"mask": dropped["mask"]}, {"mask": cond["mask"]}),
    ):
        jax.tree.map(np.testing.assert_array_equal, result, jax.device_get(expected))


def test_refusals_of_drop():
    with pytest.raises(ValueError, match=r"drop: rate must be in \[0, 1\], got 2"):
        nn.drop(KEY, jnp.arange(3), 2)
    with pytest.raises(ValueError, match=r"one B, got \[\(3,\), \(2,\)\]"):
        nn.drop(KEY, {"a": jnp.arange(3), "b": jnp.arange(2)}, 0.1)


@pytest.mark.parametrize(
    ("name", "value", "wanted", "found"),
    [
        ("class", jnp.ones(3), r"'class': int \(B,\)", r"'class': 'float32 \(3,\)'"),
        ("class", jnp.ones((3, 1), int), r"'class': int \(B,\)", r"'class': 'int32 \(3, 1\)'"),
        ("class", jnp.ones(2, int), r"'class': int \(B,\).* with B = 3", r"'class': 'int32 \(2,\)'"),
        (
            "text",
            jnp.ones((3, 4, 3)),
            r"'text': \(float \(B, N, 3\), bool \(B, N\)\)",
            r"'text': 'float32 \(3, 4, 3\)'",
        ),
        ("text", (jnp.ones((3, 4, 3)), jnp.ones((3, 5), bool)), r"bool \(B, N\)", r"'bool \(3, 5\)'"),
        ("text", (jnp.ones((3, 4, 3)), jnp.ones((3, 4))), r"bool \(B, N\)", r"'float32 \(3, 4\)'"),
        ("vector", jnp.ones((3, 3)), r"'vector': float \(B, 2\)", r"'float32 \(3, 3\)'"),
        ("map", jnp.ones((3, 4, 2)), r"'map': float \(B, 5, 2\)", r"'float32 \(3, 4, 2\)'"),
        ("image", jnp.ones((3, 4, 1)), r"'image': float \(B, n1, n2, 1\)", r"'float32 \(3, 4, 1\)'"),
        ("extra", jnp.ones(3), r"'class': int", r"'extra': 'float32 \(3,\)'"),
    ],
)
def test_cond_of_another_shape_or_structure_is_one_line(name, value, wanted, found):
    read = Conditions("ResidualMLP", DESCRIBED, width=4, rngs=nnx.Rngs(KEY))
    with pytest.raises(ValueError, match=f"ResidualMLP: cond must be .*{wanted}.* got .*{found}") as error:
        read(X, values() | {name: value})
    assert "\n" not in str(error.value)


def test_other_refusals(mlp):
    with pytest.raises(ValueError, match=r"patch = 2 must divide the sizes, got \(4, 5\)"):
        mlp[0](mlp[1], X, C, cond=values() | {"image": jnp.ones((3, 4, 5, 1))})
    apply, params = nn.functional(nn.ResidualMLP((5, 2), width=4, depth=1, key=KEY))
    with pytest.raises(ValueError, match=r"cond must be None: it has no conditions; got int32 \(3,\)"):
        apply(params, X, C, cond=jnp.zeros(3, int))
    for conditions in ({"class": 10}, nn.Present()):
        with pytest.raises(ValueError, match="ResidualMLP: conditions must be a pytree of ss.nn's Classes, Vector"):
            nn.ResidualMLP((5, 2), conditions=conditions, key=KEY)
    with pytest.raises(ValueError, match="Classes: count must be a whole number of at least 1, got 0"):
        nn.Classes(0)
    with pytest.raises(ValueError, match="ResidualMLP: heads = 3 must divide width = 16"):
        nn.ResidualMLP((5, 2), width=16, heads=3, key=KEY)


@pytest.mark.slow
def test_one_network_learns_the_conditional_and_the_unconditional_law():
    """Two classes at -1 and 1: samples of a class are of its side, and without one of both sides equally."""
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 2, 4096)
    x = jnp.asarray((2 * classes[:, None] - 1 + 0.2 * rng.normal(size=(4096, 1))).astype("f4"))
    net = nn.ResidualMLP((1,), width=64, depth=2, features=16, conditions={"class": nn.Classes(2)}, key=KEY)
    sde, (apply, params) = ss.VP(), nn.functional(net)
    precond = ss.Preconditioner.from_data(sde, x)

    def loss(params, key, batch):
        key_drop, key_loss = jax.random.split(key)
        cond = {"class": nn.drop(key_drop, batch["class"], 0.3)}
        score = precond.score(Partial(apply, params, cond=cond))
        return ss.denoising_score_matching(key_loss, sde, score, batch["x"], weight=precond.karras_weight())

    trainer = ss.Trainer(loss, optax.adam(2e-3))
    state = trainer.init(jax.random.key(1), params)
    state, _ = trainer.run(state, {"x": x, "class": jnp.asarray(classes)}, steps=1500, batch_size=256)
    table = ss.ddim(sde, ss.log_snr_grid(sde, 20))
    for cond, share in (({"class": jnp.zeros(1, int)}, 0), ({"class": jnp.ones(1, int)}, 1), (None, 0.5)):
        score = precond.score(Partial(apply, state.ema, cond=cond))
        samples = np.asarray(ss.sample(jax.random.key(2), score, table, (1000, 1)))
        assert abs(np.mean(samples > 0) - share) < 0.06
        assert abs(np.mean(np.abs(samples)) - 1) < 0.05 and abs(np.std(np.abs(samples)) - 0.2) < 0.05


def test_an_unknown_class_is_refused_or_not_a_number():
    apply, params = nn.functional(nn.ResidualMLP((2,), width=8, depth=1, conditions=nn.Classes(10), key=KEY))
    params["output"]["kernel"] = jnp.ones_like(params["output"]["kernel"])
    x, c, known = jnp.ones((3, 2)), jnp.zeros(3), jnp.array([-1, 0, 9])
    for wrong in (jnp.array([1, 2, 10]), jnp.array([-2, 0, 1])):
        with pytest.raises(ValueError, match=r"^classes must be within 0..9, or -1 for none, got \["):
            apply(params, x, c, cond=wrong)
        found = jax.jit(apply)(params, x, c, cond=wrong)
        np.testing.assert_array_equal(jnp.isnan(found).all(axis=1), (wrong < -1) | (wrong > 9))
    assert jnp.isfinite(jax.jit(apply)(params, x, c, cond=known)).all()
