"""What all command lines share: help under headings, one form of refusal, and the command ``scoresde``."""

import dataclasses
import importlib
import re
import sys
from pathlib import Path
from typing import get_args

import pytest

from experiments import sample
from experiments.cli import commands, script
from experiments.models import build, classifier_objective, flags, networks, score_objective, values

PROGRAMS = script.programs()


def helped(name, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["scoresde", name, "--help"])
    with pytest.raises(SystemExit) as stop:
        script.main()
    assert stop.value.code in (0, None)
    return capsys.readouterr().out


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_help_of_every_program_shows_kinds_and_no_none(name, capsys, monkeypatch):
    text = helped(name, capsys, monkeypatch)
    assert f"usage: scoresde {name}" in text and "--help" in text and "{None}" not in text and "None," not in text


def test_the_flags_of_a_run_stand_under_headings_the_most_used_first(capsys, monkeypatch):
    text = helped("run", capsys, monkeypatch)
    headings = re.findall(r"(?m)^\W*((?:\w+ )?options)\W*$", text)
    named = [f"{word} options" for word in ("data", "optimiser", "network", "objective", "evaluation", "engine")]
    assert headings == ["options", *named]
    order = [text.index(f"--{flag} ") for flag in ("sde", "data", "workdir", "columns", "steps", "network", "weight")]
    assert order == sorted(order)


@pytest.mark.parametrize(
    ("name", "headings"),
    [
        ("sample", ["solver", "drawing"]),
        ("guide", ["solver", "drawing"]),
        ("inverse", ["measurement", "solver", "drawing"]),
        ("edit", ["direction", "denoise", "canvas", "solver", "drawing"]),
        ("evaluate", ["likelihood", "samples", "work"]),
        ("distance", ["origin"]),
        ("sweep", ["workers"]),
    ],
)
def test_flags_of_a_kind_stand_under_their_heading(name, headings, capsys, monkeypatch):
    text = helped(name, capsys, monkeypatch)
    assert re.findall(r"(?m)^\W*(\w+) options\W*$", text) == headings
    kind = importlib.import_module(f"experiments.{name}").Flags
    for field in dataclasses.fields(kind):
        assert f"--{field.name.replace('_', '-')}" in text, field.name


def test_what_is_parsed_under_headings_is_the_flat_class(tmp_path):
    words = [
        "--checkpoint",
        str(tmp_path),
        "--out",
        "a.npz",
        "--solver",
        "ddim",
        "--eta",
        "0.5",
        "--seed",
        "4",
        "--n",
        "3",
    ]
    parsed = commands.parse(sample.Flags, "sample", words)
    assert parsed == sample.Flags(checkpoint=tmp_path, out=Path("a.npz"), solver="ddim", eta=0.5, seed=4, n=3)


def test_scoresde_lists_every_program_with_a_line_each(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["scoresde"])
    script.main()
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split()[0] for line in lines] == list(PROGRAMS) and all(len(line.split()) > 5 for line in lines)
    assert {*PROGRAMS} >= {"run", "sample", "sweep", "doctor"}
    for name in PROGRAMS:
        assert callable(importlib.import_module(f"experiments.{name}").main)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["samples"], "no program 'samples'; scoresde has .*; did you mean sample?"),
        (["run", "--sde", "vpp"], "--sde must be one of vp, subvp, ve, cosine, flow, got 'vpp'; did you mean vp?"),
        (["run", "--steps", "many"], "--steps: invalid literal .* 'many'; scoresde run --help lists the flags"),
        (["run", "--stepz", "3"], "Unrecognized options: --stepz, 3; did you mean --steps?; scoresde run --help .*"),
        (["run", "--sde"], "Missing value for argument '--sde'.*"),
        (["sample", "--checkpoint", "x"], "Missing from scoresde sample: --out PATH .*"),
    ],
)
def test_a_mistake_is_one_line(words, line, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["scoresde", *words])
    with pytest.raises(SystemExit, match="2"):
        script.main()
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert re.fullmatch(f"error: {line}".replace("?", r"\?"), err.strip()), err


def test_every_word_has_its_function():
    for literal, words in (
        (flags.SDEWord, flags.SDES),
        (values.Network, networks.NETWORKS),
        (values.Weight, score_objective.WEIGHTS),
        (values.Times, score_objective.TIMES),
        (values.Prediction, build.PREDICTIONS),
        (values.Dtype, build.DTYPES),
    ):
        assert get_args(literal) == tuple(words)
    assert set(classifier_objective.NETWORKS) <= set(networks.NETWORKS)


def test_a_configuration_is_values_and_one_flat_dict():
    config = flags.Config.of(sde="ve", steps=7, width=3, weight="noise", keep=4, samples=9, window=5, seed=2)
    assert (config.sde, config.seed, config.optimiser.steps, config.architecture.width) == ("ve", 2, 7, 3)
    assert (config.objective.weight, config.engine.keep, config.evaluation.samples) == ("noise", 4, 9)
    assert config.options.window == 5
    assert flags.Config.of(**config.flat()) == config and config.flat()["weight"] == "noise"
    assert config.replace(steps=8, sde="vp").flat() == config.flat() | {"steps": 8, "sde": "vp"}
    with pytest.raises(TypeError, match="no flag stepz"):
        flags.Config.of(stepz=3)
    assert commands.parse(flags.Config, "run", ["--sde", "ve", "--keep", "4"]) == flags.Config.of(sde="ve", keep=4)
    assert not set(config.training()) & {"keep", "samples", "workdir", "data_dir", "remat"}
    assert {"steps", "width", "weight", "sde", "columns", "seed", "dtype"} <= set(config.training())
