"""Where a result comes from: versions, machine, commit, time and settings."""

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


CURE = "Use the earlier settings to resume it, or name another checkpoint to start a new run"


def check_same(
    settings: Record, stored: Record, path: str | os.PathLike[str], cure: str = CURE
) -> None:
    """Raise an error that names each setting that differs from those of a checkpoint.

    Under "training", only the settings that both have are compared: versions of torch add options
    to their optimizers. A caller's "notes" are stored and not compared.

    Args:
        settings: of the run that wants to resume.
        stored: of the run that wrote the checkpoint.
        path: the checkpoint, for the message.
        cure: what to do about it, for the message.

    Raises:
        ValueError: a setting differs. The message has both values and the cure.
    """
    current = dict(flat(settings))
    earlier = dict(flat(stored))
    different = []
    for name in sorted(current.keys() | earlier.keys()):
        in_both = name in current and name in earlier
        # not compared; see above
        if name.startswith("run.notes.") or (name.startswith("training.") and not in_both):
            continue
        if not in_both or current[name] != earlier[name]:
            value = current.get(name, "not set")
            different.append(f"{name} is {value!r} but was {earlier.get(name, 'not set')!r}")
    if different:
        raise ValueError(
            f"{path} was written by a run with other settings: {'; '.join(different)}. {cure}"
        )


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a nested record, each under the path of its keys.

    Example:
        >>> dict(flat({"learner": {"lr": 0.1}}))
        {'learner.lr': 0.1}
    """
    if not isinstance(value, dict):
        yield name, value
        return
    prefix = f"{name}." if name else ""
    for key, item in value.items():
        yield from flat(item, f"{prefix}{key}")


def machine() -> str:
    """This machine in words, for the record of a result."""
    parts = [platform.system(), _processor(), f"{os.cpu_count()} cores"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join(parts)


def _processor() -> str:
    """The model of the processor; its architecture on a system that does not tell."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def now() -> str:
    """The time in UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def commit() -> str:
    """The commit that is checked out, with a + if the code differs from it."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        changes = _git("status", "--porcelain", "--", "*.py")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}+" if changes else head


def _git(*arguments: str) -> str:
    """The output of a git command in the folder of this package."""
    package = Path(__file__).parents[1]
    result = subprocess.run(
        ["git", *arguments], cwd=package, capture_output=True, text=True, check=True
    )
    return result.stdout.strip()
