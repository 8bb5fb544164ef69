"""Guidance against Bayes' rule on exact mixtures, closed forms of Gaussians, and the papers' loops in NumPy."""

from functools import partial

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family import assert_moments, float64, name, run_in_numpy, textbook, two_modes

import scoresde as ss
from scoresde import GaussianMixture, guidance
from scoresde.score import each

SDES = (ss.VP(), ss.VE(sigma_max=20.0), ss.RectifiedFlow())
IN_TURN = tuple(pytest.param(s, marks=() if isinstance(s, ss.RectifiedFlow) else pytest.mark.slow) for s in SDES)
every_sde = pytest.mark.parametrize("sde", IN_TURN, ids=name)
KEY = jax.random.key(3)


def parts():
    """The two components of a mixture in two dimensions, and the mixture."""
    whole = two_modes()
    one = [GaussianMixture(whole.means[k : k + 1], whole.stds[k : k + 1], [1.0]) for k in range(2)]
    return *one, whole


def states(sde, t, batch=5, dims=2):
    """Points of the size of x_t, in float64."""
    alpha, variance, _, _ = textbook(sde, t)
    return float64(np.random.default_rng(0).normal(size=(batch, dims)) * np.sqrt(alpha**2 + variance))


def times(sde):
    return [float64(sde.t_min + (sde.t_max - sde.t_min) * u) for u in (1e-3, 0.3, 0.9)]


def counted(score):
    calls = []

    def call(x, t, *cond):
        calls.append(x.shape[0])
        return score(x, t, *cond)

    return call, calls


def by_class(sde):
    """score(x, t, cond): the component cond of the mixture, all of it for -1."""
    scores = [m.score(sde) for m in parts()]

    def score(x, t, cond):
        return sum(jnp.where((cond == k)[:, None], s(x, t), 0) for s, k in zip(scores, (0, 1, -1), strict=True))

    return score


@every_sde
def test_weights_0_and_1_are_the_two_scores_to_the_bit(sde):
    a, _, whole = (m.score(sde) for m in parts())
    x, t = jax.random.normal(KEY, (5, 2)), jnp.full(5, 0.5)
    for w, expected in ((0, whole), (1.0, a)):
        np.testing.assert_array_equal(guidance.classifier_free(a, whole, w)(x, t), expected(x, t))
        np.testing.assert_array_equal(guidance.autoguidance(a, whole, w)(x, t), expected(x, t))
        np.testing.assert_array_equal(guidance.classifier_free(a, whole, jnp.float32(w))(x, t), expected(x, t))
        one = guidance.classifier_free_batched(by_class(sde), jnp.zeros(5, int), jnp.full(1, -1), w)
        np.testing.assert_array_equal(one(x, t), expected(x, t))


def test_a_weight_of_0_or_1_costs_one_evaluation():
    for make, expected in (
        (lambda a, b: guidance.classifier_free(a, b, 0), (0, 1)),
        (lambda a, b: guidance.classifier_free(a, b, 1), (1, 0)),
        (lambda a, b: guidance.classifier_free(a, b, 2.0), (1, 1)),
    ):
        (a, seen_a), (b, seen_b) = counted(lambda x, t: x), counted(lambda x, t: -x)
        make(a, b)(jnp.ones((2, 1)), 0.5)
        assert (len(seen_a), len(seen_b)) == expected


@every_sde
def test_the_batched_form_is_one_call_of_2b_and_agrees(x64, sde):
    a, _, whole = (m.score(sde) for m in parts())
    score, calls = counted(by_class(sde))
    x = states(sde, 0.4)
    for t in (float64(0.4), float64(np.linspace(0.2, 0.8, 5))):
        for w in (3.0, float64([0, 1, 2, 3, 4])):
            calls.clear()
            got = guidance.classifier_free_batched(score, jnp.zeros(5, int), ss.nn.null(jnp.zeros(5, int)), w)(x, t)
            np.testing.assert_allclose(got, guidance.classifier_free(a, whole, w)(x, t), rtol=1e-12)
            assert calls == [10]


