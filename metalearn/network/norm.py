"""Normalisation layers: which modules they are, and which statistics batch norm uses.

With running statistics, the support set of one task changes the output for the next task, and
evaluation mode normalises a task by other tasks' statistics. So a learner requires one of two
choices, `batch_statistics` or `frozen_statistics`, and every result records which.

Networks may have norms of their own. A norm is therefore recognised by its tensors: by the
statistics that it keeps, and by its output for a trial input.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from .layers import check_network

STATISTICS = ("running_mean", "running_var", "moving_mean", "moving_var")
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def batch_statistics(model: nn.Module) -> nn.Module:
    """Normalise by the statistics of the current batch, in training and in evaluation.

    Changes `model` in place and returns it. The MAML papers do this. It is transductive: the
    queries of a task are normalised together, so a prediction depends on the other queries in the
    batch. The running statistics are dropped.

    Args:
        model: any module.

    Returns:
        The same module.

    Raises:
        ValueError: a layer that is not one of torch's norms keeps statistics.

    Example:
        >>> model = batch_statistics(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)))
        >>> model[1].running_mean is None
        True
    """
    check_network(model)
    for name, module in model.named_modules():
        if keeps_statistics(module) and not isinstance(module, _NormBase):
            raise ValueError(
                f"{_described(name, module)} keeps statistics of its own, and only torch's norms"
                " can be switched to those of the batch. Replace it by nn.BatchNorm2d, or keep its"
                " statistics with metalearn.frozen_statistics(model)"
            )
    for module in model.modules():
        if isinstance(module, _NormBase) and module.track_running_stats:
            _thaw(module, training=model.training)
            module.track_running_stats = False
            module.running_mean = None
            module.running_var = None
            module.num_batches_tracked = None
        if isinstance(module, nn.SyncBatchNorm):
            _freeze(module)  # in training it would include the other ranks' batches: other tasks
    return model


def frozen_statistics(model: nn.Module) -> nn.Module:
    """Normalise by the running statistics as they are now, in training too.

    Changes `model` in place and returns it. For pretrained networks: nothing is transductive and
    nothing is updated; weight and bias stay trainable. A layer that keeps statistics stays in
    evaluation mode and uses its author's own `forward`, so the output in evaluation mode does not
    change. Modules inside such a layer still follow `train()` and `eval()`.

    Args:
        model: any module.

    Returns:
        The same module.

    Raises:
        ValueError: a layer has no running statistics to freeze, or cannot be changed.

    Example:
        >>> norm = frozen_statistics(nn.Sequential(nn.BatchNorm2d(4))).train()[0]
        >>> norm.training, norm.weight.requires_grad
        (False, True)
    """
    check_network(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise ValueError(
                f"{name or type(module).__name__} has no running statistics to freeze; use"
                " batch_statistics(model)"
            )
        if statistics_of(module) and not isinstance(module, FrozenStatistics):
            _check_freezable(name, module)
            _freeze(module)
    return model


class FrozenStatistics(nn.Module):
    """A base class added to a frozen norm: the module itself stays in evaluation mode.

    The class of the module is changed in place, so tensors, hooks and the names in state dicts do
    not change. Copies and pickles name the author's class, because the class made here cannot be
    imported.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "training":  # `train()` sets it
            super().__setattr__(name, value)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _rebuilt, (_author_class(self),), self.__getstate__()


def check_statistics(model: nn.Module) -> None:
    """Raise an error if a layer keeps running statistics.

    Args:
        model: any module.

    Raises:
        ValueError: a layer does; the message names it and the cure.
    """
    check_network(model)
    names = [
        _described(name, module)
        for name, module in model.named_modules()
        if keeps_statistics(module) and not isinstance(module, FrozenStatistics)
    ]
    if not names:
        return
    keeping = f"{names[0]} keeps"
    if len(names) > 1:
        keeping = f"{names[0]} and {len(names) - 1} more keep"
    raise ValueError(
        f"{keeping} running statistics, through which one task would change the results of the"
        " next. Choose: metalearn.batch_statistics(model) normalises by the current batch"
        " (transductive, as in the MAML papers); metalearn.frozen_statistics(model) keeps the"
        " present statistics (for pretrained networks)"
    )


def statistics(model: nn.Module) -> str:
    """The kinds of statistics that the model's norms use, for the record of a result.

    Example:
        >>> statistics(nn.Linear(2, 2))
        'no batch norm'
    """
    kinds = {_kind(module) for module in model.modules()} - {""}
    return " and ".join(sorted(kinds)) or "no batch norm"


def statistics_of(module: nn.Module) -> list[str]:
    """The names of a module's own buffers that hold running statistics.

    Example:
        >>> statistics_of(nn.BatchNorm2d(3))
        ['running_mean', 'running_var']
    """
    return [name for name, _ in module.named_buffers(recurse=False) if name in STATISTICS]


def keeps_statistics(module: nn.Module) -> bool:
    """Whether a forward pass in training mode would write into running statistics.

    torch's norms do. For any other module that holds statistics, a copy is run on inputs of a few
    shapes.

    Example:
        >>> from torchvision.ops import FrozenBatchNorm2d
        >>> keeps_statistics(nn.BatchNorm2d(3)), keeps_statistics(FrozenBatchNorm2d(3))
        (True, False)
    """
    names = statistics_of(module)
    if not names or isinstance(module, _NormBase):
        return bool(names)
    before = [getattr(module, name).detach().clone() for name in names]
    for trial, inputs in _trials(module, before[0].numel()):
        if _output(trial, inputs) is not None:
            after = [getattr(trial, name) for name in names]
            return not all(map(torch.equal, before, after))
    return True  # no input could be tried


