"""A network as a function of its weights: the value that the engine passes around in place of a
module with state.
"""

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
    """What running a network has shown about it.

    Attributes:
        recomputes: it runs again in the backward pass, so every call needs a copy of it.
        twice_differentiable: every operation it uses is known to have a second derivative.
        drawing: the training modes of its modules when it last drew random numbers.
    """

    recomputes: bool = False
    twice_differentiable: bool = False
    drawing: tuple[bool, ...] | None = None


class DrawsRandomNumbers(RuntimeError):
    """A network drew random numbers while its tasks were vectorized, where no task draws as it
    would alone.
    """


class Features(NamedTuple):
    """What enters the head, and whether the model ends in it.

    Attributes:
        values: (examples, ...) what enters the head, as it enters.
        ends_in_head: the model's output is the head's, unchanged.
    """

    values: Tensor
    ends_in_head: bool


@dataclass(frozen=True)
class Functional:
    """A module as a function of its weights: for one task, or for several at once, each with moving
    weights of its own.

    Args:
        module: any module with one tensor in and one out.
        head: the path of its head; "" for a module without one.
        output: which entry of the module's output to take (see
            `metalearn.network.forward.forward`).
        tasks: how many tasks there are along the first dimension of inputs, and of weights that
            move; None for one task without that dimension.
        known: what running the module has shown; shared by all views of it.
        classes: how many classes the support sets of a stack have, if all labels are checked and no
            value may be read (in a recording); None otherwise.

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
        """How many task dimensions inputs and outputs have: 0 or 1."""
        return 0 if self.tasks is None else 1

    def stacked(self, tasks: int) -> Functional:
        """The same network for so many tasks at once."""
        return replace(self, tasks=tasks)

    def single(self) -> Functional:
        """The same network for one task."""
        return replace(self, tasks=None)

    def replica(self) -> Functional:
        """The same tensors in another module of the same structure, for another thread.

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
        """Every parameter by name; those in `moving` have the task dimension if there is one."""
        weights: Weights = dict(self.module.named_parameters())
        if self.tasks is not None:
            for name in moving:
                weights[name] = weights[name].expand(self.tasks, *weights[name].shape)
        return weights

    def __call__(self, weights: Weights, inputs: Inputs) -> Tensor:
        """The output under these weights: (examples, ...) -> (examples, ways), a failure naming the
        layer and the cure.
        """
        try:
            return self._output(weights, inputs)
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            self.explain(error, inputs)
            raise

    def features(self, weights: Weights, inputs: Inputs) -> Features:
        """What enters the head under these weights."""
        ends_in_head = False

        def run(model: nn.Module, x: Inputs) -> tuple[Tensor, Tensor, Tensor]:
            nonlocal ends_in_head
            with head_input(model, self.head) as at_head:
                output = forward(model, x, self.output)
            same = bool(self.head) and at_head.runs == 1 and output is at_head.output
            # The model may still have written into it.
            ends_in_head = same and version(output) == at_head.version
            return at_head.features, at_head.copy, output

        values, head_output, output = self._per_task(self.module, run, weights, inputs)
        if ends_in_head and self.tasks is None:
            # A write through `.data` changes the values alone. vmap refuses such writes.
            ends_in_head = torch.equal(head_output, output)
        return Features(values, ends_in_head)

    def call_head(self, weights: Weights, features: Tensor) -> Tensor:
        """The head's output for what enters it: (examples, ...) -> (examples, ways)."""
        start = len(self.head) + 1 if self.head else 0
        own = {
            name[start:]: weight for name, weight in weights.items() if is_inside(name, self.head)
        }
        return self._per_task(
            self.module.get_submodule(self.head), lambda head, x: head(x), own, features
        )

    def tripwires(self, names: Container[str]) -> AbstractContextManager[None]:
        """A context manager for backward passes in which a use of these parameters raises
        `UnadaptedWeights`.
        """
        return module_call.tripwires(self.module, names)

    def watched(self, work: Callable[[], Result]) -> Result:
        """`work()`; once more if it shows that the module runs again in the backward pass, then in
        copies that keep their weights.
        """
        in_copies = self.known.recomputes
        try:
            return work()
        except UnadaptedWeights as error:
            if in_copies:
                raise
            if self.tasks is not None:
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
        """Raise in words why the module failed on these inputs, if running it on one task tells."""
        alone = self.single()
        task = self.first_task(inputs)
        explain(error, self.module, lambda: alone._output(alone.weights(), task))
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
        """`function(module with these weights, inputs)`, for one task or for every task of a stack."""
        if self.tasks is None:
            with Convolutions():
                return module_call.call(
                    module,
                    weights,
                    lambda network: function(network, inputs),
                    keep=self.known.recomputes,
                )
        single = dict(module.named_parameters())
        dims = {
            name: 0 if weight.ndim > single[name].ndim else None for name, weight in weights.items()
        }

        def task(own: Weights, x: Inputs) -> Any:
            return module_call.call(module, own, lambda network: function(network, x), stacked=True)

        vectorized = vmap(
            task, in_dims=(dims, map_tensors(lambda _: 0, inputs)), randomness="error"
        )
        try:
            with StackedConvolutions():
                return vectorized(weights, inputs)
        except RuntimeError as error:
            if "random operation" not in str(error):
                raise
            raise DrawsRandomNumbers("the model draws random numbers under vmap") from error
