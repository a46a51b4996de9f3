"""The layers of a network: rates, sources and similarities are given per layer.

A layer is named by PyTorch's path of the module (`layer2.0`, `encoder.layers.encoder_layer_3`).
Functions that take a layer take any module path: a prefix such as `layer2` stands for all the
layers below it. In `assign`, a wildcard such as `*lora_*` stands for every path that it matches.
"""

from __future__ import annotations

import difflib
from collections import Counter
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
    """The names of a network's layers, in order of registration.

    The layers are the children of `model` that hold parameters or buffers. Two kinds of children
    are opened into their own children:

    - a plain `nn.Sequential`, `nn.ModuleList` or `nn.ModuleDict`. A subclass is a block and stays
      whole.
    - a child that holds a stack of blocks: a plain container with two or more modules of one class,
      at least one of them with modules inside (the encoder of a vision transformer, a ResNet used
      as a backbone). An element of a container is never opened by this rule.

    Every parameter and buffer belongs to exactly one layer; see `owners`.

    Raises:
        TypeError: `model` is not a network.

    Example:
        >>> layers(nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 5)))
        ['0', '3']
    """
    check_network(model)
    names = list(_walk(model, ""))
    if not names and _holds_tensors(model):
        return [""]  # the model itself is the only layer
    return names


def owners(model: nn.Module) -> dict[str, str]:
    """The layer that each parameter and buffer belongs to, by name.

    A parameter that a container holds itself belongs to the container's first layer.

    Example:
        >>> owners(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))
        {'1.weight': '1', '1.bias': '1'}
    """
    names = layers(model)
    tensors = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
    return {tensor: _owner(tensor, names) for tensor in tensors}


def head(model: nn.Module, name: str | None = None) -> str:
    """The name of the head: `name`, or the last `nn.Linear` or `nn.Conv2d` by registration.

    If that layer is part of a low-rank adapter (`base(x) + B(A(x))`), the head is the adapter. This
    is a guess. Only a run shows which layer computes the output (see
    `metalearn.network.activations.output_of`).

    Args:
        model: any network.
        name: a module of it.

    Raises:
        ValueError: there is no such layer, or `name` is not a module of `model`.
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
    """The names of the layers that could be the head, by registration.

    These are every `nn.Linear` and `nn.Conv2d`, or the low-rank adapter around it.

    Example:
        >>> heads(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
        ['0', '2']
    """
    check_network(model)
    adapters: list[str] = []  # the outermost ones: an adapter is registered before what is inside
    names: dict[str, None] = {}  # without duplicates, in order
    for path, module in model.named_modules():
        around = [adapter for adapter in adapters if is_inside(path, adapter)]
        if path and not around and _is_adapter(module):
            adapters.append(path)
            around = [path]
        if isinstance(module, nn.Linear | nn.Conv2d):
            names[around[0] if around else path] = None
    return list(names)


def body(model: nn.Module, head_name: str | None = None) -> list[str]:
    """The names of the layers that are not the head or inside it.

    Example:
        >>> body(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
        ['0']
    """
    last = head(model, head_name)
    # A layer that holds the head and other tensors too belongs to the body.
    owner = owners(model)
    outside = {owner[tensor] for tensor in owner if not is_inside(tensor, last)}
    return [layer for layer in layers(model) if layer in outside]


def is_inside(name: str, path: str) -> bool:
    """Whether the tensor or module `name` is `path` or below it; everything is below ""."""
    return path in ("", name) or name.startswith(f"{path}.")


def module_at(model: nn.Module, path: str) -> nn.Module | None:
    """The module at a path; None if there is none. Nothing but the path is walked.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2))
        >>> module_at(model, "0") is model[0], module_at(model, "1")
        (True, None)
    """
    module: nn.Module | None = model
    for part in path.split(".") if path else []:
        if module is None:
            break
        module = module._modules.get(part)
    return module


def resolve(model: nn.Module, name: str, *, parameters: bool = False) -> str:
    """Check that `name` is a module of `model`, and return it.

    Args:
        model: any network.
        name: the path of a module.
        parameters: whether the path of a parameter is allowed too.

    Raises:
        ValueError: there is no such path. The message lists near matches.
        TypeError: `name` is not a string.
    """
    check_network(model)
    if not isinstance(name, str):
        example = (layers(model) or [""])[-1]
        raise TypeError(
            f"a layer is named by its path, a string such as {example!r}, not by {name!r}, a"
            f" {type(name).__name__}"
        )
    if module_at(model, name) is not None:
        return name
    paths = [path for path, _ in model.named_modules(remove_duplicate=False)]
    if parameters:
        paths += [path for path, _ in model.named_parameters(remove_duplicate=False)]
    if name not in paths:
        hint = f"its layers are {', '.join(layers(model))}"
        near = difflib.get_close_matches(name, paths, n=4, cutoff=0.5)
        if near:
            hint = f"did you mean {', '.join(near)}?"
        raise ValueError(f"{type(model).__name__} has no layer {name!r}; {hint}")
    return name


def check_reached(model: nn.Module, paths: Iterable[str], setting: str) -> None:
    """Raise ValueError for a path of a module without parameters.

    Args:
        model: any network.
        paths: of modules or parameters, or wildcards, which exist.
        setting: what the paths are for, for the message.

    Example:
        >>> check_reached(nn.Sequential(nn.ReLU(), nn.Linear(2, 1)), ["1"], "rates")
    """
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    for path in paths:
        if not any(_matches(name, path) for name in names):
            raise ValueError(
                f"{setting} names {path!r} ({type(model.get_submodule(path)).__name__}), which has"
                f" no parameters; the layers that have some are {', '.join(layers(model))}"
            )


def is_wildcard(path: str) -> bool:
    """Whether a path is a pattern, such as `*lora_*`."""
    return isinstance(path, str) and any(mark in path for mark in "*?[")


def assign(model: nn.Module, values: Mapping[str, Value]) -> dict[str, Value]:
    """Spread values over parameters by path; the longest matching path wins.

    A wildcard (`*lora_*`) reaches the parameters that it matches, and all parameters below the
    modules that it matches. Of two paths of equal length, the first wins. A parameter that no path
    reaches is left out. A parameter that is used in two places (tied weights) is reached by either
    name.

    Args:
        model: any network.
        values: by the path of a module or parameter.

    Returns:
        The values by parameter name.

    Raises:
        ValueError: the two names of a tied parameter get different values, a path does not exist,
            or a wildcard matches nothing.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> assign(model, {"": 0.1, "1": 0.5, "*.bias": 0.0})
        {'0.weight': 0.1, '0.bias': 0.0, '1.weight': 0.5, '1.bias': 0.0}
    """
    assigned: dict[str, Value] = {}
    for name, reached in reach(model, values).items():
        # One entry for each name of the parameter: several only if it is tied.
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
    """The path that reaches each parameter.

    Args:
        model: any network.
        paths: of modules or parameters, or wildcards.

    Returns:
        By parameter name, a list of (name, longest matching path) for each of its names that a path
        reaches. Only a tied parameter has more than one name.

    Raises:
        ValueError: a path does not exist, or a wildcard matches nothing.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
        >>> reach(model, ["", "1"])
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
    # A tied parameter has several aliases and one name, its first.
    names = {id(tensor): name for name, tensor in model.named_parameters()}
    reached: dict[str, list[tuple[str, str]]] = {}
    for alias, tensor in aliases:
        matches = [path for path in paths if _matches(alias, path)]
        if matches:
            reached.setdefault(names[id(tensor)], []).append((alias, max(matches, key=len)))
    return {name: reached[name] for name in names.values() if name in reached}


