"""The family of solvers: the members that inherit every battery, and what several of their tests share.

A new solver is one line in ``ORDERS`` with the order that it states.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from family import gaussian_law, textbook

from scoresde.arrays import on_host
from scoresde.solvers import (
    adams,
    ancestral,
    ancestral_split,
    bh1,
    bh2,
    ddim,
    deis,
    dpm_solver,
    dpm_solver_single,
    euler_maruyama,
    heun,
    ipndm,
    lms,
    predictor_corrector,
    restart,
    reverse_diffusion,
    sa_solver,
    seeds,
    unipc,
)
from scoresde.solvers.table import Nodes, single_step

MEAN, STD = 0.7, 0.4


SOLVERS = {
    "euler_maruyama": euler_maruyama,
    "reverse_diffusion": reverse_diffusion,
    "ancestral": ancestral,
    "ddim": ddim,
    "ddim_half": lambda sde, grid: ddim(sde, grid, eta=0.5),
    "predictor_corrector": lambda sde, grid: predictor_corrector(sde, grid, snr=0.05),
    "predictor_corrector_ddim": lambda sde, grid: predictor_corrector(sde, grid, ddim, 0.05, 2),
}


def restarted(sde, grid):
    """Two intervals, of 2 repeats and one, with half the steps of the grid each; from five inner nodes on."""
    if len(grid) < 6:
        return heun(sde, grid)
    high, n = np.exp(-0.5 * np.asarray(on_host(sde.log_snr, grid[0]))), len(grid) - 1
    return restart(sde, grid, [(high / 3000, high / 50, n // 2, 2), (high / 30, high / 2, n // 2, 1)])


ORDERS = {
    "euler_maruyama": (euler_maruyama, 1),
    "reverse_diffusion": (reverse_diffusion, 1),
    "ancestral": (ancestral, 1),
    "ddim": (ddim, 1),
    "ddim_half": (SOLVERS["ddim_half"], 1),
    "heun": (heun, 2),
    "ralston": (lambda sde, grid: heun(sde, grid, alpha=2 / 3), 2),
    "midpoint": (lambda sde, grid: heun(sde, grid, alpha=0.5), 2),
    "heun_churn": (lambda sde, grid: heun(sde, grid, churn=3.0), 2),
    "dpm_solver_1": (lambda sde, grid: dpm_solver(sde, grid, 1), 1),
    "dpm_solver_2": (dpm_solver, 2),
    "dpm_solver_3": (lambda sde, grid: dpm_solver(sde, grid, 3), 3),
    "dpm_solver_2_noise": (lambda sde, grid: dpm_solver(sde, grid, noise_prediction=True), 2),
    "dpm_solver_2_sde": (lambda sde, grid: dpm_solver(sde, grid, eta=1.0), 2),
    "dpm_solver_2_noise_sde": (lambda sde, grid: dpm_solver(sde, grid, eta=1.0, noise_prediction=True), 2),
    "dpm_solver_single_2": (dpm_solver_single, 2),
    "dpm_solver_single_3": (lambda sde, grid: dpm_solver_single(sde, grid, 3), 3),
    "dpm_solver_single_2_noise": (lambda sde, grid: dpm_solver_single(sde, grid, noise_prediction=True), 2),
    "dpm_solver_single_3_noise": (lambda sde, grid: dpm_solver_single(sde, grid, 3, noise_prediction=True), 3),
    "deis_2": (lambda sde, grid: deis(sde, grid, 2), 2),
    "deis_3": (deis, 3),
    "deis_4": (lambda sde, grid: deis(sde, grid, 4), 4),
    "lms_2": (lambda sde, grid: lms(sde, grid, 2), 2),
    "lms_3": (lambda sde, grid: lms(sde, grid, 3), 3),
    "lms_4": (lms, 4),
    "ipndm_2": (lambda sde, grid: ipndm(sde, grid, 2), 2),
    "ipndm_3": (lambda sde, grid: ipndm(sde, grid, 3), 2),
    "ipndm_4": (ipndm, 2),  # whatever its name says
    "unip_2": (lambda sde, grid: unipc(sde, grid, 2, corrector=False), 2),
    "unip_3": (lambda sde, grid: unipc(sde, grid, corrector=False), 3),
    "unipc_1_bh1": (lambda sde, grid: unipc(sde, grid, 1, B=bh1), 2),
    "unipc_1_bh2": (lambda sde, grid: unipc(sde, grid, 1, B=bh2), 2),
    "unipc_2_bh1": (lambda sde, grid: unipc(sde, grid, 2, B=bh1), 3),
    "unipc_2_bh2": (lambda sde, grid: unipc(sde, grid, 2, B=bh2), 3),
    "adams_2": (lambda sde, grid: adams(sde, grid, 2), 3),
    "adams_3": (lambda sde, grid: adams(sde, grid, 3), 4),
    "unipc_4": (lambda sde, grid: unipc(sde, grid, 4), 5),
    "sa_solver_flow": (lambda sde, grid: sa_solver(sde, grid, 1, tau=0.0, corrector=2), 2),
    "sa_solver": (sa_solver, 2),
    "sa_solver_part": (lambda sde, grid: sa_solver(sde, grid, 2, tau=lambda t: t > sde.t_max / 3, corrector=0), 1),
    "seeds_1": (lambda sde, grid: seeds(sde, grid, 1), 1),
    "seeds_2": (seeds, 2),
    "seeds_2_data": (lambda sde, grid: seeds(sde, grid, noise_prediction=False), 2),
    "seeds_2_flow": (lambda sde, grid: seeds(sde, grid, tau=0.0), 2),
    "ancestral_split": (ancestral_split, 2),
    "ancestral_split_noise": (
        lambda sde, grid: ancestral_split(sde, grid, lambda s, g: dpm_solver_single(s, g, noise_prediction=True)),
        2,
    ),
    "ancestral_split_flow": (lambda sde, grid: ancestral_split(sde, grid, eta=0.0), 2),
    "restart": (restarted, 2),
    "unipc_1": (lambda sde, grid: unipc(sde, grid, 1), 2),
    "unipc_2": (lambda sde, grid: unipc(sde, grid, 2), 3),
    "unipc_3": (unipc, 4),
}


EVERY = SOLVERS | {k: v for k, (v, _) in ORDERS.items()}


SWEEP = (  # solver, evaluations a step
    (euler_maruyama, 1),
    (ancestral, 1),
    (lambda sde, grid: ddim(sde, grid, 0.3), 1),
    (SOLVERS["predictor_corrector"], 2),
    (lambda sde, grid: heun(sde, grid, churn=1.0), 2),
    (lambda sde, grid: dpm_solver_single(sde, grid, 3), 3),
    (lambda sde, grid: dpm_solver(sde, grid, 3), 1),
    (deis, 1),
    (unipc, 1),
    (sa_solver, 1),
)


def error_of_the_law(sde, table, mean=MEAN, std=STD):
    """How far the mean and std of the result are from those of x at t_min, for data N(mean, std^2)."""
    alpha, variance, _, _ = textbook(sde, table.times[-1])
    got = gaussian_law(sde, table, mean, std)
    return np.hypot(got[0] - alpha * mean, got[1] - np.sqrt(alpha**2 * std**2 + variance))


def stay(sde, grid):
    """A predictor that does nothing: with it only the Langevin steps at the first time remain."""
    return single_step(Nodes.of(sde, grid), a=1.0, A=0.0, s=0.0, c=0.0, d=0.0)


def noise_of(key, row, batch, event):
    """The contract: example i draws at row k from fold_in(fold_in(key, i), k)."""
    keys = [jax.random.fold_in(jax.random.fold_in(key, i), row) for i in range(batch)]
    return np.stack([np.asarray(jax.random.normal(k, event, jnp.float64)) for k in keys])


def phi(k, h):
    """phi_k(h) = (phi_(k-1)(h) - 1/(k-1)!)/h with phi_0 = exp, as the papers write it."""
    return np.exp(h) if k == 0 else (phi(k - 1, h) - 1 / math.factorial(k - 1)) / h
