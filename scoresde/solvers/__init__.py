"""Solvers: each a function (sde, grid, ...) -> Table; ``sample`` and ``integrate`` run any table."""

from scoresde.solvers.adams import adams as adams
from scoresde.solvers.adams import angle_grid as angle_grid
from scoresde.solvers.ddim import ancestral as ancestral
from scoresde.solvers.ddim import ddim as ddim
from scoresde.solvers.deis import deis as deis
from scoresde.solvers.deis import ipndm as ipndm
from scoresde.solvers.deis import lms as lms
from scoresde.solvers.dpm_solver import dpm_solver as dpm_solver
from scoresde.solvers.dpm_solver import dpm_solver_single as dpm_solver_single
from scoresde.solvers.euler import euler_maruyama as euler_maruyama
from scoresde.solvers.euler import reverse_diffusion as reverse_diffusion
from scoresde.solvers.heun import heun as heun
from scoresde.solvers.langevin import predictor_corrector as predictor_corrector
from scoresde.solvers.noise import brownian_path as brownian_path
from scoresde.solvers.restart import ancestral_split as ancestral_split
from scoresde.solvers.restart import restart as restart
from scoresde.solvers.sa_solver import sa_solver as sa_solver
from scoresde.solvers.seeds import seeds as seeds
from scoresde.solvers.table import Table as Table
from scoresde.solvers.table import integrate as integrate
from scoresde.solvers.table import join as join
from scoresde.solvers.table import sample as sample
from scoresde.solvers.table import with_denoising as with_denoising
from scoresde.solvers.unipc import bh1 as bh1
from scoresde.solvers.unipc import bh2 as bh2
from scoresde.solvers.unipc import unipc as unipc
