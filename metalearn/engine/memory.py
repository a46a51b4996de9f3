"""How much memory a meta-gradient takes, known before the first one: measured on one task and a
step or two of its inner loop.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from metalearn.engine.solver import Steps
from metalearn.episodes import Episode, stack
from metalearn.network.functional import Functional

from . import execution


class Forecast(NamedTuple):
    """What `meta_backward` will hold at its peak, in bytes, beyond the model and the data.

    `per_task` is one task with all of its inner steps, of which each further step adds `per_step`
    (second order keeps every step until the end). `way` is how tasks are run and `in_flight` how
    many at once. `free` is what the device has left, None where it does not say.

    Example:
        >>> print(Forecast(per_task=64 * 2**20, per_step=20 * 2**20, way="threads", in_flight=2, free=2**30))
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
        ways = {
            "loop": "tasks in a loop",
            "threads": "tasks in threads",
            "vectorized": "tasks vectorized",
            "graphs": "tasks in CUDA graphs",
            "compiled": "compiled tasks",
        }
        free = "" if self.free is None else f" of {size(self.free)} free"
        each = f"{size(self.per_task)} a task ({size(self.per_step)} an inner step)"
        return f"{ways[self.way]}, {self.in_flight} at once: {each}, {size(self.total)}{free}"


def forecast(learner: Steps, episode: Episode, *, tasks: int = execution.CHUNK) -> Forecast:
    """The memory that `meta_backward` of a meta-batch of so many `tasks` will take -> `Forecast`.

    One task is run with one inner step and with two, counting the bytes of the tensors that are
    alive at once; the other steps are added at what the second one added. What kernels need inside
    of one operation is not counted. Nothing that training depends on is changed: no gradient, and
    no generator of random numbers.

    Args:
        episode: one task.
        tasks: of a meta-batch, or of one rank's share of it.

    Example:
        >>> from metalearn import MAML
        >>> from metalearn.models import Conv4
        >>> from metalearn.tasks import FewShot, glyphs
        >>> task = FewShot(glyphs("train"), ways=5, shots=1, queries=5, tasks=1)[0]
        >>> second, first = (forecast(MAML(Conv4(5), 0.4, steps=5, first_order=first), task) for first in (False, True))
        >>> second.per_task > 2 * first.per_task
        True
    """
    device = next(learner.parameters()).device
    way, in_flight = execution.in_flight(learner, tasks)
    network = learner.network
    if way in execution.VECTORIZED:  # whose operations keep other tensors, even for one task
        network, episode = network.stacked(1), stack([episode])
    if not learner.steps:
        return Forecast(_peak(learner, network, episode), 0, way, in_flight, free_memory(device))
    one = _peak(_with_steps(learner, 1), network, episode)
    two = _peak(_with_steps(learner, 2), network, episode)
    per_step = max(two - one, 0)
    return Forecast(
        one + per_step * (learner.steps - 1), per_step, way, in_flight, free_memory(device)
    )


def ways_out(
    learner: Steps, episode: Episode, expected: Forecast, *, processes: int = 1
) -> str | None:
    """What to do where a forecast exceeds what is free, with the figure of each way out; None where
    it fits.

    Args:
        learner: the learner.
        episode: one task.
        expected: its forecast.
        processes: how many processes like this one share the memory.
    """
    if expected.free is None or expected.total * processes <= expected.free:
        return None
    cures = []
    if learner.steps and not learner.first_order:
        cheaper = learner.sharing()
        cheaper.first_order = True
        cures.append(
            f"first order ({size(forecast(cheaper, episode, tasks=expected.in_flight).per_task)} a"
            " task)"
        )
    fewer = max(expected.free // processes // max(expected.per_task, 1), 1)
    if expected.way == "threads":
        cures.append(
            f"fewer tasks in flight (torch.set_num_threads({fewer}), or execution='loop':"
            f" {size(expected.per_task)})"
        )
    if expected.way in execution.VECTORIZED:
        cures.append(f"fewer tasks in flight (execution='loop': {size(expected.per_task)})")
        cures.append(f"a smaller chunk (metalearn.engine.execution.CHUNK = {fewer})")
    if processes > 1:
        cures.append("fewer processes on this machine")
    cures.append("fewer inner steps, smaller images or a smaller model")
    many = f" in each of {processes} processes" if processes > 1 else ""
    return (
        f"a step is expected to need {size(expected.total)}{many} ({expected}), which is more than"
        f" there is. Ways out: {'; '.join(cures)}"
    )


def free_memory(device: torch.device) -> int | None:
    """Bytes that a process can still have on the device; None where the system does not say.

    Example:
        >>> free_memory(torch.device("cpu")) != 0
        True
    """
    if device.type == "cuda":
        return (
            torch.cuda.mem_get_info(device)[0]
            + torch.cuda.memory_reserved(device)
            - torch.cuda.memory_allocated(device)
        )
    if device.type != "cpu":
        return None
    found = [_available(), _left_in_container()]
    return min((bytes for bytes in found if bytes is not None), default=None)


def size(count: float) -> str:
    """Bytes as people say them.

    Example:
        >>> size(61 * 2**20), size(1.5 * 2**30)
        ('61 MiB', '1.5 GiB')
    """
    return f"{count / 2**30:.1f} GiB" if count >= 1000 * 2**20 else f"{count / 2**20:.3g} MiB"


class _Alive(TorchDispatchMode):
    """Counts the bytes of tensors that were made under it and are still there."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.known, self.now, self.most = known, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided:
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self.known:
            return
        self.known.add(storage._cdata)
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())

    def _gone(self, which: int, bytes: int) -> None:
        self.known.discard(which)
        self.now -= bytes


def _peak(learner: Steps, network: Functional, episode: Episode) -> int:
    own = [*learner.parameters(), *learner.buffers(), *episode.support, *episode.query]
    devices = [own[0].device] if own[0].device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices),
        torch.enable_grad(),
        _Alive({t.untyped_storage()._cdata for t in own}) as alive,
    ):
        learner.outer_gradient(network, episode)
    return alive.most


def _with_steps(learner: Steps, steps: int) -> Steps:
    other = learner.sharing()
    other.steps = steps
    return other


def _available() -> int | None:
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(
            int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")
        )
    with contextlib.suppress(
        AttributeError, OSError, ValueError
    ):  # not on Windows; not every system knows the name
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _left_in_container(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What the limit of a control group leaves, of version 2 or 1.

    Files that it has cached count as free: they are given up on demand.
    """
    for folder, limit, used, cached in (
        (root, "memory.max", "memory.current", "inactive_file"),
        (root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        with contextlib.suppress(OSError, StopIteration, ValueError):
            lines = (folder / "memory.stat").read_text().splitlines()
            files = next(int(line.split()[1]) for line in lines if line.startswith(f"{cached} "))
            return int((folder / limit).read_text()) - int((folder / used).read_text()) + files
    return None
