"""How much memory a meta-gradient takes, forecast from one task and two of its inner steps."""

from __future__ import annotations

import contextlib
import os
import weakref
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from metalearn.episodes import Episode, stack
from metalearn.network.functional import Functional

from . import execution
from .solver import Solver, Steps, device_of

MIB = 2**20
GIB = 2**30


class Forecast(NamedTuple):
    """What `meta_backward` will hold at its peak, in bytes, beyond the model and the data.

    Attributes:
        per_task: bytes of one task with all of its inner steps.
        per_step: bytes that each further step adds (second order keeps every step until the end).
        way: how tasks run.
        in_flight: how many tasks run at once.
        free: bytes that the device has left; None if it does not tell.

    Example:
        >>> print(Forecast(64 * 2**20, 20 * 2**20, way="threads", in_flight=2, free=2**30))
        tasks in threads, 2 at once: 64 MiB a task (20 MiB an inner step), 128 MiB of 1.0 GiB free
    """

    per_task: int
    per_step: int
    way: str
    in_flight: int
    free: int | None

    @property
    def total(self) -> int:
        """Bytes of all the tasks in flight."""
        return self.per_task * self.in_flight

    def __str__(self) -> str:
        free = "" if self.free is None else f" of {size(self.free)} free"
        return (
            f"{describe_way(self.way, self.in_flight)}: {size(self.per_task)} a task"
            f" ({size(self.per_step)} an inner step), {size(self.total)}{free}"
        )


_WAYS = {
    "loop": "tasks in a loop",
    "threads": "tasks in threads",
    "vectorized": "tasks vectorized",
    "graphs": "tasks in CUDA graphs",
    "compiled": "compiled tasks",
}


def describe_way(way: str, in_flight: int) -> str:
    """How tasks run, in words.

    Example:
        >>> describe_way("threads", 2)
        'tasks in threads, 2 at once'
    """
    return f"{_WAYS[way]}, {in_flight} at once"


def forecast(learner: Steps, episode: Episode, *, tasks: int = execution.CHUNK) -> Forecast:
    """Forecast the memory that `meta_backward` of a meta-batch will take.

    One task runs with one inner step and with two, and the bytes of the tensors that are alive at
    once are counted. Every other step adds what the second one added. Memory that a kernel needs
    inside one operation is not counted. No gradient and no random generator changes.

    Args:
        learner: the learner.
        episode: one task.
        tasks: of the meta-batch, or of one rank's share of it.

    Returns:
        Bytes for a task, for an inner step and in all, beside what is free.

    Example:
        >>> from metalearn import MAML
        >>> from metalearn.models import Conv4
        >>> from metalearn.tasks import FewShot, glyphs
        >>> task = FewShot(glyphs("train"), ways=5, shots=1, queries=5, tasks=1)[0]
        >>> second = forecast(MAML(Conv4(5), 0.4, steps=5), task)
        >>> first = forecast(MAML(Conv4(5), 0.4, steps=5, first_order=True), task)
        >>> second.per_task > 2 * first.per_task
        True
    """
    way, in_flight = execution.in_flight(learner, tasks)
    network = learner.network
    if way in execution.VECTORIZED:
        # Vectorized operations keep other tensors, even for one task.
        network = network.stacked(1)
        episode = stack([episode])
    free = free_memory(device_of(learner))
    if not learner.steps:
        return Forecast(_peak(learner, network, episode), 0, way, in_flight, free)
    one = _peak(_with_steps(learner, 1), network, episode)
    two = _peak(_with_steps(learner, 2), network, episode)
    # peak(n) = peak(1) + (n - 1) (peak(2) - peak(1))
    per_step = max(two - one, 0)
    per_task = one + per_step * (learner.steps - 1)
    return Forecast(per_task, per_step, way, in_flight, free)


