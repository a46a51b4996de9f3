"""Peaks of memory, each in a fresh process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

TOP = Path(__file__).parents[2]

# Every larger block goes back to the system when it is freed, so a peak counts what is in use and
# not what the heap holds.
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def resident(kind: str = "VmRSS") -> int:
    """Bytes of this process in memory: now (VmRSS), or at its peak so far (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind))


def peak_above(work: Callable[[], Any]) -> int:
    """Bytes that a piece of work takes at its peak, above what the process held before."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    held = resident()
    work()
    return resident("VmHWM") - held


def fresh_process(*arguments: str, give_back: bool = True, **environment: str) -> str:
    """The output of a Python process of its own.

    Args:
        arguments: of Python, such as "-m", "benchmarks.engine", "--peak_of", "loop,1,1".
        give_back: whether freed blocks go back to the system at once.
        environment: variables that are added.

    Raises:
        RuntimeError: the process failed; the message has the end of its errors.
    """
    variables = {**os.environ, **environment}
    if give_back:
        variables |= GIVE_BACK
    # Warnings of old libraries would drown the figures.
    command = [sys.executable, "-W", "ignore", *arguments]
    process = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=TOP)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{process.stderr[-2000:]}")
    return process.stdout


def peak_of(benchmark: str, *arguments: str) -> int:
    """Bytes at the peak of a benchmark in a fresh process, which prints them last."""
    output = fresh_process("-m", f"benchmarks.{benchmark}", *arguments)
    return int(output.splitlines()[-1])
