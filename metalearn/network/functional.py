"""A network as a function of its weights, which the engine uses in place of a module with state."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.func import vmap

from metalearn.kernels.conv_cpu import Convolutions
from metalearn.kernels.conv_per_task import StackedConvolutions

from . import module_call
from .activations import explain, head_input, is_raw, version
from .forward import Inputs, forward, map_tensors
from .layers import is_inside
from .module_call import UnadaptedWeights, Weights

Result = TypeVar("Result")

RECOMPUTES = (
    "If it recomputes them in the backward pass (torch.utils.checkpoint), use execution='loop',"
    " which supports that"
)


@dataclass
class Known:
    """Properties of a network that its earlier runs have shown.

    Attributes:
        recomputes: it runs again in the backward pass, so every call needs a copy of it.
        twice_differentiable: every operation that it uses has a second derivative.
        drawing: the training modes of its modules when it last drew random numbers.
    """

    recomputes: bool = False
    twice_differentiable: bool = False
    drawing: tuple[bool, ...] | None = None


class DrawsRandomNumbers(RuntimeError):
    """A network drew random numbers under vmap, where a task's numbers differ from the loop's."""


class Features(NamedTuple):
    """The input of the head, and whether the model ends in the head.

    Attributes:
        values: (examples, ...) the head's input.
        ends_in_head: the model's output is the head's, unchanged.
    """

    values: Tensor
    ends_in_head: bool


@dataclass(frozen=True)
class Functional:
    """A module as a function of its weights, for one task or for a stack of tasks.

    In a stack, each task has its own weights, and inputs have a leading task dimension.

    Args:
        module: any module with one output tensor.
        head: the path of its head; "" for a module without one.
        output: which entry of the module's output to take (see
            `metalearn.network.forward.forward`).
        tasks: the number of tasks in the first dimension of inputs, and of weights that differ
            between tasks; None for one task without that dimension.
        known: what earlier runs have shown; shared by all views of the module.
        classes: the number of classes in the support sets of a stack, if all labels are checked
            and no value may be read (in a recording); None otherwise.

    Example:
        >>> import torch
        >>> network = Functional(nn.Linear(2, 1, bias=False))
        >>> weights = {"weight": torch.tensor([[1.0, 2.0]])}
        >>> network(weights, torch.tensor([[3.0, 4.0]]))
        tensor([[11.]])
    """

    module: nn.Module
    head: str = ""
    output: str | None = None
    tasks: int | None = None
    known: Known = field(default_factory=Known)
    classes: int | None = None

    @property
    def task_dims(self) -> int:
        """The number of task dimensions of inputs and outputs: 0 or 1."""
        return int(self.tasks is not None)

    def stacked(self, tasks: int) -> Functional:
        """The same network for a stack of `tasks` tasks."""
        return replace(self, tasks=tasks)

    def single(self) -> Functional:
        """The same network for one task."""
        return replace(self, tasks=None)

    def replica(self) -> Functional:
        """The same network in a copy of the module that shares its tensors, for another thread.

        Raises:
            TypeError: a part of the module cannot be copied.
        """
        return replace(self, module=module_call.replica(self.module))

    def first_task(self, inputs: Inputs) -> Inputs:
        """The inputs of one task: the first of a stack, or all of them."""
        if self.tasks is None:
            return inputs
        return map_tensors(lambda tensor: tensor[0], inputs)

    def weights(self, moving: Iterable[str] = ()) -> Weights:
        """Every parameter by name; in a stack, those in `moving` have the task dimension."""
        weights: Weights = dict(self.module.named_parameters())
        if self.tasks is not None:
            for name in moving:
                weights[name] = weights[name].expand(self.tasks, *weights[name].shape)  # a view
        return weights

    def __call__(self, weights: Weights, inputs: Inputs) -> Tensor:
        """The output under these weights: (examples, ...) -> (examples, ways).

        Raises:
            ValueError: the module failed; the message names the layer and the cure.
        """
        try:
            return self._output(weights, inputs)
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            self.explain(error, inputs)
            raise

    def features(self, weights: Weights, inputs: Inputs) -> Features:
        """The input of the head under these weights."""
        ends_in_head = False  # vmap returns tensors alone, so `run` sets this flag

        def run(model: nn.Module, x: Inputs) -> tuple[Tensor, Tensor, Tensor]:
            nonlocal ends_in_head
            with head_input(model, self.head) as record:
                output = forward(model, x, self.output)
            same = bool(self.head) and record.runs == 1 and output is record.output
            # The model may still have written into it.
            ends_in_head = same and version(output) == record.version
            return record.features, record.copy, output

        values, head_output, output = self._per_task(self.module, run, weights, inputs)
        if ends_in_head and self.tasks is None:
            # A write through `.data` changes the values alone. vmap refuses such writes.
            ends_in_head = torch.equal(head_output, output)
        return Features(values, ends_in_head)

    def call_head(self, weights: Weights, features: Tensor) -> Tensor:
        """The head's output for its input: (examples, ...) -> (examples, ways)."""
        prefix = f"{self.head}." if self.head else ""
        head_weights = {
            name.removeprefix(prefix): weight
            for name, weight in weights.items()
            if is_inside(name, self.head)
        }
        head = self.module.get_submodule(self.head)
        return self._per_task(head, lambda module, x: module(x), head_weights, features)

    def tripwires(self, names: Container[str]) -> AbstractContextManager[None]:
        """A context for backward passes: a use of these parameters raises `UnadaptedWeights`."""
        return module_call.tripwires(self.module, names)

    def watched(self, work: Callable[[], Result]) -> Result:
        """Return `work()`, which runs again if the module turns out to recompute.

        A module that runs again in the backward pass needs copies that keep their weights. The
        second run uses them, and `known` remembers it.
        """
        in_copies = self.known.recomputes  # copies keep their weights, so a read in them is a fault
        try:
            return work()
        except UnadaptedWeights as error:
            if in_copies:
                raise
            if self.tasks is not None:  # under vmap the copies would keep dead activations
                raise ValueError(f"{error}. {RECOMPUTES}") from error
        except RuntimeError as error:
            if "escaped from inside a function being vmapped" not in str(error):
                raise
            name = type(self.module).__name__
            raise ValueError(
                f"{name} uses activations after its forward pass. {RECOMPUTES}"
            ) from error
        self.known.recomputes = True
        return work()

    def explain(self, error: Exception, inputs: Any) -> None:
        """Raise an error that says why the module failed on these inputs, if one task shows it."""
        # One task outside vmap: there the error names shapes without the task dimension.
        single = self.single()
        task = self.first_task(inputs)
        explain(error, self.module, lambda: single._output(single.weights(), task))
        if self.tasks is None or isinstance(error, ValueError) or not is_raw(error):
            return
        reason = str(error).strip().splitlines()[0]
        raise RuntimeError(
            f"the forward pass of {type(self.module).__name__} cannot be vectorized over tasks"
            f" ({reason}); use execution='loop' or 'auto'"
        ) from error

    def _output(self, weights: Weights, inputs: Inputs) -> Tensor:
        return self._per_task(
            self.module, lambda model, x: forward(model, x, self.output), weights, inputs
        )

    def _per_task(
        self,
        module: nn.Module,
        function: Callable[[nn.Module, Any], Any],
        weights: Weights,
        inputs: Inputs,
    ) -> Any:
        """`function(module with these weights, inputs)`, for one task or each task of a stack."""
        if self.tasks is not None:
            return _vectorized(module, function, weights, inputs)
        with Convolutions():
            return module_call.call(
                module,
                weights,
                lambda network: function(network, inputs),
                keep=self.known.recomputes,
            )


def _vectorized(
    module: nn.Module, function: Callable[[nn.Module, Any], Any], weights: Weights, inputs: Inputs
) -> Any:
    """`function(module with these weights, inputs)` for every task of a stack, by vmap."""
    shared = dict(module.named_parameters())
    # Weights with one dimension more than the module's differ between tasks.
    weight_dims = {
        name: 0 if weight.ndim > shared[name].ndim else None for name, weight in weights.items()
    }
    input_dims = map_tensors(lambda _: 0, inputs)

    def task(task_weights: Weights, x: Inputs) -> Any:
        return module_call.call(
            module, task_weights, lambda network: function(network, x), stacked=True
        )

    try:
        with StackedConvolutions():
            in_dims = (weight_dims, input_dims)
            return vmap(task, in_dims=in_dims, randomness="error")(weights, inputs)
    except RuntimeError as error:
        if "random operation" not in str(error):
            raise
        raise DrawsRandomNumbers("the model draws random numbers under vmap") from error
