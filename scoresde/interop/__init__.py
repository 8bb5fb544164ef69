"""The field's weights: networks of other projects read, with their SDE, as scores; none of their code is executed."""

from scoresde.interop.pretrained import Pretrained as Pretrained
from scoresde.interop.pretrained import take as take
from scoresde.interop.score_sde import score_sde as score_sde
