"""Training: one step by hand, schedules as used, scanned against single steps bit for bit, epochs, buffers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scoresde import VP, Preconditioner, Trainer, denoising_score_matching, nn
from scoresde.training import power, projected, warmed
from scoresde.training.average import power_exponent
from scoresde.training.order import Order

KEY = jax.random.key(19)


def params():
    return {"w": jnp.array([[0.5, -1.0], [2.0, 0.3]]), "deep": {"b": jnp.array([0.1, -0.2])}}


def loss(params, key, batch):
    noise = jax.random.normal(key, batch["x"].shape)
    return jnp.sum((batch["x"] @ params["w"] + params["deep"]["b"][None] - noise) ** 2, axis=1)


def data(n=12):
    return {"x": jnp.asarray(np.random.default_rng(0).normal(size=(n, 2)), jnp.float32)}


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("clip", [0.7, 1e6, float("inf")])
def test_a_step_is_the_hand_written_one(clip):
    """Gradient, clipping by global norm, Adam and the average with its warm-up, in NumPy and optax, for three steps."""
    trainer = Trainer(loss, optax.adam(0.05), averages=(warmed(0.2),), clip=clip)
    state, chain = trainer.init(KEY, params()), optax.adam(0.05)
    p, opt = params(), chain.init(params())
    average = jax.tree.map(np.asarray, p)
    step = jax.jit(trainer.step)
    for n in range(3):
        batch = {"x": data()["x"][4 * n : 4 * n + 4]}
        key = jax.random.fold_in(jax.random.fold_in(KEY, 0), n)
        value, grads = jax.value_and_grad(lambda p, key=key, batch=batch: jnp.mean(loss(p, key, batch)))(p)
        norm = np.sqrt(sum(np.sum(np.asarray(g, np.float64) ** 2) for g in jax.tree.leaves(grads)))
        grads = jax.tree.map(lambda g, norm=norm: g * np.float32(min(1, clip / norm)), grads)
        updates, opt = chain.update(grads, opt, p)
        p = jax.tree.map(lambda a, b: a + b, p, updates)
        decay = min(0.2, (1 + n) / (10 + n))
        average = jax.tree.map(lambda a, b, d=decay: d * a + (1 - d) * np.asarray(b), average, p)
        state, metrics = step(state, batch)
        np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
        np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
        assert state.step == n + 1
        for mine, theirs in ((state.params, p), (state.ema, average)):
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), mine, theirs)


def test_the_average_warms_up_then_keeps_its_decay():
    """With parameters that jump to a constant, the average's distance is the product of the decays."""
    trainer = Trainer(lambda p, key, batch: 0 * p["a"], optax.sgd(0.0), averages=(warmed(0.9),))
    state = trainer.init(KEY, {"a": jnp.array(1.0)})
    state = dataclasses.replace(state, params={"a": jnp.array(0.0)})
    state, _ = trainer.run(state, jnp.zeros(3), steps=120, batch_size=1)
    expected = np.prod([min(0.9, (1 + n) / (10 + n)) for n in range(120)])
    np.testing.assert_allclose(state.ema["a"], expected, rtol=1e-4)


def test_the_average_differs_from_the_raw_parameters_after_one_step():
    trainer = Trainer(loss, optax.adam(0.05))
    state, _ = trainer.run(trainer.init(KEY, params()), data(), steps=1, batch_size=4)
    for raw, average, start in zip(*map(jax.tree.leaves, (state.params, state.ema, params())), strict=True):
        assert np.all(raw != average) and np.all(average != start)


