"""Learned uncertainty: training balances the noise levels by itself.

A small head u(c) of the noise coordinate c = log(sigma/alpha) joins the parameters. The loss l of an example becomes

    l / exp(u(c)) + u(c),         least at    exp(u(c)) = E[l | c],

the negative log-likelihood of an error of variance exp(u) up to constants. So every level contributes the same, however
large its loss, in proportion to how often its times are drawn: here the draw is part of the objective. With
``Preconditioner.karras_weight`` and the ``log_normal`` draw of equal numbers it is the objective of EDM2, and exp(u) is
a smooth curve of the loss over noise levels besides.

u is linear in Fourier features of c, and zero at first.

Reference: Karras et al., "Analyzing and improving the training dynamics of diffusion models" (2024), section 2,
"uncertainty"; Kendall et al., "Multi-task learning using uncertainty to weigh losses" (2018).
"""

import jax
import jax.numpy as jnp

from scoresde.nn.layers.embeddings import gaussian_fourier
from scoresde.sde import SDE

Uncertainty = dict[str, jax.Array]
"""Parameters of the head: {weights (features,), bias ()}."""


def init_uncertainty(features: int = 64) -> Uncertainty:
    """The head at u = 0, to be trained beside the network's parameters; ``features`` is even and at least 2."""
    gaussian_fourier(jnp.zeros(1), features)
    return {"weights": jnp.zeros(features), "bias": jnp.zeros(())}


def uncertainty(params: Uncertainty, sde: SDE, t: jax.Array) -> jax.Array:
    """u, (B,), at times t (B,): the logarithm of the expected loss there, once trained."""
    features = gaussian_fourier(-0.5 * sde.log_snr(t), params["weights"].shape[0])
    return features @ params["weights"] + params["bias"]


def with_uncertainty(losses: jax.Array, u: jax.Array) -> jax.Array:
    """losses / exp(u) + u, (B,)."""
    return losses * jnp.exp(-u) + u
