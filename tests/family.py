"""The members of each family, and what the tests know about them by another road than the code.

A new SDE is one line in ``SDES`` and ``TEXTBOOK`` and inherits every test; the solvers' own family is in
``solver_family.py``.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoresde import SDE, VE, VP, Cosine, GaussianMixture, RectifiedFlow, SubVP


@dataclasses.dataclass(frozen=True)
class Custom(SDE):
    """A user's SDE: two functions of time and nothing else, so that its ``time`` is the base class's bisection."""

    def log_alpha(self, t):
        return -(t + 2 * t**3)

    def variance(self, t):
        return 0.3 * t + 2 * t**2


SDES = (VP(), SubVP(), VE(), Cosine(), RectifiedFlow(), Custom())
# For the dearest batteries: two of the family always, the others with ``-m slow``.
SDES_IN_TURN = tuple(pytest.param(sde, marks=() if isinstance(sde, VP | VE) else pytest.mark.slow) for sde in SDES)
OTHER_PARAMETERS = (VP(beta_min=0.0, beta_max=5.0), SubVP(beta_min=1.0, beta_max=6.0), VE(sigma_min=0.2, sigma_max=9.0))

# Published (alpha, sigma^2, f, g^2) of t, in NumPy.
TEXTBOOK = {
    "VP": lambda s, t: (
        np.exp(-0.25 * t**2 * (s.beta_max - s.beta_min) - 0.5 * t * s.beta_min),
        1 - np.exp(-0.5 * t**2 * (s.beta_max - s.beta_min) - t * s.beta_min),
        -0.5 * (s.beta_min + t * (s.beta_max - s.beta_min)),
        s.beta_min + t * (s.beta_max - s.beta_min),
    ),
    "SubVP": lambda s, t: (
        np.exp(-0.25 * t**2 * (s.beta_max - s.beta_min) - 0.5 * t * s.beta_min),
        (1 - np.exp(-0.5 * t**2 * (s.beta_max - s.beta_min) - t * s.beta_min)) ** 2,
        -0.5 * (s.beta_min + t * (s.beta_max - s.beta_min)),
        (s.beta_min + t * (s.beta_max - s.beta_min))
        * (1 - np.exp(-2 * (0.5 * t**2 * (s.beta_max - s.beta_min) + t * s.beta_min))),
    ),
    "VE": lambda s, t: (
        np.ones_like(t),
        s.sigma_min**2 * (s.sigma_max / s.sigma_min) ** (2 * t),
        np.zeros_like(t),
        2 * np.log(s.sigma_max / s.sigma_min) * s.sigma_min**2 * (s.sigma_max / s.sigma_min) ** (2 * t),
    ),
    "Cosine": lambda s, t: (
        np.cos(np.pi * t / 2),
        np.sin(np.pi * t / 2) ** 2,
        -np.pi / 2 * np.tan(np.pi * t / 2),
        np.pi * np.tan(np.pi * t / 2),
    ),
    "RectifiedFlow": lambda s, t: (1 - t, t**2, -1 / (1 - t), 2 * t / (1 - t)),
    "Custom": lambda s, t: (
        np.exp(-t - 2 * t**3),
        0.3 * t + 2 * t**2,
        -1 - 6 * t**2,
        0.3 + 4 * t + 2 * (1 + 6 * t**2) * (0.3 * t + 2 * t**2),
    ),
}


def textbook(sde, t):
    """(alpha, sigma^2, f, g^2) in float64 from the published formulas."""
    return TEXTBOOK[type(sde).__name__](sde, np.asarray(t, np.float64))


def name(value):
    """A parametrised test's id: the SDE's or function's name."""
    return getattr(value, "__name__", type(value).__name__)


def gaussian():
    return GaussianMixture(np.zeros((1, 2)), np.array([[0.5, 1.5]]), np.ones(1))


def shifted():
    return GaussianMixture(np.array([[1.5, -0.8]]), np.array([0.7]), np.ones(1))


