"""Rows of results: printed by every benchmark, and kept only in the file that `--results` names."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli

from metalearn.runtime import provenance
from metalearn.runtime.options import Listed, Parser, listed

Row = dict[str, Any]
RESULTS = Path(__file__).parents[1] / "results"

_file: Path | None = None  # the file that this process adds rows to


def keep_in(results: str | Path | None) -> None:
    """Add the rows to come to this file of JSON lines; without one they are only printed."""
    global _file
    _file = Path(results) if results else None
    if _file is None:
        print(
            "the figures are printed and not kept; add them to a file with --results PATH",
            file=sys.stderr,
            flush=True,
        )


def append(row: Row) -> None:
    """Add a row to the file of results, if there is one."""
    if _file is not None:
        _file.parent.mkdir(parents=True, exist_ok=True)
        with _file.open("a") as file:
            file.write(json.dumps(row, sort_keys=True) + "\n")


def load(path: Path) -> list[Row]:
    """The rows of a file of results, oldest first; none if the file does not exist."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def origin(benchmark: str, arguments: list[str] | None = None) -> Row:
    """What every row rests on: command, versions, machine, commit and time.

    Args:
        benchmark: the module of the command, such as "speed".
        arguments: those of the command [what was typed].
    """
    typed = sys.argv[1:] if arguments is None else arguments
    return {
        "command": shlex.join(["python", "-m", f"benchmarks.{benchmark}", *typed]),
        "versions": provenance.versions(),
        "machine": provenance.machine(),
        "commit": provenance.commit(),
        "time": provenance.now(),
    }


def report(benchmark: str, figure: str, text: str, facts: Mapping[str, Any]) -> None:
    """Print a figure in words, and append its row.

    Args:
        benchmark: the module of the command, such as "speed".
        figure: what was measured, under which settings.
        text: the result in words.
        facts: the numbers behind it, by name.
    """
    print(f"{figure}: {text}", flush=True)
    named = {"benchmark": benchmark, "figure": figure, "said": text}
    append({**named, **facts, **origin(benchmark)})


def run_figures(figures: Listed, parts: Mapping[str, Callable[[], None]]) -> None:
    """Measure the figures that are asked for, in that order.

    Args:
        figures: their names, with commas.
        parts: what measures each figure.

    Raises:
        ValueError: a figure is not among `parts`; nothing was measured.
    """
    names = choose("figure", figures, parts)
    for name in names:
        parts[name]()


def choose(kind: str, names: Listed, known: Mapping[str, Any] | tuple[str, ...]) -> list[str]:
    """The entries of a list setting, each among those that are known.

    Args:
        kind: what the entries are, for the message.
        names: the entries, with commas.
        known: those there are.

    Raises:
        ValueError: an entry is not known.

    Example:
        >>> choose("figure", "time,memory", ("time", "memory", "start"))
        ['time', 'memory']
    """
    # All are checked before anything is measured.
    chosen = listed(names)
    for name in chosen:
        if name not in known:
            raise ValueError(f"there is no {kind} {name!r}; choose from {', '.join(known)}")
    return chosen


def run_benchmark(benchmark: Callable[..., None]) -> None:
    """Run a benchmark with the settings of the command line."""
    auto_cli(benchmark, parser_class=Parser)
