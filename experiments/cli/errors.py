"""How a program ends early: a mistake of the user, in one line, or an interruption that can be continued.

A flag that is None was not given.
"""

import dataclasses
import difflib
import math
import sys
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

AGAIN = "the same command continues from there"


class InputError(ValueError):
    """A mistake in what the user gave: one line that names it and says what to do."""


class Interrupted(Exception):
    """A program was asked to stop; what it has done is on disk."""


def fail(message: str) -> NoReturn:
    """Print one line on standard error and leave with exit code 2."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


def one_of(flag: str, value: str, choices: Iterable[str]) -> None:
    """Raise InputError unless the value of a flag is one of its words."""
    if value not in (words := list(choices)):
        close = difflib.get_close_matches(value, words, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise InputError(f"--{_flag(flag)} must be one of {', '.join(words)}, got {value!r}{hint}")


def words_of(kind: Any) -> tuple[str, ...]:
    """The words of a ``Literal``, of one that may be None too, or inside ``Annotated``; () for any other type."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    return tuple(word for part in get_args(kind) for word in words_of(part))


def check_words(flags: Any) -> None:
    """Raise InputError for the first field of words, a ``Literal``, that holds another, in its dataclasses too."""
    kinds = get_type_hints(type(flags))
    for field in dataclasses.fields(flags):
        value, words = getattr(flags, field.name), words_of(kinds[field.name])
        if dataclasses.is_dataclass(value):
            check_words(value)
        elif words and value is not None:
            one_of(field.name, value, words)


def at_least(flags: Mapping[str, Any], **lowest: float) -> None:
    """Raise InputError for the first of these flags that is below its lowest value, or not finite."""
    for name, low in lowest.items():
        value = flags[name]
        if value is not None and not (value >= low and math.isfinite(value)):
            raise InputError(f"--{_flag(name)} must be at least {low}, got {value}")


def shares(flags: Mapping[str, Any], *names: str, below_one: Collection[str] = ()) -> None:
    """Raise InputError for the first of these flags that is outside [0, 1], or [0, 1) for those ``below_one``."""
    for name in names:
        value, end = flags[name], ")" if name in below_one else "]"
        if value is not None and not (0 <= value < 1 or (value == 1 and end == "]")):
            raise InputError(f"--{_flag(name)} must be in [0, 1{end}, got {value}")


def _flag(name: str) -> str:
    return name.replace("_", "-")
