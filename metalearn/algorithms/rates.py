"""Inner rates: a number for all layers, or one for each layer named."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from metalearn.network.layers import assign

Rate = float | Tensor
LR = Rate | Mapping[str, Rate]


class LayerRates(Mapping[str, Rate]):
    """Inner rates by path that cannot change one by one, so records tell what was done."""

    def __init__(self, rates: Mapping[str, Rate]) -> None:
        self.by_path = dict(rates)

    def __getitem__(self, path: str) -> Rate:
        return self.by_path[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_path)

    def __len__(self) -> int:
        return len(self.by_path)

    def __repr__(self) -> str:
        return repr(self.by_path)

    def __setitem__(self, path: str, rate: Rate) -> None:
        raise TypeError(
            "the rates of a learner are set together: learner.lr = {**learner.lr,"
            f" {path!r}: {rate!r}}}"
        )


def assign_rates(model: nn.Module, paths: Mapping[str, Rate]) -> dict[str, Rate]:
    """The rate of every parameter that has one, by name.

    Args:
        model: any module.
        paths: the rate by module or parameter path; "" is the whole model. The longest path wins.

    Returns:
        The rates; a parameter whose rate is the number 0 is left out.

    Raises:
        TypeError: a rate is neither a number nor a tensor.
        ValueError: a rate is negative or not finite, or a path is not in the model.

    Example:
        >>> from metalearn.models import MLP
        >>> assign_rates(MLP(1, 1, hidden=()), {"": 0.1, "head.bias": 0.5})
        {'head.weight': 0.1, 'head.bias': 0.5}
    """
    rates = assign(model, paths)
    for name, rate in rates.items():
        _check_rate(name, rate)
    # A tensor stays even if it holds zeros, because a learned rate may leave them.
    return {name: rate for name, rate in rates.items() if isinstance(rate, Tensor) or rate > 0}


def _check_rate(name: str, rate: Any) -> None:
    if isinstance(rate, Tensor):
        if not bool(rate.isfinite().all()):
            raise ValueError(
                f"the inner rate of {name} is a tensor with values that are not finite"
            )
    elif not isinstance(rate, float | int):
        raise TypeError(
            f"the inner rate of {name} is {rate!r}, a {type(rate).__name__}; give a number or a"
            " tensor"
        )
    elif not (math.isfinite(rate) and rate >= 0):
        raise ValueError(
            f"the inner rate of {name} is {rate}; it must be a finite number of 0 or more"
        )


def describe_rate(rate: Rate) -> Any:
    """A rate as a plain value for records: "learned", a number, or a tensor's size and range."""
    if isinstance(rate, nn.Parameter):
        return "learned"
    if isinstance(rate, Tensor) and rate.numel() > 1:
        shape = " x ".join(map(str, rate.shape))
        return f"{shape} rates of {float(rate.min()):g} to {float(rate.max()):g}"
    return float(rate)


def describe_rates(lr: LR) -> Any:
    """The inner rate of a learner as plain values for records."""
    if isinstance(lr, Mapping):
        return {path: describe_rate(rate) for path, rate in lr.items()}
    return describe_rate(lr)


def parameter_key(name: str) -> str:
    """A parameter's name as a key of a ParameterDict, which may hold no dots."""
    return name.replace(".", "/")
