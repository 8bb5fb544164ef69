"""Moving averages of the parameters: their profiles, and an average of any length from stored ones, afterwards.

An average moves with every step as ema <- ema + (1 - d) (params - ema); a profile says which d belongs to a step:

    warmed    d = min(decay, (1 + n)/(10 + n)),         power    d = (n/(n + 1))^(gamma + 1),

n being the number of steps made before, 0 at the first. With the power profile the parameters after step k weigh

    w_k = (k^(gamma + 1) - (k - 1)^(gamma + 1)) / t^(gamma + 1)  = int_{k-1}^k p(s; t) ds,
    p(s; t) = (gamma + 1) s^gamma / t^(gamma + 1)   on [0, t],

in the average after t steps: it is as long as a fixed share of the training, forgets the initial values, and has the
continuous profile p exactly. Its standard deviation over its length,

    sigma_rel = sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3)),

is how its length is stated: 0.05 averages over about a tenth of the training. The best one is known only at the end.

Profiles are vectors with the inner product

    <p_a, p_b> = int p_a p_b = (gamma_a + 1)(gamma_b + 1) / (gamma_a + gamma_b + 1) r^gamma_b / t_a,   r = t_a/t_b <= 1,

and averages are linear in them. So snapshots of a few averages, stored now and then, give the average of any other
length at any earlier step, up to how well combinations of their profiles approach that profile p,

    minimise || sum_i x_i p_i - p ||^2    subject to    sum_i x_i = 1.

The constraint keeps what does not move (the paper's weights add up to one only nearly); on parameters that wander it
makes the reconstruction two to four times closer. Between two snapshots it is an order less close than at one.

Reference: Karras et al., "Analyzing and improving the training dynamics of diffusion models" (2024), section 3 and
appendix C.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Profile = Callable[[jax.Array], jax.Array]
"""Steps made before this one, an integer -> decay d in [0, 1] of the average at this one. Hashable."""

Snapshot = tuple[int, float, Any]
"""Steps made, sigma_rel of a power profile, its average after them: a tree of arrays, or a function that reads it."""

WIDEST = 12**-0.5  # sigma_rel at gamma = 0, the mean of all parameters


@dataclasses.dataclass(frozen=True)
class Warmed:
    """See ``warmed``."""

    decay: float

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {self.decay!r}")

    def __call__(self, n: jax.Array) -> jax.Array:
        return jnp.minimum(self.decay, (1 + n) / (10 + n))


@dataclasses.dataclass(frozen=True)
class Power:
    """See ``power``."""

    sigma_rel: float

    def __post_init__(self) -> None:
        power_exponent(self.sigma_rel)

    def __call__(self, n: jax.Array) -> jax.Array:
        return jnp.exp(-(power_exponent(self.sigma_rel) + 1) * jnp.log1p(1 / n))  # 0 at n = 0


def warmed(decay: float) -> Profile:
    """An exponential average that warms up, so that early averages are not noise: d = min(decay, (1 + n)/(10 + n)).

    It is about 1/(1 - decay) steps long. Raises ValueError unless decay is in [0, 1).
    """
    return Warmed(decay)


def power(sigma_rel: float) -> Profile:
    """An average whose length is a share of the training so far, by the power function of ``sigma_rel``.

    Karras et al. (2024), section 3.1. Averages of this kind can be combined to others by ``reconstruct``; 0.05
    and 0.10 are the usual two.

    Args:
        sigma_rel: standard deviation of the profile over its length, in (0, 12^-0.5 = 0.2886...]; there it is the
            mean over all steps.

    Raises:
        ValueError: sigma_rel out of range.
    """
    return Power(sigma_rel)


def power_exponent(sigma_rel: float) -> float:
    """gamma of the profile of relative standard deviation ``sigma_rel``: the largest root of

    (gamma + 2)^2 (gamma + 3) = (gamma + 1)/sigma_rel^2      (Karras et al. 2024, section 3.1).

    >>> round(power_exponent(0.05), 2), round(power_exponent(0.1), 2)
    (16.97, 6.94)
    """
    if not 0 < sigma_rel <= WIDEST * (1 + 1e-9):
        raise ValueError(f"sigma_rel must be in (0, {WIDEST:.6f}], got {sigma_rel!r}")
    inverse = float(sigma_rel) ** -2
    return max(0.0, float(np.max(np.roots([1, 7, 16 - inverse, 12 - inverse]).real)))


def _inner(step_a: np.ndarray, gamma_a: np.ndarray, step_b: np.ndarray, gamma_b: np.ndarray) -> np.ndarray:
    """<p_a, p_b> of power profiles, arrays that broadcast."""
    short, long = np.minimum(step_a, step_b), np.maximum(step_a, step_b)
    exponent = np.where(step_a <= step_b, gamma_b, gamma_a)  # that of the longer one
    return (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * (short / long) ** exponent / long


def reconstruction_weights(
    steps: Sequence[int], sigma_rels: Sequence[float], sigma_rel: float, step: int
) -> tuple[np.ndarray, float]:
    """The weights of snapshots (steps[i], sigma_rels[i]) in the average of length ``sigma_rel`` after ``step`` steps.

    Args:
        steps: steps after which the snapshots were taken, at least 1.
        sigma_rels: the lengths of their power profiles.
        sigma_rel: the length wanted.
        step: the step wanted, from 1 to the largest of ``steps``.

    Returns:
        weights (n,), float64, which add up to 1; and the relative error ||sum_i x_i p_i - p|| / ||p|| of the profile,
        0 where the wanted average is among the snapshots. Below about 0.1 the averages are hard to tell apart.

    Raises:
        ValueError: no snapshots, sequences of different lengths, or a value out of range.
    """
    if not len(steps) == len(sigma_rels) > 0:
        raise ValueError(f"expected as many steps as sigma_rels, at least one, got {len(steps)} and {len(sigma_rels)}")
    if min(steps) < 1:
        raise ValueError(f"steps of snapshots must be at least 1, got {min(steps)}")
    if not 1 <= step <= max(steps):
        raise ValueError(f"step must be in 1..{max(steps)}, the last snapshot's, got {step!r}")
    t, gamma = np.array(steps, np.float64), np.array([power_exponent(s) for s in sigma_rels])
    wanted = np.array(float(step)), np.array(power_exponent(sigma_rel))
    norm, whole = np.sqrt(_inner(t, gamma, t, gamma)), math.sqrt(_inner(*wanted, *wanted))
    gram = _inner(t[:, None], gamma[:, None], t[None], gamma[None]) / np.outer(norm, norm)
    towards = _inner(t, gamma, *wanted) / (norm * whole)
    ones = (1 / norm) / np.linalg.norm(1 / norm)  # the constraint, of unit norm as well
    n, total = len(t), 1 / (whole * np.linalg.norm(1 / norm))
    system = np.block([[gram, ones[:, None]], [ones[None], np.zeros((1, 1))]])
    y = np.linalg.lstsq(system, np.append(towards, total), rcond=1e-13)[0][:n]
    return y * whole / norm, math.sqrt(max(0.0, 1 - 2 * y @ towards + y @ gram @ y))


def reconstruct(snapshots: Iterable[Snapshot], sigma_rel: float, step: int | None = None) -> Any:
    """The average of length ``sigma_rel`` after ``step`` steps from stored averages of other lengths and steps.

    Args:
        snapshots: (steps made, sigma_rel, averages); the averages are a tree of arrays, or a function without arguments
            that reads it, so that one tree at a time is in memory.
        sigma_rel: the length wanted, as for ``power``.
        step: the step wanted; by default that of the last snapshot.

    Returns:
        a tree like those of the snapshots, summed in float64, in their dtype.

    Raises:
        ValueError: as ``reconstruction_weights``.
    """
    snapshots = list(snapshots)
    steps, lengths = [s for s, _, _ in snapshots], [length for _, length, _ in snapshots]
    weights, _ = reconstruction_weights(steps, lengths, sigma_rel, max(steps, default=0) if step is None else step)
    total: Any = None
    like: Any = None
    for weight, (_, _, params) in zip(weights, snapshots, strict=True):
        like = params() if callable(params) else params
        term = jax.tree.map(lambda leaf, w=weight: w * np.asarray(leaf, np.float64), like)
        total = term if total is None else jax.tree.map(np.add, total, term)
    return jax.tree.map(lambda leaf, final: jnp.asarray(final, leaf.dtype), like, total)
