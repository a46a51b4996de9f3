"""How many tasks run: in a loop, in threads, vectorized, or vectorized and recorded. Every way
gives the same numbers.

Tasks are independent, so nothing outside this file knows how they are run. All of them take
gradients with autograd *outside* of `torch.vmap`: the stacked inner step differentiates the sum of
the tasks' losses by weights that carry a task dimension, and vmap is only ever applied to a forward
pass. Autograd then records the batched operations themselves, so second derivatives through batch,
layer and instance norm whose weight and bias adapt per task are correct. `vmap(grad(...))` by
itself is correct, too; a `backward()` or another `grad` through it gives silently wrong second
derivatives of these norms (pytorch/functorch#534).
"""

from __future__ import annotations

import contextlib
import inspect
import os
import random
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import lru_cache, partial
from itertools import islice
from queue import SimpleQueue
from threading import Barrier
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, NamedTuple, NoReturn, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from metalearn.episodes import Episode, Examples, part_of, unstack
from metalearn.network.forward import Inputs
from metalearn.network.functional import DrawsRandomNumbers, Functional
from metalearn.network.module_call import is_plain

from . import recording
from .randomness import TaskRandomness
from .solver import Adapted, OuterGradient, Solver

WAYS = ("auto", "loop", "threads", "vectorized", "graphs", "compiled")
RECORDED = {
    "graphs": "cuda",
    "compiled": "cpu",
}  # vectorized tasks whose operations are recorded, and on what device
VECTORIZED = ("vectorized", *RECORDED)
CHUNK = 32  # tasks that are vectorized at once

Item = TypeVar("Item")
Result = TypeVar("Result")
Work: TypeAlias = Callable[[Solver, Functional, Episode], Result]


class MetaBackward(NamedTuple):
    """What `meta_backward` computed on its way: detached outer losses (tasks,) and query logits
    (tasks, queries, ways).
    """

    losses: Tensor
    logits: Tensor


def meta_backward(
    learner: Solver, episodes: Episode, *, scale: float | None = None
) -> MetaBackward:
    """Add the gradient of the outer loss to `.grad`, a few tasks at a time -> `MetaBackward(losses,
    logits)`.

    The outer loss is the mean over queries, then over tasks; the gradient equals that of
    `loss.backward()` on `learner(episodes)`, but memory grows with the tasks in flight (one in a
    loop, one a thread, 32 vectorized) and never with the meta-batch. The gradients of tasks are
    added in the order of the tasks, so that results repeat.

    Arguments:
        episodes: a stack of tasks.
        scale: what each task's gradient is multiplied by; 1 / tasks by default. A process that
            holds a share of a meta-batch passes 1 / (tasks of all the processes).
    Raises ValueError naming a trained parameter that no outer loss depends on.

    Example:
        >>> import torch, metalearn
        >>> from metalearn.models import MLP
        >>> from metalearn.tasks import Sinusoid
        >>> learner = metalearn.MAML(MLP(1, 1), lr=0.01, loss=torch.nn.functional.mse_loss)
        >>> tasks = Sinusoid(shots=10, queries=10, tasks=4)
        >>> metalearn.meta_backward(learner, metalearn.episodes.stack(tasks[i] for i in range(4))).losses.shape
        torch.Size([4])
    """
    learner.prepare(episodes)
    factor = 1 / len(episodes.query.targets) if scale is None else scale
    trained = learner.meta_parameters()
    if not trained:
        raise ValueError(
            "the learner has no parameter to train; set requires_grad_(True) on what the outer loop"
            " should move"
        )
    losses, logits = [], []
    reached: set[str] = set()
    with torch.enable_grad():
        for loss, prediction, gradients in _each(learner, episodes, _outer_gradient):
            losses.append(loss)
            logits.append(prediction)
            found = {
                name: gradient
                for name, gradient in zip(trained, gradients, strict=True)
                if gradient is not None
            }
            reached |= found.keys()
            _accumulate([trained[name] for name in found], list(found.values()), factor)
    unreached = [name.removeprefix("model.") for name in trained if name not in reached]
    if unreached:
        raise ValueError(
            f"the outer loss does not depend on {', '.join(unreached)}; remove what the forward"
            " pass does not use, or exclude it with requires_grad_(False)"
        )
    return MetaBackward(torch.cat(losses), torch.cat(logits))


