"""Published weights against the papers' own forms (their prediction, their times), learned uncertainty on a toy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from family import VE, VP, name, textbook

from scoresde import Cosine, Preconditioner, RectifiedFlow, log_normal
from scoresde.training import (
    denoising_errors,
    init_uncertainty,
    min_snr_weight,
    p2_weight,
    sigmoid_weight,
    uncertainty,
    with_uncertainty,
)

VARIANCE, SHRINK = 0.6, 0.8
# The same log-SNRs, from -10 to -2 log 1e-3, at different times.
SAME_RANGE = (VP(beta_max=19.9), RectifiedFlow(), VE(sigma_min=1e-3, sigma_max=np.exp(5.0)))


def errors(alpha, sigma2):
    """(noise, data): expected squared errors of the score -SHRINK x/v for x_0 ~ N(0, VARIANCE), v = Var x_t."""
    share = sigma2 / (alpha**2 * VARIANCE + sigma2)
    m = (1 - SHRINK * share) / alpha  # x_0_hat = m x_t
    return share * (SHRINK**2 - 2 * SHRINK) + 1, (m * alpha - 1) ** 2 * VARIANCE + m**2 * sigma2


def objective(sde, weight):
    """E over uniform times of w(t) E(eps_hat - eps)^2, by the trapezium rule in log t (t for VE)."""
    t = np.geomspace(sde.t_min, sde.t_max, 10_001) if sde.t_min else np.linspace(0, sde.t_max, 10_001)
    alpha, sigma2, _, _ = textbook(sde, t)
    values = np.asarray(weight(sde, jnp.asarray(t))) * errors(alpha, sigma2)[0]
    return np.trapezoid(values, t) / (sde.t_max - sde.t_min)


def midpoints(sde, n=50_000):
    return sde.t_min + (sde.t_max - sde.t_min) * (np.arange(n) + 0.5) / n


@pytest.mark.parametrize(("place", "gamma"), [(0, 0.5), (1, 5.0), (2, 1.0)])
def test_min_snr_is_its_weight_on_the_data_under_cosine_times(x64, place, gamma):
    """Hang et al.: mean over the steps of the cosine schedule of min(SNR, gamma) ||x_0_hat - x_0||^2."""
    sde = SAME_RANGE[place]
    alpha, sigma2, _, _ = textbook(Cosine(), midpoints(Cosine()))
    published = np.mean(np.minimum(alpha**2 / sigma2, gamma) * errors(alpha, sigma2)[1])
    np.testing.assert_allclose(objective(sde, min_snr_weight(gamma, Cosine())), published, rtol=2e-4)
    alpha, sigma2, _, _ = textbook(sde, midpoints(sde))  # and under the SDE's own times
    own = np.mean(np.minimum(alpha**2 / sigma2, gamma) * errors(alpha, sigma2)[1])
    np.testing.assert_allclose(objective(sde, min_snr_weight(gamma)), own, rtol=2e-4)


@pytest.mark.parametrize(("gamma", "k"), [(1.0, 1.0), (0.5, 0.3), (0.0, 1.0)])
def test_p2_is_its_weight_on_the_terms_of_the_bound(x64, gamma, k):
    """Choi et al.: lambda_t/(k + SNR)^gamma on L_t = KL(posterior || model) of DDPM with variance beta_t, with
    lambda_t = (1 - beta_t)(1 - abar_t)/beta_t; twice that, since DDPM's simple loss has no half."""
    sde = VP()
    t = np.linspace(sde.t_min, sde.t_max, 50_001)
    abar = textbook(sde, t)[0] ** 2
    before, abar = abar[:-1], abar[1:]
    beta = 1 - abar / before
    kl = (np.sqrt(before) * beta / (1 - abar)) ** 2 * errors(np.sqrt(abar), 1 - abar)[1] / (2 * beta)
    published = 2 * np.mean((1 - beta) * (1 - abar) / beta / (k + abar / (1 - abar)) ** gamma * kl)
    np.testing.assert_allclose(objective(sde, p2_weight(gamma, k)), published, rtol=1e-3)
    for other in SAME_RANGE[1:]:
        own = objective(Cosine(), p2_weight(gamma, k))
        np.testing.assert_allclose(objective(other, p2_weight(gamma, k, Cosine())), own, rtol=2e-4)


