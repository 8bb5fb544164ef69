"""Progress of work in many parts: a bar on a terminal, else a line now and then."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_SECONDS = 10.0
Show = Callable[..., None]
"""(how many are done, what else there is to say): the first call says how many were done at the start."""


@contextmanager
def progress(console: Console | None, what: str, total: int) -> Iterator[Show]:
    """A function of how many are done that shows it, if there is a console."""
    if console is None:
        yield lambda done, note="": None
        return
    if console.is_terminal:
        columns = TextColumn(what), BarColumn(bar_width=30), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, TextColumn("{task.fields[note]}"), console=console) as bar:
            task = bar.add_task("", total=total, note="")
            yield lambda done, note="": bar.update(task, completed=done, note=note)
        return
    started = last = time.monotonic()
    begun: int | None = None

    def line(done: int, note: str = "") -> None:
        nonlocal last, begun
        begun = done if begun is None else begun
        if done < total and time.monotonic() - last < LINE_SECONDS:
            return
        last = time.monotonic()
        rate = (done - begun) / max(last - started, 1e-9)
        pace = f"{rate:.3g} a second" if rate > 0.5 else f"{1 / max(rate, 1e-9):.3g} s each"
        left = f"  {pace}  {(total - done) / rate:.0f} s left" if 0 < done < total and rate else ""
        console.print(f"{what} {done}/{total}{note and '  '}{note}{left}", highlight=False)

    yield line
