"""The benchmarks run and print their ratios; the ratios themselves are measured, never asserted."""

import dataclasses
import io
import re

import numpy as np
import pytest
from family import gaussian_law, textbook
from rich.console import Console

import scoresde as ss
from experiments.benchmarks import (
    accelerator,
    best_solver,
    gradient_variance,
    inverse,
    likelihood,
    overhead,
    pipeline,
    ring,
    solvers,
    tables,
)
from experiments.cli.errors import InputError
from experiments.data.load import load
from experiments.measures import exact
from experiments.models import networks


@pytest.mark.slow
def test_overhead_compares_with_the_network_alone(capsys):
    overhead.main(data="mixture", steps=2, turns=1, batch=3)
    out = capsys.readouterr().out
    ratios = dict(re.findall(r"^(\w[\w ]*?) +[\d.]+ ms +([\d.]+) x the network alone$", out, re.MULTILINE))
    assert set(ratios) == {"network and gradient", "training step", "network", "ddim", "euler_maruyama"}
    assert float(ratios["network"]) == float(ratios["network and gradient"]) == 1
    assert all(float(ratio) > 0 for ratio in ratios.values())


@pytest.mark.slow
def test_accelerator_measures_every_batch_and_knows_the_peak_of_some_devices(tmp_path, capsys):
    accelerator.main(batches=(2,), size=8, width=4, depth=1, steps=1, turns=1, trace=tmp_path / "trace")
    head, titles, row = capsys.readouterr().out.splitlines()
    values = dict(zip(re.split("  +", titles), re.split("  +", row), strict=True))
    assert "U-Net 8x8x3" in head and values["batch"] == "2" and values["utilisation"] == "unknown"
    assert 0 < float(values["TFLOP a step"]) < 1 and float(values["step ms"]) > 0
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))
    assert (accelerator.peak("NVIDIA H200"), accelerator.peak("cpu")) == (989e12, None)


@pytest.mark.slow
def test_pipeline_compares_with_a_fixed_batch(tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(40, 3)))
    pipeline.main(data=f"npy:{tmp_path / 'x.npy'}", width=8, depth=1, batch=8, steps=2, calls=2, turns=1)
    out = capsys.readouterr().out
    alone = re.search(r"stream alone ([\d,]+) examples/s; NumPy indexing in memory ([\d,]+) examples/s", out)
    steps = re.search(r"fixed batch ([\d.]+) ms a step, streamed ([\d.]+) ms, ratio ([\d.]+)", out)
    assert "36 examples of 3 on disk" in out and alone and steps and float(steps[3]) > 0


def test_the_law_error_of_the_solver_table_is_that_of_the_tests():
    sde = ss.VP()
    alpha, variance, _, _ = textbook(sde, sde.t_min)
    for make in (ss.ancestral, ss.heun, ss.unipc):
        table = make(sde, ss.log_snr_grid(sde, 6))
        mean, std = gaussian_law(sde, table, exact.MEAN, exact.STD)
        expected = np.hypot(mean - alpha * exact.MEAN, std - np.sqrt(alpha**2 * exact.STD**2 + variance))
        np.testing.assert_allclose(exact.law_error(sde, table), expected, rtol=1e-3)


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


