"""The probability flow against closed forms, in both directions, and its bookkeeping against counted calls."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family import SDES_IN_TURN, VE, VP, eightfold, float64, name, ring, shifted, textbook, two_modes
from scipy.stats import norm

from scoresde import Cosine, GaussianMixture, decode, encode, probability_flow
from scoresde.flow import slerp

KEY = jax.random.key(7)
TIGHT = {"rtol": 1e-8, "atol": 1e-8, "max_steps": 5000}
# Every float64 test below asks for the same compiled solve of each SDE: eight components, states (8, 2).


def solve(sde, mixture, x, start, end, **settings):
    return probability_flow(sde, eightfold(mixture).score(sde), float64(x), start, end, **TIGHT | settings)


def flow_map(sde, mixture, x, start, end):
    """Gaussian data: x_end = alpha_end m + (std_end/std_start)(x_start - alpha_start m)."""
    m, s = np.asarray(mixture.means, np.float64), np.asarray(mixture.stds, np.float64)
    alpha, variance, _, _ = textbook(sde, np.array([start, end]))
    std = np.sqrt(alpha**2 * s**2 + variance)
    return alpha[1] * m + std[1] / std[0] * (x - alpha[0] * m)


@pytest.mark.parametrize("sde", SDES_IN_TURN, ids=name)
def test_gaussian_flow_map_in_closed_form_both_ways(x64, sde):
    mixture = shifted()
    noise = 2 * np.random.default_rng(0).normal(size=(8, 2))
    inner = sde.t_min + 0.3 * (sde.t_max - sde.t_min)
    for start, end in ((sde.t_max, sde.t_min), (sde.t_min, sde.t_max), (inner, sde.t_max), (sde.t_max, inner)):
        x = noise * float(sde.sigma(start)) + float(sde.alpha(start)) * 1.5
        flow = solve(sde, mixture, x, start, end)
        np.testing.assert_allclose(flow.x, flow_map(sde, mixture, x, start, end), rtol=1e-6, atol=1e-6)
        assert np.all(flow.success) and flow.message == ""


@pytest.mark.parametrize("sde", SDES_IN_TURN, ids=name)
def test_float32_at_the_default_tolerance(sde):
    """In units of the marginal's std the error stays near the tolerance although every number is float32."""
    mixture = shifted()
    x = np.asarray(mixture.sample(KEY, 64))
    there = probability_flow(sde, mixture.score(sde), x, sde.t_min, sde.t_max)
    assert there.x.dtype == jnp.float32
    exact = flow_map(sde, mixture, x.astype("f8"), sde.t_min, sde.t_max)
    scale = np.sqrt(textbook(sde, sde.t_max)[1])
    assert np.max(np.abs(there.x - exact)) / scale < 1e-4
    back = probability_flow(sde, mixture.score(sde), exact.astype("f4"), sde.t_max, sde.t_min)
    assert np.max(np.abs(back.x - x)) < 3e-4


@pytest.mark.parametrize("sde", SDES_IN_TURN, ids=name)
def test_a_mixture_goes_there_and_back_and_keeps_its_quantiles(x64, sde):
    """Both coordinates of these two modes are independent: in each the flow keeps quantiles, so that the CDF at t_max
    of the latent is the CDF at t_min of the point. And the way back leads to the point."""
    means, stds, weights = np.array([-1.2, 1.0]), np.array([0.3, 0.3]), np.array([0.35, 0.65])
    mixture = GaussianMixture(np.stack([means, [0.4, 0.4]], 1), stds, weights)
    x = np.stack([np.linspace(-2, 2, 8), np.linspace(1, -1, 8)], 1)
    latent = solve(sde, mixture, x, sde.t_min, sde.t_max)
    quantiles = []
    for t, state in ((sde.t_min, x), (sde.t_max, np.asarray(latent.x))):
        alpha, variance, _, _ = textbook(sde, t)
        quantiles.append(norm.cdf((state[:, :1] - alpha * means) / np.sqrt(alpha**2 * stds**2 + variance)) @ weights)
    np.testing.assert_allclose(quantiles[1], quantiles[0], atol=3e-6)
    back = solve(sde, mixture, latent.x, sde.t_max, sde.t_min)
    np.testing.assert_allclose(back.x, x, atol=3e-6)


