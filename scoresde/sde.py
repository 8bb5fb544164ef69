"""Linear stochastic differential equations, each declared by two functions of time.

A forward process dx = f(t) x dt + g(t) dw with scalar f and g has Gaussian transitions from the data,

    x_t | x_0 ~ N(alpha(t) x_0, sigma(t)^2 I),

and is fixed by log alpha(t) and sigma(t)^2. Everything else follows from these two:

    f = d/dt log alpha,      g^2 = d/dt sigma^2 - 2 f sigma^2,      log-SNR = 2 log(alpha / sigma).

Time runs from data at ``t_min`` to noise at ``t_max``. Unless given, ``t_min`` is where sigma/alpha = 1e-3 and
``t_max`` is 1, or where the log-SNR is -10 if alpha vanishes at 1. These two constants serve training, sampling and
likelihood alike. Variances are written with ``expm1``: sqrt(1 - exp(.)) is 2.4 % wrong in float32 at t = 1e-5.

References: Song et al., "Score-based generative modeling through stochastic differential equations" (2021), section 3.4
and appendix B (VE, VP, sub-VP); Nichol and Dhariwal (2021) and Kingma et al. (2021) for the cosine path; Liu et al.,
"Flow straight and fast" (2022) and Lipman et al. (2022) for the straight path.
"""

import abc
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from scoresde.arrays import example_keys, expand, flatten, normal_per_example, on_host, widened

LOG_SNR_START = -2 * math.log(1e-3)
LOG_SNR_END = -10.0
LOG_SNR_LIMIT = -60.0  # below it alpha counts as vanished: float64 could not tell the angles of a grid there apart


def _time(t: ArrayLike) -> jax.Array:
    return widened(jnp.asarray(t, dtype=jnp.result_type(float, t)))


def _float32(value: float) -> float:
    """The float32 neighbour of a default: a float32 copy of it can then never leave [t_min, t_max]."""
    return float(np.float32(value))


def _refusal(owner: object, name: str, expected: str, value: object) -> ValueError:
    return ValueError(f"{type(owner).__name__}: {name} must be {expected}, got {value!r}")


def _require(condition: bool, owner: object, name: str, expected: str, value: object) -> None:
    if not condition:
        raise _refusal(owner, name, expected, value)


