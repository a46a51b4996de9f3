"""Recordings: the operations of a call, made again on other inputs as one CUDA graph or program.

A meta-gradient is thousands of small operations. Python takes longer to launch them than a GPU, or
for a small network a CPU, takes to carry them out. A recording holds operations and no Python, so
nothing in it can depend on the value of a tensor: labels are checked before it.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

KEPT = 8  # recordings of a model; each keeps its results, all share the memory in between

Replay = Callable[..., Any]


@dataclass
class Recording:
    """What is known of a call that may be recorded.

    Attributes:
        logits: the shape of the logits that it gave when Python made it.
        replay: makes its operations again, on other inputs; None before they are recorded.
    """

    logits: torch.Size
    replay: Replay | None = None


_of_model: weakref.WeakKeyDictionary[nn.Module, OrderedDict[Hashable, Recording]] = (
    weakref.WeakKeyDictionary()
)
_pools: dict[torch.device, Any] = {}


def find(model: nn.Module, key: Hashable) -> Recording | None:
    """The recording of a model under a key, which becomes the last one used.

    Args:
        model: whose recordings these are. They go when it goes.
        key: everything that decides which operations the call makes, and on what memory besides its
            inputs.
    """
    recordings = _of_model.setdefault(model, OrderedDict())
    if key not in recordings:
        return None
    recordings.move_to_end(key)
    return recordings[key]


def keep(model: nn.Module, key: Hashable, recording: Recording) -> None:
    """Keep a recording, and drop the one that was not used for longest if there are too many."""
    recordings = _of_model.setdefault(model, OrderedDict())
    recordings[key] = recording
    if len(recordings) > KEPT:
        recordings.popitem(last=False)


def record(work: Callable[..., Any], *inputs: Tensor) -> Replay:
    """Record the operations of a call as a CUDA graph.

    Args:
        work: from tensors to (nested lists and tuples of) tensors. It must have run before on
            inputs of these shapes, so nothing is left to initialise.
        *inputs: tensors of the shapes and types of all later inputs.

    Returns:
        A function that makes the operations again, on other inputs.
    """
    # A graph reads fixed memory, so later inputs are copied into these tensors.
    held = [tensor.clone() for tensor in inputs]
    device = inputs[0].device
    with torch.cuda.device(device):
        graph = torch.cuda.CUDAGraph()
        # Results are copied at once, so one pool of memory can serve all recordings. Only this
        # thread is watched for calls that cannot be recorded: another may be drawing the next
        # tasks.
        pool = _pools.setdefault(device, torch.cuda.MemPool())
        with torch.cuda.graph(graph, pool=pool.id, capture_error_mode="thread_local"):
            result = work(*held)

    def replay(*inputs: Tensor) -> Any:
        for slot, tensor in zip(held, inputs, strict=True):
            slot.copy_(tensor, non_blocking=True)
        graph.replay()
        return tree_map(lambda part: part.clone() if isinstance(part, Tensor) else part, result)

    return replay


def compiled(work: Callable[..., Any], *inputs: Tensor) -> Replay:
    """Trace the operations of a call, derivatives included, and compile them for a CPU.

    Args:
        work: from tensors to (nested lists and tuples of) tensors.
        *inputs: tensors of the shapes and types of all later inputs.

    Returns:
        A function that makes the operations again, on other inputs.

    Raises:
        RuntimeError: they cannot be traced or compiled.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    def replay(*inputs: Tensor) -> Any:
        # Derivatives and casts are among the operations.
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            return code(*inputs)

    # The derivatives are traced as operations, because torch.compile has no second derivative.
    try:
        code = torch.compile(make_fx(work)(*inputs))
        replay(*inputs)
    except (RuntimeError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RuntimeError(
            f"execution='compiled' could not compile what this learner does ({reason}); it takes"
            " networks without convolutions under MAML, ANIL, BOIL or Meta-SGD, and needs a C++"
            " compiler (g++ or clang). execution='auto' runs everything"
        ) from error

    return replay
