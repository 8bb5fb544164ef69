"""Classifiers of noisy data: network, loss and guidance, against mixtures whose p_t(c | x) is exact."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from family import drawn, exact, float64, laws, name, textbook
from jax.tree_util import Partial

import scoresde as ss

KEY, SDE = jax.random.key(5), ss.VP()


NOISED = ss.training.Noised(*np.ones((2, 2, 2)), *np.ones((2, 2)), None)
WEIGHTED = {"weight": ss.likelihood_weight}
NETWORKS = {
    "series": ((9, 2), lambda shape, **k: ss.nn.Classifier(shape, 4, channels=8, attention_levels=(1,), **k)),
    "image": ((8, 6, 1), lambda shape, **k: ss.nn.Classifier(shape, 4, channels=8, blocks=2, **k)),
    "volume": ((4, 4, 4, 1), lambda shape, **k: ss.nn.Classifier(shape, 4, channels=4, **k)),
    "vector": ((5,), lambda shape, **k: ss.nn.ResidualMLP(shape, width=8, depth=2, outputs=4, **k)),
}
SDES = (ss.VP(), ss.VE(sigma_max=20.0), ss.RectifiedFlow())
every_sde = pytest.mark.parametrize(
    "sde", [pytest.param(sde, marks=() if isinstance(sde, ss.VP) else pytest.mark.slow) for sde in SDES], ids=name
)
every_network = pytest.mark.parametrize("kind", NETWORKS)


def perturbed(params):
    """Parameters without zeros, so that everything counts."""
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(1)
    return tree.unflatten([leaf + 0.3 * rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves])


@pytest.mark.parametrize("kind", ("image", "vector"))
def test_a_network_begins_uniform(kind):
    shape, make = NETWORKS[kind]
    apply, params = ss.nn.functional(make(shape, key=KEY))
    log_probs = ss.Preconditioner(SDE, 1.0).classifier(Partial(apply, params))
    found = jax.jit(log_probs)(np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32), 0.3)
    np.testing.assert_allclose(found, np.full((3, 4), -np.log(4)), rtol=1e-6)


@pytest.mark.slow
@every_network
def test_every_parameter_of_a_network_counts(kind):
    shape, make = NETWORKS[kind]
    apply, params = ss.nn.functional(make(shape, key=KEY))
    x, c = jax.random.normal(KEY, (3, *shape)), jnp.array([-2.0, 0.0, 2.0])
    grads = jax.jit(jax.grad(lambda p: jnp.sum(apply(p, x, c)[:, 0] ** 2)))(perturbed(params))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.device_get(jax.tree.leaves(grads)))


@pytest.mark.slow
@every_network
def test_memory_saving_and_bfloat16_do_not_change_a_network(kind):
    shape, make = NETWORKS[kind]
    x, c = jax.random.normal(KEY, (3, *shape)), jnp.array([-2.0, 0.0, 2.0])
    apply, params = ss.nn.functional(make(shape, key=KEY))
    some = perturbed(params)
    plain, key = apply(some, x, c), jax.random.key(1)
    saving, _ = ss.nn.functional(make(shape, remat=True, scan=True, key=KEY))
    np.testing.assert_allclose(saving(some, x, c), plain, rtol=1e-4, atol=1e-4)
    narrow, _ = ss.nn.functional(make(shape, key=KEY), dtype=jnp.bfloat16)
    assert narrow(some, x, c).dtype == jnp.float32
    np.testing.assert_allclose(narrow(some, x, c), plain, atol=0.15 * float(jnp.max(jnp.abs(plain))))
    dropping, _ = ss.nn.functional(make(shape, dropout=0.5, key=KEY))
    np.testing.assert_allclose(dropping(some, x, c), plain, rtol=1e-5)
    assert not np.allclose(dropping(some, x, c, key=key), plain)


@pytest.mark.slow
def test_any_size_will_do_and_constant_images_of_any_size_look_alike_inside():
    """The pooling is a mean: a network without borders (of one position a size) sees no difference."""
    apply, params = ss.nn.functional(ss.nn.Classifier((None, None, 1), 3, channels=4, multipliers=(1,), key=KEY))
    some, c = perturbed(params), jnp.zeros(2)
    for block in (some["input"], some["down"]["0"]["0"]["conv_1"], some["down"]["0"]["0"]["conv_2"]):
        kernel = block["kernel"]
        block["kernel"] = jnp.zeros_like(kernel).at[1, 1].set(kernel[1, 1])
    pattern = jax.random.normal(KEY, (2, 4, 3, 1))
    np.testing.assert_allclose(
        apply(some, jnp.tile(pattern, (1, 2, 3, 1)), c), apply(some, pattern, c), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: ss.nn.Classifier((2,), 3, key=KEY), "Classifier: event_shape must be (*sizes, channels)"),
        (lambda: ss.nn.Classifier((4, 1), 1, key=KEY), "classes must be a whole number of at least 2, got 1"),
        (lambda: ss.nn.Classifier((4, 1), 3, multipliers=(), key=KEY), "multipliers must name at least one level"),
        (lambda: ss.nn.Classifier((4, 1), 3, attention_levels=(2,), key=KEY), "attention_levels must be in 0..1"),
        (lambda: ss.nn.ResidualMLP((4,), outputs=0, key=KEY), "outputs must be a whole number of at least 1, got 0"),
        (
            lambda: ss.nn.Classifier((4, 1), 3, key=KEY)(jnp.ones((2, 5, 1)), jnp.ones(2)),
            "Classifier: x must have shape (B, *(4, 1)), got (2, 5, 1)",
        ),
        (
            lambda: ss.training.classified(lambda x, t: x, NOISED, jnp.ones(2)),
            "classes must be integers (B,) = (2,), got float32 (2,)",
        ),
        (
            lambda: ss.training.classified(lambda x, t: x[:, 0], NOISED, jnp.ones(2, int)),
            "log_probs(x, t) must return (B, K) with B = 2, got (2,)",
        ),
        (
            lambda: ss.guidance.of_class(lambda x, t: x[:, 0])(jnp.ones((2, 2)), 0.1, jnp.ones(2, int)),
            "log_probs(x, t) must return (B, K) with B = 2, got (2,)",
        ),
    ],
)
def test_bad_arguments_are_one_line_errors(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert message in str(error.value) and "\n" not in str(error.value)


def test_the_errors_are_those_of_the_formula_in_numpy(x64):
    rng, classes, t = np.random.default_rng(0), np.array([0, 1, 1, 0, 1]), np.linspace(0.01, 0.9, 5)
    batch = ss.training.Noised(rng.normal(size=(5, 2)), np.zeros((5, 2)), t, np.ones(5), None)
    found = jax.jit(partial(ss.training.classified, exact(SDE)))(batch, classes)
    means, stds, weights = (np.asarray(a) for a in jax.tree.leaves(laws()[-1]))
    for i in range(5):
        alpha, variance, _, _ = textbook(SDE, float(t[i]))
        var = alpha**2 * stds**2 + variance
        squares = np.sum((np.asarray(batch.x_t[i]) - alpha * means) ** 2, axis=1)
        logs = np.log(weights) - squares / (2 * var) - np.log(var)
        assert float(found.error[i]) == pytest.approx(np.logaddexp(*logs) - logs[int(classes[i])], rel=1e-6)
        assert bool(found.right[i]) == (np.argmax(logs) == classes[i])


@pytest.mark.slow
def test_the_loss_is_the_same_whatever_the_draw_of_times(x64):
    (x, classes), log_probs = drawn(20_000), exact(SDE)

    @jax.jit
    def losses(x):
        draws = ss.training.uniform_log_snr, ss.log_normal(0.0, 2.5)
        return [ss.training.cross_entropy(KEY, SDE, log_probs, x, classes, **WEIGHTED, times=times) for times in draws]

    (a, error_a), (b, error_b) = ((v.mean(), v.std() / np.sqrt(len(x))) for v in map(np.asarray, losses(x)))
    assert abs(a - b) < 5 * np.hypot(error_a, error_b) and error_a < 0.03 * a


def test_a_class_out_of_range_is_no_number():
    noised = ss.training.Noised(jnp.ones((3, 2)), jnp.ones((3, 2)), jnp.ones(3), jnp.ones(3), None)
    found = ss.training.classified(lambda x, t: jnp.log(x / 2), noised, jnp.array([0, 2, -1]))
    assert np.isnan(found.error).tolist() == [False, True, True] and found.right[1:].tolist() == [False, False]


@every_sde
def test_of_class_turns_the_score_into_that_of_each_class(x64, sde):
    y, t = jnp.array([0, 1, -1, 1, 0]), sde.t_min + 0.4 * (sde.t_max - sde.t_min)
    scores, log_probs = [law.score(sde) for law in laws()], exact(sde)
    guided = ss.guidance.classifier(sde, scores[-1], ss.guidance.of_class(log_probs))
    mixed = ss.guidance.mixture(scores[:2], log_probs)  # the same function weighs scores
    x = float64(np.random.default_rng(0).normal(size=(5, 2)) * 2)

    @jax.jit
    def of(x):
        return ss.given(guided, y)(x, t), ss.given(guided, y[:1])(x, t), mixed(x, t), [s(x, t) for s in scores]

    each, first, mix, own = of(x)
    np.testing.assert_allclose(each, [own[int(c)][i] for i, c in enumerate(y)], rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(first, own[0], rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(mix, own[2], rtol=1e-8, atol=1e-9)


@pytest.mark.slow
def test_a_short_training_comes_near_the_exact_classifier_and_guides():
    """Cross entropy within 0.01 nats of the least possible, and where the classes overlap most of the way from s to
    s(. | c)."""
    x, classes = drawn(30_000)
    precond = ss.Preconditioner.from_data(SDE, x)
    apply, params = ss.nn.functional(ss.nn.ResidualMLP((2,), width=64, depth=2, outputs=2, key=KEY))

    def loss(params, key, batch):
        log_probs = precond.classifier(partial(apply, params))
        return ss.training.cross_entropy(key, SDE, log_probs, *batch, **WEIGHTED, times=ss.training.uniform_log_snr)

    trainer = ss.Trainer(loss, optax.adam(optax.cosine_decay_schedule(3e-3, 1000)))
    state, _ = trainer.run(trainer.init(KEY, params), (x, classes), steps=1000, batch_size=256)
    log_probs = precond.classifier(Partial(apply, state.ema))
    (fresh, known), (*parts, whole) = drawn(4000, seed=1), laws()
    guided = ss.guidance.classifier(SDE, whole.score(SDE), ss.guidance.of_class(log_probs))
    for log_snr in (4.0, 2.0, 0.0, -2.0):
        t = jnp.full(len(fresh), SDE.time(log_snr))
        x_t = SDE.perturb(fresh, t, jax.random.normal(jax.random.key(2), fresh.shape))
        batch = ss.training.Noised(x_t, x_t, t, jnp.ones(len(fresh)), None)
        ours, truth = (ss.training.classified(f, batch, known).error for f in (log_probs, exact(SDE)))
        assert float(jnp.mean(ours - truth)) < 0.01
        own = jnp.stack([m.score(SDE)(x_t, t) for m in parts])[known, jnp.arange(len(known))]
        missing = jnp.mean((own - whole.score(SDE)(x_t, t)) ** 2)
        assert log_snr > 2 or float(jnp.mean((own - guided(x_t, t, known)) ** 2)) < 0.1 * float(missing)
