"""The layers of a network: the units in which rates, sources and similarities are said.

A layer is named by the module path that PyTorch gives it (`layer2.0`, `encoder.layers.encoder_layer_3`). Wherever a layer is asked for,
any module path will do: a prefix such as `layer2` stands for all the layers below it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import TypeVar

from torch import nn

Value = TypeVar("Value")

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def layers(model: nn.Module) -> list[str]:
    """The names of a network's layers, in order of registration: the modules that hold its parameters and buffers.

    The rule: the children of `model` that hold parameters or buffers, except that these are opened into their children:

    - a plain `nn.Sequential`, `nn.ModuleList` or `nn.ModuleDict` (a subclass is a block of its author's, and stays whole);
    - a child that holds a stack of blocks: a plain container with two or more modules of one class, of which one nests modules of its
      own (the encoder of a vision transformer, a ResNet used as a backbone). An element of a container is never opened by this rule.

    Every parameter and buffer belongs to exactly one layer; see `owners`.

    Example:
        >>> layers(nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 5)))
        ['0', '3']
    """
    found = [name for name, _ in _walk(model, "")]
    return found or [""] * bool(_holds_tensors(model))


def owners(model: nn.Module) -> dict[str, str]:
    """Parameter and buffer name -> the one layer it belongs to (a bare parameter to the first layer of its container).

    Example:
        >>> owners(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))
        {'1.weight': '1', '1.bias': '1'}
    """
    names = layers(model)
    tensors = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
    return {tensor: _owner(tensor, names) for tensor in tensors}


def head(model: nn.Module, name: str | None = None) -> str:
    """The name of the head: the last `nn.Linear` or `nn.Conv2d` by registration, or `name` where one is given (and exists).

    Raises ValueError where there is none, or where `name` is not a module of `model`.

    Example:
        >>> head(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
        '2'
    """
    if name is not None:
        return resolve(model, name)
    candidates = [path for path, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    if not candidates:
        raise ValueError(f"{type(model).__name__} has no Linear or Conv2d that could be its head; name the module with head=")
    return candidates[-1]


def body(model: nn.Module, head_name: str | None = None) -> list[str]:
    """The names of the layers that are not the head (nor inside it).

    Example:
        >>> body(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
        ['0']
    """
    last = head(model, head_name)
    owner = owners(model)
    outside = {owner[tensor] for tensor in owner if not is_inside(tensor, last)}
    return [layer for layer in layers(model) if layer in outside]


def is_inside(name: str, path: str) -> bool:
    """Whether the tensor or module `name` is `path` or lies below it; everything lies below the path ""."""
    return path == "" or name == path or name.startswith(path + ".")


def resolve(model: nn.Module, name: str, *, parameters: bool = False) -> str:
    """`name` itself, if it is a module of `model` (or, on request, a parameter).

    Raises ValueError that lists near matches, so that a misspelt layer never passes for an empty one.
    """
    known = [path for path, _ in model.named_modules(remove_duplicate=False)]
    if parameters:
        known += [path for path, _ in model.named_parameters(remove_duplicate=False)]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else f"its layers are {', '.join(layers(model))}"
        raise ValueError(f"{type(model).__name__} has no layer {name!r}; {hint}")
    return name


def assign(model: nn.Module, values: Mapping[str, Value]) -> dict[str, Value]:
    """Spread `{module or parameter path: value}` over parameters -> `{parameter name: value}`; the longest matching path wins.

    A parameter that no path reaches is left out. A parameter that is used in two places (tied weights) is reached through either name,
    and raises ValueError where the two disagree, as does a path that does not exist.

    Example:
        >>> assign(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), {"": 0.1, "1": 0.5, "1.bias": 0.0})
        {'0.weight': 0.1, '0.bias': 0.1, '1.weight': 0.5, '1.bias': 0.0}
    """
    for path in values:
        resolve(model, path, parameters=True)
    names: dict[int, str] = {id(tensor): name for name, tensor in model.named_parameters()}
    reached: dict[str, tuple[str, str]] = {}
    for alias, tensor in model.named_parameters(remove_duplicate=False):
        matches = [path for path in values if is_inside(alias, path)]
        if not matches:
            continue
        path, name = max(matches, key=len), names[id(tensor)]
        other = reached.setdefault(name, (path, alias))
        if other[0] != path and values[other[0]] is not values[path] and values[other[0]] != values[path]:
            raise ValueError(
                f"{other[1]} and {alias} are one tied parameter, but {other[0]!r} gives it {values[other[0]]!r} and {path!r} gives it "
                f"{values[path]!r}; give both the same"
            )
    return {name: values[reached[name][0]] for name in names.values() if name in reached}


def _walk(module: nn.Module, prefix: str, *, opened: bool = True) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if not _holds_tensors(child):
            continue
        plain = type(child) in _CONTAINERS
        if plain or (opened and _holds_stack(child)):
            yield from _walk(child, f"{path}.", opened=not plain)
        else:
            yield path, child


def _holds_tensors(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None or next(module.buffers(), None) is not None


def _holds_stack(module: nn.Module) -> bool:
    return any(_is_stack(child) or (type(child) not in _CONTAINERS and _holds_stack(child)) for child in module.children())


def _is_stack(module: nn.Module) -> bool:
    if type(module) not in _CONTAINERS:
        return False
    blocks = [child for child in module.children() if not isinstance(child, _CONTAINERS)]
    kinds = {type(block) for block in blocks if _nests(block)}
    return any(sum(type(block) is kind for block in blocks) >= 2 for kind in kinds)


def _nests(module: nn.Module) -> bool:
    return any(next(child.children(), None) is not None for child in module.children())


def _owner(tensor: str, names: list[str]) -> str:
    """The layer that holds the tensor, or else the first layer of the innermost container that does."""
    container = tensor
    while True:
        if container in names:
            return container
        container = container.rpartition(".")[0]
        below = [name for name in names if is_inside(name, container)]
        if below:
            return container if container in names else below[0]
