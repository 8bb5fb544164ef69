"""How a program ends early: a mistake of the user, in one line, or an interruption that can be continued."""

import difflib
import sys
from collections.abc import Iterable
from typing import NoReturn


class Interrupted(Exception):
    """Training was asked to stop; the checkpoint is on disk."""


def fail(message: str) -> NoReturn:
    """Print one line on standard error and leave with exit code 2."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


class InputError(ValueError):
    """A mistake in what the user gave: one line that names it and says what to do."""


def one_of(flag: str, value: str, choices: Iterable[str]) -> None:
    """Raise InputError unless the value of a flag is one of its words."""
    if value not in (words := list(choices)):
        close = difflib.get_close_matches(value, words, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise InputError(f"--{flag} must be one of {', '.join(words)}, got {value!r}{hint}")


AGAIN = "the same command continues from there"
