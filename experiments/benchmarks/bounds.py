"""How noisy the variational bound is, with and without its control variate, and how far below the exact log-density.

    python -m experiments.benchmarks.bounds

On laws whose score and density are exact: the ring of eight Gaussians, and a mixture of ten Gaussians fitted to the
classes of the digits (64 dimensions). Per example, in nats, at 16 evaluations of the score: the standard deviation of
the estimated diffusion term with times uniform in t, uniform in the log-SNR, and there with the control variate. Then,
of one run of ``likelihood_bound`` with its defaults, the mean of bound - log p over the examples and its error.
"""

import math
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from sklearn.datasets import load_digits

import scoresde as ss
from scoresde.likelihood.denoising import continuous_path, denoising_error, sampled_difference
from scoresde.score import as_partial

Times = Callable[[ss.SDE, jax.Array], tuple[jax.Array, jax.Array]]
DRAWS, REPEATS, EXAMPLES = 16, 64, 64


def ring() -> ss.GaussianMixture:
    """Eight modes of standard deviation 0.1 on the unit circle."""
    angle = 2 * np.pi * np.arange(8) / 8
    return ss.GaussianMixture(np.stack([np.cos(angle), np.sin(angle)], 1), np.full(8, 0.1), np.ones(8))


def digits() -> ss.GaussianMixture:
    """A Gaussian for each class of the dequantised digits, scaled to unit standard deviation."""
    levels, target = load_digits(return_X_y=True)
    x = levels + np.random.default_rng(0).random(np.shape(levels))
    x = (x - x.mean(0)) / np.sqrt(np.mean(x.var(0)))
    means = np.stack([x[target == c].mean(0) for c in range(10)])
    stds = np.stack([np.sqrt(x[target == c].var(0) + 2e-3) for c in range(10)])
    return ss.GaussianMixture(means, stds, np.ones(10))


def uniform_time(sde: ss.SDE, units: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Times uniform in t, with the likelihood weight g^2/sigma^2."""
    t = sde.t_min + (sde.t_max - sde.t_min) * units
    return t, ss.likelihood_weight(sde, t) * (sde.t_max - sde.t_min)


def uniform_log_snr(sde: ss.SDE, units: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Times uniform in the log-SNR, as ``likelihood_bound`` draws them."""
    return continuous_path(sde, sde.t_min).draw(sde, units)


def plain(times: Times, key: jax.Array, sde: ss.SDE, score: Partial, x: jax.Array) -> jax.Array:
    """(R, B): estimates of int E||eps - eps_hat||^2 dlambda from the squares themselves."""

    @jax.jit
    def draw(key: jax.Array) -> jax.Array:
        key_units, key_noise = jax.random.split(key)
        keys, units = jax.random.split(key_noise, DRAWS), jax.random.uniform(key_units, (len(x),))

        def one(index: jax.Array) -> jax.Array:
            t, weight = times(sde, (units + index) / DRAWS)
            residual, _ = denoising_error(keys[index], sde, score, x, t, jnp.asarray(1.0))
            return weight * jnp.sum(residual**2, axis=1)

        return jnp.mean(jax.lax.map(one, jnp.arange(DRAWS)), axis=0)

    return jax.lax.map(draw, jax.random.split(key, REPEATS))


def main() -> None:
    """Print the table."""
    print("law     SDE  uniform t  log-SNR  + control         bound - log p        seconds")
    key = jax.random.key(0)
    for name, law, sigma_data in (("ring", ring(), math.sqrt(0.51)), ("digits", digits(), 1.0)):
        x = law.sample(jax.random.key(1), EXAMPLES)
        for sde in (ss.VP(), ss.VE()):
            score = as_partial(law.score(sde))
            path, scale = continuous_path(sde, sde.t_min), jnp.asarray(sigma_data)
            estimates = [plain(times, key, sde, score, x) for times in (uniform_time, uniform_log_snr)]
            estimates += [sampled_difference(key, sde, score, x, path, scale, DRAWS, REPEATS)]
            stds = [0.5 * float(jnp.sqrt(jnp.mean(jnp.var(values, axis=0)))) for values in estimates]
            started = time.monotonic()
            bound = jax.block_until_ready(ss.likelihood_bound(key, sde, score, x, sigma_data=sigma_data))
            seconds = time.monotonic() - started
            mean, error = ss.mean_with_error(bound.bound - law.log_prob(x))
            row = f"{name:7} {type(sde).__name__:3} {stds[0]:10.2f} {stds[1]:8.2f} {stds[2]:10.2f}"
            print(f"{row} {mean:12.3f} +- {error:.3f} nats {seconds:8.1f}", flush=True)


if __name__ == "__main__":
    main()
