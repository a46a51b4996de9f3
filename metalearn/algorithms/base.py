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
from torch.func import vmap

from metalearn.engine import execution as _execution
from metalearn.engine.attention import attention
from metalearn.engine.derivatives import explain_missing_derivatives, missing_derivative
from metalearn.engine.inner_loop import Rates
from metalearn.engine.labels import RELABEL, absent_class, check_labels
from metalearn.engine.recording import value
from metalearn.engine.solver import Adapted, OuterGradient, query_logits
from metalearn.episodes import Episode, Examples, check_episode, unstack
from metalearn.network.activations import ending, is_raw, output_of
from metalearn.network.forward import Inputs, map_tensors, tensors_of
from metalearn.network.functional import Features, Functional, Known
from metalearn.network.layers import assign
from metalearn.network.layers import head as find_head
from metalearn.network.module_call import Weights, check_weights
from metalearn.network.norm import check_statistics, statistics
from metalearn.runtime.renamed import warn_renamed

Loss = Callable[[Tensor, Tensor], Tensor]


def explained(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of a learner on a network and a support set or inputs, whose failures inside the
    model name the layer and the cure.
    """

    @functools.wraps(method)
    def run(self: Learner, *arguments: Any) -> Any:
        try:
            return method(self, *arguments)
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            network, given = arguments[0], arguments[-1]
            network.explain(error, given.inputs if isinstance(given, Examples) else given)
            raise

    return run


class Learner(nn.Module):
    """What every algorithm shares: a model, how a task is adapted to and predicted, and how many
    tasks are run.

    A subclass says what distinguishes it in `solve` and `answer`. Both get the network to use, and
    are written once, for one task; if tasks are vectorized the same code runs with a leading task
    dimension on inputs, targets, and every weight that moves.

    Arguments:
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
    one_by_one = False  # whether a subclass wrote an `adapt` or `predict` of its own, which know one task and the model alone
    needs_head = (
        False  # whether the first run has to tell if a guessed head makes the model's output
    )

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

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute. A setting is checked, and what follows from it is made anew, at any
        time as at construction.

        The setting `name` is one that has a method `check_<name>`; what follows from it is made by
        `derive`.
        """
        check = getattr(type(self), f"check_{name}", None)
        if check is None:
            super().__setattr__(name, value)
            return
        before = dict(self.__dict__)
        try:
            self.__dict__[name] = check(
                self, value
            )  # a rate to learn is registered by `derive`, not under this name
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
        """How tasks are run, if there is such a way."""
        return _execution.check_execution(execution)

    def derive(self, name: str) -> None:
        """Make what follows from the setting `name`, which was just set."""

    @property
    def rates(self) -> Rates:
        """The inner rate of every parameter that moves, by name; none without an inner loop."""
        return {}

    def forward(self, episodes: Episode) -> Tensor:
        """A stack of tasks -> query logits (tasks, queries, ways), differentiable to
        `parameters()`.
        """
        self.prepare(episodes)
        logits = _execution.predictions(self, episodes)
        if self.rates and not self.first_order and not self.known.twice_differentiable:
            self.known.twice_differentiable = (
                logits.requires_grad and not explain_missing_derivatives(logits)
            )
        return logits

    @property
    def network(self) -> Functional:
        """The model as a function of its weights, for one task."""
        return Functional(self.model, self.head, self.output, known=self.known)

    def adapt(self, support: Examples) -> Adapted:
        """The support set of one task (no task dimension) -> what was learned from it."""
        return self.solve(self.network, support)

    def predict(self, adapted: Adapted, inputs: Inputs) -> Tensor:
        """Query inputs (queries, ...) of that task -> logits (queries, ways)."""
        return self.answer(self.network, adapted, inputs)

    def solve(self, network: Functional, support: Examples) -> Adapted:
        """A support set -> what was learned from it, on this network."""
        raise NotImplementedError

    def answer(self, network: Functional, adapted: Adapted, inputs: Inputs) -> Tensor:
        """Query inputs (queries, ...) of that task -> logits (queries, ways)."""
        return network.watched(lambda: network(adapted.weights, inputs))

    def adapted_model(self, support: Examples) -> nn.Module:
        """A copy of the model with the weights that the support set of one task (no task dimension)
        leads to.

        It is a module of its own, without a graph to the learner, to be run, saved or exported.

        Raises ValueError for a learner that predicts from support features, whose model does not
        adapt.

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
            raise ValueError(
                f"{type(self).__name__} predicts from support features, and its model does not"
                " adapt; use predict()"
            )
        model = copy.deepcopy(self.model)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(adapted.weights[name])
        return model

    def outer_gradient(self, network: Functional, episode: Episode) -> OuterGradient:
        """One task -> its outer loss, its query logits, and the gradient of the loss for each of
        `meta_parameters()`.
        """

        def gradient() -> OuterGradient:
            # What recomputes in the backward pass has to find the kernels of attention that its
            # forward pass found.
            with attention.twice_differentiable(bool(self.rates) and not self.first_order):
                logits = query_logits(self, network, episode)
                self.check_labels(network, logits, episode.query.targets)
                loss = self.task_loss(network, logits, episode.query.targets)
                trained = list(self.meta_parameters().values())
                with self.backward(network):
                    gradients = torch.autograd.grad(loss.sum(), trained, allow_unused=True)
            return OuterGradient(loss.detach(), logits.detach(), list(gradients))

        try:
            return network.watched(gradient)
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

    def meta_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that the outer loop trains, by name: those that require a gradient and
        that predictions depend on.
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

    def frozen(self, layers: Iterable[str]) -> Self:
        """The same learner on the same parameters, with the named layers left out of the inner
        loop.

        Raises ValueError, with near matches, for a layer that does not exist.
        """
        if isinstance(layers, str):
            raise TypeError(f"frozen() takes a list of layers; write frozen([{layers!r}])")
        other = self.sharing()
        other.held = self.held.union(assign(self.model, dict.fromkeys(layers, True)))
        return other

    def prepare(self, episodes: Episode) -> None:
        """What is checked of a stack of tasks before any of them is run: that it holds some, and at
        the first run the guessed head.

        Raises ValueError if there is no task or no query.
        """
        check_episode(episodes, "the stack of tasks")
        if not len(episodes.query.targets):
            raise ValueError("there are no tasks: the stack of episodes is empty")
        if self.guessed and self.needs_head:
            self.settle_head(unstack(episodes)[0].support.inputs)  # which raises for a single task

    def settle_head(self, inputs: Inputs) -> None:
        """Check on the support inputs of one task that a guessed head makes the model's output.

        A head that was named is taken as it is. A model may go on after its head, if nothing with
        parameters follows (SqueezeNet pools).

        Raises ValueError naming the layer that makes the output, if there is one.
        """
        if not self.guessed or torch.is_inference_mode_enabled():
            return
        run = self._trial(inputs)
        if not ending(self.model, self.head, run).decides:
            other = output_of(self.model, run)
            cure = (
                f"that of {other!r} is: pass head={other!r}"
                if other
                else "name the layer that makes it with head=, or add a head"
            )
            raise ValueError(
                f"{type(self).__name__} needs the model's head, and took {self.head!r}, its last"
                f" Linear or Conv2d; but the model's output is not that layer's: {cure}"
            )
        self.guessed = False

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

    def task_loss(self, network: Functional, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of a task: a scalar, or (tasks,) where tasks are vectorized."""
        if not targets.is_floating_point() and not targets.is_complex():
            targets = targets.long()  # which losses of PyTorch ask for
        if _is_cross_entropy(self.loss):
            self._check_cross_entropy(network, logits, targets)
        elif _is_elementwise(self.loss) and logits.shape != targets.shape:
            outputs, values = (
                tuple(tensor.shape[network.task_dims :]) for tensor in (logits, targets)
            )
            raise ValueError(
                f"the loss cannot take outputs of {outputs} and targets of {values}: one would be"
                " repeated to fit the other; give targets of the shape of the outputs, or pass"
                " another loss="
            )
        try:
            loss = (
                self.loss(logits, targets)
                if network.tasks is None
                else vmap(self.loss)(logits, targets)
            )
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            self._explain_loss(network, error, logits, targets)
            raise
        if loss.ndim != network.task_dims:
            raise ValueError(
                f"the loss gives {tuple(loss.shape)} values for one task; give one that returns the"
                " mean (reduction='mean')"
            )
        return loss

    def check_support(self, network: Functional, support: Examples) -> None:
        """What is checked before a task is adapted to; see `prepare` for a stack.

        Raises ValueError if the support set is empty, or has not one target for each of its inputs.
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

    def check_labels(self, network: Functional, logits: Tensor, targets: Tensor) -> None:
        """Raise ValueError where a task's class labels are not among the outputs that there are
        logits for.
        """
        dims = network.task_dims
        if targets.ndim == 1 + dims and logits.ndim > 1 + dims and not targets.is_floating_point():
            check_labels(targets, logits.shape[1 + dims])

    def check_outputs(self, network: Functional, logits: Tensor, targets: Tensor) -> None:
        """Raise ValueError if there are fewer logits than classes in the support set; warn if there
        are more, or a class is absent.
        """
        dims = network.task_dims
        if targets.is_floating_point() or targets.ndim != 1 + dims or logits.ndim < 2 + dims:
            return
        outputs, classes = logits.shape[1 + dims], value(targets.max()) + 1
        module = self.model.get_submodule(self.head)
        is_head = outputs == getattr(
            module, "out_features", None if self.guessed else getattr(module, "out_channels", None)
        )
        counts = (
            f"{f'the head {self.head!r}' if is_head else 'the model'} has {outputs} outputs, but"
            f" the support set has {classes} classes"
        )
        cure = f"build the model with {classes} outputs, or name another head with head="
        absent = absent_class(targets, classes) if classes > 0 else None
        if absent is not None:
            cure = (
                f"a support set has no example of class {absent[1]}, and labels count from 0:"
                f" {RELABEL}"
            )
        if classes > outputs:
            raise ValueError(f"{counts}; {cure}")
        check_labels(targets, outputs)
        if classes < outputs or absent is not None:
            warnings.warn(f"{counts}; {cure}" if classes < outputs else cure, stacklevel=3)

    def sharing(self) -> Self:
        """This learner again, on the same parameters, so that one of them may have other settings."""
        other = copy.copy(self)
        other._modules = dict(self._modules)
        return other

    def backward(self, network: Functional) -> AbstractContextManager[None]:
        """A context manager, for backward passes, in which a use of a parameter that the inner loop
        moves raises UnadaptedWeights.
        """
        return network.tripwires(self.rates if self.steps else ())

    def _trial(self, inputs: Inputs) -> Callable[[Weights], Tensor]:
        """From weights to the model's output for the inputs of one task; what the run draws is
        undone.
        """
        network = self.network
        device = tensors_of(inputs)[0].device

        def run(weights: Weights) -> Tensor:
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                return network(weights, map_tensors(torch.clone, inputs))

        return run

    def _check_cross_entropy(self, network: Functional, logits: Tensor, targets: Tensor) -> None:
        shape = tuple(logits.shape[network.task_dims :])
        if targets.is_floating_point():
            raise ValueError(
                f"under cross-entropy class labels must be integers, not {targets.dtype}; pass"
                " loss=F.mse_loss (or another loss) for regression, or targets.long() for labels"
            )
        if len(shape) < 2:
            raise ValueError(
                "cross-entropy needs logits (examples, classes), but the model's output is"
                f" {shape}; pass another loss="
            )
        if shape[1] == 1:
            raise ValueError(
                "the cross-entropy of a single output is 0 whatever the weights, so nothing would"
                " be learned; pass loss=F.mse_loss (or another loss) for regression, or build the"
                " model with an output for each class"
            )

    def _explain_loss(
        self, network: Functional, error: Exception, logits: Tensor, targets: Tensor
    ) -> None:
        """Raise ValueError in words if PyTorch's loss fails on one task, too, and not only where
        tasks are vectorized.
        """
        if network.tasks is not None:
            self.task_loss(network.single(), logits[0], targets[0])
        elif is_raw(error):
            outputs, labels = (
                f"{tensor.dtype} of {tuple(tensor.shape)}" for tensor in (logits, targets)
            )
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"the loss cannot take outputs {outputs} and targets {labels} ({reason}); pass"
                " another loss=, or targets that fit it"
            ) from error


def ends_in_head(features: Features) -> bool:
    """Whether the model's output is the head's, unchanged; what wrote into it shows in its values."""
    return features.head_output is not None and bool(
        value((features.head_output == features.output).all())
    )


def _is_cross_entropy(loss: Loss) -> bool:
    """Whether a loss is PyTorch's cross-entropy, with options or without."""
    return _is_one_of(loss, F.cross_entropy, nn.CrossEntropyLoss)


def _is_elementwise(loss: Loss) -> bool:
    """Whether a loss is one of PyTorch's that compare value by value, and would repeat values of
    one side to fit the other.
    """
    functions = (F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss)
    return _is_one_of(loss, *functions, nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)


def _is_one_of(loss: Loss, *kinds: Any) -> bool:
    function = loss.func if isinstance(loss, functools.partial) else loss
    return any(
        function is kind or (isinstance(kind, type) and isinstance(function, kind))
        for kind in kinds
    )
