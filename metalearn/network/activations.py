"""What the layers of a network put out, and what enters its head."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .forward import select
from .layers import heads, resolve
from .module_call import Weights


@contextmanager
def representations(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """A dictionary that fills with the outputs of the named layers while the model runs; the hooks
    are gone afterwards.

    One entry of a layer that puts out a tuple or a dictionary is named after a colon: "lstm:0",
    "encoder:last_hidden_state".

    Raises ValueError, naming the layer, where one does not exist or puts out something else than a
    tensor (the entries are listed); and on leaving, where one did not run or ran more than once.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> with representations(model, ["0", "1"]) as seen:
        ...     _ = model(torch.ones(3, 4))
        >>> {name: tuple(output.shape) for name, output in seen.items()}
        {'0': (3, 8), '1': (3, 8)}
    """
    seen: dict[str, Tensor] = {}
    paths = {name: _split(model, name) for name in names}
    runs: dict[str, int] = dict.fromkeys(paths, 0)

    def keep(name: str, path: str, entry: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            runs[name] += 1
            seen[name] = layer_output(
                output, path, entry
            ).clone()  # what follows may write into it: torchvision's ReLUs do

        return hook

    hooks = [
        model.get_submodule(path).register_forward_hook(keep(name, path, entry))
        for name, (path, entry) in paths.items()
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
    for name, count in runs.items():
        if count != 1:
            raise ValueError(
                f"layer {name!r} ran {count} times in the forward pass, so it has no one output;"
                " name a layer that runs once"
            )


def layer_output(output: Any, path: str, entry: str = "") -> Tensor:
    """The tensor that the layer `path` returned, or the named entry of what it returned."""
    return select(output, entry or None, f"layer {path!r}", lambda other: repr(f"{path}:{other}"))


def _split(model: nn.Module, name: str) -> tuple[str, str]:
    """A layer and the entry named after it, "" where there is none."""
    path, colon, entry = name.rpartition(":")
    whole = not colon or name in dict(model.named_modules(remove_duplicate=False))
    return (resolve(model, name), "") if whole else (resolve(model, path), entry)


class HeadRun:
    """What was seen of the head while the model ran: what entered it and what it put out the last
    time, and how often it ran.

    A head that is the whole model stands for a model without one, whose features are its output.
    """

    def __init__(self) -> None:
        self.features = self.output = self.copy = torch.empty(0)
        self.version = 0
        self.runs = 0


@contextmanager
def head_input(model: nn.Module, head: str) -> Iterator[HeadRun]:
    """A `HeadRun` that is filled while the model runs.

    Raises ValueError on leaving where the head did not run.
    """
    seen = HeadRun()

    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        seen.features, seen.output, seen.copy = (
            inputs[0] if head else output,
            output,
            output.clone(),
        )
        seen.version = version(output)
        seen.runs += 1

    handle = model.get_submodule(head).register_forward_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()
    if not seen.runs:
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

    `is_output` tells whether the output is the module's, reshaped at most; `decides` whether it is
    at least a function of the module's output alone, without another parameter (pooled, scaled,
    normalised).
    """

    is_output: bool
    decides: bool


def ending(model: nn.Module, path: str, run: Callable[[Weights], Tensor]) -> Ending:
    """How a model's output depends on its module `path`: the model runs with other numbers in place
    of the module's output.

    Asking the tensors this way, no name of a class and no chance equality of values decides.

    Args:
        model: any module.
        path: one of its modules.
        run: from weights by name to the model's output on some inputs.

    Example:
        >>> import torch
        >>> from torch.func import functional_call
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2), nn.ReLU())
        >>> run = lambda weights: functional_call(model, weights, (torch.ones(3, 4),))
        >>> ending(model, "2", run), ending(model, "1", run).is_output, ending(model, "0", run).decides
        (Ending(is_output=True, decides=True), False, False)
    """
    weights = {
        name: weight.detach().requires_grad_(_is_real(weight))
        for name, weight in model.named_parameters()
    }
    replaced: list[Tensor] = []

    def replace(module: nn.Module, inputs: Any, output: Any) -> Tensor | None:
        if not isinstance(output, Tensor) or not _is_real(output):
            return None
        # Wide apart and of both signs, so that clipping, scaling, pooling and ReLU all show.
        numbers = torch.linspace(
            -1e3, 1e3, output.numel(), dtype=output.dtype, device=output.device
        )
        replaced.append(numbers.view_as(output).requires_grad_())
        return replaced[-1].clone()  # which what follows may write into

    handle = model.get_submodule(path).register_forward_hook(replace)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            output = run(weights)
            if not replaced or not output.requires_grad:
                return Ending(False, False)
            sources = [*replaced, *(weight for weight in weights.values() if weight.requires_grad)]
            gradients = torch.autograd.grad(output.sum(), sources, allow_unused=True)
    finally:
        handle.remove()
    last, output = replaced[-1].detach(), output.detach()
    same = (
        output.shape[0] == last.shape[0]
        and output.numel() == last.numel()
        and torch.equal(output.reshape_as(last), last)
    )
    reached = [gradient is not None for gradient in gradients]
    decides = any(reached[: len(replaced)]) and not any(reached[len(replaced) :])
    return Ending(len(replaced) == 1 and same, decides)


