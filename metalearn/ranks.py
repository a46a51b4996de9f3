"""The processes that torchrun starts, each one rank: the whole of what metalearn asks of torch.distributed.

Without torchrun there is one rank, and every function here leaves its argument as it is.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable
from itertools import groupby
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


def here() -> tuple[int, int]:
    """This process's rank, and how many ranks there are; (0, 1) without torchrun.

    Example:
        >>> here()
        (0, 1)
    """
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def join(device: torch.device) -> None:
    """Meet the other ranks where torchrun started this process: nccl for a CUDA `device`, gloo for any other.

    A process group that is there already is used as it is. Raises ValueError where two ranks would share one GPU.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        return
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if device.type == "cuda" and device.index != local:
        raise ValueError(f"rank {local} of this machine has its learner on {device}; move it to cuda:{local} before training")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store, rank, count = next(dist.rendezvous("env://"))
    if os.environ.get("LOCAL_WORLD_SIZE") == str(count):
        # A restarted group is handed its old store, with the addresses of dead ranks. On one machine all agree on the count of restarts.
        store = dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    options: dict[str, Any] = {"backend": "nccl", "device_id": device} if device.type == "cuda" else {"backend": "gloo"}
    dist.init_process_group(store=store, rank=rank, world_size=count, **options)
    atexit.register(dist.destroy_process_group)


def total(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over all ranks."""
    if here()[1] == 1:
        return tensor
    moved = tensor.cuda() if dist.get_backend() == "nccl" else tensor.cpu().clone()
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
        with torch.no_grad():
            for tensor in (*module.parameters(), *module.buffers()):
                whole = tensor.contiguous()
                dist.broadcast(whole, src=0)
                tensor.copy_(whole)


def from_first(thing: T) -> T:
    """The first rank's `thing`, on every rank."""
    box = [thing]
    if here()[1] > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]


def gather(thing: T) -> list[T]:
    """Every rank's `thing`, in the order of ranks."""
    if here()[1] == 1:
        return [thing]
    box: list[T] = [thing] * here()[1]
    dist.all_gather_object(box, thing)
    return box
