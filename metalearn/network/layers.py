"""The layers of a network: the units in which rates, sources and similarities are said.

A layer is named by the module path that PyTorch gives it (`layer2.0`,
`encoder.layers.encoder_layer_3`). Wherever a layer is asked for, any module path will do: a prefix
such as `layer2` stands for all the layers below it. Where values are spread over parameters
(`assign`), a wildcard such as `*lora_*` stands for every path that it matches.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import TypeVar

from torch import nn

Value = TypeVar("Value")

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def check_network(model: object) -> None:
    """Raise TypeError if `model` is not a network.

    Example:
        >>> check_network("resnet18")
        Traceback (most recent call last):
        TypeError: the model is 'resnet18', a str; pass a torch.nn.Module
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"the model is {model!r:.60}, a {type(model).__name__}; pass a torch.nn.Module"
        )


def layers(model: nn.Module) -> list[str]:
    """The names of a network's layers, in order of registration: the modules that hold its
    parameters and buffers.

    The rule: the children of `model` that hold parameters or buffers, except that these are opened
    into their children:

    - a plain `nn.Sequential`, `nn.ModuleList` or `nn.ModuleDict` (a subclass is a block of its
      author's, and stays whole);
    - a child that holds a stack of blocks: a plain container with two or more modules of one class,
      of which one nests modules of its own (the encoder of a vision transformer, a ResNet used as a
      backbone). An element of a container is never opened by this rule.

    Every parameter and buffer belongs to exactly one layer; see `owners`.

    Example:
        >>> layers(nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 5)))
        ['0', '3']
    """
    check_network(model)
    found = [name for name, _ in _walk(model, "")]
    return found or [""] * bool(_holds_tensors(model))


def owners(model: nn.Module) -> dict[str, str]:
    """Parameter and buffer name -> the one layer it belongs to (a bare parameter to the first layer
    of its container).

    Example:
        >>> owners(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))
        {'1.weight': '1', '1.bias': '1'}
    """
    names = layers(model)
    tensors = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
    return {tensor: _owner(tensor, names) for tensor in tensors}


def head(model: nn.Module, name: str | None = None) -> str:
    """The name of the head: the last `nn.Linear` or `nn.Conv2d` by registration, or `name` if one
    is given (and exists).

    If that layer is part of a low-rank adapter (`base(x) + B(A(x))`), the head is the adapter. This
    is a guess: which layer makes the output only a run can tell (see
    `metalearn.network.activations.output_of`).

    Raises:
        ValueError: there is none, or `name` is not a module of `model`.
        TypeError: `name` is not a string.

    Example:
        >>> head(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
        '2'
    """
    if name is not None:
        return resolve(model, name)
    possible = heads(model)
    if not possible:
        raise ValueError(
            f"{type(model).__name__} has no Linear or Conv2d that could be its head; name the"
            " module with head="
        )
    return possible[-1]


