"""Calling a module with other weights than its own.

A call installs weights in a module, runs it, and puts the module's own back. Three habits of
modules would make the result wrong. They are seen by what happens to tensors, not by class names:

- A module that runs again in the backward pass (`torch.utils.checkpoint`) would then find the
  weights from before adaptation. `tripwires` see such a read. The network is from then on run in a
  copy for every call, in which the weights stay.
- A module that reads a parameter past the module, from a closure or a list, would never see adapted
  weights. `Watch` sees it, and it is refused.
- A module that writes into itself would let every task change what the next one sees. Writes into
  parameters and buffers are refused. Counters (integer buffers of one element) and other attributes
  are put back after the call.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
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

# Operations whose result shares memory with a tensor, and whose writes autograd does not count.
_UNCOUNTED = (
    Tensor.data.__get__,  # type: ignore[attr-defined]
    Tensor.data.__set__,  # type: ignore[attr-defined]
    Tensor.detach,
    Tensor.numpy,
)
_CONTAINERS = (list, dict, set, deque)
_KINDS = ("parameter", "buffer", "module")  # in the order of `_registries`


class UnadaptedWeights(ValueError):
    """A parameter that has other weights in the current task was read as it is without them;
    `parameter` names it.
    """

    def __init__(self, parameter: str) -> None:
        super().__init__(
            f"the parameter {parameter!r} is read past the module that holds it, where adapted"
            " weights do not reach; read it in forward() as an attribute of its module, not from a"
            " closure, a list or a saved reference"
        )
        self.parameter = parameter


class Watch(TorchFunctionMode):
    """Sees what a module does with tensors that it should not read or write while it runs with the
    weights of a task.

    An operation on the values of a replaced parameter raises `UnadaptedWeights`. So does an
    operation whose saved tensors go to hooks of the model's own: such hooks are how checkpointing
    runs a block again in the backward pass, where it would find that parameter.

    Args:
        replaced: by name, the parameters that have other weights in the current task.
        used: by name, the parameters and buffers that are used in their place; see `written`.
        hooks: whether to look at hooks too.
    """

    def __init__(
        self, replaced: Mapping[str, Tensor], used: Mapping[str, Tensor], *, hooks: bool
    ) -> None:
        super().__init__()
        self.replaced = {id(tensor): name for name, tensor in replaced.items()}
        self.used = {id(tensor): name for name, tensor in used.items()}
        self.before: dict[str, tuple[Tensor, Tensor]] = {}
        self.outside = _saving_hooks() if hooks and replaced else None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _UNCOUNTED and id(args[0]) in self.used:
            self.before.setdefault(self.used[id(args[0])], (args[0], args[0].clone()))
        result = func(*args, **kwargs)
        name = self._replaced_among(args) or (kwargs and self._replaced_among(kwargs.values()))
        # Shapes, devices and the like are the same for all weights: only an operation that returns
        # tensors reads values.
        if name and _holds_tensor(result):
            raise UnadaptedWeights(name)
        if self.outside is not None and torch.is_grad_enabled() and _saving_hooks() != self.outside:
            raise UnadaptedWeights(next(iter(self.replaced.values())))
        return result

    def written(self) -> list[str]:
        """The names of the tensors that were written to where autograd does not count writes, such
        as through `.data`.
        """
        return [
            name
            for name, (tensor, before) in self.before.items()
            if not torch.equal(tensor, before)
        ]

    def _replaced_among(self, arguments: Iterable[Any]) -> str:
        for argument in arguments:
            if id(argument) in self.replaced:
                return self.replaced[id(argument)]
            if isinstance(argument, list | tuple):
                name = self._replaced_among(argument)
                if name:
                    return name
        return ""


def _saving_hooks() -> tuple[Any, ...]:
    """The hooks that a tensor goes through now when an operation saves it for its backward pass."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) or ()


