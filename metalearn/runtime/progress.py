"""Progress of long work: a bar with rate and time left on a terminal, a plain line every 15 seconds
anywhere else.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

PLAIN_SECONDS = 15.0


@contextmanager
def progress(
    name: str, total: int, *, unit: str = "step", done: int = 0, shown: bool = True
) -> Iterator[Callable[..., None]]:
    """Yield `advance(count=1, text="")`, to be called after each piece of work; writes to standard
    error.

    `done` pieces were there before (a resumed run): they count in the total and not in the rate.

    Example:
        >>> with progress("training", 2, shown=False) as advance:
        ...     advance(text="loss 0.31")
    """
    if not shown:
        yield lambda count=1, text="": None
        return
    console = Console(stderr=True)
    with (
        _bar(console, name, total, unit, done)
        if console.is_terminal
        else _lines(name, total, unit, done)
    ) as advance:
        yield advance


@contextmanager
def _bar(
    console: Console, name: str, total: int, unit: str, done: int
) -> Iterator[Callable[..., None]]:
    started, finished = time.monotonic(), done
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Bar(*columns, console=console) as bar:
        task = bar.add_task(name, total=total, completed=done, text="")

        def advance(count: int = 1, text: str = "") -> None:
            nonlocal finished
            finished += count
            bar.update(
                task,
                completed=finished,
                text=_pace(
                    finished - done, total - finished, time.monotonic() - started, unit, text
                ),
            )

        yield advance


@contextmanager
def _lines(name: str, total: int, unit: str, done: int) -> Iterator[Callable[..., None]]:
    started, finished = time.monotonic(), done
    written = started

    def advance(count: int = 1, text: str = "") -> None:
        nonlocal finished, written
        finished += count
        now = time.monotonic()
        if now - written >= PLAIN_SECONDS or (finished >= total and now - started > 1):
            written = now
            pace = _pace(finished - done, total - finished, now - started, unit, text)
            print(f"{name}  {finished}/{total}  {pace}", file=sys.stderr, flush=True)

    yield advance


def _pace(done: int, left: int, seconds: float, unit: str, text: str) -> str:
    rate = done / max(seconds, 1e-9)
    remaining = (
        f"{duration(left / rate)} left" if left > 0 and rate else f"took {duration(seconds)}"
    )
    return "  ".join(part for part in (text, f"{rate:.3g} {unit}s/s", remaining) if part)


def duration(seconds: float) -> str:
    """Seconds as people say them.

    Example:
        >>> duration(42.3), duration(754), duration(7380)
        ('42 s', '12 min 34 s', '2 h 3 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return (
        f"{whole // 60} min {whole % 60} s"
        if whole < 3600
        else f"{whole // 3600} h {whole % 3600 // 60} min"
    )
