"""The benchmarks run and print their ratios; the ratios themselves are measured, never asserted."""

import re

import numpy as np
import pytest
from family import gaussian_law, textbook

import scoresde as ss
from experiments.benchmarks import overhead, solvers


def test_overhead_compares_with_the_network_alone(capsys):
    overhead.main(steps=2, turns=1, batch=3)
    out = capsys.readouterr().out
    ratios = dict(re.findall(r"^(\w[\w ]*?) +[\d.]+ ms +([\d.]+) x the network alone$", out, re.MULTILINE))
    assert set(ratios) == {"network and gradient", "training step", "network", "ddim", "euler_maruyama"}
    assert float(ratios["network"]) == float(ratios["network and gradient"]) == 1
    assert all(float(ratio) > 0 for ratio in ratios.values())


def test_the_law_error_of_the_solver_table_is_that_of_the_tests():
    sde = ss.VP()
    alpha, variance, _, _ = textbook(sde, sde.t_min)
    for make in (ss.ancestral, ss.heun, ss.unipc):
        table = make(sde, ss.log_snr_grid(sde, 6))
        mean, std = gaussian_law(sde, table, solvers.MEAN, solvers.STD)
        expected = np.hypot(mean - alpha * solvers.MEAN, std - np.sqrt(alpha**2 * solvers.STD**2 + variance))
        np.testing.assert_allclose(solvers.law_error(sde, table), expected, rtol=1e-3)


def test_the_written_solver_table_has_every_solver_of_the_command():
    rows = re.findall(r"^\| (.+?) \| (flow|stochastic) \| (\d) \| (\d) \|", solvers.PAGE.read_text(), re.MULTILINE)
    kinds = ["flow"] * len(solvers.FLOW) + ["stochastic"] * len(solvers.STOCHASTIC)
    members = zip(solvers.FLOW + solvers.STOCHASTIC, kinds, strict=True)
    assert rows == 2 * [(name, kind, str(evals), str(order)) for (name, _, evals, order), kind in members]


@pytest.mark.slow
def test_the_solver_table_is_written(tmp_path, capsys):
    solvers.main(tmp_path / "page.md", starts=2, budgets=(6,))
    page = (tmp_path / "page.md").read_text()
    rows = 1 + len(solvers.FLOW) + len(solvers.STOCHASTIC)
    assert page.count("\n| ") == 2 * rows and capsys.readouterr().out.count("\n") == 2 * rows
