"""The variational bound on the log-likelihood, from denoising errors alone: no divergence and no differential equation.

Model: x_T ~ N(0, sigma_T^2 I), the reverse SDE of the score down to a first time t_0, and a decoder p(x_0 | x_t0). With
lambda the log-SNR, eps_hat = -sigma score(x_t, t) and x_t = alpha x_0 + sigma eps, the evidence lower bound is

    -log p(x_0) <= KL(q(x_T | x_0) || prior)                              prior           = exp(lambda_T) ||x_0||^2 / 2
                   + 1/2 int_{lambda_T}^{lambda_0} E||eps - eps_hat||^2 dlambda             diffusion
                   + E[-log p(x_0 | x_t0)]                                                  reconstruction

(Song et al. 2021, "ScoreFlow", theorem 3; Kingma et al. 2021, "VDM", sections 4 and 5). In T steps with the posterior
variance of DDPM the integral becomes sum_i expm1(h_i) E||eps - eps_hat||^2 at the noisier end of each step h_i of
lambda: on average larger for an exact score, falling to the integral as T grows. ``denoising`` samples either.

Decoders. Continuous data: N(D, rho^2 I) with Tweedie's D = E[x_0 | x_t0] and rho = sigma/alpha, the posterior where the
density is flat over rho. As D - x_0 = rho (eps - eps_hat) the term is dims/2 log(2 pi rho^2) + E||eps - eps_hat||^2/2.
Integers: the mass that the same Gaussian puts on the bin (Ho et al. 2020, "DDPM", equation 13), x_0 being its centre.
Where a density is flat over a bin of width w this pair costs 0.02 nats a dimension at rho = w/2, and 0.0016 at rho = w.

How tight. If the score is that of a law p, then for every x_0, not only on average,

    bound(x_0) = log p(x_0) - E_q log p_T(x_T)/prior(x_T) - E_q log p(x_0 | x_t0)/decoder(x_0 | x_t0):

the prior mismatch and the decoder are all that is lost (at some x_0 either may be a gain: what is bounded is the law of
the model with its own prior and decoder). A function that is no score of a diffused law loses more, and the bound is on
the law of the reverse SDE, which is then not that of the probability flow (``log_likelihood``).
"""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm
from jax.tree_util import Partial
from jax.typing import ArrayLike

from scoresde.arrays import flatten, nan_unless, number, on_host, widened
from scoresde.checks import whole
from scoresde.flow.probability import failure_message
from scoresde.likelihood.adaptive import check_levels
from scoresde.likelihood.denoising import (
    Path,
    check_sampling,
    continuous_path,
    denoising_error,
    gaussian_error,
    grid_path,
    sampled_difference,
    strata,
)
from scoresde.score import Score, as_partial
from scoresde.sde import SDE


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["bound", "std_error", "prior", "diffusion", "reconstruction", "num_evals", "success"],
    meta_fields=["draws"],
)
@dataclasses.dataclass(frozen=True)
class Bound:
    """A lower bound on log-likelihoods and the three costs that make it up, in nats.

    Attributes:
        bound: (B,) = -(prior + diffusion + reconstruction), for ``bits_per_dim``; larger is more likely.
        std_error: (B,) standard error of ``bound`` over the repeats; NaN with one.
        prior: (B,) KL divergence of q(x_T | x_0) from the prior, exact.
        diffusion: (B,) cost of denoising from t_max to the first time.
        reconstruction: (B,) cost of the data given the state at the first time.
        num_evals: (B,) evaluations of the score.
        success: (B,) whether the bound is finite.
        draws: times at which errors were taken, of each repeat.
    """

    bound: jax.Array
    std_error: jax.Array
    prior: jax.Array
    diffusion: jax.Array
    reconstruction: jax.Array
    num_evals: jax.Array
    success: jax.Array
    draws: int

    @property
    def message(self) -> str:
        """One line for people, empty if every example succeeded. Not available inside ``jit``."""
        return failure_message(self.success, self.draws)


