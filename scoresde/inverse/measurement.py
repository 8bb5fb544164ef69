"""One measurement y = A(x_0) + sigma_y n: its checks, and its gradient example by example."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jax.typing import ArrayLike

from scoresde.angle import cos_sin
from scoresde.arrays import is_concrete, widened
from scoresde.score import Score, as_partial, check_score, each, tweedie
from scoresde.sde import SDE

Operator = Callable[[jax.Array], jax.Array]
Map = Callable[[jax.Array], jax.Array]
TOLERANCE = 1e-6  # of conjugate gradients, relative: float32 gains nothing below it


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["sde", "score", "operator", "y", "sigma_y"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Measurement:
    """y (B, *m) or (1, *m), of ``operator`` with noise of standard deviation ``sigma_y``; the SDE and prior score."""

    sde: SDE
    score: Partial
    operator: Partial
    y: jax.Array
    sigma_y: Any

    @classmethod
    def of(cls, sde: SDE, score: Score, operator: Operator, y: ArrayLike, sigma_y: float) -> "Measurement":
        """Checked, or a ValueError of one line."""
        if not isinstance(sde, SDE):
            raise ValueError(f"sde must be an SDE such as ss.VP(), got {type(sde).__name__}")
        if not callable(operator):
            raise ValueError(f"operator must be a function of arrays (B, *event), got {type(operator).__name__}")
        y = jnp.asarray(y)
        y = widened(y.astype(jnp.result_type(float, y)))
        if jnp.iscomplexobj(y):
            raise ValueError("y must be real: stack real and imaginary parts, as ss.inverse.operators.fourier does")
        if y.ndim < 1 or not y.size:
            raise ValueError(f"y must have shape (B, ...) like what operator returns, got {y.shape}")
        if is_concrete(y) and not bool(jnp.all(jnp.isfinite(y))):
            raise ValueError(
                "y must be finite: leave missing values out by the operator, such as ss.inverse.operators.mask"
            )
        if jnp.ndim(sigma_y) or (is_concrete(sigma_y) and not 0 < float(sigma_y) < np.inf):
            raise ValueError(f"sigma_y must be a positive and finite number, got {sigma_y!r}")
        return cls(sde, as_partial(score), as_partial(operator), y, sigma_y)

    def over_examples(self, function: Callable[..., Any], x: jax.Array, t: jax.Array, y: jax.Array) -> Any:
        """``function(m, x, t, y)`` of each example's measurement, x (*event), t () and y (*m)."""
        if y.shape[0] not in (1, x.shape[0]):
            expected = (x.shape[0], *y.shape[1:])
            raise ValueError(f"y must have shape {expected} like the batch of x, or (1, ...), got {y.shape}")
        y = jnp.broadcast_to(y, (x.shape[0], *y.shape[1:])).astype(x.dtype)
        t = jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape[:1])
        return self.mapped(function, x, t, y)

    def mapped(self, function: Callable[..., Any], *arrays: jax.Array) -> Any:
        """``function(m, *rows)`` over the rows of arrays (B, ...), each with its part of what is ``given`` to the
        prior."""
        scores, axes = each(self.score, len(arrays[0]))

        def of_example(score: Partial, *rows: jax.Array) -> Any:
            return function(dataclasses.replace(self, score=score), *rows)

        return jax.vmap(of_example, in_axes=(axes, *[0] * len(arrays)))(scores, *arrays)

    def linearised(self, x: jax.Array, y: jax.Array) -> tuple[jax.Array, Map, Map]:
        """A(x), v -> A' v and u -> A'^T u of one example (*event), A' the derivative there."""
        value, push = jax.linearize(lambda x: self.operator(x[None]), x)
        if value.shape != (1, *y.shape) or jnp.iscomplexobj(value):
            expected, got = (f"(B{''.join(f', {n}' for n in shape)})" for shape in (y.shape, value.shape[1:]))
            event = f"(B{''.join(f', {n}' for n in x.shape)})"
            raise ValueError(f"operator must map x {event} to the shape of y, {expected}, got {value.dtype} {got}")
        pull = jax.linear_transpose(push, x)
        return value[0], lambda v: push(v)[0], lambda u: pull(u[None].astype(value.dtype))[0]

    def denoised(self, x: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(D, score) of one example."""
        s, data = tweedie(self.sde, self.score, x[None], t)
        return data[0], s[0]

    def gradient(self, x: jax.Array, t: jax.Array, y: jax.Array, solve: Callable[..., jax.Array]) -> Any:
        """(score, D, residual, V^(-1) residual, J^T A^T V^(-1) residual) of one example.

        ``solve(residual, push, adjoint, pull)`` applies V^(-1); push is A, adjoint A^T and pull J^T.
        """
        data, pull, s = jax.vjp(lambda x: self.denoised(x, t), x, has_aux=True)
        value, push, adjoint = self.linearised(data, y)
        residual = y - value
        v = solve(residual, push, adjoint, lambda u: pull(u)[0])
        return s, data, residual, v, pull(adjoint(v))[0]


def conjugate_gradients(matrix: Map, b: jax.Array, iterations: ArrayLike, floor: ArrayLike = 0.0) -> jax.Array:
    """The solution of ``matrix`` u = b for a symmetric map with eigenvalues above ``floor``, by at most so many steps.

    It stops before a direction p of curvature p.matrix(p) <= floor |p|^2, which such a map does not have. The Jacobian
    of a trained network is not quite symmetric and has negative eigenvalues, which would send the solution anywhere.
    """

    def step(_: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        u, r, p, rr, on = carry
        q = matrix(p)
        curvature = jnp.sum(p * q)
        on = on & (curvature > floor * jnp.sum(p * p)) & (rr > TOLERANCE**2 * bb)
        a = jnp.where(on, rr / jnp.where(on, curvature, 1), 0)
        u, r = u + a * p, r - a * q
        new = jnp.sum(r * r)
        return u, r, r + new / jnp.where(rr > 0, rr, 1) * p, new, on

    bb = jnp.sum(b * b)
    return jax.lax.fori_loop(0, iterations, step, (jnp.zeros_like(b), b, b, bb, bb > 0))[0]


def spread(sde: SDE, t: jax.Array, sigma_data: float | jax.Array) -> jax.Array:
    """r^2 = sigma_d^2 sin(phi)^2, the variance of x_0 given x_t for data N(0, sigma_d^2 I)."""
    return (sigma_data * cos_sin(sde.alpha(t), sde.sigma(t), sigma_data)[1]) ** 2


def data_shape(m: Measurement, shape: tuple[int, ...] | None) -> tuple[int, ...]:
    """The shape of x for a sampler: the one given, or that of y if operator and score take it."""
    found = tuple(m.y.shape if shape is None else shape)
    x = jax.ShapeDtypeStruct(found, m.y.dtype)
    try:
        value = jax.eval_shape(m.operator, x)
        check_score(jax.eval_shape(m.score, x, jnp.asarray(m.sde.t_max, x.dtype)), x)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"x of shape {found} does not fit operator and score: pass shape=(B, *event) ({reason})"
        ) from None
    if value.shape[1:] != m.y.shape[1:] or m.y.shape[0] not in (1, found[0]):
        raise ValueError(f"operator must map x {found} to the shape of y, {m.y.shape}, got {value.shape}: pass shape=")
    return found