@pytest.mark.slow
def test_a_third_argument_replaces_the_condition_and_skips_the_unconditional_score(x64):
    sde = ss.VP()
    x, t = states(sde, 0.4), float64(0.4)
    cond = jnp.array([0, 1, 1, 0, -1])
    stored = guidance.classifier_free_batched(by_class(sde), cond, jnp.full(5, -1), 2.0)
    other = guidance.classifier_free_batched(by_class(sde), jnp.zeros(5, int), jnp.full(1, -1), 2.0)
    np.testing.assert_array_equal(other(x, t, cond), stored(x, t))
    two = guidance.classifier_free(by_class(sde), parts()[2].score(sde), 2.0)
    np.testing.assert_allclose(two(x, t, cond), stored(x, t), rtol=1e-12)
    alone = jax.vmap(lambda x, cond: other(x[None], t, cond[None])[0])(x, cond)  # as per-example solves call it
    with pytest.raises(ValueError, match=r"conditions must be arrays \(B, ...\) or \(1, ...\) with B = 1, got \(5,\)"):
        other(x[:1], t)
    shared = guidance.classifier_free_batched(by_class(sde), jnp.zeros(1, int), jnp.full(1, -1), 2.0)
    np.testing.assert_allclose(jax.vmap(lambda x, c: shared(x[None], t, c[None])[0])(x, cond), alone, rtol=1e-12)
    np.testing.assert_allclose(alone, stored(x, t), rtol=1e-12)


@every_sde
def test_product_composed_and_negative_are_sums_of_scores(x64, sde):
    a, b, whole = (m.score(sde) for m in parts())
    for t in times(sde):
        x = states(sde, t)
        sa, sb, sw = (np.asarray(s(x, t)) for s in (a, b, whole))
        np.testing.assert_allclose(guidance.product((a, b), (0.5, -2.0))(x, t), 0.5 * sa - 2 * sb, rtol=1e-12)
        got = guidance.composed(whole, (a, b), (2.0, -0.5))(x, t)
        np.testing.assert_allclose(got, sw + 2 * (sa - sw) - 0.5 * (sb - sw), rtol=1e-9, atol=1e-9)
        turned = guidance.classifier_free(a, b, 3.0)(x, t)  # away from b
        np.testing.assert_allclose(turned, sb + 3 * (sa - sb), rtol=1e-9, atol=1e-9)


@every_sde
def test_a_mixture_of_scores_is_the_score_of_the_mixture(x64, sde):
    first, second, whole = parts()

    def logits(x, t):
        return jnp.stack([m.marginal(sde, t).log_prob(x) for m in (first, second)], 1) + jnp.log(whole.weights)[None]

    mixed = guidance.mixture((first.score(sde), second.score(sde)), logits)
    for t in times(sde):
        np.testing.assert_allclose(mixed(states(sde, t), t), whole.score(sde)(states(sde, t), t), rtol=1e-9, atol=1e-12)