def predictions(learner: Solver, episodes: Episode) -> Tensor:
    """Query logits (tasks, queries, ways) of a stack of tasks, differentiable where gradients are
    on.
    """
    return torch.cat(list(_each(learner, episodes, _predictions)))


def choose_execution(learner: Solver) -> str:
    """How this learner's tasks will be run: "loop", "threads", "vectorized", "graphs" or
    "compiled".

    By default: active random layers (dropout modules; a call of `F.dropout` inside a forward cannot
    be seen) in a loop, since only there each task draws as it would alone; on a CPU networks
    without convolutions vectorized (there a task is mostly overhead) and convolutions in threads
    (vectorized they become products of matrices, which are slower there); on other devices
    vectorized, and on CUDA in graphs where `without_graphs` has no reason against it. What is not
    known to vectorize runs in threads or the loop. Compiling takes seconds to minutes, so that it
    has to be asked for. Raises ValueError for a way that was asked for and would be wrong.
    """
    if learner.one_by_one:
        if learner.execution not in ("auto", "loop"):
            name = type(learner).__name__
            raise ValueError(
                f"{name} has its own adapt() or predict(), which know one task at a time; override"
                " solve(network, support) and answer(network, adapted, inputs) instead, or use"
                " execution='loop'"
            )
        return "loop"
    drawing = _random_part(learner)
    if drawing and learner.execution not in ("auto", "loop"):
        refuse_draws(learner.execution, drawing)
    if drawing:
        return "loop"
    device = RECORDED.get(learner.execution)
    if device and not _on(learner, device):
        what, where = (
            ("records CUDA graphs", "a CUDA device")
            if device == "cuda"
            else ("compiles for a CPU", "the CPU")
        )
        raise ValueError(
            f"execution={learner.execution!r} {what}, and this learner is not on {where}; use"
            f" learner.{device}(), or 'auto'"
        )
    if learner.execution != "auto":
        return learner.execution
    on_cpu = _on(learner, "cpu")
    if is_plain(learner.model) and _vectorizes(
        learner.model, _DENSE if on_cpu else (*_DENSE, *_CONVOLUTIONAL)
    ):
        return "graphs" if _on(learner, "cuda") and not without_graphs(learner) else "vectorized"
    return (
        "threads"
        if on_cpu and torch.get_num_threads() > 1 and not _tied_part(learner.model)
        else "loop"
    )


def without_graphs(learner: Solver) -> str:
    """Why vectorized tasks are not recorded as CUDA graphs unasked, in words; nothing where they
    are.

    A recording leaves out what Python does besides, so that only code of which it is known that it
    does nothing else is recorded.
    """
    hooked = [
        name or "the model" for name, module in learner.model.named_modules() if _has_hooks(module)
    ]
    if hooked:
        return f"{hooked[0]} has hooks, which a CUDA graph would not call"
    for what, thing in (
        ("learner", type(learner)),
        ("loss", learner.loss),
        ("update", getattr(learner, "update", None)),
    ):
        if thing is not None and not computes_only(thing):
            name = getattr(thing, "__name__", type(thing).__name__)
            return (
                f"the {what} {name} is not known to do nothing but compute; execution='graphs' says"
                " that it is so"
            )
    return ""


def computes_only(thing: Any) -> bool:
    """Whether a class, a function or a module of torch.nn declares that it does nothing but
    compute.

    The attribute `computes_only` says so. A subclass does not inherit it, since its code may do
    more.
    """
    if getattr(thing, "__module__", "").startswith("torch.nn."):
        return True
    return bool(getattr(thing, "__dict__", {}).get("computes_only", False))


def in_flight(learner: Solver, tasks: int) -> tuple[str, int]:
    """How so many of this learner's tasks will be run, and how many of them at once: memory grows
    with these alone.
    """
    way = choose_execution(learner)
    if way in VECTORIZED:
        return way, min(CHUNK, tasks)
    on_cpu = _on(learner, "cpu")
    threads = min(torch.get_num_threads(), tasks) if way == "threads" and on_cpu else 1
    return ("threads", threads) if threads > 1 else ("loop", 1)


def check_execution(way: str) -> str:
    """`way`, if there is such a way of running tasks; raises ValueError otherwise."""
    if way not in WAYS:
        raise ValueError(f"there is no execution {way!r}; choose one of {', '.join(WAYS)}")
    return way