def test_joint_and_per_example_solves_agree_and_joint_takes_one_sequence(x64):
    sde, mixture = Cosine(), two_modes()
    x = np.asarray(sde.prior_sample(KEY, (8, 2)))
    alone = solve(sde, mixture, x, sde.t_max, sde.t_min)
    joint = solve(sde, mixture, x, sde.t_max, sde.t_min, joint=True)
    np.testing.assert_allclose(joint.x, alone.x, atol=1e-6)
    assert len(set(joint.num_evals.tolist())) == 1 and len(set(alone.num_evals.tolist())) > 1
    assert joint.num_evals[0] >= alone.num_evals.max() - 6  # the worst example sets the pace
    # alone or among others, an example takes the same steps
    others = solve(sde, mixture, np.concatenate([x[:1], 3 * x[1:]]), sde.t_max, sde.t_min)
    np.testing.assert_allclose(others.x[0], alone.x[0], rtol=1e-9, atol=1e-11)
    assert others.num_evals[0] == alone.num_evals[0] and np.any(others.num_evals[1:] != alone.num_evals[1:])


CALLS = []


@pytest.mark.parametrize(
    "solver",
    [
        None,
        diffrax.Heun(),
        *(pytest.param(s, marks=pytest.mark.slow) for s in (diffrax.Dopri5(), diffrax.Bosh3(), diffrax.Dopri8())),
    ],
    ids=name,
)
def test_num_evals_counts_the_calls_within_the_interval(solver):
    sde = VP()

    def score(x, t):
        jax.debug.callback(lambda t: CALLS.append(float(t)), t)
        return -x / (0.01 * sde.alpha(t) ** 2 + sde.variance(t))  # std 0.1: some steps are rejected

    CALLS.clear()
    flow = probability_flow(
        sde, score, jnp.ones((3, 2)), sde.t_max, sde.t_min, rtol=1e-4, atol=1e-4, solver=solver, joint=True
    )
    jax.block_until_ready(flow.x)
    jax.effects_barrier()
    assert np.all(flow.num_evals == len(CALLS)), (flow.num_evals, len(CALLS))
    assert np.all(flow.success)
    assert min(CALLS) >= np.float32(sde.t_min) and max(CALLS) <= np.float32(sde.t_max)


@pytest.mark.parametrize("sde", SDES_IN_TURN, ids=name)
def test_the_answer_does_not_depend_on_sigma_data_and_improves_with_the_tolerance(x64, sde):
    x = np.asarray(ring().sample(KEY, 8))

    def latent(tolerance, sigma_data):
        settings = {"rtol": tolerance, "atol": tolerance, "sigma_data": sigma_data}
        return np.asarray(solve(sde, ring(), x, sde.t_min, sde.t_max, **settings).x)

    exact = latent(1e-11, 0.7)
    scale = float(sde.sigma(sde.t_max))
    errors = [np.max(np.abs(latent(tolerance, 0.7) - exact)) / scale for tolerance in (1e-3, 1e-5, 1e-7)]
    assert errors[0] < 0.3 and errors[1] < errors[0] / 5 and errors[2] < errors[1] / 5 and errors[2] < 1e-5, errors
    for sigma_data in (0.25, 3.0):
        np.testing.assert_allclose(latent(1e-9, sigma_data), exact, atol=3e-6 * scale)


def test_too_few_steps_is_a_failure_with_a_message_and_no_wrong_number():
    sde, mixture = VP(), ring()
    x = mixture.sample(KEY, 4)
    flow = probability_flow(sde, mixture.score(sde), x, sde.t_min, sde.t_max, max_steps=4)
    assert not np.any(flow.success) and np.all(np.isnan(flow.x))
    assert "\n" not in flow.message
    assert flow.message.startswith("4 of 4 examples (first: 0) stopped at max_steps = 4") and "raise" in flow.message
    assert np.all(flow.at_limit) and np.all((flow.time > sde.t_min) & (flow.time < sde.t_max))


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_non_finite_score_is_a_failure_of_its_example_alone(bad, joint):
    sde = VP()

    def score(x, t):
        return jnp.where(x[:, :1] > 50, bad, -x)

    flow = probability_flow(sde, score, jnp.array([[0.1, 0.2], [1e4, 0.0], [0.3, 0.1]]), 0.9, sde.t_min, joint=joint,
                            max_steps=200)  # fmt: skip
    expected = [False] * 3 if joint else [True, False, True]
    np.testing.assert_array_equal(flow.success, expected)
    np.testing.assert_array_equal(np.isnan(flow.x).all(1), np.logical_not(expected))
    assert ("3 of 3" if joint else "1 of 3 examples (first: 1)") in flow.message


