"""The probability flow of a score, its latents, and the reverse SDE as a reference (diffrax)."""

from scoresde.flow.latents import decode as decode
from scoresde.flow.latents import encode as encode
from scoresde.flow.latents import slerp as slerp
from scoresde.flow.probability import Flow as Flow
from scoresde.flow.probability import probability_flow as probability_flow
from scoresde.flow.reverse import reverse_sde as reverse_sde
