"""The meta-gradient: the derivative of the mean query loss of a stack of tasks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from metalearn.episodes import Episode
from metalearn.network.functional import Functional

from .execution import in_order_of_size, run_tasks
from .memory import out_of_memory
from .solver import OuterGradient, Solver, check_unwrapped
from .unequal_tasks import joined


class MetaBackward(NamedTuple):
    """The losses and predictions behind a meta-gradient.

    Attributes:
        losses: the detached outer loss of every task (tasks,).
        logits: the detached query logits (tasks, queries, ways).
    """

    losses: Tensor
    logits: Tensor


def meta_backward(
    learner: Solver, episodes: Episode, *, scale: float | None = None
) -> MetaBackward:
    """Add the gradient of the outer loss to `.grad`, a few tasks at a time.

    The outer loss is the mean over queries, then over tasks:

        L(theta) = 1/T sum_t L_query,t(phi_t(theta))

    with phi_t the weights adapted to task t. The gradient equals that of `loss.backward()` on
    `learner(episodes)`, but memory grows with the tasks in flight (one in a loop, one a thread, 32
    vectorized) and never with the meta-batch. Task gradients are added in task order, so results
    repeat.

    Lightning Fabric, Accelerate and DistributedDataParallel wrap a learner as any module, and train
    it by `loss.backward()` on its call; the wrapper averages the gradients of the ranks. This
    function takes the learner itself, and no wrapper sees its gradients. On several ranks pass
    `scale`, and add them up with `metalearn.runtime.distributed.all_reduce_gradients`:

        meta_backward(learner, episodes, scale=1 / (tasks * ranks))
        all_reduce_gradients(learner.parameters())

    Learners that do not train the model's head (ProtoNet, NIL, R2D2, ProtoMAML, Baseline) leave it
    without a gradient: on several ranks those wrappers need `find_unused_parameters=True`, or a
    head with `requires_grad_(False)`.

    Args:
        learner: whose parameters get the gradient.
        episodes: a stack of tasks.
        scale: the factor of each task's gradient, 1 / tasks by default. A process that holds a
            share of a meta-batch passes 1 / (tasks of all the processes).

    Returns:
        The losses and query logits of the tasks.

    Raises:
        TypeError: the learner is a wrapper around one.
        ValueError: the learner has nothing to train, or no outer loss depends on a trained
            parameter, which is named.
        torch.OutOfMemoryError: a GPU's memory does not suffice; the ways out are named.

    Example:
        >>> import torch, metalearn
        >>> from metalearn.models import MLP
        >>> from metalearn.tasks import Sinusoid
        >>> learner = metalearn.MAML(MLP(1, 1), lr=0.01, loss=torch.nn.functional.mse_loss)
        >>> sinusoids = Sinusoid(shots=10, queries=10, tasks=4)
        >>> tasks = metalearn.episodes.stack(sinusoids[i] for i in range(4))
        >>> metalearn.meta_backward(learner, tasks).losses.shape
        torch.Size([4])
    """
    check_unwrapped(learner)
    learner.prepare(episodes)
    trained = learner.meta_parameters()
    if not trained:
        raise ValueError(
            "the learner has no parameter to train; set requires_grad_(True) on what the outer loop"
            " should move"
        )
    # L = factor * sum_t L_t
    factor = scale
    if factor is None:
        factor = 1 / len(episodes.query.targets)
    losses = []
    logits = []
    unreached = dict(trained)
    plan = in_order_of_size(learner, episodes)
    with torch.enable_grad(), _naming_the_ways_out(learner, len(episodes.query.targets)):
        for result in run_tasks(learner, plan.episodes, _outer_gradient):
            losses.append(result.loss)
            logits.append(result.logits)
            # A task may leave out a parameter that another one uses.
            gradients = {
                name: gradient
                for name, gradient in zip(trained, result.gradients, strict=True)
                if gradient is not None
            }
            for name in gradients:
                unreached.pop(name, None)
            # theta.grad += factor * dL_t/dtheta
            _accumulate([trained[name] for name in gradients], list(gradients.values()), factor)
    if unreached:
        names = ", ".join(name.removeprefix("model.") for name in unreached)
        raise ValueError(
            f"the outer loss does not depend on {names}; remove what the forward pass does not use,"
            " or exclude it with requires_grad_(False)"
        )
    return MetaBackward(plan.restored(torch.cat(losses)), plan.restored(joined(logits)))


@contextlib.contextmanager
def _naming_the_ways_out(learner: Solver, tasks: int) -> Iterator[None]:
    """Name what takes less memory if there is not enough."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise torch.OutOfMemoryError(out_of_memory(learner, error, tasks)) from error


def _outer_gradient(learner: Solver, network: Functional, episode: Episode) -> OuterGradient:
    loss, logits, gradients = learner.outer_gradient(network, episode)
    if network.tasks is None:
        # (1,) and (1, queries, ways)
        return OuterGradient(loss.unsqueeze(0), logits.unsqueeze(0), gradients)
    return OuterGradient(loss, logits, gradients)


def _accumulate(parameters: list[nn.Parameter], gradients: list[Tensor], factor: float) -> None:
    """Add `factor` times the gradients to `.grad`."""
    scaled = torch._foreach_mul(gradients, factor)
    for parameter, gradient in zip(parameters, scaled, strict=True):
        if parameter.grad is not None:
            parameter.grad.add_(gradient)
        elif gradient.stride() == parameter.stride():
            parameter.grad = gradient
        else:
            # With the parameter's strides, as backward() makes it: optimizers may view it.
            parameter.grad = torch.empty_like(parameter, dtype=gradient.dtype).copy_(gradient)