def test_a_score_that_turns_bad_on_the_way_is_a_failure():
    sde = VP()
    flow = probability_flow(sde, lambda x, t: jnp.where(t < 0.3, jnp.nan, -x), jnp.ones((2, 2)), 1.0, sde.t_min,
                            max_steps=200)  # fmt: skip
    assert not np.any(flow.success) and np.all(np.isnan(flow.x)) and not np.any(flow.at_limit)
    np.testing.assert_allclose(flow.time, 0.3, atol=1e-4)
    assert flow.message.startswith("2 of 2 examples (first: 0) met a score that is not finite or jumps at t = 0.3:")


def test_the_two_reasons_of_failure_are_told_apart_by_example():
    """Example 0 has an easy score, 1 an oscillating one that wants more steps, 2 one that is NaN below t = 0.5."""
    sde = VP()

    def score(x, t):
        kind = jnp.round(x[:, 1:])
        hard = jnp.where(kind == 1, 1e3 * jnp.sin(1e3 * t), 0.0)
        return jnp.where((kind == 2) & (t < 0.5), jnp.nan, -x + hard * (jnp.arange(2) == 0)[None])

    x = jnp.array([[0.3, 0.0], [0.1, 1.0], [0.2, 2.0]])
    flow = probability_flow(sde, score, x, 1.0, 0.3, max_steps=60)
    np.testing.assert_array_equal(flow.success, [True, False, False])
    np.testing.assert_array_equal(flow.at_limit, [False, True, False])
    assert flow.time[0] == np.float32(0.3) and 0.3 < flow.time[1] < 1 and abs(flow.time[2] - 0.5) < 1e-4
    parts = flow.message.split("; ")
    assert parts[0].startswith("1 of 3 examples (first: 1) stopped at max_steps = 60 at t = 0.")
    assert parts[1].startswith("1 of 3 examples (first: 2) met a score that is not finite or jumps at t = 0.5:")


def test_no_distance_is_no_change():
    flow = probability_flow(VP(), lambda x, t: -x, jnp.ones((2, 3)), 0.5, 0.5)
    np.testing.assert_allclose(flow.x, 1.0, rtol=1e-6)
    assert np.all(flow.success)


def test_one_trace_per_score_and_shape_and_inside_jit():
    traces = []

    def score(x, t):
        traces.append(1)
        return -x / 2500

    sde = VE()
    x = jnp.ones((2, 3))
    outside = probability_flow(sde, score, x, 1.0, 0.5)
    count = len(traces)
    for start, end, rtol in ((0.9, 0.1, 1e-4), (0.1, 1.0, 1e-5), (np.float32(0.5), 0.2, 1e-3)):
        probability_flow(sde, score, x, start, end, rtol=rtol, solver=diffrax.Tsit5(), sigma_data=0.5)
    assert len(traces) == count
    inside = jax.jit(lambda x, t: probability_flow(sde, score, x, t, 0.5))(x, 1.0)
    np.testing.assert_allclose(inside.x, outside.x, rtol=1e-5)
    np.testing.assert_array_equal(inside.num_evals, outside.num_evals)