@every_sde
def test_classifier_guidance_is_bayes_rule_at_every_noise_level(x64, sde):
    """The gradient of log p_t(y | x_t) added to the score is the score of the component, with no factor of the SDE."""
    first, second, whole = parts()

    def log_prob_y(x, t):
        joint = jnp.stack([m.marginal(sde, t).log_prob(x) for m in (first, second)], 1) + jnp.log(whole.weights)[None]
        return jax.nn.log_softmax(joint, axis=1)[:, 0]

    guided = guidance.classifier(sde, whole.score(sde), log_prob_y)
    twice = guidance.classifier(sde, whole.score(sde), log_prob_y, w=2.0)
    for t in times(sde):
        x = states(sde, t)
        exact, free = first.score(sde)(x, t), whole.score(sde)(x, t)
        np.testing.assert_allclose(guided(x, t), exact, rtol=1e-8, atol=1e-9)
        np.testing.assert_allclose(twice(x, t), 2 * exact - free, rtol=1e-8, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_a_classifier_of_clean_data_is_asked_about_the_denoised(x64, sde):
    """Of N(m, s^2) data D is linear in x with slope alpha s^2/(alpha^2 s^2 + sigma^2): the chain rule by hand."""
    law = GaussianMixture([[0.3, -0.2]], [0.7], [1.0])
    guided = guidance.classifier(sde, law.score(sde), lambda x, t: -jnp.sum(x**2, 1), w=0.5, denoised=True)
    for t in times(sde):
        x, (alpha, variance, _, _) = states(sde, t), textbook(sde, t)
        slope = alpha * 0.49 / (alpha**2 * 0.49 + variance)
        data = np.array([0.3, -0.2]) + slope * (np.asarray(x) - alpha * np.array([0.3, -0.2]))
        expected = np.asarray(law.score(sde)(x, t)) - slope * data
        np.testing.assert_allclose(guided(x, t), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_the_interval_is_in_log_snr_and_evaluates_one_score(x64, sde):
    guided, plain = (m.score(sde) for m in parts()[1:])
    low, high = -1.5, 2.0
    score = guidance.interval(sde, guided, plain, low, high)
    inside, outside = sde.time(float64([-1.4, 1.9])), sde.time(float64([-1.6, 2.1]))
    for group, law in ((inside, parts()[1]), (outside, parts()[2])):
        for t in group:
            x = states(sde, t)
            np.testing.assert_allclose(score(x, t), law.score(sde)(x, t), rtol=1e-12)
    t = jnp.concatenate([inside, outside])
    x = states(sde, 0.5, 4)
    expected = np.where([[True], [True], [False], [False]], *(m.score(sde)(x, t) for m in parts()[1:]))
    np.testing.assert_allclose(score(x, t), expected, rtol=1e-12)
    everywhere = guidance.interval(sde, guided, plain, -jnp.inf, jnp.inf)
    np.testing.assert_allclose(everywhere(x, sde.t_max), parts()[1].score(sde)(x, sde.t_max), rtol=1e-12)
    assert " cond[" in str(jax.make_jaxpr(score)(x, float64(0.5)))  # a branch, not both scores and a choice


def denoised(sde, s, x, t):
    alpha, variance, _, _ = textbook(sde, t)
    return (np.asarray(x) + variance * np.asarray(s)) / alpha


@pytest.mark.slow
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_rescaled_projected_and_clipped_are_the_papers_in_the_denoised_data(x64, sde):
    a, _, whole = (m.score(sde) for m in parts())
    guided = guidance.classifier_free(a, whole, 4.0)
    for t in times(sde):
        x = states(sde, t)
        D, D_c, D_u = (denoised(sde, s(x, t), x, t) for s in (guided, a, whole))

        def close(score, expected, x=x, t=t):
            got, scale = denoised(sde, score(x, t), x, t), np.max(np.abs(np.asarray(x))) / textbook(sde, t)[0]
            np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-12 * (1 + scale))

        ratio = np.std(D_c, axis=1, keepdims=True) / np.std(D, axis=1, keepdims=True)
        close(guidance.rescaled(sde, guided, a, 0.7), 0.7 * ratio * D + 0.3 * D)
        d = D_c - D_u
        d *= np.minimum(1, 0.2 / np.linalg.norm(d, axis=1, keepdims=True))
        along = np.sum(d * D_c, 1, keepdims=True) / np.sum(D_c**2, 1, keepdims=True) * D_c
        close(guidance.projected(sde, a, whole, 4.0, eta=0.3, radius=0.2), D_c + 3 * (d - along + 0.3 * along))
        close(guidance.clipped(sde, guided, -0.5, 0.8), np.clip(D, -0.5, 0.8))
        q = np.maximum(np.quantile(np.abs(D), 0.9, axis=1, keepdims=True), 0.6)
        close(guidance.dynamically_clipped(sde, guided, 0.9, 0.6), np.clip(D, -q, q) * 0.6 / q)
        np.testing.assert_allclose(
            guidance.projected(sde, a, whole, 4.0, eta=1.0)(x, t), guided(x, t), rtol=1e-7, atol=1e-7
        )
        for unchanged in (
            guidance.rescaled(sde, guided, a, 0.0),
            guidance.clipped(sde, guided, -1e9, 1e9),
            guidance.dynamically_clipped(sde, guided, 1.0, 1e9),
        ):
            np.testing.assert_array_equal(unchanged(x, t), guided(x, t))
        np.testing.assert_array_equal(guidance.projected(sde, a, whole, 1)(x, t), a(x, t))


@every_sde
@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_cfg_plus_plus_is_the_papers_loop_under_ddim(x64, sde, eta):
    """D from the guided score and noise from the unconditional one, step by step in NumPy; noise of the table."""
    a, _, whole = (m.score(sde) for m in parts())
    grid, strength = ss.log_snr_grid(sde, 6), 0.6
    table, start = ss.ddim(sde, grid, eta), np.asarray(states(sde, sde.t_max))
    score = guidance.cfg_plus_plus(sde, a, whole, grid, strength, eta=eta)
    noise = np.random.default_rng(1).normal(size=(7, *start.shape))
    rows = [partial(lambda s, x, t: np.asarray(s(float64(x), float64(t))), s) for s in (score, a, whole)]
    x = start
    got = run_in_numpy(table, start, rows[0], noise)
    for i, (t, s) in enumerate(zip(grid[:-1], grid[1:], strict=True)):
        (alpha_t, v_t, _, _), (alpha_s, v_s, _, _) = textbook(sde, t), textbook(sde, s)
        fresh = eta**2 * v_s * (1 - alpha_t**2 * v_s / (alpha_s**2 * v_t))
        s_c, s_u = rows[1](x, t), rows[2](x, t)
        D_c, D_u, eps = (x + v_t * s_c) / alpha_t, (x + v_t * s_u) / alpha_t, -np.sqrt(v_t) * s_u
        x = alpha_s * (D_u + strength * (D_c - D_u)) + np.sqrt(v_s - fresh) * eps + np.sqrt(fresh) * noise[i + 1]
    np.testing.assert_allclose(got, x, rtol=1e-9, atol=1e-9)


@every_sde
def test_temperature_is_exact_for_a_gaussian(x64, sde):
    law, tempered = (GaussianMixture([[0.4, -1.0]], [s], [1.0]) for s in (0.8, 0.8 * np.sqrt(0.3)))
    score = guidance.temperature(sde, law.score(sde), 0.3, sigma_data=0.8)
    for t in times(sde):
        np.testing.assert_allclose(score(states(sde, t), t), tempered.score(sde)(states(sde, t), t), rtol=1e-9)


def tilted(a, b, w):
    """The Gaussian proportional to N(a)^w N(b)^(1-w), for (mean, std) pairs."""
    precision = w / a[1] ** 2 + (1 - w) / b[1] ** 2
    return (w * a[0] / a[1] ** 2 + (1 - w) * b[0] / b[1] ** 2) / precision, precision**-0.5


@pytest.mark.slow
@pytest.mark.parametrize("w", [0.5, 1.6])
def test_langevin_at_every_level_tends_to_the_tilted_gaussian(w):
    """N(1, 0.5^2)^w N(0, 1)^(1-w): alone the reverse SDE misses it, with correctors it comes within the noise."""
    sde, laws = ss.VP(), ((1.0, 0.5), (0.0, 1.0))
    a, b = (GaussianMixture([[m]], [s], [1.0]).score(sde) for m, s in laws)
    mean, std = tilted(*laws, w)
    score, grid = guidance.classifier_free(a, b, w), ss.log_snr_grid(sde, 40)
    plain = np.asarray(ss.sample(KEY, score, ss.ancestral(sde, grid), (4000, 1)))
    table = ss.predictor_corrector(sde, grid, predictor=ss.ancestral, snr=0.25, corrector_steps=60)
    corrected = np.asarray(ss.sample(KEY, score, table, (4000, 1)))
    assert abs(plain.mean() - mean) > 0.06
    assert_moments(corrected, np.array([mean]), np.array([std]), bias=0.02)


@pytest.mark.slow
def test_guidance_reaches_the_likelihood(x64):
    """A mixture of scores by its exact weights is a density: its likelihood is that of the mixture."""
    sde = ss.VP()
    first, second, whole = parts()

    def logits(x, t):
        return jnp.stack([m.marginal(sde, t).log_prob(x) for m in (first, second)], 1) + jnp.log(whole.weights)[None]

    score = guidance.mixture((first.score(sde), second.score(sde)), logits)
    x = whole.sample(KEY, 3)
    got, exact = (ss.log_likelihood(KEY, sde, s, x, divergence=ss.exact_divergence) for s in (score, whole.score(sde)))
    np.testing.assert_allclose(got.log_prob, exact.log_prob, atol=1e-4)


def identity(x, t):
    return x


VP = ss.VP()


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("w must be a finite number or an array (B,), got 'a'", lambda g, f: g.classifier_free(f, f, "a")),
        ("w must be a finite number", lambda g, f: g.classifier_free(f, f, np.inf)),
        ("w must be a number or an array (B,), got shape (2, 2)", lambda g, f: g.classifier_free(f, f, jnp.eye(2))),
        ("score must be a function", lambda g, f: g.classifier_free(3, f, 2.0)),
        ("score(x, t) must return", lambda g, f: g.autoguidance(lambda x, t: x[:1], f, 2.0)(jnp.ones((2, 3)), 0.5)),
        ("scores and weights must be as many, got 1 and 2", lambda g, f: g.product((f,), (1.0, 2.0))),
        ("weights must hold one that is not 0", lambda g, f: g.product((f,), (0.0,))),
        ("scores must hold at least one score", lambda g, f: g.mixture((), f)),
        ("log_weights must return (B, K) = (2, 1), got (2, 3)", lambda g, f: g.mixture((f,), f)(jnp.ones((2, 3)), 0.5)),
        ("sde must be an SDE such as ss.VP(), got function", lambda g, f: g.classifier(f, f, f)),
        ("log_prob_y(x, t) must return (B,) = (2,)", lambda g, f: g.classifier(VP, f, f)(jnp.ones((2, 3)), 1)),
        ("low must be below high in log-SNR", lambda g, f: g.interval(VP, f, f, 2.0, 1.0)),
        ("phi must be in [0, 1], got 1.5", lambda g, f: g.rescaled(VP, f, f, 1.5)),
        ("radius must be positive and finite, got 0.0", lambda g, f: g.projected(VP, f, f, 2.0, radius=0.0)),
        ("temperature must be positive and finite, got 0.0", lambda g, f: g.temperature(VP, f, 0.0)),
        ("low must be below high, got 1.0 and -1.0", lambda g, f: g.clipped(VP, f, 1.0, -1.0)),
        ("quantile must be in [0, 1], got 2.0", lambda g, f: g.dynamically_clipped(VP, f, 2.0)),
        ("strength must be in [0, 1], got 2.0", lambda g, f: g.cfg_plus_plus(VP, f, f, [1.0, 0.5], 2.0)),
        ("a grid must decrease", lambda g, f: g.cfg_plus_plus(VP, f, f, [0.5, 1.0], 0.5)),
    ],
)  # fmt: skip
def test_refusals(message, call):
    with pytest.raises(ValueError) as caught:
        call(guidance, lambda x, t: x)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


