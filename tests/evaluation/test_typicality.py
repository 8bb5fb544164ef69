"""Classification against Bayes, the size of the tests, and for each anomaly score a case it sees and one it misses."""

import math

import jax
import numpy as np
import pytest
from jax.scipy.special import logsumexp
from scipy.stats import chi2, kstest

from scoresde import VE, VP, GaussianMixture, likelihood_bound, log_snr_grid
from scoresde.evaluation import class_log_posterior, mahalanobis, score_norms, typicality_test

KEY = jax.random.key(31)
DIMS, COUNT = 200, 2000
STDS = np.where(np.arange(DIMS) < DIMS // 2, 1.0, 0.1)
SDE = VE(sigma_min=0.01, sigma_max=20.0)
TIMES = log_snr_grid(SDE, 5)


def gaussian(stds):
    return GaussianMixture(np.zeros((1, DIMS)), np.broadcast_to(stds, (1, DIMS)), np.ones(1))


@pytest.fixture(scope="module")
def laws():
    """The same for two Gaussians: a reference, and what three anomaly scores say of new points."""
    answers = {}
    for number, (kind, stds) in enumerate((("round", np.ones(DIMS)), ("flat", STDS))):
        law = gaussian(stds)
        reference = law.sample(jax.random.key(number), COUNT)
        log_prob = law.log_prob(reference)
        norms = np.log(score_norms(SDE, law.score(SDE), reference, TIMES))

        def judge(x, law=law, log_prob=log_prob, norms=norms):
            x = np.asarray(x, "f4")
            x = np.concatenate([x, np.ones((COUNT - len(x), DIMS), "f4")]), len(x)  # one compiled shape
            value = np.asarray(law.log_prob(x[0]))[: x[1], None]
            new = np.log(score_norms(SDE, law.score(SDE), x[0], TIMES))[: x[1]]
            return {
                "surprise": np.mean(-np.asarray(log_prob)[None] >= -value, axis=1),  # p-values, all of them
                "typical": typicality_test(KEY, log_prob, value).p_value,
                "norms": np.mean(mahalanobis(norms, norms)[None] >= mahalanobis(norms, new)[:, None], axis=1),
            }

        answers[kind] = law, judge
    return answers


@pytest.mark.parametrize("kind", ["round", "flat"])
def test_fresh_samples_are_called_strange_as_often_as_promised(laws, kind):
    law, judge = laws[kind]
    p = judge(law.sample(KEY, 1000))
    for name, values in p.items():
        assert kstest(values, "uniform").statistic < 0.08, name


def test_the_mode_has_the_highest_density_and_is_atypical(laws):
    for kind in ("round", "flat"):
        p = judge_one(laws[kind][1], 1e-3 * np.ones(DIMS))
        assert p["surprise"] == 1  # the most normal point of all, says the density
        assert p["typical"] < 1e-3 and p["norms"] < 1e-3


def test_a_point_of_typical_density_elsewhere_passes_for_typical_but_not_in_its_norms(laws):
    """All the energy in one wide coordinate: sqrt(D) = 14 sigma there, 0 in all others."""
    x = np.zeros(DIMS)
    x[0] = math.sqrt(DIMS)
    p = judge_one(laws["flat"][1], x)
    assert p["surprise"] > 0.2 and p["typical"] > 0.2
    assert p["norms"] < 1e-3


def test_a_spike_of_the_right_norm_passes_everything(laws):
    x = np.zeros(DIMS)
    x[0] = math.sqrt(DIMS)
    p = judge_one(laws["round"][1], x)
    assert min(p.values()) > 0.2  # none sees a 14-sigma event: log-density and norms know the radius alone


def judge_one(judge, x):
    return {name: values[0] for name, values in judge(x[None]).items()}


def test_groups_of_typical_examples_and_of_others():
    """A mean over M examples sees a shift of the density that single examples do not show."""
    rng = np.random.default_rng(0)

    def log_prob(shape, std):
        return -0.5 * std**2 * rng.chisquare(10, shape)

    reference = log_prob(4000, 1.0)
    got = typicality_test(KEY, reference, log_prob((400, 50), 1.0), alpha=0.05)
    assert got.atypical.mean() < 0.05 + 5 * math.sqrt(0.05 * 0.95 / 400) + 0.05
    np.testing.assert_array_equal(got.atypical, got.statistic > got.threshold)
    np.testing.assert_allclose(got.entropy, 5, atol=0.3)
    assert np.all(got.p_value[got.atypical] < 0.051) and np.all(got.p_value[~got.atypical] > 0.049)
    for std in (1.2, 0.8):  # wider and narrower than the model
        assert typicality_test(KEY, reference, log_prob((50, 50), std)).atypical.mean() > 0.95
        assert typicality_test(KEY, reference, log_prob((50, 1), std)).atypical.mean() < 0.3
    assert typicality_test(KEY, reference, np.array([[np.nan]])).atypical[0]


def test_the_threshold_is_the_bootstrap_quantile_by_a_naive_loop():
    rng = np.random.default_rng(1)
    reference = rng.normal(size=3000)
    got = typicality_test(KEY, reference, rng.normal(size=(5, 20)), alpha=0.1)
    statistic = [abs(np.mean(rng.choice(reference, 20)) - np.mean(rng.choice(reference, 1500))) for _ in range(4000)]
    np.testing.assert_allclose(got.threshold, np.quantile(statistic, 0.9), rtol=0.1)


def test_score_norms_of_a_gaussian():
    """sigma ||score|| = sigma alpha ||x/(alpha^2 s^2 + sigma^2)|| for x at the scale of time t."""
    sde = VP()
    x = np.random.default_rng(0).normal(size=(4, 3, 2)).astype("f4")
    stds = np.array([[[0.3, 1.0], [0.5, 2.0], [1.0, 0.1]]])
    law = GaussianMixture(np.zeros((1, 3, 2)), stds, np.ones(1))
    times = np.array([0.1, 0.5, 1.0])
    alpha, variance = np.asarray(sde.alpha(times), "f8"), np.asarray(sde.variance(times), "f8")
    scores = [
        np.sqrt(v) * np.linalg.norm((a * x / (a**2 * stds**2 + v)).reshape(4, 6), axis=1) / math.sqrt(6)
        for a, v in zip(alpha, variance, strict=True)
    ]
    np.testing.assert_allclose(score_norms(sde, law.score(sde), x, times), np.stack(scores, 1), rtol=1e-4)


def test_mahalanobis_is_chi_squared_and_ignores_constant_features():
    rng = np.random.default_rng(2)
    mix = rng.normal(size=(3, 3))
    reference, values = rng.normal(size=(20_000, 3)) @ mix + 5, rng.normal(size=(2000, 3)) @ mix + 5
    distance = mahalanobis(reference, values)
    assert kstest(distance**2, chi2(3).cdf).pvalue > 1e-3
    padded = [np.concatenate([a, np.ones((len(a), 1))], 1) for a in (reference, values)]
    np.testing.assert_allclose(mahalanobis(*padded), distance, rtol=1e-6)


def test_classification_by_conditional_likelihood_is_the_bayes_classifier():
    """Three classes of one mixture with unequal weights: by the variational bound with shared noise, one score each."""
    sde = VP()
    means = np.array([[-1.0, 0.0], [1.0, 0.0], [0.0, 1.2]])
    stds, weights = np.array([0.5, 0.7, 0.4]), np.array([0.2, 0.5, 0.3])
    classes = [GaussianMixture(means[c : c + 1], stds[c : c + 1], np.ones(1)) for c in range(3)]
    x = GaussianMixture(means, stds, weights).sample(KEY, 150)
    truth = np.stack([law.log_prob(x) for law in classes], 1) + np.log(weights)
    exact = class_log_posterior(truth - np.log(weights), np.log(weights))
    np.testing.assert_allclose(exact, truth - np.asarray(logsumexp(truth, axis=1))[:, None], atol=1e-5)

    bounds = [
        likelihood_bound(KEY, sde, law.score(sde), x, draws=16, repeats=32, sigma_data=0.9).bound for law in classes
    ]
    label = np.argmax(class_log_posterior(np.stack(bounds, 1), np.log(weights)), axis=1)
    agree = np.mean(label == np.argmax(exact, axis=1))
    assert agree > 0.95, agree
    sure = np.sort(exact, axis=1)[:, -2] < math.log(0.02)
    assert sure.mean() > 0.3 and np.mean(label[sure] == np.argmax(exact, 1)[sure]) > 0.995
    np.testing.assert_allclose(np.exp(class_log_posterior(truth)).sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (class_log_posterior, (np.zeros(3),), r"log_likelihoods must have shape \(B, C\) with C >= 2, got \(3,\)"),
        (class_log_posterior, (np.zeros((3, 2)), np.zeros(3)), r"log_prior must have shape \(2,\), got \(3,\)"),
        (typicality_test, (KEY, np.zeros(3), np.zeros((1, 1))), r"reference must hold at least 4 finite log-densities"),
        (typicality_test, (KEY, np.zeros(9), np.zeros(1)), r"log_prob must have shape \(G, M\), groups by examples"),
        (mahalanobis, (np.zeros((9, 2)), np.zeros((9, 3))), r"reference \(n, L\) and values \(B, L\) must agree, got"),
        (mahalanobis, (np.zeros((2, 2)), np.zeros((9, 2))), r"reference must hold more than L = 2 examples, got 2"),
        (
            score_norms,
            (VP(), abs, np.zeros(3), [0.5]),
            r"x must have shape \(B, \*event\) with at least one event axis",
        ),
        (score_norms, (VP(), abs, np.zeros((3, 1)), [1.5]), r"times \(L,\) must lie in \[t_min, t_max\] = \[.*, 1\]"),
    ],
)
def test_refusals(function, arguments, message):
    with pytest.raises(ValueError, match="^" + message) as error:
        function(*arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("settings", "name"), [({"alpha": 0.0}, "alpha"), ({"bootstraps": 0}, "bootstraps")])
def test_settings_out_of_range(settings, name):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        typicality_test(KEY, np.arange(9.0), np.zeros((1, 1)), **settings)
