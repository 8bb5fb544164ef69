"""Networks: scaled input (B, *event) and a noise coordinate (B,) in, an array like the input out. They know no SDE."""

from scoresde.nn.blocks import Layout as Layout
from scoresde.nn.embeddings import gaussian_fourier as gaussian_fourier
from scoresde.nn.embeddings import input_waves as input_waves
from scoresde.nn.embeddings import positional as positional
from scoresde.nn.embeddings import transformer as transformer
from scoresde.nn.layers import Apply as Apply
from scoresde.nn.layers import Params as Params
from scoresde.nn.layers import functional as functional
from scoresde.nn.layers import group_norm as group_norm
from scoresde.nn.mlp import ResidualMLP as ResidualMLP
from scoresde.nn.noise import StoredFrequencies as StoredFrequencies
from scoresde.nn.pyramid import ResidualInput as ResidualInput
from scoresde.nn.pyramid import ResidualOutput as ResidualOutput
from scoresde.nn.pyramid import SkipInput as SkipInput
from scoresde.nn.pyramid import SkipOutput as SkipOutput
from scoresde.nn.unet import UNet as UNet
