"""The two small modules that learn2learn's models and examples are built with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._missing import nearest


class Lambda(torch.nn.Module):
    """A function as a module."""

    def __init__(self, lmb: Callable[..., Any]) -> None:
        super().__init__()
        self.lmb = lmb

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the function gives."""
        return self.lmb(*args, **kwargs)


class Flatten(torch.nn.Module):
    """A row an example: (examples, ...) -> (examples, features)."""

    def forward(self, x: Tensor) -> Tensor:
        """(examples, ...) -> (examples, features)."""
        return x.flatten(1)


__getattr__ = nearest(__name__, ["Flatten", "Lambda"])
