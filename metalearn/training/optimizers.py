"""The outer optimizer and its schedule, by name or as functions that build them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, ReduceLROnPlateau

from metalearn.algorithms.base import Learner

Choice = TypeVar("Choice")
OptimizerChoice = str | Optimizer | Callable[..., Optimizer] | None
ScheduleChoice = str | Callable[[Optimizer], LRScheduler] | None

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": partial(torch.optim.SGD, lr=1e-3),
    "momentum": partial(torch.optim.SGD, lr=1e-3, momentum=0.9),
    "adam": partial(torch.optim.Adam, lr=1e-3),
    "adamw": partial(torch.optim.AdamW, lr=1e-3),
}


def _linear(optimizer: Optimizer, steps: int) -> LRScheduler:
    return LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=steps)


def _cosine(optimizer: Optimizer, steps: int) -> LRScheduler:
    return CosineAnnealingLR(optimizer, T_max=steps)


SCHEDULES: dict[str, Callable[[Optimizer, int], LRScheduler]] = {
    "linear": _linear,
    "cosine": _cosine,
}


def build_optimizer(
    learner: Learner, optimizer: OptimizerChoice, schedule: ScheduleChoice, steps: int
) -> tuple[Optimizer, LRScheduler | None]:
    """Build the outer optimizer and its schedule.

    Args:
        learner: whose `meta_parameters` are trained.
        optimizer: a name, an optimizer, or a function from parameters to one; None for "adam".
        schedule: a name, or a function from the optimizer to a schedule; None for a fixed rate.
        steps: over which a named schedule goes to 0.

    Raises:
        ValueError: nothing can be trained, or not along one gradient at a rate.
        TypeError: an argument is of another type.
    """
    trained = list(learner.meta_parameters().values())
    if not trained:
        raise ValueError(
            "the learner has no parameter to train; set requires_grad_(True) on what the outer loop"
            " should move"
        )
    choice: Any = "adam" if optimizer is None else optimizer
    if isinstance(choice, str):
        choice = _by_name("optimizer", choice, OPTIMIZERS)
    if not isinstance(choice, Optimizer):
        choice = choice(trained)
    _check_optimizer(learner, choice)
    if schedule is not None:
        return choice, _build_schedule(choice, schedule, steps)
    if not any(group["lr"] for group in choice.param_groups):
        raise ValueError("the optimizer's rate lr=0 trains nothing; give a rate above 0")
    return choice, None


def _check_optimizer(learner: Learner, optimizer: Any) -> None:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"optimizer= gives a {type(optimizer).__name__}; give a function that returns a"
            " torch.optim.Optimizer"
        )
    # LBFGS evaluates the loss several times a step.
    without_rate = any("lr" not in group for group in optimizer.param_groups)
    if isinstance(optimizer, torch.optim.LBFGS) or without_rate:
        raise ValueError(
            f"{type(optimizer).__name__} does not step at one rate along one gradient; use SGD,"
            " Adam or another of their kind"
        )
    parameters = {id(parameter) for parameter in learner.parameters()}
    for group in optimizer.param_groups:
        if any(id(parameter) not in parameters for parameter in group["params"]):
            raise ValueError(
                "the optimizer holds parameters that are not the learner's; build it over"
                " learner.parameters()"
            )


def _build_schedule(
    optimizer: Optimizer, schedule: str | Callable[[Optimizer], LRScheduler], steps: int
) -> LRScheduler:
    if isinstance(schedule, str):
        return _by_name("schedule", schedule, SCHEDULES)(optimizer, steps)
    if not callable(schedule):
        raise TypeError(
            f"schedule is a {type(schedule).__name__}; pass a name, or a function from the"
            " optimizer to its schedule"
        )
    try:
        scheduler = schedule(optimizer)
    except TypeError as error:
        if not isinstance(schedule, type):
            raise
        name = schedule.__name__
        raise TypeError(
            f"schedule={name} needs more than the optimizer ({error}); pass lambda optimizer:"
            f" {name}(optimizer, ...)"
        ) from error
    # In torch it is a schedule, but its step() needs a loss.
    if isinstance(scheduler, ReduceLROnPlateau):
        raise ValueError(
            "ReduceLROnPlateau waits for a validation loss, and schedules are stepped once a step;"
            " use MultiStepLR or CosineAnnealingLR"
        )
    if not isinstance(scheduler, LRScheduler):
        raise TypeError(
            f"schedule= gives a {type(scheduler).__name__}; give a function that returns a"
            " torch.optim.lr_scheduler"
        )
    return scheduler


def _by_name(setting: str, name: str, known: Mapping[str, Choice]) -> Choice:
    if name not in known:
        raise ValueError(
            f"{setting}={name!r} is not one of {', '.join(map(repr, known))}; or pass a function"
            " that builds one"
        )
    return known[name]
