"""A learner: a module from episodes to predictions for their queries."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.engine import execution as _execution
from metalearn.engine.attention import attention
from metalearn.engine.derivatives import explain_missing_derivatives, missing_derivative
from metalearn.engine.inner_loop import Rates
from metalearn.engine.labels import RELABEL, absent_class, check_labels
from metalearn.engine.solver import Adapted, OuterGradient, query_logits
from metalearn.episodes import Episode, Examples, check_episode, unstack
from metalearn.network.activations import ending, output_of
from metalearn.network.forward import Inputs, map_tensors, tensors_of
from metalearn.network.functional import Functional, Known
from metalearn.network.layers import assign
from metalearn.network.layers import head as find_head
from metalearn.network.module_call import Weights, check_weights
from metalearn.network.norm import check_statistics, statistics
from metalearn.runtime.renamed import warn_renamed

from .losses import Loss, task_loss


def explained(method: Callable[..., Any]) -> Callable[..., Any]:
    """Make failures inside the model name the layer and the cure.

    Args:
        method: a method of a learner whose first argument is a network and whose last is a support
            set or inputs.
    """

    @functools.wraps(method)
    def run(self: Learner, *arguments: Any) -> Any:
        try:
            return method(self, *arguments)
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            network = arguments[0]
            inputs = arguments[-1]
            if isinstance(inputs, Examples):
                inputs = inputs.inputs
            network.explain(error, inputs)
            raise

    return run


class Learner(nn.Module):
    """What every algorithm shares: a model, how tasks are adapted to and predicted, how they run.

    A subclass writes `solve` and `answer`. Both are given the network to use and are written once,
    for one task. If tasks are vectorized, the same code runs with a leading task dimension on
    inputs, targets and every weight that moves.

    Args:
        model: any module with one tensor in and one out. One that keeps running statistics is
            refused, with the cure.
        head: the path of its head; by default its last Linear or Conv2d. For a learner that needs
            one, the first run checks that it makes the model's output.
        loss: from logits (examples, ways) and targets (examples,) to the mean over examples.
        execution: "loop", "threads", "vectorized", "graphs" (vectorized and recorded, on CUDA),
            "compiled" (vectorized and compiled, on a CPU with a C++ compiler: seconds to minutes at
            first, and many times as fast for a small network), or "auto" (the fastest of the others
            that is exact for this model and device).
        output: which entry of the model's output to take, for a model whose output is a tuple or a
            dictionary (see `metalearn.network.forward.forward`; a model that takes several inputs
            gets them as a tuple or a dictionary).
    """

    first_order = False
    steps = 0
    head: str
    # A subclass wrote its own `adapt` or `predict`, which know one task and the model alone.
    one_by_one = False
    # The first run must check whether a guessed head makes the model's output.
    needs_head = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for public, method in (("adapt", "solve"), ("predict", "answer")):
            if public in vars(cls) and method not in vars(cls):
                cls.one_by_one = True

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
        self.known = Known()

    # Settings.

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a setting is checked, and what follows from it is derived again.

        A setting is a name with a method `check_<name>`. `derive` makes what follows from it.
        """
        check = getattr(type(self), f"check_{name}", None)
        if check is None:
            super().__setattr__(name, value)
            return
        before = dict(self.__dict__)
        try:
            # Not by nn.Module's own way: `derive` registers a rate to learn under another name.
            self.__dict__[name] = check(self, value)
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
            raise TypeError(
                f"loss={loss!r} is a {type(loss).__name__}; give a function of (logits, targets),"
                " such as F.mse_loss"
            )
        return loss

    def check_execution(self, execution: str) -> str:
        """How tasks run, if there is such a way."""
        return _execution.check_execution(execution)

    def derive(self, name: str) -> None:
        """Make what follows from the setting `name`, which was just set."""

    def settings(self) -> dict[str, Any]:
        """The settings as plain values, for the record of a result or a checkpoint."""
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        settings = {
            "algorithm": type(self).__name__,
            "model": f"{type(self.model).__name__} ({parameters:,} parameters)",
            "head": self.head,
            "norm": statistics(self.model),
            "loss": getattr(self.loss, "__name__", type(self.loss).__name__),
        }
        if self.output is not None:
            settings["output"] = self.output
        return settings

    def sharing(self) -> Self:
        """The same learner on the same parameters, to be given other settings."""
        # A copy of the dictionary alone: modules and parameters are the same objects.
        other = copy.copy(self)
        other._modules = dict(self._modules)
        other._buffers = dict(self._buffers)
        return other

    def frozen(self, layers: Iterable[str]) -> Self:
        """The same learner on the same parameters, with these layers left out of the inner loop.

        Raises:
            ValueError: a layer does not exist; near matches are listed.
            TypeError: the layers are one string.
        """
        if isinstance(layers, str):
            raise TypeError(f"frozen() takes a list of layers; write frozen([{layers!r}])")
        other = self.sharing()
        other.held = self.held.union(assign(self.model, dict.fromkeys(layers, True)))
        return other

    # Parameters.

    @property
    def rates(self) -> Rates:
        """The inner rate of every parameter that moves, by name; none without an inner loop."""
        return {}

    @property
    def network(self) -> Functional:
        """The model as a function of its weights, for one task."""
        return Functional(self.model, self.head, self.output, known=self.known)

    def meta_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that the outer loop trains, by name.

        They require a gradient, and predictions depend on them.
        """
        return {
            name: parameter
            for name, parameter in self.named_parameters()
            if parameter.requires_grad
        }

    def trained(self) -> dict[str, nn.Parameter]:
        """The former name of `meta_parameters`."""
        warn_renamed("Learner.trained", "Learner.meta_parameters")
        return self.meta_parameters()

    # Tasks.

    def forward(self, episodes: Episode) -> Tensor:
        """A stack of tasks -> query logits (tasks, queries, ways).

        The logits are differentiable to `parameters()`.
        """
        self.prepare(episodes)
        logits = _execution.predictions(self, episodes)
        if self.rates and not self.first_order and not self.known.twice_differentiable:
            # The caller's backward pass is not in reach, so its nodes are watched instead.
            missing = explain_missing_derivatives(logits)
            self.known.twice_differentiable = logits.requires_grad and not missing
        return logits

    def adapt(self, support: Examples) -> Adapted:
        """The support set of one task (no task dimension) -> what was learned from it."""
        return self.solve(self.network, support)

    def predict(self, adapted: Adapted, inputs: Inputs) -> Tensor:
        """Query inputs (queries, ...) of that task -> logits (queries, ways)."""
        return self.answer(self.network, adapted, inputs)

    def solve(self, network: Functional, support: Examples) -> Adapted:
        """A support set -> what was learned from it, on this network."""
        raise NotImplementedError

    def initial_weights(self, network: Functional, support: Examples) -> Weights:
        """Every weight by name before the inner loop; for a support set if it decides some."""
        return network.weights(self.rates)

    def answer(self, network: Functional, adapted: Adapted, inputs: Inputs) -> Tensor:
        """Query inputs (queries, ...) of that task -> logits (queries, ways)."""
        return network.watched(lambda: network(adapted.weights, inputs))

    def adapted_model(self, support: Examples) -> nn.Module:
        """A copy of the model with the weights adapted to the support set of one task.

        It is a module of its own, without a graph to the learner: it can be run, hooked, saved,
        trained further, or exported with `torch.export`. A head that has an output for each class
        of the support set (ProtoMAML, Baseline) takes the place of the model's. ProtoNet, NIL and
        R2D2 return a module that holds the support features.

        Args:
            support: a support set without a task dimension.

        Raises:
            ValueError: a learner of your own predicts from support features.

        Example:
            >>> from metalearn import MAML
            >>> from metalearn.models import MLP
            >>> learner = MAML(MLP(4, 2), lr=0.1)
            >>> support = Examples(torch.rand(6, 4), torch.tensor([0, 1] * 3))
            >>> logits = learner.predict(learner.adapt(support), support.inputs)
            >>> torch.equal(learner.adapted_model(support)(support.inputs), logits)
            True
        """
        adapted = self.adapt(support)
        if adapted.support is not None:
            raise ValueError(
                f"{type(self).__name__} predicts from support features, which its model does not"
                " hold; write its adapted_model, or use predict()"
            )
        model = copy.deepcopy(self.model)
        for name, parameter in list(model.named_parameters()):
            weight = adapted.weights[name].detach()
            if weight.shape == parameter.shape:
                with torch.no_grad():
                    parameter.copy_(weight)
            else:
                _replace_rows(model, name, weight)
        return model

    # Gradients.

    def task_loss(self, network: Functional, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of a task: a scalar, or (tasks,) for a stack."""
        return task_loss(self.loss, network, logits, targets)

    def outer_gradient(self, network: Functional, episode: Episode) -> OuterGradient:
        """One task, or a stack -> its outer loss, query logits and gradients."""
        try:
            return network.watched(lambda: self._outer_gradient(network, episode))
        except RuntimeError as error:
            if self.first_order:
                raise
            missing = missing_derivative(error)
            if missing:
                raise RuntimeError(missing) from error
            if "double backward" in str(error):
                raise RuntimeError(
                    f"a compiled part of the model has no second derivative ({error}); pass the"
                    " module that torch.compile was given, or use first_order=True"
                ) from error
            raise

    def _outer_gradient(self, network: Functional, episode: Episode) -> OuterGradient:
        # Whatever recomputes in the backward pass must find the attention kernels of its forward
        # pass.
        with attention.twice_differentiable(needed=bool(self.rates) and not self.first_order):
            loss, logits = self.outer_loss(network, episode)  # the loss is () or (tasks,)
            trained = list(self.meta_parameters().values())
            # The sum over tasks adds their gradients.
            with self.backward(network):
                gradients = torch.autograd.grad(loss.sum(), trained, allow_unused=True)
        return OuterGradient(loss.detach(), logits.detach(), list(gradients))

    def outer_loss(self, network: Functional, episode: Episode) -> tuple[Tensor, Tensor]:
        """One task, or a stack -> its outer loss, () or (tasks,), and its query logits."""
        logits = query_logits(self, network, episode)
        self.check_labels(network, logits.shape, episode.query.targets)
        return self.task_loss(network, logits, episode.query.targets), logits

    def backward(self, network: Functional) -> AbstractContextManager[None]:
        """A context manager for backward passes that watches the parameters that move.

        A use of one raises UnadaptedWeights.
        """
        return network.tripwires(self.rates if self.steps else ())

    def advance(self) -> None:
        """Count an outer step, for a learner that changes with their number (MAML++)."""

    # Checks of tasks.

    def prepare(self, episodes: Episode) -> None:
        """Check a stack of tasks before any of them runs; at the first run the guessed head, too.

        Raises:
            ValueError: there is no task, or no query.
        """
        check_episode(episodes, "the stack of tasks")
        if not len(episodes.query.targets):
            raise ValueError("there are no tasks: the stack of episodes is empty")
        if self.guessed and self.needs_head:
            self.settle_head(unstack(episodes)[0].support.inputs)  # which raises for a single task
        targets = episodes.support.targets
        if targets.device.type == "cpu" and targets.ndim == 2:  # other devices would be waited for
            self.check_stack(targets)

    def check_stack(self, targets: Tensor, first: int = 0) -> None:
        """Check the support labels of a stack, for a learner that needs an example of each class.

        Args:
            targets: the support labels (tasks, examples).
            first: the number of the first task, for the message.
        """

    def settle_head(self, inputs: Inputs) -> None:
        """Check on the support inputs of one task that a guessed head makes the model's output.

        A head that was named is not checked. A model may go on after its head if nothing with
        parameters follows (SqueezeNet pools).

        Raises:
            ValueError: another layer makes the output; it is named if there is one.
        """
        if not self.guessed or torch.is_inference_mode_enabled():
            return
        # The model runs with other numbers in the place of the head's output.
        run = self._trial(inputs)
        if not ending(self.model, self.head, run).decides:
            other = output_of(self.model, run)
            cure = "name the layer that makes it with head=, or add a head"
            if other:
                cure = f"that of {other!r} is: pass head={other!r}"
            raise ValueError(
                f"{type(self).__name__} needs the model's head, and took {self.head!r}, its last"
                f" Linear or Conv2d; but the model's output is not that layer's: {cure}"
            )
        self.guessed = False

    def _trial(self, inputs: Inputs) -> Callable[[Weights], Tensor]:
        """From weights to the model's output on the inputs of one task, whose draws are undone."""
        network = self.network
        device = tensors_of(inputs)[0].device

        def run(weights: Weights) -> Tensor:
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                return network(weights, map_tensors(torch.clone, inputs))

        return run

    def check_support(self, network: Functional, support: Examples) -> None:
        """Check the sizes of a support set before it is adapted to (see `prepare` for a stack).

        Raises:
            ValueError: it is empty, or does not have one target for each of its inputs.
        """
        dims = network.task_dims
        targets = tuple(support.targets.shape[dims:])
        for tensor in tensors_of(support.inputs):
            inputs = tuple(tensor.shape[dims:])
            if not targets or not inputs or not targets[0]:
                raise ValueError(
                    f"the support set is empty: its inputs are {inputs} and its targets {targets};"
                    " give it examples"
                )
            if inputs[0] != targets[0]:
                raise ValueError(
                    f"the support set has {inputs[0]} inputs but {targets[0]} targets; give each"
                    " input one"
                )

    def check_labels(self, network: Functional, logits: torch.Size, targets: Tensor) -> None:
        """Check that class labels are among the outputs.

        Args:
            network: what gave the logits.
            logits: their shape, (queries, ways) or (tasks, queries, ways).
            targets: (queries,) or (tasks, queries); others are not class labels.

        Raises:
            ValueError: a label is not from 0 to ways - 1.
        """
        if network.classes is None and _are_labels(network, logits, targets):
            check_labels(targets, logits[1 + network.task_dims])

    def check_outputs(self, network: Functional, logits: torch.Size, targets: Tensor) -> None:
        """Check the classes of a support set against the outputs.

        Args:
            network: what gave the logits.
            logits: their shape, (shots, ways) or (tasks, shots, ways).
            targets: (shots,) or (tasks, shots); others are not class labels.

        Raises:
            ValueError: there are fewer outputs than classes, or a label is negative.

        Warns:
            UserWarning: there are more outputs than classes, or a class has no example.
        """
        if network.classes is not None or not _are_labels(network, logits, targets):
            return
        outputs = logits[1 + network.task_dims]
        classes = int(targets.max()) + 1
        owner = f"the head {self.head!r}" if self._head_has(outputs) else "the model"
        counts = f"{owner} has {outputs} outputs, but the support set has {classes} classes"
        cure = f"build the model with {classes} outputs, or name another head with head="
        # Labels that do not start at 0 are the likely reason for too many classes.
        absent = absent_class(targets, classes) if classes > 0 else None
        if absent is not None:
            cure = (
                f"a support set has no example of class {absent[1]}, and labels count from 0:"
                f" {RELABEL}"
            )
        if classes > outputs:
            raise ValueError(f"{counts}; {cure}")
        check_labels(targets, outputs)
        if classes < outputs:
            warnings.warn(f"{counts}; {cure}", stacklevel=3)
        elif absent is not None:
            warnings.warn(cure, stacklevel=3)

    def _head_has(self, outputs: int) -> bool:
        """Whether the head has so many outputs, by its attributes."""
        head = self.model.get_submodule(self.head)
        attributes = ["out_features"]
        if not self.guessed:
            attributes.append("out_channels")
        return outputs in [getattr(head, attribute, None) for attribute in attributes]

    def check_targets(
        self, network: Functional, support: Tensor, query: Tensor | None, logits: torch.Size
    ) -> None:
        """Check the targets of a stack before recorded operations run on it.

        A recording reads no values, so its labels are checked beforehand, against the shape of the
        logits of an earlier call.

        Args:
            network: the network of the stack.
            support: the support targets (tasks, shots).
            query: the query targets (tasks, queries); None for predictions alone.
            logits: the shape of the logits of the earlier call, (tasks, queries, ways).

        Raises:
            ValueError: a label is not among the outputs.
        """
        if query is not None:
            self.check_labels(network, logits, query)


def _replace_rows(model: nn.Module, name: str, weight: Tensor) -> None:
    """Replace a parameter of a Linear by one with another number of rows, in place."""
    path, _, kind = name.rpartition(".")
    module = model.get_submodule(path)
    required = module.get_parameter(kind).requires_grad
    module.register_parameter(kind, nn.Parameter(weight.clone(), requires_grad=required))
    if isinstance(module, nn.Linear):
        module.out_features = len(weight)


def _are_labels(network: Functional, logits: torch.Size, targets: Tensor) -> bool:
    """Whether targets are class labels of logits of this shape: one integer an example."""
    dims = network.task_dims
    return targets.ndim == 1 + dims and len(logits) > 1 + dims and not targets.is_floating_point()