_DENSE = (
    nn.Linear, nn.Identity, nn.Flatten, nn.ReLU, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.ELU, nn.Tanh, nn.Sigmoid, nn.Softplus,
    nn.LayerNorm, nn.BatchNorm1d, nn.modules.dropout._DropoutNd,
)  # fmt: skip
_CONVOLUTIONAL = (
    nn.Conv2d,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.BatchNorm2d,
    nn.GroupNorm,
    nn.InstanceNorm2d,
)


def _vectorizes(model: nn.Module, kinds: tuple[type, ...]) -> bool:
    """Whether it is known that vmap takes each of its modules: layers of these kinds, plain
    containers, and models of this package.
    """
    return all(
        isinstance(module, kinds)
        or type(module) in (nn.Sequential, nn.ModuleList)
        or (
            type(module).__module__.startswith("metalearn.")
            and next(module.children(), None) is not None
        )
        for module in model.modules()
    )


def _is_random(module: nn.Module) -> bool:
    drops = isinstance(module, nn.modules.dropout._DropoutNd | nn.RReLU) or type(
        module
    ).__name__ in ("StochasticDepth", "DropPath")
    inner = isinstance(module, nn.MultiheadAttention | nn.RNNBase) and module.dropout > 0
    return module.training and (
        inner or (drops and getattr(module, "p", getattr(module, "drop_prob", 1)) != 0)
    )


def _has_hooks(module: nn.Module) -> bool:
    return any(
        getattr(module, name)
        for name in (
            "_forward_hooks",
            "_forward_pre_hooks",
            "_backward_hooks",
            "_backward_pre_hooks",
        )
    )


def _random_part(learner: Solver) -> str:
    """What in the model draws random numbers, in words; nothing if nothing is known to."""
    for name, module in learner.model.named_modules():
        if _is_random(module):
            return f"{name} ({type(module).__name__})"
        for attribute, value in vars(module).items():
            if isinstance(value, _GENERATORS):
                return f"the generator {name + '.' if name else ''}{attribute}"
    return (
        "the model" if learner.known.drawing == _modes_of(learner.model) else ""
    )  # as it did the last time


_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


def _tied_part(model: nn.Module) -> str:
    """A hook or a replaced method that may remember this one model, so that a copy of it would
    still call the original, in words.
    """
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if any(map(_remembers, value.values() if isinstance(value, dict) else [value])):
                return f"{attribute.strip('_')} of {name or 'the model'}"
    return ""


def _remembers(value: Any) -> bool:
    """Whether a function uses anything from outside itself that could be, or hold, a part of a
    model.
    """
    if isinstance(value, partial):
        return any(map(_remembers, (value.func, *value.args, *value.keywords.values())))
    if not isinstance(value, FunctionType):
        return False  # what else a module holds is copied with it, bound methods too
    outside = inspect.getclosurevars(value)
    used = (*outside.nonlocals.values(), *outside.globals.values())
    return not all(isinstance(thing, _HARMLESS) for thing in used)


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


def _on(learner: Solver, kind: str) -> bool:
    return all(parameter.device.type == kind for parameter in learner.parameters())


def _accumulate(parameters: list[nn.Parameter], gradients: list[Tensor], factor: float) -> None:
    scaled = torch._foreach_mul(gradients, factor)
    for parameter, gradient in zip(parameters, scaled, strict=True):
        if parameter.grad is not None:
            parameter.grad.add_(gradient)
        elif gradient.stride() == parameter.stride():
            parameter.grad = gradient
        else:  # laid out as the parameter is, as by backward(): optimizers and clipping may view it
            parameter.grad = torch.empty_like(parameter, dtype=gradient.dtype).copy_(gradient)


def solve(learner: Solver, network: Functional, support: Examples) -> Adapted:
    """A support set -> what the learner learns from it, on this network."""
    return learner.adapt(support) if learner.one_by_one else learner.solve(network, support)


def answer(learner: Solver, network: Functional, adapted: Adapted, inputs: Inputs) -> Tensor:
    """Query inputs -> logits, on this network."""
    if learner.one_by_one:
        return learner.predict(adapted, inputs)
    return learner.answer(network, adapted, inputs)


def answered(learner: Solver, network: Functional, episode: Episode) -> Tensor:
    """The query logits of a task (or of a stack), on this network."""
    adapted = solve(learner, network, episode.support)
    return answer(learner, network, adapted, episode.query.inputs)


