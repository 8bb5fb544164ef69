"""What every command line shares: flags from a dataclass, compiled programs kept on disk, a mistake in one line, and an
end that can be continued.

Exit codes: 0 done, 2 a mistake in a flag or a file (one line on standard error), 130 interrupted.
"""

import contextlib
import io
import re
import signal
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import tyro
from rich.console import Console

from experiments.cli import compile_cache
from experiments.cli.errors import AGAIN, InputError, Interrupted, fail

Flags = TypeVar("Flags")


def parse(flags: type[Flags], name: str, arguments: list[str]) -> Flags:
    """The arguments as ``flags``, a dataclass; tyro's boxed message about a malformed flag becomes one line."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(flags, prog=f"python -m experiments.{name}", description=flags.__doc__, args=arguments)
    except SystemExit as stop:
        if stop.code:
            fail(re.sub(r"[^\x20-\x7e]+", " ", complaint.getvalue()))
        raise


def main(
    flags: type[Flags],
    name: str,
    program: Callable[[Flags, Console], Any],
    *,
    cached: Callable[[Flags], bool] = lambda flags: True,
) -> None:
    """Run ``program(flags, console)``; SIGTERM stops it as SIGINT does, wherever it does not handle them itself.

    ``cached`` says whether what it compiles is kept on disk.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # also where SIGINT is ignored, as in the background
    parsed, console = parse(flags, name, sys.argv[1:]), Console(soft_wrap=True)
    compile_cache.set_up(cached(parsed))
    try:
        program(parsed, console)
    except InputError as error:
        fail(str(error))
    except (Interrupted, KeyboardInterrupt) as stop:
        console.print(str(stop) or f"stopped; {AGAIN}", highlight=False)
        raise SystemExit(130) from None
