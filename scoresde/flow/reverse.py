"""The reverse SDE through diffrax, in a coordinate in which its noise is additive: a reference for the tables.

In u = x/r, the angle phi (see ``angle``) and the clock lambda = log(alpha/sigma), which runs forward as noise becomes
data (dphi = -sin(phi) cos(phi) dlambda, g^2 dt = -2 sigma^2 dlambda), the reverse SDE dx = [f x - g^2 score] dt + g dw
(Anderson 1982) is

    du = sin(phi) (sin(phi) u - 2 eps_hat) dlambda + sqrt(2) sin(phi) dW,        eps_hat = -sigma score.

The probability flow has eps_hat once and no noise. The noise depends on the time alone, so stochastic Runge-Kutta
methods for additive noise apply: strong order 1.5 with two evaluations a step (ShARK: Foster, dos Reis and Strange
2023, equation 6.1; SRA1: Roessler 2010). The state keeps unit scale and no coefficient exceeds 2. These methods ask for
the integral of the path over a step besides its increment, both given by diffrax's Brownian tree (Jelincic, Foster and
Kidger 2024), which is not the path of ``brownian_path``: that knows increments only, and allows strong order one.
"""

from functools import partial
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import lineax
from jax.tree_util import Partial
from jax.typing import ArrayLike

from scoresde.angle import angle, radius
from scoresde.arrays import example_keys, expand, is_concrete, widened
from scoresde.checks import examples, whole
from scoresde.flow.probability import Flow
from scoresde.score import Score, as_partial, check_score, each
from scoresde.sde import SDE

TREE = 2.0**-16  # of the way: the tree's resolution, below which it interpolates with the right law


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
    first: ArrayLike = 0,
) -> Flow:
    """Carry x from ``t_start`` down to ``t_end`` by the reverse SDE, in steps of equal length in the log-SNR.

    Args:
        key: random key. Example i's Brownian path depends on (key, i) alone, and on ``t_start`` and ``t_end``: it is
            the same for all numbers of steps and solvers.
        sde: the SDE.
        score: ``score(x, t)``; called with B = 1 under ``vmap``.
        x: (B, *event), the states at ``t_start``.
        t_start: a time in [t_min, t_max], above ``t_end``; all of it is ``sde.t_max`` to ``sde.t_min``.
        t_end: a time in [t_min, t_max].
        steps: the number of steps. All numbers share one compilation.
        solver: a stochastic Runge-Kutta method of diffrax; ``diffrax.ShARK()`` by default, ``diffrax.SRA1()`` is alike.
        sigma_data: scale of u, best the standard deviation of the data.
        first: number of the first example: row i is example first + i of ``key``, as in a larger batch.

    Raises:
        ValueError: times that do not descend within [t_min, t_max], steps or scale not positive, an unsuitable solver.
    """
    x = widened(jnp.asarray(x, jnp.result_type(float, x)))
    examples(x)
    if is_concrete(t_start) and is_concrete(t_end):
        low, high = sde.t_min * (1 - 1e-6), sde.t_max * (1 + 1e-6)
        if not low <= t_end < t_start <= high:
            raise ValueError(
                f"times must descend within [t_min, t_max] = [{sde.t_min:g}, {sde.t_max:g}], got {t_start} to {t_end}"
            )
    steps = whole("steps", steps)
    if is_concrete(sigma_data) and not 0 < sigma_data < float("inf"):
        raise ValueError(f"sigma_data must be positive and finite, got {sigma_data!r}")
    solver = diffrax.ShARK() if solver is None else solver
    if not isinstance(solver, diffrax.AbstractSRK):
        raise ValueError(f"solver must be a stochastic Runge-Kutta method such as diffrax.ShARK(), got {solver!r}")
    start, end, scale = (jnp.asarray(v, x.dtype) for v in (t_start, t_end, sigma_data))
    keys = example_keys(key, len(x), first)
    final, success = _reverse(keys, sde, as_partial(score), x, start, end, scale, solver, jnp.asarray(steps))
    num_evals = jnp.full(len(x), steps * len(solver.tableau.b_sol))
    return Flow(final, num_evals, success, steps)


@partial(jax.jit, static_argnames="solver")
def _reverse(
    keys: jax.Array,
    sde: SDE,
    score: Partial,
    x: jax.Array,
    t_start: jax.Array,
    t_end: jax.Array,
    sigma_data: jax.Array,
    solver: diffrax.AbstractSRK,
    steps: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    start, end = sde.log_snr(t_start) / 2, sde.log_snr(t_end) / 2

    def time(lam: Any) -> jax.Array:
        return jnp.clip(sde.time(2 * lam), t_end, t_start)

    def drift(lam: Any, u: jax.Array, score: Any) -> jax.Array:
        t = time(lam)
        point = (radius(sde, t, sigma_data) * u)[None]
        eps_hat = -sde.sigma(t) * check_score(score(point, t), point)[0]
        sine = jnp.sin(angle(sde, t, sigma_data))
        return sine * (sine * u - 2 * eps_hat)

    def diffusion(lam: Any, u: jax.Array, _: Any) -> Any:
        weight = jnp.sqrt(jnp.asarray(2, u.dtype)) * jnp.sin(angle(sde, time(lam), sigma_data))
        return lineax.DiagonalLinearOperator(jnp.broadcast_to(weight, u.shape))

    def solve(score: Partial, key: jax.Array, u: jax.Array) -> jax.Array:
        like = jax.ShapeDtypeStruct(u.shape, u.dtype)
        path = diffrax.VirtualBrownianTree(start, end, (end - start) * TREE, like, key, diffrax.SpaceTimeLevyArea)
        terms: Any = diffrax.MultiTerm(diffrax.ODETerm(drift), diffrax.ControlTerm(diffusion, path))

        def step(k: jax.Array, state: Any) -> Any:
            here, there = (start + (end - start) * (i / steps).astype(x.dtype) for i in (k, k + 1))
            u, _, _, memory, _ = solver.step(terms, here, there, state[0], score, state[1], made_jump=jnp.array(False))
            return u, memory

        first = solver.init(terms, start, start + (end - start) / steps, u, score)
        return jax.lax.fori_loop(0, steps, step, (u, first))[0]

    with jax.default_matmul_precision("highest"):
        scores, axes = each(score, len(x))
        u = jax.vmap(solve, (axes, 0, 0))(scores, keys, x / radius(sde, t_start, sigma_data))
    success = jnp.all(jnp.isfinite(u.reshape(len(x), -1)), axis=1)
    return jnp.where(expand(success, u), radius(sde, t_end, sigma_data) * u, jnp.nan), success
