"""Tasks one by one, or one in each thread.

On a CPU a single task is too small to be divided among cores. One task a core is faster.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import lru_cache, partial
from itertools import islice
from queue import SimpleQueue
from threading import Barrier
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, TypeVar

import torch
from torch import nn

from metalearn.network.functional import Functional

from .randomness import TaskRandomness, random_part, refuse_draws, training_modes
from .solver import Solver, device_of, is_on

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    learner: Solver,
    items: Sequence[Item],
    work: Callable[[Functional, Item], Result],
    *,
    first: int = 0,
) -> Iterator[Result]:
    """Work on items one by one, each with random numbers of its own (see `TaskRandomness`).

    Args:
        learner: whose network the work gets.
        items: such as tasks.
        work: from the network and an item to a result.
        first: the number of the first item to work on.

    Yields:
        The results, in order.
    """
    network = learner.network
    randomness = TaskRandomness(device_of(learner))
    try:
        for number in range(first, len(items)):
            with randomness.task(number):
                result = work(network, items[number])
            yield result
        learner.known.drawing = training_modes(learner.model) if randomness.drawn else None
    finally:
        randomness.finish()


def in_threads(
    learner: Solver, items: Sequence[Item], work: Callable[[Functional, Item], Result]
) -> Iterator[Result]:
    """Work on one item in each thread, on replicas of the network that share every tensor.

    The items are worked on one by one if there is one core, if the model is on another device, if
    it cannot be copied, or if it draws random numbers. Threads share the generators, so the thread
    that draws first would decide the result.

    Args:
        learner: whose network the work gets.
        items: such as tasks.
        work: from a network and an item to a result.

    Yields:
        The results, in order.

    Raises:
        ValueError: execution="threads" was requested and would be wrong.
    """
    threads = thread_count(learner, len(items))
    # An `adapt` that a subclass wrote runs on the learner's own model, not on a replica.
    if learner.one_by_one:
        threads = 1
    drawing = random_part(learner)
    if drawing and learner.execution == "threads":
        refuse_draws("threads", drawing)
    replicas = []
    if threads > 1 and not drawing:
        replicas = _replicas(learner, threads)
    if not replicas:
        yield from in_order(learner, items, work)
        return
    randomness = TaskRandomness(device_of(learner))
    finished = 0
    with contextlib.closing(_in_pool(replicas, items, work)) as results:
        for result in results:
            # A draw shows only after a task. Results from here on may depend on the other threads.
            if randomness.changed():
                break
            yield result
            finished += 1
    if finished < len(items):
        randomness.finish()
        if learner.execution == "threads":
            refuse_draws("threads", "the model")
        # The finished tasks drew nothing, so they have the results of a loop.
        yield from in_order(learner, items, work, first=finished)


def thread_count(learner: Solver, tasks: int) -> int:
    """How many threads work on so many tasks: on a CPU at most one a core."""
    if not is_on(learner, "cpu"):
        return min(1, tasks)
    return min(torch.get_num_threads(), tasks)


def _in_pool(
    replicas: list[Functional],
    items: Sequence[Item],
    work: Callable[[Functional, Item], Result],
) -> Generator[Result]:
    """The results of `work` on every item, in order, with one item in flight for each replica."""
    pool = _pool(torch.get_num_threads())
    modes = _modes()
    # A call writes into the module while it runs, so every task in flight needs its own module.
    free: SimpleQueue[Functional] = SimpleQueue()
    for network in replicas:
        free.put(network)

    def run(item: Item) -> Result:
        network = free.get()
        try:
            with modes():
                return work(network, item)
        finally:
            free.put(network)

    waiting: deque[Future[Result]] = deque()
    coming = iter(items)
    try:
        for _ in items:
            # One item more than there are threads, so no thread waits for the caller.
            for item in islice(coming, len(replicas) + 1 - len(waiting)):
                waiting.append(pool.submit(run, item))
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
        wait(waiting)  # a task that still ran could write into a buffer that the next call reads


def _replicas(learner: Solver, count: int) -> list[Functional]:
    """Copies of a learner's network; none if a copy would differ or cannot be made."""
    # A replica whose hook calls the original would give results of the wrong weights.
    tied = tied_part(learner.model)
    if tied and learner.execution == "threads":
        raise ValueError(
            f"execution='threads' copies the model for every thread, but the {tied} may remember"
            " the original; use execution='loop'"
        )
    if tied:
        return []
    try:
        return [learner.network.replica() for _ in range(count)]
    except TypeError as error:
        if learner.execution == "threads":
            raise ValueError(
                f"execution='threads' copies the model for every thread, but {error}; use"
                " execution='loop'"
            ) from error
        warnings.warn(
            f"{error}; tasks run one by one. execution='loop' does so without this warning",
            stacklevel=2,
        )
        return []


def tied_part(model: nn.Module) -> str:
    """A hook or a replaced method that may remember this one model, for a message; "" if none.

    A copy of the model would still call the original.
    """
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            functions = value.values() if isinstance(value, dict) else [value]
            if any(map(_remembers, functions)):
                return f"{attribute.strip('_')} of {name or 'the model'}"
    return ""


_HARMLESS = (
    ModuleType,
    type,
    BuiltinFunctionType,
    FunctionType,
    int,
    float,
    str,
    bool,
    torch.dtype,
    torch.device,
    type(None),
)


def _remembers(value: Any) -> bool:
    """Whether a function uses anything from outside that could be, or hold, a part of a model."""
    if isinstance(value, partial):
        return any(map(_remembers, (value.func, *value.args, *value.keywords.values())))
    if not isinstance(value, FunctionType):
        return False  # whatever else a module holds is copied with it, bound methods too
    outside = inspect.getclosurevars(value)
    used = (*outside.nonlocals.values(), *outside.globals.values())
    return not all(isinstance(thing, _HARMLESS) for thing in used)


def _modes() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """The caller's grad mode and autocast, for other threads: each thread has its own."""
    grad = torch.is_grad_enabled()
    casts = [
        (device, torch.get_autocast_dtype(device))
        for device in ("cpu", "cuda")
        if torch.is_autocast_enabled(device)
    ]

    @contextlib.contextmanager
    def same() -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(grad))
            for device, dtype in casts:
                stack.enter_context(torch.autocast(device, dtype=dtype))
            yield

    return same


def _one_intra_op_thread() -> None:
    # A thread that first asks for the number later would take over that of the process then.
    torch.get_num_threads()
    torch.set_num_threads(1)


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that stay: the convolution library keeps its compiled kernels per thread."""
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, "metalearn-task", initializer=_one_intra_op_thread)
    # Every thread must have started and set its own number before that of the process is restored.
    barrier = Barrier(threads)
    for started in [pool.submit(barrier.wait) for _ in range(threads)]:
        started.result()
    torch.set_num_threads(before)
    return pool


if hasattr(os, "register_at_fork"):  # a forked process has no threads
    os.register_at_fork(after_in_child=_pool.cache_clear)
