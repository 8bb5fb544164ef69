"""Twisted sequential Monte Carlo: exact posterior sampling in the limit of many particles.

The prior is a chain, x_t -> x_s ~ p(x_s | x_t) = N(a x_t + A D(x_t), v I) by ancestral steps, whose end D(x_0) is
measured: p(y | D) = N(y; A(D), sigma_y^2 I). With any positive functions psi_t, psi at the end being this likelihood,

    proposal    x_s ~ q = N(a x_t + A (D + (sigma^2/alpha) grad log psi_t(x_t)), v I)
    weight      w <- w p(x_s | x_t) psi_s(x_s) / (q(x_s | x_t) psi_t(x_t)),        w = psi_T(x_T) at first

leaves weighted particles of the law of the chain given y; resampling where few of them carry the weight keeps that. The
grid's chain is the prior here, so its steps decide how near the prior is to the model's, the particles how near the
result is to the posterior. psi_t is pigdm's N(y; A D, r^2 A A^T + sigma_y^2 I).

Reference: Wu et al., "Practical and asymptotically exact conditional sampling in diffusion models" (2023), algorithm 1.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from scoresde.arrays import example_keys, flatten
from scoresde.checks import whole
from scoresde.inverse.measurement import Measurement, Operator, conjugate_gradients, data_shape, spread
from scoresde.score import Score
from scoresde.sde import SDE
from scoresde.solvers.implicit import ancestral
from scoresde.solvers.table import Table


def twisted_smc(
    key: jax.Array,
    sde: SDE,
    score: Score,
    operator: Operator,
    y: ArrayLike,
    sigma_y: float,
    grid: ArrayLike,
    *,
    first: ArrayLike = 0,
    **options: Any,
) -> jax.Array:
    """One draw for each example from the particles of ``twisted_particles``, by their weights: (B, *event).

    The arguments are those of ``twisted_particles``; many draws for one measurement are cheaper from its particles.
    """
    key, key_draw = jax.random.split(key)
    x, log_weights = twisted_particles(key, sde, score, operator, y, sigma_y, grid, first=first, **options)
    chosen = jax.vmap(jax.random.categorical)(example_keys(key_draw, x.shape[0], first), log_weights)
    return jax.vmap(lambda x, k: x[k])(x, chosen)


def twisted_particles(
    key: jax.Array,
    sde: SDE,
    score: Score,
    operator: Operator,
    y: ArrayLike,
    sigma_y: float,
    grid: ArrayLike,
    *,
    particles: int = 64,
    resample_below: float = 0.5,
    sigma_data: float = 1.0,
    iterations: int = 5,
    shape: tuple[int, ...] | None = None,
    first: ArrayLike = 0,
) -> tuple[jax.Array, jax.Array]:
    """Weighted particles of the posterior of each example; B * particles evaluations of the score a step.

    Args:
        key: random key; row i, example first + i, depends on (key, first + i) and its own y alone.
        sde: the SDE.
        score: the prior's score.
        operator: any differentiable function of arrays (B, *event).
        y: (B, ...) or (1, ...), real.
        sigma_y: standard deviation of its noise.
        grid: (n + 1,) decreasing times of the ancestral chain.
        particles: of each example, at least 2; errors fall as its square root.
        resample_below: resample where 1/sum w^2 falls below this share of the particles; 1 for always.
        sigma_data: standard deviation of the data, for psi.
        iterations: of the conjugate gradients of psi.
        shape: (B, *event) of x; that of y by default, where operator and score take it.
        first: number of the first example, as for ``ss.sample``.

    Returns:
        particles (B, particles, *event), without left-over noise, and the logarithms of their weights (B, particles),
        which sum to one for each example.
    """
    m = Measurement.of(sde, score, operator, y, sigma_y)
    if not 0 < resample_below <= 1:
        raise ValueError(f"resample_below must be in (0, 1], got {resample_below!r}")
    if whole("particles", particles) < 2:
        raise ValueError(f"particles must be at least 2, got {particles}")
    shape = data_shape(m, shape)
    table = ancestral(sde, grid)
    options = jnp.asarray(sigma_data, m.y.dtype), whole("iterations", iterations), resample_below
    return _particles(example_keys(key, shape[0], first), m, table, options, shape, particles)


@partial(jax.jit, static_argnames=("shape", "count"))
def _particles(
    keys: jax.Array, m: Measurement, table: Table, options: tuple[Any, ...], shape: tuple[int, ...], count: int
) -> tuple[jax.Array, jax.Array]:
    dtype = m.y.dtype
    times = jnp.asarray(table.times, dtype)
    coefficients = tuple(jnp.asarray(v[1:], dtype) for v in (table.commit.a, table.commit.A[:, 0], table.commit.s))
    sigma_data, *settings = options
    r2 = spread(m.sde, times, sigma_data).at[-1].set(0)  # at the end psi is the likelihood itself

    def of_example(m: Measurement, key: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        key_start, key_steps = jax.random.split(key)
        x = jnp.asarray(table.start_std, dtype) * jax.random.normal(key_start, (count, *shape[1:]), dtype)
        twisted = _twisted(m, settings[0], x, times[0], y, r2[0])
        rows = jax.random.split(key_steps, len(times) - 1), times[:-1], times[1:], r2[1:], *coefficients
        (_, (data, _, _), log_w), _ = jax.lax.scan(partial(_step, m, *settings, y), (x, twisted, twisted[1]), rows)
        return data, jax.nn.log_softmax(log_w)

    y = jnp.broadcast_to(m.y, (shape[0], *m.y.shape[1:]))
    return m.mapped(of_example, keys, y)


def _twisted(m: Measurement, iterations: Any, x: jax.Array, t: jax.Array, y: jax.Array, r2: jax.Array) -> Any:
    """(D, log psi, grad log psi) of particles x (count, *event) for V = r2 A A^T + sigma_y^2 I."""

    def solve(residual: jax.Array, push: Any, adjoint: Any, pull: Any) -> jax.Array:
        return conjugate_gradients(lambda u: r2 * push(adjoint(u)) + m.sigma_y**2 * u, residual, iterations)

    def of_particle(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        _, data, residual, v, gradient = m.gradient(x, t, y, solve)
        return data, -0.5 * jnp.sum(residual * v), gradient

    return jax.vmap(of_particle)(x)


def _step(m: Measurement, iterations: Any, resample_below: Any, y: jax.Array, carry: Any, row: Any) -> Any:
    x, (data, log_psi, gradient), log_w = carry
    key, t, t_next, r2, a, A, s = row
    key_resample, key_noise = jax.random.split(key)
    chosen, log_w = _resample(key_resample, log_w, resample_below)
    x, data, log_psi, gradient = (v[chosen] for v in (x, data, log_psi, gradient))
    drift = A * m.sde.variance(t) / m.sde.alpha(t) * gradient
    z = jax.random.normal(key_noise, x.shape, x.dtype)
    moved = jnp.sum(flatten(z**2 - (z + drift / s) ** 2), axis=1) / 2  # log p - log q
    x = a * x + A * data + drift + s * z
    new = _twisted(m, iterations, x, t_next, y, r2)
    return (x, new, log_w + moved + new[1] - log_psi), None


def _resample(key: jax.Array, log_w: jax.Array, below: Any) -> tuple[jax.Array, jax.Array]:
    """Systematic resampling if 1/sum w^2 < below * count: the indices that go on, and their log-weights."""
    count = len(log_w)
    w = jax.nn.softmax(log_w)
    positions = (jnp.arange(count, dtype=w.dtype) + jax.random.uniform(key, dtype=w.dtype)) / count
    drawn = jnp.clip(jnp.searchsorted(jnp.cumsum(w), positions), 0, count - 1)
    few = 1 / jnp.sum(w**2) < below * count
    return jnp.where(few, drawn, jnp.arange(count)), jnp.where(few, jnp.zeros_like(log_w), log_w)
