"""Rows of results: printed by every benchmark, and kept only in the file that `--results` names."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli

from metalearn.runtime.options import Parser

_kept: Path | None = None  # the file that this process adds rows to


def keep_in(results: str | Path | None) -> None:
    """Add the rows to come to this file of JSON lines; without one they are only printed."""
    global _kept
    _kept = Path(results) if results else None
    if _kept is None:
        print(
            "the figures are printed and not kept; add them to a file with --results PATH",
            file=sys.stderr,
            flush=True,
        )


def append(row: dict[str, Any]) -> None:
    """Add a row to the file of results, if there is one."""
    if _kept is not None:
        _kept.parent.mkdir(parents=True, exist_ok=True)
        with _kept.open("a") as file:
            file.write(json.dumps(row, sort_keys=True) + "\n")


def run_benchmark(benchmark: Callable[..., None]) -> None:
    """Run a benchmark with the settings of the command line."""
    auto_cli(benchmark, parser_class=Parser)