VP = ss.VP()
A, B, WHOLE = (m.score(VP) for m in parts())
GRID = ss.log_snr_grid(VP, 3)
CLASSED = by_class(VP)


def log_prob_y(x, t):
    return jnp.sum(jnp.sin(x), axis=1)


# Every function from scores to a score, of a weight that may belong to the example.
FUNCTIONS = {
    "given": lambda w: ss.given(lambda x, t, c: c.reshape(-1, 1) * A(x, t), w if jnp.ndim(w) else jnp.full(1, w)),
    "product": lambda w: guidance.product((A, B), (w, 1 + w)),
    "classifier_free": lambda w: guidance.classifier_free(A, WHOLE, w),
    "classifier_free_batched": lambda w: guidance.classifier_free_batched(
        CLASSED, (jnp.atleast_1d(w) > 1.2).astype(int), jnp.full(1, -1), w
    ),
    "conditional alone": lambda w: guidance.classifier_free_batched(
        CLASSED, (jnp.atleast_1d(w) > 1.2).astype(int), jnp.full(1, -1), 1
    ),
    "autoguidance": lambda w: guidance.autoguidance(A, WHOLE, w),
    "composed": lambda w: guidance.composed(WHOLE, (A, B), (w, -0.3 * w)),
    "mixture": lambda w: guidance.mixture(
        (A, guidance.classifier_free(B, A, w)), lambda x, t: jnp.concatenate([x[:, :1], -x[:, :1]], 1)
    ),
    "classifier": lambda w: guidance.classifier(VP, A, log_prob_y, w=w),
    "classifier of clean data": lambda w: guidance.classifier(VP, A, log_prob_y, w=w, denoised=True),
    "interval": lambda w: guidance.interval(VP, guidance.classifier_free(A, B, w), A, -4.0, 4.0),
    "rescaled": lambda w: guidance.rescaled(VP, A, B, w / 9),
    "projected": lambda w: guidance.projected(VP, A, WHOLE, w, eta=w / 3, radius=w / 5),
    "temperature": lambda w: guidance.temperature(VP, WHOLE, w, sigma_data=w / 2),
    "clipped": lambda w: guidance.clipped(VP, guidance.classifier_free(A, B, w)),
    "dynamically_clipped": lambda w: guidance.dynamically_clipped(VP, guidance.classifier_free(A, B, w)),
    "cfg_plus_plus": lambda w: guidance.cfg_plus_plus(VP, guidance.classifier_free(A, B, w), B, GRID, 0.6),
    "panorama": lambda w: ss.editing.panorama(guidance.classifier_free(A, WHOLE, w), (2,), 1),
    "pigdm": lambda w: ss.inverse.pigdm(VP, guidance.classifier_free(A, B, w), lambda x: x[:, :1], _seen(w), 0.3),
    "proximal": lambda w: ss.inverse.proximal(VP, guidance.classifier_free(A, B, w), lambda x: x[:, :1], _seen(w), 0.3),
}
WEIGHTS = jnp.array([0.5, 1.5, 2.5])


