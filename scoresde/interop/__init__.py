"""The field's weights: networks of other projects read, with their SDE, as scores; none of their code is executed.

found = ss.interop.diffusers("ddpm-cifar10-32")                  # or score_sde_file, edm_file, converted
table = ss.unipc(found.sde, ss.log_snr_grid(found.sde, 20))
samples = ss.sample(key, found.score, table, (16, 32, 32, 3))    # in found.data_range
result = ss.log_likelihood(key, found.sde, found.score, images)
"""

from scoresde.interop.checkpoints import edm_file as edm_file
from scoresde.interop.checkpoints import score_sde_file as score_sde_file
from scoresde.interop.originals import converted as converted
from scoresde.interop.projects.diffusers import diffusers as diffusers
from scoresde.interop.projects.discrete import DiscreteVP as DiscreteVP
from scoresde.interop.projects.discrete import scheduler_sde as scheduler_sde
from scoresde.interop.projects.edm import edm as edm
from scoresde.interop.projects.edm2 import edm2 as edm2
from scoresde.interop.projects.pretrained import Pretrained as Pretrained
from scoresde.interop.projects.pretrained import take as take
from scoresde.interop.projects.score_sde import score_sde as score_sde
from scoresde.interop.writing.from_unet import from_unet as from_unet
from scoresde.interop.writing.to_diffusers import to_diffusers as to_diffusers
