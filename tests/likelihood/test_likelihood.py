"""The log-density against closed forms, Hutchinson's estimate against the exact one, and bits per dimension."""

import math

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family import SDES_IN_TURN, eightfold, float64, name, ring, shifted, two_modes

from scoresde import (
    VE,
    VP,
    Cosine,
    GaussianMixture,
    adams,
    ancestral,
    angle_grid,
    bits_per_dim,
    dequantised_log_likelihood,
    exact_divergence,
    hutchinson,
    log_likelihood,
    mean_with_error,
    table_log_likelihood,
)
from scoresde.likelihood import ExactDivergence, truncated_normal_dequantisation, uniform_dequantisation
from scoresde.likelihood.dequantisation import dequantise
from scoresde.solvers.table import Commit, Look, Nodes, stages

KEY = jax.random.key(17)


def exact_log_prob(sde, mixture, x, latent):
    """The density of the flow from the prior. The flow carries p_tmin to p_tmax, so at the same latent

    log p_model(x) = log p_tmin(x) + log prior(latent) - log p_tmax(latent).
    """
    mismatch = sde.prior_log_prob(latent) - mixture.marginal(sde, sde.t_max).log_prob(latent)
    return mixture.marginal(sde, sde.t_min).log_prob(x) + mismatch


TIGHT = {"rtol": 1e-8, "atol": 1e-8, "max_steps": 5000}
# Every float64 test of mixtures asks for the same compiled solve of each SDE: eight components, states (8, 2).


def tight(sde, mixture, x, divergence=exact_divergence, **settings):
    score = eightfold(mixture).score(sde)
    return log_likelihood(KEY, sde, score, float64(x), divergence=divergence, **TIGHT | settings)


@pytest.mark.parametrize("sde", SDES_IN_TURN, ids=name)
def test_log_density_of_mixtures_in_float64(x64, sde):
    for mixture in (shifted(), two_modes(), ring()):
        x = mixture.marginal(sde, sde.t_min).sample(KEY, 8)
        got = tight(sde, mixture, x, sigma_data=0.7)
        np.testing.assert_allclose(got.log_prob, exact_log_prob(sde, mixture, x, got.latent), atol=2e-6)
        assert np.all(got.success) and got.message == ""


@pytest.mark.parametrize("sde", SDES_IN_TURN, ids=name)
def test_log_density_by_hutchinsons_probes(x64, sde):
    """z^T diag(d) z = sum d for z = +-1: of an isotropic Gaussian the probes are exact."""
    x = shifted().sample(KEY, 8)
    got = tight(sde, shifted(), x, hutchinson(3))
    np.testing.assert_allclose(got.log_prob, exact_log_prob(sde, shifted(), x, got.latent), atol=2e-6)
    np.testing.assert_allclose(got.std_error, 0, atol=1e-6)
    mixed = tight(sde, two_modes(), x, hutchinson(3))  # of a mixture they are not, and the error bars say so
    assert np.sum(mixed.std_error > 1e-3) >= 4


@pytest.mark.parametrize("sde", SDES_IN_TURN, ids=name)
@pytest.mark.slow
def test_log_density_of_mixtures_in_float32(sde):
    for mixture in (two_modes(), ring()):
        x = mixture.sample(KEY, 32)
        got = log_likelihood(KEY, sde, eightfold(mixture).score(sde), x, divergence=exact_divergence)
        assert got.log_prob.dtype == got.latent.dtype == jnp.float32
        error = np.asarray(got.log_prob - exact_log_prob(sde, mixture, x, got.latent))
        assert np.max(np.abs(error)) < 4e-3 and abs(np.mean(error)) < 5e-4, error


def test_the_ring_takes_few_steps_and_a_tiny_error():
    """DESIGN.md, idea 3: VP at rtol = atol = 1e-5. Of the 13.5 steps allowed here about one is rejected."""
    sde, mixture = VP(), ring()
    x = mixture.sample(KEY, 256)
    got = log_likelihood(KEY, sde, mixture.score(sde), x, divergence=exact_divergence)
    error = np.asarray(got.log_prob - mixture.marginal(sde, sde.t_min).log_prob(x), np.float64)
    assert abs(np.mean(error)) < 1e-4
    steps = (np.asarray(got.num_evals) - 1) / 6  # Tsit5 evaluates six times a step and once at the start
    assert np.mean(steps) <= 13.5


