"""Calling a module with other weights than its own.

A call installs weights in a module, runs it, and restores the module. Three habits of modules would
make the result wrong. They are detected by what happens to tensors, not by class names:

- A module that runs again in the backward pass (`torch.utils.checkpoint`) would find the weights
  from before adaptation there. `tripwires` detect such a read. From then on, every call runs a copy
  of the network, in which the weights stay.
- A module that reads a parameter from a closure or a list would never see adapted weights. `Watch`
  detects it, and it is refused.
- A module that writes into itself would let one task change the output for the next. Writes into
  parameters and buffers are refused. Counters (integer buffers of one element) and other attributes
  are restored after the call.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from operator import is_
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from .layers import check_network

Weights = dict[str, Tensor]
Result = TypeVar("Result")

# Operations whose result shares memory with a tensor, through which writes are not counted in
# `Tensor._version`.
_UNCOUNTED = (
    Tensor.data.__get__,  # type: ignore[attr-defined]
    Tensor.data.__set__,  # type: ignore[attr-defined]
    Tensor.detach,
    Tensor.numpy,
)
_CONTAINERS = (list, dict, set, deque)
_KINDS = ("parameter", "buffer", "module")  # in the order of `_registries`


class UnadaptedWeights(ValueError):
    """A module used its own parameter although the current task has other weights for it.

    Attributes:
        parameter: its name.
    """

    def __init__(self, parameter: str) -> None:
        super().__init__(
            f"the parameter {parameter!r} is read past the module that holds it, where adapted"
            " weights do not reach; read it in forward() as an attribute of its module, not from a"
            " closure, a list or a saved reference"
        )
        self.parameter = parameter


class Watch(TorchFunctionMode):
    """Detects forbidden reads and writes while a module runs with the weights of a task.

    An operation on the values of a replaced parameter raises `UnadaptedWeights`. So does an
    operation whose saved tensors go to hooks of the model: by such hooks checkpointing runs a block
    again in the backward pass, where it would find that parameter.

    Args:
        replaced: by name, the parameters for which the current task has other weights.
        used: by name, the parameters and buffers of the call; see `written`.
        hooks: whether to check the hooks too.
    """

    def __init__(
        self, replaced: Mapping[str, Tensor], used: Mapping[str, Tensor], *, hooks: bool
    ) -> None:
        super().__init__()
        self.replaced = {id(tensor): name for name, tensor in replaced.items()}
        self.used = {id(tensor): name for name, tensor in used.items()}
        self.copies: dict[str, tuple[Tensor, Tensor]] = {}  # a tensor and its values before
        self.hooks_outside = _saving_hooks() if hooks and replaced else None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _UNCOUNTED and id(args[0]) in self.used:
            tensor = args[0]
            self.copies.setdefault(self.used[id(tensor)], (tensor, tensor.clone()))
        result = func(*args, **kwargs)
        name = self._replaced_among((*args, *kwargs.values()))
        # Only an operation that returns tensors reads values. Shapes, devices and the like are the
        # same for all weights.
        if name and _holds_tensor(result):
            raise UnadaptedWeights(name)
        if (
            self.hooks_outside is not None
            and torch.is_grad_enabled()
            and _saving_hooks() != self.hooks_outside
        ):
            raise UnadaptedWeights(next(iter(self.replaced.values())))
        return result

    def written(self) -> list[str]:
        """The names of tensors that were changed in ways that autograd does not count (`.data`)."""
        return [
            name
            for name, (tensor, before) in self.copies.items()
            if not torch.equal(tensor, before)
        ]

    def _replaced_among(self, arguments: Iterable[Any]) -> str:
        """The name of the first replaced parameter among arguments, and in lists among them."""
        for argument in arguments:
            if id(argument) in self.replaced:
                return self.replaced[id(argument)]
            if isinstance(argument, list | tuple):
                name = self._replaced_among(argument)
                if name:
                    return name
        return ""


def _saving_hooks() -> tuple[Any, ...]:
    """The hooks that apply now to tensors which operations save for their backward pass."""
    ignore_tracing = True
    return torch._C._autograd._top_saved_tensors_default_hooks(ignore_tracing) or ()


class _Tripwire(Tensor):
    """A parameter that raises `UnadaptedWeights` when its values are used."""

    name = ""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = _tensors((args, tuple(kwargs.values())))
        wire = next(tensor for tensor in tensors if isinstance(tensor, cls))
        try:
            with torch._C.DisableTorchFunctionSubclass():
                result = func(*args, **kwargs)
        except RuntimeError as error:
            # For example with activations of vmap, which no longer exist in a backward pass.
            raise UnadaptedWeights(wire.name) from error
        if _holds_tensor(result):
            raise UnadaptedWeights(wire.name)
        return result


def tripwires(module: nn.Module, names: Container[str]) -> AbstractContextManager[None]:
    """A context in which a use of these attributes of the module raises `UnadaptedWeights`.

    For backward passes: a module that runs again in one would not find the weights that it had in
    the forward pass.

    Args:
        module: any module.
        names: of its parameters.
    """
    if is_plain(module):
        return nullcontext()
    wires: Weights = {}
    for name, parameter in module.named_parameters():
        if name in names:
            wire = parameter.detach().as_subclass(_Tripwire)
            wire.name = name
            wires[name] = wire
    return _installed(module, wires)


def call(
    module: nn.Module,
    weights: Weights,
    function: Callable[[nn.Module], Result],
    *,
    keep: bool = False,
    stacked: bool = False,
) -> Result:
    """Return `function(module)` while the module has these weights.

    Args:
        module: any module. It is restored when the call returns.
        weights: tensors by parameter name; other parameters keep their own.
        function: what to do with the module.
        keep: run a copy of the module, in which the weights stay for the backward pass.
        stacked: whether this runs under `torch.vmap`, where values cannot be compared.

    Raises:
        UnadaptedWeights: a parameter with other weights was read past its module.
        ValueError: the module writes into its parameters or buffers.

    Example:
        >>> doubled = {"weight": torch.full((1, 1), 2.0)}
        >>> module = nn.Linear(1, 1, bias=False)
        >>> call(module, doubled, lambda network: network(torch.ones(1, 1))).item()
        2.0
    """
    if not keep and is_plain(module):  # nothing to detect and nothing else to restore
        with _installed(module, weights):
            return function(module)
    network = replica(module) if keep else module
    state = _State(network, weights)
    watch = Watch(state.replaced, {} if stacked else state.tensors, hooks=not keep)
    try:
        with watch:
            result = function(network)
        written = [*state.written(), *watch.written()]
    finally:
        if not keep:  # a copy keeps its weights for the backward pass
            state.restore()
    if written:
        raise ValueError(
            f"the model writes into its {written[0]} while it runs, so each task would change the"
            " result of the next; switch that off with model.eval(), or keep it out of the model"
        )
    return result


def is_plain(model: nn.Module) -> bool:
    """Whether a network has only modules of PyTorch and this package, and no hooks.

    Such a network has none of the three habits.

    Example:
        >>> is_plain(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
        True
    """
    return all(
        _is_known(type(module))  # type: ignore[arg-type]
        and "forward" not in vars(module)
        and not (module._forward_hooks or module._forward_pre_hooks)
        for module in model.modules()
    )


@cache
def _is_known(kind: type[nn.Module]) -> bool:
    if kind.__module__.startswith("metalearn.compat."):
        return False
    return kind.__module__.startswith(("metalearn.", "torch.nn.modules."))


@contextmanager
def _installed(module: nn.Module, weights: Weights) -> Iterator[None]:
    """A context in which the module has these weights as its parameters."""
    replaced: list[tuple[dict[str, Any], str, nn.Parameter]] = []
    names: dict[int, str] = {}  # a tied parameter has one name in `weights`: its first
    for path, part in module.named_modules():
        prefix = f"{path}." if path else ""
        for key, parameter in part._parameters.items():
            if parameter is None:
                continue
            name = names.setdefault(id(parameter), prefix + key)
            if name in weights:
                replaced.append((part._parameters, key, parameter))
    for registry, key, parameter in replaced:
        registry[key] = weights[names[id(parameter)]]
    try:
        yield
    finally:
        for registry, key, parameter in replaced:
            registry[key] = parameter


def check_weights(model: nn.Module) -> None:
    """Raise ValueError, with the cure, if other weights cannot be used in a module.

    Example:
        >>> check_weights(nn.LazyLinear(3))
        Traceback (most recent call last):
        ...
        ValueError: the model itself (LazyLinear) has no weights before its first run; run the model
        once on a batch of inputs
    """
    check_network(model)
    for path, module in model.named_modules():
        name = f"{path or 'the model itself'} ({type(module).__name__})"
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                f"{name} is compiled to TorchScript, where weights cannot be exchanged; pass the"
                " module that it was made from"
            )
        if any(map(is_lazy, (*module._parameters.values(), *module._buffers.values()))):
            raise ValueError(
                f"{name} has no weights before its first run; run the model once on a batch of"
                " inputs"
            )


def replica(module: nn.Module) -> nn.Module:
    """A copy of a module that shares its tensors.

    Raises:
        TypeError: a part of the module cannot be copied.
    """
    # deepcopy returns the values of its memo in place of copies.
    memo: dict[int, Any] = {}
    for part in module.modules():
        memo.update((id(tensor), tensor) for tensor in _tensors(vars(part).values()))
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:
        raise TypeError(
            f"{type(module).__name__} cannot be copied ({str(error).splitlines()[0]})"
        ) from error


class _Part(NamedTuple):
    """The content of one module before a call.

    Attributes:
        prefix: of the names of its tensors.
        module: the module.
        registered: copies of its dictionaries of parameters, buffers and modules.
        installed: the same with the weights of the call.
        attributes: all its attributes.
        contents: its lists, dictionaries and the like, each with a copy.
    """

    prefix: str
    module: nn.Module
    registered: tuple[dict[str, Any], ...]
    installed: tuple[dict[str, Any], ...]
    attributes: dict[str, Any]
    contents: list[tuple[Any, Any]]


class _State:
    """The content of a network before a call. Creating this installs the weights.

    Attributes:
        tensors: the parameters and buffers that the call uses, by kind and name.
        replaced: the parameters for which the call uses other weights, by name.
        parts: the content of each module.
        versions: how often each tensor has been written to, by kind and name.
    """

    def __init__(self, network: nn.Module, weights: Weights) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.replaced: dict[str, Tensor] = {}
        names: dict[int, str] = {}  # a tied parameter has one name in `weights`: its first
        self.parts = [
            self._install(path, part, weights, names) for path, part in network.named_modules()
        ]
        # torch counts the writes into a tensor in `_version`; inference tensors have none.
        self.versions = {
            name: tensor._version
            for name, tensor in self.tensors.items()
            if not tensor.is_inference()
        }

    def _install(
        self, path: str, module: nn.Module, weights: Weights, names: dict[int, str]
    ) -> _Part:
        """Install the weights of one module -> its content before."""
        prefix = f"{path}." if path else ""
        attributes = dict(vars(module))
        contents = [
            (value, copy.copy(value)) for value in attributes.values() if type(value) in _CONTAINERS
        ]
        registered = _copies(module)
        parameters, buffers, _ = registered
        for key, parameter in parameters.items():
            if parameter is None:
                continue
            name = names.setdefault(id(parameter), prefix + key)
            weight = weights.get(name, parameter)
            self.tensors[f"parameter {name}"] = weight
            if weight is not parameter:
                self.replaced[name] = parameter
                module._parameters[key] = weight  # type: ignore[assignment]
        for key, buffer in buffers.items():
            if buffer is None:  # registered and empty, such as a running mean that is switched off
                continue
            if buffer.numel() == 1 and not buffer.is_floating_point():
                module._buffers[key] = buffer.clone()  # a counter, which only this call changes
            else:
                self.tensors[f"buffer {prefix}{key}"] = buffer
        return _Part(prefix, module, registered, _copies(module), attributes, contents)

    def written(self) -> list[str]:
        """The parameters, buffers and modules that the call has changed or replaced."""
        names = [
            name
            for name, version in self.versions.items()
            if self.tensors[name]._version != version
        ]
        for part in self.parts:
            registries = zip(_KINDS, part.installed, _registries(part.module), strict=True)
            for kind, before, after in registries:
                names += [
                    f"{kind} {part.prefix}{key}"
                    for key in before.keys() | after.keys()
                    if before.get(key) is not after.get(key)
                ]
        return names

    def restore(self) -> None:
        """Restore every module to its content before the call."""
        for part in self.parts:
            attributes = vars(part.module)
            if not _same_items(attributes.values(), part.attributes.values()):
                attributes.clear()
                attributes.update(part.attributes)
            for container, content in part.contents:
                if not _same_items(_values(container), _values(content)):
                    _refill(container, content)
            for registry, before in zip(_registries(part.module), part.registered, strict=True):
                registry.clear()
                registry.update(before)


def _registries(module: nn.Module) -> tuple[dict[str, Any], ...]:
    """A module's dictionaries of parameters, buffers and modules; see `_KINDS`."""
    return module._parameters, module._buffers, module._modules


def _copies(module: nn.Module) -> tuple[dict[str, Any], ...]:
    """Copies of a module's dictionaries of parameters, buffers and modules."""
    return tuple(dict(registry) for registry in _registries(module))


def _same_items(a: Collection[Any], b: Collection[Any]) -> bool:
    """Whether two collections hold the same objects in the same order."""
    return len(a) == len(b) and all(map(is_, a, b))


def _values(container: Any) -> Collection[Any]:
    return container.values() if isinstance(container, dict) else container


def _refill(container: Any, content: Any) -> None:
    container.clear()
    if isinstance(container, list | deque):
        container.extend(content)
    else:
        container.update(content)


def _holds_tensor(value: Any) -> bool:
    return next(_tensors((value,)), None) is not None


def _tensors(values: Iterable[Any], depth: int = 3) -> Iterator[Tensor]:
    """The tensors among values, and in nested lists, tuples and dictionaries."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif depth and isinstance(value, list | tuple):
            yield from _tensors(value, depth - 1)
        elif depth and isinstance(value, dict):
            yield from _tensors(value.values(), depth - 1)
