"""How far a solver or a sampler is from what is known exactly; for benchmarks and notebooks."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import scoresde as ss

MEAN, STD = 0.7, 0.4  # of the data in ``law_error``


def flow_error(sde: ss.SDE, score: Callable, x: jax.Array, exact: jax.Array, table: ss.Table) -> float:
    """Mean distance of the table's end points from the exact ones; histories of one length compile once."""
    got = ss.integrate(jax.random.key(0), score, ss.solvers.padded(table, history=5), x)
    return float(jnp.mean(jnp.linalg.norm(got - exact, axis=1)))


def law_error(sde: ss.SDE, table: ss.Table) -> float:
    """Distance of (mean, std) from the truth: each register as its coefficients on (1, standard start, z_0, z_1...)."""
    t = np.concatenate([table.look.t, table.times[[0, -1]]])
    alpha, variance = np.asarray(sde.alpha(t)), np.asarray(sde.variance(t))
    mean, spread = alpha * MEAN, alpha**2 * STD**2 + variance
    rows = table.num_evals
    base, history = np.zeros(rows + 3), np.zeros((table.commit.A.shape[1], rows + 3))
    base[:2] = mean[-2], np.sqrt(spread[-2])
    for k in range(rows + 1):
        base = table.commit.a[k] * base + table.commit.A[k] @ history
        base[2 + k] += table.commit.s[k]
        if k < rows:
            point = table.look.b[k] * base + table.look.B[k] @ history
            value = (table.look.c[k] - table.look.d[k] / spread[k]) * point
            value[0] += table.look.d[k] * mean[k] / spread[k]
            history = np.concatenate([value[None], history[:-1]])
    return float(np.hypot(base[0] - mean[-1], np.linalg.norm(base[1:]) - np.sqrt(spread[-1])))


def posterior_errors(posterior: ss.CorrelatedMixture, x: jax.Array, weights: jax.Array) -> tuple[float, float, float]:
    """Of points x (n, D) with weights (n,) that sum to one, against the posterior's mean m, covariance C and weights w:

    |mean - m| / sqrt(tr C),      |cov - C|_F / |C|_F,      sum_k |share of mode k - w_k| / 2,

    the share of a mode being its mean posterior probability.
    """
    mean = weights @ x
    away = x - mean[None]
    covariance = (away * weights[:, None]).T @ away
    shares = weights @ jax.nn.softmax(posterior.log_joint(x), axis=1)
    return (
        float(jnp.linalg.norm(mean - posterior.mean) / jnp.sqrt(jnp.trace(posterior.covariance))),
        float(jnp.linalg.norm(covariance - posterior.covariance) / jnp.linalg.norm(posterior.covariance)),
        float(jnp.sum(jnp.abs(shares - posterior.weights)) / 2),
    )
