"""What a result rests on: versions, machine, commit and time, and settings compared with those of a
file.
"""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .files import Record
from .version import __version__


def versions() -> dict[str, str]:
    """The versions of Python, torch, numpy and this package."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "metalearn": __version__,
    }


def check_same(settings: Record, stored: Record, path: str | os.PathLike[str]) -> None:
    """Raise ValueError naming each setting that differs from the checkpoint's, with both values and
    the cure.

    Under "training" only what both have is compared: versions of torch add options to their
    optimizers. What a caller puts under "notes" is kept and not compared.
    """
    ours, theirs = dict(flat(settings)), dict(flat(stored))
    both = {name for name in ours.keys() & theirs.keys() if name.startswith("training.")}
    compared = both | {
        name
        for name in ours.keys() | theirs.keys()
        if not name.startswith(("training.", "run.notes."))
    }
    different = [
        f"{name} is {ours.get(name, 'not set')!r} but was {theirs.get(name, 'not set')!r}"
        for name in sorted(compared)
        if name not in ours or name not in theirs or ours[name] != theirs[name]
    ]
    if different:
        raise ValueError(
            f"{path} was written by a run with other settings: {'; '.join(different)}. Ask for the"
            " settings it had to resume it, or name another checkpoint to start a new run"
        )


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a nested record, each under the path of its keys.

    Example:
        >>> dict(flat({"learner": {"lr": 0.1}}))
        {'learner.lr': 0.1}
    """
    if isinstance(value, dict):
        for key, item in value.items():
            yield from flat(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def machine() -> str:
    """This machine in words, for the record of a result."""
    kind = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        kind = next(
            line.partition(":")[2].strip() for line in lines if line.startswith("model name")
        )
    device = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{platform.system()}, {kind}, {os.cpu_count()} cores{device}"


def now() -> str:
    """The time in UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def commit() -> str:
    """The commit that is checked out, with a + where the code differs from it."""
    here = Path(__file__).parent
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--", "*.py"],
            cwd=here.parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changed.stdout.strip() else "")
