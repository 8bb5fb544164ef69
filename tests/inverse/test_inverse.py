"""Posterior scores and samplers against exact posteriors of Gaussians and mixtures, and closed forms in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family import float64, name, textbook, two_modes

import scoresde as ss
from scoresde import GaussianMixture, inverse
from scoresde.score import each

SDES = (ss.VP(), ss.VE(sigma_max=20.0), ss.RectifiedFlow())
IN_TURN = tuple(pytest.param(s, marks=() if isinstance(s, ss.RectifiedFlow) else pytest.mark.slow) for s in SDES)
every_sde = pytest.mark.parametrize("sde", IN_TURN, ids=name)
KEY = jax.random.key(7)
A = np.array([[1.0, 0.5, 0.0], [0.0, -0.3, 1.0]])
MEAN, STD, SIGMA_Y = np.array([0.3, -0.2, 0.5]), np.array([0.7, 1.2, 0.5]), 0.3
Y = np.array([[0.4, -0.1], [1.0, 0.2], [-0.5, 0.7], [0.0, 0.0]])
SCORES = (
    inverse.replacement,
    inverse.proximal,
    inverse.reconstruction,
    inverse.dps,
    inverse.pigdm,
    inverse.tmpd,
    inverse.mmps,
)


FEW = tuple(pytest.param(m, marks=() if m is inverse.mmps else pytest.mark.slow) for m in SCORES)


def law():
    return GaussianMixture(MEAN[None], STD[None], [1.0])


def problem(sde, prior=None, y=Y):
    return sde, (prior or law()).score(sde), ss.inverse.operators.matrix(A), y, SIGMA_Y


def states(sde, t, batch=4, dims=3):
    alpha, variance, _, _ = textbook(sde, t)
    return float64(np.random.default_rng(0).normal(size=(batch, dims)) * np.sqrt(alpha**2 + variance))


def times(sde):
    return [float64(sde.t_min + (sde.t_max - sde.t_min) * u) for u in (1e-2, 0.5, 0.95)]


@pytest.mark.slow
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_the_gaussian_methods_are_their_formulas(x64, sde):
    """s + J^T A^T V^(-1) (y - A D) with V by hand; of N(m, S), J = alpha S (alpha^2 S + sigma^2)^(-1)."""
    S, eye = np.diag(STD**2), np.eye(2)
    for t in times(sde):
        x, (alpha, variance, _, _) = np.asarray(states(sde, t)), textbook(sde, t)
        J, rho2 = alpha * S @ np.linalg.inv(alpha**2 * S + variance * np.eye(3)), variance / alpha**2
        s = -(x - alpha * MEAN) @ np.linalg.inv(alpha**2 * S + variance * np.eye(3))
        D = MEAN + (x - alpha * MEAN) @ J
        residual, C, noise = Y - D @ A.T, variance / alpha * J, SIGMA_Y**2 * eye
        lengths = np.linalg.norm(residual, axis=1, keepdims=True)
        r2 = 0.49 * rho2 / (0.49 + rho2)
        cases = (
            (inverse.dps, {"zeta": None}, residual / SIGMA_Y**2),
            (inverse.dps, {"zeta": 0.4}, 0.4 / variance * residual / lengths),
            (inverse.reconstruction, {"w": 2.0}, residual / (rho2 / 2 + SIGMA_Y**2)),
            (inverse.pigdm, {"sigma_data": 0.7}, residual @ np.linalg.inv(r2 * A @ A.T + noise)),
            (inverse.tmpd, {}, residual @ np.linalg.inv(A @ C @ A.T + noise)),
            (inverse.tmpd, {"diagonal": True}, residual / (np.maximum((A @ C @ A.T).sum(1), 0) + SIGMA_Y**2)),
            (inverse.mmps, {}, residual @ np.linalg.inv(A @ C @ A.T + noise)),
        )
        for method, options, v in cases:
            got = jax.jit(method(*problem(sde), **options))(x, t)
            np.testing.assert_allclose(got, s + v @ A @ J, rtol=1e-6, atol=1e-7 * np.max(np.abs(s)))
        c = 0.5 * SIGMA_Y**2 / rho2
        for method, options, change in (
            (inverse.replacement, {}, residual @ np.linalg.pinv(A).T),
            (inverse.proximal, {"strength": 0.5}, residual @ np.linalg.inv(A @ A.T + c * eye) @ A),
        ):
            got = jax.jit(method(*problem(sde), **options))(x, t)
            expected = s + alpha / variance * change
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6 * np.max(np.abs(expected)))


@every_sde
@pytest.mark.slow
def test_exact_where_the_covariance_is(x64, sde):
    """mmps and tmpd for any Gaussian, pigdm for an isotropic one: the score of the exact posterior at every time."""
    isotropic = GaussianMixture(MEAN[None], [0.7], [1.0])
    for prior, methods in (
        (law(), (inverse.mmps, inverse.tmpd)),
        (isotropic, (lambda *a: inverse.pigdm(*a, sigma_data=0.7),)),
    ):
        exact = jax.jit(prior.posterior(A, Y[0], SIGMA_Y).score(sde))
        for t in times(sde):
            x = states(sde, t)
            for method in methods:
                got = jax.jit(method(*problem(sde, prior, Y[:1])))(x, t)
                np.testing.assert_allclose(got, exact(x, t), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("method", FEW, ids=name)
def test_examples_do_not_influence_one_another(x64, method):
    """Rows of a batch, with other neighbours, and alone with their own y as in solves of single examples: the same."""
    sde = ss.RectifiedFlow()
    x, t = states(sde, 0.5), float64([0.3, 0.5, 0.7, 0.9])
    score_of_all = method(*problem(sde, GaussianMixture(np.stack([MEAN, -MEAN]), [0.7, 0.4], [1, 2])))
    score = jax.jit(score_of_all)
    whole = score(x, t)
    other = score(x.at[1:].mul(100.0), t)
    np.testing.assert_allclose(other[0], whole[0], rtol=1e-12)
    rows, axes = each(score_of_all, len(x))
    alone = jax.vmap(lambda score, x, t: score(x[None], t)[0], in_axes=(axes, 0, 0))(rows, x, t)
    np.testing.assert_allclose(alone, whole, rtol=1e-10)


@pytest.mark.slow
def test_a_nonlinear_operator_is_differentiated(x64):
    """The likelihood at the mean for A(x) = x^3, its gradient by differentiating the whole expression."""
    sde, score = ss.VP(), two_modes().score(ss.VP())
    x, y, t = states(sde, 0.4, dims=2), Y, float64(0.4)

    def log_prob(x):
        D = (x + sde.variance(t) * score(x, t)) / sde.alpha(t)
        return -jnp.sum((y - D**3) ** 2) / (2 * SIGMA_Y**2)

    got = inverse.dps(sde, score, lambda x: x**3, y, SIGMA_Y, zeta=None)(x, t)
    np.testing.assert_allclose(got, score(x, t) + jax.grad(log_prob)(x), rtol=1e-9)


def needles():
    """Modes of std 1e-3 at (1, 1, 0, 0), (-1, 0.5, 1, -1): what is free shows any left-over noise."""
    return GaussianMixture([[1.0, 1.0, 0.0, 0.0], [-1.0, 0.5, 1.0, -1.0]], [1e-3, 1e-3], [0.5, 0.5])


def check_filled(x, y, keep):
    """Known entries are the measurement; free ones lie on the mode that it belongs to, to the mode's own width."""
    x = np.asarray(x)
    np.testing.assert_allclose(x[:, keep], y[:, keep], atol=1e-5)
    free = np.asarray(needles().means)[:, ~keep]
    distance = np.min(np.linalg.norm(x[:, None, ~keep] - free[None], axis=2), axis=1)
    assert np.max(distance) < 7e-3, distance


