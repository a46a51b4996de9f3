"""The outputs of a network's layers, and the input of its head."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .layer_names import LayerOutput, named_output
from .layers import heads
from .module_call import Weights


@contextmanager
def representations(
    model: nn.Module,
    names: Iterable[str],
    reduce: Callable[[str, Tensor], Tensor] | None = None,
) -> Iterator[dict[str, Tensor]]:
    """A dictionary that fills with the outputs of the named layers while the model runs.

    The hooks are removed on leaving.

    Args:
        model: any module.
        names: the layers. One entry of a layer that outputs a tuple or a dictionary is named after
            a colon, positions after an @: "lstm:0", "blocks.5@0", see `layer_names`.
        reduce: from a layer's name and output to the tensor to store, while the layer runs; by
            default a copy of the output. A small reduction saves the memory of all outputs.

    Yields:
        `{layer: output}`, in the order in which the layers ran.

    Raises:
        ValueError: a layer does not exist or outputs something else than a tensor (the entries are
            listed); on leaving, a layer did not run, or ran more than once.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> with representations(model, ["0", "1"]) as outputs:
        ...     _ = model(torch.ones(3, 4))
        >>> {name: tuple(output.shape) for name, output in outputs.items()}
        {'0': (3, 8), '1': (3, 8)}
        >>> with representations(model, ["0"], lambda name, output: output.norm(dim=1)) as norms:
        ...     _ = model(torch.ones(3, 4))
        >>> norms["0"].shape
        torch.Size([3])
    """
    outputs: dict[str, Tensor] = {}
    named = [named_output(model, name) for name in names]
    runs: dict[str, int] = {output.name: 0 for output in named}

    def record(layer: LayerOutput) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            runs[layer.name] += 1
            tensor = layer.of(output)
            if reduce is None:
                # A copy, because later layers may write into it: torchvision's ReLUs do.
                outputs[layer.name] = tensor.clone()
            else:
                outputs[layer.name] = reduce(layer.name, tensor)

        return hook

    hooks = []
    for layer in named:
        module = model.get_submodule(layer.path)
        hooks.append(module.register_forward_hook(record(layer)))
    with _removed_afterwards(hooks):
        yield outputs
    for name, count in runs.items():
        if count != 1:
            raise ValueError(
                f"layer {name!r} ran {count} times in the forward pass, so it has no single output;"
                " name a layer that runs once"
            )


@contextmanager
def _removed_afterwards(hooks: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class HeadRun:
    """A record of the head while the model ran.

    If the head is the whole model (a model without a head), the features are its output.

    Attributes:
        features: the head's last input.
        output: the head's last output.
        copy: a copy of `output` from before any later change in place.
        runs: how often the head ran.
    """

    def __init__(self) -> None:
        self.features = self.output = self.copy = torch.empty(0)
        self.version = 0
        self.runs = 0


@contextmanager
def head_input(model: nn.Module, head: str) -> Iterator[HeadRun]:
    """A context that records the head while the model runs.

    Raises:
        ValueError: on leaving, if the head did not run.
    """
    record = HeadRun()

    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        record.features = inputs[0] if head else output
        record.output = output
        record.copy = output.clone()
        record.version = version(output)
        record.runs += 1

    with _removed_afterwards([model.get_submodule(head).register_forward_hook(hook)]):
        yield record
    if not record.runs:
        raise ValueError(
            f"the head {head!r} did not run in the forward pass; name the last layer that does with"
            " head="
        )


def version(tensor: Tensor) -> int:
    """How often a tensor was written into, under vmap, too; 0 for an inference tensor.

    Example:
        >>> tensor = torch.zeros(2)
        >>> before = version(tensor)
        >>> version(tensor.add_(1)) - before
        1
    """
    while torch._C._functorch.is_batchedtensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return 0 if tensor.is_inference() else tensor._version


class Ending(NamedTuple):
    """How the output of a model depends on one of its modules.

    Attributes:
        is_output: the model's output is the module's, reshaped at most.
        decides: the model's output is a function of the module's output alone, without another
            parameter (pooled, scaled, normalised).
    """

    is_output: bool
    decides: bool


def ending(model: nn.Module, path: str, run: Callable[[Weights], Tensor]) -> Ending:
    """How a model's output depends on its module `path`.

    The model runs with other numbers in place of the module's output. The answer comes from the
    tensors: it depends on no class name, and not on values that happen to be equal.

    Args:
        model: any module.
        path: one of its modules.
        run: from weights by name to the model's output on some inputs.

    Example:
        >>> import torch
        >>> from torch.func import functional_call
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2), nn.ReLU())
        >>> run = lambda weights: functional_call(model, weights, (torch.ones(3, 4),))
        >>> ending(model, "2", run)
        Ending(is_output=True, decides=True)
        >>> ending(model, "1", run).is_output, ending(model, "0", run).decides
        (False, False)
    """
    weights = {
        name: weight.detach().requires_grad_(_is_real(weight))
        for name, weight in model.named_parameters()
    }
    replaced: list[Tensor] = []

    def replace(module: nn.Module, inputs: Any, output: Any) -> Tensor | None:
        if not isinstance(output, Tensor) or not _is_real(output):
            return None
        # Wide apart and of both signs, so clipping, scaling, pooling and ReLU all change them.
        numbers = torch.linspace(
            -1e3, 1e3, output.numel(), dtype=output.dtype, device=output.device
        )
        replaced.append(numbers.view_as(output).requires_grad_())
        return replaced[-1].clone()  # later layers may change it in place

    handle = model.get_submodule(path).register_forward_hook(replace)
    with _removed_afterwards([handle]), torch.inference_mode(mode=False), torch.enable_grad():
        output = run(weights)
        if not replaced or not output.requires_grad:
            return Ending(is_output=False, decides=False)
        parameters = [weight for weight in weights.values() if weight.requires_grad]
        gradients = torch.autograd.grad(output.sum(), [*replaced, *parameters], allow_unused=True)
    reached = [gradient is not None for gradient in gradients]
    # A gradient of None means that the output does not depend on the source.
    by_module = any(reached[: len(replaced)])
    by_parameters = any(reached[len(replaced) :])
    last = replaced[-1].detach()
    output = output.detach()
    same = output.shape[0] == last.shape[0] and _equal_reshaped(output, last)
    return Ending(is_output=len(replaced) == 1 and same, decides=by_module and not by_parameters)


def _equal_reshaped(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same values in the same order."""
    return a.numel() == b.numel() and torch.equal(a.reshape_as(b), b)


