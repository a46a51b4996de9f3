"""Recordings: the operations of a call, recorded once and made together from then on, as a CUDA
graph or as compiled code.

A meta-gradient is thousands of small operations, which Python launches more slowly than a GPU, or
for a small network a CPU, carries them out. A recording holds operations and no Python, so that
what Python decides by the value of a tensor has to be known: `value` reads it, and a replay that
finds another value is not used.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

T = TypeVar("T")
Recorder = Callable[
    ..., Callable[..., Any]
]  # from a function of tensors, and inputs, to one that makes its operations again

KEPT = 8  # recordings of a model; each keeps its results, all share the memory in between
_running = threading.local()
_of_model: weakref.WeakKeyDictionary[nn.Module, OrderedDict[Hashable, Recording]] = (
    weakref.WeakKeyDictionary()
)
_pools: dict[torch.device, Any] = {}


def value(tensor: Tensor) -> Any:
    """What a tensor of one element holds, as a Python number; inside of a recording, what it held
    in the call before.

    Example:
        >>> value(torch.tensor([3, 5]).max())
        5
    """
    recording: Recording | None = getattr(_running, "recording", None)
    return tensor.item() if recording is None else recording.read(tensor)


def replayed(
    recorder: Recorder, model: nn.Module, key: Hashable, function: Callable[..., T], *inputs: Tensor
) -> T:
    """`function(*inputs)`, which is called at first, recorded the second time, and replayed from
    then on.

    Arguments:
        recorder: `record`, for a CUDA device, or `compiled`, for a CPU.
        model: whose recordings these are; they go when it goes.
        key: everything that decides which operations the function makes, and on what memory besides
            its inputs.
        function: from tensors to (nested lists and tuples of) tensors.
    """
    recordings = _of_model.setdefault(model, OrderedDict())
    key = (recorder, key, *((tensor.shape, tensor.dtype) for tensor in inputs))
    recording = recordings.pop(key, None) or Recording(recorder)
    result: T = recording(function, *inputs)
    recordings[key] = recording  # as the last one used
    if len(recordings) > KEPT:
        recordings.popitem(last=False)
    return result


class Recording:
    """One call's operations, from its second call on."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.values: list[Any] | None = None  # what was read in the first call, in turn
        self.labels = 0, 0  # the smallest and the largest integer of the first call
        self.recording = False
        self.replay: Callable[..., tuple[Any, Tensor | None]] | None = None
        self.reading: list[Tensor] = []

    def __call__(self, function: Callable[..., Any], *inputs: Tensor) -> Any:
        if self.values is None:
            return self._first(function, *inputs)
        if self.replay is None:
            self.replay = self._recorded(function, *inputs)
        result, found = self.replay(*inputs)
        return function(*inputs) if found is not None and found.tolist() != self.values else result

    def read(self, tensor: Tensor) -> Any:
        """The value of a tensor in the first call; in the second one the same, to be compared at
        every replay.
        """
        assert self.values is not None
        if self.recording:
            self.reading.append(tensor.reshape(()).to(torch.float64))
            return self.values[len(self.reading) - 1]
        self.values.append(tensor.item())
        return self.values[-1]

    def _first(self, function: Callable[..., Any], *inputs: Tensor) -> Any:
        integers = [tensor for tensor in inputs if _holds_labels(tensor)]
        if integers:
            self.labels = (
                min(int(tensor.min()) for tensor in integers),
                max(int(tensor.max()) for tensor in integers),
            )
        self.values = [True] * len(integers)
        try:
            return self._watched(function, *inputs)
        except BaseException:
            self.values = None
            raise

    def _recorded(
        self, function: Callable[..., Any], *inputs: Tensor
    ) -> Callable[..., tuple[Any, Tensor | None]]:
        def work(*given: Tensor) -> tuple[Any, Tensor | None]:
            self.reading = []
            result = self._watched(function, *map(self._as_known, given))
            return result, torch.stack(self.reading) if self.reading else None

        self.recording = True
        return self.recorder(work, *inputs)

    def _as_known(self, tensor: Tensor) -> Tensor:
        """The tensor with no label outside of those of the first call: an index out of range would
        break the device, not raise.
        """
        if not _holds_labels(tensor):
            return tensor
        known = tensor.clamp(*self.labels)
        self.reading.append((known == tensor).all().to(torch.float64))
        return known

    def _watched(self, function: Callable[..., Any], *inputs: Tensor) -> Any:
        _running.recording = self
        try:
            return function(*inputs)
        finally:
            _running.recording = None


def _holds_labels(tensor: Tensor) -> bool:
    return tensor.numel() > 0 and not tensor.is_floating_point()


def record(work: Callable[..., Any], *inputs: Tensor) -> Callable[..., Any]:
    """Record the operations of a call as a CUDA graph -> a function that makes them again, on other
    inputs.
    """
    held, device = [tensor.clone() for tensor in inputs], inputs[0].device
    with torch.cuda.device(device):
        graph = torch.cuda.CUDAGraph()
        # Results are copied as soon as they are there, so that one pool of memory can serve all
        # recordings. Only this thread may be
        # watched for calls that cannot be recorded: another one may be drawing the next tasks.
        pool = _pools.setdefault(device, torch.cuda.MemPool())
        with torch.cuda.graph(graph, pool=pool.id, capture_error_mode="thread_local"):
            result = work(*held)

    def replay(*given: Tensor) -> Any:
        for ours, theirs in zip(held, given, strict=True):
            ours.copy_(theirs, non_blocking=True)
        graph.replay()
        return tree_map(lambda part: part.clone() if isinstance(part, Tensor) else part, result)

    return replay


def compiled(work: Callable[..., Any], *inputs: Tensor) -> Callable[..., Any]:
    """Trace the operations of a call, derivatives included, and compile them -> a function that
    makes them again, on other inputs.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    def replay(*given: Tensor) -> Any:
        with (
            torch.no_grad(),
            torch.autocast("cpu", enabled=False),
        ):  # derivatives and casts are among the operations
            return code(*given)

    try:
        code = torch.compile(make_fx(work)(*inputs))
        replay(*inputs)
    except (RuntimeError, NotImplementedError) as error:
        said = str(error).strip().splitlines()[0]
        raise RuntimeError(
            f"execution='compiled' could not compile what this learner does ({said}); it takes"
            " networks without convolutions under MAML, ANIL, BOIL or Meta-SGD, and needs a C++"
            " compiler (g++ or clang). execution='auto' runs everything"
        ) from error

    return replay