@pytest.mark.slow
def test_the_error_falls_with_the_tolerance_and_depends_neither_on_sigma_data_nor_on_the_solver(x64):
    sde, mixture = Cosine(), ring()
    x = mixture.sample(KEY, 8)

    def error(**settings):
        got = tight(sde, mixture, x, **settings)
        return np.mean(np.abs(got.log_prob - exact_log_prob(sde, mixture, x, got.latent)))

    errors = [error(rtol=tolerance, atol=tolerance) for tolerance in (1e-3, 1e-5, 1e-7)]
    assert errors[1] < errors[0] / 5 and errors[2] < errors[1] / 5 and errors[2] < 1e-5, errors
    for settings in ({"sigma_data": 0.2}, {"sigma_data": 4.0}, {"solver": diffrax.Dopri5()}):
        assert error(**settings) < 2e-6, settings


def correlated(dim=6):
    """A Gaussian with a full covariance, so that the Jacobian of its score is not diagonal: (score, log-density)."""
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    values = np.linspace(0.1, 2.0, dim)

    def score(x, t, sde):
        spread = sde.alpha(t) ** 2 * values + sde.variance(t)
        with jax.default_matmul_precision("highest"):
            return -((x @ rotation) / spread[None]) @ rotation.T

    def log_prob(sde, x):
        """Pull-back of the prior through the linear flow, coordinate by coordinate."""
        y = np.asarray(x, np.float64) @ rotation
        std = [np.sqrt(float(sde.alpha(t)) ** 2 * values + float(sde.variance(t))) for t in (sde.t_min, sde.t_max)]
        prior = np.sum(-0.5 * (y * std[1] / std[0]) ** 2 / float(sde.variance(sde.t_max)), 1)
        return prior - dim / 2 * np.log(2 * np.pi * float(sde.variance(sde.t_max))) + np.sum(np.log(std[1] / std[0]))

    return score, log_prob, rng.normal(size=(3, dim)) * 0.5