def two_modes():
    return GaussianMixture(np.array([[-1.2, 0.3], [1.0, -0.5]]), np.array([0.3, 0.4]), np.array([0.35, 0.65]))


def ring(modes=8, std=0.1):
    angle = 2 * np.pi * np.arange(modes) / modes
    return GaussianMixture(np.stack([np.cos(angle), np.sin(angle)], 1), np.full(modes, std), np.ones(modes))


def eightfold(mixture):
    """The same law as eight components, the last one split: laws of one shape share their compiled functions."""
    copies = 8 - len(mixture.weights) + 1
    parts = [1] * (len(mixture.weights) - 1) + [copies]
    weights = np.repeat(np.asarray(mixture.weights) / np.array(parts), parts)
    return GaussianMixture(np.repeat(mixture.means, parts, 0), np.repeat(mixture.stds, parts, 0), weights)


def mixture_moments(mixture):
    """Mean and standard deviation of each coordinate of a mixture of isotropic or diagonal Gaussians, in NumPy."""
    means, weights = np.asarray(mixture.means, np.float64), np.asarray(mixture.weights, np.float64)
    stds = np.asarray(mixture.stds, np.float64)
    stds = np.broadcast_to(stds if stds.ndim > 1 else stds[:, None], means.shape)
    mean = weights @ means
    return mean, np.sqrt(weights @ (stds**2 + means**2) - mean**2)


def gaussian_law(sde, table, mean, std, start=None):
    """Mean and std of the table's result for data N(mean, std^2) in one dimension, exactly: everything is linear.

    Each register is kept as its coefficients on (1, x_start, z_0, z_1, ...). ``start`` is the law (mean, std) at the
    first time; the exact marginal by default.
    """
    rows, width = table.num_evals + 1, table.commit.A.shape[1]
    alpha, variance, _, _ = textbook(sde, table.look.t)
    spread = alpha**2 * std**2 + variance
    base = np.zeros(rows + 2)
    base[1] = 1.0
    history = np.zeros((width, rows + 2))
    for k in range(rows):
        base = table.commit.a[k] * base + table.commit.A[k] @ history
        base[2 + k] += table.commit.s[k]
        if k < table.num_evals:
            point = table.look.b[k] * base + table.look.B[k] @ history
            score = -point / spread[k]
            score[0] += alpha[k] * mean / spread[k]
            history = np.concatenate([[table.look.c[k] * point + table.look.d[k] * score], history[:-1]])
    first = textbook(sde, table.commit.t[0])
    m, s = start or (first[0] * mean, np.sqrt(first[0] ** 2 * std**2 + first[1]))
    return base[0] + base[1] * m, np.sqrt((base[1] * s) ** 2 + np.sum(base[2:] ** 2))


def score_on(sde, table, mixture):
    """The exact score of a mixture at the times of a table, from the published alpha and sigma^2.

    These are looked up by time in traced arrays, so that all SDEs and solvers of a shape share one compilation.
    """
    alpha, variance, _, _ = textbook(sde, table.look.t)
    return jax.tree_util.Partial(_looked_up_score, table.look.t, alpha, variance, mixture)


def _looked_up_score(times, alpha, variance, mixture, x, t):
    k = jnp.argmin(jnp.abs(jnp.asarray(times, x.dtype) - t))
    a, v = jnp.asarray(alpha, x.dtype)[k], jnp.asarray(variance, x.dtype)[k]
    stds = mixture.stds if mixture.stds.ndim > 1 else mixture.stds[:, None]
    spread = (jnp.broadcast_to(stds, mixture.means.shape) ** 2 * a**2 + v)[None]
    pull = -(x[:, None] - a * mixture.means[None]) / spread
    logit = jnp.log(mixture.weights)[None] - 0.5 * jnp.sum(pull**2 * spread + jnp.log(spread), 2)
    return jnp.sum(jax.nn.softmax(logit, 1)[..., None] * pull, 1)


