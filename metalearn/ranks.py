"""The processes that torchrun starts, each one rank: the whole of what metalearn asks of torch.distributed.

Without torchrun there is one rank, and every function here leaves its argument as it is.
"""

from __future__ import annotations

import atexit
import builtins
import json
import os
import sys
import time
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

from metalearn.checkpoints import versions

T = TypeVar("T")

PATIENCE = 30.0  # seconds of silence after which a rank counts as dead; METALEARN_RANK_TIMEOUT sets another number
CURE = "Start all of them again with the same command: training goes on from the last checkpoint"

_store: dist.Store | None = None
_apart = False
_waits_since: float | None = None  # when this rank began to wait for the others


def here() -> tuple[int, int]:
    """This process's rank, and how many ranks there are; (0, 1) without torchrun.

    Example:
        >>> here()
        (0, 1)
    """
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() and not _apart else (0, 1)


def device(name: str) -> str:
    """The device of this rank: where torchrun started the process, "cuda" is the GPU of its own number on this machine.

    Example:
        >>> device("cpu")
        'cpu'
    """
    return f"cuda:{os.environ['LOCAL_RANK']}" if name == "cuda" and "LOCAL_RANK" in os.environ else name


def join(device: torch.device) -> None:
    """Meet the other ranks where torchrun started this process: nccl for a CUDA `device`, gloo for any other.

    A process group that is there already is used as it is. Otherwise the ranks tell each other from now on that they are alive: where one
    dies, those that wait for it stop with a message, at once where its connection breaks, and after `METALEARN_RANK_TIMEOUT` seconds (30)
    where it falls silent. Raises ValueError where two ranks would share one GPU, and where ranks differ in the version of Python, torch,
    numpy or metalearn.
    """
    global _store
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        return
    patience = _patience()
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if device.type == "cuda" and device.index != local:
        raise ValueError(f"rank {local} of this machine has its learner on {device}; move it to cuda:{local} before training")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store, rank, count = next(dist.rendezvous("env://"))
    if os.environ.get("LOCAL_WORLD_SIZE") == str(count):
        # A restarted group is handed its old store, with the addresses of dead ranks. On one machine all agree on the count of restarts.
        store = dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    _check_versions(store, rank, count)
    # Ranks may wait for one another as long as all of them are alive; on CUDA torch's own limit finds a GPU that hangs.
    options: dict[str, Any] = (
        {"backend": "nccl", "device_id": device} if device.type == "cuda" else {"backend": "gloo", "timeout": timedelta(days=7)}
    )
    dist.init_process_group(store=store, rank=rank, world_size=count, **options)
    _store = store
    atexit.register(dist.destroy_process_group)
    ended = Event()
    listening = Thread(target=_listen, args=(_another(), rank, count, patience, ended), daemon=True, name="metalearn-ranks")
    listening.start()
    atexit.register(listening.join, patience)
    atexit.register(ended.set)


@contextmanager
def apart() -> Iterator[None]:
    """Let every rank work on its own meanwhile, as if there were no other."""
    global _apart
    before, _apart = _apart, True
    try:
        yield
    finally:
        _apart = before


def tickets(name: str) -> Iterator[int]:
    """Numbers from 0 on, each given to one rank alone: whoever is free draws its next piece of work. A `name` is used once.

    Example:
        >>> draw = tickets("example")
        >>> next(draw), next(draw)
        (0, 1)
    """
    return count_from(*here()) if _store is None else (_drawn(_store, name) for _ in count_from())


def _drawn(store: dist.Store, name: str) -> int:
    with _waiting():
        return store.add(f"metalearn tickets {name}", 1) - 1


def raise_together(error: Exception | None) -> None:
    """Raise on every rank what went wrong on any, so that none waits for one that has stopped. Every rank must call it."""
    said = gather(None if error is None else (type(error).__name__, str(error)))
    if error is not None:
        raise error
    for rank, failed in enumerate(said):
        if failed is not None:
            kind = getattr(builtins, failed[0], RuntimeError)
            known = isinstance(kind, type) and issubclass(kind, Exception)
            raise (kind if known else RuntimeError)(f"rank {rank}: {failed[1]}")


def first_alone(work: Callable[[], T]) -> T:
    """What `work` returns. The first rank does it before the others, which then find what it kept; an error there is one on every rank.

    Example:
        >>> first_alone(lambda: "trained once")
        'trained once'
    """
    found, error = None, None
    if here()[0] == 0:
        try:
            found = work()
        except Exception as caught:
            error = caught
    raise_together(error)
    return work() if here()[0] else found  # type: ignore[return-value]


