"""The page of the peers: its numbers are those of its record; flags; our side runs, and is right for a Gaussian."""

import dataclasses
import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import scoresde as ss
from experiments.benchmarks import networks
from experiments.benchmarks.peers import likelihood, page, processes, solvers, training
from experiments.benchmarks.peers.__main__ import FOLDER, MEASURES, PAGE, Flags, program
from experiments.cli.errors import InputError

RECORD = json.loads((FOLDER / "peers.json").read_text())
PYTHON = Path(sys.executable)


def test_the_page_and_its_figures_are_those_of_the_record():
    text = (FOLDER / PAGE).read_text()
    assert set(RECORD) == set(MEASURES) == set(page.TABLES)
    assert page.filled(text, RECORD) == text
    for name in page.FIGURES:
        assert f"](peers-{name}.png)" in text and (FOLDER / f"peers-{name}.png").stat().st_size > 10_000


def test_the_record_says_how_it_was_made():
    for part in RECORD.values():
        here = part["environment"]
        assert here["command"].startswith("python -m experiments.benchmarks.")
        assert " --peers-python ENV/bin/python" in here["command"]
        assert part["peers"]["torch"] and here["versions"]["jax"] and here["cpu_count"] > 0


def test_no_solver_makes_more_evaluations_than_it_is_allowed():
    libraries = {row["library"] for row in RECORD["solvers"]["rows"]}
    assert libraries == {"scoresde", "diffusers", "k-diffusion", "azula"}
    for row in RECORD["solvers"]["rows"]:
        assert 0 < row["evaluations"] <= row["budget"], row


def test_the_same_formula_on_the_same_grid_has_the_same_error_in_two_libraries():
    """DPM-Solver++(2M) in k-diffusion and here; Adams-Bashforth in the noise in azula and here."""
    rows = {
        (row["law"], row["process"], row["budget"], row["library"], row["solver"], row["grid"]): row["median"]
        for row in RECORD["solvers"]["rows"]
    }
    for (law, process, budget, library, solver, grid), error in rows.items():
        same = {
            ("k-diffusion", "DPM-Solver++ 2M", "Karras"): ("dpm_solver 2", "Karras, denoised"),
            ("azula", "zEAB 3", "exponential"): ("deis 3", "log-SNR"),
            ("azula", "xEAB 3", "Karras"): ("dpm_solver 3", "Karras"),
        }.get((library, solver, grid))
        if same:
            assert error == pytest.approx(rows[law, process, budget, "scoresde", *same], rel=1e-2)


def test_a_peer_that_is_ahead_stands_in_bold():
    assert page.cell(2.0, 4.0, "{:.1f}", peer=True) == "**2.0 (0.5)**"
    assert page.cell(2.0, 4.0, "{:.1f}", peer=False) == "2.0 (0.5)"
    assert page.cell(4.0, 2.0, "{:.1f}", peer=True) == "4.0 (2)"
    assert page.cell(None, 2.0, "{:.1f}", peer=True) == ""
    with pytest.raises(ValueError, match="the page needs <!-- solvers -->"):
        page.filled("", RECORD)


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        ({"examples": 1}, "--examples must be at least 2, got 1"),
        ({"repeats": 0}, "--repeats must be at least 1, got 0"),
        ({"out": Path("none")}, "--out none is not a folder"),
        ({"peers_python": Path("none/python")}, "no Python at --peers-python none/python; to make one"),
        ({}, "no Python at --peers-python None; to make one"),
    ],
)
def test_wrong_flags_are_one_line(flags, match):
    with pytest.raises(InputError, match=match) as caught:
        program(Flags("solvers", **flags), Console(file=io.StringIO()))
    assert "\n" not in str(caught.value)


def test_a_peer_that_fails_is_one_line(tmp_path):
    (tmp_path / "peer.py").write_text("import a_package_that_is_not_there")
    with pytest.raises(InputError, match="^peer.py failed in the environment of .*: ModuleNotFoundError: .*") as caught:
        processes.output([PYTHON, tmp_path / "peer.py"], processes.alone())
    assert "\n" not in str(caught.value)


def test_page_alone_makes_page_and_figures_anew(tmp_path):
    (tmp_path / "peers.json").write_text(json.dumps(RECORD))
    program(Flags("page", out=tmp_path), Console(file=io.StringIO()))
    assert (tmp_path / PAGE).read_text() == (FOLDER / PAGE).read_text()
    assert {path.name for path in tmp_path.glob("*.png")} == {f"peers-{name}.png" for name in page.FIGURES}


@pytest.mark.slow
def test_the_reference_is_the_exact_flow_of_a_gaussian(x64):
    """x/alpha of N(0, s^2) is carried by sqrt(s^2 + rho^2), rho = sigma/alpha."""
    noise = np.random.default_rng(0).normal(size=(4, 2))
    reference = solvers.Reference(ss.GaussianMixture(np.zeros((1, 2)), np.full(1, 0.3), np.ones(1)), noise)
    for process in solvers.PROCESSES:
        x, alpha, start = reference.start(process)
        expected = x / alpha * np.sqrt((0.3**2 + 0.01**2) / (0.3**2 + start**2))
        assert reference.errors(process, expected, 0.01)["rms"] < 1e-8


@pytest.mark.slow
def test_our_solvers_and_likelihoods_are_measured(x64):
    noise = np.random.default_rng(0).normal(size=(2, 2))
    law = solvers.mixtures()["ring"]
    rows = solvers.ours(solvers.Reference(ss.GaussianMixture(**law), noise), budgets=(6,))
    assert {row["solver"] for row in rows} == {"best_solver", *solvers.SOLVERS}
    assert all(np.isfinite(row["rms"]) and row["median"] > 0 and 4 <= row["evaluations"] <= 6 for row in rows)
    mixture = likelihood.laws()["ring"]
    x, truth = likelihood.batch("ring", mixture, 3)
    np.testing.assert_allclose(truth.flow, truth.density, atol=1e-3)
    for row in likelihood.ours(mixture.score(likelihood.SDE), x, truth):
        assert row["divergence"] == "Hutchinson" or row["evaluations"] < 35 or row["modulus"] < 1e-3
    times = solvers.seconds(ss.GaussianMixture(**law), 1, points=8)
    assert all(row["first_s"] > row["later_s"] > 0 for row in times)


def test_the_training_step_is_that_of_the_benchmark_of_networks(monkeypatch):
    def measured(command, flags, environment):
        assert ("PYTHONPATH" in environment) <= (command[0] == sys.executable)
        return {"words": [str(word) for word in command], "batch": flags.batch, "repeats": flags.repeats}

    monkeypatch.setattr(networks, "measured", measured)
    monkeypatch.setenv("PYTHONPATH", "here")
    ours, theirs = training.measure(PYTHON, 2, names=("dit_s",))["rows"]
    assert (ours["library"], theirs["library"]) == ("scoresde", "diffusers") and ours["network"] == "dit_s"
    assert ours["words"][1:] == ["-m", "experiments.benchmarks.one_network", "dit_s"]
    assert theirs["words"] == [str(PYTHON), str(networks.PEERS), "dit_s"] and theirs["repeats"] == 2
    assert {row["network"] for row in RECORD["training"]["rows"]} >= set(training.NAMES)


def test_flags_have_the_parts_of_the_record():
    (part,) = (field for field in dataclasses.fields(Flags) if field.name == "part")
    assert re.findall(r"'(\w+)'", str(part.type))[:4] == list(MEASURES)