def test_hutchinson_is_unbiased_and_its_standard_error_honest(x64):
    """150 seeds: the mean over probes is the exact value within 5 standard errors, the reported standard error is the
    spread over seeds, and it falls with the square root of the number of probes."""
    sde = Cosine()
    score, log_prob, x = correlated()
    exact = log_prob(sde, x)
    bound = jax.tree_util.Partial(lambda x, t: score(x, t, sde))
    same = log_likelihood(KEY, sde, bound, x, divergence=exact_divergence, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(same.log_prob, exact, atol=1e-5)
    spread = {}
    for probes in (2, 8):
        results = [
            log_likelihood(key, sde, bound, x, divergence=hutchinson(probes)) for key in jax.random.split(KEY, 150)
        ]
        values = np.stack([r.log_prob for r in results])
        reported = np.sqrt(np.mean(np.square(np.stack([r.std_error for r in results])), 0))
        measured = values.std(0, ddof=1)
        assert np.all(np.abs(values.mean(0) - exact) < 5 * measured / math.sqrt(150) + 1e-4)
        np.testing.assert_allclose(reported, measured, rtol=0.3)
        spread[probes] = measured
    np.testing.assert_allclose(spread[2] / spread[8], 2, rtol=0.35)


def test_probes_are_fixed_by_the_key_and_the_example():
    sde = Cosine()
    score, _, x = correlated()
    x = np.concatenate([x, x[:1]]).astype("f4")

    def bound(x, t):
        return score(x, t, sde)

    full = log_likelihood(KEY, sde, bound, x, divergence=hutchinson(2))
    part = log_likelihood(KEY, sde, bound, x[:2], divergence=hutchinson(2))
    np.testing.assert_allclose(part.log_prob, full.log_prob[:2], rtol=1e-5)
    np.testing.assert_allclose(part.std_error, full.std_error[:2], rtol=1e-4)
    again = log_likelihood(KEY, sde, bound, x, divergence=hutchinson(2))
    np.testing.assert_array_equal(again.log_prob, full.log_prob)
    other = log_likelihood(jax.random.key(18), sde, bound, x, divergence=hutchinson(2))
    assert np.any(np.abs(other.log_prob - full.log_prob) > 1e-3)
    # the same x at another place of the batch has probes of its own (four probes make a coincidence unlikely)
    many = log_likelihood(KEY, sde, bound, np.repeat(x[:1], 6, 0), divergence=hutchinson(1))
    assert len(np.unique(np.round(np.asarray(many.log_prob), 3))) > 1


def test_one_probe_has_no_standard_error_and_exact_has_none_to_report():
    sde, mixture = VP(), two_modes()
    x = mixture.sample(KEY, 3)
    default = log_likelihood(KEY, sde, mixture.score(sde), x)
    assert np.all(np.isnan(default.std_error)) and np.all(np.isfinite(default.log_prob))
    exact = log_likelihood(KEY, sde, mixture.score(sde), x, divergence=exact_divergence)
    np.testing.assert_array_equal(exact.std_error, 0)


def test_image_shaped_events(x64):
    sde = VP()
    mixture = GaussianMixture(np.zeros((1, 2, 3, 1)), [0.5], [1.0])
    x = mixture.sample(KEY, 3)
    got = log_likelihood(KEY, sde, mixture.score(sde), x, divergence=exact_divergence, **TIGHT)
    np.testing.assert_allclose(got.log_prob, exact_log_prob(sde, mixture, x, got.latent), atol=1e-6)
    assert got.latent.shape == x.shape and got.log_prob.shape == (3,)


def test_the_exact_divergence_is_the_trace_of_the_jacobian_whatever_the_chunk(x64):
    def field(u):
        return jnp.sin(u.ravel()[::-1].cumsum()).reshape(u.shape) * u

    u = float64(np.random.default_rng(1).normal(size=(2, 7)))
    trace = np.trace(np.asarray(jax.jacrev(field)(u)).reshape(14, 14))
    for chunk in (1, 3, 5, 14, 64):
        divergence = ExactDivergence(chunk=chunk)
        value, estimate = divergence(field, u, divergence.draw(KEY, u))
        np.testing.assert_allclose(value, field(u), rtol=1e-12)
        np.testing.assert_allclose(estimate, [trace], rtol=1e-10)
    probes = hutchinson(4000).draw(KEY, u)
    np.testing.assert_array_equal(np.abs(probes), 1)
    value, estimates = hutchinson(4000)(field, u, probes)
    np.testing.assert_allclose(value, field(u), rtol=1e-12)
    assert abs(np.mean(estimates) - trace) < 5 * np.std(estimates) / math.sqrt(4000)


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_bits_do_not_change_with_the_units(x64, scale):
    """Data in [-1, 1] and the same in [0, 2 scale]: densities change by the Jacobian, bits per dimension do not. (What
    may differ is noise of t_min and the prior, exactly known for each.)"""
    sde, width = VP(), 2 / 256
    base, x = two_modes(), np.linspace(-0.9, 0.7, 16).reshape(8, 2)
    other = GaussianMixture(scale * (base.means + 1), scale * base.stds, base.weights)
    bits = []
    for mixture, state, w in ((base, x, width), (other, scale * (x + 1), scale * width)):
        got = tight(sde, mixture, state)
        log_prob = got.log_prob - exact_log_prob(sde, mixture, state, got.latent) + mixture.log_prob(state)
        bits.append(bits_per_dim(log_prob, 2, w))
    np.testing.assert_allclose(bits[0], bits[1], atol=3e-6)


@pytest.mark.parametrize(("levels", "low", "high"), [(256, -1.0, 1.0), (256, 0.0, 1.0), (17, -3.0, 5.0), (2, 0.0, 1.0)])
def test_a_uniform_density_costs_log2_of_the_levels(levels, low, high):
    dims = 12
    log_prob = np.full(3, -dims * math.log(high - low))
    np.testing.assert_allclose(bits_per_dim(log_prob, dims, (high - low) / levels), math.log2(levels), rtol=1e-6)


def test_bits_of_continuous_data_are_refused():
    with pytest.raises(ValueError, match=r"bits per dimension are undefined for continuous data .*report nats"):
        bits_per_dim(np.zeros(2), 3, None)
    for width in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="bin_width must be positive and finite, got"):
            bits_per_dim(np.zeros(2), 3, width)