@dataclasses.dataclass(frozen=True, eq=False)
class SDE(abc.ABC):
    """A linear SDE. Subclasses declare ``log_alpha`` and ``variance``; a closed-form ``time`` is optional.

    Instances are immutable, hashable and static pytrees: they may be arguments of jitted functions. Two are equal if
    they are of one class and all their attributes are, also those that a subclass sets in an ``__init__`` of its own;
    these are numbers, strings and tuples of them, or else hashable.
    All methods take times of any shape and return arrays of that shape.

    Args:
        t_min: time of the data end, in the units of the SDE. Default: where sigma/alpha = 1e-3.
        t_max: time of the noise end. Default: 1, or where the log-SNR is -10 if alpha vanishes at 1.

    Raises:
        ValueError: a parameter is out of range; the message names it.
    """

    t_min: float = dataclasses.field(default=None, kw_only=True)  # pyright: ignore[reportAssignmentType]
    t_max: float = dataclasses.field(default=None, kw_only=True)  # pyright: ignore[reportAssignmentType]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in ("__eq__", "__hash__"):  # those of dataclass see the fields alone
            if name not in vars(cls):
                setattr(cls, name, getattr(SDE, name))
        jax.tree_util.register_static(cls)

    def _content(self) -> tuple[Any, ...]:
        """All attributes but the cached ones; TypeError for one that is not hashable."""
        names = [n for n in vars(self) if not isinstance(getattr(type(self), n, None), functools.cached_property)]
        for name in names:
            try:
                hash(vars(self)[name])
            except TypeError:
                kind = type(vars(self)[name]).__name__
                raise TypeError(
                    f"{type(self).__name__}: attribute {name} is of type {kind}, which has no hash: an SDE is a static "
                    "argument of compiled functions, keep numbers and tuples of numbers in it"
                ) from None
        return tuple((name, vars(self)[name]) for name in sorted(names))

    def __eq__(self, other: object) -> bool:
        return self is other or (type(other) is type(self) and self._content() == other._content())  # pyright: ignore[reportAttributeAccessIssue]

    def __hash__(self) -> int:
        return hash((type(self), self._content()))

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if (value is None and field.name in ("t_min", "t_max")) or isinstance(value, tuple):
                continue  # a default, or a table of numbers, which the subclass checks
            if (
                isinstance(value, bool)
                or not isinstance(value, int | float | np.integer | np.floating)
                or not math.isfinite(value)
            ):
                raise _refusal(self, field.name, "a finite number", value)
            object.__setattr__(self, field.name, float(value))
        self._validate()
        if self.t_max is None:
            object.__setattr__(self, "t_max", self._default_t_max())
        _require(self.t_max > 0, self, "t_max", "above 0", self.t_max)
        if self.t_min is None:
            object.__setattr__(self, "t_min", 0.0)
            object.__setattr__(self, "t_min", self._default_t_min())
        _require(0 <= self.t_min < self.t_max, self, "t_min", f"in [0, t_max = {self.t_max:g})", self.t_min)
        start, end, rounded = on_host(self.log_snr, np.array([self.t_min, self.t_max, _float32(self.t_max)]))
        _require(math.isfinite(start), self, "t_min", "a time where sigma > 0", self.t_min)
        kept = min(end, rounded) > LOG_SNR_LIMIT and end < start
        _require(
            kept, self, "t_max", f"a time where alpha > 0 (log-SNR above {LOG_SNR_LIMIT:g}, in float32 too)", self.t_max
        )

    def _validate(self) -> None:  # noqa: B027
        """Check the parameters of the subclass; t_min and t_max are not yet resolved."""

    def _default_t_max(self) -> float:
        if on_host(self.log_snr, np.float64(1.0)) > LOG_SNR_LIMIT:
            return 1.0
        return _float32(on_host(lambda log_snr: _bisect(self, log_snr, 0.0, 1.0), np.float64(LOG_SNR_END)))

    def _default_t_min(self) -> float:
        return _float32(on_host(self.time, np.float64(LOG_SNR_START)))

    @abc.abstractmethod
    def log_alpha(self, t: ArrayLike) -> jax.Array:
        """log alpha(t): logarithm of the factor on the data."""

    @abc.abstractmethod
    def variance(self, t: ArrayLike) -> jax.Array:
        """sigma(t)^2: variance of the noise added to alpha(t) x_0, without cancellation at small t."""

    def alpha(self, t: ArrayLike) -> jax.Array:
        """alpha(t), the factor on the data, in (0, 1]."""
        return jnp.exp(self.log_alpha(t))

    def sigma(self, t: ArrayLike) -> jax.Array:
        """sigma(t), the standard deviation of the noise."""
        return jnp.sqrt(self.variance(t))

    def log_snr(self, t: ArrayLike) -> jax.Array:
        """2 log(alpha(t) / sigma(t)), decreasing in t."""
        return 2 * self.log_alpha(t) - jnp.log(self.variance(t))

    def drift(self, t: ArrayLike) -> jax.Array:
        """f(t) = d/dt log alpha: the forward drift is f(t) x."""
        t = _time(t)
        return jax.jvp(self.log_alpha, (t,), (jnp.ones_like(t),))[1]

    def diffusion(self, t: ArrayLike) -> jax.Array:
        """g(t) = sqrt(d/dt sigma^2 - 2 f sigma^2)."""
        t = _time(t)
        variance, rate = jax.jvp(self.variance, (t,), (jnp.ones_like(t),))
        return jnp.sqrt(rate - 2 * self.drift(t) * variance)

    def time(self, log_snr: ArrayLike) -> jax.Array:
        """The time in [0, 1] of a log-SNR: the inverse of ``log_snr``, here by bisection in [t_min, t_max].

        A subclass with a closed-form inverse states it instead, and a test compares the two.
        """
        return _bisect(self, _time(log_snr), self.t_min, self.t_max)

    def perturb(self, x: ArrayLike, t: ArrayLike, noise: ArrayLike) -> jax.Array:
        """x_t = alpha(t) x + sigma(t) noise for x and noise of shape (B, *event), t a scalar or (B,)."""
        x, t = jnp.asarray(x), _time(t)
        return expand(self.alpha(t), x) * x + expand(self.sigma(t), x) * noise

    def prior_sample(self, key: jax.Array, shape: tuple[int, ...], *, first: ArrayLike = 0) -> jax.Array:
        """Draw (B, *event) from N(0, sigma(t_max)^2 I); row i is example first + i, a function of (key, its number)."""
        return self.sigma(self.t_max) * normal_per_example(example_keys(key, shape[0], first), shape[1:])

    def prior_log_prob(self, x: ArrayLike) -> jax.Array:
        """log N(x; 0, sigma(t_max)^2 I) in nats: (B, *event) -> (B,)."""
        x = flatten(widened(jnp.asarray(x, jnp.result_type(float, x))))
        variance = self.variance(jnp.asarray(self.t_max, x.dtype))
        return -0.5 * (jnp.sum(x**2, axis=1) / variance + x.shape[1] * jnp.log(2 * jnp.pi * variance))