@pytest.mark.parametrize("bias", [-2.0, 2.0])
@pytest.mark.parametrize("sde", SAME_RANGE, ids=name)
def test_the_sigmoid_is_a_weight_over_the_log_snr(x64, sde, bias):
    """Kingma and Gao: int sigmoid(bias - lambda) E||eps_hat - eps||^2 dlambda, by midpoints in lambda."""
    low, high = (float(sde.log_snr(t)) for t in (sde.t_max, sde.t_min))
    edges = np.linspace(low, high, 50_001)
    snr = np.exp(0.5 * (edges[1:] + edges[:-1]))
    published = np.sum(1 / (1 + snr * np.exp(-bias)) * errors(1.0, 1 / snr)[0]) * (edges[1] - edges[0])
    np.testing.assert_allclose(objective(sde, sigmoid_weight(bias)) * (sde.t_max - sde.t_min), published, rtol=2e-4)


def test_weights_keep_their_digits_at_both_ends():
    for sde in SAME_RANGE:
        t = jnp.linspace(sde.t_min, sde.t_max, 50)
        for weight in (min_snr_weight(), p2_weight(), p2_weight(0.5, 2.0, Cosine()), sigmoid_weight(1.0)):
            compiled = jax.jit(partial(weight, sde))
            single = np.asarray(compiled(t))
            with jax.enable_x64(True):
                np.testing.assert_allclose(single, compiled(jnp.asarray(np.asarray(t, np.float64))), rtol=2e-4)


def test_learned_uncertainty_is_the_log_of_the_mean_loss_at_each_level():
    """EDM2's claim on a toy whose mean loss is known: exp(u) is E[w e | t] of a fixed score, over three decades."""
    sde, times = VP(), log_normal(0.0, 1.5)
    weight = Preconditioner(sde, 0.5).karras_weight(0.0, 1.5)

    def score(x, t):
        alpha, sigma2 = sde.alpha(t)[:, None], sde.variance(t)[:, None]
        return -SHRINK * x / (alpha**2 * VARIANCE + sigma2)

    def loss(params, key):
        key_x, key_loss = jax.random.split(key)
        x = np.sqrt(VARIANCE) * jax.random.normal(key_x, (256, 8))
        t, importance, error = denoising_errors(key_loss, sde, score, x, times=times)
        losses = weight(sde, t) * importance * error
        return jnp.mean(with_uncertainty(losses, uncertainty(params, sde, t)))

    optimizer = optax.adam(optax.cosine_decay_schedule(0.1, 600))

    def step(carry, key):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, key), state)
        return (optax.apply_updates(params, updates), state), None

    params = init_uncertainty()
    np.testing.assert_array_equal(uncertainty(params, sde, jnp.array([0.1, 0.9])), 0)
    carry = (params, optimizer.init(params))
    (params, _), _ = jax.jit(lambda c, k: jax.lax.scan(step, c, k))(carry, jax.random.split(jax.random.key(0), 600))
    rho = np.geomspace(0.05, 20, 30)
    t = sde.time(-2 * jnp.log(jnp.asarray(rho)))
    expected = (1 + rho**2 / 0.25) * errors(1.0, rho**2)[0]
    np.testing.assert_allclose(jnp.exp(uncertainty(params, sde, t)), expected, rtol=0.12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: min_snr_weight(0.0), r"gamma must be positive, got 0\.0"),
        (lambda: p2_weight(-1.0), r"gamma must be at least 0, got -1\.0"),
        (lambda: p2_weight(1.0, 0.0), r"k must be positive, got 0\.0"),
        (lambda: init_uncertainty(3), r"features must be an even whole number of at least 2, got 3"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match="^" + message):
        make()