def test_dequantisation_is_the_manual_loop():
    """(levels + u - shift) bin_width with u ~ U[0, 1) from the call's own keys; log-densities averaged over repeats."""
    sde, mixture = VP(), two_modes()
    score = mixture.score(sde)
    levels, shift, width = np.array([[3, 9], [15, 0], [8, 8]], np.uint8), np.array([8.0, 7.5]), 0.125
    settings = {"divergence": exact_divergence, "rtol": 1e-4, "atol": 1e-4}
    values = []
    for k in range(3):
        key_noise, key_probes = jax.random.split(jax.random.fold_in(KEY, k))
        u = np.stack([np.asarray(jax.random.uniform(jax.random.fold_in(key_noise, i), (2,))) for i in range(3)])
        assert np.all((u >= 0) & (u < 1))
        x = ((levels.astype("f4") + u - shift) * width).astype("f4")
        values.append(np.asarray(log_likelihood(key_probes, sde, score, x, **settings).log_prob))
    got = dequantised_log_likelihood(KEY, sde, score, levels, bin_width=width, shift=shift, repeats=3, **settings)
    np.testing.assert_allclose(got.log_prob, np.mean(values, 0), rtol=1e-4)
    np.testing.assert_allclose(got.std_error, np.std(values, 0, ddof=1) / math.sqrt(3), rtol=1e-3)
    one = dequantised_log_likelihood(KEY, sde, score, levels, bin_width=width, shift=shift, **settings)
    np.testing.assert_allclose(one.log_prob, values[0], rtol=1e-4)
    part = dequantised_log_likelihood(KEY, sde, score, levels[:2], bin_width=width, shift=shift, **settings)
    np.testing.assert_allclose(part.log_prob, one.log_prob[:2], rtol=1e-4)


@pytest.mark.slow
def test_dequantised_bits_bound_the_mass_of_the_bins():
    """Jensen: the average of log p over a bin, plus log width, is at most the log of the bin's mass, and near it."""
    from scipy.stats import norm

    sde = VP()
    mixture = GaussianMixture([[0.0]], [0.5], [1.0])
    levels, width = np.arange(2, 14)[:, None], 0.2
    got = dequantised_log_likelihood(
        KEY, sde, mixture.score(sde), levels, bin_width=width, shift=8.0, repeats=64, divergence=exact_divergence,
        rtol=1e-3, atol=1e-3,
    )  # fmt: skip
    edges = (levels[:, 0] - 8.0) * width
    mass = np.log(norm(0, 0.5).cdf(edges + width) - norm(0, 0.5).cdf(edges))
    bound = np.asarray(got.log_prob) + math.log(width)
    assert np.all(bound < mass + 5 * np.asarray(got.std_error))
    assert np.all(bound > mass - 0.05 - 5 * np.asarray(got.std_error))


@pytest.mark.parametrize("std", [0.1, 0.3, 2.0])
def test_truncated_normal_noise_has_the_density_that_it_reports(std):
    """E[1/q(u)] = 1 on [0, 1) in one dimension, and moments of the truncated normal by another road."""
    from scipy.stats import truncnorm

    u, log_q = jax.vmap(lambda key: truncated_normal_dequantisation(std)(key, (2,)))(jax.random.split(KEY, 4000))
    law = truncnorm(-0.5 / std, 0.5 / std, 0.5, std)
    np.testing.assert_allclose(log_q, np.sum(law.logpdf(np.asarray(u, np.float64)), 1), atol=2e-4)
    assert np.all((u >= 0) & (u < 1)) and abs(np.std(u) - law.std()) < 5 * law.std() / math.sqrt(8000)
    with pytest.raises(ValueError, match="std must be positive and finite, got"):
        truncated_normal_dequantisation(-std)