def test_the_configured_learning_rate_is_the_one_used():
    """SGD on a loss of unit slope moves by exactly the rate: at step 0, in the warm-up, at its end and at the last."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, 0.3, warmup_steps=4, decay_steps=10, end_value=0.02)
    trainer = Trainer(lambda p, key, batch: -p + 0 * batch, optax.sgd(schedule), clip=float("inf"))
    state = trainer.init(KEY, jnp.array(0.0))
    moves, before = [], 0.0
    for _ in range(12):
        state, _ = trainer.run(state, jnp.zeros(5), steps=1, batch_size=2)
        moves.append(float(state.params) - before)
        before = float(state.params)
    warmup = [0.3 * n / 4 for n in range(4)]
    cosine = [0.02 + 0.28 * 0.5 * (1 + np.cos(np.pi * n / 6)) for n in range(6)]
    np.testing.assert_allclose(moves, warmup + cosine + [0.02, 0.02], atol=1e-6)


TRAINER = Trainer(loss, optax.adam(0.03), averages=(warmed(0.9),))


def run_in(pieces, trainer=TRAINER, batch_size=5, n=12):
    state, metrics = trainer.init(KEY, params()), []
    for steps in pieces:
        state, m = trainer.run(state, data(n), steps=steps, batch_size=batch_size)
        metrics.append(m)
    return state, jax.tree.map(lambda *v: np.concatenate(v), *metrics)


def test_k_scanned_steps_are_k_single_steps_bit_for_bit():
    """And any other cut, across the borders of epochs (5 does not divide 12) and with batches larger than the data."""
    for batch_size, n in ((5, 12), (7, 3)):
        whole = run_in([13], batch_size=batch_size, n=n)
        for pieces in ([1] * 13, [6, 7]):
            cut = run_in(pieces, batch_size=batch_size, n=n)
            equal(cut[0], whole[0])
            equal(cut[1], whole[1])


def test_a_state_saved_and_restored_continues_bit_for_bit():
    state, _ = TRAINER.run(TRAINER.init(KEY, params()), data(), steps=5, batch_size=5)
    key = np.asarray(jax.random.key_data(state.key))
    saved = jax.tree.map(np.array, dataclasses.replace(state, key=key))
    onward, _ = TRAINER.run(state, data(), steps=6, batch_size=5)
    restored = jax.tree.map(jnp.asarray, dataclasses.replace(saved, key=jax.random.wrap_key_data(key)))
    other = Trainer(loss, optax.adam(0.03), averages=(warmed(0.9),))  # another process makes its own trainer
    restored, _ = other.run(restored, data(), steps=6, batch_size=5)
    equal(restored, onward)
    equal(restored, run_in([11])[0])


def order_of(key, steps, batch_size, n, start=0):
    """The indices that training visits, read from a loss that only records them."""
    trainer = Trainer(lambda p, key, batch: p * 0 + batch, optax.sgd(0.0))
    state = trainer.init(key, jnp.array(0.0))
    state = dataclasses.replace(state, step=jnp.array(start, jnp.int32))
    seen = []
    for _ in range(steps):
        state, metrics = trainer.run(state, jnp.arange(n, dtype=jnp.float32), steps=1, batch_size=batch_size)
        seen.append(float(metrics["loss"][0]))
    return np.array(seen)


def test_each_epoch_visits_every_example_once_in_an_order_of_its_own():
    n = 7
    visits = order_of(KEY, 28, 1, n).reshape(4, n)
    for epoch in visits:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(n))
    assert len({tuple(epoch) for epoch in visits}) == 4
    np.testing.assert_array_equal(order_of(KEY, 3, 1, n, start=16), visits.ravel()[16:19])  # wherever one starts
    assert not np.array_equal(order_of(jax.random.key(1), 7, 1, n), visits[0])
    means = order_of(KEY, 9, 3, n)  # batches of 3 run over the same order
    np.testing.assert_allclose(means, visits.ravel()[:27].reshape(9, 3).mean(1), rtol=1e-6)


def test_the_key_of_a_step_is_fresh():
    trainer = Trainer(lambda p, key, batch: p * 0 + jax.random.normal(key, batch.shape), optax.sgd(0.0))
    _, metrics = trainer.run(trainer.init(KEY, jnp.array(0.0)), jnp.zeros(4), steps=50, batch_size=4)
    assert len(set(np.asarray(metrics["loss"]).tolist())) == 50


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.adam(0.1),
        optax.contrib.schedule_free_adamw(0.1),
        optax.adamw(0.1),
        optax.sgd(0.1, momentum=0.9),
    ],
    ids=["adam", "schedule_free", "adamw", "sgd"],
)
def test_donation_takes_nothing_that_is_not_its_own(optimizer):
    """The state is donated; the caller's parameters, key and data stay usable, and no buffer is given away twice."""
    mine, key, batch = params(), jax.random.key(3), data()
    trainer = Trainer(loss, optimizer)
    state = trainer.init(key, mine)
    state, _ = trainer.run(state, batch, steps=2, batch_size=4)
    state, _ = trainer.run(state, batch, steps=2, batch_size=4)
    equal(mine, params())
    equal(key, jax.random.key(3))
    equal(batch, data())
    pointers = [a.unsafe_buffer_pointer() for a in jax.tree.leaves((state.params, state.ema))]
    assert len(set(pointers)) == len(pointers)
    trainer.run(trainer.init(key, mine), batch, steps=1, batch_size=4)  # and serve again


