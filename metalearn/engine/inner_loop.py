"""The inner loop: differentiable gradient steps on some of a network's parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.optim import Optimizer

from metalearn.network.module_call import Weights

from .attention import attention
from .derivatives import has_reentrant_checkpoint

Rates = Mapping[str, float | Tensor]
Closure = Callable[[Weights], Tensor]
Update = Callable[[Weights, Weights, Rates, Any], tuple[Weights, Any]]


def sgd(weights: Weights, gradients: Weights, rates: Rates, state: Any) -> tuple[Weights, Any]:
    """Take one step of gradient descent, `w - rate * gradient`.

    An update is any function of this form. It must not write into its arguments.

    Args:
        weights: the parameters that move, by name.
        gradients: the gradient of each of them.
        rates: the rate of each of them.
        state: None at the first step, then what the update returned at the step before.

    Returns:
        The new weights and the state, which gradient descent leaves unchanged.

    Example (gradients clipped value by value):
        >>> def clipped(weights, gradients, rates, state):
        ...     small = {name: gradient.clamp(-1, 1) for name, gradient in gradients.items()}
        ...     return sgd(weights, small, rates, state)
    """
    # w' = w - rate * dL/dw
    return {name: weight - rates[name] * gradients[name] for name, weight in weights.items()}, state


def momentum(
    weights: Weights, gradients: Weights, rates: Rates, state: Any, *, decay: float = 0.9
) -> tuple[Weights, Any]:
    """Take one step of gradient descent with momentum, as `torch.optim.SGD(momentum=decay)` does.

    `v <- decay * v + gradient`, `w <- w - rate * v`, with `v` the gradient at the first step.

    Args:
        weights: the parameters that move, by name.
        gradients: the gradient of each of them.
        rates: the rate of each of them.
        state: the velocities after the step before; None at the first step.
        decay: the share of the velocity that stays.

    Returns:
        The new weights and the velocities.
    """
    # v_1 = g_1, v_t = decay * v_{t-1} + g_t
    velocity = gradients
    if state is not None:
        velocity = {name: decay * state[name] + gradient for name, gradient in gradients.items()}
    moved, _ = sgd(weights, velocity, rates, None)
    return moved, velocity


def adam(
    weights: Weights,
    gradients: Weights,
    rates: Rates,
    state: Any,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> tuple[Weights, Any]:
    """Take one step of Adam, as `torch.optim.Adam` does.

    The step is differentiable. The derivative of the square root is taken to be zero at a gradient
    of exactly zero.

    Args:
        weights: the parameters that move, by name.
        gradients: the gradient of each of them.
        rates: the rate of each of them.
        state: the moments after the step before; None at the first step.
        betas: the decay of the first and of the second moment.
        eps: what is added to the root of the second moment.

    Returns:
        The new weights and the moments.

    Example:
        >>> w = {"w": torch.tensor(1.0)}
        >>> new, state = adam(w, {"w": torch.tensor(5.0)}, {"w": 0.1}, None)
        >>> round(new["w"].item(), 6)
        0.9
    """
    if state is None:
        zeros = {name: torch.zeros_like(gradient) for name, gradient in gradients.items()}
        zero = next(iter(gradients.values())).new_zeros(())
        state = zeros, zeros, zero, zero
    first, second, first_share, second_share = state
    # m <- beta_1 m + (1 - beta_1) g
    first = {
        name: betas[0] * first[name] + (1 - betas[0]) * gradient
        for name, gradient in gradients.items()
    }
    # v <- beta_2 v + (1 - beta_2) g^2
    second = {
        name: betas[1] * second[name] + (1 - betas[1]) * gradient.square()
        for name, gradient in gradients.items()
    }
    # 1 - beta^steps is the moment of gradients that are all 1. Kept as tensors, the shares can be
    # vectorized over tasks.
    first_share = betas[0] * first_share + (1 - betas[0])
    second_share = betas[1] * second_share + (1 - betas[1])
    directions = {}
    for name in weights:
        square = second[name] / second_share
        # The root has no derivative at 0, where it would turn second-order gradients into NaN.
        root = torch.where(square > 0, torch.where(square > 0, square, 1).sqrt(), 0)
        # m_hat / (sqrt(v_hat) + eps), with the moments over their shares m_hat and v_hat
        directions[name] = first[name] / first_share / (root + eps)
    moved, _ = sgd(weights, directions, rates, None)
    return moved, (first, second, first_share, second_share)


UPDATES: dict[str, Update] = {"sgd": sgd, "momentum": momentum, "adam": adam}

for _update in UPDATES.values():
    vars(_update)["computes_only"] = True  # so a CUDA graph may record them

# What to write for an optimizer of PyTorch.
_INSTEAD = {
    "SGD": "'sgd' or update='momentum'",
    "Adam": "'adam'",
    "AdamW": "'adam'",
}


def find_update(update: str | Update) -> Update:
    """Look up an inner update by name; a function is returned as it is.

    Args:
        update: "sgd", "momentum", "adam", or a function of the form of `sgd`.

    Returns:
        The function.

    Raises:
        ValueError: there is no update of that name.
        TypeError: it is an optimizer of PyTorch, which steps in place, or cannot be called.

    Example:
        >>> find_update("adam") is adam
        True
    """
    names = ", ".join(map(repr, UPDATES))
    if isinstance(update, str):
        if update not in UPDATES:
            raise ValueError(
                f"update={update!r} is not one of {names}; or pass a function such as"
                " metalearn.engine.inner_loop.sgd"
            )
        return UPDATES[update]
    kind = _class_of(update)
    if issubclass(kind, Optimizer):
        cure = f"write one of {names}, or a function such as metalearn.engine.inner_loop.sgd"
        if kind.__name__ in _INSTEAD:
            cure = f"write update={_INSTEAD[kind.__name__]}"
        raise TypeError(
            f"update=torch.optim.{kind.__name__} steps in place, which an outer loop cannot"
            f" differentiate; {cure}"
        )
    if not callable(update):
        raise TypeError(
            f"update={update!r} is a {type(update).__name__}; write one of {names}, or pass a"
            " function"
        )
    return update


def _class_of(update: Any) -> type:
    """The class that an update is, or is an instance of, seen through `functools.partial`."""
    called = getattr(update, "func", update)
    if isinstance(called, type):
        return called
    return type(called)


def describe_update(update: Update) -> str:
    """The name of an update, with the arguments of a `functools.partial`, for records.

    Example:
        >>> from functools import partial
        >>> describe_update(partial(momentum, decay=0.5))
        'momentum(decay=0.5)'
    """
    if isinstance(update, partial):
        named = [f"{name}={value!r}" for name, value in update.keywords.items()]
        arguments = ", ".join([*map(repr, update.args), *named])
        return f"{describe_update(update.func)}({arguments})"
    return getattr(update, "__name__", type(update).__name__)


def inner_step(
    closure: Closure,
    weights: Weights,
    rates: Rates,
    *,
    first_order: bool = False,
    update: Update = sgd,
    state: Any = None,
    backward: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> tuple[Weights, Any]:
    """Move the parameters that have a rate by one step against the gradient of the closure.

    `w' = w - rate * dL(w)/dw` for each `w` in `rates` (Finn et al. 2017, equation 1). Parameters
    without a rate are returned as they are.

    Args:
        closure: from weights to a loss: a scalar, or (tasks,) if every moving weight has a leading
            task dimension. Tasks are independent, so the gradient of the sum is the gradient of
            every task.
        weights: every parameter by name.
        rates: the rate of every parameter that moves: a number, or a tensor that broadcasts against
            it.
        first_order: detach the weights before the gradient is taken, so no second graph is built.
        update: the update, such as `sgd`.
        state: what the update returned at the step before; None at the first step.
        backward: makes a context manager in which the gradient is taken.

    Returns:
        The new weights and the state of the update.

    Raises:
        ValueError: the loss does not depend on a parameter that has a rate.

    Example:
        >>> w = {"w": torch.tensor(1.0, requires_grad=True)}
        >>> inner_step(lambda w: w["w"] ** 2, w, {"w": 0.25})[0]["w"].item()
        0.5
    """
    if not rates:
        return weights, state
    create_graph = torch.is_grad_enabled() and not first_order
    with torch.enable_grad(), attention.twice_differentiable(needed=create_graph):
        # With second order, `moving` stays connected to the weights of the step before.
        moving = {name: _leaf(weights[name], detach=not create_graph) for name in rates}
        loss = closure({**weights, **moving})
        with backward():
            gradients = _gradients(loss, moving, create_graph=create_graph)
    # First order treats the gradient as a constant: dw'/dw is the identity.
    before = moving
    if not create_graph:
        before = {name: weights[name] for name in rates}
    after, state = update(before, gradients, rates, state)
    return {**weights, **after}, state


def inner_loop(
    closure: Closure,
    weights: Weights,
    rates: Rates,
    steps: int,
    *,
    first_order: bool = False,
    update: Update = sgd,
    backward: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Weights:
    """Take several inner steps on the same closure (see `inner_step`).

    Args:
        closure: from weights to a loss. A policy gradient or a regression will do as well.
        weights: every parameter by name.
        rates: the rate of every parameter that moves.
        steps: how many steps.
        first_order: detach the weights before every gradient.
        update: the update, such as `sgd`.
        backward: makes a context manager in which each gradient is taken.

    Returns:
        The adapted weights, differentiable to the first ones.

    Raises:
        ValueError: the loss does not depend on a parameter that has a rate.

    Example:
        >>> w = {"w": torch.tensor(1.0, requires_grad=True)}
        >>> adapted = inner_loop(lambda w: w["w"] ** 2, w, {"w": 0.25}, steps=2)
        >>> torch.autograd.grad(adapted["w"], w["w"])[0].item()
        0.25
    """
    state = None
    for _ in range(steps):
        weights, state = inner_step(
            closure,
            weights,
            rates,
            first_order=first_order,
            update=update,
            state=state,
            backward=backward,
        )
    return weights


def task_by_task(update: Update) -> Update:
    """An update for vectorized tasks that sees one task at a time.

    A norm over its gradients is then the norm of that task.
    """
    if update in UPDATES.values():
        return update  # these look at one value at a time

    def stacked(
        weights: Weights, gradients: Weights, rates: Rates, state: Any
    ) -> tuple[Weights, Any]:
        stateless = []

        def for_one_task(weights: Weights, gradients: Weights, state: Any) -> Any:
            new, after = update(weights, gradients, rates, state)
            stateless.append(after is None)
            # vmap cannot return None beside tensors.
            return new if after is None else (new, after)

        if state is None:
            result = vmap(lambda w, g: for_one_task(w, g, None))(weights, gradients)
        else:
            result = vmap(for_one_task)(weights, gradients, state)
        return (result, None) if stateless[0] else result

    return stacked


def _leaf(weight: Tensor, *, detach: bool) -> Tensor:
    """A tensor to differentiate by; a frozen parameter moves, too, if it has a rate."""
    if detach or not weight.requires_grad:
        return weight.detach().requires_grad_()
    # A parameter itself never enters the loss. Any use of one is then known to bypass the adapted
    # weights.
    return weight.view_as(weight) if weight.is_leaf else weight


def _gradients(loss: Tensor, moving: Weights, *, create_graph: bool) -> Weights:
    if not loss.requires_grad:
        raise ValueError(
            f"the inner loss does not depend on any parameter that has a rate ({', '.join(moving)})"
        )
    # d(sum_t L_t)/dw_t = dL_t/dw_t: no task's loss depends on the weights of another.
    gradients = torch.autograd.grad(
        loss.sum(), list(moving.values()), create_graph=create_graph, allow_unused=True
    )
    named = dict(zip(moving, gradients, strict=True))
    unused = [name for name, gradient in named.items() if gradient is None]
    if unused and has_reentrant_checkpoint(loss):
        raise ValueError(
            f"{unused[0]} is used inside torch.utils.checkpoint in its reentrant form, which an"
            " inner loop cannot differentiate; pass use_reentrant=False there"
        )
    if unused:
        raise ValueError(
            f"the inner loss does not depend on {', '.join(unused)}; give a rate only to layers"
            " that the forward pass uses (lr={'<layer>': <rate>}), or remove what is unused. A"
            " model that keeps results of earlier calls may drop them after model.train()"
        )
    return named