def _seen(w):
    return jnp.atleast_1d(w)[:, None]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_what_belongs_to_an_example_goes_with_it(function, x64):
    make, x = FUNCTIONS[function], float64(np.random.default_rng(1).normal(size=(3, 2)))

    @jax.jit
    def one_by_one(w, x):
        score, axes = each(make(w), 3)
        return jax.vmap(lambda score, x: score(x[None], 0.4)[0], in_axes=(axes, 0))(score, x)

    one = jax.jit(lambda w, x: make(w)(x, 0.4))
    alone = [one(w, x[i : i + 1])[0] for i, w in enumerate(WEIGHTS)]
    np.testing.assert_allclose(one_by_one(WEIGHTS, x), alone, rtol=1e-5, atol=1e-6)


SOLVES = {
    "integrate": lambda score, x: ss.integrate(KEY, score, ss.ddim(VP, GRID), x),
    "flow": lambda score, x: ss.probability_flow(VP, score, x, 0.8, 0.4, steps=1, solver=diffrax.Heun()).x,
    "likelihood": lambda score, x: (
        ss.log_likelihood(KEY, VP, score, x, steps=1, divergence=ss.exact_divergence, solver=diffrax.Heun()).log_prob
    ),
    "table likelihood": lambda score, x: (
        ss.table_log_likelihood(KEY, VP, score, x, GRID, divergence=ss.exact_divergence, estimate_error=False).log_prob
    ),
}