def test_one_compilation_for_a_length_and_a_batch_size():
    traces = []

    def traced(p, key, batch):
        traces.append(1)
        return loss(p, key, batch)

    trainer = Trainer(traced, optax.adam(0.1))
    state = trainer.init(KEY, params())
    for _ in range(3):
        state, _ = trainer.run(state, data(), steps=2, batch_size=4)
    assert len(traces) <= 2
    assert Trainer(traced, trainer.optimizer) == trainer and hash(Trainer(traced, trainer.optimizer)) == hash(trainer)


def test_the_loss_falls_and_the_average_learns_the_score():
    """Noise prediction of N(0, 0.3^2) data by F = w u + b c u: the average ends near the best that this form can do."""
    sde = VP()
    x = 0.3 * jax.random.normal(KEY, (512, 1))
    pre = Preconditioner.from_data(sde, x)

    def network(p, u, c):
        return (p["w"] + p["b"] * c[:, None]) * u + p["o"]

    def objective(p, key, batch):
        return denoising_score_matching(key, sde, pre.score(jax.tree_util.Partial(network, p)), batch)

    start = {"w": jnp.array(1.5), "b": jnp.array(-0.5), "o": jnp.array(0.7)}
    trainer = Trainer(objective, optax.adam(0.05), averages=(warmed(0.95),))
    state, metrics = trainer.run(trainer.init(KEY, start), x, steps=300, batch_size=128)
    assert np.mean(metrics["loss"][-50:]) < 0.5 * np.mean(metrics["loss"][:10])
    # With sigma_data right the velocity of a centred Gaussian is zero: E[v | u] = 0.
    for value in jax.tree.leaves(state.ema):
        assert abs(float(value)) < 0.08


def drawn(key, batch):
    """All random numbers of ``loss`` for the whole batch at once."""
    return {"x": batch["x"], "noise": jax.random.normal(key, batch["x"].shape)}


def loss_of_drawn(params, key, batch):
    assert key is None
    return jnp.sum((batch["x"] @ params["w"] + params["deep"]["b"][None] - batch["noise"]) ** 2, axis=1)


