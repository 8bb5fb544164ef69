"""Words of flags: each a choice of the command line with something behind it; another is refused in one line."""

import re
from typing import get_args

import pytest

from experiments import distance, edit, evaluate, guide, inverse, sample
from experiments.cli.commands import parse
from experiments.editing import edits, restoration
from experiments.guidance import methods
from experiments.models import solvers

COMMANDS = {
    **{"sample": sample, "evaluate": evaluate, "guide": guide},
    **{"edit": edit, "inverse": inverse, "distance": distance},
}
NEEDED = {"distance": ["--samples", "s.npz"], "edit": ["--edit", "sdedit"]}


def arguments(command):
    given = NEEDED.get(command, [])
    return ["--out", "out", *given] if command == "distance" else ["--out", "out", "--checkpoint", "run", *given]


@pytest.mark.parametrize(
    "words, behind",
    [
        (solvers.SolverWord, (solvers.BEST, *solvers.SOLVERS)),
        (solvers.GridWord, solvers.GRIDS),
        (methods.MethodWord, methods.METHODS),
        (edits.EditWord, edits.EDITS),
        (restoration.OperatorWord, restoration.OPERATORS),
        (inverse.MethodWord, (*inverse.METHODS, *inverse.SAMPLERS)),
    ],
)
def test_every_word_has_something_behind_it(words, behind):
    assert get_args(words) == tuple(behind)


@pytest.mark.parametrize(
    "command, flag, value, message",
    [
        ("sample", "solver", "unipcc", "--solver must be one of best, adams, .*, got 'unipcc'; did you mean unipc?"),
        ("sample", "grid", "log", "--grid must be one of angle, .*, uniform, got 'log'; did you mean log-snr?"),
        ("edit", "solver", "ddimm", "--solver must be one of .*; did you mean ddim?"),
        ("edit", "edit", "sdedits", "--edit must be one of sdedit, translate, .*; did you mean sdedit?"),
        ("guide", "method", "free", "--method must be one of classifier-free, interval, .*, got 'free'"),
        ("inverse", "method", "magic", "--method must be one of dps, mmps, .*, twisted, got 'magic'"),
        ("inverse", "operator", "hole", "--operator must be one of box, half, .*, got 'hole'"),
        ("distance", "part", "test", "--part must be one of held-out, train, all, got 'test'"),
        ("evaluate", "tolerance", "small", "could not convert string to float: 'small'"),
    ],
)
def test_another_word_is_refused_in_one_line(capsys, command, flag, value, message):
    with pytest.raises(SystemExit) as stop:
        parse(COMMANDS[command].Flags, command, [*arguments(command), f"--{flag}", value])
    said = capsys.readouterr()
    assert stop.value.code == 2 and said.err.startswith("error: ") and said.err.count("\n") == 1 and not said.out
    assert re.search(message.replace("?", r"\?"), said.err), said.err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_what_a_flag_takes(capsys, command):
    with pytest.raises(SystemExit) as stop:
        parse(COMMANDS[command].Flags, command, ["--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0 and "{None" not in shown and "--out PATH" in shown
    given = parse(COMMANDS[command].Flags, command, arguments(command))
    optional = {"evaluate": "probes", "distance": "seed"}.get(command, "eta")
    assert getattr(given, optional) is None
    assert getattr(parse(COMMANDS[command].Flags, command, [*arguments(command), f"--{optional}", "3"]), optional) == 3
