"""MAML, first-order MAML and ANIL as the other libraries' documentation writes them.

The network is of plain modules. Each loop is a generator over tasks: it adapts to one, yields the
adapted function from inputs to logits, and continues with the next after the caller has used it.
Nothing of this project is imported here (except `compat`, which has learn2learn's names), so a
peer's fresh process holds the peer alone.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

Predict = Callable[[Tensor], Tensor]
Loop = Callable[["Plain", "Recipe", Iterable[Any]], Iterator[tuple[Any, Predict]]]


class Plain(nn.Module):
    """A body and a linear head of torch's modules.

    It is the function of `metalearn.models`, with parameters in the same order.
    """

    def __init__(self, features: nn.Sequential, head: nn.Linear) -> None:
        super().__init__()
        self.features = features
        self.head = head

    def forward(self, inputs: Tensor) -> Tensor:
        """(examples, ...) -> (examples, outputs)."""
        return self.head(self.features(inputs))

    @classmethod
    def conv4(cls, ways: int, channels: int = 1, hidden: int = 64, size: int = 28) -> Plain:
        """Four times convolution, norm of the current batch, ReLU, max-pool, as in the papers."""
        modules: list[nn.Module] = []
        for inputs in (channels, hidden, hidden, hidden):
            norm = nn.BatchNorm2d(hidden, track_running_stats=False)
            modules += [nn.Conv2d(inputs, hidden, 3, padding=1), norm, nn.ReLU(), nn.MaxPool2d(2)]
        head = nn.Linear(hidden * (size // 16) ** 2, ways)
        return cls(nn.Sequential(*modules, nn.Flatten()), head)

    @classmethod
    def mlp(cls) -> Plain:
        """MAML's sinusoid network."""
        body = nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU())
        return cls(body, nn.Linear(40, 1))


@dataclass(frozen=True)
class Recipe:
    """What is done with a task.

    Args:
        lr: the inner rate.
        steps: inner steps.
        loss: of logits and targets.
        head_only: whether the head alone moves (ANIL), or all weights.
        first_order: whether second derivatives are left out.
        test: whether the adapted network only predicts: no second derivatives, and no graph of a
            body that does not move.
    """

    lr: float
    steps: int
    loss: Callable[[Tensor, Tensor], Tensor]
    head_only: bool = False
    first_order: bool = False
    test: bool = False

    def parts(self, net: Plain) -> tuple[nn.Module, nn.Module]:
        """What stays and what moves in the inner loop."""
        if self.head_only:
            return net.features, net.head
        return nn.Identity(), net

    def encoded(self, body: nn.Module, inputs: Tensor) -> Tensor:
        """The support set as the moving part sees it."""
        with torch.set_grad_enabled(not self.test):
            return body(inputs)

    @property
    def second_order(self) -> bool:
        """Whether second derivatives are taken."""
        return not (self.first_order or self.test)


def learn2learn(net: Plain, how: Recipe, tasks: Iterable[Any]) -> Iterator[tuple[Any, Predict]]:
    """`clone` and `adapt`, as in its README; ANIL is MAML on the head, as in its example.

    Its ANIL example sends support and query through the body in one batch, and so normalises them
    together. Here they go one after the other, as in MAML and in the other libraries.
    """
    yield from _clones("learn2learn", net, how, tasks)


def compat(net: Plain, how: Recipe, tasks: Iterable[Any]) -> Iterator[tuple[Any, Predict]]:
    """learn2learn's script after the change of its import."""
    yield from _clones("metalearn.compat.learn2learn", net, how, tasks)


def _clones(
    library: str, net: Plain, how: Recipe, tasks: Iterable[Any]
) -> Iterator[tuple[Any, Predict]]:
    body, moving = how.parts(net)
    algorithms = importlib.import_module(library).algorithms
    maml = algorithms.MAML(moving, lr=how.lr, first_order=not how.second_order)
    for task in tasks:
        support = how.encoded(body, task.support.inputs)
        learner = maml.clone()
        for _ in range(how.steps):
            learner.adapt(how.loss(learner(support), task.support.targets))
        yield task, lambda inputs, learner=learner: learner(body(inputs))  # type: ignore[misc]


def higher(net: Plain, how: Recipe, tasks: Iterable[Any]) -> Iterator[tuple[Any, Predict]]:
    """`innerloop_ctx` with an SGD of torch, as in its MAML example.

    Without higher gradients it detaches the adapted weights from the initial ones, so a first-order
    gradient is carried over by hand.
    """
    import higher as library

    body, moving = how.parts(net)
    inner = torch.optim.SGD(moving.parameters(), lr=how.lr)
    for task in tasks:
        support = how.encoded(body, task.support.inputs)
        with library.innerloop_ctx(
            moving, inner, copy_initial_weights=False, track_higher_grads=how.second_order
        ) as (fast, steps):
            for _ in range(how.steps):
                steps.step(how.loss(fast(support), task.support.targets))
            yield task, lambda inputs, fast=fast: fast(body(inputs))  # type: ignore[misc]
            if not how.second_order:
                _add_gradients(moving.parameters(), fast.parameters())