def _matches(name: str, path: str) -> bool:
    """Whether a path or a wildcard reaches a parameter."""
    if not is_wildcard(path):
        return is_inside(name, path)
    # A wildcard that matches a module reaches all below it.
    parts = name.split(".")
    prefixes = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return any(fnmatchcase(prefix, path) for prefix in prefixes)


def _is_adapter(module: nn.Module) -> bool:
    """Whether a module is a low-rank adapter: a layer and pairs of factors, and nothing else.

    The product of each pair has the shape of the layer's weight W (outputs, inputs). One factor has
    the layer's inputs as a dimension, and one its outputs; the other dimension of both is the rank.
    """
    children = [child for child in module.children() if isinstance(child, nn.Linear | nn.Conv2d)]
    if not children or type(module) in _CONTAINERS:
        return False
    weight = children[0].weight
    outputs, inputs = weight.shape[:2]
    layer_weights = {
        id(part.weight) for part in module.modules() if isinstance(part, nn.Linear | nn.Conv2d)
    }
    factors = [tensor for tensor in module.parameters() if tensor.ndim > 1 and tensor is not weight]
    input_ranks = set()
    output_ranks = set()
    for factor in factors:
        # The other dimensions of a convolution's factor are the sizes of its kernel.
        rows, columns = factor.shape[:2]
        # A bare parameter may be transposed: `x @ A @ B` as well as `B(A(x))`.
        bare = id(factor) not in layer_weights
        has_inputs = columns == inputs or (bare and rows == inputs)
        has_outputs = rows == outputs or (bare and columns == outputs)
        if not has_inputs and not has_outputs:
            return False
        if has_inputs:
            input_ranks.add(rows if columns == inputs else columns)
        if has_outputs:
            output_ranks.add(columns if rows == outputs else rows)
    if len(factors) < 2 or input_ranks != output_ranks:
        return False
    return max(input_ranks) < min(inputs, outputs)


def _walk(module: nn.Module, prefix: str, *, opens_stacks: bool = True) -> Iterator[str]:
    """The paths of the layers inside a module; see `layers` for the rule."""
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if not _holds_tensors(child):
            continue
        plain = type(child) in _CONTAINERS
        if plain or (opens_stacks and _holds_stack(child)):
            yield from _walk(child, f"{path}.", opens_stacks=not plain)
        else:
            yield path


def _holds_tensors(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None or next(module.buffers(), None) is not None


def _holds_stack(module: nn.Module) -> bool:
    """Whether a stack of blocks is inside a module, but not inside a container of its own."""
    return any(
        _is_stack(child) or (type(child) not in _CONTAINERS and _holds_stack(child))
        for child in module.children()
    )


def _is_stack(module: nn.Module) -> bool:
    """Whether a module is a plain container with two modules of one class that nests others."""
    if type(module) not in _CONTAINERS:
        return False
    blocks = [child for child in module.children() if not isinstance(child, _CONTAINERS)]
    counts = Counter(type(block) for block in blocks)
    return any(counts[type(block)] >= 2 and _nests(block) for block in blocks)


def _nests(module: nn.Module) -> bool:
    """Whether a child of the module has children."""
    return any(next(child.children(), None) is not None for child in module.children())


def _owner(tensor: str, names: list[str]) -> str:
    """The layer that holds a tensor, or the first layer of the innermost container that does."""
    path = tensor
    while path not in names:
        path = path.rpartition(".")[0]
        below = [name for name in names if is_inside(name, path)]
        if below and path not in names:
            return below[0]
    return path
