"""The inner loop: differentiable gradient steps on some of a network's parameters, from nothing but
a closure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.func import vmap
from torch.optim import Optimizer

from metalearn.network.module_call import Weights

Rates = Mapping[str, float | Tensor]
Closure = Callable[[Weights], Tensor]
Update = Callable[[Weights, Weights, Rates, Any], tuple[Weights, Any]]


def sgd(weights: Weights, gradients: Weights, rates: Rates, state: Any) -> tuple[Weights, Any]:
    """One step of gradient descent, `w - rate * gradient` -> (new weights, the state unchanged).

    An update is any function of this form: it must not write into its arguments, `state` is None at
    the first step and whatever it returned at the next, and every dictionary has just the
    parameters that move.

    Example (gradients clipped value by value):
        >>> def clipped(weights, gradients, rates, state):
        ...     return sgd(weights, {name: gradient.clamp(-1, 1) for name, gradient in gradients.items()}, rates, state)
    """
    return {name: weight - rates[name] * gradients[name] for name, weight in weights.items()}, state


def momentum(
    weights: Weights, gradients: Weights, rates: Rates, state: Any, *, decay: float = 0.9
) -> tuple[Weights, Any]:
    """One step of gradient descent with momentum, as `torch.optim.SGD(momentum=decay)` takes it ->
    (new weights, velocities).

    `v <- decay * v + gradient`, `w <- w - rate * v`, with `v` the gradient at the first step.
    """
    velocity = (
        gradients
        if state is None
        else {name: decay * state[name] + gradient for name, gradient in gradients.items()}
    )
    return sgd(weights, velocity, rates, None)[0], velocity


def adam(
    weights: Weights,
    gradients: Weights,
    rates: Rates,
    state: Any,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> tuple[Weights, Any]:
    """One step of Adam, as `torch.optim.Adam` takes it -> (new weights, moments).

    It is differentiable: at a gradient of exactly zero the derivative of the root is taken to be
    zero.

    Example:
        >>> w = {"w": torch.tensor(1.0)}
        >>> new, state = adam(w, {"w": torch.tensor(5.0)}, {"w": 0.1}, None)
        >>> round(new["w"].item(), 6)
        0.9
    """
    if state is None:
        zeros = {name: torch.zeros_like(gradient) for name, gradient in gradients.items()}
        nothing = next(iter(gradients.values())).new_zeros(())
        state = zeros, zeros, nothing, nothing
    first, second, first_share, second_share = state
    first = {
        name: betas[0] * first[name] + (1 - betas[0]) * gradient
        for name, gradient in gradients.items()
    }
    second = {
        name: betas[1] * second[name] + (1 - betas[1]) * gradient.square()
        for name, gradient in gradients.items()
    }
    # 1 - beta^steps, which the moments of gradients of 1 would be: as tensors, so that an update
    # that calls this one can be vectorized.
    first_share = betas[0] * first_share + (1 - betas[0])
    second_share = betas[1] * second_share + (1 - betas[1])
    directions = {}
    for name in weights:
        square = second[name] / second_share
        # The root has no derivative at 0, where it would turn second order gradients into NaN.
        root = torch.where(square > 0, torch.where(square > 0, square, 1).sqrt(), 0)
        directions[name] = first[name] / first_share / (root + eps)
    return sgd(weights, directions, rates, None)[0], (first, second, first_share, second_share)


UPDATES: dict[str, Update] = {"sgd": sgd, "momentum": momentum, "adam": adam}

for _update in UPDATES.values():
    vars(_update)["computes_only"] = True  # so they may be recorded


def find_update(update: str | Update) -> Update:
    """The inner update of that name, or the function given.

    Raises:
        ValueError: there is none of that name.
        TypeError: what is given is an optimizer of PyTorch, which steps in place, or nothing that
            can be called.

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
    called = getattr(update, "func", update)  # what a functools.partial calls
    kind = called if isinstance(called, type) else type(called)
    if issubclass(kind, Optimizer):
        name = {"SGD": "'sgd' or update='momentum'", "Adam": "'adam'", "AdamW": "'adam'"}.get(
            kind.__name__
        )
        cure = (
            f"write update={name}"
            if name
            else f"write one of {names}, or a function such as metalearn.engine.inner_loop.sgd"
        )
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


