"""The circle: its equations, the inverse of the angle, and digits at both ends of time."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family import SDES

from scoresde import VE, VP, GaussianMixture, SubVP, angle, exact_divergence, log_likelihood

SCALES = (0.3, 1.0, 2.0)


@pytest.mark.parametrize("sde", SDES)
@pytest.mark.parametrize("scale", SCALES)
def test_radius_and_angle_are_those_of_the_plane(sde, scale, x64):
    """(alpha sigma_d, sigma) in polar coordinates, from the log-SNR on the host too."""
    t = np.linspace(sde.t_min, sde.t_max, 9)
    alpha, sigma = np.asarray(sde.alpha(t)), np.asarray(sde.sigma(t))
    plane = alpha * scale + 1j * sigma
    np.testing.assert_allclose(angle.radius(sde, t, scale), np.abs(plane), rtol=1e-13)
    np.testing.assert_allclose(angle.radius_of(alpha, sigma, scale), np.abs(plane), rtol=1e-13)
    np.testing.assert_allclose(angle.angle(sde, t, scale), np.angle(plane), rtol=1e-12)
    np.testing.assert_allclose(angle.angle_of(np.asarray(sde.log_snr(t)), scale), np.angle(plane), rtol=1e-11)
    cos, sin = angle.cos_sin(alpha, sigma, scale)
    np.testing.assert_allclose(np.asarray(cos + 1j * sin), plane / np.abs(plane), rtol=1e-12)
    np.testing.assert_allclose(angle.secant_squared(sde, t, scale), 1 / np.cos(np.angle(plane)) ** 2, rtol=1e-10)
    np.testing.assert_allclose(angle.rho_of(np.asarray(sde.log_snr(t))), sigma / alpha, rtol=1e-11)


@pytest.mark.parametrize("sde", SDES)
@pytest.mark.parametrize("scale", SCALES)
def test_the_time_of_an_angle_is_its_inverse_within_the_span(sde, scale, x64):
    t = jnp.linspace(sde.t_min, sde.t_max, 9)
    span = jnp.asarray(sde.t_max), jnp.asarray(sde.t_min)
    np.testing.assert_allclose(angle.time_at(sde, angle.angle(sde, t, scale), scale, span), t, rtol=1e-8, atol=1e-10)
    beyond = angle.time_at(sde, jnp.array([1e-9, math.pi / 2 - 1e-9]), scale, span)
    np.testing.assert_allclose(beyond, [sde.t_min, sde.t_max], rtol=1e-12)


def test_noise_far_below_rounding_is_solved_in_float32():
    """Log-SNRs of -35 to -60, where pi/2 - phi is below float32's eps: times, and the likelihood of a Gaussian."""
    for sde in (VP(beta_max=70.0), VP(beta_max=119.0), SubVP(beta_max=119.0), VE(sigma_max=1e13)):
        t = jnp.linspace(sde.t_min, sde.t_max, 99)
        found = angle.time_at(sde, angle.angle(sde, t, 1.0), 1.0, (t[0], t[-1]))
        seen = sde.log_snr(t) > -30
        np.testing.assert_allclose(found[seen], t[seen], rtol=2e-2)
        assert np.all(np.isfinite(found)) and np.all(found[~seen] > found[seen].max())
    law = GaussianMixture(np.array([[0.5, -1.0]]), np.array([0.4]), np.ones(1))
    sde, x = VP(beta_max=70.0), law.sample(jax.random.key(0), 2)
    found = log_likelihood(jax.random.key(1), sde, law.score(sde), x, divergence=exact_divergence)
    assert not found.message
    np.testing.assert_allclose(found.log_prob, law.log_prob(x), atol=0.01)


def test_squares_keep_their_digits():
    """cos^2 and sin^2 = 1/(1 + e^(+-x)), against exact fractions where one of them is far below rounding."""
    cos2, sin2 = angle.squares_of(np.array([-100.0, 0.0, 100.0]), 1.0)
    np.testing.assert_allclose(cos2, [math.exp(-100), 0.5, 1], rtol=1e-15)
    np.testing.assert_allclose(sin2, cos2[::-1], rtol=0)
    np.testing.assert_allclose(angle.squares_of(0.0, 3.0), [0.9, 0.1], rtol=1e-14)