def total(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over all ranks."""
    if here()[1] == 1:
        return tensor
    moved = tensor.cuda() if dist.get_backend() == "nccl" else tensor.cpu().clone()
    with _waiting():
        dist.all_reduce(moved)
        return moved.to(tensor.device)


def anywhere(flag: bool) -> bool:
    """Whether `flag` is set on any rank, so that all of them stop at the same step."""
    return bool(total(torch.tensor(float(flag))))


def total_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Set each `.grad` to its sum over all ranks: one all_reduce for each dtype; a rank that had no task counts as zero."""
    if here()[1] == 1:
        return
    for _, group in groupby(sorted(parameters, key=lambda p: str(p.dtype)), key=lambda p: p.dtype):
        alike = list(group)
        flat = total(torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in alike]))
        for p, gradient in zip(alike, flat.split([p.numel() for p in alike]), strict=True):
            p.grad = torch.empty_like(p, requires_grad=False).copy_(gradient.view_as(p))


def same_weights(module: nn.Module) -> None:
    """Give every rank the first rank's parameters and buffers."""
    if here()[1] > 1:
        with torch.no_grad(), _waiting():
            for tensor in (*module.parameters(), *module.buffers()):
                whole = tensor.contiguous()
                dist.broadcast(whole, src=0)
                tensor.copy_(whole)


def from_first(thing: T) -> T:
    """The first rank's `thing`, on every rank."""
    box = [thing]
    if here()[1] > 1:
        with _waiting():
            dist.broadcast_object_list(box, src=0)
    return box[0]


def gather(thing: T) -> list[T]:
    """Every rank's `thing`, in the order of ranks."""
    if here()[1] == 1:
        return [thing]
    box: list[T] = [thing] * here()[1]
    with _waiting():
        dist.all_gather_object(box, thing)
    return box


@contextmanager
def _waiting() -> Iterator[None]:
    """What needs the other ranks. Where one of them is gone, gloo says at once that its connection broke."""
    global _waits_since
    _waits_since = time.monotonic()
    try:
        yield
    except RuntimeError as error:
        said = str(error).strip().splitlines()[0]
        if not isinstance(error, dist.DistError) and not any(word in said.lower() for word in ("gloo", "connection", "timed out")):
            raise
        raise ConnectionError(
            f"rank {dist.get_rank()} of {dist.get_world_size()} lost another rank, which died or stopped ({said})"
        ) from error
    finally:
        _waits_since = None


def _listen(store: dist.Store, rank: int, count: int, patience: float, ended: Event) -> None:
    """Say every so often that this rank is alive, and end this process where it waits for one that is not."""
    others, reached = [other for other in range(count) if other != rank], True
    beats, heard = dict.fromkeys(others, 0), dict.fromkeys(others, time.monotonic())
    while not ended.wait(patience / 10):
        try:
            if reached:
                store.add(f"alive {rank}", 1)
            for other in others if reached else ():
                beat = store.add(f"alive {other}", 0)
                if beat != beats[other]:
                    beats[other], heard[other] = beat, time.monotonic()
        except RuntimeError:  # the process that keeps the store has ended, and from now on all are silent
            reached = False
        now, waits = time.monotonic(), _waits_since
        silent = [str(other) for other in others if now - heard[other] > patience]
        if silent and waits is not None and now - waits > min(patience, 5):
            text = (
                f"rank {rank} of {count} stops: rank {', '.join(silent)} has not been heard of for {patience:g} s, so it died or cannot be "
                f"reached. {CURE}"
            )
            print(f"metalearn: {text}", file=sys.stderr, flush=True)
            os._exit(1)  # the main thread waits inside of a library and cannot be told


def _patience() -> float:
    asked = os.environ.get("METALEARN_RANK_TIMEOUT", str(PATIENCE))
    try:
        patience = float(asked)
    except ValueError:
        patience = 0.0
    if not 0 < patience < float("inf"):
        raise ValueError(f"METALEARN_RANK_TIMEOUT={asked!r} must be a number of seconds above 0, such as {PATIENCE:g}")
    return patience


def _another() -> dist.Store:
    """A second connection to the same store, since one that waits blocks all threads that use it."""
    connection: dist.Store = dist.TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, wait_for_workers=False
    )
    return dist.PrefixStore(f"alive {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", connection)


def _check_versions(store: dist.Store, rank: int, count: int) -> None:
    """Raise ValueError on every rank where two differ in a version. Other versions may not understand each other, so this comes first."""
    store.set(f"versions {rank}", json.dumps(versions()))
    found = [json.loads(store.get(f"versions {other}")) for other in range(count)]
    store.set(f"read {rank}", "")
    if rank == 0:  # which may keep the store
        store.wait([f"read {other}" for other in range(count)])
    different = [name for name in found[0] if len({one.get(name) for one in found}) > 1]
    if different:
        kinds: dict[str, list[str]] = {}
        for other, one in enumerate(found):
            kinds.setdefault(", ".join(f"{name} {one.get(name)}" for name in different), []).append(str(other))
        listed = "; ".join(f"rank {', '.join(which)} has {what}" for what, which in kinds.items())
        raise ValueError(f"the ranks would not compute the same: {listed}. Install the same versions for all of them")