def describe_update(update: Update) -> str:
    """The name of an update, with the arguments that a `functools.partial` gives it, for records.

    Example:
        >>> from functools import partial
        >>> describe_update(partial(momentum, decay=0.5))
        'momentum(decay=0.5)'
    """
    if isinstance(update, partial):
        arguments = [
            *map(repr, update.args),
            *(f"{name}={value!r}" for name, value in update.keywords.items()),
        ]
        return f"{describe_update(update.func)}({', '.join(arguments)})"
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
    """One inner step: the parameters that have a rate move against the gradient of the closure ->
    (weights, the update's state).

    `w' = w - rate * dL(w)/dw` for each `w` in `rates` (Finn et al. 2017, equation 1); the others
    are handed on as they are.

    Arguments:
        closure: from weights to a loss: a scalar, or one value a task (tasks,) where every moving
            weight has a leading task dimension. The tasks are then independent, so that the
            gradient of the sum is every task's own gradient.
        weights: every parameter by name.
        rates: the rate of every parameter that moves: a number, or a tensor that broadcasts against
            it.
        first_order: detach the weights *before* the gradient is taken, so that no second graph is
            built.
        backward: makes a context manager that the gradient is taken in.
    Raises ValueError naming a parameter with a rate that the loss does not depend on.

    Example:
        >>> w = {"w": torch.tensor(1.0, requires_grad=True)}
        >>> inner_step(lambda w: w["w"] ** 2, w, {"w": 0.25})[0]["w"].item()
        0.5
    """
    if not rates:
        return weights, state
    create_graph = torch.is_grad_enabled() and not first_order
    with torch.enable_grad(), attention.twice_differentiable(create_graph):
        moving = {name: _leaf(weights[name], detach=not create_graph) for name in rates}
        loss = closure({**weights, **moving})
        with backward():
            gradients = dict(zip(moving, _gradient(loss, moving, create_graph), strict=True))
    old = moving if create_graph else {name: weights[name] for name in rates}
    new, state = update(old, gradients, rates, state)
    return {**weights, **new}, state


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
    """`steps` inner steps on the same closure -> the adapted weights, differentiable to the first
    ones (see `inner_step`).

    Example (a policy gradient, a regression, anything that gives a loss will do as the closure):
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
    """An update for vectorized tasks that sees one task at a time, so that a norm over its
    gradients is that task's norm.
    """

    if update in UPDATES.values():
        return update  # these look at one value at a time

    def stacked(
        weights: Weights, gradients: Weights, rates: Rates, state: Any
    ) -> tuple[Weights, Any]:
        stateless = []

        def one(weights: Weights, gradients: Weights, state: Any) -> Any:
            new, after = update(weights, gradients, rates, state)
            stateless.append(after is None)
            return new if after is None else (new, after)

        first = state is None
        result = (
            vmap(lambda w, g: one(w, g, None))(weights, gradients)
            if first
            else vmap(one)(weights, gradients, state)
        )
        return (result, None) if stateless[0] else result

    return stacked


class _Attention:
    """Keeps attention to its one kernel that has a second derivative, while any thread takes an
    inner step that needs it.

    The choice of kernel is global to the process, so the first step in makes it and the last one
    out undoes it. (`sdpa_kernel` does the same for one thread, and refuses to be left in another.)
    """

    def __init__(self) -> None:
        self.lock, self.inside, self.before = Lock(), 0, (True, True, True)

    @contextmanager
    def twice_differentiable(self, needed: bool) -> Iterator[None]:
        if not needed:
            yield
            return
        kernels = torch.backends.cuda
        with self.lock:
            self.inside += 1
            if self.inside == 1:
                self.before = (
                    kernels.flash_sdp_enabled(),
                    kernels.mem_efficient_sdp_enabled(),
                    kernels.cudnn_sdp_enabled(),
                )
                self._enable(False, False, False)
        try:
            yield
        finally:
            with self.lock:
                self.inside -= 1
                if self.inside == 0:
                    self._enable(*self.before)

    @staticmethod
    def _enable(flash: bool, efficient: bool, cudnn: bool) -> None:
        torch.backends.cuda.enable_flash_sdp(flash)
        torch.backends.cuda.enable_mem_efficient_sdp(efficient)
        torch.backends.cuda.enable_cudnn_sdp(cudnn)


attention = _Attention()


def _leaf(weight: Tensor, *, detach: bool) -> Tensor:
    """A tensor to differentiate by; one with `requires_grad=False` moves in the inner loop if it
    has a rate.
    """
    if detach or not weight.requires_grad:
        return weight.detach().requires_grad_()
    # A parameter itself never enters the loss, so that any use of it is known to go past the
    # weights that are given.
    return weight.view_as(weight) if weight.is_leaf else weight


def _gradient(loss: Tensor, moving: Weights, create_graph: bool) -> tuple[Tensor, ...]:
    if not loss.requires_grad:
        raise ValueError(
            f"the inner loss does not depend on any parameter that has a rate ({', '.join(moving)})"
        )
    gradients = torch.autograd.grad(
        loss.sum(), list(moving.values()), create_graph=create_graph, allow_unused=True
    )
    unused = [name for name, gradient in zip(moving, gradients, strict=True) if gradient is None]
    if unused and _is_reentrant(loss):
        raise ValueError(
            f"{unused[0]} is used inside of torch.utils.checkpoint in its reentrant form, which an"
            " inner loop cannot differentiate; pass use_reentrant=False there"
        )
    if unused:
        raise ValueError(
            f"the inner loss does not depend on {', '.join(unused)}; give a rate only to layers"
            " that the forward pass uses (lr={'<layer>': <rate>}), or remove what is unused. A"
            " model that keeps results of earlier calls may forget them with model.train()"
        )
    return gradients


def nodes(tensor: Tensor) -> Iterator[Node]:
    """The nodes of the graph that autograd recorded for a tensor; none for a leaf.

    Args:
        tensor: of any shape.

    Returns:
        Iterator[Node]: each node once, from the tensor back to the leaves.

    Example:
        >>> w = torch.ones(2, requires_grad=True)
        >>> [node.name() for node in nodes((2 * w).sum())]
        ['SumBackward0', 'MulBackward0', 'torch::autograd::AccumulateGrad']
    """
    waiting, seen = [tensor.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        waiting += [following for following, _ in node.next_functions]


def _is_reentrant(loss: Tensor) -> bool:
    """Whether the graph of the loss has a checkpoint that hides its parameters from
    `torch.autograd.grad`.
    """
    return any(node.name() == "CheckpointFunctionBackward" for node in nodes(loss))