@pytest.mark.parametrize(
    "law", [uniform_dequantisation, truncated_normal_dequantisation(50.0)], ids=["uniform", "normal"]
)
def test_noise_keeps_its_digits_and_stays_in_its_bin(law):
    """16-bit levels: u is not rounded to steps of 2^-8, and no draw is in the next bin, also where u rounds up to 1."""
    levels = np.array([[0, 1, 255, 40_000, 65_534, 65_535]], np.uint16).repeat(3000, 0)
    y, _ = dequantise(KEY, levels, 2.0**-16, levels[0].astype(float), law)
    u, _ = jax.vmap(lambda key: law(key, (6,)))(jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(3000)))
    np.testing.assert_array_equal(np.asarray(y) * 2.0**16, u)
    for shift, width in ((0.0, 1.0), (32767.5, 3e-5), (0.5, 0.1)):
        y, _ = dequantise(
            KEY, levels, width, shift, lambda key, shape: (jnp.full(shape, np.nextafter(np.float32(1), 0)), 0.0)
        )
        start = (levels - shift).astype(np.float32)
        assert np.all(y >= start * np.float32(width)) and np.all(y < (start + 1) * np.float32(width))


@pytest.mark.slow
def test_importance_weights_close_the_gap_to_the_mass_of_the_bins():
    """Wide bins over a narrow Gaussian: the plain average gives away 0.3 nats and more, the weighted one little; noise
    shaped like the density gives away less than uniform noise. The score is exact, so bounds hold to sampling error."""
    from scipy.stats import norm

    sde = VP()
    mixture = GaussianMixture([[0.0]], [0.5], [1.0])
    levels, width = np.repeat(np.arange(-1, 1), 8)[:, None], 1.5
    settings = {"bin_width": width, "repeats": 12, "divergence": exact_divergence, "rtol": 1e-3, "atol": 1e-3}
    run = jax.tree_util.Partial(dequantised_log_likelihood, KEY, sde, mixture.score(sde))
    mass = np.log(norm(0, 0.5).cdf(1.5) - 0.5) - math.log(width)
    plain, shaped = (
        run(levels + shift, shift=shift, **settings, **noise)
        for shift, noise in ((0, {}), (0, {"dequantisation": truncated_normal_dequantisation(0.4)}))
    )
    for got in (plain, shaped):
        assert np.all(got.log_prob <= got.importance)
        spread = np.std(got.importance, ddof=1) / 4
        assert np.mean(got.importance) < mass + 5 * spread and np.mean(got.importance) > mass - 0.1 - 5 * spread
    assert np.mean(plain.log_prob) < mass - 0.3
    np.testing.assert_allclose(np.mean(plain.log_prob), -math.log(0.5 * math.sqrt(2 * math.pi)) - 1.5, atol=0.4)


def test_the_fixed_grid_reaches_1e_4_nats_in_40_evaluations_and_bounds_its_error(x64):
    """The promise for the ring (float64, 256 points); the coarse table covers all but where its error crosses 0."""
    mixture = ring()
    for sde in (VP(), VE()):
        x = mixture.marginal(sde, sde.t_min).sample(KEY, 256)
        got = table_log_likelihood(KEY, sde, mixture.score(sde), x, angle_grid(sde, 39, 0.28, 0.25))
        error = np.asarray(got.log_prob - exact_log_prob(sde, mixture, x, got.latent))
        assert np.all(got.num_evals == 40) and np.all(got.num_checks == 21) and np.all(got.success)
        assert np.mean(np.abs(error)) < 1e-4 and np.max(np.abs(error)) < 5e-3
        assert np.mean(np.abs(error) < got.error) > 0.85 and np.mean(np.abs(error)) < np.mean(got.error) / 10


def midpoint_table(sde, grid):
    """du/dphi = v by the midpoint rule: two rows a step, the second of which looks off the base."""
    nodes = Nodes.at(sde, grid)
    phi = np.arctan2(nodes.sigma, nodes.alpha)
    middle = Nodes.at(sde, np.asarray(sde.time(-2 * np.log(np.tan((phi[1:] + phi[:-1]) / 2)))))
    start, end, half = nodes[:-1], nodes[1:], np.diff(phi) / 2
    r, rm, re = (np.hypot(v.alpha, v.sigma) for v in (start, middle, end))
    one, none = np.ones_like(half), np.zeros((len(half), 2))

    def rows(*columns):
        return np.stack(columns, 1)

    def newest(coefficient):
        return rows(none, rows(coefficient, 0 * one))

    slope = rows(start.sigma / start.alpha, middle.sigma / middle.alpha)
    c, d = -slope / rows(r, rm), -slope * rows(r, rm)
    look = Look(rows(start.t, middle.t), rows(one, rm / r), newest(rm * half), c, d)
    commit = Commit(rows(start.t, end.t), rows(one, re / r), newest(2 * re * half), none, none)
    return stages(nodes, look, commit)