def output_of(model: nn.Module, run: Callable[[Weights], Tensor]) -> str | None:
    """The last of `layers.heads(model)` whose output is the model's; None if there is none.

    Args:
        model: any module.
        run: from weights by name to the model's output on some inputs.
    """
    outputs: dict[str, Tensor] = {}

    def keep(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                outputs[path] = output.detach()

        return hook

    handles = [model.get_submodule(path).register_forward_hook(keep(path)) for path in heads(model)]
    try:
        with torch.inference_mode(False), torch.no_grad():
            output = run(dict(model.named_parameters()))
    finally:
        for handle in handles:
            handle.remove()
    # Layers whose output has other values need not be tried.
    alike = [
        path
        for path, own in outputs.items()
        if own.numel() == output.numel() and torch.equal(own.reshape_as(output), output)
    ]
    return next((path for path in reversed(alike) if ending(model, path, run).is_output), None)


def is_raw(error: Exception) -> bool:
    """Whether an error comes from PyTorch or Python, and is not a sentence of this project or of a
    model's author.

    Example:
        >>> is_raw(RuntimeError("mat1 and mat2 shapes cannot be multiplied")), is_raw(ValueError("build Conv4(size=84)"))
        (True, False)
    """
    if isinstance(error, torch.OutOfMemoryError) or error.__cause__ is not None:
        return False  # what was raised from another error is explained already
    if not isinstance(error, ValueError):
        return isinstance(error, RuntimeError | IndexError | TypeError)
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and frames[-1].f_globals.get("__name__", "").startswith(
        "torch."
    )  # as the layers of torch.nn raise


def explain(error: Exception, model: nn.Module, run: Callable[[], Any]) -> None:
    """Raise ValueError naming the layer of a model that `error` came from, if it is raw and running
    the model again tells which.
    """
    failure = failing_layer(model, run) if is_raw(error) else None
    if failure is not None:
        raise ValueError(failure) from error


def failing_layer(model: nn.Module, run: Callable[[], Any]) -> str | None:
    """Which layer of a model fails in `run`, what entered it and how to mend that, in words; None
    if nothing fails.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten())
        >>> print(failing_layer(model, lambda: model(torch.ones(2, 3, 8, 8))))  # doctest: +ELLIPSIS
        layer '0' (Conv2d) cannot take what enters it, torch.float32 of 2 x 3 x 8 x 8 (Given
        groups=1, ...); bring the inputs to the ...
    """
    running: list[tuple[str, nn.Module, Any]] = []

    def enter(path: str) -> Callable[[nn.Module, Any], None]:
        return lambda module, inputs: running.append((path, module, inputs))

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        running.pop()

    handles: list[Any] = []
    for path, module in model.named_modules():
        handles += [
            module.register_forward_pre_hook(enter(path)),
            module.register_forward_hook(leave),
        ]
    try:
        with torch.no_grad():
            run()
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        if not running:
            return None
        path, module, inputs = running[-1]
        entered = [
            f"{tensor.dtype} of {' x '.join(map(str, tensor.shape))}"
            for tensor in inputs
            if isinstance(tensor, Tensor)
        ]
        name = (
            f"layer {path!r} ({type(module).__name__})"
            if path
            else f"the model {type(module).__name__}"
        )
        reason = str(error).strip().splitlines()[0]
        whole = [tensor for tensor in inputs if isinstance(tensor, Tensor) and not _is_real(tensor)]
        cure = (
            "give real numbers, such as inputs.float() / 255"
            if whole
            else "bring the inputs to the channels and size that the model takes"
        )
        return (
            f"{name} cannot take what enters it, {', '.join(entered) or 'no tensor'} ({reason});"
            f" {cure}"
        )
    finally:
        for handle in handles:
            handle.remove()
    return None


def _is_real(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def features(model: nn.Module, inputs: Tensor, head: str) -> Tensor:
    """What enters the head for these inputs, one row an example: (examples, ...) -> (examples,
    features).

    Example:
        >>> import torch
        >>> features(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.ones(3, 4), "2").shape
        torch.Size([3, 8])
    """
    with head_input(model, head) as seen:
        model(inputs)
    return seen.features.flatten(1)