def _predictions(learner: Solver, network: Functional, episode: Episode) -> Tensor:
    logits = answered(learner, network, episode)
    return logits.unsqueeze(0) if network.tasks is None else logits


def _outer_gradient(learner: Solver, network: Functional, episode: Episode) -> OuterGradient:
    loss, logits, gradients = learner.outer_gradient(network, episode)
    if network.tasks is None:
        return OuterGradient(loss.unsqueeze(0), logits.unsqueeze(0), gradients)
    return OuterGradient(loss, logits, gradients)


def _each(learner: Solver, episodes: Episode, work: Work[Result]) -> Iterator[Result]:
    """The results of `work` on every task (or chunk of tasks), in the order of the tasks."""
    if learner.rates and torch.is_inference_mode_enabled():
        raise RuntimeError(
            "the inner loop takes gradients, which torch.inference_mode() rules out; evaluate under"
            " torch.no_grad()"
        )
    tasks, way = unstack(episodes), choose_execution(learner)
    if way in RECORDED and work is _predictions and torch.is_grad_enabled():
        way = "vectorized"  # a recording has no graph to differentiate
    if way in VECTORIZED:
        run = _recorded if way in RECORDED else _at_once
        yield from _in_chunks(learner, episodes, len(tasks), work, run)
    elif way == "threads":
        yield from in_threads(learner, tasks, partial(work, learner))
    else:
        yield from in_order(learner, tasks, partial(work, learner))


def _in_chunks(
    learner: Solver, episodes: Episode, tasks: int, work: Work[Result], run: Callable[..., Any]
) -> Iterator[Result]:
    for start in range(0, tasks, CHUNK):
        randomness = TaskRandomness(_device(learner))
        chunk = part_of(episodes, slice(start, start + CHUNK))
        network = learner.network.stacked(len(chunk.query.targets))
        try:
            result = run(learner, network, chunk, work)
        except DrawsRandomNumbers:
            refuse_draws(learner.execution, "the model")
        if randomness.changed():
            refuse_draws(learner.execution, "the model")
        yield result


def _at_once(learner: Solver, network: Functional, chunk: Episode, work: Work[Result]) -> Result:
    return work(learner, network, chunk)


def _recorded(learner: Solver, network: Functional, chunk: Episode, work: Work[Result]) -> Result:
    def run(*tensors: Tensor) -> Result:
        return work(learner, network, Episode(Examples(*tensors[:2]), Examples(*tensors[2:])))

    recorder = recording.compiled if learner.execution == "compiled" else recording.record
    tensors = (*chunk.support, *chunk.query)
    if not all(isinstance(tensor, Tensor) for tensor in tensors):
        raise ValueError(
            f"execution={learner.execution!r} takes inputs that are one tensor; use"
            " execution='vectorized' or 'loop'"
        )
    return recording.replayed(recorder, learner.model, (work, _decisive(learner)), run, *tensors)


