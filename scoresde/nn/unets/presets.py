"""The U-Nets of the papers by their names, with their sizes: ``ddpmpp((32, 32, 3), key=key)``.

Each is ``UNet`` with arguments that a call may override. Any event shape will do; ``attention_levels`` are those of the
published size (in the comments, with the number of parameters). The features of the noise coordinate are the papers'.

    DDPM       Ho et al. (2020)                          DDPM++, NCSN++    Song et al. (2021), appendix H
    ADM        Dhariwal and Nichol (2021)                EDM's versions    Karras et al. (2022), appendix F
"""

from functools import partial

from scoresde.nn.conditions.descriptions import Classes
from scoresde.nn.layers.embeddings import gaussian_fourier, transformer
from scoresde.nn.layers.layers import group_norm
from scoresde.nn.unets.blocks import Layout
from scoresde.nn.unets.pyramid import ResidualInput, SkipInput, SkipOutput
from scoresde.nn.unets.unet import UNet

_original = partial(Layout, all_skips=True, adaptive=False, middle=(True, False), embedding_width=4)
_song = partial(_original, resampling_blocks=True, projected=True, rescale=0.5**0.5, attention_up=False)

DDPM = _original(norm=partial(group_norm, group_size=1))
DDPMPP = _song()
NCSNPP = _song(taps=(1, 3, 3, 1), input_pyramid=ResidualInput)
NCSNPP_SKIP = _song(taps=(1, 3, 3, 1), input_pyramid=SkipInput, output_pyramid=SkipOutput)
ADM = Layout(
    all_skips=True,
    resampling_blocks=True,
    middle=(True, False),
    head_channels=64,
    embedding_width=4,
    norm=partial(group_norm, epsilon=1e-5),
)

_fourier = partial(gaussian_fourier, scale=16.0)
_steps = partial(UNet, channels=128, embedding=transformer, features=128)
_levels = partial(UNet, channels=128, embedding=_fourier, features=256, layout=NCSNPP)
_cifar = {"multipliers": (1, 2, 2, 2), "attention_levels": (1,), "dropout": 0.1}

ddpm = partial(_steps, **_cifar, blocks=2, layout=DDPM)  # 32 x 32: 35.7 M
ddpmpp = partial(_steps, **_cifar, blocks=4, layout=DDPMPP)  # 32 x 32: 61.8 M
ddpmpp_deep = partial(ddpmpp, blocks=8)  # 32 x 32: 106.6 M
ncsnpp = partial(_levels, **_cifar, blocks=4)  # 32 x 32: 62.8 M
ncsnpp_deep = partial(ncsnpp, blocks=8)  # 32 x 32: 107.6 M
ncsnpp_256 = partial(
    _levels, multipliers=(1, 1, 2, 2, 2, 2, 2), blocks=2, attention_levels=(4,), layout=NCSNPP_SKIP
)  # 256 x 256: 65.6 M
ncsnpp_1024 = partial(
    ncsnpp_256, channels=16, features=32, multipliers=(1, 2, 4, 8, 16, 32, 32, 32), blocks=1, attention_levels=(6,)
)  # 1024 x 1024: 105.8 M
edm_ddpmpp = partial(ddpmpp, multipliers=(2, 2, 2), labels=9, dropout=0.13)  # 32 x 32: 55.7 M
edm_ncsnpp = partial(ncsnpp, multipliers=(2, 2, 2), labels=9, dropout=0.13)  # 32 x 32: 56.4 M
adm = partial(
    UNet,
    channels=192,
    multipliers=(1, 2, 3, 4),
    blocks=3,
    attention_levels=(1, 2, 3),
    dropout=0.1,
    embedding=partial(transformer, shift=0),
    features=192,
    conditions=Classes(1000),
    layout=ADM,
)  # 64 x 64, ImageNet's classes: 295.9 M
