"""Log-densities of a score: along the probability flow, on a fixed grid, as a variational bound, and their errors."""

from scoresde.likelihood.adaptive import Likelihood as Likelihood
from scoresde.likelihood.adaptive import bits_per_dim as bits_per_dim
from scoresde.likelihood.adaptive import log_likelihood as log_likelihood
from scoresde.likelihood.adaptive import mean_with_error as mean_with_error
from scoresde.likelihood.bound import Bound as Bound
from scoresde.likelihood.bound import discrete_bound as discrete_bound
from scoresde.likelihood.bound import likelihood_bound as likelihood_bound
from scoresde.likelihood.budget import ErrorBudget as ErrorBudget
from scoresde.likelihood.budget import error_budget as error_budget
from scoresde.likelihood.dequantisation import dequantised_log_likelihood as dequantised_log_likelihood
from scoresde.likelihood.dequantisation import truncated_normal_dequantisation as truncated_normal_dequantisation
from scoresde.likelihood.dequantisation import uniform_dequantisation as uniform_dequantisation
from scoresde.likelihood.divergence import ExactDivergence as ExactDivergence
from scoresde.likelihood.divergence import exact_divergence as exact_divergence
from scoresde.likelihood.divergence import hutch_pp as hutch_pp
from scoresde.likelihood.divergence import hutchinson as hutchinson
from scoresde.likelihood.fixed_grid import TableLikelihood as TableLikelihood
from scoresde.likelihood.fixed_grid import table_log_likelihood as table_log_likelihood
from scoresde.likelihood.rate import RateDistortion as RateDistortion
from scoresde.likelihood.rate import rate_distortion as rate_distortion
