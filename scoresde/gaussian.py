"""Gaussian mixtures under a linear SDE: every quantity of the diffusion in closed form.

If x_0 ~ sum_k w_k N(m_k, diag s_k^2) then x_t ~ sum_k w_k N(alpha m_k, diag v_k), v_k = alpha^2 s_k^2 + sigma^2, and

    score(x, t) = -sum_k r_k(x) (x - alpha m_k) / v_k,      r_k = posterior probability of component k given x_t.

This is the oracle against which samplers, likelihoods and losses are tested, and a source of toy data.

Given a linear measurement y = A x_0 + sigma_y n it stays a mixture, now with full covariances (``posterior``):

    V_k = A S_k A^T + sigma_y^2 I,      K_k = S_k A^T V_k^(-1),      S_k = diag s_k^2,
    x_0 | y ~ sum_k w_k(y) N(m_k + K_k (y - A m_k), (I - K_k A) S_k),      w_k(y) ~ w_k N(y; A m_k, V_k).
"""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jax.typing import ArrayLike

from scoresde.arrays import example_keys, expand, widened
from scoresde.score import Score
from scoresde.sde import SDE


@jax.tree_util.register_pytree_node_class
class GaussianMixture:
    """The mixture sum_k weights_k N(means_k, diag(stds_k^2)). A pytree of its three arrays.

    Args:
        means: (K, *event), usually (K, D).
        stds: (K,) for isotropic components or (K, *event), positive.
        weights: (K,), positive; normalised to sum to one.

    Raises:
        ValueError: shapes that do not belong together, or values out of range.
    """

    def __init__(self, means: ArrayLike, stds: ArrayLike, weights: ArrayLike):
        self.means, self.stds, self.weights = (jnp.asarray(a, dtype=float) for a in (means, stds, weights))
        count, event = self.means.shape[:1], self.means.shape[1:]
        if self.means.ndim < 2:
            raise ValueError(f"means must have shape (K, *event), got {self.means.shape}")
        if self.stds.shape not in (count, count + event):
            raise ValueError(f"stds must have shape {count} or {count + event}, got {self.stds.shape}")
        if self.weights.shape != count:
            raise ValueError(f"weights must have shape {count}, got {self.weights.shape}")
        for name, values in (("stds", self.stds), ("weights", self.weights)):
            if not (jnp.all(values > 0) and jnp.all(jnp.isfinite(values))):
                raise ValueError(f"{name} must be positive and finite, got {values.tolist()}")
        if not jnp.all(jnp.isfinite(self.means)):
            raise ValueError("means must be finite")
        self.weights = self.weights / jnp.sum(self.weights)

    def tree_flatten(self) -> tuple[tuple[jax.Array, ...], None]:
        return (self.means, self.stds, self.weights), None

    @classmethod
    def tree_unflatten(cls, _: None, leaves: tuple[jax.Array, ...]) -> "GaussianMixture":
        mixture = object.__new__(cls)
        mixture.means, mixture.stds, mixture.weights = leaves
        return mixture

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.means.shape[1:]

    @partial(jax.jit, static_argnames="n")
    def sample(self, key: jax.Array, n: int, first: ArrayLike = 0) -> jax.Array:
        """Draw (n, *event) exact samples; row i is sample first + i of ``key``, a function of the two alone."""

        def draw(key: jax.Array) -> jax.Array:
            key_component, key_noise = jax.random.split(key)
            k = jax.random.categorical(key_component, jnp.log(self.weights))
            return self.means[k] + self.stds[k] * jax.random.normal(key_noise, self.event_shape, self.means.dtype)

        return jax.vmap(draw)(example_keys(key, n, first))

    @jax.jit
    def log_prob(self, x: ArrayLike) -> jax.Array:
        """Log-density in nats: (B, *event) -> (B,)."""
        return jax.nn.logsumexp(_log_joint(self, x, jnp.array(0.0), jnp.array(1.0))[0], axis=1)

    def marginal(self, sde: SDE, t: ArrayLike) -> "GaussianMixture":
        """The law of x_t at one time t, itself a mixture."""
        alpha, variance = sde.alpha(t), sde.variance(t)
        stds = jnp.sqrt(alpha**2 * self.stds**2 + variance)
        return self.tree_unflatten(None, (alpha * self.means, stds, self.weights))

    def score(self, sde: SDE) -> Score:
        """The exact score(x, t) = grad log p_t(x): x of shape (B, *event), t a scalar or (B,)."""
        return Partial(_mixture_score, self, sde)

    def posterior(self, matrix: ArrayLike, y: ArrayLike, sigma_y: float) -> "CorrelatedMixture":
        """The law of x_0 given y = matrix x_0 + sigma_y n, for events of one axis.

        Args:
            matrix: (m, D).
            y: (m,), one measurement.
            sigma_y: standard deviation of its noise, positive.

        Raises:
            ValueError: shapes that do not belong together, sigma_y not positive.
        """
        A, y = (jnp.asarray(v, self.means.dtype) for v in (matrix, y))
        if self.means.ndim != 2 or A.ndim != 2 or A.shape[1] != self.means.shape[1] or y.shape != A.shape[:1]:
            raise ValueError(f"matrix (m, D) and y (m,) must fit means {self.means.shape}, got {A.shape} and {y.shape}")
        if not 0 < sigma_y < math.inf:
            raise ValueError(f"sigma_y must be positive and finite, got {sigma_y!r}")

        return _posterior(self, A, y, jnp.asarray(sigma_y, self.means.dtype))