def output_of(model: nn.Module, run: Callable[[Weights], Tensor]) -> str | None:
    """The last of `layers.heads(model)` whose output is the model's; None if there is none.

    Args:
        model: any module.
        run: from weights by name to the model's output on some inputs.
    """
    outputs: dict[str, Tensor] = {}

    def record(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                outputs[path] = output.detach()

        return hook

    handles = [
        model.get_submodule(path).register_forward_hook(record(path)) for path in heads(model)
    ]
    with _removed_afterwards(handles), torch.inference_mode(mode=False), torch.no_grad():
        output = run(dict(model.named_parameters()))
    # Equal values are a quick necessary condition; `ending` decides.
    candidates = [path for path, value in outputs.items() if _equal_reshaped(value, output)]
    for path in reversed(candidates):
        if ending(model, path, run).is_output:
            return path
    return None


def is_raw(error: Exception) -> bool:
    """Whether an error is PyTorch's or Python's own, without an explanation by this package.

    A ValueError of the model's author is an explanation too.

    Example:
        >>> is_raw(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
        True
        >>> is_raw(ValueError("build Conv4(size=84)"))
        False
    """
    if isinstance(error, torch.OutOfMemoryError) or error.__cause__ is not None:
        return False  # an error with a cause is an explanation of it
    if not isinstance(error, ValueError):
        return isinstance(error, RuntimeError | IndexError | TypeError)
    # A ValueError is raw if torch raised it, as the layers of torch.nn do.
    # The last frame is the function that raised it.
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and frames[-1].f_globals.get("__name__", "").startswith("torch.")


def explain(error: Exception, model: nn.Module, run: Callable[[], Any]) -> None:
    """Raise ValueError naming the layer that a raw error came from, if another run finds it."""
    failure = failing_layer(model, run) if is_raw(error) else None
    if failure is not None:
        raise ValueError(failure) from error


def failing_layer(model: nn.Module, run: Callable[[], Any]) -> str | None:
    """The layer that fails in `run`, its inputs and the cure, in words; None if nothing fails.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten())
        >>> print(failing_layer(model, lambda: model(torch.ones(2, 3, 8, 8))))  # doctest: +ELLIPSIS
        layer '0' (Conv2d) cannot take its input, torch.float32 of 2 x 3 x 8 x 8 (Given
        groups=1, ...); bring the inputs to the ...
    """
    running: list[tuple[str, nn.Module, Any]] = []  # the modules that have begun and not ended

    def enter(path: str) -> Callable[[nn.Module, Any], None]:
        return lambda module, inputs: running.append((path, module, inputs))

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        running.pop()

    hooks: list[Any] = []
    for path, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(enter(path)))
        hooks.append(module.register_forward_hook(leave))
    with _removed_afterwards(hooks), torch.no_grad():
        try:
            run()
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            if running:  # the innermost module that has begun and not ended
                return _failure(*running[-1], error)
    return None


def _failure(path: str, module: nn.Module, inputs: Any, error: Exception) -> str:
    """A module that failed, its inputs and the cure, in words."""
    kind = type(module).__name__
    name = f"layer {path!r} ({kind})" if path else f"the model {kind}"
    tensors = [tensor for tensor in inputs if isinstance(tensor, Tensor)]
    described = ", ".join(
        f"{tensor.dtype} of {' x '.join(map(str, tensor.shape))}" for tensor in tensors
    )
    cure = "bring the inputs to the channels and size that the model takes"
    if isinstance(module, nn.Embedding):
        cure = f"give integers from 0 to {module.num_embeddings - 1}"
    elif not all(map(_is_real, tensors)):
        cure = "give real numbers, such as inputs.float() / 255"
    reason = str(error).strip().splitlines()[0]
    return f"{name} cannot take its input, {described or 'no tensor'} ({reason}); {cure}"


def _is_real(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def features(model: nn.Module, inputs: Tensor, head: str) -> Tensor:
    """The head's input for these inputs, one row for each example.

    Args:
        model: any module.
        inputs: (examples, ...).
        head: the path of the head.

    Returns:
        (examples, features).

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> features(model, torch.ones(3, 4), "2").shape
        torch.Size([3, 8])
    """
    with head_input(model, head) as record:
        model(inputs)
    return record.features.flatten(1)  # (examples, features)
