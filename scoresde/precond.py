"""What the network predicts, and the score that follows.

On the circle of ``angle`` the state is u = cos(phi) x_0/sigma_d + sin(phi) eps. It has unit variance at every time
and is the network's input; its noise coordinate is c = log(rho / sigma_d). The network's output F stands for one of

    noise      F = eps                                   data      F = x_0
    velocity   F = cos(phi) eps - sin(phi) x_0/sigma_d   karras    F = -velocity   (EDM: D = c_skip x + c_out F)
    score      F = grad log p_t(x)

and each implies the noise eps_hat = p u + q F, hence score = -eps_hat / sigma. The coefficients (p, q) are written
without cancellation. ``velocity`` (equal to ``karras`` up to sign) is the one whose error stays bounded at both ends of
time. With sigma_d = 1 and the VP SDE it is the v-prediction of Salimans and Ho (2022).

References: Karras et al., "Elucidating the design space of diffusion-based generative models" (2022), section 5 and
table 1; Salimans and Ho, "Progressive distillation" (2022), appendix D.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jax.typing import ArrayLike

from scoresde.angle import cos_sin, deviation, radius, secant_squared
from scoresde.arrays import expand, flatten
from scoresde.score import check_score
from scoresde.sde import SDE

Coefficients = tuple[jax.Array, jax.Array]
Prediction = Callable[[jax.Array, jax.Array, float], Coefficients]
"""(alpha, sigma, sigma_data) -> (p, q) of eps_hat = p u + q F."""


def noise(alpha: jax.Array, sigma: jax.Array, sigma_data: float) -> Coefficients:
    """The network predicts eps (Ho et al. 2020)."""
    return jnp.zeros_like(sigma), jnp.ones_like(sigma)


def data(alpha: jax.Array, sigma: jax.Array, sigma_data: float) -> Coefficients:
    """The network predicts x_0: eps_hat = (x - alpha F)/sigma."""
    return deviation(alpha, sigma**2, sigma_data) / sigma, -alpha / sigma


def velocity(alpha: jax.Array, sigma: jax.Array, sigma_data: float) -> Coefficients:
    """The network predicts du/dphi: eps_hat = sin(phi) u + cos(phi) F."""
    cos, sin = cos_sin(alpha, sigma, sigma_data)
    return sin, cos


def karras(alpha: jax.Array, sigma: jax.Array, sigma_data: float) -> Coefficients:
    """The network predicts -du/dphi, which is EDM's D = c_skip x + c_out F (Karras et al. 2022, equation 7)."""
    p, q = velocity(alpha, sigma, sigma_data)
    return p, -q


def score(alpha: jax.Array, sigma: jax.Array, sigma_data: float) -> Coefficients:
    """The network predicts the score itself, of order 1/sigma: eps_hat = -sigma F."""
    return jnp.zeros_like(sigma), -sigma


@dataclasses.dataclass(frozen=True)
class Preconditioner:
    """An SDE, the standard deviation of the data and what the network predicts: all that turns a network into a score.

    The one ``sigma_data`` kept here serves the network's input, its output and the loss weight that cancels them.

    Args:
        sde: the SDE.
        sigma_data: standard deviation of the (centred) data, in the data's units; ``from_data`` measures it.
        prediction: ``noise``, ``data``, ``velocity``, ``karras``, ``score`` or a function like them.
    """

    sde: SDE
    sigma_data: float = 1.0
    prediction: Prediction = velocity

    def __post_init__(self) -> None:
        if not isinstance(self.sde, SDE):
            raise ValueError(f"sde must be an SDE, got {self.sde!r}")
        if not (math.isfinite(self.sigma_data) and self.sigma_data > 0):
            raise ValueError(f"sigma_data must be positive and finite, got {self.sigma_data!r}")
        if not callable(self.prediction):
            raise ValueError(f"prediction must be a function such as precond.velocity, got {self.prediction!r}")

    @classmethod
    def from_data(cls, sde: SDE, x: ArrayLike, prediction: Prediction = velocity) -> "Preconditioner":
        """Measure ``sigma_data`` as the root-mean-square of ``x`` (B, *event) over all its entries."""
        return cls(sde, float(np.sqrt(np.mean(np.square(np.asarray(x, np.float64))))), prediction)

    def score(self, network: Callable[..., jax.Array]) -> Partial:
        """The score of ``network(u, c)``, which takes u (B, *event) of unit variance and c (B,), and returns F like u.

        Called as ``score(x, t, cond)``, as by ``given(score, cond)``, it is that of ``network(u, c, cond=cond)``.
        If ``network`` is a ``jax.tree_util.Partial`` its arrays stay traced arguments and are never compiled in.
        """
        return Partial(_network_score, self, network if isinstance(network, Partial) else Partial(network))

    def classifier(self, network: Callable[..., jax.Array]) -> Partial:
        """log p_t(c | x), (x, t) -> (B, K), of ``network(u, c)``, which is given what a score's is and returns logits.

        For ``cross_entropy`` and ``ss.guidance.of_class``; ``ss.nn.Classifier`` is such a network.
        """
        return Partial(_network_log_probs, self, network if isinstance(network, Partial) else Partial(network))

    def inputs(self, x: jax.Array, t: ArrayLike) -> tuple[jax.Array, jax.Array]:
        """What a network is given of x (B, *event) at t, a scalar or (B,): u (B, *event) and c (B,)."""
        t = jnp.asarray(t)
        flat = flatten(x)
        u = flat / expand(radius(self.sde, t, self.sigma_data), flat)
        c = jnp.broadcast_to(-0.5 * self.sde.log_snr(t) - math.log(self.sigma_data), x.shape[:1])
        return u.reshape(x.shape), c

    def karras_weight(self, p_mean: float = -1.2, p_std: float = 1.2) -> Callable[[SDE, jax.Array], jax.Array]:
        """EDM's objective as a weight on ||eps_hat - eps||^2 under uniform time (see ``loss``).

        Unit weight on the error of F, 1 + (rho/sigma_d)^2, times the density in t of log rho ~ N(p_mean, p_std^2).
        """

        def weight(sde: SDE, t: jax.Array) -> jax.Array:
            log_rho = -0.5 * sde.log_snr(t)
            rate = 0.5 * sde.diffusion(t) ** 2 / sde.variance(t)  # d log rho / dt
            density = jnp.exp(-0.5 * ((log_rho - p_mean) / p_std) ** 2) / (p_std * math.sqrt(2 * math.pi))
            return secant_squared(sde, t, self.sigma_data) * density * rate * (sde.t_max - sde.t_min)

        return weight


jax.tree_util.register_static(Preconditioner)


def _network_score(
    precond: Preconditioner, network: Partial, x: jax.Array, t: jax.Array, cond: Any = None
) -> jax.Array:
    sde, sigma_data = precond.sde, precond.sigma_data
    t = jnp.asarray(t)
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    p, q = precond.prediction(alpha, sigma, sigma_data)
    more = {} if cond is None else {"cond": cond}
    u, c = precond.inputs(x, t)
    F = flatten(check_score(network(u, c, **more), x))
    u = flatten(u)
    return (-(expand(p, u) * u + expand(q, u) * F) / expand(sigma, u)).reshape(x.shape)


def _network_log_probs(precond: Preconditioner, network: Partial, x: jax.Array, t: jax.Array) -> jax.Array:
    logits = network(*precond.inputs(x, t))
    return jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), axis=1)
