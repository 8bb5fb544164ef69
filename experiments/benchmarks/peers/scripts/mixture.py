"""The mixture sum_k w_k N(m_k, s_k^2 I) for the peers: exact E[x_0 | x_t] and score of x_t = alpha x_0 + sigma eps.

The same law as ``scoresde.GaussianMixture``, as PyTorch's users would write it; calls are counted.
"""

import math

import numpy as np
import torch  # pyright: ignore[reportMissingImports]


class Mixture(torch.nn.Module):
    """From an .npz of ``means`` (K, D), ``stds`` (K,) and ``weights`` (K,)."""

    def __init__(self, arrays, dtype):
        super().__init__()
        self.means, self.stds, self.weights = (
            torch.as_tensor(np.asarray(arrays[name]), dtype=dtype) for name in ("means", "stds", "weights")
        )
        self.calls = 0

    def parts(self, x, alpha, sigma):
        """v_k = alpha^2 s_k^2 + sigma^2, x - alpha m_k and the posterior weights: (B, K), (B, K, D), (B, K)."""
        self.calls += 1
        alpha, sigma = (torch.as_tensor(v, dtype=x.dtype).reshape(-1, 1) for v in (alpha, sigma))
        v = alpha**2 * self.stds**2 + sigma**2
        away = x[:, None] - alpha[..., None] * self.means
        log_joint = self.weights.log() - 0.5 * (x.shape[1] * v.log() + away.square().sum(2) / v)
        return v, away, log_joint.softmax(1)

    def score(self, x, alpha, sigma):
        v, away, share = self.parts(x, alpha, sigma)
        return -((share / v)[..., None] * away).sum(1)

    def noise(self, x, alpha, sigma):
        """E[eps | x_t]."""
        return -torch.as_tensor(sigma, dtype=x.dtype).reshape(-1, 1) * self.score(x, alpha, sigma)

    def denoised(self, x, alpha, sigma):
        """E[x_0 | x_t]; written without the score, whose factor sigma^2 would cancel digits at large noise."""
        v, away, share = self.parts(x, alpha, sigma)
        alpha = torch.as_tensor(alpha, dtype=x.dtype).reshape(-1, 1)
        gain = alpha * self.stds**2 / v
        return (share[..., None] * (self.means + gain[..., None] * away)).sum(1)


def vp(t, beta_min=0.1, beta_max=20.0):
    """alpha, sigma and beta of the VP SDE at time t."""
    integral = beta_min * t + 0.5 * t**2 * (beta_max - beta_min)
    return math.exp(-0.5 * integral), math.sqrt(-math.expm1(-integral)), beta_min + t * (beta_max - beta_min)
