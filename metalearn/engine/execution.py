"""How tasks run: in a loop, in threads, vectorized, or vectorized and recorded.

Tasks are independent, so nothing outside this file knows how they run, and every way gives the same
numbers. All of them take gradients with autograd *outside* of `torch.vmap`: the stacked inner step
differentiates the sum of the tasks' losses by weights that carry a task dimension, and vmap is
applied to forward passes alone. Autograd then records the batched operations themselves, so second
derivatives through batch, layer and instance norm with task-adapted weights are correct. A
`backward()` or another `grad` through `vmap(grad(...))` gives silently wrong ones
(pytorch/functorch#534).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from metalearn.episodes import Episode, Examples, is_padded, part_of, unstack
from metalearn.network.functional import DrawsRandomNumbers, Functional
from metalearn.network.module_call import is_plain

from . import recording
from .labels import class_count, labels_on_cpu
from .randomness import TaskRandomness, random_part, refuse_draws
from .solver import OuterGradient, Solver, device_of, is_on, query_logits
from .threads import in_order, in_threads, thread_count, tied_part
from .unequal_tasks import Ordered, by_size, groups, joined, takes_padding, trimmed

WAYS = ("auto", "loop", "threads", "vectorized", "graphs", "compiled")
# Vectorized tasks whose operations are recorded, and on what kind of device.
RECORDED = {"graphs": "cuda", "compiled": "cpu"}
VECTORIZED = ("vectorized", *RECORDED)
CHUNK = 32  # tasks that are vectorized at once

Result = TypeVar("Result", Tensor, OuterGradient)
Work: TypeAlias = Callable[[Solver, Functional, Episode], Result]

# Layers that vmap takes, and that are faster vectorized on a CPU, too.
_DENSE = (
    nn.Linear,
    nn.Identity,
    nn.Flatten,
    nn.ReLU,
    nn.LeakyReLU,
    nn.GELU,
    nn.SiLU,
    nn.ELU,
    nn.Tanh,
    nn.Sigmoid,
    nn.Softplus,
    nn.LayerNorm,
    nn.BatchNorm1d,
    nn.modules.dropout._DropoutNd,
)
# Layers that vmap takes, and that are slower vectorized on a CPU.
_CONVOLUTIONAL = (
    nn.Conv2d,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.BatchNorm2d,
    nn.GroupNorm,
    nn.InstanceNorm2d,
)


def check_execution(way: str) -> str:
    """Return `way` if tasks can run in it.

    Raises:
        ValueError: there is no such way.
    """
    if way not in WAYS:
        raise ValueError(f"there is no execution {way!r}; choose one of {', '.join(WAYS)}")
    return way


def choose_execution(learner: Solver) -> str:
    """Choose how this learner's tasks run.

    By default:

    - With active random layers, in a loop, because only there each task draws as it would alone.
      A call of `F.dropout` in a forward pass cannot be seen.
    - On a CPU, networks without convolutions are vectorized (a task is mostly overhead), and
      convolutions run in threads (vectorized they are slower).
    - On other devices vectorized, and on CUDA in graphs if `without_graphs` has no reason not to.
    - A network that is not known to vectorize runs in threads or in a loop.

    Compiling takes seconds to minutes, so it is never chosen by default.

    Args:
        learner: its `execution` is the requested way, or "auto".

    Returns:
        "loop", "threads", "vectorized", "graphs" or "compiled".

    Raises:
        ValueError: a way was requested that would be wrong.
    """
    requested = learner.execution
    if learner.one_by_one:
        _check_one_by_one(learner)
        return "loop"
    # Draws in several tasks at once would not be those of a loop.
    drawing = random_part(learner)
    if drawing and requested not in ("auto", "loop"):
        refuse_draws(requested, drawing)
    if drawing:
        return "loop"
    if requested in RECORDED:
        _check_device(learner)
    if requested != "auto":
        return requested
    return _fastest(learner)


def _fastest(learner: Solver) -> str:
    """The fastest way that is known to be right for this model and device."""
    on_cpu = is_on(learner, "cpu")
    kinds = _DENSE if on_cpu else (*_DENSE, *_CONVOLUTIONAL)
    # Plain: made of known modules without hooks.
    if is_plain(learner.model) and _vectorizes(learner.model, kinds):
        if is_on(learner, "cuda") and not without_graphs(learner):
            return "graphs"
        return "vectorized"
    if on_cpu and torch.get_num_threads() > 1 and not tied_part(learner.model):
        return "threads"
    return "loop"


def _check_one_by_one(learner: Solver) -> None:
    """Raise ValueError if several tasks at once were requested of methods that know one task."""
    if learner.execution in ("auto", "loop"):
        return
    raise ValueError(
        f"{type(learner).__name__} has its own adapt() or predict(), which know one task at a time;"
        " override solve(network, support) and answer(network, adapted, inputs) instead, or use"
        " execution='loop'"
    )


def _check_device(learner: Solver) -> None:
    """Raise ValueError if the learner is not on the device that its recordings need."""
    device = RECORDED[learner.execution]
    if is_on(learner, device):
        return
    does = "records CUDA graphs, and this learner is not on a CUDA device"
    if device == "cpu":
        does = "compiles for a CPU, and this learner is not on the CPU"
    raise ValueError(
        f"execution={learner.execution!r} {does}; use learner.{device}(), or execution='auto'"
    )


def without_graphs(learner: Solver) -> str:
    """Why vectorized tasks are not recorded as CUDA graphs by default.

    A CUDA graph replays operations of the GPU and nothing else that Python does. So only code that
    is known to do nothing else is recorded.

    Args:
        learner: a learner on a CUDA device.

    Returns:
        The reason for a message; "" if they are recorded.
    """
    for name, module in learner.model.named_modules():
        if _has_hooks(module):
            return f"{name or 'the model'} has hooks, which a CUDA graph would not call"
    parts = {
        "learner": type(learner),
        "loss": learner.loss,
        "update": getattr(learner, "update", None),
    }
    for role, part in parts.items():
        if part is not None and not computes_only(part):
            name = getattr(part, "__name__", type(part).__name__)
            return (
                f"the {role} {name} may have side effects, which a CUDA graph would not replay;"
                " pass execution='graphs' to confirm that it has none"
            )
    return ""


def computes_only(thing: Any) -> bool:
    """Whether a class, a function or a module of torch.nn is known to have no side effects.

    Its attribute `computes_only` declares it. A subclass does not inherit it, because its code may
    do more.
    """
    if getattr(thing, "__module__", "").startswith("torch.nn."):
        return True
    return bool(getattr(thing, "__dict__", {}).get("computes_only", False))


def in_flight(learner: Solver, tasks: int) -> tuple[str, int]:
    """How so many tasks run, and how many of them at once; memory grows with the latter alone."""
    way = choose_execution(learner)
    if way in VECTORIZED:
        return way, min(CHUNK, tasks)
    if way == "threads":
        threads = thread_count(learner, tasks)
        if threads > 1:
            return "threads", threads
    return "loop", 1


def _vectorizes(model: nn.Module, kinds: tuple[type, ...]) -> bool:
    """Whether vmap is known to take every module of a model."""
    return all(_module_vectorizes(module, kinds) for module in model.modules())


def _module_vectorizes(module: nn.Module, kinds: tuple[type, ...]) -> bool:
    """Whether a module is a layer of these kinds, a plain container, or a model of this package."""
    if isinstance(module, kinds) or type(module) in (nn.Sequential, nn.ModuleList):
        return True
    # The forward pass of a container may do anything, unless this package wrote it.
    is_ours = type(module).__module__.startswith("metalearn.")
    return is_ours and next(module.children(), None) is not None


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def predictions(learner: Solver, episodes: Episode) -> Tensor:
    """Query logits (tasks, queries, ways) of a stack, differentiable if gradients are on.

    In a padded stack, tasks with fewer ways have the logit minus infinity for the others, and
    padded queries have logits without a meaning.
    """
    plan = in_order_of_size(learner, episodes)
    logits = joined(list(run_tasks(learner, plan.episodes, _predictions)))
    return plan.restored(logits)


def _predictions(learner: Solver, network: Functional, episode: Episode) -> Tensor:
    logits = query_logits(learner, network, episode)
    if network.tasks is None:
        return logits.unsqueeze(0)  # (1, queries, ways)
    return logits


def in_order_of_size(learner: Solver, episodes: Episode) -> Ordered:
    """The order in which a stack runs: its own, unless padded tasks are vectorized in groups."""
    if choose_execution(learner) not in VECTORIZED or not is_padded(episodes):
        return Ordered(episodes)
    if not takes_padding(learner):
        return Ordered(episodes)
    order = by_size(episodes)
    return Ordered(part_of(episodes, order.to(episodes.query.targets.device)), order)


def run_tasks(learner: Solver, episodes: Episode, work: Work[Result]) -> Iterator[Result]:
    """Run a stack of tasks in the way that suits the learner.

    Args:
        learner: prepared for the stack.
        episodes: a stack of tasks.
        work: from the learner, a network and a task (or a chunk of tasks) to a result.

    Yields:
        The results, in the order of the tasks.

    Raises:
        RuntimeError: there is an inner loop, and torch.inference_mode() is on.
    """
    if learner.rates and torch.is_inference_mode_enabled():
        raise RuntimeError(
            "the inner loop takes gradients, which torch.inference_mode() rules out; evaluate under"
            " torch.no_grad()"
        )
    way = choose_execution(learner)
    if way in RECORDED and work is _predictions and torch.is_grad_enabled():
        way = "vectorized"  # a recording has no graph to differentiate
    chunks = _chunks
    if way in VECTORIZED and is_padded(episodes):
        # A recording is of one size, and padded stacks are of many.
        way = "vectorized" if takes_padding(learner) else "loop"
        chunks = _chunks_of_like_size
    if way in RECORDED:
        yield from _in_chunks(learner, chunks(learner, episodes), work, _recorded)
    elif way == "vectorized":
        yield from _in_chunks(learner, chunks(learner, episodes), work, _at_once)
    elif way == "threads":
        yield from in_threads(learner, unstack(episodes), partial(work, learner))
    else:
        yield from in_order(learner, unstack(episodes), partial(work, learner))


def _in_chunks(
    learner: Solver, chunks: Iterator[Episode], work: Work[Result], run: Callable[..., Any]
) -> Iterator[Result]:
    for chunk in chunks:
        randomness = TaskRandomness(device_of(learner))
        network = learner.network.stacked(len(chunk.query.targets))
        try:
            result = run(learner, network, chunk, work)
        except DrawsRandomNumbers:
            refuse_draws(learner.execution, "the model")
        # Draws of numpy and Python are not seen by vmap.
        if randomness.changed():
            refuse_draws(learner.execution, "the model")
        yield result


def _chunks(learner: Solver, episodes: Episode) -> Iterator[Episode]:
    """The parts of a stack that are vectorized at once: memory grows with them."""
    for start in range(0, len(episodes.query.targets), CHUNK):
        yield part_of(episodes, slice(start, start + CHUNK))


def _chunks_of_like_size(learner: Solver, episodes: Episode) -> Iterator[Episode]:
    """The parts of a padded stack, sorted by size, that are vectorized at once."""
    for group in groups(learner, episodes, CHUNK):
        yield trimmed(part_of(episodes, group))


def _at_once(learner: Solver, network: Functional, chunk: Episode, work: Work[Result]) -> Result:
    return work(learner, network, chunk)


def _recorded(learner: Solver, network: Functional, chunk: Episode, work: Work[Result]) -> Result:
    """Run a chunk in Python at first, record it the second time, and replay it from then on."""
    tensors = (*chunk.support, *chunk.query)
    if not all(isinstance(tensor, Tensor) for tensor in tensors):
        raise ValueError(
            f"execution={learner.execution!r} takes inputs that are one tensor; use"
            " execution='vectorized' or 'loop'"
        )
    # A recording reads no values: its labels are checked here, and its classes are part of the key.
    support = labels_on_cpu(chunk.support.targets)
    query = None if work is _predictions else labels_on_cpu(chunk.query.targets)
    classes = class_count(support)
    shapes = tuple((tensor.shape, tensor.dtype) for tensor in tensors)
    key = (work, classes, shapes, _decisive(learner))
    known = recording.find(learner.model, key)
    if known is None:
        # Python runs, and checks the labels as it meets them. It also initialises what a recording
        # may not: handles of libraries, and choices among kernels.
        result = work(learner, network, chunk)
        logits = result if isinstance(result, Tensor) else result.logits
        recording.keep(learner.model, key, recording.Recording(logits.shape))
        return result
    learner.check_targets(network, support, query, known.logits)
    if known.replay is None:
        checked = replace(network, classes=classes)

        def run(*tensors: Tensor) -> Result:
            episode = Episode(Examples(*tensors[:2]), Examples(*tensors[2:]))
            return work(learner, checked, episode)

        recorder = recording.compiled if learner.execution == "compiled" else recording.record
        known.replay = recorder(run, *tensors)
    return known.replay(*tensors)


def _decisive(learner: Solver) -> tuple[Any, ...]:
    """All that decides which operations a learner makes on given tasks, and on what memory."""
    # Modes choose among kernels. A recording keeps those of the time when it was made.
    casts = tuple(
        (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
        for device in RECORDED.values()
    )
    modes = (
        torch.is_grad_enabled(),
        casts,
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        torch.are_deterministic_algorithms_enabled(),
    )
    settings = tuple(
        (name, _plain(setting))
        for name, setting in vars(learner).items()
        if name != "known" and not name.startswith("_")
    )
    # A recording reads parameters and buffers where they were. Their values may change.
    tensors = tuple(
        (name, _plain(tensor), tensor.requires_grad)
        for name, tensor in (*learner.named_parameters(), *learner.model.named_buffers())
    )
    training = tuple(module.training for module in learner.model.modules())
    return type(learner), modes, settings, tensors, training


def _plain(setting: Any) -> Any:
    """A setting as a value that can be compared: tensors by their memory."""
    if isinstance(setting, Tensor):
        return setting.data_ptr(), setting.shape, setting.stride(), setting.dtype
    if isinstance(setting, Mapping):
        return tuple((name, _plain(part)) for name, part in setting.items())
    if isinstance(setting, list | tuple):
        return tuple(map(_plain, setting))
    return setting
