"""Normalisation layers: which modules they are, and whose statistics batch norm uses.

With running statistics the support set of one task changes what the next task sees, and evaluation
mode normalises a task by other tasks' statistics. So a learner asks for one of two clear choices,
and every result records which.

Networks bring norms of their own, so a norm is known by its tensors: by the statistics that it
keeps, and by what it does to an input.
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

    Changes `model` in place and returns it. This is what the MAML papers do. It is transductive:
    the queries of a task are normalised together, so a prediction depends on the other queries in
    the batch. The running statistics are dropped.

    Args:
        model: Any module.

    Returns:
        nn.Module: The same module.

    Raises:
        ValueError: a layer that is not one of torch's norms keeps statistics.

    Example:
        >>> batch_statistics(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)))[1].running_mean is None
        True
    """
    check_network(model)
    keeping = [(name, module) for name, module in model.named_modules() if keeps_statistics(module)]
    for name, module in keeping:
        if not isinstance(module, _NormBase):
            raise ValueError(
                f"{_described(name, module)} keeps statistics of its own, and only torch's norms"
                " can be told to use the batch's. Replace it by nn.BatchNorm2d, or keep the"
                " statistics it has with metalearn.frozen_statistics(model)"
            )
    for module in model.modules():
        if isinstance(module, _NormBase) and module.track_running_stats:
            _thaw(module, model.training)
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
        if isinstance(module, nn.SyncBatchNorm):
            _freeze(module)  # in training it would use the other ranks' batches: other tasks
    return model


def frozen_statistics(model: nn.Module) -> nn.Module:
    """Normalise by the running statistics as they are now, in training too.

    Changes `model` in place and returns it. For pretrained networks: nothing is transductive and
    nothing is updated; weight and bias stay trainable. A layer that keeps statistics computes as in
    evaluation mode from now on, by its author's own `forward`, so the output in evaluation mode
    stays the same. Modules inside such a layer still follow `train()` and `eval()`.

    Args:
        model: Any module.

    Returns:
        nn.Module: The same module.

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
    """Added to the class of a frozen norm: the module itself is always in evaluation mode.

    The class is changed in place, so tensors, hooks and the names in state dicts stay as they were.
    Copies and pickles name the author's class, since the class made here cannot be imported.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "training":  # `train()` sets it here and in the modules inside
            super().__setattr__(name, value)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _rebuilt, (_author_class(self),), self.__getstate__()


def check_statistics(model: nn.Module) -> None:
    """Raise ValueError, with the cure, if a layer keeps running statistics.

    Args:
        model: Any module.

    Raises:
        ValueError: names the layers.
    """
    check_network(model)
    keeping = [
        _described(name, module)
        for name, module in model.named_modules()
        if keeps_statistics(module) and not isinstance(module, FrozenStatistics)
    ]
    if keeping:
        what = (
            f"{keeping[0]} and {len(keeping) - 1} more keep"
            if len(keeping) > 1
            else f"{keeping[0]} keeps"
        )
        raise ValueError(
            f"{what} running statistics, which tasks would write into and read from each other. "
            "Choose: metalearn.batch_statistics(model) normalises by the current batch "
            "(transductive, as in the MAML papers); metalearn.frozen_statistics(model) keeps the "
            "statistics it has (for pretrained networks)"
        )


