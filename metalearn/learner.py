"""A learner: a module from episodes to predictions for their queries."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vmap

from . import execution as _execution
from .episodes import Episode, Examples
from .forward import Inputs, forward, map_tensors
from .functional import UnadaptedWeights, call, check_weights, tripwires
from .graphs import value
from .inner_loop import Rates, Weights, attention
from .layers import assign, is_inside
from .layers import head as find_head
from .norm import check_statistics, statistics
from .operations import Convolutions
from .readouts import check_labels
from .representations import head_input
from .stacked import StackedConvolutions

Loss = Callable[[Tensor, Tensor], Tensor]
Result = TypeVar("Result")


class Adapted(NamedTuple):
    """What a learner knows after the support set of one task.

    `weights` is every parameter of the model by name (those that did not move are the model's own tensors); `support` holds the
    features (shots, features) and labels that NIL and ProtoNet predict from, and None for the others.
    """

    weights: Weights
    support: Examples | None = None


_RECOMPUTES = "If it recomputes them in the backward pass (torch.utils.checkpoint), use execution='loop', which supports that"


@dataclass
class Known:
    """What running a learner's tasks has shown about its model."""

    recomputes: bool = False  # whether it runs again in the backward pass, so that every call needs a copy of it
    drawing: tuple[bool, ...] | None = None  # the training modes of its modules when it last drew random numbers


class Learner(nn.Module):
    """What every algorithm shares: a model, how a task is adapted to and predicted, and how many tasks are run.

    A subclass says what distinguishes it in `adapt` and `predict`. Both are written once, for one task; where tasks are vectorized the
    same code runs with a leading task dimension on inputs, targets, and every weight that moves (see `execution`).

    Arguments:
        model: any module with one tensor in and one out. One that keeps running statistics is refused, with the cure.
        head: the path of its head; by default its last Linear or Conv2d.
        loss: from logits (examples, ways) and targets (examples,) to the mean over examples.
        execution: "loop", "threads", "vectorized", "graphs" (vectorized and recorded, on CUDA), "compiled" (vectorized and compiled, on a
            CPU with a C++ compiler: seconds to minutes at first, and many times as fast for a small network), or "auto" (the fastest
            of the others that is exact for this model and device).
        output: which entry of the model's output to take, for a model whose output is a tuple or a dictionary (see
            `metalearn.forward.forward`; a model that takes several inputs gets them as a tuple or a dictionary).
    """

    first_order = False
    steps = 0

    def __init__(
        self,
        model: nn.Module,
        *,
        head: str | None = None,
        loss: Loss = F.cross_entropy,
        execution: str = "auto",
        output: str | None = None,
    ) -> None:
        super().__init__()
        check_weights(model)
        check_statistics(model)
        self.model = model
        self.head = find_head(model, head)
        self.loss = loss
        self.execution = _execution.known(execution)
        self.output = output
        self.rates: Rates = {}
        self.stacked = 0  # how many tasks are vectorized
        self.known = Known()

    def forward(self, episodes: Episode) -> Tensor:
        """A stack of tasks -> query logits (tasks, queries, ways), differentiable to `parameters()`."""
        return _execution.predictions(self, episodes)

    def adapt(self, support: Examples) -> Adapted:
        """The support set of one task (no task dimension) -> what was learned from it."""
        raise NotImplementedError

    def predict(self, adapted: Adapted, inputs: Inputs) -> Tensor:
        """Query inputs (queries, ...) of that task -> logits (queries, ways)."""
        return self.call(adapted.weights, inputs)

    def outer_gradient(self, episode: Episode) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        """One task -> its outer loss, its query logits, and the gradient of the loss for each of `trained()`."""

        def gradient() -> tuple[Tensor, Tensor, list[Tensor | None]]:
            # What recomputes in the backward pass has to find the kernels of attention that its forward pass found.
            with attention.twice_differentiable(bool(self.rates) and not self.first_order):
                logits = self.predict(self.adapt(episode.support), episode.query.inputs)
                loss = self.task_loss(logits, episode.query.targets)
                trained = list(self.trained().values())
                with self.backward():
                    gradients = torch.autograd.grad(loss.sum(), trained, allow_unused=True)
            return loss.detach(), logits.detach(), list(gradients)

        return self.watched(gradient)

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that the outer loop trains, by name: those that require a gradient and that predictions depend on."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def frozen(self, layers: Iterable[str]) -> Self:
        """The same learner on the same parameters, with the named layers left out of the inner loop.

        Raises ValueError, with near matches, for a layer that does not exist.
        """
        if isinstance(layers, str):
            raise TypeError(f"frozen() takes a list of layers; write frozen([{layers!r}])")
        held = assign(self.model, dict.fromkeys(layers, True))
        other = self.on()
        other.rates = {name: rate for name, rate in self.rates.items() if name not in held}
        return other

    def settings(self) -> dict[str, Any]:
        """What was asked for, as plain values, for the record of a result or a checkpoint."""
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        return {
            "algorithm": type(self).__name__,
            "model": f"{type(self.model).__name__} ({parameters:,} parameters)",
            "head": self.head,
            "norm": statistics(self.model),
            "loss": getattr(self.loss, "__name__", type(self.loss).__name__),
            **({} if self.output is None else {"output": self.output}),
        }

    # What subclasses build on

    def weights(self) -> Weights:
        """Every parameter of the model by name; those with a rate have a task dimension where tasks are vectorized."""
        weights: Weights = dict(self.model.named_parameters())
        if self.stacked:
            weights.update({name: weights[name].expand(self.stacked, *weights[name].shape) for name in self.rates})
        return weights

    def call(self, weights: Weights, inputs: Inputs) -> Tensor:
        """The model's output under these weights: (examples, ...) -> (examples, ways)."""
        return self._per_task(self.model, lambda model, x: forward(model, x, self.output), weights, inputs)

    def call_head(self, weights: Weights, features: Tensor) -> Tensor:
        """The head's output for what enters it, under these weights: (examples, ...) -> (examples, ways)."""
        start = len(self.head) + 1 if self.head else 0
        own = {name[start:]: weight for name, weight in weights.items() if is_inside(name, self.head)}
        return self._per_task(self.model.get_submodule(self.head), lambda head, x: head(x), own, features)

    def features(self, weights: Weights, inputs: Inputs) -> tuple[Tensor, bool]:
        """What enters the head, as it enters, and whether the model's output is just what the head puts out."""
        ends = [False]

        def run(model: nn.Module, x: Inputs) -> tuple[Tensor, Tensor, Tensor]:
            with head_input(model, self.head) as at_head:
                output = forward(model, x, self.output)
            ends[:] = [at_head.runs == 1 and output is at_head.output]
            return at_head.features, at_head.copy, output

        features, of_head, output = self._per_task(self.model, run, weights, inputs)
        return features, ends[0] and bool(value((of_head == output).all()))  # what wrote into the head's output shows in its values

    def task_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of a task: a scalar, or (tasks,) where tasks are vectorized."""
        loss = vmap(self.loss)(logits, targets) if self.stacked else self.loss(logits, targets)
        if loss.ndim != bool(self.stacked):
            raise ValueError(f"the loss gives {tuple(loss.shape)} values for one task; give one that returns the mean (reduction='mean')")
        return loss

    def check_outputs(self, support: Examples) -> None:
        """Raise ValueError where the head cannot tell the classes of the support set apart; warn where it has outputs to spare."""
        if support.targets.is_floating_point() and support.targets.ndim == 1 + bool(self.stacked) and self.loss is F.cross_entropy:
            raise ValueError(
                f"class labels must be integers, not {support.targets.dtype}; use targets.long(), or another loss for regression"
            )
        module = self.model.get_submodule(self.head)
        outputs = getattr(module, "out_features", getattr(module, "out_channels", None))
        if outputs is None or support.targets.is_floating_point():
            return
        classes = value(support.targets.max()) + 1
        cure = f"build the model with {classes} outputs, or name another head with head="
        if classes > outputs:
            raise ValueError(f"the head {self.head!r} has {outputs} outputs, but the support set has {classes} classes; {cure}")
        check_labels(support.targets, outputs)
        if classes < outputs:
            warnings.warn(f"the head {self.head!r} has {outputs} outputs, but the support set has {classes} classes; {cure}", stacklevel=3)

    def on(self, model: nn.Module | None = None, *, stacked: int = 0) -> Self:
        """This learner, sharing every tensor, on another module of the same structure or for a stack of so many tasks."""
        other = copy.copy(self)
        other._modules = dict(self._modules)
        other.stacked = stacked
        if model is not None:
            other.model = model
        return other

    def backward(self) -> AbstractContextManager[None]:
        """A context manager, for backward passes, in which a use of a parameter that the inner loop moves raises UnadaptedWeights."""
        return tripwires(self.model, self.rates if self.steps else ())

    def watched(self, work: Callable[[], Result]) -> Result:
        """`work()`; once more if it shows that the model runs again in the backward pass, then in copies that keep their weights."""
        in_copies = self.known.recomputes
        try:
            return work()
        except UnadaptedWeights as error:
            if in_copies:
                raise
            if self.stacked:
                raise ValueError(f"{error}. {_RECOMPUTES}") from error
        except RuntimeError as error:
            if "escaped from inside a function being vmapped" not in str(error):
                raise
            raise ValueError(f"{type(self.model).__name__} uses activations after its forward pass. {_RECOMPUTES}") from error
        self.known.recomputes = True
        return work()

    def _per_task(self, module: nn.Module, function: Callable[[nn.Module, Any], Any], weights: Weights, inputs: Inputs) -> Any:
        """`function(module with these weights, inputs)`, for one task or for every task of a stack."""
        if not self.stacked:
            with Convolutions():
                return call(module, weights, lambda network: function(network, inputs), keep=self.known.recomputes)
        single = dict(module.named_parameters())
        dims = {name: 0 if weight.ndim > single[name].ndim else None for name, weight in weights.items()}

        def task(w: Weights, x: Inputs) -> Any:
            return call(module, w, lambda network: function(network, x), stacked=True)

        try:
            with StackedConvolutions():
                return vmap(task, in_dims=(dims, map_tensors(lambda _: 0, inputs)), randomness="error")(weights, inputs)
        except RuntimeError as error:
            if "random operation" not in str(error):
                raise
            _execution.refuse_draws(self.execution, "the model")


class FeatureLearner(Learner):
    """A learner without an inner loop: the support set is kept as features, and the head is not used (nor trained)."""

    def adapt(self, support: Examples) -> Adapted:
        """The support set of one task -> its features and labels; no weight moves."""
        weights = self.weights()
        return Adapted(weights, Examples(self.flat_features(weights, support.inputs), support.targets))

    def predict(self, adapted: Adapted, inputs: Inputs) -> Tensor:
        """Query inputs (queries, ...) of that task -> logits (queries, ways), for as many ways as the support set has."""
        if adapted.support is None:
            raise ValueError(f"{type(self).__name__} predicts from support features: pass what its own adapt(support) returned")
        ways = value(adapted.support.targets.max()) + 1
        return self.readout(adapted.support, self.flat_features(adapted.weights, inputs), ways)

    def readout(self, support: Examples, queries: Tensor, ways: int) -> Tensor:
        """Features of support and queries (..., examples, features) -> logits (..., queries, ways)."""
        raise NotImplementedError

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that the outer loop trains: all but the head's."""
        return {name: p for name, p in super().trained().items() if not is_inside(name.removeprefix("model."), self.head)}

    def flat_features(self, weights: Weights, inputs: Inputs) -> Tensor:
        """What enters the head, a row an example: (examples, features), with the task dimension before it where there is one."""
        return self.features(weights, inputs)[0].flatten(2 if self.stacked else 1)