def assert_moments(x, mean, std, bias=0.0):
    """Sample mean and std of each coordinate of x (n, D) within five standard errors, plus ``bias`` relative to std."""
    x = np.asarray(x, np.float64)
    n = len(x)
    centred = x - x.mean(0)
    variance = np.mean(centred**2, 0)
    error_mean = 5 * np.sqrt(variance / n) + bias * std
    kurtosis = np.mean(centred**4, 0) / variance**2
    error_std = 5 * std * np.sqrt(np.maximum(kurtosis - 1, 0.1) / n) / 2 + bias * std
    assert np.all(np.abs(x.mean(0) - mean) < error_mean), (x.mean(0), mean, error_mean)
    assert np.all(np.abs(np.sqrt(variance) - std) < error_std), (np.sqrt(variance), std, error_std)


def times_of(sde, n=41):
    """Float32-representable times that crowd both ends of [t_min, t_max], ends included."""
    start, span = sde.t_min, sde.t_max - sde.t_min
    near_data = start + span * np.geomspace(1e-7, 0.3, n)
    near_noise = sde.t_max - span * np.geomspace(1e-7, 0.3, n)
    t = np.concatenate([[start, sde.t_max], near_data, np.linspace(start, sde.t_max, n), near_noise])
    return np.unique(np.clip(t.astype(np.float32), np.float32(start), np.float32(sde.t_max)))


def float64(values):
    return jnp.asarray(values, jnp.float64)


def run_in_numpy(table, x, score, noise=None):
    """The loop of ``integrate`` in NumPy float64: x (B, ...), score (x, t) like x, noise (num_evals + 1, B) or none."""
    history = np.zeros((table.commit.A.shape[1], *x.shape))
    for k in range(table.num_evals + 1):
        x = (
            table.commit.a[k] * x
            + np.tensordot(table.commit.A[k], history, 1)
            + (0 if noise is None else table.commit.s[k] * noise[k])
        )
        if k < table.num_evals:
            point = table.look.b[k] * x + np.tensordot(table.look.B[k], history, 1)
            h = table.look.c[k] * point + table.look.d[k] * score(point, table.look.t[k])
            history = np.concatenate([h[None], history[:-1]])
    return x


def score_in_numpy(sde, means, stds, weights):
    """The exact score of a one-dimensional mixture, from the published alpha and sigma^2."""

    def score(x, t):
        alpha, variance, _, _ = textbook(sde, t)
        spread = alpha**2 * stds**2 + variance
        pull = -(x[:, None] - alpha * means) / spread
        density = weights * np.exp(-0.5 * pull**2 * spread) / np.sqrt(spread)
        return np.sum(density * pull, 1) / np.sum(density, 1)

    return score


def laws():
    """The mixture's two components, and the mixture."""
    whole = two_modes()
    return *(GaussianMixture(whole.means[k : k + 1], whole.stds[k : k + 1], [1.0]) for k in range(2)), whole


def drawn(n, seed=0):
    """Examples of the mixture and their components."""
    rng, whole = np.random.default_rng(seed), laws()[-1]
    classes = (rng.random(n) > float(whole.weights[0])).astype(np.int32)
    x = np.asarray(whole.means)[classes] + np.asarray(whole.stds)[classes, None] * rng.normal(size=(n, 2))
    return jnp.asarray(x, float), jnp.asarray(classes)


def exact(sde):
    """log p_t(c | x) of the two components."""
    *parts, whole = laws()

    def log_probs(x, t):
        each = [jax.vmap(lambda x, t, m=m: m.marginal(sde, t).log_prob(x[None])[0]) for m in parts]
        joint = jnp.stack([log_prob(x, jnp.broadcast_to(t, len(x))) for log_prob in each], 1)
        return jax.nn.log_softmax(joint + jnp.log(whole.weights)[None], axis=1)

    return log_probs