class _Tripwire(Tensor):
    """A parameter of which any use raises `UnadaptedWeights`."""

    name = ""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        touched = next(
            tensor for tensor in _tensors((args, tuple(kwargs.values()))) if isinstance(tensor, cls)
        )
        try:
            with torch._C.DisableTorchFunctionSubclass():
                result = func(*args, **kwargs)
        except (
            RuntimeError
        ) as error:  # such as with activations of vmap, which are gone in a backward pass
            raise UnadaptedWeights(touched.name) from error
        if _holds_tensor(result):
            raise UnadaptedWeights(touched.name)
        return result


def tripwires(module: nn.Module, names: Container[str]) -> AbstractContextManager[None]:
    """A context manager in which any use of these parameters as attributes of the module raises
    `UnadaptedWeights`.

    For backward passes: a module that runs again in one would not find the weights that it had in
    the forward pass.
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
    """`function` of a module that has these weights.

    Args:
        module: any module. When the call returns, it is as it was before.
        weights: tensors by parameter name; parameters that are not named keep their own.
        function: what to do with the module.
        keep: run a copy of the module, in which the weights stay, so that what runs again in the
            backward pass finds them.
        stacked: whether this runs under `torch.vmap`, where values cannot be compared.

    Raises:
        UnadaptedWeights: a parameter that has other weights here was read past its module.
        ValueError: the module writes into its parameters or buffers.

    Example:
        >>> doubled = {"weight": torch.full((1, 1), 2.0)}
        >>> call(nn.Linear(1, 1, bias=False), doubled, lambda module: module(torch.ones(1, 1))).item()
        2.0
    """
    if not keep and is_plain(module):
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
        if not keep:
            state.restore()
    if written:
        raise ValueError(
            f"the model writes into its {written[0]} while it runs, so that every task changes what"
            " the next one sees; switch that off with model.eval(), or keep it out of the model"
        )
    return result


def is_plain(model: nn.Module) -> bool:
    """Whether a network is made of PyTorch's modules and this package's alone, without hooks: these
    have none of the three habits.

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
    own = kind.__module__.startswith("metalearn.") and not kind.__module__.startswith(
        "metalearn.compat."
    )
    return own or kind.__module__.startswith("torch.nn.modules.")


@contextmanager
def _installed(module: nn.Module, weights: Weights) -> Iterator[None]:
    """While it is on, the parameters of the module are these."""
    places = []
    names: dict[int, str] = {}  # a tied parameter has one name in `weights`: its first
    for path, part in module.named_modules():
        for key, parameter in part._parameters.items():
            if parameter is None:
                continue
            name = names.setdefault(id(parameter), f"{path}.{key}" if path else key)
            places.append((part._parameters, key, parameter, weights.get(name, parameter)))
    for registered, key, _, weight in places:
        registered[key] = weight  # type: ignore[assignment]
    try:
        yield
    finally:
        for registered, key, parameter, _ in places:
            registered[key] = parameter


