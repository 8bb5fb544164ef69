"""What samples and log-likelihoods say: distances between samples or features, and typicality."""

from scoresde.evaluation.features import Frechet as Frechet
from scoresde.evaluation.features import Kernel as Kernel
from scoresde.evaluation.features import Moments as Moments
from scoresde.evaluation.features import frechet_distance as frechet_distance
from scoresde.evaluation.features import kernel_distance as kernel_distance
from scoresde.evaluation.features import moments as moments
from scoresde.evaluation.metrics import energy_distance as energy_distance
from scoresde.evaluation.metrics import mmd as mmd
from scoresde.evaluation.metrics import sliced_wasserstein as sliced_wasserstein
from scoresde.evaluation.typicality import Typicality as Typicality
from scoresde.evaluation.typicality import class_log_posterior as class_log_posterior
from scoresde.evaluation.typicality import mahalanobis as mahalanobis
from scoresde.evaluation.typicality import score_norms as score_norms
from scoresde.evaluation.typicality import typicality_test as typicality_test