def test_microbatches_give_the_result_of_the_whole_batch():
    """Same numbers for every example, whatever the number of parts. (Without ``draw`` each part draws anew.)"""
    whole, _ = run_in([4], TRAINER, batch_size=8)
    for parts in (1, 4):
        trainer = dataclasses.replace(TRAINER, loss=loss_of_drawn, draw=drawn, microbatches=parts)
        state, _ = run_in([4], trainer, batch_size=8)
        for a, b in zip(
            jax.tree.leaves((state.params, state.ema)), jax.tree.leaves((whole.params, whole.ema)), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=2e-5)
    alone = dataclasses.replace(TRAINER, microbatches=4)
    assert not np.allclose(run_in([4], alone, batch_size=8)[0].params["w"], whole.params["w"], rtol=1e-3)
    with pytest.raises(ValueError, match="microbatches must divide the batch of 6, got 4"):
        run_in([1], alone, batch_size=6)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_carry_moves_once_a_step_by_what_the_whole_batch_showed(parts):
    """It keeps the batch that came last, in its order, and how many came; the loss sees the one before."""

    def loss(params, key, batch, carry):
        return params * 0 + batch + carry["count"], {"squares": jnp.stack([batch, batch**2], axis=1)}

    def update(carry, seen):
        return {"last": seen["squares"], "count": carry["count"] + 1}

    carry = {"last": jnp.zeros((4, 2)), "count": jnp.array(0.0)}
    trainer = Trainer(loss, optax.sgd(0.0), carry=carry, update=update, microbatches=parts)
    batches = jnp.arange(12.0).reshape(3, 4)
    state, metrics = trainer.run_batches(trainer.init(KEY, jnp.array(0.0)), batches)
    assert state.carry["count"] == 3
    np.testing.assert_array_equal(state.carry["last"], np.stack([batches[2], batches[2] ** 2], axis=1))
    np.testing.assert_allclose(metrics["loss"], np.mean(batches, axis=1) + np.arange(3), rtol=1e-6)


def test_every_average_is_a_naive_loop_with_its_own_profile():
    def constant(n):
        return 0.5 + 0 * n

    def mean(n):
        return n / (n + 1)

    trainer = dataclasses.replace(TRAINER, averages=(mean, constant, warmed(0.2)))
    state = trainer.init(KEY, params())
    expected = [np.asarray(params()["w"], np.float64)] * 3
    history = []
    for n in range(5):
        state, _ = trainer.run(state, data(), steps=1, batch_size=4)
        history.append(np.asarray(state.params["w"], np.float64))
        for i, d in enumerate((n / (n + 1), 0.5, min(0.2, (1 + n) / (10 + n)))):
            expected[i] = d * expected[i] + (1 - d) * history[-1]
    for average, value in zip(state.averages, expected, strict=True):
        np.testing.assert_allclose(average["w"], value, rtol=1e-5)
    np.testing.assert_allclose(state.ema["w"], np.mean(history, axis=0), rtol=1e-5)


def test_steps_that_are_not_finite_are_skipped_and_reported():
    """Adam on batches of which three are poisoned: the state is that of the good ones alone, the counts are exact."""

    def plain(params, key, batch):
        return params["a"] ** 2 * batch + 0 * params["b"] / batch

    trainer = Trainer(plain, optax.adam(0.1), averages=(lambda n: 0.5 + 0 * n,), level=lambda batch: jnp.arange(4.0))
    start = {"a": jnp.array(1.0), "b": jnp.array(2.0)}
    good, bad = np.full((3, 4), 0.5, np.float32), np.array([[1, 1, np.inf, 1]], np.float32)
    batches = np.concatenate([good[:1], bad, bad, good[1:], bad])
    state, metrics = trainer.run_batches(trainer.init(KEY, start), jnp.asarray(batches))
    clean, _ = trainer.run_batches(trainer.init(KEY, start), jnp.asarray(good))
    equal((state.params, state.averages, state.opt_state), (clean.params, clean.averages, clean.opt_state))
    assert metrics["skipped"].tolist() == [0, 1, 2, 0, 0, 1]
    assert (state.step, state.skipped.total, state.skipped.in_a_row) == (6, 3, 1)
    report = "step 5: loss inf at noise level 2, gradient not finite in 1 of 2 leaves, first ['a']"
    assert state.skipped.report(start) == report
    onward, _ = trainer.run_batches(state, jnp.asarray(good))
    assert (onward.skipped.total, onward.skipped.in_a_row, onward.skipped.step) == (3, 0, 5)


