"""Progress of work over many examples: a bar on a terminal, else a line now and then."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_SECONDS = 10.0


@contextmanager
def progress(console: Console | None, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A function of how many are done that shows it, if there is a console."""
    if console is None:
        yield lambda done: None
        return
    if console.is_terminal:
        with Progress(
            TextColumn(what), BarColumn(bar_width=30), MofNCompleteColumn(), TimeRemainingColumn(), console=console
        ) as bar:
            task = bar.add_task("", total=total)
            yield lambda done: bar.update(task, completed=done)
        return
    started = last = time.monotonic()
    begun: int | None = None

    def line(done: int) -> None:
        nonlocal last, begun
        begun = done if begun is None else begun
        if done < total and time.monotonic() - last < LINE_SECONDS:
            return
        last = time.monotonic()
        rate = (done - begun) / max(last - started, 1e-9)
        left = f"  {rate:.3g} a second  {(total - done) / rate:.0f} s left" if 0 < done < total and rate else ""
        console.print(f"{what} {done}/{total}{left}", highlight=False)

    yield line
