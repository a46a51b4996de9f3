"""Whose statistics batch normalisation uses: the most asked question of few-shot learning, answered by name.

With running statistics the support set of one task changes what the next task sees, and evaluation mode normalises a task by other tasks'
statistics. So a learner asks for one of two clear choices, and every result records which.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


def batch_statistics(model: nn.Module) -> nn.Module:
    """Normalise by the statistics of the current batch, in training and in evaluation; changes `model` in place and returns it.

    This is what the MAML papers do. It is transductive: the queries of a task are normalised together, so that a prediction depends
    on the other queries in the batch. The running statistics are dropped.

    Example:
        >>> batch_statistics(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)))[1].running_mean is None
        True
    """
    for module in model.modules():
        if isinstance(module, _NormBase) and module.track_running_stats:
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return model


def frozen_statistics(model: nn.Module) -> nn.Module:
    """Normalise by the running statistics as they are now, in training too; changes `model` in place and returns it.

    For pretrained networks: nothing is transductive and nothing is updated; weight and bias stay trainable. Raises ValueError where a
    layer has no running statistics to freeze.

    Example:
        >>> frozen_statistics(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))).train()[1].training
        True
    """
    for name, module in list(model.named_modules()):
        if not isinstance(module, _NormBase) or isinstance(module, FrozenStatistics):
            continue
        if module.running_mean is None:
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                raise ValueError(f"{name or type(module).__name__} has no running statistics to freeze; use batch_statistics(model)")
            continue
        # The class is changed in place, so that tensors, hooks, and the names in state dicts all stay as they were.
        module.__class__ = FrozenStatistics
    return model


class FrozenStatistics(_NormBase):
    """Batch normalisation by statistics that no longer change, whatever mode the model is in."""

    def forward(self, inputs: Tensor) -> Tensor:
        """(examples, channels, ...) -> the same shape, normalised channel by channel."""
        return F.batch_norm(inputs, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps)

    def _check_input_dim(self, input: Tensor) -> None:
        pass


def check_statistics(model: nn.Module) -> None:
    """Raise ValueError, with the cure, where a layer keeps running statistics."""
    keeping = [
        f"{name or 'the model itself'} ({type(module).__name__})"
        for name, module in model.named_modules()
        if isinstance(module, _NormBase) and module.running_mean is not None and not isinstance(module, FrozenStatistics)
    ]
    if keeping:
        what = f"{keeping[0]} and {len(keeping) - 1} more keep" if len(keeping) > 1 else f"{keeping[0]} keeps"
        raise ValueError(
            f"{what} running statistics, which tasks would write into and read from each other. Choose: "
            f"metalearn.batch_statistics(model) normalises by the current batch (transductive, as in the MAML papers); "
            f"metalearn.frozen_statistics(model) keeps the statistics it has (for pretrained networks)"
        )


def statistics(model: nn.Module) -> str:
    """Which statistics the model's normalisation layers use, in words, for the record of a result.

    Example:
        >>> statistics(nn.Linear(2, 2))
        'no batch norm'
    """
    kinds = [
        "frozen statistics"
        if isinstance(module, FrozenStatistics)
        else ("batch statistics" if module.running_mean is None else "running statistics")
        for module in model.modules()
        if isinstance(module, _NormBase)
    ]
    return " and ".join(sorted(set(kinds))) or "no batch norm"