def _bound(
    key: jax.Array,
    sde: SDE,
    score: Score,
    x: jax.Array,
    path: Path,
    decoder: Partial,
    sampling: tuple[int, int, float],
    first: ArrayLike,
) -> Bound:
    """The three terms; ``decoder(residual, difference)`` is what one draw at the first time costs each example."""
    draws, repeats, sigma_data = sampling
    squares, dims = jnp.sum(flatten(x) ** 2, axis=1), math.prod(x.shape[1:])
    key_path, key_data = jax.random.split(key)
    score, scale = as_partial(score), jnp.asarray(sigma_data, x.dtype)
    offsets, first = strata(len(x), int(np.asarray(first)), x.dtype), number(first)
    difference = sampled_difference(key_path, sde, score, x, path, scale, draws, repeats, first, offsets)
    a, b = path.gaussian(sigma_data)
    diffusion = 0.5 * (difference + (a * dims + b * squares)[None])
    t_data = jnp.asarray(path.t_data, x.dtype)
    reconstruction = _decoded(key_data, sde, score, x, t_data, scale, decoder, first, repeats)
    prior = 0.5 * math.exp(path.log_snr[0]) * squares
    estimates = diffusion + reconstruction
    error = jnp.std(estimates, axis=0, ddof=1) / math.sqrt(repeats) if repeats > 1 else nan_unless(False, prior)
    diffusion, reconstruction = jnp.mean(diffusion, axis=0), jnp.mean(reconstruction, axis=0)
    bound, evals = -(prior + diffusion + reconstruction), jnp.full(len(x), repeats * (draws + 1))
    return Bound(bound, error, prior, diffusion, reconstruction, evals, jnp.isfinite(bound), draws)


@partial(jax.jit, static_argnames="repeats")
def _decoded(
    key: jax.Array,
    sde: SDE,
    score: Partial,
    x: jax.Array,
    t: jax.Array,
    sigma_data: jax.Array,
    decoder: Partial,
    first: ArrayLike,
    repeats: int,
) -> jax.Array:
    """(R, B): the decoder's cost of one draw of x_t at the first time for each repeat."""

    def draw(key: jax.Array) -> jax.Array:
        return decoder(*denoising_error(key, sde, score, x, t, sigma_data, first))

    with jax.default_matmul_precision("highest"):
        return jax.lax.map(draw, jax.random.split(key, repeats))


def _gaussian_decoder(mean: jax.Array, residual: jax.Array, difference: jax.Array) -> jax.Array:
    """-log N(x_0; D, rho^2 I) with (x_0 - D)/rho = -residual; ``mean`` is what it costs under the Gaussian's score."""
    return mean + 0.5 * difference


def _bin_decoder(edges: tuple[jax.Array, jax.Array], residual: jax.Array, difference: jax.Array) -> jax.Array:
    """-log of the mass of [low, high], in units of rho around the bin's centre, under N(D, rho^2 I)."""
    a, b = (edge - residual for edge in edges)  # (D - centre)/rho = residual
    a, b = jnp.where(a + b > 0, -b, a), jnp.where(a + b > 0, -a, b)  # to the lower tail, which has its digits
    return -jnp.sum(norm.logcdf(b) + jnp.log(-jnp.expm1(norm.logcdf(a) - norm.logcdf(b))), axis=1)


def likelihood_bound(
    key: jax.Array,
    sde: SDE,
    score: Score,
    x: ArrayLike,
    *,
    draws: int = 16,
    repeats: int = 8,
    sigma_data: float = 1.0,
    first: ArrayLike = 0,
) -> Bound:
    """A lower bound on the log-density of continuous data, by the continuous-time bound with a Gaussian decoder.

    Args:
        key: random key; example i depends on (key, i) alone. Bounds of several scores under one key share all noise.
        sde: the SDE.
        score: ``score(x, t)`` with t of shape (B,).
        x: (B, *event), continuous data x_0 in the units in which the score was trained.
        draws: times of each repeat, stratified in the log-SNR within and across examples.
        repeats: independent estimates, over which ``std_error`` is taken.
        sigma_data: scale of the control variate, best the standard deviation of the data; it does not change the mean.
        first: number of the first example: row i is example first + i of ``key``, as in a larger batch.

    Raises:
        ValueError: integer x, a shape without event axes, or a setting out of range.

    >>> import scoresde as ss
    >>> law = ss.GaussianMixture(jnp.zeros((1, 3)), jnp.ones(1), jnp.ones(1))
    >>> x = law.sample(jax.random.key(0), 5)
    >>> got = likelihood_bound(jax.random.key(1), ss.VP(), law.score(ss.VP()), x)
    >>> bool(jnp.all(abs(got.bound - law.log_prob(x)) < 1e-3))
    True
    """
    x = widened(x)
    if jnp.issubdtype(x.dtype, jnp.integer):
        raise ValueError(f"x must be floating point, got {x.dtype}: for integer data use discrete_bound")
    check_sampling(x, draws, repeats, sigma_data)
    path, dims = continuous_path(sde, sde.t_min), math.prod(x.shape[1:])
    a, b = gaussian_error(path.log_snr[-1], sigma_data).tolist()
    log_variance = math.log(2 * math.pi) - float(path.log_snr[-1])
    mean = 0.5 * (dims * (a + log_variance) + b * jnp.sum(flatten(x) ** 2, axis=1))
    return _bound(key, sde, score, x, path, Partial(_gaussian_decoder, mean), (draws, repeats, sigma_data), first)


