"""Which device "auto" is, and a CUDA device for each process that works on jobs of its own."""

from __future__ import annotations

import getpass
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import torch
from filelock import FileLock, Timeout


def resolved(name: str) -> str:
    """The name of a device; "auto" is cuda if this process has a CUDA device, otherwise cpu.

    Example:
        >>> resolved("cpu")
        'cpu'
    """
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def own_device() -> Iterator[int | None]:
    """A context in which "cuda" is a device that no other process has in such a context.

    A process holds a device by a lock on a file in the machine's folder for temporary files. If all
    are held, the process shares one. What another engine has set apart for a process, by
    CUDA_VISIBLE_DEVICES, is respected.

    Yields:
        The number of the device; None on a machine with fewer than two.

    Example:
        >>> with own_device() as number:
        ...     learner = torch.nn.Linear(2, 1)
    """
    count = torch.cuda.device_count()
    if count < 2:
        yield None
        return
    before = torch.cuda.current_device()
    with ExitStack() as held:
        number = _free_device(count, held)
        torch.cuda.set_device(number)
        try:
            yield number
        finally:
            torch.cuda.set_device(before)


def _free_device(count: int, held: ExitStack) -> int:
    """The first device that no other process holds, which is held from now on."""
    folder = Path(tempfile.gettempdir()) / f"metalearn-devices-{getpass.getuser()}"
    folder.mkdir(exist_ok=True)
    # Processes that see different devices call them by the same numbers.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in visible.split(",") if name.strip()]
    for number in range(count):
        name = names[number] if number < len(names) else str(number)
        lock = FileLock(folder / f"{name.replace('/', '-')}.lock")
        with suppress(Timeout):
            held.enter_context(lock.acquire(timeout=0))
            return number
    return os.getpid() % count
