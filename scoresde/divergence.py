"""The divergence of a vector field, exactly or by random probes.

    div v = tr J = sum_i e_i^T J e_i = E[z^T J z]     for every law of z with E[z z^T] = I    (Hutchinson 1989).

Value and products J z come from one forward pass of ``jax.jvp``. With S the symmetric part of J, the variance of one
estimate is 2 |S|_F^2 for Gaussian z and 2 (|S|_F^2 - sum_i S_ii^2) for signs (Rademacher), which is never more: signs
give the trace of a diagonal exactly, in particular of c I, the bulk of a probability flow's Jacobian.

Hutch++ (Meyer et al. 2021) spends some products on the range that matters. For any orthonormal Q of k columns that does
not depend on z, with P = I - Q Q^T,

    tr J = tr(Q^T J Q) + E[(P z)^T J (P z)],      Q = orth(J R), R (D, k) random,

so only what Q leaves out is random: much less where the spectrum of J falls fast, no less where it is flat.

Along a trajectory R and z are drawn once. Q is then a smooth function of J, and so of time and state; the integrand is
smooth, the equation stays an ordinary one, and since the state does not feel the probes, the expectation of the
integral is the integral of the divergence. Given R, the P estimates are independent with the right mean at each time:
their spread gives an honest standard error of Hutch++ too.

    estimator                tangents an evaluation    variance of the mean
    exact_divergence         D                         0
    hutchinson(P)            P                         2 (|S|_F^2 - sum S_ii^2)/P
    hutch_pp(k, P)           2 k + P                   the same of (I - QQ^T) J (I - QQ^T)
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

VectorField = Callable[[jax.Array], jax.Array]
ProbeLaw = Callable[..., jax.Array]


def whole(name: str, value: Any) -> int:
    """``value`` if it is a whole number of at least 1, else a ValueError that names it."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    return int(value)


class Divergence(Protocol):
    """A hashable pair of functions that estimate the divergence of a vector field."""

    @property
    def count(self) -> int:
        """The number P of estimates."""
        ...

    def draw(self, key: jax.Array, u: jax.Array) -> jax.Array:
        """What stays fixed along the trajectory of one example."""
        ...

    def __call__(self, field: VectorField, u: jax.Array, probes: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(field(u), P estimates of its divergence) for u of shape ``event``."""
        ...

    def std_error(self, estimates: jax.Array) -> jax.Array:
        """Standard error of the mean of each example's estimates, (B, P) -> (B,)."""
        ...


@dataclasses.dataclass(frozen=True)
class Hutchinson:
    """See ``hutchinson``."""

    probes: int
    law: ProbeLaw = jax.random.rademacher

    @property
    def count(self) -> int:
        return self.probes

    def draw(self, key: jax.Array, u: jax.Array) -> jax.Array:
        return self.law(key, (self.probes, *u.shape), u.dtype)

    def __call__(self, field: VectorField, u: jax.Array, probes: jax.Array) -> tuple[jax.Array, jax.Array]:
        value, tangents = jax.vmap(lambda z: jax.jvp(field, (u,), (z,)), out_axes=(None, 0))(probes)
        return value, jnp.sum((probes * tangents).reshape(self.probes, -1), axis=1)

    def std_error(self, estimates: jax.Array) -> jax.Array:
        return _std_error(estimates)


@dataclasses.dataclass(frozen=True)
class HutchPlusPlus:
    """See ``hutch_pp``."""

    sketch: int
    probes: int

    @property
    def count(self) -> int:
        return self.probes

    def draw(self, key: jax.Array, u: jax.Array) -> jax.Array:
        if self.sketch >= u.size:
            raise ValueError(f"sketch must be below the {u.size} dimensions of an example, got {self.sketch}")
        return jax.random.rademacher(key, (self.probes + self.sketch, *u.shape), u.dtype)

    def __call__(self, field: VectorField, u: jax.Array, probes: jax.Array) -> tuple[jax.Array, jax.Array]:
        value, push = jax.linearize(field, u)

        def products(rows: jax.Array) -> jax.Array:
            """Each row (D,) to its product with J."""
            return jax.vmap(lambda z: push(z.reshape(u.shape)).reshape(-1))(rows)

        z, sketch = jnp.split(probes.reshape(len(probes), -1), [self.probes])
        Q = jnp.linalg.qr(products(sketch).T)[0].T
        z = z - (z @ Q.T) @ Q
        captured = jnp.sum(Q * products(Q))
        return value, captured + jnp.sum(z * products(z), axis=1)

    def std_error(self, estimates: jax.Array) -> jax.Array:
        return _std_error(estimates)


def _std_error(estimates: jax.Array) -> jax.Array:
    """Of the mean of independent estimates, (B, P) -> (B,); NaN if P = 1."""
    if estimates.shape[1] == 1:
        return jnp.full_like(estimates[:, 0], jnp.nan)
    return jnp.std(estimates, axis=1, ddof=1) / math.sqrt(estimates.shape[1])


@dataclasses.dataclass(frozen=True)
class ExactDivergence:
    """The trace of the Jacobian, D forward-mode columns taken ``chunk`` at a time to bound the memory."""

    chunk: int = 64

    @property
    def count(self) -> int:
        return 1

    def __post_init__(self) -> None:
        whole("chunk", self.chunk)

    def draw(self, key: jax.Array, u: jax.Array) -> jax.Array:
        return jnp.zeros((1, *u.shape), u.dtype)

    def __call__(self, field: VectorField, u: jax.Array, probes: jax.Array) -> tuple[jax.Array, jax.Array]:
        value, push = jax.linearize(field, u)

        def diagonal(i: jax.Array) -> jax.Array:
            basis = jax.nn.one_hot(i, u.size, dtype=u.dtype).reshape(u.shape)
            return push(basis).reshape(-1)[i]

        return value, jnp.sum(jax.lax.map(diagonal, jnp.arange(u.size), batch_size=min(self.chunk, u.size)))[None]

    def std_error(self, estimates: jax.Array) -> jax.Array:
        return jnp.zeros_like(estimates[:, 0])


exact_divergence = ExactDivergence()
"""The exact divergence: D tangents an evaluation. ``ExactDivergence(chunk=n)`` bounds the memory differently."""


def hutchinson(probes: int = 1, law: ProbeLaw = jax.random.rademacher) -> Hutchinson:
    """Hutchinson's estimate from ``probes`` random vectors an example, fixed along its trajectory.

    ``probes`` tangents an evaluation.

    Args:
        probes: at least 1; one has no standard error.
        law: (key, shape, dtype) -> independent entries of mean 0 and variance 1: ``jax.random.rademacher``, the law of
            least variance, or ``jax.random.normal``.
    """
    return Hutchinson(whole("probes", probes), law)


def hutch_pp(sketch: int, probes: int = 2) -> HutchPlusPlus:
    """Hutch++: the trace on the range of a ``sketch`` of the Jacobian exactly, the rest from ``probes`` sign vectors.

    2 ``sketch`` + ``probes`` tangents an evaluation, and the QR decomposition of a matrix (D, sketch).

    Args:
        sketch: columns of the sketch, at least 1 and below the number of dimensions.
        probes: at least 1; one has no standard error.
    """
    return HutchPlusPlus(whole("sketch", sketch), whole("probes", probes))