@partial(jax.tree_util.register_dataclass, data_fields=["means", "covariances", "weights"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class CorrelatedMixture:
    """The mixture sum_k weights_k N(means_k, covariances_k), such as ``GaussianMixture.posterior`` returns.

    Attributes:
        means: (K, D).
        covariances: (K, D, D), positive definite.
        weights: (K,), which sum to one.
    """

    means: jax.Array
    covariances: jax.Array
    weights: jax.Array

    @property
    def mean(self) -> jax.Array:
        """(D,)."""
        return self.weights @ self.means

    @property
    def covariance(self) -> jax.Array:
        """(D, D)."""
        away = self.means - self.mean[None]
        return jnp.einsum("k,kij->ij", self.weights, self.covariances + away[:, :, None] * away[:, None, :])

    @partial(jax.jit, static_argnames="n")
    def sample(self, key: jax.Array, n: int, first: ArrayLike = 0) -> jax.Array:
        """Draw (n, D) exact samples; row i is sample first + i of ``key``, a function of the two alone."""
        roots = jnp.linalg.cholesky(self.covariances)

        def draw(key: jax.Array) -> jax.Array:
            key_component, key_noise = jax.random.split(key)
            k = jax.random.categorical(key_component, jnp.log(self.weights))
            return self.means[k] + roots[k] @ jax.random.normal(key_noise, self.means.shape[1:], self.means.dtype)

        return jax.vmap(draw)(example_keys(key, n, first))

    @jax.jit
    def log_joint(self, x: ArrayLike) -> jax.Array:
        """log w_k N(x; m_k, C_k), (B, D) -> (B, K): its softmax over k says from which component x is."""
        normal = jax.vmap(jax.scipy.stats.multivariate_normal.logpdf, in_axes=(None, 0, 0))
        normal = jax.vmap(normal, in_axes=(0, None, None))
        return jnp.log(self.weights)[None] + normal(jnp.asarray(x), self.means, self.covariances)

    def log_prob(self, x: ArrayLike) -> jax.Array:
        """Log-density in nats: (B, D) -> (B,)."""
        return jax.nn.logsumexp(self.log_joint(x), axis=1)

    def marginal(self, sde: SDE, t: ArrayLike) -> "CorrelatedMixture":
        """The law of x_t at one time t, itself a mixture."""
        noise = sde.variance(t) * jnp.eye(self.means.shape[1], dtype=self.means.dtype)
        return CorrelatedMixture(
            sde.alpha(t) * self.means, sde.alpha(t) ** 2 * self.covariances + noise[None], self.weights
        )

    def score(self, sde: SDE) -> Score:
        """The exact score(x, t): x of shape (B, D), t a scalar or (B,)."""
        return Partial(_correlated_score, self, sde)


@jax.jit
def _posterior(mixture: GaussianMixture, A: jax.Array, y: jax.Array, sigma_y: jax.Array) -> CorrelatedMixture:
    def component(m: jax.Array, s: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        S, unit = jnp.diag(s**2), jnp.eye(len(m), dtype=m.dtype)
        V = A @ S @ A.T + sigma_y**2 * jnp.eye(len(y), dtype=m.dtype)
        K = jnp.linalg.solve(V, A @ S).T
        left = unit - K @ A  # (I - K A) S, written so that it is symmetric and positive to rounding
        evidence = jnp.asarray(jax.scipy.stats.multivariate_normal.logpdf(y, A @ m, V))
        return m + K @ (y - A @ m), left @ S @ left.T + sigma_y**2 * K @ K.T, evidence

    with jax.default_matmul_precision("highest"):
        stds = jnp.broadcast_to(expand(mixture.stds, mixture.means), mixture.means.shape)
        means, covariances, evidence = jax.vmap(component)(mixture.means, stds)
    return CorrelatedMixture(means, covariances, jax.nn.softmax(jnp.log(mixture.weights) + evidence))


def _correlated_score(mixture: CorrelatedMixture, sde: SDE, x: jax.Array, t: jax.Array) -> jax.Array:
    def of_example(x: jax.Array, t: jax.Array) -> jax.Array:
        return jax.grad(lambda x: mixture.marginal(sde, t).log_prob(x[None])[0])(x)

    x = widened(x)
    return jax.vmap(of_example)(x, jnp.broadcast_to(t, x.shape[:1]).astype(x.dtype))


def _log_joint(
    mixture: GaussianMixture, x: ArrayLike, variance: jax.Array, alpha: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """log w_k N(x; alpha m_k, v_k) of shape (B, K), and the components' scores -(x - alpha m_k)/v_k, (B, K, *event)."""
    count, event = mixture.means.shape[0], mixture.event_shape
    x = widened(jnp.asarray(x, jnp.result_type(float, x)))
    if x.shape[1:] != event:
        raise ValueError(f"x must have shape (B, {', '.join(map(str, event))}) like the means, got {x.shape}")
    x = x[:, None]
    stds = mixture.stds.reshape(1, count, *(mixture.stds.shape[1:] or (1,) * len(event))).astype(x.dtype)
    alpha, variance = (
        jnp.broadcast_to(a, x.shape[:1]).astype(x.dtype).reshape(-1, *(1,) * (x.ndim - 1)) for a in (alpha, variance)
    )
    v = jnp.broadcast_to(alpha**2 * stds**2 + variance, (x.shape[0], count, *event))
    scores = -(x - alpha * mixture.means[None].astype(x.dtype)) / v
    axes = tuple(range(2, x.ndim))
    log_normal = -0.5 * jnp.sum(scores**2 * v + jnp.log(2 * math.pi * v), axis=axes)
    return jnp.log(mixture.weights).astype(x.dtype)[None] + log_normal, scores


def _mixture_score(mixture: GaussianMixture, sde: SDE, x: jax.Array, t: jax.Array) -> jax.Array:
    log_joint, scores = _log_joint(mixture, x, sde.variance(t), sde.alpha(t))
    return jnp.sum(expand(jax.nn.softmax(log_joint, axis=1), scores) * scores, axis=1)