def discrete_bound(
    key: jax.Array,
    sde: SDE,
    score: Score,
    levels: ArrayLike,
    *,
    bin_width: float,
    shift: ArrayLike = 0.0,
    num_levels: int | None = None,
    grid: ArrayLike | None = None,
    t_data: float | None = None,
    draws: int = 16,
    repeats: int = 8,
    sigma_data: float = 1.0,
    first: ArrayLike = 0,
) -> Bound:
    """A lower bound on the log-probability of integer data: the three terms of DDPM (a grid of T steps) or VDM (none).

    ``bound`` is the log-probability of the levels, whose bins have width 1: bits are ``bits_per_dim(bound, dims, 1)``.

    Args:
        key: random key; example i depends on (key, i) alone.
        sde: the SDE.
        score: ``score(x, t)`` in the model's units.
        levels: (B, *event) integers k; x_0 = (k + 1/2 - shift) * bin_width, the centre of the bin.
        bin_width: width of one level in the model's units, positive.
        shift: scalar or array like one event, in levels.
        num_levels: with it levels are 0..num_levels - 1 and the outer bins reach to infinity; else all integers count.
        grid: decreasing times from t_max (``log_snr_grid(sde, T)``) for the T-step bound; None for continuous time.
        t_data: the first time in continuous time (a grid ends with its own). By default where sigma/alpha is half a
            bin, or the end of [t_min, t_max) near it. A score trained on dequantised data knows nothing finer, and
            would pay log(bin_width/rho) for each dimension; one trained on the levels themselves is best at t_min.
        draws: as in ``likelihood_bound``, like ``repeats``, ``sigma_data`` and ``first``.

    Raises:
        ValueError: levels that are not whole numbers or out of range, a grid that does not begin at t_max, both a grid
            and t_data, or settings out of range.
    """
    levels = check_levels(levels, bin_width, "likelihood_bound")
    x = jnp.asarray((levels + 0.5 - np.broadcast_to(shift, levels.shape)) * bin_width, float)
    check_sampling(x, draws, repeats, sigma_data)
    path = _discrete_path(sde, grid, t_data, bin_width)
    half = bin_width / 2 * math.exp(0.5 * path.log_snr[-1])
    edges = np.full(levels.shape, -half), np.full(levels.shape, half)
    if num_levels is not None:
        last = whole("num_levels", num_levels) - 1
        if last < 1 or levels.min() < 0 or levels.max() > last:
            raise ValueError(f"levels must lie in 0..num_levels - 1 = {last}, got {levels.min()}..{levels.max()}")
        edges[0][levels == 0], edges[1][levels == last] = -np.inf, np.inf
    decoder = Partial(_bin_decoder, tuple(flatten(jnp.asarray(edge, x.dtype)) for edge in edges))
    return _bound(key, sde, score, x, path, decoder, (draws, repeats, sigma_data), first)


def _discrete_path(sde: SDE, grid: ArrayLike | None, t_data: float | None, bin_width: float) -> Path:
    if grid is not None:
        if t_data is not None:
            raise ValueError(f"t_data must be None with a grid, which ends at its own first time, got {t_data!r}")
        return grid_path(sde, grid)
    if t_data is None:
        low, high = on_host(sde.log_snr, np.array([sde.t_max, sde.t_min]))
        wanted = np.clip(-2 * math.log(bin_width / 2), low + 1e-3 * (high - low), high)
        t_data = float(np.clip(on_host(sde.time, wanted), sde.t_min, sde.t_max))
    if not sde.t_min <= t_data < sde.t_max:
        raise ValueError(f"t_data must be in [t_min, t_max) = [{sde.t_min:g}, {sde.t_max:g}), got {t_data!r}")
    return continuous_path(sde, t_data)
