"""A learner: a module from episodes to predictions for their queries."""

from __future__ import annotations

import copy
import functools
import re
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vmap

from metalearn.engine import execution as _execution
from metalearn.engine.inner_loop import Rates, Weights, attention, nodes
from metalearn.engine.labels import RELABEL, absent_class, check_labels
from metalearn.engine.recording import value
from metalearn.episodes import Episode, Examples, check_episode, unstack
from metalearn.kernels.conv_cpu import Convolutions
from metalearn.kernels.conv_per_task import StackedConvolutions
from metalearn.network.activations import ending, explain, head_input, is_raw, output_of
from metalearn.network.forward import Inputs, forward, map_tensors, tensors_of
from metalearn.network.functional import UnadaptedWeights, call, check_weights, tripwires
from metalearn.network.layers import assign, is_inside
from metalearn.network.layers import head as find_head
from metalearn.network.norm import check_statistics, statistics

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
    twice_differentiable: bool = False  # whether `_explain_backward` has nothing to do
    drawing: tuple[bool, ...] | None = None  # the training modes of its modules when it last drew random numbers


def explained(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of a learner on a support set or on inputs, whose failures inside the model name the layer and the cure."""

    @functools.wraps(method)
    def run(self: Learner, *arguments: Any) -> Any:
        try:
            return method(self, *arguments)
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            given = arguments[-1]
            self.explain(error, given.inputs if isinstance(given, Examples) else given)
            raise

    return run


class Learner(nn.Module):
    """What every algorithm shares: a model, how a task is adapted to and predicted, and how many tasks are run.

    A subclass says what distinguishes it in `adapt` and `predict`. Both are written once, for one task; where tasks are vectorized the
    same code runs with a leading task dimension on inputs, targets, and every weight that moves (see `execution`).

    Arguments:
        model: any module with one tensor in and one out. One that keeps running statistics is refused, with the cure.
        head: the path of its head; by default its last Linear or Conv2d. For a learner that needs one, the first run checks that it makes
            the model's output.
        loss: from logits (examples, ways) and targets (examples,) to the mean over examples.
        execution: "loop", "threads", "vectorized", "graphs" (vectorized and recorded, on CUDA), "compiled" (vectorized and compiled, on a
            CPU with a C++ compiler: seconds to minutes at first, and many times as fast for a small network), or "auto" (the fastest
            of the others that is exact for this model and device).
        output: which entry of the model's output to take, for a model whose output is a tuple or a dictionary (see
            `metalearn.network.forward.forward`; a model that takes several inputs gets them as a tuple or a dictionary).
    """

    first_order = False
    steps = 0
    head: str
    needs_head = False  # whether the first run has to tell if a guessed head makes the model's output

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
        self.head = head  # type: ignore[assignment]
        self.loss = loss
        self.execution = execution
        self.output = output
        self.held: frozenset[str] = frozenset()  # parameters that `frozen` keeps from moving
        self.stacked = 0  # how many tasks are vectorized
        self.known = Known()

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute. A setting is checked, and what follows from it is made anew, at any time as at construction.

        The setting `name` is one that has a method `check_<name>`; what follows from it is made by `derive`.
        """
        check = getattr(type(self), f"check_{name}", None)
        if check is None:
            super().__setattr__(name, value)
            return
        before = dict(self.__dict__)
        try:
            self.__dict__[name] = check(self, value)  # a rate to learn is registered by `derive`, not under this name
            self.derive(name)
        except Exception:
            self.__dict__ = before
            raise

    def check_head(self, head: str | None) -> str:
        """The path of the head, or a guess at it."""
        self.guessed = head is None
        return find_head(self.model, head)

    def check_loss(self, loss: Loss) -> Loss:
        """The loss, if it can be called."""
        if not callable(loss):
            raise TypeError(f"loss={loss!r} is a {type(loss).__name__}; give a function of (logits, targets), such as F.mse_loss")
        return loss

    def check_execution(self, execution: str) -> str:
        """How tasks are run, if there is such a way."""
        return _execution.known(execution)

    def derive(self, name: str) -> None:
        """Make what follows from the setting `name`, which was just set."""

    @property
    def rates(self) -> Rates:
        """The inner rate of every parameter that moves, by name; none without an inner loop."""
        return {}

    def forward(self, episodes: Episode) -> Tensor:
        """A stack of tasks -> query logits (tasks, queries, ways), differentiable to `parameters()`."""
        self.prepare(episodes)
        logits = _execution.predictions(self, episodes)
        if self.rates and not self.first_order and not self.known.twice_differentiable:
            self.known.twice_differentiable = logits.requires_grad and not _explain_backward(logits)
        return logits

    def adapt(self, support: Examples) -> Adapted:
        """The support set of one task (no task dimension) -> what was learned from it."""
        raise NotImplementedError

    def predict(self, adapted: Adapted, inputs: Inputs) -> Tensor:
        """Query inputs (queries, ...) of that task -> logits (queries, ways)."""
        return self.watched(lambda: self.call(adapted.weights, inputs))

    def adapted_model(self, support: Examples) -> nn.Module:
        """A copy of the model with the weights that the support set of one task (no task dimension) leads to.

        It is a module of its own, without a graph to the learner, to be run, saved or exported.

        Raises ValueError for a learner that predicts from support features, whose model does not adapt.

        Example:
            >>> from metalearn import MAML
            >>> from metalearn.models import MLP
            >>> learner = MAML(MLP(4, 2), lr=0.1)
            >>> support = Examples(torch.rand(6, 4), torch.tensor([0, 1] * 3))
            >>> adapted = learner.adapt(support)
            >>> torch.equal(learner.adapted_model(support)(support.inputs), learner.predict(adapted, support.inputs))
            True
        """
        adapted = self.adapt(support)
        if adapted.support is not None:
            raise ValueError(f"{type(self).__name__} predicts from support features, and its model does not adapt; use predict()")
        model = copy.deepcopy(self.model)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(adapted.weights[name])
        return model

    def outer_gradient(self, episode: Episode) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        """One task -> its outer loss, its query logits, and the gradient of the loss for each of `trained()`."""

        def gradient() -> tuple[Tensor, Tensor, list[Tensor | None]]:
            # What recomputes in the backward pass has to find the kernels of attention that its forward pass found.
            with attention.twice_differentiable(bool(self.rates) and not self.first_order):
                logits = self.predict(self.adapt(episode.support), episode.query.inputs)
                self.check_labels(logits, episode.query.targets)
                loss = self.task_loss(logits, episode.query.targets)
                trained = list(self.trained().values())
                with self.backward():
                    gradients = torch.autograd.grad(loss.sum(), trained, allow_unused=True)
            return loss.detach(), logits.detach(), list(gradients)

        try:
            return self.watched(gradient)
        except RuntimeError as error:
            if self.first_order:
                raise
            missing = _missing_derivative(error)
            if missing:
                raise RuntimeError(missing) from error
            if "double backward" in str(error):
                raise RuntimeError(
                    f"a compiled part of the model has no second derivative ({error}); pass the module that torch.compile was given, or "
                    f"use first_order=True"
                ) from error
            raise

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that the outer loop trains, by name: those that require a gradient and that predictions depend on."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def frozen(self, layers: Iterable[str]) -> Self:
        """The same learner on the same parameters, with the named layers left out of the inner loop.

        Raises ValueError, with near matches, for a layer that does not exist.
        """
        if isinstance(layers, str):
            raise TypeError(f"frozen() takes a list of layers; write frozen([{layers!r}])")
        other = self.on()
        other.held = self.held.union(assign(self.model, dict.fromkeys(layers, True)))
        return other

    def prepare(self, episodes: Episode) -> None:
        """What is checked of a stack of tasks before any of them is run: that it holds some, and at the first run the guessed head.

        Raises ValueError if there is no task or no query.
        """
        check_episode(episodes, "the stack of tasks")
        if not len(episodes.query.targets):
            raise ValueError("there are no tasks: the stack of episodes is empty")
        if self.guessed and self.needs_head:
            self.settle_head(unstack(episodes)[0].support.inputs)  # which raises for a single task

    @explained
    def settle_head(self, inputs: Inputs) -> None:
        """Check on the support inputs of a task (or stack) that a guessed head makes the model's output.

        A head that was named is taken as it is. A model may go on after its head, if nothing with parameters follows (SqueezeNet pools).

        Raises ValueError naming the layer that makes the output, if there is one.
        """
        if not self.guessed or torch.is_inference_mode_enabled():
            return
        run = self._trial(self._first_task(inputs))
        if not ending(self.model, self.head, run).decides:
            other = output_of(self.model, run)
            cure = f"that of {other!r} is: pass head={other!r}" if other else "name the layer that makes it with head=, or add a head"
            raise ValueError(
                f"{type(self).__name__} needs the model's head, and took {self.head!r}, its last Linear or Conv2d; but the model's output "
                f"is not that layer's: {cure}"
            )
        self.guessed = False

    def explain(self, error: Exception, inputs: Any) -> None:
        """Raise in words why the model failed on these inputs, if running it on one task tells."""
        plain, task = self.on(), self._first_task(inputs)
        explain(error, self.model, lambda: plain._output(plain.weights(), task))
        if self.stacked and is_raw(error) and not isinstance(error, ValueError):
            reason = str(error).strip().splitlines()[0]
            raise RuntimeError(
                f"the forward pass of {type(self.model).__name__} cannot be vectorized over tasks ({reason}); "
                "use execution='loop' or 'auto'"
            ) from error

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

    @explained
    def call(self, weights: Weights, inputs: Inputs) -> Tensor:
        """The model's output under these weights: (examples, ...) -> (examples, ways)."""
        return self._output(weights, inputs)

    def _output(self, weights: Weights, inputs: Inputs) -> Tensor:
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
            ends[:] = [bool(self.head) and at_head.runs == 1 and output is at_head.output]
            return at_head.features, at_head.copy, output

        features, of_head, output = self._per_task(self.model, run, weights, inputs)
        return features, ends[0] and bool(value((of_head == output).all()))  # what wrote into the head's output shows in its values

    def task_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of a task: a scalar, or (tasks,) where tasks are vectorized."""
        if not targets.is_floating_point() and not targets.is_complex():
            targets = targets.long()  # which losses of PyTorch ask for
        if _is_cross_entropy(self.loss):
            self._check_cross_entropy(logits, targets)
        elif _is_elementwise(self.loss) and logits.shape != targets.shape:
            outputs, values = (tuple(tensor.shape[bool(self.stacked) :]) for tensor in (logits, targets))
            raise ValueError(
                f"the loss cannot take outputs of {outputs} and targets of {values}: one would be repeated to fit the other; give targets "
                f"of the shape of the outputs, or pass another loss="
            )
        try:
            loss = vmap(self.loss)(logits, targets) if self.stacked else self.loss(logits, targets)
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            self._explain_loss(error, logits, targets)
            raise
        if loss.ndim != bool(self.stacked):
            raise ValueError(f"the loss gives {tuple(loss.shape)} values for one task; give one that returns the mean (reduction='mean')")
        return loss

    def check_support(self, support: Examples) -> None:
        """What is checked before a task is adapted to; see `prepare` for a stack.

        Raises ValueError if the support set is empty, or has not one target for each of its inputs.
        """
        dims = bool(self.stacked)
        targets = tuple(support.targets.shape[dims:])
        for tensor in tensors_of(support.inputs):
            inputs = tuple(tensor.shape[dims:])
            if not targets or not inputs or not targets[0]:
                raise ValueError(f"the support set is empty: its inputs are {inputs} and its targets {targets}; give it examples")
            if inputs[0] != targets[0]:
                raise ValueError(f"the support set has {inputs[0]} inputs but {targets[0]} targets; give each input one")

    def check_labels(self, logits: Tensor, targets: Tensor) -> None:
        """Raise ValueError where a task's class labels are not among the outputs that there are logits for."""
        dims = bool(self.stacked)
        if targets.ndim == 1 + dims and logits.ndim > 1 + dims and not targets.is_floating_point():
            check_labels(targets, logits.shape[1 + dims])

    def check_outputs(self, logits: Tensor, targets: Tensor) -> None:
        """Raise ValueError if there are fewer logits than classes in the support set; warn if there are more, or a class is absent."""
        dims = bool(self.stacked)
        if targets.is_floating_point() or targets.ndim != 1 + dims or logits.ndim < 2 + dims:
            return
        outputs, classes = logits.shape[1 + dims], value(targets.max()) + 1
        module = self.model.get_submodule(self.head)
        is_head = outputs == getattr(module, "out_features", None if self.guessed else getattr(module, "out_channels", None))
        counts = f"{f'the head {self.head!r}' if is_head else 'the model'} has {outputs} outputs, but the support set has {classes} classes"
        cure = f"build the model with {classes} outputs, or name another head with head="
        absent = absent_class(targets, classes) if classes > 0 else None
        if absent is not None:
            cure = f"a support set has no example of class {absent[1]}, and labels count from 0: {RELABEL}"
        if classes > outputs:
            raise ValueError(f"{counts}; {cure}")
        check_labels(targets, outputs)
        if classes < outputs or absent is not None:
            warnings.warn(f"{counts}; {cure}" if classes < outputs else cure, stacklevel=3)

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

    def _trial(self, inputs: Inputs) -> Callable[[Weights], Tensor]:
        """From weights to the model's output for the inputs of one task; what the run draws is undone."""
        plain = self.on()
        device = tensors_of(inputs)[0].device

        def run(weights: Weights) -> Tensor:
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                return plain.call(weights, map_tensors(torch.clone, inputs))

        return run

    def _first_task(self, inputs: Inputs) -> Inputs:
        return map_tensors(lambda tensor: tensor[0], inputs) if self.stacked else inputs

    def _check_cross_entropy(self, logits: Tensor, targets: Tensor) -> None:
        shape = tuple(logits.shape[bool(self.stacked) :])
        if targets.is_floating_point():
            raise ValueError(
                f"under cross-entropy class labels must be integers, not {targets.dtype}; pass loss=F.mse_loss (or another loss) for "
                "regression, or targets.long() for labels"
            )
        if len(shape) < 2:
            raise ValueError(f"cross-entropy needs logits (examples, classes), but the model's output is {shape}; pass another loss=")
        if shape[1] == 1:
            raise ValueError(
                "the cross-entropy of a single output is 0 whatever the weights, so nothing would be learned; pass loss=F.mse_loss (or "
                "another loss) for regression, or build the model with an output for each class"
            )

    def _explain_loss(self, error: Exception, logits: Tensor, targets: Tensor) -> None:
        """Raise ValueError in words if PyTorch's loss fails on one task, too, and not only where tasks are vectorized."""
        if self.stacked:
            self.on().task_loss(logits[0], targets[0])
        elif is_raw(error):
            outputs, labels = (f"{tensor.dtype} of {tuple(tensor.shape)}" for tensor in (logits, targets))
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"the loss cannot take outputs {outputs} and targets {labels} ({reason}); pass another loss=, or targets that fit it"
            ) from error

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


