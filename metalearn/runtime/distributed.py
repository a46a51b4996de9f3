"""The processes that torchrun or srun starts: everything this library asks of `torch.distributed`.

Each process is one rank. Without them there is one rank, and every function here returns its
argument unchanged. The tasks of a step of SLURM (srun) are ranks like those of torchrun; set
WORLD_SIZE=1 for tasks that are independent.
"""

from __future__ import annotations

import atexit
import builtins
import itertools
import json
import os
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from . import heartbeat, slurm
from .devices import resolved
from .files import Record
from .heartbeat import CURE
from .provenance import flat, versions

T = TypeVar("T")

SHOWN = 5  # differences between ranks that a message names

_store: dist.Store | None = None
_heartbeat: heartbeat.Heartbeat | None = None
_standalone = False


def rank() -> int:
    """This process's rank; 0 without torchrun.

    Example:
        >>> rank()
        0
    """
    return dist.get_rank() if _in_group() else 0


def world_size() -> int:
    """The number of ranks; 1 without torchrun.

    Example:
        >>> world_size()
        1
    """
    return dist.get_world_size() if _in_group() else 1


def _in_group() -> bool:
    return dist.is_available() and dist.is_initialized() and not _standalone


def device(name: str) -> str:
    """The device of this rank: "cuda" is the GPU with the process's number on this machine.

    "auto" is cuda if there is a CUDA device, otherwise cpu.

    Example:
        >>> device("cpu")
        'cpu'
    """
    slurm.become_rank()
    name = resolved(name)
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        return f"cuda:{_own_gpu()}"
    return name


def _own_gpu() -> int:
    """The number of this rank's GPU among those that it sees."""
    if "SLURM_STEP_NUM_TASKS" in os.environ and torch.cuda.device_count() == 1:
        return 0  # srun --gpus-per-task=1 shows each task its own GPU alone
    return int(os.environ.get("LOCAL_RANK", "0"))


def join(device: torch.device) -> None:
    """Join the other ranks, if torchrun or srun started this process.

    A process group that exists already is used as it is. Otherwise the ranks use nccl for a CUDA
    `device` and gloo for any other, and report to each other that they are alive. If one dies, the
    ranks that wait for it stop with a message: at once if its connection breaks, and after
    `METALEARN_RANK_TIMEOUT` seconds (30) if it falls silent. If each rank waits for another because
    their calls differ, all of them stop after that time.

    Args:
        device: the device of this rank's learner.

    Raises:
        ValueError: two ranks would share one GPU, ranks differ in the version of Python, torch,
            numpy or metalearn, or a variable of SLURM is missing.
        ConnectionError: the other ranks cannot be reached.
    """
    if dist.is_initialized():
        return
    slurm.become_rank()
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    # The setting is checked before the ranks meet, so that all of them report a wrong one.
    patience = heartbeat.patience()
    if device.type == "cuda":
        gpu = _own_gpu()
        if device.index != gpu:
            raise ValueError(
                f"rank {os.environ.get('LOCAL_RANK', '0')} of this machine has its learner on"
                f" {device}; move it to cuda:{gpu} before training"
            )
        torch.cuda.set_device(device)
    try:
        _start_group(device, patience)
    except dist.DistError as error:
        raise ConnectionError(
            f"rank {os.environ.get('RANK')} of {os.environ['WORLD_SIZE']} could not join the others"
            f" ({str(error).splitlines()[0]}). {CURE}"
        ) from error


@contextmanager
def standalone() -> Iterator[None]:
    """A context in which this rank works alone: `world_size()` is 1."""
    global _standalone
    before = _standalone
    _standalone = True
    try:
        yield
    finally:
        _standalone = before


_series = itertools.count()  # one number for each call of `tickets`, the same on every rank


def tickets(name: str) -> Iterator[int]:
    """Numbers from 0 on, each for one rank alone: whichever rank is free takes the next one.

    Every rank must call this equally often and in the same order. Every call starts a new series.

    Args:
        name: what the numbers are for.

    Example:
        >>> numbers = tickets("example")
        >>> next(numbers), next(numbers)
        (0, 1)
    """
    if _store is None:  # one rank, or a process group of the caller's: every rank has fixed numbers
        return itertools.count(rank(), world_size())
    key = f"metalearn tickets {next(_series)} for {name}"
    return _numbers(_store, key)


