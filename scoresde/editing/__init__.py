"""Editing: what a trained score does to examples that are there, for every SDE, event shape and condition.

An example x is data at t_min, in the units of the score. What is wanted decides the tool:

    wanted                              tool
    keep the outline, redraw the rest   sdedit: noise up to some time, and back
    another class or domain             translated: up the probability flow of one score, down that of another
    between two examples                interpolated: slerp of their latents
    more of an attribute                edited with a step along attribute_direction in the latents
    noise of known level removed        denoised, the mean; denoised_std; denoised_samples from the posterior
    noise of unknown level              noise_level first
    a larger canvas                     panorama, a score like any other
    missing parts, inpainting           ss.inverse with ss.inverse.operators.mask, of a table or series
    outpainting                         the same with a mask of the larger canvas, on the score of panorama
    colourisation                       ss.inverse with ss.inverse.operators.grey
    super-resolution, deblurring        ss.inverse with ss.inverse.operators.downsample, blur

The last four are measurements y = A(x) + noise.

Conditions join a score by ``ss.given``. Everything may be called inside ``jit``; example i of a batch depends on
(key, i), on its own row and on its own condition alone.

A table that begins at another time than t_max is one made for the SDE ``shortened`` to that time:

    sde_t = ss.editing.shortened(sde, ss.editing.noise_time(sde, 0.5))      where sigma/alpha = 0.5
    table = ss.ddim(sde_t, ss.log_snr_grid(sde_t, 50), eta=1.0)
"""

from scoresde.editing.denoise import denoised as denoised
from scoresde.editing.denoise import denoised_samples as denoised_samples
from scoresde.editing.denoise import denoised_std as denoised_std
from scoresde.editing.denoise import noise_time as noise_time
from scoresde.editing.denoise import shortened as shortened
from scoresde.editing.directions import attribute_direction as attribute_direction
from scoresde.editing.paths import edited as edited
from scoresde.editing.paths import interpolated as interpolated
from scoresde.editing.paths import sdedit as sdedit
from scoresde.editing.paths import translated as translated
from scoresde.editing.unknown_noise import NoiseLevel as NoiseLevel
from scoresde.editing.unknown_noise import noise_level as noise_level
from scoresde.editing.windows import panorama as panorama