def _missing_derivative(error: RuntimeError) -> str:
    """What to do about an operation without a second derivative; "" for other errors."""
    missing = re.search(r"derivative for (?:aten::)?(\w+?)(?:_backward)? is not implemented", str(error))
    if missing is None:
        return ""
    return f"PyTorch has no second derivative of {missing[1]}, which the model uses ({error}); use first_order=True"


def _explain_backward(logits: Tensor) -> bool:
    """Make the caller's own backward pass raise `_missing_derivative`; whether an operation lacks its second derivative."""
    missing = ""

    def refuse(_: Any) -> None:
        raise RuntimeError(missing)

    for node in nodes(logits):
        if node.name() == "torch::autograd::NotImplemented":
            try:
                node(logits)  # type: ignore[operator]  # such a node does nothing but raise
            except RuntimeError as error:
                missing = _missing_derivative(error)
            node.register_prehook(refuse)
    return bool(missing)


def _is_cross_entropy(loss: Loss) -> bool:
    """Whether a loss is PyTorch's cross-entropy, with options or without."""
    return _is_one_of(loss, F.cross_entropy, nn.CrossEntropyLoss)


def _is_elementwise(loss: Loss) -> bool:
    """Whether a loss is one of PyTorch's that compare value by value, and would repeat values of one side to fit the other."""
    functions = (F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss)
    return _is_one_of(loss, *functions, nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)


def _is_one_of(loss: Loss, *kinds: Any) -> bool:
    function = loss.func if isinstance(loss, functools.partial) else loss
    return any(function is kind or (isinstance(kind, type) and isinstance(function, kind)) for kind in kinds)