def _numbers(store: dist.Store, key: str) -> Iterator[int]:
    while True:
        with _waiting():
            number = store.add(key, 1) - 1
        yield number


def check_same(settings: Record, cure: str) -> None:
    """Raise an error that names each setting that differs between ranks. Every rank must call this.

    Args:
        settings: this rank's settings.
        cure: what to do about a difference, for the message.

    Raises:
        ValueError: on every rank, if two ranks differ.

    Example:
        >>> check_same({"learner": {"lr": 0.1}}, "Start every rank with the same settings")
    """
    _refuse_differences(all_gather(settings), cure)


def raise_together(error: Exception | None) -> None:
    """Raise the error of any rank on every rank. Every rank must call this.

    No rank then waits for one that has stopped.
    """
    failure = None if error is None else (type(error).__name__, str(error))
    failures = all_gather(failure)  # the names and messages: an error may not be picklable
    if error is not None:
        raise error
    for number, failure in enumerate(failures):
        if failure is not None:
            name, message = failure
            raise _exception_class(name)(f"rank {number}: {message}")


def _exception_class(name: str) -> type[Exception]:
    """Python's own exception of this name; RuntimeError for any other name."""
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        return kind
    return RuntimeError


@contextmanager
def failing_together() -> Iterator[None]:
    """A context in which an error on any rank is raised on every rank.

    Every rank must enter it, and none may call another rank inside it.

    Example:
        >>> with failing_together():
        ...     number = int("3")
    """
    try:
        yield
    except Exception as error:
        raise_together(error)
    raise_together(None)


def rank_zero_first(work: Callable[[], T]) -> T:
    """Return `work()`, which the first rank runs before the others.

    The others can then use the files that it has written. An error on the first rank is raised on
    every rank.

    Example:
        >>> rank_zero_first(lambda: "trained once")
        'trained once'
    """
    if rank() == 0:
        with failing_together():
            result = work()
        return result
    with failing_together():
        pass  # wait for the first rank
    return work()