def _decisive(learner: Solver) -> tuple[Any, ...]:
    """All that decides which operations a learner makes on given episodes, and on what memory."""
    model = learner.model
    casts = tuple(
        (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
        for device in RECORDED.values()
    )
    modes = torch.is_grad_enabled(), casts, *_precisions()
    own = tuple(
        (name, _plain(thing))
        for name, thing in vars(learner).items()
        if name != "known" and not name.startswith("_")
    )
    tensors = tuple(
        (name, _plain(tensor), tensor.requires_grad)
        for name, tensor in (*learner.named_parameters(), *model.named_buffers())
    )
    return type(learner), modes, own, tensors, tuple(module.training for module in model.modules())


def _plain(thing: Any) -> Any:
    if isinstance(thing, Tensor):
        return thing.data_ptr(), thing.shape, thing.stride(), thing.dtype
    if isinstance(thing, Mapping):
        return tuple((name, _plain(part)) for name, part in thing.items())
    return tuple(map(_plain, thing)) if isinstance(thing, list | tuple) else thing


def _precisions() -> tuple[Any, ...]:
    return (
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        torch.are_deterministic_algorithms_enabled(),
    )


def in_order(
    learner: Solver,
    items: Sequence[Item],
    work: Callable[[Functional, Item], Result],
    *,
    first: int = 0,
) -> Iterator[Result]:
    """The results of `work(network, item)` on items `first` and on, one by one, each with random
    numbers of its own.

    What a task draws is decided by the state of the global generator at the start and the number of
    the task (see `TaskRandomness`).
    """
    network = learner.network
    randomness = TaskRandomness(_device(learner))
    try:
        for number in range(first, len(items)):
            with randomness.task(number):
                result = work(network, items[number])
            yield result
        learner.known.drawing = _modes_of(learner.model) if randomness.drawn else None
    finally:
        randomness.finish()


def in_threads(
    learner: Solver, items: Sequence[Item], work: Callable[[Functional, Item], Result]
) -> Iterator[Result]:
    """The results of `work(network, item)` on every item, in order: one item a thread, each on a
    replica that shares every tensor.

    On a CPU a task is too small to be shared out over cores, so that a task a core is faster. The
    items are worked on one by one if there is one core, if the model is on another device, if it
    cannot be copied, or if it draws random numbers: threads share the generators, so that which
    thread draws first would decide the result.
    """
    threads = min(torch.get_num_threads() if _on(learner, "cpu") else 1, len(items))
    if learner.one_by_one:
        threads = 1
    drawing = _random_part(learner)
    if drawing and learner.execution == "threads":
        refuse_draws("threads", drawing)
    replicas = _replicas(learner, threads) if threads > 1 and not drawing else []
    if not replicas:
        yield from in_order(learner, items, work)
        return
    pool, modes = _pool(torch.get_num_threads()), _modes()
    # A call writes into the module while it runs, so that every task in flight needs a module of
    # its own.
    free: SimpleQueue[Functional] = SimpleQueue()
    for other in replicas:
        free.put(other)

    def run(item: Item) -> Result:
        other = free.get()
        try:
            with modes():
                return work(other, item)
        finally:
            free.put(other)

    randomness = TaskRandomness(_device(learner))
    waiting: deque[Future[Result]] = deque()
    coming = iter(items)
    finished = 0
    try:
        while finished < len(items):
            for item in islice(coming, threads + 1 - len(waiting)):
                waiting.append(pool.submit(run, item))
            result = waiting.popleft().result()
            if randomness.changed():
                break
            yield result
            finished += 1
    finally:
        for future in waiting:
            future.cancel()
        wait(waiting)  # a task that still ran could write into a buffer that the next call reads
    if finished < len(items):
        randomness.finish()
        if learner.execution == "threads":
            refuse_draws("threads", "the model")
        # The tasks that are finished drew nothing, so that they are as they would be in a loop.
        yield from in_order(learner, items, work, first=finished)


def refuse_draws(way: str, part: str) -> NoReturn:
    """Raise ValueError for tasks that run in this way although this part of the model draws random
    numbers.
    """
    raise ValueError(
        f"{part} draws random numbers, so that {way} tasks would not repeat what a loop gives; use"
        " execution='loop', or switch it off with model.eval()"
    )


def _modes_of(model: nn.Module) -> tuple[bool, ...]:
    return tuple(module.training for module in model.modules())


def _device(learner: Solver) -> torch.device:
    return next((parameter.device for parameter in learner.parameters()), torch.device("cpu"))


def _replicas(learner: Solver, count: int) -> list[Functional]:
    """So many copies of a learner's network; none if a copy would not be the same, with a warning
    if none can be made.
    """
    tied = _tied_part(learner.model)
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


def _modes() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Grad mode and autocast belong to a thread: hand the caller's on."""
    grad = torch.is_grad_enabled()
    cast = [
        (device, torch.get_autocast_dtype(device))
        for device in ("cpu", "cuda")
        if torch.is_autocast_enabled(device)
    ]

    @contextlib.contextmanager
    def same() -> Iterator[None]:
        with contextlib.ExitStack() as opened:
            opened.enter_context(torch.set_grad_enabled(grad))
            for device, dtype in cast:
                opened.enter_context(torch.autocast(device, dtype=dtype))
            yield

    return same


def _one_intra_op_thread() -> None:
    torch.get_num_threads()  # a thread that first asks later would take over the number of the whole process then
    torch.set_num_threads(1)


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that stay: the convolution library keeps its compiled kernels per thread."""
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, "metalearn-task", initializer=_one_intra_op_thread)
    barrier = Barrier(
        threads
    )  # so that every thread has started, and set its own number, before the number is put back
    for started in [pool.submit(barrier.wait) for _ in range(threads)]:
        started.result()
    torch.set_num_threads(before)
    return pool


if hasattr(os, "register_at_fork"):  # where processes fork, threads do not come along
    os.register_at_fork(after_in_child=_pool.cache_clear)
