"""Noise of a known level, removed: y = x + s n with x data and n standard normal is a scaled state of the SDE.

At the time t where sigma/alpha = s, alpha y = alpha x + sigma n has the law of x_t given x. So what is known of x_0
given x_t answers all: the mean D(alpha y, t) and covariance (sigma^2/alpha) dD/dx by Tweedie's formula (``tweedie``),
with one evaluation and some products; draws from the posterior p(x | y) by any solver of the reverse *SDE* started
there. A solver of the probability flow started there gives one point for each y instead: over many y they have the law
of the data, but given y it is no draw from the posterior.

Reference: Efron, "Tweedie's formula and selection bias" (2011).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jax.typing import ArrayLike

from scoresde.arrays import example_keys, expand, is_concrete, on_host, widened
from scoresde.checks import whole
from scoresde.likelihood.divergence import diagonal
from scoresde.score import Score, as_partial, each, tweedie
from scoresde.sde import SDE
from scoresde.solvers.table import Table, check_table, integrate


def noise_range(sde: SDE) -> tuple[float, float]:
    """sigma/alpha at t_min and at t_max: the least and greatest standard deviation of noise, in the units of data."""
    low, high = on_host(lambda t: jnp.exp(-0.5 * sde.log_snr(t)), np.array([sde.t_min, sde.t_max]))
    return float(low), float(high)


def noise_time(sde: SDE, s: ArrayLike) -> Any:
    """The time at which sigma/alpha = s, for s of shape () or (B,); float64 on the host unless s is traced.

    Raises:
        ValueError: s is outside of what the SDE goes through; the message says from where to where.
    """
    if not is_concrete(s):
        return jnp.clip(sde.time(-2 * jnp.log(s)), sde.t_min, sde.t_max)
    low, high = noise_range(sde)
    values = np.asarray(s, np.float64)
    inside = (values >= low * (1 - 1e-6)) & (values <= high * (1 + 1e-6))
    if values.ndim > 1 or not np.all(inside):
        raise ValueError(
            f"s must be () or (B,) of noise within [{low:.4g}, {high:.4g}], the sigma/alpha of {type(sde).__name__} "
            f"from t_min to t_max, got {values[~inside].flat[0] if values.ndim < 2 else values.shape}"
        )
    return np.clip(on_host(sde.time, -2 * np.log(values)), sde.t_min, sde.t_max)


def shortened(sde: SDE, t_max: ArrayLike) -> SDE:
    """The same SDE up to an earlier time: grids and tables made for it begin there.

    >>> import scoresde as ss
    >>> ss.uniform_grid(shortened(ss.VP(), 0.4), 2)[0].item()
    0.4
    """
    if not is_concrete(t_max) or np.ndim(t_max) or not sde.t_min < float(t_max) <= sde.t_max:  # pyright: ignore[reportArgumentType]
        raise ValueError(f"t_max must be one time in (t_min, t_max] = ({sde.t_min:g}, {sde.t_max:g}], got {t_max}")
    return dataclasses.replace(sde, t_max=float(t_max))  # pyright: ignore[reportArgumentType]


def denoised(sde: SDE, score: Score, y: ArrayLike, s: ArrayLike) -> jax.Array:
    """E[x | y] of y = x + s n, the guess of least squared error: (B, *event). One evaluation of the score.

    Args:
        sde: the SDE.
        score: ``score(x, t)``.
        y: (B, *event), in the units of the data.
        s: standard deviation of the noise, () or (B,), within sigma/alpha from t_min to t_max.
    """
    x, t = _state(sde, y, s)
    return tweedie(sde, score, x, t)[1]


def denoised_std(
    key: jax.Array,
    sde: SDE,
    score: Score,
    y: ArrayLike,
    s: ArrayLike,
    *,
    probes: int | None = None,
    first: ArrayLike = 0,
) -> jax.Array:
    """The standard deviation of each element of x given y = x + s n, (B, *event): where not to trust ``denoised``.

    Args:
        key: random key, for the probes; those of example i depend on (key, i) alone.
        sde: the SDE.
        score: ``score(x, t)``, called with B = 1 under ``vmap``.
        y: (B, *event).
        s: as for ``denoised``.
        probes: random signs z whose z (J z) average to the diagonal of J = dD/dx (Bekas et al. 2007), with an error of
            the size of the other entries of a row over sqrt(probes); None takes every column instead and is exact.
        first: number of the first example.
    """
    probes = None if probes is None else whole("probes", probes)
    x, t = _state(sde, y, s)

    def of_example(score: Partial, key: jax.Array, x: jax.Array, t: jax.Array) -> jax.Array:
        _, push = jax.linearize(lambda x: tweedie(sde, score, x[None], t)[1][0], x)
        if probes is None:
            slope = diagonal(push, x).reshape(x.shape)
        else:
            z = jax.random.rademacher(key, (probes, *x.shape), x.dtype)
            slope = jnp.mean(z * jax.vmap(push)(z), axis=0)
        return jnp.sqrt(jnp.maximum(sde.variance(t) / sde.alpha(t) * slope, 0))

    scores, axes = each(as_partial(score), x.shape[0])
    keys = example_keys(key, x.shape[0], first)
    return jax.vmap(of_example, (axes, 0, 0, 0))(scores, keys, x, jnp.broadcast_to(t, x.shape[:1]))


def denoised_samples(
    key: jax.Array,
    sde: SDE,
    score: Score,
    y: ArrayLike,
    s: float,
    table: Table,
    *,
    first: ArrayLike = 0,
    **settings: Any,
) -> jax.Array:
    """One draw of x given y = x + s n for each example, (B, *event), at the table's last time.

    Args:
        key: random key; example i depends on (key, i) and y_i alone.
        sde: the SDE.
        score: ``score(x, t)``.
        y: (B, *event); repeat a row for several draws of it.
        s: standard deviation of the noise, one for all.
        table: of a solver of the reverse SDE, such as ``ss.ddim(.., eta=1.0)`` or ``ss.solvers.sa_solver``, whose grid
            begins at ``noise_time(sde, s)``; see ``shortened``.
        first: number of the first example, as for ``ss.integrate``.
        settings: ``noise`` and ``trajectory`` of ``ss.integrate``.

    Raises:
        ValueError: s is out of range, or the table begins at another time.
    """
    t, start = noise_time(sde, s), check_table(table).times[0]
    if is_concrete(start) and is_concrete(t) and not np.all(np.abs(start - t) <= 1e-5 * sde.t_max):
        made_for = "shortened(sde, noise_time(sde, s))"
        raise ValueError(f"the table begins at t = {start:.6g}, but s at {float(t):.6g}: make it for {made_for}")
    y = widened(jnp.asarray(y, jnp.result_type(float, y)))
    return integrate(key, score, table, sde.alpha(jnp.asarray(start, y.dtype)) * y, first=first, **settings)


def _state(sde: SDE, y: ArrayLike, s: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """(x_t, t) of y at noise s."""
    y = widened(jnp.asarray(y, jnp.result_type(float, y)))
    t = jnp.asarray(noise_time(sde, s), y.dtype)
    if t.shape not in ((), y.shape[:1]):
        raise ValueError(f"s must be a number or have shape {y.shape[:1]}, got {t.shape}")
    return expand(sde.alpha(t), y) * y, t
