"""The probability flow, integrated in the angle.

The flow dx/dt = f x - g^2 score / 2 carries the marginals of the SDE without noise (Song et al. 2021, eq. 13). On the
circle of ``angle`` every Gaussian SDE is the same rotation u = cos(phi) x_0/sigma_d + sin(phi) eps, and its flow is

    du/dphi = cos(phi) eps_hat - sin(phi) x_hat_0/sigma_d = (eps_hat - sin(phi) u) / cos(phi),   eps_hat = -sigma score.

SDEs differ only in where they start and stop, the state keeps unit scale, and the solution does not depend on sigma_d,
which only sets where the steps are spent. diffrax solves the equation; each example chooses its own steps unless asked
otherwise.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jax.typing import ArrayLike

from scoresde.angle import angle, cos_sin, radius, time_at
from scoresde.arrays import expand, is_concrete, widened
from scoresde.checks import examples
from scoresde.score import Score, as_partial, check_score, each
from scoresde.sde import SDE

FIRST_STEP = 0.02  # of an angle of at most pi/2; the controller takes over from there


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["x", "num_evals", "success", "path", "at_limit", "time"],
    meta_fields=["max_steps"],
)
@dataclasses.dataclass(frozen=True)
class Flow:
    """The end of a probability flow.

    Attributes:
        x: (B, *event) states at ``t_end``; NaN where ``success`` is false.
        num_evals: (B,) evaluations of the score spent on each example.
        success: (B,) whether the solve reached ``t_end``.
        max_steps: the limit that was in force.
        path: (S, B, *event) states at the times ``save_at``, if there were any.
        at_limit: (B,) whether ``max_steps`` were not enough; a failed example that they were enough for met a score
            that is not finite, or a jump that no step is small enough for.
        time: (B,) the time that the solve reached, ``t_end`` if it succeeded; NaN where fixed steps failed.
    """

    x: jax.Array
    num_evals: jax.Array
    success: jax.Array
    max_steps: int
    path: jax.Array | None = None
    at_limit: jax.Array | None = None
    time: jax.Array | None = None

    @property
    def message(self) -> str:
        """One line for people, empty if every example succeeded. Not available inside ``jit``."""
        return failure_message(self.success, self.max_steps, self.at_limit, self.time)


def failure_message(
    success: jax.Array | np.ndarray, max_steps: int, at_limit: ArrayLike | None = None, time: ArrayLike | None = None
) -> str:
    """What to do about the examples whose solve did not reach its end; empty if there are none."""
    at_limit = np.zeros(success.shape, bool) if at_limit is None else np.asarray(at_limit)
    time = np.full(success.shape, np.nan) if time is None else np.asarray(time)
    parts = []
    for reason, what, advice in (
        (at_limit, f"stopped at max_steps = {max_steps}", "raise max_steps, or loosen rtol and atol"),
        (~at_limit, "met a score that is not finite or jumps", "check the score there"),
    ):
        failed = np.flatnonzero(~np.asarray(success) & reason)
        if failed.size:
            place = "" if np.isnan(time[failed[0]]) else f" at t = {time[failed[0]]:.4g}"
            parts.append(f"{failed.size} of {success.size} examples (first: {failed[0]}) {what}{place}: {advice}")
    return "; ".join(parts)


def probability_flow(
    sde: SDE,
    score: Score,
    x: ArrayLike,
    t_start: float,
    t_end: float,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    solver: diffrax.AbstractERK | None = None,
    sigma_data: float = 1.0,
    joint: bool = False,
    max_steps: int = 1000,
    steps: int | None = None,
    save_at: ArrayLike | None = None,
) -> Flow:
    """Carry x from ``t_start`` to ``t_end`` along the probability flow, in either direction.

    Args:
        sde: the SDE.
        score: ``score(x, t)``; called with B = 1 under ``vmap`` unless ``joint``.
        x: (B, *event), the states at ``t_start``.
        t_start: a time in [t_min, t_max]; noise to data is ``sde.t_max`` to ``sde.t_min``.
        t_end: a time in [t_min, t_max].
        rtol: relative tolerance on u, of unit scale.
        atol: absolute tolerance on u.
        solver: an explicit Runge-Kutta method of diffrax; ``diffrax.Tsit5()`` by default.
        sigma_data: scale of the angle, best the standard deviation of the data.
        joint: one sequence of steps for the whole batch, chosen for its worst example. Faster for alike examples.
        max_steps: steps, accepted and rejected, after which an example is given up.
        steps: take so many steps of equal length in the angle; the tolerances and ``max_steps`` then play no part.
        save_at: times (S,) from ``t_start`` towards ``t_end`` at which to return the states too, by the solver's own
            interpolation (of order 4 for Tsit5): no further evaluations.

    Raises:
        ValueError: a time outside [t_min, t_max], a tolerance or scale that is not positive, an unsuitable solver,
            times to save that do not lead from ``t_start`` to ``t_end``.
    """
    x = widened(jnp.asarray(x, jnp.result_type(float, x)))
    examples(x)
    for name, t in (("t_start", t_start), ("t_end", t_end)):
        if is_concrete(t) and not sde.t_min * (1 - 1e-6) <= t <= sde.t_max * (1 + 1e-6):
            raise ValueError(f"{name} must lie in [t_min, t_max] = [{sde.t_min:g}, {sde.t_max:g}], got {t}")
    method = Method(solver or diffrax.Tsit5(), max_steps if steps is None else steps, fixed=steps is not None)
    method.check(rtol, atol, sigma_data)
    if save_at is not None:
        save_at = _check_save_at(save_at, t_start, t_end).astype(x.dtype)
    # Arrays of one dtype, so that floats and NumPy numbers share one compilation.
    start, end, *tolerance, scale = (jnp.asarray(v, x.dtype) for v in (t_start, t_end, rtol, atol, sigma_data))
    return _flow(sde, as_partial(score), x, start, end, tuple(tolerance), scale, save_at, method, joint)


def _check_save_at(save_at: ArrayLike, t_start: float, t_end: float) -> jax.Array:
    times = jnp.asarray(save_at)
    if times.ndim != 1 or not times.size:
        raise ValueError(f"save_at must be one-dimensional with at least one time, got shape {times.shape}")
    if is_concrete(times) and is_concrete(t_start) and is_concrete(t_end):
        way = np.array([t_start, *times, t_end]) * (1 if t_end >= t_start else -1)
        if np.any(np.diff(way) < -1e-6 * np.abs(way[1:])) or np.any(np.diff(way[1:-1]) <= 0):
            raise ValueError(f"save_at must lead strictly from t_start = {t_start:g} to t_end = {t_end:g}, got {times}")
    return times


@dataclasses.dataclass(frozen=True)
class Method:
    """How the angle is stepped through: an explicit Runge-Kutta solver and the limit on its steps, or their number."""

    solver: diffrax.AbstractERK
    max_steps: int
    fixed: bool = False

    def check(self, rtol: float, atol: float, sigma_data: float) -> None:
        steps = "steps" if self.fixed else "max_steps"
        for name, value in (("rtol", rtol), ("atol", atol), ("sigma_data", sigma_data), (steps, self.max_steps)):
            if is_concrete(value) and not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be positive and finite, got {value!r}")
        if not isinstance(getattr(self.solver, "tableau", None), diffrax.ButcherTableau):
            raise ValueError(
                f"solver must be an explicit Runge-Kutta method such as diffrax.Tsit5(), got {self.solver!r}"
            )

    def solve(
        self, field: Callable[..., Any], state: Any, start: jax.Array, end: jax.Array, tolerance: Any, save: Any = None
    ) -> Any:
        """Integrate d(state)/dphi = field(phi, state); returns (state or NaN, evaluations, success, stop).

        ``stop`` is whether the limit on steps ended it and the angle that it reached, NaN where fixed steps failed.

        With angles to ``save`` (S,) the states there and the last one are returned, (S + 1, ...) each.
        """
        if self.fixed:
            first, controller = (end - start) / self.max_steps, diffrax.ConstantStepSize()
        else:
            first = jnp.sign(end - start) * jnp.minimum(FIRST_STEP, jnp.abs(end - start))
            smallest = jnp.finfo(start.dtype).eps * jnp.minimum(jnp.abs(start), jnp.abs(end))  # below it is rounding
            controller = diffrax.PIDController(*tolerance, norm=_worst_example, dtmin=smallest, force_dtmin=False)
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda phi, y, _: field(phi, y)),
            self.solver,
            start,
            end,
            first,
            state,
            saveat=diffrax.SaveAt(t1=True, ts=save),
            stepsize_controller=controller,
            max_steps=self.max_steps,
            throw=False,
        )
        final = jax.tree.map(lambda y: y[-1] if save is None else y, solution.ys)
        success = solution.result == diffrax.RESULTS.successful
        success &= jnp.all(jnp.stack([jnp.all(jnp.isfinite(y)) for y in jax.tree.leaves(final)]))
        final = jax.tree.map(lambda y: jnp.where(success, y, jnp.nan), final)
        tableau: Any = self.solver.tableau
        reused = int(tableau.fsal)  # whether a step's last evaluation is the next one's first
        num_evals = solution.stats["num_steps"] * (tableau.num_stages - reused) + reused
        angles = jnp.asarray(solution.ts)
        reached = angles[jnp.sum(jnp.isfinite(angles)) - 1]  # those after the last one reached are infinite
        reached = jnp.where(success | (not self.fixed), reached, jnp.nan)
        return final, num_evals, success, (solution.result == diffrax.RESULTS.max_steps_reached, reached)


def _worst_example(error: Any) -> jax.Array:
    """The largest root-mean-square over the examples (leading axis) and leaves: nobody hides behind an average."""
    squares = [jnp.mean(e**2, axis=tuple(range(1, e.ndim))) for e in jax.tree.leaves(error)]
    return jnp.sqrt(jnp.max(jnp.stack(squares)))


def velocity(sde: SDE, score: Score, sigma_data: ArrayLike, span: tuple[jax.Array, jax.Array]) -> Callable[..., Any]:
    """du/dphi as a function of (phi, u) with u of shape (B, *event); times are kept within ``span``."""

    def field(phi: jax.Array, u: jax.Array) -> jax.Array:
        t = time_at(sde, phi, sigma_data, span)
        x = radius(sde, t, sigma_data) * u
        eps_hat = -sde.sigma(t) * check_score(score(x, t), x)
        cos, sin = cos_sin(sde.alpha(t), sde.sigma(t), sigma_data)
        return (eps_hat - sin * u) / cos

    return field


@partial(jax.jit, static_argnames=("method", "joint"))
def _flow(
    sde: SDE,
    score: Partial,
    x: jax.Array,
    t_start: jax.Array,
    t_end: jax.Array,
    tolerance: tuple[jax.Array, ...],
    sigma_data: jax.Array,
    save_at: jax.Array | None,
    method: Method,
    joint: bool,
) -> Flow:
    start, end = angle(sde, t_start, sigma_data), angle(sde, t_end, sigma_data)
    times, save = t_end, None
    if save_at is not None:
        save = jnp.clip(angle(sde, save_at, sigma_data), jnp.minimum(start, end), jnp.maximum(start, end))
        times = jnp.append(save_at, t_end)

    def solve(score: Partial, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, tuple[jax.Array, jax.Array]]:
        field = velocity(sde, score, sigma_data, (t_start, t_end))
        u = x / radius(sde, t_start, sigma_data)
        u, num_evals, success, stop = method.solve(field, u, start, end, tolerance, save)
        return u * expand(radius(sde, times, sigma_data), u), num_evals, success, stop

    with jax.default_matmul_precision("highest"):
        if joint:
            batch = x.shape[:1]
            x, *one = solve(score, x)
            num_evals, success, stop = jax.tree.map(lambda v: jnp.full(batch, v), tuple(one))
        else:
            example = 0 if save is None else 1  # the axis of the examples in the result
            scores, axes = each(score, len(x))
            mapped = jax.vmap(solve, in_axes=(axes, 0), out_axes=(example, 0, 0, 0))
            x, num_evals, success, stop = mapped(scores, x[:, None])
            x = jnp.squeeze(x, example + 1)
    at_limit, reached = stop
    time = jnp.where(success, t_end, time_at(sde, reached, sigma_data, (t_start, t_end)))
    end_state, path = (x, None) if save is None else (x[-1], x[:-1])
    return Flow(end_state, num_evals, success, method.max_steps, path, at_limit, time)
