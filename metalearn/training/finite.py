"""What is not finite after a training step, named with its cause and cure."""

from __future__ import annotations

import itertools
import math
from typing import NoReturn

from torch import Tensor

from metalearn.algorithms.base import Learner
from metalearn.engine.meta_gradient import meta_backward
from metalearn.engine.solver import device_of
from metalearn.evaluation import Tasks, load
from metalearn.runtime import distributed

from .precision import computing_in
from .state import TrainingState


def refuse_step(
    state: TrainingState, losses: Tensor, episodes: Tasks, tasks: list[int], precision: str | None
) -> NoReturn:
    """Raise FloatingPointError for a step whose losses or gradients are not finite.

    Args:
        state: before the optimizer's step.
        losses: of the tasks.
        episodes: the training tasks.
        tasks: the numbers of the step's tasks.
        precision: of the step.
    """
    # Weights that are not finite are the cause of all else.
    check_weights(state)
    broken = [task for task, loss in zip(tasks, losses, strict=True) if not loss.isfinite()]
    if broken:
        what = f"the loss of task {', '.join(map(str, broken))}"
    else:
        gradients = {
            name: parameter.grad
            for name, parameter in state.learner.meta_parameters().items()
            if parameter.grad is not None
        }
        names = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
        owner = ", ".join(names) or "all parameters together (its norm overflows)"
        culprits = _without_gradient(state.learner, episodes, tasks, precision) or tasks
        what = f"the gradient of {owner} over tasks {', '.join(map(str, culprits))}"
    raise FloatingPointError(
        f"step {state.step + 1}: {what} (seed {getattr(episodes, 'seed', None)}) is not finite; the"
        f" weights are as they were before this step. Last good checkpoint: {state.saved}. A lower"
        " inner or outer rate or clip_norm=10 keeps it finite, unless the data of the task is"
        " broken"
    )


def _without_gradient(
    learner: Learner, episodes: Tasks, tasks: list[int], precision: str | None
) -> list[int]:
    """The tasks whose own gradient is not finite; every rank looks at its share again."""
    # Only the sum of the tasks' gradients is known, so each task runs again alone.
    broken = []
    parameters = learner.meta_parameters().values()
    for task in tasks[distributed.rank() :: distributed.world_size()]:
        learner.zero_grad(set_to_none=True)
        with computing_in(precision, device_of(learner)):
            meta_backward(learner, load(episodes, [task], learner))
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if not all(gradient.isfinite().all() for gradient in gradients):
            broken.append(task)
    return sorted(itertools.chain.from_iterable(distributed.all_gather(broken)))


def check_weights(state: TrainingState) -> None:
    """Raise FloatingPointError naming the weights that an outer step made infinite or NaN."""
    broken = [
        name
        for name, parameter in state.learner.meta_parameters().items()
        if not parameter.isfinite().all()
    ]
    if broken:
        raise FloatingPointError(
            f"step {state.step}: the optimizer's step made {', '.join(broken)} not finite, although"
            f" the loss and the gradient were. Last good checkpoint: {state.saved}. Lower the outer"
            " rate, or check its other settings (such as eps)"
        )


def outer_rates(state: TrainingState) -> list[float]:
    """The outer rate of each group of parameters.

    Raises:
        ValueError: a rate is negative or not finite.
    """
    rates = [float(group["lr"]) for group in state.optimizer.param_groups]
    for rate in rates:
        if not 0 <= rate < math.inf:
            raise ValueError(
                f"step {state.step + 1}: the outer rate is {rate:g}; give an optimizer and a"
                " schedule whose rates are finite and not negative. Last good checkpoint:"
                f" {state.saved}"
            )
    return rates
