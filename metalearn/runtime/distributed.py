"""The processes that torchrun starts, each one rank: the whole of what metalearn asks of
torch.distributed.

Without torchrun there is one rank, and every function here leaves its argument as it is.
"""

from __future__ import annotations

import atexit
import builtins
import json
import os
import sys
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count as count_from
from itertools import groupby
from threading import Event, Thread
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .files import Record
from .provenance import flat, versions

T = TypeVar("T")

PATIENCE = 30.0  # seconds of silence after which a rank counts as dead; METALEARN_RANK_TIMEOUT sets another number
SHOWN = 5  # differences between ranks that a message names
CURE = "Start all of them again with the same command: training goes on from the last checkpoint"

_store: dist.Store | None = None
_standalone = False
_calls = 0  # how often this rank began or ended a wait for the others: odd while it waits


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
    """The device of this rank: where torchrun started the process, "cuda" is the GPU of its own
    number on this machine.

    Example:
        >>> device("cpu")
        'cpu'
    """
    return (
        f"cuda:{os.environ['LOCAL_RANK']}"
        if name == "cuda" and "LOCAL_RANK" in os.environ
        else name
    )


def join(device: torch.device) -> None:
    """Meet the other ranks where torchrun started this process: nccl for a CUDA `device`, gloo for
    any other.

    A process group that is there already is used as it is. Otherwise the ranks tell each other from
    now on that they are alive. If one dies, those that wait for it stop with a message: at once if
    its connection breaks, and after `METALEARN_RANK_TIMEOUT` seconds (30) if it falls silent. All
    of them stop after that time if each waits for another, because their calls differ.

    Raises ValueError if two ranks would share one GPU, and if ranks differ in the version of
    Python, torch, numpy or metalearn.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        return
    patience = _patience()
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if device.type == "cuda" and device.index != local:
        raise ValueError(
            f"rank {local} of this machine has its learner on {device}; move it to cuda:{local}"
            " before training"
        )
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        _meet(device, patience)
    except dist.DistError as error:
        raise ConnectionError(
            f"rank {os.environ.get('RANK')} of {os.environ['WORLD_SIZE']} did not meet the others"
            f" ({str(error).splitlines()[0]}). {CURE}"
        ) from error


@contextmanager
def standalone() -> Iterator[None]:
    """Let every rank work on its own meanwhile, as if there were no other."""
    global _standalone
    before, _standalone = _standalone, True
    try:
        yield
    finally:
        _standalone = before


_tickets: Counter[str] = Counter()  # how often each name was used; the same on every rank


def tickets(name: str) -> Iterator[int]:
    """Numbers from 0 on, each given to one rank alone: whoever is free draws its next piece of
    work.

    Every rank must call it as often, and with the same names in the same order. A name that is used
    again starts at 0 again.

    Example:
        >>> draw = tickets("example")
        >>> next(draw), next(draw)
        (0, 1)
    """
    if _store is None:
        return count_from(rank(), world_size())
    _tickets[name] += 1
    series = f"{name}, {_tickets[name]}"
    return (_drawn(_store, series) for _ in count_from())


def _drawn(store: dist.Store, name: str) -> int:
    with _waiting():
        return store.add(f"metalearn tickets {name}", 1) - 1


def check_same(settings: Record, cure: str) -> None:
    """Raise ValueError on every rank, naming each setting that differs between ranks. Every rank
    must call it.

    Example:
        >>> check_same({"learner": {"lr": 0.1}}, "Start every rank with the same settings")
    """
    _refuse_differences(all_gather(settings), cure)


def raise_together(error: Exception | None) -> None:
    """Raise on every rank what went wrong on any, so that none waits for one that has stopped.

    Every rank must call it.
    """
    said = all_gather(None if error is None else (type(error).__name__, str(error)))
    if error is not None:
        raise error
    for number, failed in enumerate(said):
        if failed is not None:
            kind = getattr(builtins, failed[0], RuntimeError)
            known = isinstance(kind, type) and issubclass(kind, Exception)
            raise (kind if known else RuntimeError)(f"rank {number}: {failed[1]}")


@contextmanager
def failing_together() -> Iterator[None]:
    """What goes wrong in here on any rank is raised on every one. Every rank must enter; none may
    call another rank in here.

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
    """What `work` returns. The first rank does it before the others, which then find what it kept;
    an error there is one on every rank.

    Example:
        >>> rank_zero_first(lambda: "trained once")
        'trained once'
    """
    found = None
    with failing_together():
        if rank() == 0:
            found = work()
    return work() if rank() else found  # type: ignore[return-value]