def test_batches_from_the_host_are_the_steps_one_by_one_bit_for_bit():
    """And the order of the device: that of ``Order`` for the key fold_in(key, 1)."""
    order = Order.of(jax.random.fold_in(KEY, 1), jnp.arange(3), 12)
    index = order.examples(jnp.arange(30) // 12, jnp.arange(30, dtype=jnp.uint32) % 12).reshape(6, 5)
    batches = {"x": data()["x"][index]}
    state, metrics = TRAINER.run_batches(TRAINER.init(KEY, params()), jax.tree.map(lambda a: a[:4], batches))
    state, more = TRAINER.run_batches(state, jax.tree.map(lambda a: a[4:], batches))
    whole, all_metrics = run_in([6])
    equal(state, whole)
    np.testing.assert_array_equal(np.concatenate([metrics["loss"], more["loss"]]), all_metrics["loss"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"averages": ()}, r"averages must be a tuple of profiles such as \(warmed\(0\.999\),\), got \(\)"),
        ({"averages": warmed(0.9)}, r"averages must be a tuple of profiles"),
        ({"microbatches": 0}, r"microbatches must be at least 1, got 0"),
        ({"clip": 0.0}, r"clip must be positive, got 0\.0"),
        ({"clip": float("nan")}, r"clip must be positive, got nan"),
        ({"carry": jnp.zeros(1)}, r"carry and update go together: a value, and a function that moves it; one is m"),
        ({"update": lambda carry, seen: carry}, r"carry and update go together"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ValueError, match=message):
        Trainer(loss, optax.sgd(0.1), **settings)


def test_a_projected_optimiser_ends_each_step_on_the_set_that_it_is_projected_on():
    """Adam's step, then weights of unit mean square and the rest as Adam left it, by hand for three steps."""
    start = {"weight": jnp.array([[0.5, -1.0], [2.0, 0.3]]), "b": jnp.array([0.1, -0.2])}
    target = {"weight": jnp.ones((2, 2)), "b": jnp.ones(2)}
    adam = optax.adam(0.1)
    optimizer = projected(adam, nn.normalise_weights)

    def gradient(params):
        return jax.tree.map(lambda p, t: 2 * (p - t), params, target)

    ours, expected, state, inner = start, start, optimizer.init(start), adam.init(start)
    for _ in range(3):
        updates, state = optimizer.update(gradient(ours), state, ours)
        ours = optax.apply_updates(ours, updates)
        updates, inner = adam.update(gradient(expected), inner, expected)
        expected = optax.apply_updates(expected, updates)
        rms = np.sqrt(np.mean(np.square(expected["weight"]), axis=0, keepdims=True))
        expected = expected | {"weight": expected["weight"] / (rms + 1e-4)}
        for name in start:
            np.testing.assert_allclose(ours[name], expected[name], rtol=1e-6)
    with pytest.raises(ValueError, match="projected: the parameters must be given"):
        optimizer.update(gradient(start), state)


HALVES = (jnp.bfloat16, jnp.float16)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("optimizer", [optax.adam(0.05), optax.sgd(optax.linear_schedule(0.1, 0.01, 9), momentum=0.9)])
def test_parameters_of_half_precision_keep_it_and_their_averages_are_float32(dtype, optimizer):
    """The averages are those of the parameters, rounded or not yet; parts of a batch add up in float32."""
    start = jax.tree.map(lambda p: p.astype(dtype), params())
    trainer = Trainer(loss_of_drawn, optimizer, averages=(warmed(0.9), power(0.1)), draw=drawn, microbatches=2)
    state = trainer.init(KEY, start)
    dtypes = jax.tree.map(lambda a: a.dtype, state)
    expected = [np.asarray(state.params["w"], np.float64)] * 2
    for n in range(6):
        state, metrics = trainer.run(state, data(), steps=1, batch_size=4)
        for i, d in enumerate((min(0.9, (1 + n) / (10 + n)), (n / (n + 1)) ** (power_exponent(0.1) + 1))):
            expected[i] = d * expected[i] + (1 - d) * np.asarray(state.params["w"], np.float64)
    assert jax.tree.map(lambda a: a.dtype, state) == dtypes and metrics["loss"].dtype == jnp.float32
    assert state.params["w"].dtype == dtype and state.skipped.total == 0
    for average, value in zip(state.averages, expected, strict=True):
        assert average["w"].dtype == jnp.float32
        np.testing.assert_allclose(average["w"], value, rtol=float(jnp.finfo(dtype).eps))