def heads(model: nn.Module) -> list[str]:
    """The names of the layers that could be the head, by registration: every `nn.Linear` and
    `nn.Conv2d`, or the adapter around it.

    Example:
        >>> heads(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
        ['0', '2']
    """
    check_network(model)
    adapters = [path for path, module in model.named_modules() if path and _is_adapter(module)]
    paths = [
        path for path, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    # An adapter is registered before the layers inside it, so that the first match is the outermost
    # one.
    whole = [
        next((adapter for adapter in adapters if is_inside(path, adapter)), path) for path in paths
    ]
    return list(dict.fromkeys(whole))


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
    """Whether the tensor or module `name` is `path` or lies below it; everything lies below the
    path "".
    """
    return path == "" or name == path or name.startswith(path + ".")


def resolve(model: nn.Module, name: str, *, parameters: bool = False) -> str:
    """`name` itself, if it is a module of `model` (or, on request, a parameter).

    Raises ValueError that lists near matches, so that a misspelt layer never passes for an empty
    one, and TypeError if it is no string.
    """
    check_network(model)
    if not isinstance(name, str):
        example = (layers(model) or [""])[-1]
        raise TypeError(
            f"a layer is named by its path, a string such as {example!r}, not by {name!r}, a"
            f" {type(name).__name__}"
        )
    known = [path for path, _ in model.named_modules(remove_duplicate=False)]
    if parameters:
        known += [path for path, _ in model.named_parameters(remove_duplicate=False)]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
        hint = (
            f"did you mean {', '.join(near)}?"
            if near
            else f"its layers are {', '.join(layers(model))}"
        )
        raise ValueError(f"{type(model).__name__} has no layer {name!r}; {hint}")
    return name


def is_wildcard(path: str) -> bool:
    """Whether a path is a pattern, such as `*lora_*`, rather than the name of one module or
    parameter.
    """
    return isinstance(path, str) and any(mark in path for mark in "*?[")


def assign(model: nn.Module, values: Mapping[str, Value]) -> dict[str, Value]:
    """Spread `{module or parameter path: value}` over parameters -> `{parameter name: value}`; the
    longest matching path wins.

    A wildcard (`*lora_*`) reaches the parameters that it matches, and all that lies below the
    modules that it matches; of two keys as long as each other the first wins. A parameter that no
    path reaches is left out. A parameter that is used in two places (tied weights) is reached
    through either name.

    Raises ValueError if the two names of a tied parameter get different values, if a path does not
    exist, or if a wildcard matches nothing.

    Example:
        >>> assign(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), {"": 0.1, "1": 0.5, "*.bias": 0.0})
        {'0.weight': 0.1, '0.bias': 0.0, '1.weight': 0.5, '1.bias': 0.0}
    """
    assigned: dict[str, Value] = {}
    for name, reached in reach(model, values).items():
        alias, path = reached[0]
        value = values[path]
        for other_alias, other_path in reached[1:]:
            other = values[other_path]
            if other is not value and other != value:
                raise ValueError(
                    f"{alias} and {other_alias} are one tied parameter, but {path!r} gives it"
                    f" {value!r} and {other_path!r} gives it {other!r}; give both the same"
                )
        assigned[name] = value
    return assigned


def reach(model: nn.Module, paths: Iterable[str]) -> dict[str, list[tuple[str, str]]]:
    """Which path reaches each parameter: parameter name -> `(name, longest matching path)` for each
    of its names that one reaches.

    Only a tied parameter has more than one name. Raises ValueError as `assign` does.

    Example:
        >>> reach(nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)), ["", "1"])
        {'0.weight': [('0.weight', '')], '1.weight': [('1.weight', '1')]}
    """
    paths = list(paths)
    aliases = list(model.named_parameters(remove_duplicate=False))
    for path in paths:
        if not is_wildcard(path):
            resolve(model, path, parameters=True)
        elif not any(_matches(alias, path) for alias, _ in aliases):
            raise ValueError(
                f"the wildcard {path!r} matches no parameter of {type(model).__name__}; its layers"
                f" are {', '.join(layers(model))}"
            )
    names = {id(tensor): name for name, tensor in model.named_parameters()}
    reached: dict[str, list[tuple[str, str]]] = {}
    for alias, tensor in aliases:
        matches = [path for path in paths if _matches(alias, path)]
        if matches:
            reached.setdefault(names[id(tensor)], []).append((alias, max(matches, key=len)))
    return {name: reached[name] for name in names.values() if name in reached}


def _matches(name: str, path: str) -> bool:
    """Whether a parameter is reached by a path or a wildcard."""
    if not is_wildcard(path):
        return is_inside(name, path)
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:end]), path) for end in range(1, len(parts) + 1))


def _is_adapter(module: nn.Module) -> bool:
    """Whether a module holds a layer and, beside it, nothing but pairs of low-rank factors whose
    product has the layer's shape.
    """
    layer = next(
        (child for child in module.children() if isinstance(child, nn.Linear | nn.Conv2d)), None
    )
    if layer is None or type(module) in _CONTAINERS:
        return False
    outputs, inputs = layer.weight.shape[:2]
    of_layers = {
        id(part.weight) for part in module.modules() if isinstance(part, nn.Linear | nn.Conv2d)
    }
    factors = [
        tensor for tensor in module.parameters() if tensor.ndim > 1 and tensor is not layer.weight
    ]
    down, up = (
        set(),
        set(),
    )  # the ranks of factors that take the layer's inputs, and of those that give its outputs
    for tensor in factors:
        start, end = tensor.shape[
            :2
        ]  # behind these the factors of a convolution have its kernel's sizes
        bare = (
            id(tensor) not in of_layers
        )  # and may be a factor of `x @ A @ B` as well as of `B(A(x))`
        takes = end == inputs or (bare and start == inputs)
        gives = start == outputs or (bare and end == outputs)
        if takes:
            down.add(start if end == inputs else end)
        if gives:
            up.add(end if start == outputs else start)
        if not takes and not gives:
            return False
    return len(factors) > 1 and down == up and max(down) < min(inputs, outputs)


def _walk(
    module: nn.Module, prefix: str, *, opened: bool = True
) -> Iterator[tuple[str, nn.Module]]:
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
    return any(
        _is_stack(child) or (type(child) not in _CONTAINERS and _holds_stack(child))
        for child in module.children()
    )


def _is_stack(module: nn.Module) -> bool:
    if type(module) not in _CONTAINERS:
        return False
    blocks = [child for child in module.children() if not isinstance(child, _CONTAINERS)]
    kinds = {type(block) for block in blocks if _nests(block)}
    return any(sum(type(block) is kind for block in blocks) >= 2 for kind in kinds)


def _nests(module: nn.Module) -> bool:
    return any(next(child.children(), None) is not None for child in module.children())


def _owner(tensor: str, names: list[str]) -> str:
    """The layer that holds the tensor, or else the first layer of the innermost container that
    does.
    """
    container = tensor
    while True:
        if container in names:
            return container
        container = container.rpartition(".")[0]
        below = [name for name in names if is_inside(name, container)]
        if below:
            return container if container in names else below[0]
