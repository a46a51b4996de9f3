"""Progress of long work: a bar on a terminal, a plain line every 15 seconds anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

PLAIN_SECONDS = 15.0  # between two plain lines


@contextmanager
def progress(
    name: str, total: int, *, unit: str = "step", done: int = 0, shown: bool = True
) -> Iterator[Callable[..., None]]:
    """Show the progress of a block on standard error, with its rate and the time left.

    Args:
        name: what the work is called.
        total: the number of pieces.
        unit: what a piece is called.
        done: pieces that were finished before, such as those of a resumed run. They count towards
            the total and not towards the rate.
        shown: False shows nothing.

    Yields:
        `advance(count=1, text="")`, to be called after each piece.

    Example:
        >>> with progress("training", 2, shown=False) as advance:
        ...     advance(text="loss 0.31")
    """
    if not shown:
        yield lambda count=1, text="": None
        return
    console = Console(stderr=True)
    pace = _Pace(total, done, unit)
    display = _bar(console, name, pace) if console.is_terminal else _lines(name, pace)
    with display as advance:
        yield advance


class _Pace:
    """How much of the work is finished, and how fast it goes."""

    def __init__(self, total: int, done: int, unit: str) -> None:
        self.total = total
        self.before = done
        self.finished = done
        self.unit = unit
        self.started = time.monotonic()

    def words(self, text: str, now: float) -> str:
        """The text, the rate, and the time left or taken."""
        seconds = now - self.started
        # pieces of a run before this one took none of these seconds
        rate = (self.finished - self.before) / max(seconds, 1e-9)
        left = self.total - self.finished
        time_left = f"took {duration(seconds)}"
        if left > 0 and rate:
            time_left = f"{duration(left / rate)} left"
        parts = (text, f"{rate:.3g} {self.unit}s/s", time_left)
        return "  ".join(part for part in parts if part)


@contextmanager
def _bar(console: Console, name: str, pace: _Pace) -> Iterator[Callable[..., None]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Bar(*columns, console=console) as bar:
        task = bar.add_task(name, total=pace.total, completed=pace.finished, text="")

        def advance(count: int = 1, text: str = "") -> None:
            pace.finished += count
            bar.update(task, completed=pace.finished, text=pace.words(text, time.monotonic()))

        yield advance


@contextmanager
def _lines(name: str, pace: _Pace) -> Iterator[Callable[..., None]]:
    written = pace.started

    def advance(count: int = 1, text: str = "") -> None:
        nonlocal written
        pace.finished += count
        now = time.monotonic()
        # Work of less than a second needs no line.
        last = pace.finished >= pace.total and now - pace.started > 1
        if last or now - written >= PLAIN_SECONDS:
            written = now
            print(
                f"{name}  {pace.finished}/{pace.total}  {pace.words(text, now)}",
                file=sys.stderr,
                flush=True,
            )

    yield advance


def duration(seconds: float) -> str:
    """Seconds as people write them.

    Example:
        >>> duration(42.3), duration(754), duration(7380)
        ('42 s', '12 min 34 s', '2 h 3 min')
    """
    minutes, whole_seconds = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{whole_seconds} s"
    hours, whole_minutes = divmod(minutes, 60)
    if hours == 0:
        return f"{whole_minutes} min {whole_seconds} s"
    return f"{hours} h {whole_minutes} min"
