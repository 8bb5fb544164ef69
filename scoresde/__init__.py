"""Continuous-time score-based generative modelling in JAX."""

from scoresde.sde import SDE as SDE
from scoresde.sde import VE as VE
from scoresde.sde import VP as VP