def ways_out(learner: Solver, expected: Forecast, *, processes: int = 1) -> str | None:
    """What to do if a forecast exceeds what is free.

    Args:
        learner: the learner.
        expected: its forecast.
        processes: how many processes like this one share the memory.

    Returns:
        A message with the ways out; None if the tasks fit.
    """
    if expected.free is None or expected.total * processes <= expected.free:
        return None
    # At least one task has to run.
    fitting = max(expected.free // processes // max(expected.per_task, 1), 1)
    ways = _ways_out(learner, expected.way, fitting)
    many = ""
    if processes > 1:
        many = f" in each of {processes} processes"
        ways.append("fewer processes on this machine")
    return (
        f"a step is expected to need {size(expected.total)}{many} ({expected}), which is more than"
        f" there is. Ways out: {'; '.join(ways)}"
    )


def out_of_memory(learner: Solver, error: torch.OutOfMemoryError, tasks: int) -> str:
    """The message of an error with the ways out, for a meta-gradient of so many tasks."""
    way, in_flight = execution.in_flight(learner, tasks)
    ways = _ways_out(learner, way, max(in_flight // 2, 1))
    return f"{error} ({describe_way(way, in_flight)}). Ways out: {'; '.join(ways)}"


def _ways_out(learner: Solver, way: str, fitting: int) -> list[str]:
    """What takes less memory, if so many tasks at once are expected to fit."""
    ways = []
    if getattr(learner, "steps", 0) and not getattr(learner, "first_order", True):
        ways.append("first order (first_order=True)")
    if way == "threads":
        ways.append(
            f"fewer tasks in flight (torch.set_num_threads({fitting}), or execution='loop')"
        )
    if way in execution.VECTORIZED:
        ways.append("fewer tasks in flight (execution='loop')")
        ways.append(f"a smaller chunk (metalearn.engine.execution.CHUNK = {fitting})")
    ways.append("fewer inner steps, smaller images or a smaller model")
    return ways


def free_memory(device: torch.device) -> int | None:
    """Bytes that a process can still have on a device; None if the system does not tell.

    Example:
        >>> free_memory(torch.device("cpu")) != 0
        True
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # PyTorch keeps freed memory for itself and gives it out again.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    limits = [_available(), _left_in_container()]
    return min((limit for limit in limits if limit is not None), default=None)


def size(count: float) -> str:
    """Bytes in MiB or GiB.

    Example:
        >>> size(61 * 2**20), size(1.5 * 2**30)
        ('61 MiB', '1.5 GiB')
    """
    if count >= 1000 * MIB:
        return f"{count / GIB:.1f} GiB"
    return f"{count / MIB:.3g} MiB"


class _Alive(TorchDispatchMode):
    """Counts the bytes of tensors that were made under it and are still there."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.known = known  # storages that are counted, or were there before
        self.now = 0
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided:
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self.known:
            return
        # Views share a storage, which counts once.
        self.known.add(storage._cdata)
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())

    def _gone(self, storage: int, nbytes: int) -> None:
        self.known.discard(storage)
        self.now -= nbytes


def _peak(learner: Steps, network: Functional, episode: Episode) -> int:
    """The most bytes alive at once in one outer gradient, beyond the model and the data."""
    before = [*learner.parameters(), *learner.buffers(), *_tensors_of(episode)]
    device = device_of(learner)
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        torch.enable_grad(),
        _Alive({tensor.untyped_storage()._cdata for tensor in before}) as alive,
    ):
        learner.outer_gradient(network, episode)
    return alive.most


def _tensors_of(episode: Episode) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(episode) if isinstance(leaf, torch.Tensor)]


def _with_steps(learner: Steps, steps: int) -> Steps:
    other = learner.sharing()
    other.steps = steps
    return other


def _available() -> int | None:
    """What the machine has left."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable"))
        return int(available.split()[1]) * 1024  # the file counts KiB
    # Not on Windows, and not every system knows the name.
    with contextlib.suppress(AttributeError, OSError, ValueError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _left_in_container(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What the limit of a control group leaves, of version 2 or 1.

    Files that it has cached count as free, because they are given up on demand.
    """
    for folder, limit, used, cached in (
        (root, "memory.max", "memory.current", "inactive_file"),
        (root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        with contextlib.suppress(OSError, StopIteration, ValueError):
            lines = (folder / "memory.stat").read_text().splitlines()
            files = next(line for line in lines if line.startswith(f"{cached} "))
            taken = int((folder / used).read_text()) - int(files.split()[1])
            return int((folder / limit).read_text()) - taken
    return None
