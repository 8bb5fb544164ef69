"""Continuous-time score-based generative modelling in JAX.

The names that a first page needs; everything else is in the namespaces listed last (``ss.solvers.lms``).
"""

from scoresde import checkpoint as checkpoint
from scoresde import editing as editing
from scoresde import evaluation as evaluation
from scoresde import flow as flow
from scoresde import grids as grids
from scoresde import guidance as guidance
from scoresde import interop as interop
from scoresde import inverse as inverse
from scoresde import likelihood as likelihood
from scoresde import nn as nn
from scoresde import precond as precond
from scoresde import solvers as solvers
from scoresde import training as training
from scoresde.flow.latents import decode as decode
from scoresde.flow.latents import encode as encode
from scoresde.flow.probability import Flow as Flow
from scoresde.flow.probability import probability_flow as probability_flow
from scoresde.flow.reverse import reverse_sde as reverse_sde
from scoresde.gaussian import CorrelatedMixture as CorrelatedMixture
from scoresde.gaussian import GaussianMixture as GaussianMixture
from scoresde.grids import angle_grid as angle_grid
from scoresde.grids import discrete_grid as discrete_grid
from scoresde.grids import karras_grid as karras_grid
from scoresde.grids import log_snr_grid as log_snr_grid
from scoresde.grids import uniform_grid as uniform_grid
from scoresde.likelihood.adaptive import Likelihood as Likelihood
from scoresde.likelihood.adaptive import bits_per_dim as bits_per_dim
from scoresde.likelihood.adaptive import log_likelihood as log_likelihood
from scoresde.likelihood.adaptive import mean_with_error as mean_with_error
from scoresde.likelihood.bound import likelihood_bound as likelihood_bound
from scoresde.likelihood.budget import error_budget as error_budget
from scoresde.likelihood.dequantisation import dequantised_log_likelihood as dequantised_log_likelihood
from scoresde.likelihood.divergence import exact_divergence as exact_divergence
from scoresde.likelihood.divergence import hutchinson as hutchinson
from scoresde.likelihood.fixed_grid import table_log_likelihood as table_log_likelihood
from scoresde.precond import Preconditioner as Preconditioner
from scoresde.score import given as given
from scoresde.sde import SDE as SDE
from scoresde.sde import VE as VE
from scoresde.sde import VP as VP
from scoresde.sde import Cosine as Cosine
from scoresde.sde import RectifiedFlow as RectifiedFlow
from scoresde.sde import SubVP as SubVP
from scoresde.solvers.best import best_solver as best_solver
from scoresde.solvers.dpm import dpm_solver as dpm_solver
from scoresde.solvers.edm import heun as heun
from scoresde.solvers.euler import euler_maruyama as euler_maruyama
from scoresde.solvers.euler import reverse_diffusion as reverse_diffusion
from scoresde.solvers.exponential_adams import adams as adams
from scoresde.solvers.extrapolation import deis as deis
from scoresde.solvers.implicit import ancestral as ancestral
from scoresde.solvers.implicit import ddim as ddim
from scoresde.solvers.joining import with_denoising as with_denoising
from scoresde.solvers.langevin import predictor_corrector as predictor_corrector
from scoresde.solvers.table import Table as Table
from scoresde.solvers.table import integrate as integrate
from scoresde.solvers.table import sample as sample
from scoresde.solvers.unified import unipc as unipc
from scoresde.training.loss import denoising_score_matching as denoising_score_matching
from scoresde.training.loss import log_normal as log_normal
from scoresde.training.trainer import State as State
from scoresde.training.trainer import Trainer as Trainer
from scoresde.training.weights import likelihood_weight as likelihood_weight
from scoresde.training.weights import noise_weight as noise_weight
from scoresde.units import Units as Units

__version__ = "0.1.0"

__all__ = [
    # raw data and model units
    "Units",
    # SDEs
    "SDE",
    "VP",
    "SubVP",
    "VE",
    "Cosine",
    "RectifiedFlow",
    # scores and exact laws
    "given",
    "GaussianMixture",
    "CorrelatedMixture",
    "Preconditioner",
    # grids
    "uniform_grid",
    "log_snr_grid",
    "karras_grid",
    "angle_grid",
    "discrete_grid",
    # solvers and what runs them
    "Table",
    "adams",
    "ancestral",
    "best_solver",
    "ddim",
    "deis",
    "dpm_solver",
    "euler_maruyama",
    "heun",
    "predictor_corrector",
    "reverse_diffusion",
    "unipc",
    "with_denoising",
    "sample",
    "integrate",
    # the probability flow
    "Flow",
    "probability_flow",
    "encode",
    "decode",
    "reverse_sde",
    # likelihood
    "Likelihood",
    "log_likelihood",
    "table_log_likelihood",
    "likelihood_bound",
    "error_budget",
    "exact_divergence",
    "hutchinson",
    "dequantised_log_likelihood",
    "bits_per_dim",
    "mean_with_error",
    # training
    "State",
    "Trainer",
    "denoising_score_matching",
    "log_normal",
    "likelihood_weight",
    "noise_weight",
    # namespaces
    "grids",
    "solvers",
    "flow",
    "likelihood",
    "training",
    "nn",
    "precond",
    "guidance",
    "inverse",
    "editing",
    "evaluation",
    "checkpoint",
    "interop",
]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> object:
    """Only reached where there is no such name: say which namespace has it."""
    found = [f"ss.{space}.{name}" for space in __all__ if hasattr(globals()[space], name) and space.islower()]
    raise AttributeError(f"scoresde has no {name!r}" + (f"; it is {' or '.join(found)}" if found else ""))