def check_weights(model: nn.Module) -> None:
    """Raise ValueError, with the cure, if the weights of a module are not there yet or cannot be
    exchanged.

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
                " module it was made from"
            )
        if any(map(is_lazy, (*module._parameters.values(), *module._buffers.values()))):
            raise ValueError(
                f"{name} has no weights before its first run; run the model once on a batch of"
                " inputs"
            )


def replica(module: nn.Module) -> nn.Module:
    """Another module of the same structure that shares every tensor.

    Raises:
        TypeError: a part of the module cannot be copied.
    """
    tensors = [tensor for part in module.modules() for tensor in _tensors(vars(part).values())]
    try:
        return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})
    except Exception as error:
        raise TypeError(
            f"{type(module).__name__} cannot be copied ({str(error).splitlines()[0]})"
        ) from error


class _Part(NamedTuple):
    """One module before a call: its own tensors and modules by name, those that the call uses, and
    its other attributes.
    """

    prefix: str
    module: nn.Module
    own: tuple[dict[str, Any], ...]
    used: tuple[dict[str, Any], ...]
    attributes: dict[str, Any]
    contents: list[
        tuple[Any, Any]
    ]  # lists, dictionaries and the like, each with a copy of what it holds


class _State:
    """What a module holds before a call. Making it installs the weights."""

    def __init__(self, network: nn.Module, weights: Weights) -> None:
        self.tensors: dict[str, Tensor] = {}  # the parameters and buffers that the call uses
        self.replaced: dict[
            str, Tensor
        ] = {}  # the parameters for which the call uses other weights
        names: dict[int, str] = {}  # a tied parameter has one name in `weights`: its first
        self.parts = [
            self._install(path, part, weights, names) for path, part in network.named_modules()
        ]
        self.versions = {
            name: tensor._version
            for name, tensor in self.tensors.items()
            if not tensor.is_inference()
        }

    def _install(
        self, path: str, module: nn.Module, weights: Weights, names: dict[int, str]
    ) -> _Part:
        prefix = f"{path}." if path else ""
        attributes = dict(vars(module))
        contents = [
            (value, copy.copy(value)) for value in attributes.values() if type(value) in _CONTAINERS
        ]
        own = _registered(module)
        for key, parameter in own[0].items():
            if parameter is None:
                continue
            name = names.setdefault(id(parameter), prefix + key)
            weight = weights.get(name, parameter)
            self.tensors[f"parameter {name}"] = weight
            if weight is not parameter:
                self.replaced[name] = parameter
                module._parameters[key] = weight  # type: ignore[assignment]
        for key, buffer in own[1].items():
            if buffer is None:
                continue
            if buffer.numel() == 1 and not buffer.is_floating_point():
                module._buffers[key] = buffer.clone()  # a counter: this call counts for itself
            else:
                self.tensors[f"buffer {prefix}{key}"] = buffer
        return _Part(prefix, module, own, _registered(module), attributes, contents)

    def written(self) -> list[str]:
        """What the call wrote to or replaced among parameters, buffers and modules."""
        names = [
            name
            for name, version in self.versions.items()
            if self.tensors[name]._version != version
        ]
        for part in self.parts:
            for kind, before, after in zip(
                _KINDS, part.used, _registered(part.module), strict=True
            ):
                names += [
                    f"{kind} {part.prefix}{key}"
                    for key in before.keys() | after.keys()
                    if before.get(key) is not after.get(key)
                ]
        return names

    def restore(self) -> None:
        """Put everything back."""
        for part in self.parts:
            held = vars(part.module)
            if len(held) != len(part.attributes) or not all(
                map(is_, held.values(), part.attributes.values())
            ):
                held.clear()
                held.update(part.attributes)
            for container, content in part.contents:
                if len(container) != len(content) or not all(
                    map(is_, _values(container), _values(content))
                ):
                    _refill(container, content)
            for registered, own in zip(_registries(part.module), part.own, strict=True):
                registered.clear()
                registered.update(own)


def _registries(module: nn.Module) -> tuple[dict[str, Any], ...]:
    return module._parameters, module._buffers, module._modules


def _registered(module: nn.Module) -> tuple[dict[str, Any], ...]:
    parameters, buffers, modules = _registries(module)
    return dict(parameters), dict(buffers), dict(modules)


def _values(container: Any) -> Iterable[Any]:
    return container.values() if isinstance(container, dict) else container


def _refill(container: Any, content: Any) -> None:
    container.clear()
    add = container.extend if isinstance(container, list | deque) else container.update
    add(content)


def _holds_tensor(value: Any) -> bool:
    return next(_tensors((value,)), None) is not None


def _tensors(values: Iterable[Any], depth: int = 3) -> Iterator[Tensor]:
    """The tensors among values, and in lists, tuples and dictionaries among them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif depth and isinstance(value, list | tuple):
            yield from _tensors(value, depth - 1)
        elif depth and isinstance(value, dict):
            yield from _tensors(value.values(), depth - 1)