@jax.jit
def _bisect(sde: SDE, log_snr: jax.Array, low: float, high: float) -> jax.Array:
    """The time in [low, high] at which the decreasing function ``sde.log_snr`` takes the value ``log_snr``."""

    def halve(_: int, bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        left, right = bracket
        middle = (left + right) / 2
        too_early = sde.log_snr(middle) > log_snr
        return jnp.where(too_early, middle, left), jnp.where(too_early, right, middle)

    steps = 64 if log_snr.dtype == jnp.float64 else 48  # to neighbouring numbers even where t is 1e-6 of the range
    bracket = jnp.full_like(log_snr, low), jnp.full_like(log_snr, high)
    left, right = jax.lax.fori_loop(0, steps, halve, bracket)
    return (left + right) / 2


@dataclasses.dataclass(frozen=True)
class _LinearBeta(SDE):
    """log alpha = -B/2 with B(t) the integral of beta(t) = beta_min + t (beta_max - beta_min)."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def _validate(self) -> None:  # noqa: B027
        _require(self.beta_min >= 0, self, "beta_min", "at least 0", self.beta_min)
        _require(self.beta_max > self.beta_min, self, "beta_max", f"above beta_min = {self.beta_min:g}", self.beta_max)

    def _integral(self, t: ArrayLike) -> jax.Array:
        t = _time(t)
        return t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))

    def _inverse_integral(self, integral: jax.Array) -> jax.Array:
        slope = self.beta_max - self.beta_min
        return 2 * integral / (self.beta_min + jnp.sqrt(self.beta_min**2 + 2 * slope * integral))

    def log_alpha(self, t: ArrayLike) -> jax.Array:
        return -0.5 * self._integral(t)


@dataclasses.dataclass(frozen=True)
class VP(_LinearBeta):
    """Variance preserving: log alpha = -B(t)/2, sigma^2 = 1 - exp(-B(t)).

    Song et al. (2021), equations 11 and 29. beta_max > beta_min >= 0.
    """

    def variance(self, t: ArrayLike) -> jax.Array:
        return -jnp.expm1(-self._integral(t))

    def time(self, log_snr: ArrayLike) -> jax.Array:
        return self._inverse_integral(jax.nn.softplus(-_time(log_snr)))  # exp(-log_snr) = expm1(B)


@dataclasses.dataclass(frozen=True)
class SubVP(_LinearBeta):
    """Sub-variance preserving: alpha of ``VP``, sigma = 1 - exp(-B(t)). Song et al. (2021), equations 12 and 29."""

    def variance(self, t: ArrayLike) -> jax.Array:
        return jnp.expm1(-self._integral(t)) ** 2

    def time(self, log_snr: ArrayLike) -> jax.Array:
        return self._inverse_integral(
            2 * jnp.arcsinh(0.5 * jnp.exp(-0.5 * _time(log_snr)))
        )  # sigma/alpha = 2 sinh(B/2)


@dataclasses.dataclass(frozen=True)
class VE(SDE):
    """Variance exploding: alpha = 1, sigma = sigma_min (sigma_max/sigma_min)^t in the units of the data; t_min = 0.

    Song et al. (2021), equations 9 and 30. sigma_max > sigma_min > 0; sigma_max near the largest distance between data.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def _validate(self) -> None:  # noqa: B027
        _require(self.sigma_min > 0, self, "sigma_min", "above 0", self.sigma_min)
        _require(
            self.sigma_max > self.sigma_min, self, "sigma_max", f"above sigma_min = {self.sigma_min:g}", self.sigma_max
        )

    def _default_t_min(self) -> float:
        return 0.0

    def log_alpha(self, t: ArrayLike) -> jax.Array:
        return jnp.zeros_like(_time(t))

    def variance(self, t: ArrayLike) -> jax.Array:
        return (self.sigma_min * jnp.power(self.sigma_max / self.sigma_min, _time(t))) ** 2

    def time(self, log_snr: ArrayLike) -> jax.Array:
        return (-0.5 * _time(log_snr) - math.log(self.sigma_min)) / math.log(self.sigma_max / self.sigma_min)


@dataclasses.dataclass(frozen=True)
class Cosine(SDE):
    """The cosine path: alpha = cos(pi t/2), sigma = sin(pi t/2); t_max where the log-SNR is -10."""

    def log_alpha(self, t: ArrayLike) -> jax.Array:
        t = _time(t)  # cos(pi t/2) loses digits at both ends: near 0 use its distance from 1, near 1 the sine of 1 - t
        late = jnp.log(jnp.sin(0.5 * jnp.pi * (1 - t)))
        return jnp.where(t < 0.5, 0.5 * jnp.log1p(-(jnp.sin(0.5 * jnp.pi * jnp.minimum(t, 0.5)) ** 2)), late)

    def variance(self, t: ArrayLike) -> jax.Array:
        return jnp.sin(0.5 * jnp.pi * _time(t)) ** 2

    def time(self, log_snr: ArrayLike) -> jax.Array:
        return 2 / jnp.pi * jnp.arctan(jnp.exp(-0.5 * _time(log_snr)))


@dataclasses.dataclass(frozen=True)
class RectifiedFlow(SDE):
    """The straight path of flow matching: alpha = 1 - t, sigma = t; t_max where the log-SNR is -10."""

    def log_alpha(self, t: ArrayLike) -> jax.Array:
        return jnp.log1p(-_time(t))

    def variance(self, t: ArrayLike) -> jax.Array:
        return _time(t) ** 2

    def time(self, log_snr: ArrayLike) -> jax.Array:
        return jax.nn.sigmoid(-0.5 * _time(log_snr))
