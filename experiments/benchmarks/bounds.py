"""How noisy the variational bound is, with and without its control variate, and how far below the exact log-density.

    python -m experiments.benchmarks.bounds

On laws whose score and density are exact: the ring of eight Gaussians and a mixture of ten Gaussians fitted to the
ten classes of the digits (64 dimensions). Printed per example, at 16 evaluations of the score: the deviation of the
plain estimate of the diffusion term and that with the control variate; and, in one run of ``likelihood_bound`` with its
defaults, the mean of bound - log p over the examples with its standard error.
"""

import math
import time

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

import scoresde as ss
from scoresde.denoising import continuous_path, denoising_error, sampled_difference

DRAWS, REPEATS, EXAMPLES = 16, 64, 64


def ring() -> ss.GaussianMixture:
    """Eight modes of standard deviation 0.1 on the unit circle."""
    angle = 2 * np.pi * np.arange(8) / 8
    return ss.GaussianMixture(np.stack([np.cos(angle), np.sin(angle)], 1), np.full(8, 0.1), np.ones(8))


def digits() -> ss.GaussianMixture:
    """A Gaussian for each class of the dequantised digits, scaled to unit standard deviation."""
    data = load_digits()
    x = data.data + np.random.default_rng(0).random(data.data.shape)
    x = (x - x.mean(0)) / np.sqrt(np.mean(x.var(0)))
    classes = [x[data.target == c] for c in range(10)]
    return ss.GaussianMixture([c.mean(0) for c in classes], [np.sqrt(c.var(0) + 2e-3) for c in classes], np.ones(10))


def plain(key: jax.Array, sde: ss.SDE, score: ss.score.Score, x: jax.Array) -> jax.Array:
    """(R, B): estimates of int E||eps - eps_hat||^2 dlambda from the squares themselves, at the same times."""
    path = continuous_path(sde, sde.t_min)

    @jax.jit
    def draw(key: jax.Array) -> jax.Array:
        keys, units = jax.random.split(key, DRAWS), jax.random.uniform(key, (len(x),))

        def one(index: jax.Array) -> jax.Array:
            t, weight = path.draw(sde, (units + index) / DRAWS)
            residual, _ = denoising_error(keys[index], sde, score, x, t, jnp.asarray(1.0))
            return weight * jnp.sum(residual**2, axis=1)

        return jnp.mean(jax.lax.map(one, jnp.arange(DRAWS)), axis=0)

    return jax.lax.map(draw, jax.random.split(key, REPEATS))


def main() -> None:
    print("law     SDE  std plain  std with control  variance ratio   bound - log p          seconds")
    key = jax.random.key(0)
    for name, law, sigma_data in (("ring", ring(), math.sqrt(0.51)), ("digits", digits(), 1.0)):
        x = law.sample(jax.random.key(1), EXAMPLES)
        for sde in (ss.VP(), ss.VE()):
            score = law.score(sde)
            path, scale = continuous_path(sde, sde.t_min), jnp.asarray(sigma_data)
            controlled = sampled_difference(key, sde, score, x, path, scale, DRAWS, REPEATS)
            without, with_control = (
                0.5 * float(jnp.sqrt(jnp.mean(jnp.var(v, axis=0)))) for v in (plain(key, sde, score, x), controlled)
            )
            started = time.monotonic()
            bound = jax.block_until_ready(ss.likelihood_bound(key, sde, score, x, sigma_data=sigma_data))
            seconds = time.monotonic() - started
            mean, error = ss.mean_with_error(bound.bound - law.log_prob(x))
            print(
                f"{name:7} {type(sde).__name__:3} {without:9.2f} {with_control:16.2f} "
                f"{(without / with_control) ** 2:14.1f} {mean:12.3f} +- {error:.3f} nats {seconds:8.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