@pytest.mark.parametrize("joint", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("event", [(), (2, 2, 1)])
def test_events_of_any_shape(event, joint):
    sde = VP()
    x = jnp.ones((2, *event))
    flow = probability_flow(sde, lambda x, t: -x, x, 1.0, 0.1, joint=joint)  # the standard normal stays
    np.testing.assert_allclose(flow.x, x, rtol=1e-4)
    assert flow.num_evals.shape == flow.success.shape == (2,)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"t_start": 1.1}, r"t_start must lie in \[t_min, t_max\] = \[9\.99006e-06, 1\], got 1\.1"),
        ({"t_end": 0.0}, r"t_end must lie in \[t_min, t_max\] = .*, got 0\.0"),
        ({"t_end": np.nan}, r"t_end must lie in .*, got nan"),
        ({"rtol": 0.0}, r"rtol must be positive and finite, got 0\.0"),
        ({"atol": -1.0}, r"atol must be positive and finite, got -1\.0"),
        ({"sigma_data": np.inf}, r"sigma_data must be positive and finite, got inf"),
        ({"max_steps": 0}, r"max_steps must be positive and finite, got 0"),
        ({"steps": 0}, r"steps must be positive and finite, got 0"),
        ({"save_at": [0.1, 0.5]}, r"save_at must lead strictly from t_start = 1 to t_end = .*, got \[0\.1"),
        ({"save_at": [0.5, 0.5]}, r"save_at must lead strictly from t_start = 1 to t_end = "),
        ({"save_at": [1.2, 0.5]}, r"save_at must lead strictly from t_start = 1 to t_end = "),
        ({"save_at": 0.5}, r"save_at must be one-dimensional with at least one time, got shape \(\)"),
        ({"solver": diffrax.Euler()}, r"solver must be an explicit Runge-Kutta method such as diffrax\.Tsit5\(\), got"),
        ({"solver": "tsit5"}, r"solver must be an explicit Runge-Kutta method"),
        ({"score": 3.0}, r"score must be a function \(x, t\) -> array like x, got float"),
        ({"score": lambda x, t: x[:, :1]}, r"score\(x, t\) must return the shape of x, \(1, 3\), got \(1, 1\)"),
        ({"x": jnp.array(1.0)}, r"x must have shape \(B, \*event\)"),
    ],
)
def test_refusals(settings, message):
    arguments = {"score": lambda x, t: -x, "x": jnp.ones((2, 3)), "t_start": 1.0, "t_end": VP().t_min} | settings
    with pytest.raises(ValueError, match="^" + message) as error:
        probability_flow(VP(), **arguments)
    assert "\n" not in str(error.value)


def test_times_rounded_to_float32_are_inside():
    sde = VP(t_min=0.0123, t_max=0.77)
    flow = probability_flow(sde, lambda x, t: -x, jnp.ones((1, 1)), np.float32(0.77), np.float32(0.0123))
    np.testing.assert_allclose(flow.x, 1.0, rtol=1e-4)


def test_traced_times_and_x64_states(x64):
    sde = Cosine()
    x = np.full((8, 2), 0.3)
    score = shifted().score(sde)
    got = jax.jit(lambda t: probability_flow(sde, score, x, t, sde.t_min, **TIGHT).x)(0.8)
    np.testing.assert_allclose(got, flow_map(sde, shifted(), x, 0.8, sde.t_min), rtol=1e-6)


@pytest.mark.parametrize(
    ("solver", "order"),
    [
        pytest.param(diffrax.Heun(), 2, marks=pytest.mark.slow),
        pytest.param(diffrax.Bosh3(), 3, marks=pytest.mark.slow),
        (diffrax.Tsit5(), 5),
    ],
    ids=name,
)
def test_fixed_steps_have_the_order_of_their_solver_and_count_exactly(x64, solver, order):
    sde, mixture = VP(), shifted()
    x = 2 * np.random.default_rng(0).normal(size=(8, 2))
    exact = flow_map(sde, mixture, x, sde.t_max, sde.t_min)
    errors = []
    for steps in (8, 16, 32):
        flow = solve(sde, mixture, x, sde.t_max, sde.t_min, solver=solver, steps=steps)
        stages = {2: 2, 3: 3, 5: 6}[order]
        assert np.all(flow.num_evals == steps * stages + (order != 2)) and np.all(flow.success)
        errors.append(np.max(np.abs(flow.x - exact)))
    assert np.log2(errors[1] / errors[2]) > order - 0.5, errors
    assert errors[2] < {2: 5e-3, 3: 3e-4, 5: 1e-6}[order], errors


