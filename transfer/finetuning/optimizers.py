"""Optimizers for `finetune(optimizer=...)`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from metalearn.runtime.checks import positive_number
from transfer.finetuning.training import OPTIMIZERS


@dataclass(frozen=True)
class clipped:
    """An optimizer that scales gradients down to a norm before each step.

    Args:
        optimizer: "adam", "adamw", "sgd", or a callable of (parameter groups, lr=).
        norm: the largest norm of all gradients together.

    Raises:
        ValueError: there is no such optimizer, or the norm is not above 0.

    Example:
        >>> clipped("adam", 1.0)
        clipped(optimizer='adam', norm=1.0)
    """

    optimizer: str | Callable[..., Optimizer] = "adam"
    norm: float = 1.0

    def __post_init__(self) -> None:
        positive_number("norm", self.norm)
        if isinstance(self.optimizer, str) and self.optimizer not in OPTIMIZERS:
            raise ValueError(
                f"optimizer={self.optimizer!r}; choose {', '.join(OPTIMIZERS)}, or pass a callable"
            )

    def __call__(self, groups: Any, lr: float) -> Optimizer:
        """The optimizer of some parameter groups."""
        make = OPTIMIZERS[self.optimizer] if isinstance(self.optimizer, str) else self.optimizer
        optimizer = make(groups, lr=lr)
        optimizer.register_step_pre_hook(self._clip)
        return optimizer

    def _clip(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        parameters: list[nn.Parameter] = []
        for group in optimizer.param_groups:
            parameters += group["params"]
        nn.utils.clip_grad_norm_(parameters, self.norm)