def statistics(model: nn.Module) -> str:
    """Which statistics the model's norms use, in words, for the record of a result.

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

    Of torch's norms this is known. Of any other module that holds statistics, a copy is run on
    inputs of a few shapes.

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
            after = (getattr(trial, name) for name in names)
            return not all(map(torch.equal, before, after))
    return True  # nothing is known of it


def is_norm(module: nn.Module) -> bool:
    """Whether a module itself (not one inside it) normalises.

    So do torch's own norms and what is derived from them, whatever holds running statistics, and a
    module whose parameters are all its own and vectors, as scales and shifts are, and whose output
    stays bounded while its input grows.

    Example:
        >>> is_norm(nn.BatchNorm2d(3)), is_norm(nn.Sequential(nn.BatchNorm2d(3)))
        (True, False)
    """
    if isinstance(module, _NORMS) or statistics_of(module):
        return True
    own = list(module.parameters(recurse=False))
    if not own or len(own) != len(list(module.parameters())):
        return False
    # A scale and a shift, (channels,) or such as (1, channels, 1, 1)
    if any(nn.parameter.is_lazy(p) or max(p.shape, default=1) != p.numel() for p in own):
        return False
    for trial, inputs in _trials(module, max(parameter.numel() for parameter in own)):
        output, larger = _output(trial, inputs), _output(trial, 1e4 * inputs)
        if output is not None and larger is not None and output.shape == inputs.shape:
            return bool(larger.abs().max() < 100 * output.abs().max() + 100)
    return False


def norm_parameters(model: nn.Module) -> list[str]:
    """The names of the parameters that the model's norms hold themselves.

    Example:
        >>> norm_parameters(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))
        ['1.weight', '1.bias']
    """
    norms = {name: is_norm(module) for name, module in model.named_modules(remove_duplicate=False)}
    return [name for name, _ in model.named_parameters() if norms[name.rpartition(".")[0]]]


def _kind(module: nn.Module) -> str:
    if statistics_of(module):
        keeps = keeps_statistics(module) and not isinstance(module, FrozenStatistics)
        return "running statistics" if keeps else "frozen statistics"
    of_batch = isinstance(module, _NormBase) and not isinstance(module, _InstanceNorm)
    return "batch statistics" if of_batch else ""


def _described(name: str, module: nn.Module) -> str:
    return f"{name or 'the model itself'} ({type(module).__name__})"


def _check_freezable(name: str, module: nn.Module) -> None:
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
    modes = [(inside, inside.training) for inside in module.modules()][1:]
    module.eval()  # by the author's own, which may put statistics in order
    for inside, mode in modes:
        inside.training = mode
    module.__class__ = _frozen_class(_author_class(module))  # type: ignore[arg-type, assignment]


def _thaw(module: nn.Module, mode: bool) -> None:
    if isinstance(module, FrozenStatistics):
        module.__class__ = _author_class(module)  # type: ignore[assignment]
        module.training = mode


@cache
def _frozen_class(kind: type[nn.Module]) -> type[nn.Module]:
    about = {"__module__": kind.__module__, "__doc__": kind.__doc__}
    return type(f"Frozen{kind.__name__}", (FrozenStatistics, kind), about)


def _author_class(module: nn.Module) -> type[nn.Module]:
    kind = type(module)
    return kind.__bases__[1] if issubclass(kind, FrozenStatistics) else kind


def _rebuilt(kind: type[nn.Module]) -> nn.Module:
    frozen = _frozen_class(kind)  # type: ignore[arg-type]
    return frozen.__new__(frozen)


def _trials(module: nn.Module, channels: int) -> Iterator[tuple[nn.Module, Tensor]]:
    """Copies of a module in training mode, each with an input of another shape.

    The channels come second (as for batch norm) or last (as for layer norm).
    """
    second = [(4, channels, *[3] * dims) for dims in range(4)]
    last = [(4, *[3] * dims, channels) for dims in (1, 2)]
    for shape in second + last:
        try:
            trial = copy.deepcopy(module).train()
            for inside in trial.modules():
                inside._forward_hooks.clear()
                inside._forward_pre_hooks.clear()
        except Exception:  # what cannot be copied is not known
            return
        tensors = *module.parameters(), *module.buffers()
        like = next(tensor for tensor in tensors if tensor.is_floating_point())
        # Values that no statistic fits by chance
        values = torch.linspace(-1, 2, math.prod(shape), dtype=torch.float64).square()
        yield trial, values.view(shape).to(like)


def _output(module: nn.Module, inputs: Tensor) -> Tensor | None:
    """What a module gives for an input; None if it does not take it, or gives no tensor."""
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            output = module(inputs)
    except Exception:
        return None
    return output if isinstance(output, Tensor) else None