def all_reduce(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over all ranks."""
    if world_size() == 1:
        return tensor
    total = tensor.cuda() if dist.get_backend() == "nccl" else tensor.cpu().clone()
    with _waiting():
        dist.all_reduce(total)
        return total.to(tensor.device)  # on CUDA the wait is here


def all_reduce_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Set each `.grad` to its sum over all ranks. A missing gradient counts as zero.

    There is one `all_reduce` for each dtype.
    """
    if world_size() == 1:
        return
    by_dtype: dict[torch.dtype, list[nn.Parameter]] = {}
    for parameter in parameters:
        by_dtype.setdefault(parameter.dtype, []).append(parameter)
    for group in by_dtype.values():
        gradients = [
            torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for parameter in group
        ]
        total = all_reduce(torch.cat([gradient.reshape(-1) for gradient in gradients]))  # (values,)
        sizes = [parameter.numel() for parameter in group]
        for parameter, gradient in zip(group, total.split(sizes), strict=True):
            parameter.grad = torch.empty_like(parameter, requires_grad=False)
            parameter.grad.copy_(gradient.view_as(parameter))


def same_weights(module: nn.Module) -> None:
    """Give every rank the first rank's parameters and buffers.

    Warns on each rank that had others.
    """
    if world_size() == 1:
        return
    checksums = all_gather(_checksum(module))
    if checksums[rank()] != checksums[0]:
        warnings.warn(
            f"rank {rank()} had other initial weights than rank 0, and now starts from rank 0's;"
            " call torch.manual_seed with one seed on every rank before the network is built",
            stacklevel=3,
        )
    with torch.no_grad(), _waiting():
        for tensor in (*module.parameters(), *module.buffers()):
            contiguous = tensor.contiguous()
            dist.broadcast(contiguous, src=0)
            tensor.copy_(contiguous)


def broadcast(value: T) -> T:
    """The first rank's `value`, on every rank."""
    if world_size() == 1:
        return value
    values = [value]
    with _waiting():
        dist.broadcast_object_list(values, src=0)
    return values[0]


def all_gather(value: T) -> list[T]:
    """Every rank's `value`, in the order of ranks."""
    if world_size() == 1:
        return [value]
    values = [value] * world_size()
    with _waiting():
        dist.all_gather_object(values, value)
    return values


def _start_group(device: torch.device, patience: float) -> None:
    """Start the process group and this rank's heartbeat."""
    global _store, _heartbeat
    store, rank, count = next(dist.rendezvous("env://"))
    if os.environ.get("LOCAL_WORLD_SIZE") == str(count):
        # A restarted group gets its old store, with the addresses of dead ranks. On one machine all
        # ranks agree on the number of restarts.
        store = dist.PrefixStore(f"start {_restarts()}", store)
    _check_versions(store, rank, count)
    pulse = heartbeat.Heartbeat(_second_connection(), rank, count, patience)
    # The heartbeat finds dead ranks, so gloo may wait for living ones as long as it takes. On CUDA,
    # torch's own limit finds a GPU that hangs.
    options: dict[str, Any] = {"backend": "gloo", "timeout": timedelta(days=7)}
    if device.type == "cuda":
        options = {"backend": "nccl", "device_id": device}
    dist.init_process_group(store=store, rank=rank, world_size=count, **options)
    atexit.register(dist.destroy_process_group)
    pulse.start()
    atexit.register(pulse.stop)  # runs first: the last one registered
    _store = store
    _heartbeat = pulse


def _restarts() -> str:
    """How often torchrun has restarted this process."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")


def _second_connection() -> dist.Store:
    """Another connection to the store of the process group."""
    connection: dist.Store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        wait_for_workers=False,
    )
    return dist.PrefixStore(f"alive {_restarts()}", connection)


def _check_versions(store: dist.Store, rank: int, count: int) -> None:
    """Raise ValueError on every rank if two ranks differ in a version.

    This uses only the store, because different versions may not understand each other's messages.
    """
    store.set(f"versions {rank}", json.dumps(versions()))
    records = [json.loads(store.get(f"versions {other}")) for other in range(count)]
    store.set(f"read {rank}", "")
    if rank == 0:
        # The store may be in this process, and ends with it: wait until all ranks have read.
        store.wait([f"read {other}" for other in range(count)])
    _refuse_differences(records, "Install the same versions for all of them")


@contextmanager
def _waiting() -> Iterator[None]:
    """A context for all that needs the other ranks: raises ConnectionError if one is lost."""
    try:
        if _heartbeat is None:  # the process group is the caller's own
            yield
        else:
            with _heartbeat.waiting():
                yield
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        # gloo raises a plain RuntimeError if a connection breaks.
        signs = ("gloo", "connection", "timed out")
        if not isinstance(error, dist.DistError) and not any(
            sign in reason.lower() for sign in signs
        ):
            raise
        raise ConnectionError(
            f"rank {dist.get_rank()} of {dist.get_world_size()} lost another rank, which died or"
            f" stopped ({reason})"
        ) from error


def _refuse_differences(records: list[Record], cure: str) -> None:
    """Raise ValueError naming the differences between the ranks' records, if there are any."""
    # Each value as JSON text, because lists cannot be compared as members of a set.
    settings = [
        {name: json.dumps(value).strip('"') for name, value in flat(record)} for record in records
    ]
    names = dict.fromkeys(itertools.chain.from_iterable(settings))
    different = [name for name in names if len({record.get(name) for record in settings}) > 1]
    if not different:
        return
    # Ranks with equal values share a line of the message.
    ranks_by_values: dict[str, list[str]] = {}
    for rank, record in enumerate(settings):
        values = [f"{name} {record.get(name, 'not set')}" for name in different[:SHOWN]]
        ranks_by_values.setdefault(", ".join(values), []).append(str(rank))
    listed = "; ".join(
        f"rank {', '.join(ranks)} has {values}" for values, ranks in ranks_by_values.items()
    )
    if len(different) > SHOWN:
        listed += f" (and {len(different) - SHOWN} more)"
    raise ValueError(f"the ranks would not compute the same: {listed}. {cure}")


def _checksum(module: nn.Module) -> int:
    """A checksum of all parameters and buffers."""
    checksum = 0
    for tensor in (*module.parameters(), *module.buffers()):
        values = tensor.detach().cpu().contiguous().reshape(-1)  # (values,)
        checksum = zlib.crc32(values.view(torch.uint8).numpy().data, checksum)
    return checksum
