"""Scores of the posterior: each (sde, score, operator, y, sigma_y, **options) -> score. See the head of the package.

All of them call the score and differentiate it example by example, at the cost of one evaluation and one product with
J^T, and what is said at each.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jax.typing import ArrayLike

from scoresde.arrays import flatten, is_concrete
from scoresde.checks import whole
from scoresde.inverse.measurement import Measurement, Operator, conjugate_gradients, spread
from scoresde.score import Score, given, redirected
from scoresde.sde import SDE


def dps(sde: SDE, score: Score, operator: Operator, y: ArrayLike, sigma_y: float, *, zeta: float | None = 1.0) -> Score:
    """Diffusion posterior sampling: s - (zeta/sigma^2) grad |y - A(D)|, each example by its own norm.

    Chung et al., "Diffusion posterior sampling for general noisy inverse problems" (2023), algorithm 1: there a step of
    constant length zeta along the gradient of the norm, whatever sigma_y; here per unit of log sigma/alpha, so that it
    is a score and means the same for every solver and SDE. With ``zeta=None`` equation 16 instead, the likelihood at
    the mean, -grad |y - A(D)|^2/(2 sigma_y^2): it knows sigma_y but is stiff, needing steps of log rho near
    sigma_y^2/var(A x_0). Neither tends to the posterior: the spread of x_0 given x_t is left out.

    Args:
        sde: the SDE.
        score: the prior's score.
        operator: any differentiable function of arrays (B, *event).
        y: (B, ...) or (1, ...), real, like what ``operator`` returns.
        sigma_y: standard deviation of the noise of y, positive.
        zeta: the length, in the units of x times those of x over those of y; None for the likelihood.

    Raises:
        ValueError: sigma_y or zeta not positive; later, while tracing: an operator whose result is not like y.
    """
    if zeta is None:
        return _score(_likelihood, sde, score, operator, y, sigma_y)
    return _score(_normalised, sde, score, operator, y, sigma_y, _positive("zeta", zeta))


def reconstruction(
    sde: SDE, score: Score, operator: Operator, y: ArrayLike, sigma_y: float, *, w: float = 1.0
) -> Score:
    """Reconstruction guidance: V = (rho^2/w + sigma_y^2) I; the arguments as for ``dps``.

    Ho et al., "Video diffusion models" (2022), equation 7, which has no sigma_y. w > 0 weighs the measurement; J <= I,
    so that steps stay stable for w |A|^2 < 2.
    """
    return _score(_reconstruction, sde, score, operator, y, sigma_y, _positive("w", w))


def pigdm(
    sde: SDE,
    score: Score,
    operator: Operator,
    y: ArrayLike,
    sigma_y: float,
    *,
    sigma_data: float = 1.0,
    iterations: int = 5,
) -> Score:
    """Pseudo-inverse guidance: V = r^2 A A^T + sigma_y^2 I; the arguments as for ``dps``.

    Song et al., "Pseudoinverse-guided diffusion models for inverse problems" (2023), equation 7, without the further
    factor r^2 of their DDIM steps, which Bayes' rule does not have. Exact for data N(m, sigma_data^2 I).

    Args:
        sigma_data: standard deviation of the data, for r^2.
        iterations: of the conjugate gradients that invert V; 1 is enough where A A^T = c I.
    """
    options = _positive("sigma_data", sigma_data), whole("iterations", iterations)
    return _score(_pigdm, sde, score, operator, y, sigma_y, *options)


def tmpd(sde: SDE, score: Score, operator: Operator, y: ArrayLike, sigma_y: float, *, diagonal: bool = False) -> Score:
    """Tweedie moment projection: C = (sigma^2/alpha) J, the covariance of x_0 given x_t; arguments as for ``dps``.

    Boys et al., "Tweedie moment projected diffusions for inverse problems" (2023). V is built as a matrix, by as many
    products with J^T as y has entries: for small measurements. With ``diagonal`` V is the diagonal of its row sums
    instead (theirs for images), at the cost of one more product. Exact for Gaussian data (but for ``diagonal``).
    """
    return _score(_row_sums if diagonal else _matrix, sde, score, operator, y, sigma_y)


def mmps(sde: SDE, score: Score, operator: Operator, y: ArrayLike, sigma_y: float, *, iterations: int = 3) -> Score:
    """Moment matching posterior sampling: tmpd's V, inverted by conjugate gradients; the arguments as for ``dps``.

    Rozet et al., "Learning diffusion priors from observations by expectation maximization" (2024), section 3.2. Each
    iteration costs one product with J^T; more are needed as sigma_y becomes small beside the data, if the score is
    exact: that of a trained network has directions of negative variance, before which the iterations stop.
    """
    return _score(_mmps, sde, score, operator, y, sigma_y, whole("iterations", iterations))


def replacement(
    sde: SDE, score: Score, operator: Operator, y: ArrayLike, sigma_y: float, *, iterations: int = 5
) -> Score:
    """D <- D + A^+ (y - A D) for a linear A: what is measured follows y at the noise of each time, the rest the prior.

    Song et al. (2021), appendix I.2, as a score: the measured part of x_t is drawn to N(alpha y, sigma^2), its law, so
    a solver keeps it noisy and the rest sees it so. y is taken as exact, sigma_y plays no part beyond its check: at the
    end, after ``ss.with_denoising``, A x = y, and what is free carries no noise. The rest is not drawn from the
    posterior: at each time it sees the known part's noise, not its value alone (``repaint`` improves on that).

    Args:
        iterations: of the conjugate gradients for A^+; 1 is enough where A A^T = c I.
    """
    return proximal(sde, score, operator, y, sigma_y, strength=None, iterations=iterations)


def proximal(
    sde: SDE,
    score: Score,
    operator: Operator,
    y: ArrayLike,
    sigma_y: float,
    *,
    strength: float | None = 1.0,
    iterations: int = 5,
) -> Score:
    """D <- argmin_x |y - A x|^2/sigma_y^2 + strength |x - D|^2/rho^2 for a linear A; no derivative of the score.

    The data step of ``diffpir``; ``strength`` None means 0, where the limit is D + A^+ (y - A D), ``replacement``.
    """
    m = Measurement.of(sde, score, operator, y, sigma_y)
    strength = 0.0 if strength is None else _positive("strength", strength)
    return given(Partial(_proximal, m, strength, whole("iterations", iterations)), m.y)


def _positive(name: str, value: float) -> float:
    if is_concrete(value) and not 0 < value < np.inf:
        raise ValueError(f"{name} must be positive and finite, got {value!r}")
    return value


def _score(
    inverse: Callable[..., jax.Array],
    sde: SDE,
    score: Score,
    operator: Operator,
    y: ArrayLike,
    sigma_y: float,
    *options: Any,
) -> Score:
    m = Measurement.of(sde, score, operator, y, sigma_y)
    return given(Partial(_guided, Partial(inverse), m, options), m.y)


def _guided(
    inverse: Partial, m: Measurement, options: tuple[Any, ...], x: jax.Array, t: jax.Array, y: jax.Array
) -> jax.Array:
    def of_example(m: Measurement, x: jax.Array, t: jax.Array, y: jax.Array) -> jax.Array:
        s, _, _, _, gradient = m.gradient(x, t, y, lambda r, *maps: inverse(m, t, r, *maps, *options))
        return s + gradient

    return m.over_examples(of_example, x, t, y)


def _likelihood(m: Measurement, t: Any, residual: jax.Array, push: Any, adjoint: Any, pull: Any) -> jax.Array:
    return residual / m.sigma_y**2


def _normalised(
    m: Measurement, t: Any, residual: jax.Array, push: Any, adjoint: Any, pull: Any, zeta: Any
) -> jax.Array:
    length = jnp.sqrt(jnp.sum(residual**2))
    return zeta / m.sde.variance(t) * residual / jnp.maximum(length, jnp.finfo(residual.dtype).tiny)


def _reconstruction(
    m: Measurement, t: Any, residual: jax.Array, push: Any, adjoint: Any, pull: Any, w: Any
) -> jax.Array:
    weight = w * m.sde.alpha(t) ** 2
    return weight / (m.sde.variance(t) + weight * m.sigma_y**2) * residual


def _pigdm(
    m: Measurement, t: Any, residual: jax.Array, push: Any, adjoint: Any, pull: Any, sigma_data: Any, iterations: Any
) -> jax.Array:
    r2 = spread(m.sde, t, sigma_data)
    return conjugate_gradients(lambda u: r2 * push(adjoint(u)) + m.sigma_y**2 * u, residual, iterations)


def _tweedie(m: Measurement, t: Any, push: Any, adjoint: Any, pull: Any) -> Any:
    """u -> A C A^T u with C = (sigma^2/alpha) J^T, which is symmetric for a true score."""
    return lambda u: push(m.sde.variance(t) / m.sde.alpha(t) * pull(adjoint(u)))


def _matrix(m: Measurement, t: Any, residual: jax.Array, push: Any, adjoint: Any, pull: Any) -> jax.Array:
    covariance, size = _tweedie(m, t, push, adjoint, pull), residual.size
    units = jnp.eye(size, dtype=residual.dtype)
    V = flatten(jax.vmap(covariance)(units.reshape(size, *residual.shape))).T + m.sigma_y**2 * units
    return jnp.linalg.solve(V, residual.reshape(size)).reshape(residual.shape)


def _row_sums(m: Measurement, t: Any, residual: jax.Array, push: Any, adjoint: Any, pull: Any) -> jax.Array:
    rows = _tweedie(m, t, push, adjoint, pull)(jnp.ones_like(residual))
    return residual / (jnp.maximum(rows, 0) + m.sigma_y**2)


def _mmps(
    m: Measurement, t: Any, residual: jax.Array, push: Any, adjoint: Any, pull: Any, iterations: Any
) -> jax.Array:
    covariance = _tweedie(m, t, push, adjoint, pull)
    return conjugate_gradients(lambda u: covariance(u) + m.sigma_y**2 * u, residual, iterations, m.sigma_y**2)


def _proximal(m: Measurement, strength: Any, iterations: Any, x: jax.Array, t: jax.Array, y: jax.Array) -> jax.Array:
    def of_example(m: Measurement, x: jax.Array, t: jax.Array, y: jax.Array) -> jax.Array:
        data, s = m.denoised(x, t)
        value, push, adjoint = m.linearised(data, y)
        c = strength * (m.sigma_y * m.sde.alpha(t)) ** 2 / m.sde.variance(t)
        change = conjugate_gradients(lambda u: adjoint(push(u)) + c * u, adjoint(y - value), iterations)
        return redirected(m.sde, s[None], t, change[None])[0]

    return m.over_examples(of_example, x, t, y)