@pytest.mark.parametrize("solve", SOLVES)
@pytest.mark.parametrize(
    "function",
    [f if f == "classifier_free" else pytest.param(f, marks=pytest.mark.slow) for f in FUNCTIONS],
)
def test_what_belongs_to_an_example_goes_through_every_solve(function, solve):
    make, solve = FUNCTIONS[function], SOLVES[solve]
    x = jnp.asarray(np.random.default_rng(1).normal(size=(3, 2)), jnp.float32)
    alone = [solve(make(w), x[i : i + 1])[0] for i, w in enumerate(WEIGHTS)]
    np.testing.assert_allclose(solve(make(WEIGHTS), x), alone, rtol=1e-3, atol=1e-3)


def test_weights_of_another_number_of_examples_are_refused():
    for make in (lambda w: guidance.classifier_free(A, B, w), lambda w: guidance.temperature(VP, A, w)):
        with pytest.raises(ValueError, match=r"a weight must be a number or .* with B = 2, got shape \(3,\)"):
            make(WEIGHTS)(jnp.ones((2, 2)), 0.5)
        with pytest.raises(ValueError, match="a condition or weight, must be .* with B = 2 or 1, got"):
            ss.probability_flow(VP, make(WEIGHTS), jnp.ones((2, 2)), 0.8, 0.4)
    with pytest.raises(ValueError, match="quantile and bound must be numbers"):
        guidance.dynamically_clipped(VP, A, jnp.array([0.9, 0.8]))