def rows_of(page):
    """The rows of the tables of a page, by name, as words."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:2] == "| "]
    return {name: values for name, *values in cells}


def test_the_written_ring_has_every_row_and_halves_the_errors():
    rows = rows_of(ring.PAGE.read_text())
    assert set(rows) == {"solver", ring.QUOTED, *ring.TEXTBOOK, *ring.OURS, *ring.OPTIMISED}
    assert rows["solver"] == [str(n) for n in ring.BUDGETS]
    least = np.min([[float(e) for e in rows[name]] for name in ring.TEXTBOOK], 0)
    assert np.all(np.array(rows["best_solver"], float) < 0.6 * least)
    assert np.all(np.array(rows["adams 4, angle grid"], float)[2:] < 0.1 * least[2:])


def test_the_written_best_solver_has_every_row_and_is_the_best_on_average():
    rows = rows_of(best_solver.PAGE.read_text())
    assert {*best_solver.TEXTBOOK, *best_solver.OURS} <= set(rows) and rows["solver, grid"][0] == "5"
    ratio = {name: [float(v.split()[0]) for v in rows[name]] for name in (*best_solver.TEXTBOOK, *best_solver.OURS)}
    for name in best_solver.TEXTBOOK:
        assert np.all(np.array(ratio["best_solver"]) < 0.8 * np.array(ratio[name])), name


@pytest.mark.slow
def test_the_ring_and_the_best_solver_are_written(tmp_path):
    ring.main(tmp_path / "ring.md", starts=4, budgets=(6,), searches=3, fine=60)
    assert set(rows_of((tmp_path / "ring.md").read_text())) == set(rows_of(ring.PAGE.read_text()))
    best_solver.main(tmp_path / "best.md", starts=4, budgets=(6,), fine=60)
    assert set(rows_of((tmp_path / "best.md").read_text())) == set(rows_of(best_solver.PAGE.read_text()))


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


@pytest.mark.slow
def test_the_gradient_variance_has_every_weight_and_draw(capsys):
    gradient_variance.main(gradient_variance.Flags(steps=2, width=4, repeats=2))
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["weight", *gradient_variance.DRAWS]
    assert [row.split()[0] for row in rows] == [word for word in gradient_variance.WEIGHTS if word != "learned"]
    for row in rows:
        ratios = np.array(row.split()[1::3], float)
        assert np.all(ratios > 0) and ratios[2] == 1


def comparison(tmp_path):
    """The rows that the comparison on a small table prints, and everything that it prints."""
    x = np.random.default_rng(0).normal(size=(60, 2)) @ [[1.0, 0.8], [0.0, 0.6]]
    np.savetxt(tmp_path / "x.csv", x, delimiter=",")
    console = Console(file=(out := io.StringIO()), width=200)
    tables.program(tables.Flags(f"csv:{tmp_path / 'x.csv'}", minutes=1e-4), console)
    return rows_of(out.getvalue()), out.getvalue()


def test_tables_prints_each_competitor_and_how_to_install_the_flow(tmp_path, monkeypatch):
    def ours(flags, data, validation, x, console):
        return tables.gaussian((data.train - data.shift) / data.scale, (x - data.shift) / data.scale)

    monkeypatch.setattr(tables, "score_network", ours)
    rows, out = comparison(tmp_path)
    assert list(rows) == ["model", "score network", "Gaussian", "Gaussian mixture"]
    assert rows["Gaussian"][:2] == [rows["score network"][0], "0.000 ± 0.000"] and "pip install flowjax" in out


@pytest.mark.slow
def test_tables_measures_the_score_network_in_the_units_of_the_others(tmp_path, monkeypatch):
    """A short training is still a standard normal law in standardised units."""
    small = dataclasses.replace(networks.PRESETS["small tables"], width=8, depth=1, batch=8, learning_rate=1e-6)
    monkeypatch.setitem(networks.PRESETS, "small tables", small)
    rows, _ = comparison(tmp_path)
    data = load(f"csv:{tmp_path / 'x.csv'}")
    y = (data.held_out - data.shift) / data.scale
    expected = np.mean(np.sum(-0.5 * y**2 - 0.5 * np.log(2 * np.pi), axis=1))
    np.testing.assert_allclose(float(rows["score network"][0].split()[0]), expected, atol=0.02)


def test_tables_gaussian_is_the_closed_form():
    rng = np.random.default_rng(0)
    train, x = rng.normal(size=(50, 3)) @ rng.normal(size=(3, 3)) + 1, rng.normal(size=(4, 3))
    d = x - train.mean(0)
    c = sum(np.outer(row, row) for row in train - train.mean(0)) / 50
    expected = -0.5 * (np.diag(d @ np.linalg.inv(c) @ d.T) + np.log(np.linalg.det(2 * np.pi * c)))
    np.testing.assert_allclose(tables.gaussian(train, x)[0], expected, rtol=1e-9)


def test_tables_says_what_is_wrong(tmp_path):
    for words, flags in {
        "csv:PATH or parquet:PATH": {"data": "digits"},
        "--minutes must be positive": {"minutes": 0.0},
        "--flow-python": {"flow_python": tmp_path / "no" / "python"},
    }.items():
        with pytest.raises(InputError, match=words):
            tables.Flags(**{"data": "csv:x.csv"} | flags).check()


@pytest.mark.slow
def test_inverse_compares_every_method_with_the_exact_posterior(tmp_path, capsys):
    inverse.main(out=tmp_path / "inverse.md", samples=16, steps=12, sigma_y=(0.5,))
    head, _, *rows = capsys.readouterr().out.splitlines()
    names = [name.strip() for name in head.strip("|").split("|")][3:]
    assert set(names) >= {"exact", "replacement", "dps", "pigdm", "tmpd", "mmps", "repaint", "diffpir", "smc"}
    assert len(rows) == 9 and all(len(row.strip("|").split("|")) == len(names) + 3 for row in rows)
    assert all(np.isfinite(float(e)) for row in rows for cell in row.strip("|").split("|")[3:] for e in cell.split())
    assert (tmp_path / "inverse.md").read_text().endswith(rows[-1] + "\n")