def all_reduce(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over all ranks."""
    if world_size() == 1:
        return tensor
    moved = tensor.cuda() if dist.get_backend() == "nccl" else tensor.cpu().clone()
    with _waiting():
        dist.all_reduce(moved)
        return moved.to(tensor.device)


def anywhere(flag: bool) -> bool:
    """Whether `flag` is set on any rank, so that all of them stop at the same step."""
    return bool(all_reduce(torch.tensor(float(flag))))


def all_reduce_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Set each `.grad` to its sum over all ranks: one all_reduce for each dtype; a rank that had no
    task counts as zero.
    """
    if world_size() == 1:
        return
    for _, group in groupby(sorted(parameters, key=lambda p: str(p.dtype)), key=lambda p: p.dtype):
        alike = list(group)
        flat = all_reduce(
            torch.cat(
                [(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in alike]
            )
        )
        for p, gradient in zip(alike, flat.split([p.numel() for p in alike]), strict=True):
            p.grad = torch.empty_like(p, requires_grad=False).copy_(gradient.view_as(p))


def same_weights(module: nn.Module) -> None:
    """Give every rank the first rank's parameters and buffers, with a warning on each rank that had
    others.
    """
    if world_size() > 1:
        marks = all_gather(_checksum(module))
        if marks[rank()] != marks[0]:
            warnings.warn(
                f"rank {rank()} had other initial weights than rank 0, which every rank starts from"
                " now; call torch.manual_seed with one seed on every rank before the network is"
                " built",
                stacklevel=3,
            )
        with torch.no_grad(), _waiting():
            for tensor in (*module.parameters(), *module.buffers()):
                whole = tensor.contiguous()
                dist.broadcast(whole, src=0)
                tensor.copy_(whole)


def broadcast(thing: T) -> T:
    """The first rank's `thing`, on every rank."""
    box = [thing]
    if world_size() > 1:
        with _waiting():
            dist.broadcast_object_list(box, src=0)
    return box[0]


def all_gather(thing: T) -> list[T]:
    """Every rank's `thing`, in the order of ranks."""
    if world_size() == 1:
        return [thing]
    box: list[T] = [thing] * world_size()
    with _waiting():
        dist.all_gather_object(box, thing)
    return box


def _meet(device: torch.device, patience: float) -> None:
    """Start the process group, and the thread that tells the others that this rank is alive."""
    global _store
    store, rank, count = next(dist.rendezvous("env://"))
    if os.environ.get("LOCAL_WORLD_SIZE") == str(count):
        # A restarted group is handed its old store, with the addresses of dead ranks. On one
        # machine all agree on the count of restarts.
        store = dist.PrefixStore(
            f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store
        )
    _check_versions(store, rank, count)
    # Ranks may wait for one another as long as all of them are alive; on CUDA torch's own limit
    # finds a GPU that hangs.
    options: dict[str, Any] = (
        {"backend": "nccl", "device_id": device}
        if device.type == "cuda"
        else {"backend": "gloo", "timeout": timedelta(days=7)}
    )
    dist.init_process_group(store=store, rank=rank, world_size=count, **options)
    _store = store
    atexit.register(dist.destroy_process_group)
    ended = Event()
    listening = Thread(
        target=_listen,
        args=(_another(), rank, count, patience, ended),
        daemon=True,
        name="metalearn-ranks",
    )
    listening.start()
    atexit.register(listening.join, patience)
    atexit.register(ended.set)


@contextmanager
def _waiting() -> Iterator[None]:
    """What needs the other ranks.

    Where one of them is gone, gloo says at once that its connection broke.
    """
    global _calls
    _calls += 1
    try:
        yield
    except RuntimeError as error:
        said = str(error).strip().splitlines()[0]
        if not isinstance(error, dist.DistError) and not any(
            word in said.lower() for word in ("gloo", "connection", "timed out")
        ):
            raise
        raise ConnectionError(
            f"rank {dist.get_rank()} of {dist.get_world_size()} lost another rank, which died or"
            f" stopped ({said})"
        ) from error
    finally:
        _calls += 1


def _listen(store: dist.Store, rank: int, count: int, patience: float, ended: Event) -> None:
    """Tell the others every so often that this rank is alive, and end this process if it waits in
    vain.
    """
    started = time.monotonic()
    told = 0  # the number of calls that the others know of
    reached = True
    numbers = {(name, other): 0 for name in ("alive", "calls") for other in range(count)}
    changed = dict.fromkeys(numbers, started)
    while not ended.wait(patience / 10):
        now = time.monotonic()
        calls = _calls
        try:
            if reached:
                store.add(f"alive {rank}", 1)
                store.add(f"calls {rank}", calls - told)
                told = calls
            for name, other in numbers if reached else ():
                number = store.add(f"{name} {other}", 0)
                if number != numbers[name, other]:
                    numbers[name, other] = number
                    changed[name, other] = now
        except (
            RuntimeError
        ):  # the process that keeps the store has ended, and from now on all are silent
            reached = False
        if (
            calls % 2 == 0 or calls != numbers["calls", rank]
        ):  # this rank does not wait, or has only begun to
            continue
        silent = [
            str(other)
            for other in range(count)
            if other != rank and now - changed["alive", other] > patience
        ]
        if silent and now - changed["calls", rank] > min(patience, 5):
            _stop(
                rank,
                count,
                f"rank {', '.join(silent)} has not been heard of for {patience:g} s, so it died or"
                " cannot be reached",
            )
        waiting = [
            numbers["calls", other] % 2 == 1 and now - changed["calls", other] > patience
            for other in range(count)
        ]
        if all(waiting):
            _stop(
                rank,
                count,
                f"each rank has waited for another for {patience:g} s, so they do not make the same"
                " calls",
            )


def _stop(rank: int, count: int, why: str) -> None:
    print(f"metalearn: rank {rank} of {count} stops: {why}. {CURE}", file=sys.stderr, flush=True)
    os._exit(1)  # the main thread waits inside of a library and cannot be told


def _patience() -> float:
    asked = os.environ.get("METALEARN_RANK_TIMEOUT", str(PATIENCE))
    try:
        patience = float(asked)
    except ValueError:
        patience = 0.0
    if not 0 < patience < float("inf"):
        raise ValueError(
            f"METALEARN_RANK_TIMEOUT={asked!r} must be a number of seconds above 0, such as"
            f" {PATIENCE:g}"
        )
    return patience


def _another() -> dist.Store:
    """A second connection to the same store, since one that waits blocks all threads that use it."""
    connection: dist.Store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        wait_for_workers=False,
    )
    return dist.PrefixStore(
        f"alive {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", connection
    )


def _check_versions(store: dist.Store, rank: int, count: int) -> None:
    """Raise ValueError on every rank where two differ in a version.

    Other versions may not understand each other, so this comes first.
    """
    store.set(f"versions {rank}", json.dumps(versions()))
    found = [json.loads(store.get(f"versions {other}")) for other in range(count)]
    store.set(f"read {rank}", "")
    if rank == 0:  # which may keep the store
        store.wait([f"read {other}" for other in range(count)])
    _refuse_differences(found, "Install the same versions for all of them")


def _refuse_differences(records: list[Record], cure: str) -> None:
    """Raise ValueError naming what differs between the ranks' records, with the values and the
    ranks that have them.
    """
    settings = [
        {name: json.dumps(value).strip('"') for name, value in flat(record)} for record in records
    ]
    names = dict.fromkeys(name for record in settings for name in record)
    different = [name for name in names if len({record.get(name) for record in settings}) > 1]
    if not different:
        return
    groups: dict[str, list[str]] = {}
    for rank, record in enumerate(settings):
        values = [f"{name} {record.get(name, 'not set')}" for name in different[:SHOWN]]
        groups.setdefault(", ".join(values), []).append(str(rank))
    listed = "; ".join(
        f"rank {', '.join(members)} has {values}" for values, members in groups.items()
    )
    more = f" (and {len(different) - SHOWN} more)" if len(different) > SHOWN else ""
    raise ValueError(f"the ranks would not compute the same: {listed}{more}. {cure}")


def _checksum(module: nn.Module) -> int:
    """A checksum of all parameters and buffers."""
    mark = 0
    for tensor in (*module.parameters(), *module.buffers()):
        data = tensor.detach().cpu().contiguous().reshape(-1)  # (values,)
        mark = zlib.crc32(data.view(torch.uint8).numpy().data, mark)
    return mark
