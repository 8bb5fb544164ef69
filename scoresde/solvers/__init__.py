"""Solvers: each a function (sde, grid, ...) -> Table; ``sample`` and ``integrate`` run any table."""

from scoresde.solvers.ddim import ancestral as ancestral
from scoresde.solvers.ddim import ddim as ddim
from scoresde.solvers.euler import euler_maruyama as euler_maruyama
from scoresde.solvers.euler import reverse_diffusion as reverse_diffusion
from scoresde.solvers.heun import heun as heun
from scoresde.solvers.langevin import predictor_corrector as predictor_corrector
from scoresde.solvers.multistep import deis as deis
from scoresde.solvers.multistep import dpm_solver as dpm_solver
from scoresde.solvers.multistep import unipc as unipc
from scoresde.solvers.noise import brownian_path as brownian_path
from scoresde.solvers.table import Table as Table
from scoresde.solvers.table import integrate as integrate
from scoresde.solvers.table import sample as sample
from scoresde.solvers.table import with_denoising as with_denoising
