"""The reverse SDE through diffrax, in a coordinate in which its noise is additive: a reference for the tables.

In u = x/r with r^2 = sigma_d^2 alpha^2 + sigma^2, the angle phi = arctan(sigma/(alpha sigma_d)) and the clock
lambda = log(alpha/sigma), which runs forward as noise becomes data (dphi = -sin(phi) cos(phi) dlambda, g^2 dt =
-2 sigma^2 dlambda), the reverse SDE dx = [f x - g^2 score] dt + g dw (Anderson 1982) is

    du = sin(phi) (sin(phi) u - 2 eps_hat) dlambda + sqrt(2) sin(phi) dW,        eps_hat = -sigma score.

The probability flow has eps_hat once and no noise. The noise depends on the time alone, so stochastic Runge-Kutta
methods for additive noise apply: strong order 1.5 with two evaluations a step (ShARK: Foster, dos Reis and Strange 2023,
equation 6.1; SRA1: Roessler 2010). The state keeps unit scale and every coefficient is at most 2.
"""

from functools import partial
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jax.typing import ArrayLike

from scoresde.flow import Flow, angle, radius
from scoresde.score import Score, as_partial, check_score
from scoresde.sde import SDE, example_keys, is_concrete


def reverse_sde(
    key: jax.Array,
    sde: SDE,
    score: Score,
    x: ArrayLike,
    t_start: float,
    t_end: float,
    *,
    steps: int = 200,
    solver: diffrax.AbstractSRK | None = None,
    sigma_data: float = 1.0,
) -> Flow:
    """Carry x from ``t_start`` down to ``t_end`` by the reverse SDE, in steps of equal length in the log-SNR.

    Args:
        key: random key; example i's Brownian path depends on (key, i) alone and is the same for all numbers of steps.
        sde: the SDE.
        score: ``score(x, t)``; called with B = 1 under ``vmap``.
        x: (B, *event), the states at ``t_start``.
        t_start: a time in [t_min, t_max], above ``t_end``.
        t_end: a time in [t_min, t_max].
        steps: the number of steps.
        solver: a stochastic Runge-Kutta method of diffrax; ``diffrax.ShARK()`` by default, ``diffrax.SRA1()`` is alike.
        sigma_data: scale of u, best the standard deviation of the data.

    Raises:
        ValueError: times that do not descend within [t_min, t_max], steps or scale not positive, an unsuitable solver.
    """
    x = jnp.asarray(x, jnp.result_type(float, x))
    if x.ndim < 1 or not len(x):
        raise ValueError(f"x must have shape (B, *event) with B >= 1, got {x.shape}")
    if is_concrete(t_start) and is_concrete(t_end):
        low, high = sde.t_min * (1 - 1e-6), sde.t_max * (1 + 1e-6)
        if not low <= t_end < t_start <= high:
            raise ValueError(
                f"times must descend within [t_min, t_max] = [{sde.t_min:g}, {sde.t_max:g}], got {t_start} to {t_end}"
            )
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be a whole number of at least 1, got {steps!r}")
    if not sigma_data > 0:
        raise ValueError(f"sigma_data must be positive, got {sigma_data!r}")
    solver = solver or diffrax.ShARK()
    if not isinstance(solver, diffrax.AbstractSRK):
        raise ValueError(f"solver must be a stochastic Runge-Kutta method such as diffrax.ShARK(), got {solver!r}")
    start, end, scale = (jnp.asarray(v, x.dtype) for v in (t_start, t_end, sigma_data))
    return _reverse(key, sde, as_partial(score), x, start, end, scale, solver, steps)


@partial(jax.jit, static_argnames=("solver", "steps"))
def _reverse(
    key: jax.Array,
    sde: SDE,
    score: Partial,
    x: jax.Array,
    t_start: jax.Array,
    t_end: jax.Array,
    sigma_data: jax.Array,
    solver: diffrax.AbstractSRK,
    steps: int,
) -> Flow:
    start, end = sde.log_snr(t_start) / 2, sde.log_snr(t_end) / 2

    def time(lam: jax.Array) -> jax.Array:
        return jnp.clip(sde.time(2 * lam), t_end, t_start)

    def drift(lam: jax.Array, u: jax.Array, _: Any) -> jax.Array:
        t = time(lam)
        point = (radius(sde, t, sigma_data) * u)[None]
        eps_hat = -sde.sigma(t) * check_score(score(point, t), point)[0]
        sine = jnp.sin(angle(sde, t, sigma_data))
        return sine * (sine * u - 2 * eps_hat)

    def solve(key: jax.Array, x: jax.Array) -> jax.Array:
        def diffusion(lam: jax.Array, u: jax.Array, _: Any) -> Any:
            weight = jnp.sqrt(2.0).astype(x.dtype) * jnp.sin(angle(sde, time(lam), sigma_data))
            return lineax.DiagonalLinearOperator(jnp.broadcast_to(weight, x.shape))

        like = jax.ShapeDtypeStruct(x.shape, x.dtype)
        path = diffrax.VirtualBrownianTree(
            start, end, tol=(end - start) * 2.0**-16, shape=like, key=key, levy_area=diffrax.SpaceTimeLevyArea
        )
        solution = diffrax.diffeqsolve(
            diffrax.MultiTerm(diffrax.ODETerm(drift), diffrax.ControlTerm(diffusion, path)),
            solver,
            start,
            end,
            (end - start) / steps,
            x / radius(sde, t_start, sigma_data),
            max_steps=steps,
            throw=False,
        )
        return solution.ys[-1] * radius(sde, t_end, sigma_data)

    with jax.default_matmul_precision("highest"):
        x = jax.vmap(solve)(example_keys(key, len(x)), x)
    success = jnp.all(jnp.isfinite(x.reshape(len(x), -1)), axis=1)
    num_evals = jnp.full(x.shape[:1], steps * len(solver.tableau.b_sol))
    return Flow(x, num_evals, success, steps)