def _add_gradients(parameters: Iterable[Tensor], adapted: Iterable[Tensor]) -> None:
    for parameter, fast in zip(parameters, adapted, strict=True):
        if fast.grad is None:
            continue
        if parameter.grad is None:
            parameter.grad = fast.grad
        else:
            parameter.grad = parameter.grad + fast.grad


def torchopt(net: Plain, how: Recipe, tasks: Iterable[Any]) -> Iterator[tuple[Any, Predict]]:
    """`MetaSGD` with the network's state restored after every task, as in its MAML example.

    `MetaSGD` always keeps the graph, so without second order its functional way is used. Its
    example sums the losses of all tasks before it goes backward; here each task goes backward by
    itself, which needs the memory of one.
    """
    if not how.second_order:
        yield from _functional_torchopt(net, how, tasks)
        return
    import torchopt as library

    body, moving = how.parts(net)
    inner = library.MetaSGD(moving, lr=how.lr)
    weights = library.extract_state_dict(moving, by="reference", detach_buffers=True)
    start = library.extract_state_dict(inner, by="reference")
    for task in tasks:
        try:
            support = how.encoded(body, task.support.inputs)
            for _ in range(how.steps):
                inner.step(how.loss(moving(support), task.support.targets))
            yield task, lambda inputs: moving(body(inputs))
        finally:
            library.recover_state_dict(moving, weights)
            library.recover_state_dict(inner, start)


def _functional_torchopt(
    net: Plain, how: Recipe, tasks: Iterable[Any]
) -> Iterator[tuple[Any, Predict]]:
    import torchopt as library

    body, moving = how.parts(net)
    optimizer = library.sgd(lr=how.lr)
    initial: dict[str, Tensor] = dict(moving.named_parameters())
    for task in tasks:
        support = how.encoded(body, task.support.inputs)
        weights = initial
        state = optimizer.init(initial)
        for _ in range(how.steps):
            loss = how.loss(functional_call(moving, weights, (support,)), task.support.targets)
            values = torch.autograd.grad(loss, list(weights.values()))
            gradients = dict(zip(weights, values, strict=True))
            updates, state = optimizer.update(gradients, state, inplace=False)
            weights = library.apply_updates(weights, updates, inplace=False)

        def predict(inputs: Any, weights: Any = weights) -> Any:
            return functional_call(moving, weights, (body(inputs),))

        yield task, predict


def by_hand(net: Plain, how: Recipe, tasks: Iterable[Any]) -> Iterator[tuple[Any, Predict]]:
    """`torch.autograd.grad` and `functional_call`, with no library."""
    body, moving = how.parts(net)
    initial: dict[str, Tensor] = dict(moving.named_parameters())
    for task in tasks:
        support = how.encoded(body, task.support.inputs)
        weights = initial
        for _ in range(how.steps):
            loss = how.loss(functional_call(moving, weights, (support,)), task.support.targets)
            gradients = torch.autograd.grad(
                loss, list(weights.values()), create_graph=how.second_order
            )
            # theta' = theta - lr grad L_support(theta)
            moved = {}
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
                moved[name] = weight - how.lr * gradient
            weights = moved

        def predict(inputs: Any, weights: Any = weights) -> Any:
            return functional_call(moving, weights, (body(inputs),))

        yield task, predict


LOOPS: dict[str, Loop] = {
    "learn2learn": learn2learn,
    "compat": compat,
    "higher": higher,
    "torchopt": torchopt,
    "torch": by_hand,
}


def meta_backward(peer: str, net: Plain, how: Recipe, tasks: list[Any]) -> None:
    """Add the gradient of the mean query loss over the tasks to `.grad`."""
    for task, adapted in LOOPS[peer](net, how, tasks):
        (how.loss(adapted(task.query.inputs), task.query.targets) / len(tasks)).backward()


def predictions(peer: str, net: Plain, how: Recipe, tasks: list[Any]) -> Tensor:
    """Query outputs (tasks, queries, outputs) of the adapted networks."""
    outputs = []
    for task, adapted in LOOPS[peer](net, how, tasks):
        with torch.no_grad():
            outputs.append(adapted(task.query.inputs))
    return torch.stack(outputs)


def missing(peer: str) -> str:
    """Why a peer cannot be used here, in words; nothing if it can.

    Raises:
        ValueError: the peer is not known.
    """
    if peer not in LOOPS:
        raise ValueError(f"there is no peer {peer!r}; choose from {', '.join(LOOPS)}")
    if peer == "compat":
        return ""  # ours
    try:
        # Old libraries warn about their age.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            importlib.import_module(peer)
    except ModuleNotFoundError as error:
        if error.name == peer:
            return "not installed"
        return f"does not import ({error})"
    except Exception as error:
        # Whatever an old library raises on a new Python, the others still run.
        return f"does not import ({type(error).__name__}: {error})"
    return ""