@pytest.mark.parametrize("joint", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("settings", [{}, {"steps": 40}], ids=["adaptive", "fixed"])
def test_saved_states_are_those_of_the_flow_map(x64, joint, settings):
    """Both directions; the ends may be among the times, and saving changes neither the end nor the evaluations."""
    sde, mixture = Cosine(), shifted()
    x = 2 * np.random.default_rng(0).normal(size=(8, 2))
    times = np.array([sde.t_max, 0.8, 0.5, 0.2, 0.01, sde.t_min])
    for start, end, save_at in ((sde.t_max, sde.t_min, times), (sde.t_min, sde.t_max, times[::-1])):
        flow = solve(sde, mixture, x, start, end, save_at=save_at, joint=joint, **settings)
        assert flow.path.shape == (6, 8, 2)
        for t, state in zip(save_at, np.asarray(flow.path), strict=True):
            np.testing.assert_allclose(state, flow_map(sde, mixture, x, start, t), rtol=1e-5, atol=1e-5)
        plain = solve(sde, mixture, x, start, end, joint=joint, **settings)
        np.testing.assert_allclose(plain.x, flow.x, rtol=1e-10)
        np.testing.assert_array_equal(plain.num_evals, flow.num_evals)
        assert plain.path is None


def test_a_non_finite_score_fails_with_fixed_steps_too():
    flow = probability_flow(VP(), lambda x, t: jnp.where(x[:, :1] > 50, jnp.nan, -x), jnp.array([[0.1], [1e4]]), 0.9,
                            VP().t_min, steps=10, save_at=[0.5])  # fmt: skip
    np.testing.assert_array_equal(flow.success, [True, False])
    np.testing.assert_array_equal(np.isnan(flow.path[0, :, 0]), [False, True])
    assert np.isnan(flow.time[1]) and "(first: 1) met a score that is not finite or jumps: check" in flow.message
    same = probability_flow(VP(), lambda x, t: -x, jnp.ones((2, 3)), 0.5, 0.5, steps=3)
    np.testing.assert_allclose(same.x, 1.0, rtol=1e-6)


@pytest.mark.parametrize("sde", SDES_IN_TURN, ids=name)
def test_the_round_trip_error_falls_with_the_tolerance(x64, sde):
    x = np.asarray(two_modes().sample(KEY, 8), np.float64)
    score = eightfold(two_modes()).score(sde)
    errors = []
    for tolerance in (1e-4, 1e-6, 1e-8):
        settings = TIGHT | {"rtol": tolerance, "atol": tolerance}
        latent = encode(sde, score, float64(x), **settings)
        back = decode(sde, score, latent.x, **settings)
        errors.append(np.max(np.abs(back.x - x)))
    assert errors[0] < 0.02 and errors[1] < 5e-4 and errors[2] < 1e-5 and errors[2] < errors[1] < errors[0], errors


def test_slerp_turns_at_a_constant_rate_and_keeps_the_sphere(x64):
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 5, 3, 2))
    a, b = (v / np.linalg.norm(v.reshape(5, -1), axis=1)[:, None, None] * 3 for v in (a, b))
    theta = np.arccos(np.sum(a * b, (1, 2)) / 9)
    for w in (0.0, 0.25, 0.5, 1.0, np.linspace(0, 1, 5)):
        c = np.asarray(slerp(a, b, w))
        np.testing.assert_allclose(np.linalg.norm(c.reshape(5, -1), axis=1), 3, rtol=1e-12)
        np.testing.assert_allclose(np.sum(a * c, (1, 2)) / 9, np.cos(w * theta), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(np.sum(b * c, (1, 2)) / 9, np.cos((1 - w) * theta), rtol=1e-9, atol=1e-12)


def test_slerp_of_parallel_opposite_and_vanishing_states():
    a = jnp.array([[3.0, 4.0]])
    np.testing.assert_allclose(slerp(a, a, 0.3), a, rtol=1e-6)
    np.testing.assert_allclose(slerp(a, 2 * a, 0.25), 1.25 * a, rtol=1e-6)
    np.testing.assert_allclose(slerp(a, a * (1 + 1e-6), 0.5), a, rtol=1e-5)
    assert np.all(np.isnan(slerp(a, -a, 0.5)))
    np.testing.assert_allclose(slerp(jnp.zeros((1, 2)), a, 1.0), a, rtol=1e-6)
    with pytest.raises(ValueError, match=r"^a and b must have one shape \(B, \*event\), got \(1, 2\) and \(1, 3\)"):
        slerp(a, jnp.ones((1, 3)), 0.5)
    with pytest.raises(ValueError, match=r"^weight must be a scalar or have shape \(1,\), got \(2,\)"):
        slerp(a, a, jnp.ones(2))
