"""What the solvers refuse, in one line each."""

import numpy as np
import pytest
from family import VP

from scoresde import log_snr_grid, uniform_grid
from scoresde.solvers import (
    ancestral,
    ancestral_split,
    ddim,
    deis,
    dpm_solver,
    dpm_solver_single,
    euler_maruyama,
    heun,
    ipndm,
    lms,
    predictor_corrector,
    restart,
    reverse_diffusion,
    sa_solver,
    seeds,
    unipc,
    with_denoising,
)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s, g: ddim(s, g, eta=-0.1), r"eta must be at least 0, got -0\.1"),
        (lambda s, g: ddim(s, g, eta=np.nan), r"eta must be at least 0, got nan"),
        (lambda s, g: ddim(s, g, eta=3.0), r"eta must be at most 1\.\d+ on this grid, got 3\.0"),
        (lambda s, g: predictor_corrector(s, g, snr=0.0), r"snr must be positive and finite, got 0\.0"),
        (lambda s, g: predictor_corrector(s, g, snr=np.nan), r"snr must be positive and finite, got nan"),
        (lambda s, g: predictor_corrector(s, g, snr=np.inf), r"snr must be positive and finite, got inf"),
        (lambda s, g: predictor_corrector(s, g, corrector_steps=-1), r"corrector_steps must be a whole number"),
        (lambda s, g: predictor_corrector(s, g, corrector_steps=1.5), r"corrector_steps must be a whole number"),
        (lambda s, g: predictor_corrector(s, g, corrector_steps=np.nan), r"corrector_steps must be a whole number"),
        (lambda s, g: predictor_corrector(s, g, heun), r"predictor must take one evaluation a step"),
        (lambda s, g: predictor_corrector(s, g, dpm_solver), r"predictor must take one evaluation a step"),
        (lambda s, g: predictor_corrector(s, g, predictor_corrector), r"predictor must take one evaluation a step"),
        (lambda s, g: predictor_corrector(s, g, lambda s, g: with_denoising(s, ddim(s, g))), r"predictor must"),
        (lambda s, g: dpm_solver(s, g, 4), r"order must be a whole number from 1 to 3, got 4"),
        (lambda s, g: dpm_solver(s, g, 2.5), r"order must be a whole number from 1 to 3, got 2\.5"),
        (lambda s, g: dpm_solver(s, g, eta=-0.1), r"eta must be in \[0, 1\], got -0\.1"),
        (lambda s, g: dpm_solver_single(s, g, 1), r"order must be a whole number from 2 to 3, got 1"),
        (lambda s, g: heun(s, g, -1.0), r"churn must be at least 0, got -1\.0"),
        (lambda s, g: heun(s, g, s_min=2.0, s_max=1.0), r"s_min and s_max must satisfy 0 <= s_min <= s_max, got 2\.0"),
        (lambda s, g: heun(s, g, s_noise=np.nan), r"s_noise must be at least 0 and finite, got nan"),
        (lambda s, g: heun(s, g, alpha=0.0), r"alpha must be in \(0, 1\], got 0\.0"),
        (lambda s, g: unipc(s, g, 3.0), r"order must be a whole number from 1 to 4, got 3\.0"),
        (lambda s, g: unipc(s, g, 5), r"order must be a whole number from 1 to 4, got 5"),
        (lambda s, g: deis(s, g, 0), r"order must be a whole number from 1 to 4, got 0"),
        (lambda s, g: lms(s, g, True), r"order must be a whole number from 1 to 4, got True"),
        (lambda s, g: ipndm(s, g, 5), r"order must be a whole number from 1 to 4, got 5"),
        (lambda s, g: sa_solver(s, g, corrector=5), r"corrector must be a whole number from 0 to 4, got 5"),
        (lambda s, g: sa_solver(s, g, tau=-1.0), r"tau must be at least 0 and finite, got -1\.0"),
        (lambda s, g: sa_solver(s, g, tau=lambda t: np.nan), r"tau must be at least 0 and finite, got nan"),
        (lambda s, g: seeds(s, g, 3), r"order must be a whole number from 1 to 2, got 3"),
        (lambda s, g: seeds(s, g, tau=-1.0), r"tau must be at least 0 and finite, got -1\.0"),
        (lambda s, g: ancestral_split(s, g, eta=-1.0), r"eta must be at least 0 and finite, got -1\.0"),
        (lambda s, g: restart(s, g, [(1.0, 0.5, 3, 1)]), r"an interval must have 0 < rho_low < rho_high <= 152\.\d"),
        (lambda s, g: restart(s, g, [(0.1, 500, 3, 1)]), r"an interval must have 0 < rho_low < rho_high <= 152\.\d"),
        (lambda s, g: restart(s, g, [(0.1, 1, 0, 1)]), r"steps of an interval must be a whole number from 1 to"),
        (lambda s, g: restart(s, g, [(0.1, 1, 3, 0)]), r"repeats of an interval must be a whole number from 1 to"),
        (lambda s, g: restart(s, g, [(0.1, 1, 3, 1)] * 2), r"rho_low stands for the node at 0\.\d+: it must be below"),
        (lambda s, g: ddim(s, g[::-1]), r"a grid must decrease strictly"),
        (lambda s, g: euler_maruyama(s, [1.2, 0.1]), r"grid times must lie in \[t_min, t_max\]"),
        (lambda s, g: reverse_diffusion(s, [1.0, 0.0]), r"grid times must lie in \[t_min, t_max\]"),
        (lambda s, g: ancestral(s, [1.0]), r"a grid must be one-dimensional with at least two times"),
    ],
)  # fmt: skip
def test_refusals(make, message):
    with pytest.raises(ValueError, match="^" + message) as error:
        make(VP(), log_snr_grid(VP(), 20))
    assert "\n" not in str(error.value)


def test_a_whole_float_of_corrector_steps_is_that_number_or_refused():
    try:
        table = predictor_corrector(VP(), uniform_grid(VP(), 4), corrector_steps=2.0)
    except ValueError as error:
        assert "corrector_steps must be a whole number" in str(error)
    else:
        assert table.num_evals == 12