def test_any_table_carries_the_log_density(x64):
    """With inner points or a history; Hutchinson's probes are exact of an isotropic Gaussian."""
    sde, mixture = VP(), shifted()
    x = mixture.sample(KEY, 4)
    for solver, n, size in ((midpoint_table, 60, 1e-3), (adams, 40, 1e-5)):
        got = table_log_likelihood(
            KEY, sde, mixture.score(sde), x, angle_grid(sde, n), solver=solver, divergence=hutchinson(2),
            estimate_error=False,
        )  # fmt: skip
        error = np.max(np.abs(got.log_prob - exact_log_prob(sde, mixture, x, got.latent)))
        assert size / 20 < error < size, (solver, n, error)
        assert np.all(np.isnan(got.error)) and not np.any(got.num_checks)
        np.testing.assert_allclose(got.std_error, 0, atol=1e-8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"grid": np.array([0.5, 0.1])}, r"the grid must start at t_max = 1, where the prior is, got 0\.5"),
        ({"grid": np.array([0.1, 1.0])}, "a grid must decrease strictly"),
        ({"solver": lambda sde, grid: ancestral(sde, grid[::-1])}, "solver must return a table without noise and with"),
        ({"x": np.ones((2, 3), "i4")}, "x must be floating point, got int32"),
    ],
)
def test_the_fixed_grid_refuses(settings, message):
    arguments = {"grid": np.array([1.0, 0.5, 0.1]), "x": np.ones((2, 3), "f4")} | settings
    with pytest.raises(ValueError, match="^" + message):
        table_log_likelihood(KEY, VP(), lambda x, t: -x, **arguments)


@pytest.mark.slow
def test_gradients_in_a_fixed_number_of_steps_are_the_exact_score(x64):
    """Without the mismatch of the prior (see exact_log_prob) the gradient is the score at t_min."""
    sde, mixture = VP(), two_modes()
    x = mixture.sample(KEY, 3)
    score = mixture.score(sde)

    def total(x):
        got = log_likelihood(KEY, sde, score, x, divergence=exact_divergence, steps=150, solver=diffrax.Bosh3())
        mismatch = sde.prior_log_prob(got.latent) - mixture.marginal(sde, sde.t_max).log_prob(got.latent)
        return jnp.sum(got.log_prob - mismatch), got.num_evals

    gradient, num_evals = jax.jit(jax.grad(total, has_aux=True))(x)
    np.testing.assert_allclose(gradient, score(x, sde.t_min), atol=1e-4)
    assert np.all(num_evals == 451)


def test_mean_with_error():
    values = np.array([1.0, 2.0, 4.0, 7.0])
    mean, error = mean_with_error(values)
    assert mean == 3.5 and error == pytest.approx(math.sqrt(sum((v - 3.5) ** 2 for v in values) / 3) / 2)
    for bad in (np.zeros(1), np.zeros((2, 2)), 3.0):
        with pytest.raises(ValueError, match="values must be one-dimensional with at least two entries, got shape"):
            mean_with_error(bad)


def test_too_few_steps_is_a_failure_with_a_message_and_no_wrong_number():
    sde, mixture = VP(), ring()
    x = mixture.sample(KEY, 4)
    got = log_likelihood(KEY, sde, mixture.score(sde), x, max_steps=4)
    assert not np.any(got.success) and np.all(np.isnan(got.log_prob)) and np.all(np.isnan(got.latent))
    assert got.message.startswith("4 of 4 examples (first: 0) stopped at max_steps = 4") and "\n" not in got.message
    exact = log_likelihood(KEY, sde, mixture.score(sde), x, max_steps=4, divergence=exact_divergence)
    assert np.all(np.isnan(exact.log_prob))


