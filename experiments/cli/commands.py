"""What every command line shares: flags from a dataclass, compiled programs kept on disk, a mistake in one line, and an
end that can be continued.

Exit codes: 0 done, 2 a mistake in a flag or a file (one line on standard error), 130 interrupted.
"""

import contextlib
import dataclasses
import io
import re
import signal
import sys
import types
from collections.abc import Callable
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import tyro
from rich.console import Console

from experiments.cli.errors import AGAIN, InputError, Interrupted, check_words, fail
from experiments.cli.headings import flat, nested

Flags = TypeVar("Flags")


def read(flags: type[Flags], name: str, arguments: list[str]) -> Flags:
    """The arguments as ``flags``, a dataclass; tyro's boxed message about a malformed flag becomes an InputError.

    Dataclasses in its fields, and classes of flags with a HEADING that it inherits, are groups in --help.
    """
    complaint = io.StringIO()
    prog = sys.argv[0] if sys.argv[0] == f"scoresde {name}" else f"python -m experiments.{name}"
    settings: dict[str, Any] = {"prog": prog, "description": flags.__doc__, "args": arguments, "registry": REGISTRY}
    try:
        with contextlib.redirect_stderr(complaint):
            found = tyro.cli(nested(flags), config=(tyro.conf.OmitArgPrefixes,), **settings)
    except SystemExit as stop:
        if stop.code:
            raise InputError(f"{_said(complaint.getvalue())}; {prog} --help lists the flags") from None
        raise
    parsed = flat(flags, found)
    check_words(parsed)
    return parsed


def parse(flags: type[Flags], name: str, arguments: list[str]) -> Flags:
    """The same, where a mistake ends the program with its line."""
    try:
        return read(flags, name, arguments)
    except InputError as error:
        fail(str(error))


def _said(box: str) -> str:
    """The message in tyro's box: without its title and the flags' help, with the flag that was perhaps meant."""
    lines = [re.sub(r"[^\x20-\x7e]+", " ", line.replace("─", "-")).strip() for line in box.splitlines()[1:]]
    parts = [part.strip() for part in re.split(r"(?m)^-{8,}$", "\n".join(lines)) if part.strip()]
    near = re.search(r"Perhaps you meant:\s+(--[\w-]+)", "\n".join(parts))
    message = " ".join(parts[0].split()).removeprefix("Error parsing ").rstrip(". ")
    return message + (f"; did you mean {near[1]}?" if near else "")


REGISTRY = tyro.constructors.ConstructorRegistry()


@REGISTRY.primitive_rule
def _words(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
    """The words of a ``Literal`` are shown; ``check_words`` refuses others, with the nearest."""
    if get_origin(info.type) is not Literal:
        return None
    words = get_args(info.type)
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="{" + ",".join(words) + "}",
        instance_from_str=lambda given: given[0],
        is_instance=lambda value: value in words,
        str_from_instance=lambda value: [value],
    )


@REGISTRY.primitive_rule
def _optional(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
    """A flag that may be left out, ``kind | None``, is shown and read as one of its kind."""
    kinds = [kind for kind in get_args(info.type) if kind is not type(None)]
    if get_origin(info.type) not in (types.UnionType, Union) or len(kinds) != 1 or len(get_args(info.type)) != 2:
        return None
    kind = tyro.constructors.PrimitiveTypeInfo.make(kinds[0], info.markers)
    spec = tyro.constructors.ConstructorRegistry.get_primitive_spec(kind)
    if not isinstance(spec, tyro.constructors.PrimitiveConstructorSpec):
        return None
    return dataclasses.replace(
        spec,
        is_instance=lambda value: value is None or spec.is_instance(value),
        str_from_instance=lambda value: ["unset"] if value is None else spec.str_from_instance(value),
    )


def main(
    flags: type[Flags],
    name: str,
    program: Callable[[Flags, Console], Any],
    *,
    cached: Callable[[Flags], bool] | None = lambda flags: True,
) -> None:
    """Run ``program(flags, console)``; SIGTERM stops it as SIGINT does, wherever it does not handle them itself.

    ``cached`` says whether what it compiles is kept on disk; None for a program that compiles nothing, for which JAX is
    not imported.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # also where SIGINT is ignored, as in the background
    parsed, console = parse(flags, name, sys.argv[1:]), Console(soft_wrap=True)
    if cached is not None:
        from experiments.cli import compile_cache

        compile_cache.set_up(cached(parsed))
    try:
        program(parsed, console)
    except InputError as error:
        fail(str(error))
    except (Interrupted, KeyboardInterrupt) as stop:
        console.print(str(stop) or f"stopped; {AGAIN}", highlight=False)
        raise SystemExit(130) from None
