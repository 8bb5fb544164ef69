"""The benchmarks run and print their ratios; the ratios themselves are measured, never asserted."""

import re

import numpy as np
import pytest
from family import gaussian_law, textbook

import scoresde as ss
from experiments.benchmarks import likelihood, overhead, solvers


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
    assert rows == [(name, kind, str(evals), str(order)) for (name, _, evals, order), kind in members]


@pytest.mark.slow
def test_the_solver_table_is_written(tmp_path, capsys):
    solvers.main(tmp_path / "page.md", starts=2, budgets=(6,))
    page = (tmp_path / "page.md").read_text()
    assert page.count("\n| ") == 1 + len(solvers.FLOW) + len(solvers.STOCHASTIC)
    assert capsys.readouterr().out.count("\n") == len(solvers.FLOW) + len(solvers.STOCHASTIC)


def test_the_written_likelihood_table_keeps_its_promises():
    """Every method for VP and VE; below 1e-4 nats on average in the angle in 13 steps, and on the grid in 40."""
    rows = [line.split(" | ") for line in likelihood.PAGE.read_text().splitlines() if re.match(r"\| V[PE] ", line)]
    assert [(row[0].strip("| "), row[1]) for row in rows] == [(s, m) for s in ("VP", "VE") for m in likelihood.METHODS]
    for row in rows:
        if row[1] in ("angle, Tsit5", "fixed grid, Adams, 40"):
            assert abs(float(row[4])) < 1e-4 and float(row[2]) <= (13 if "angle" in row[1] else 39)


@pytest.mark.slow
def test_the_likelihood_table_is_written(tmp_path, capsys):
    likelihood.main(tmp_path / "page.md", examples=2)
    assert capsys.readouterr().out.count("\n") == 2 * len(likelihood.METHODS)
    assert (tmp_path / "page.md").read_text().count("\n| V") == 2 * len(likelihood.METHODS)