@every_sde
def test_known_entries_are_the_measurement_and_free_ones_carry_no_noise(sde):
    keep = np.array([True, True, False, False])
    y = np.repeat([[1.0, 1.0, 0, 0], [-1.0, 0.5, 0, 0]], 4, axis=0)
    score = inverse.replacement(sde, needles().score(sde), ss.inverse.operators.mask(keep), y, 0.1)
    table = ss.with_denoising(sde, ss.ancestral(sde, ss.log_snr_grid(sde, 30)))
    check_filled(ss.sample(KEY, score, table, (8, 4)), y, keep)


@pytest.mark.slow
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_repaint_fills_in_and_agrees_with_what_is_known(sde):
    keep = np.array([True, True, False, False])
    y = np.repeat([[1.0, 1.0, 0, 0], [-1.0, 0.5, 0, 0]], 4, axis=0)
    grid = ss.log_snr_grid(sde, 30)
    x = inverse.repaint(
        KEY, sde, needles().score(sde), ss.inverse.operators.mask(keep), y, 0.1, grid, jump=5, resamplings=4
    )
    check_filled(x, y, keep)
    modes = np.argmin(np.linalg.norm(np.asarray(x)[:, None] - np.asarray(needles().means)[None], axis=2), axis=1)
    np.testing.assert_array_equal(modes, [0] * 4 + [1] * 4)


