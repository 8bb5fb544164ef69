"""What training measured at each noise level, and a draw of times that makes use of it.

The log-SNR between t_max and t_min is cut into equal bins. ``Levels`` keeps, for each bin and over the examples that
fell into it, decayed sums of

    1,     r = e / cos(phi)^2,     l = w i e,     l^2,

e being the error ||eps_hat - eps||^2/D, w the weight and i = 1/(density of uniform log-SNR): l is the loss as that draw
would have it, so it does not depend on the draw in use, and E l over the bins is the loss. With tan(phi) =
sigma/(alpha sigma_data), cos(phi)^2 = sigma_d^2/(sigma_d^2 + rho^2) is the error of the best linear predictor for data
N(0, sigma_data^2 I), and r is the error of the preconditioned output (its target has unit variance). Hence

    variance explained = 1 - E r = 1 - E||D - x_0||^2 / E||best linear D - x_0||^2 :

0 where nothing is learned (an untrained network of zero output is the linear predictor), below 0 where it is worse, and
upwards of it as far as the data allow, to 1 where x_0 is known from x_t.

Among draws of density q, the variance of the loss l/q is least for q proportional to sqrt(E l^2) (importance sampling;
for the gradient it is the cheap stand-in, as in Nichol and Dhariwal 2021, section 3.3). ``adaptive`` takes the measured
one, piecewise constant, mixed with a share of uniform draws that bounds 1/q. It depends on earlier steps alone, hence
the estimate stays unbiased.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from scoresde.angle import secant_squared
from scoresde.arrays import nan_unless
from scoresde.sde import SDE
from scoresde.training.loss import Denoising, TimeDraw, log_snr_importance, stratified_units
from scoresde.training.weights import Weight

SUMS = ("count", "output", "loss", "square")


@partial(jax.tree_util.register_dataclass, data_fields=SUMS, meta_fields=("sde", "sigma_data", "decay"))
@dataclasses.dataclass(frozen=True)
class Levels:
    """Decayed sums per bin of the log-SNR, a carry of training; make the first with ``Levels.start``.

    Attributes:
        count, output, loss, square: (bins,) sums of 1, r, l and l^2; bin 0 has the most noise.
        sde, sigma_data, decay: see ``start``.
    """

    count: jax.Array
    output: jax.Array
    loss: jax.Array
    square: jax.Array
    sde: SDE
    sigma_data: float
    decay: float

    @classmethod
    def start(cls, sde: SDE, *, sigma_data: float = 1.0, bins: int = 32, decay: float = 0.99) -> "Levels":
        """Nothing measured yet.

        Args:
            sde: the SDE, whose log-SNRs are cut into bins.
            sigma_data: standard deviation of the data, as for ``Preconditioner``.
            bins: their number, at least 2.
            decay: of the sums, at each update, in [0, 1]; 0.99 remembers about 100 updates.

        Raises:
            ValueError: a value out of range.
        """
        if isinstance(bins, bool) or not isinstance(bins, int | np.integer) or bins < 2:
            raise ValueError(f"bins must be a whole number of at least 2, got {bins!r}")
        if not 0 <= decay <= 1:
            raise ValueError(f"decay must be in [0, 1], got {decay!r}")
        if not sigma_data > 0:
            raise ValueError(f"sigma_data must be positive, got {sigma_data!r}")
        zeros = {name: jnp.zeros(bins) for name in SUMS}
        return cls(**zeros, sde=sde, sigma_data=float(sigma_data), decay=float(decay))

    def edges(self) -> jax.Array:
        """(bins + 1,) log-SNRs, increasing."""
        low, high = self.sde.log_snr(self.sde.t_max), self.sde.log_snr(self.sde.t_min)
        return low + (high - low) * jnp.linspace(0, 1, self.count.shape[0] + 1)

    def update(self, errors: Denoising, weight: Weight) -> "Levels":
        """With the examples of one batch, whatever draw their times came from. No gradient passes."""
        t, e = jax.lax.stop_gradient((errors.t, errors.error))
        edges, log_snr = self.edges(), self.sde.log_snr(t)
        bins = self.count.shape[0]
        index = jnp.clip(((log_snr - edges[0]) / (edges[-1] - edges[0]) * bins).astype(int), 0, bins - 1)
        loss = weight(self.sde, t) * e * log_snr_importance(self.sde, t)
        values = jnp.ones_like(e), e * secant_squared(self.sde, t, self.sigma_data), loss, loss**2
        sums = (self.count, self.output, self.loss, self.square)
        moved = [self.decay * old + jnp.zeros(bins).at[index].add(new) for old, new in zip(sums, values, strict=True)]
        return dataclasses.replace(self, **dict(zip(SUMS, moved, strict=True)))

    def curves(self) -> dict[str, jax.Array]:
        """{log_snr, loss, variance_explained, count}, (bins,) each, at the middles of the bins; NaN in empty ones."""
        edges, seen = self.edges(), self.count > 0
        count = jnp.where(seen, self.count, 1)
        return {
            "log_snr": (edges[1:] + edges[:-1]) / 2,
            "loss": nan_unless(seen, self.loss / count),
            "variance_explained": nan_unless(seen, 1 - self.output / count),
            "count": self.count,
        }


def adaptive(levels: Levels, *, floor: float = 0.2) -> TimeDraw:
    """Stratified times of density proportional to the root of the measured second moment of the loss.

    Bins without examples count like the largest, so that they are visited; with none measured at all the draw is that
    of ``uniform_log_snr``.

    Args:
        levels: the measurements; may be traced.
        floor: share of draws that are uniform in the log-SNR, in (0, 1]: 1/q is at most 1/floor times theirs.

    Raises:
        ValueError: floor out of range.
    """
    if not 0 < floor <= 1:
        raise ValueError(f"floor must be in (0, 1], got {floor!r}")

    def draw(key: jax.Array, sde: SDE, n: int) -> tuple[jax.Array, jax.Array]:
        share = density(levels, floor)
        cumulative = jnp.concatenate([jnp.zeros(1), jnp.cumsum(share)])
        units = (1 - stratified_units(key, n)) * cumulative[-1]
        bins = share.shape[0]
        index = jnp.clip(jnp.searchsorted(cumulative, units, side="right") - 1, 0, bins - 1)
        edges = levels.edges()
        part = jnp.clip((units - cumulative[index]) / share[index], 0, 1)
        t = jnp.clip(sde.time(edges[index] + part * (edges[index + 1] - edges[index])), sde.t_min, sde.t_max)
        return t, log_snr_importance(sde, t) / (bins * share[index])

    return draw


def density(levels: Levels, floor: float) -> jax.Array:
    """(bins,) probabilities of the bins in ``adaptive``."""
    seen = levels.count > 1e-6
    root = jnp.sqrt(jnp.where(seen, levels.square / jnp.where(seen, levels.count, 1), 0))
    root = jnp.where(seen, root, jnp.max(root))
    uniform = jnp.full_like(root, 1 / root.shape[0])
    total = jnp.sum(root)
    return floor * uniform + (1 - floor) * jnp.where(total > 0, root / jnp.where(total > 0, total, 1), uniform)