def is_norm(module: nn.Module) -> bool:
    """Whether a module itself (not one inside it) normalises.

    torch's norms do, with the classes derived from them, and every module that holds running
    statistics. So does a module whose output stays bounded while its input grows, if all its
    parameters are vectors (a scale and a shift) that it holds itself.

    Example:
        >>> is_norm(nn.BatchNorm2d(3)), is_norm(nn.Sequential(nn.BatchNorm2d(3)))
        (True, False)
    """
    if isinstance(module, _NORMS) or statistics_of(module):
        return True
    parameters = list(module.parameters(recurse=False))
    if not parameters or len(parameters) != len(list(module.parameters())):
        return False
    if not all(map(_is_vector, parameters)):
        return False
    channels = max(parameter.numel() for parameter in parameters)
    for trial, inputs in _trials(module, channels):
        output = _output(trial, inputs)
        larger = _output(trial, 1e4 * inputs)
        if output is not None and larger is not None and output.shape == inputs.shape:
            return bool(larger.abs().max() < 100 * output.abs().max() + 100)
    return False


def _is_vector(parameter: nn.Parameter) -> bool:
    """Whether a parameter is (channels,), or for example (1, channels, 1, 1)."""
    if nn.parameter.is_lazy(parameter):
        return False
    return max(parameter.shape, default=1) == parameter.numel()


def norm_parameters(model: nn.Module) -> list[str]:
    """The names of the parameters of the model's norms.

    Example:
        >>> norm_parameters(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))
        ['1.weight', '1.bias']
    """
    norms = {name: is_norm(module) for name, module in model.named_modules(remove_duplicate=False)}
    return [name for name, _ in model.named_parameters() if norms[name.rpartition(".")[0]]]


def _kind(module: nn.Module) -> str:
    """The kind of statistics that a module uses; "" for one that is no batch norm."""
    if statistics_of(module):
        if isinstance(module, FrozenStatistics) or not keeps_statistics(module):
            return "frozen statistics"
        return "running statistics"
    if isinstance(module, _NormBase) and not isinstance(module, _InstanceNorm):
        return "batch statistics"
    return ""


def _described(name: str, module: nn.Module) -> str:
    return f"{name or 'the model itself'} ({type(module).__name__})"


def _check_freezable(name: str, module: nn.Module) -> None:
    """Raise ValueError, with the cure, if a module's statistics cannot be frozen."""
    if isinstance(module, torch.jit.ScriptModule):
        raise ValueError(
            f"{_described(name, module)} is compiled by torch.jit; call frozen_statistics(model)"
            " before torch.jit.script"
        )
    if any(nn.parameter.is_lazy(getattr(module, buffer)) for buffer in statistics_of(module)):
        raise ValueError(
            f"{_described(name, module)} has no statistics yet; call the model on one batch before"
            " frozen_statistics(model)"
        )


def _freeze(module: nn.Module) -> None:
    """Keep a module, and not the modules inside it, in evaluation mode."""
    inner_modes = [(inner, inner.training) for inner in module.modules() if inner is not module]
    module.eval()  # the author's own, which may update the statistics
    for inner, mode in inner_modes:
        inner.training = mode
    module.__class__ = _frozen_class(_author_class(module))  # type: ignore[arg-type, assignment]


def _thaw(module: nn.Module, *, training: bool) -> None:
    """Undo `_freeze`."""
    if isinstance(module, FrozenStatistics):
        module.__class__ = _author_class(module)  # type: ignore[assignment]
        module.training = training


@cache
def _frozen_class(kind: type[nn.Module]) -> type[nn.Module]:
    """The class of frozen modules of a class."""
    attributes = {"__module__": kind.__module__, "__doc__": kind.__doc__}
    return type(f"Frozen{kind.__name__}", (FrozenStatistics, kind), attributes)


def _author_class(module: nn.Module) -> type[nn.Module]:
    """The class that a module had before it was frozen."""
    kind = type(module)
    return kind.__bases__[1] if issubclass(kind, FrozenStatistics) else kind


def _rebuilt(kind: type[nn.Module]) -> nn.Module:
    """An empty frozen module, for copies and pickles."""
    frozen = _frozen_class(kind)  # type: ignore[arg-type]
    return frozen.__new__(frozen)


def _trials(module: nn.Module, channels: int) -> Iterator[tuple[nn.Module, Tensor]]:
    """Copies of a module in training mode, each with an input of another shape."""
    channels_second = [(4, channels, *[3] * dims) for dims in range(4)]  # as for batch norm
    channels_last = [(4, *[3] * dims, channels) for dims in (1, 2)]  # as for layer norm
    for shape in channels_second + channels_last:
        try:
            trial = copy.deepcopy(module).train()
            for inner in trial.modules():
                inner._forward_hooks.clear()
                inner._forward_pre_hooks.clear()
        except Exception:  # the module cannot be copied, so it cannot be tried
            return
        tensors = (*module.parameters(), *module.buffers())
        like = next(tensor for tensor in tensors if tensor.is_floating_point())
        # Values that equal no running statistic by coincidence.
        values = torch.linspace(-1, 2, math.prod(shape), dtype=torch.float64).square()
        yield trial, values.view(shape).to(like)


def _output(module: nn.Module, inputs: Tensor) -> Tensor | None:
    """A module's output; None if it fails or is not a tensor."""
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            output = module(inputs)
    except Exception:
        return None
    return output if isinstance(output, Tensor) else None