SAMPLERS = {
    "repaint": lambda *problem, **rows: inverse.repaint(*problem, resamplings=2, jump=2, **rows),
    "diffpir": inverse.diffpir,
    "twisted_smc": lambda *problem, **rows: inverse.twisted_smc(*problem, particles=4, **rows),
    "twisted_particles": lambda *problem, **rows: inverse.twisted_particles(*problem, particles=4, **rows)[0],
}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_draw_each_example_by_its_own_number_and_measurement(sampler):
    """Rows 2..5 are those of the whole, a batch of 7 is one of 3 and one of 4, and other numbers give other draws."""
    sde, keep = ss.VP(), np.array([True, True, False, False])
    y = np.random.default_rng(0).normal(size=(7, 4)) * keep
    prior, operator, grid = two_modes_of_four().score(sde), ss.inverse.operators.mask(keep), ss.log_snr_grid(sde, 5)

    def rows(first, last, number):
        return np.asarray(SAMPLERS[sampler](KEY, sde, prior, operator, y[first:last], 0.3, grid, first=number))

    whole = rows(0, 7, 0)
    assert np.all(np.isfinite(whole)) and (len(whole), whole.shape[-1]) == y.shape
    np.testing.assert_allclose(rows(2, 6, 2), whole[2:6], rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(np.concatenate([rows(0, 3, 0), rows(3, 7, 3)]), whole, rtol=2e-4, atol=2e-4)
    assert np.all(np.abs(rows(2, 6, 3) - whole[2:6])[..., ~keep].max(axis=-1) > 1e-3)


def two_modes_of_four():
    return GaussianMixture([[1.0, 1.0, 0.0, 0.0], [-1.0, 0.5, 1.0, -1.0]], [0.5, 0.7], [0.5, 0.5])


def bimodal():
    """Three Gaussians in two dimensions, of which the first coordinate is measured: two of them stay likely."""
    return GaussianMixture(
        [[-1.0, 0.8], [0.9, -0.6], [1.0, 1.2]], [[0.4, 0.3], [0.5, 0.4], [0.3, 0.5]], [0.4, 0.35, 0.25]
    )


def distances(posterior, x, weights):
    """Errors of mean, covariance and mode weights, relative to the posterior."""
    x, w = np.asarray(x, np.float64), np.asarray(weights, np.float64)
    mean = w @ x
    covariance = (x - mean).T @ ((x - mean) * w[:, None])
    shares = w @ np.asarray(jax.nn.softmax(posterior.log_joint(x.astype("f4")), axis=1))
    return (
        np.linalg.norm(mean - posterior.mean) / np.sqrt(np.trace(posterior.covariance)),
        np.linalg.norm(covariance - posterior.covariance) / np.linalg.norm(posterior.covariance),
        0.5 * np.sum(np.abs(shares - posterior.weights)),
    )


def in_samples(method, sde, n, steps, sigma_y, **options):
    """The errors of a score method under ancestral sampling."""
    prior, grid = bimodal(), ss.log_snr_grid(sde, steps)
    posterior = prior.posterior([[1.0, 0.0]], [0.8], sigma_y)
    score = method(sde, prior.score(sde), ss.inverse.operators.columns([0]), [[0.8]], sigma_y, **options)
    x = ss.sample(KEY, score, ss.with_denoising(sde, ss.ancestral(sde, grid)), (n, 2))
    return distances(posterior, x, np.full(n, 1 / n))


def in_particles(sde, n, steps, sigma_y):
    """The errors of twisted SMC."""
    prior, grid = bimodal(), ss.log_snr_grid(sde, steps)
    posterior = prior.posterior([[1.0, 0.0]], [0.8], sigma_y)
    arguments = sde, prior.score(sde), ss.inverse.operators.columns([0]), [[0.8]], sigma_y, grid
    x, log_weights = inverse.twisted_particles(KEY, *arguments, particles=n, shape=(1, 2))
    np.testing.assert_allclose(jnp.sum(jnp.exp(log_weights)), 1, rtol=1e-4)
    return distances(posterior, x[0], jnp.exp(log_weights[0]))


BOUNDS = {  # of mean, covariance and mode weights; the largest measured are (0.10, 0.11, 0.06) and (0.03, 0.12, 0.02)
    "mmps": (0.12, 0.15, 0.08),
    "tmpd": (0.12, 0.15, 0.08),
    "smc": (0.05, 0.15, 0.04),
}


@pytest.mark.slow
@pytest.mark.parametrize("sigma_y", [0.1, 0.4, 1.0])
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_mmps_tmpd_and_smc_keep_to_their_bounds_and_dps_does_not(sde, sigma_y):
    found = {m.__name__: in_samples(m, sde, 2000, 200, sigma_y) for m in (inverse.mmps, inverse.tmpd, inverse.dps)}
    found["smc"] = in_particles(sde, 2000, 200, sigma_y)
    print(sigma_y, type(sde).__name__, {k: np.round(v, 3).tolist() for k, v in found.items()})
    for method, bounds in BOUNDS.items():
        assert np.all(np.array(found[method]) < bounds), (method, found[method])
    assert not np.all(np.array(found["dps"]) < BOUNDS["mmps"]), found["dps"]


@pytest.mark.slow
def test_mmps_keeps_to_its_bound_in_few_steps():
    assert np.all(np.array(in_samples(inverse.mmps, ss.RectifiedFlow(), 400, 30, 0.4)) < (0.2, 0.3, 0.15))


@pytest.mark.slow
def test_the_posterior_of_a_mixture_by_bayes_rule(x64):
    """Its log-density less those of prior and measurement is constant; moments from its samples; its score."""
    prior, sde = GaussianMixture(np.stack([MEAN, -MEAN]), np.stack([STD, STD[::-1]]), [1, 2]), ss.RectifiedFlow()
    posterior = prior.posterior(A, Y[1], SIGMA_Y)
    x = np.random.default_rng(3).normal(size=(6, 3))
    unnormalised = np.asarray(prior.log_prob(x)) - np.sum((Y[1] - x @ A.T) ** 2, 1) / (2 * SIGMA_Y**2)
    difference = np.asarray(posterior.log_prob(x)) - unnormalised
    np.testing.assert_allclose(difference, difference[0], atol=1e-9)
    drawn = np.asarray(posterior.sample(KEY, 20_000))
    np.testing.assert_allclose(drawn.mean(0), posterior.mean, atol=0.03)
    np.testing.assert_allclose(np.cov(drawn.T), posterior.covariance, atol=0.05)
    diagonal = GaussianMixture(prior.means, prior.stds, prior.weights)
    full = ss.CorrelatedMixture(prior.means, jax.vmap(jnp.diag)(prior.stds**2), prior.weights)
    np.testing.assert_allclose(full.score(sde)(x, 0.4), diagonal.score(sde)(float64(x), float64(0.4)), rtol=1e-9)


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("sigma_y must be a positive and finite number, got 0", {"sigma_y": 0}),
        ("sigma_y must be a positive and finite number, got -1.0", {"sigma_y": -1.0}),
        ("sde must be an SDE such as ss.VP(), got int", {"sde": 3}),
        ("score must be a function", {"score": None}),
        ("operator must be a function of arrays (B, *event), got int", {"operator": 3}),
        ("y must be finite: leave missing values out", {"y": np.full((4, 2), np.nan)}),
        ("y must be real: stack real and imaginary parts", {"y": np.full((4, 2), 1j)}),
        ("operator must map x (B, 3) to the shape of y, (B, 2), got float32 (B, 3)", {"operator": lambda x: x}),
        ("y must have shape (4, 2) like the batch of x, or (1, ...), got (3, 2)", {"y": np.ones((3, 2))}),
    ],
)
def test_refusals(message, arguments):
    whole = dict(zip(("sde", "score", "operator", "y", "sigma_y"), problem(ss.VP(), y=Y.astype("f4")), strict=True))
    with pytest.raises(ValueError) as caught:
        inverse.mmps(**(whole | arguments))(jnp.ones((4, 3), jnp.float32), jnp.float32(0.5))
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("zeta must be positive and finite, got 0", lambda p, g: inverse.dps(*p, zeta=0)),
        ("w must be positive and finite, got -1", lambda p, g: inverse.reconstruction(*p, w=-1)),
        ("iterations must be", lambda p, g: inverse.mmps(*p, iterations=0)),
        ("sigma_data must be positive", lambda p, g: inverse.pigdm(*p, sigma_data=0.0)),
        ("zeta must be in [0, 1], got 2", lambda p, g: inverse.diffpir(KEY, *p, g, zeta=2)),
        ("jump must be", lambda p, g: inverse.repaint(KEY, *p, g, jump=0)),
        ("particles must be at least 2, got 1", lambda p, g: inverse.twisted_smc(KEY, *p, g, particles=1)),
        ("resample_below must be in (0, 1], got 0", lambda p, g: inverse.twisted_smc(KEY, *p, g, resample_below=0)),
        ("x of shape (4, 2) does not fit operator and score: pass shape=", lambda p, g: inverse.repaint(KEY, *p, g)),
        (
            "operator must map x (5, 3) to the shape of y, (4, 2)",
            lambda p, g: inverse.diffpir(KEY, *p, g, shape=(5, 3)),
        ),
    ],
)
def test_refusals_of_options(message, call):
    with pytest.raises(ValueError) as caught:
        call(problem(ss.VP(), y=Y.astype("f4")), ss.log_snr_grid(ss.VP(), 4))
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_prior_with_conditions_and_a_measurement_of_each_example(x64):
    """Two classes of prior, a y for each example: in solves of single examples, and as each alone."""
    sde, y, stds = ss.VP(), float64(Y[:2, :2]), float64([0.5, 0.8])
    score = lambda x, t, c: gaussian_score(sde, stds[c][:, None], x, t)  # noqa: E731
    guided = inverse.pigdm(sde, ss.given(score, jnp.array([0, 1])), lambda x: x, y, SIGMA_Y, sigma_data=1.0)
    rows, axes = each(guided, 2)
    x = float64([[0.3, -0.2], [0.5, 0.1]])
    alone = jax.vmap(lambda score, x: score(x[None], 0.4)[0], in_axes=(axes, 0))(rows, x)
    np.testing.assert_allclose(alone, guided(x, 0.4), rtol=1e-12)
    for c in range(2):
        one = lambda x, t, c=c: gaussian_score(sde, stds[c], x, t)  # noqa: E731
        expected = inverse.pigdm(sde, one, lambda x: x, y[c : c + 1], SIGMA_Y, sigma_data=1.0)(x[c : c + 1], 0.4)
        np.testing.assert_allclose(guided(x, 0.4)[c], expected[0], rtol=1e-12)


def gaussian_score(sde, std, x, t):
    """Of N(0, std^2 I)."""
    return -x / (sde.alpha(t) ** 2 * std**2 + sde.variance(t))
