"""Edits that go up to noise and come back: by the SDE with fresh noise, or by the probability flow without any.

From t_min to t the SDE has the exact transition

    x_t = r x + sqrt(v) n,      r = alpha_t/alpha_min,      v = sigma_t^2 - r^2 sigma_min^2 = -sigma_t^2 expm1(h),

h the difference of the log-SNR. ``sdedit`` draws it and integrates back: at t = t_min x itself, at t_max a sample that
has forgotten x. The probability flow is one to one, so what goes up comes back; down the flow of another score (another
domain, or the same one given another class) it lands in that law. Of two Gaussians this is x -> m' + (s'/s) (x - m) on
each axis that they share, the optimal transport between them, once alpha m and alpha s are small beside sigma at t_max.

References: Meng et al., "SDEdit" (2022), algorithm 1; Su et al., "Dual diffusion implicit bridges for image-to-image
translation" (2023), algorithm 1; Song et al. (2021), appendix D.4, on editing latents.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from scoresde.arrays import example_keys, expand, nan_unless, normal_per_example, widened
from scoresde.flow.latents import decode, encode, slerp
from scoresde.flow.probability import Flow
from scoresde.score import Score
from scoresde.sde import SDE
from scoresde.solvers.table import Table, check_table, integrate


def sdedit(
    key: jax.Array, sde: SDE, score: Score, x: ArrayLike, table: Table, *, first: ArrayLike = 0, **settings: Any
) -> jax.Array:
    """x with noise up to the table's first time, brought back by the table: (B, *event).

    Args:
        key: random key; example i depends on (key, i) and x_i alone.
        sde: the SDE.
        score: ``score(x, t)``; ``ss.given`` to redraw x as another class.
        x: (B, *event), data at t_min.
        table: a solver's table; the later its first time, the less is left of x. See ``shortened``.
        first: number of the first example, as for ``ss.integrate``.
        settings: ``noise`` and ``trajectory`` of ``ss.integrate``.
    """
    x = widened(jnp.asarray(x, jnp.result_type(float, x)))
    key_noise, key_steps = jax.random.split(key)
    t, t_min = (jnp.asarray(v, x.dtype) for v in (check_table(table).times[0], sde.t_min))
    gain = jnp.exp(sde.log_alpha(t) - sde.log_alpha(t_min))
    std = sde.sigma(t) * jnp.sqrt(-jnp.expm1(jnp.minimum(sde.log_snr(t) - sde.log_snr(t_min), 0)))
    n = normal_per_example(example_keys(key_noise, x.shape[0], first), x.shape[1:], x.dtype)
    return integrate(key_steps, score, table, gain * x + std * n, first=first, **settings)


def edited(
    sde: SDE,
    score: Score,
    x: ArrayLike,
    edit: Callable[[jax.Array], jax.Array],
    *,
    target: Score | None = None,
    **settings: Any,
) -> Flow:
    """Encode by the probability flow, change the latents, decode.

    Args:
        sde: the SDE.
        score: ``score(x, t)``.
        x: (B, *event), data at t_min.
        edit: a function of the latents (B, *event) at t_max, such as a step along ``attribute_direction``.
        target: the score to decode with; by default that of the way up.
        settings: as for ``ss.probability_flow``.

    Returns:
        the way down, with the evaluations of both; an example that failed on the way up has failed.
    """
    up = encode(sde, score, x, **settings)
    down = decode(sde, score if target is None else target, edit(up.x), **settings)
    success = up.success & down.success
    stops = (down.at_limit, down.time), (up.at_limit, up.time)
    at_limit, time = jax.tree.map(lambda later, before: jnp.where(up.success, later, before), *stops)
    x, num_evals = nan_unless(expand(success, down.x), down.x), up.num_evals + down.num_evals
    return Flow(x, num_evals, success, down.max_steps, at_limit=at_limit, time=time)


def translated(sde: SDE, source: Score, target: Score, x: ArrayLike, **settings: Any) -> Flow:
    """From the law of one score into that of another, by dual diffusion implicit bridges; back by the two exchanged.

    Args:
        sde: the SDE of both.
        source: the score of the law of x.
        target: the score of the law wanted; ``ss.given`` twice to one score is a change of class.
        x: (B, *event), data at t_min.
        settings: as for ``ss.probability_flow``.
    """
    return edited(sde, source, x, lambda latent: latent, target=target, **settings)


def interpolated(sde: SDE, score: Score, a: ArrayLike, b: ArrayLike, weights: ArrayLike, **settings: Any) -> jax.Array:
    """The way from a to b on the sphere of the latents, decoded: (n, B, *event), NaN where a solve failed.

    Args:
        sde: the SDE.
        score: ``score(x, t)``, for both ends and all between.
        a: (B, *event), data at t_min; weight 0 gives it back to the tolerance of the solver.
        b: (B, *event); weight 1.
        weights: (n,), usually in [0, 1].
        settings: as for ``ss.probability_flow``.
    """
    weights = jnp.asarray(weights)
    if weights.ndim != 1 or not weights.size:
        raise ValueError(f"weights must have shape (n,) with n >= 1, got {weights.shape}")
    start, end = (encode(sde, score, x, **settings).x for x in (a, b))
    return jax.vmap(lambda w: decode(sde, score, slerp(start, end, w), **settings).x)(weights)