def test_a_bad_example_fails_alone():
    sde = VP()

    def score(x, t):
        return jnp.where(x[:, :1] > 50, jnp.nan, -x)

    got = log_likelihood(KEY, sde, score, np.array([[0.1, 0.2], [1e4, 0.0]], "f4"), max_steps=100)
    np.testing.assert_array_equal(got.success, [True, False])
    np.testing.assert_array_equal(np.isnan(got.log_prob), [False, True])


def test_num_evals_grow_with_the_work_and_jit_changes_nothing():
    sde, mixture = VP(), two_modes()
    score, x = mixture.score(sde), two_modes().sample(KEY, 3)
    traces = []

    @jax.jit
    def run(key, score, x):
        traces.append(1)
        return log_likelihood(key, sde, score, x, divergence=exact_divergence)

    inside, outside = run(KEY, score, x), log_likelihood(KEY, sde, score, x, divergence=exact_divergence)
    np.testing.assert_allclose(inside.log_prob, outside.log_prob, atol=2e-4)
    np.testing.assert_allclose(inside.num_evals, outside.num_evals, atol=12)  # rounding may tip a rejection
    tight = log_likelihood(KEY, sde, score, x, divergence=exact_divergence, rtol=1e-6, atol=1e-6)
    assert np.all(tight.num_evals > outside.num_evals)
    run(jax.random.key(1), jax.tree.map(lambda a: a * 1.01, score), x)
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"x": np.ones((2, 3), np.uint8)},
            r"x must be floating point, got uint8: for integer data use dequantised_log",
        ),
        ({"x": np.ones(3, "f4")}, r"x must have shape \(B, \*event\) with at least one event axis, got \(3,\)"),
        ({"x": np.ones((0, 3), "f4")}, r"x must have shape \(B, \*event\) with B >= 1, got \(0, 3\)"),
        ({"divergence": "exact"}, r"divergence must be hutchinson\(probes\) or exact_divergence, got 'exact'"),
        ({"divergence": hutchinson}, r"divergence must be hutchinson\(probes\) or exact_divergence"),
        ({"divergence": ExactDivergence}, r"divergence must be hutchinson\(probes\) or exact_divergence"),
        ({"rtol": 0.0}, r"rtol must be positive and finite, got 0\.0"),
        ({"sigma_data": -1.0}, r"sigma_data must be positive and finite, got -1\.0"),
        ({"solver": diffrax.Euler()}, r"solver must be an explicit Runge-Kutta method"),
        ({"score": lambda x, t: x[:, :1]}, r"score\(x, t\) must return the shape of x, \(1, 3\), got \(1, 1\)"),
    ],
)
def test_refusals(settings, message):
    arguments = {"score": lambda x, t: -x, "x": np.ones((2, 3), "f4")} | settings
    with pytest.raises(ValueError, match="^" + message) as error:
        log_likelihood(KEY, VP(), **arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("probes", [0, -1, 1.5, True, None])
def test_a_wrong_number_of_probes_is_refused(probes):
    with pytest.raises(ValueError, match="probes must be a whole number of at least 1, got"):
        hutchinson(probes)


@pytest.mark.parametrize("chunk", [0, -1, 1.5])
def test_a_wrong_chunk_is_refused(chunk):
    with pytest.raises(ValueError, match="chunk must be a whole number of at least 1, got"):
        ExactDivergence(chunk=chunk)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"levels": np.ones((2, 3), "f4")}, r"levels must be integers, got float32: for continuous data"),
        ({"bin_width": 0.0}, r"bin_width must be positive and finite, got 0\.0"),
        ({"bin_width": None}, r"bin_width must be positive and finite, got None"),
        ({"levels": np.ones((0, 3), int)}, r"x must have shape \(B, \*event\) with B >= 1, got \(0, 3\)"),
        ({"repeats": 0}, r"repeats must be a whole number of at least 1, got 0"),
        ({"repeats": 1.5}, r"repeats must be a whole number of at least 1, got 1\.5"),
    ],
)  # fmt: skip
def test_dequantisation_refuses(settings, message):
    arguments = {"levels": np.ones((2, 3), np.uint8), "bin_width": 0.1} | settings
    with pytest.raises(ValueError, match="^" + message):
        dequantised_log_likelihood(KEY, VP(), lambda x, t: -x, **arguments)
