"""Modules in place of others: substitutions by class, and layers whose weights are transformed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from metalearn.compat.learn2learn._missing import nearest
from metalearn.compat.learn2learn.utils import clone_module


class MetaModule(nn.Module):
    """A module with some of its submodules replaced, by class.

    Args:
        module: The module to wrap; it is changed in place.
        substitutions: From a class to a function of one of its instances that returns what stands
            in its place. Subclasses do not count.
        freeze_module: Have the module's own parameters require no gradient.

    Example:
        >>> def scaled(linear):
        ...     return ParameterTransform(linear, lambda weight: Scale())
        >>> from metalearn.compat.learn2learn.nn import Scale
        >>> net = MetaModule(nn.Sequential(nn.Linear(2, 1), nn.ReLU()), {nn.Linear: scaled})
        >>> len(list(net.meta_parameters()))
        2
    """

    def __init__(
        self,
        module: nn.Module,
        substitutions: Mapping[type[nn.Module], Callable[[Any], nn.Module]],
        freeze_module: bool = True,
    ) -> None:
        super().__init__()
        self.substitutions = substitutions
        self.freeze_module = freeze_module
        own = list(module.parameters())
        self.wrapped_module = self._wrap(module)
        if freeze_module:
            for parameter in own:
                parameter.requires_grad_(False)

    def _wrap(self, module: nn.Module) -> nn.Module:
        for name, child in list(module._modules.items()):
            if child is not None:
                module._modules[name] = self._wrap(child)
        substitute = self.substitutions.get(type(module))
        return module if substitute is None else substitute(module)

    def module(self) -> nn.Module:
        """The original module; what was put in place of others is taken off again, in place.

        That is so of a substitute which keeps the original as its attribute `module`, as
        `ParameterTransform` does; others stay.
        """
        return _unwrapped(self.wrapped_module)

    def meta_parameters(self, module: nn.Module | None = None) -> Iterator[Tensor]:
        """The parameters that the substitutes' own `meta_parameters()` give, each once."""
        given = set()
        for part in (self.wrapped_module if module is None else module).modules():
            of_part: Any = getattr(part, "meta_parameters", tuple)
            for parameter in of_part():
                if id(parameter) not in given:
                    given.add(id(parameter))
                    yield parameter

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the wrapped module gives."""
        return self.wrapped_module(*args, **kwargs)


class ParameterTransform(nn.Module):
    """Calls a module with transformed parameters; the module keeps its own.

    Args:
        module: The module to wrap.
        transform: Called with each parameter; returns the function, or module with weights of its
            own, that transforms it. Transforms are in `parameter_transforms`, by the parameter's
            name with "/" in place of ".".

    Example:
        >>> import torch
        >>> from metalearn.compat.learn2learn.nn import Scale
        >>> net = ParameterTransform(nn.Linear(2, 1), lambda weight: Scale(alpha=0.0))
        >>> abs(net(torch.ones(1, 2)).item()), len(list(net.meta_parameters()))
        (0.0, 2)
    """

    def __init__(self, module: nn.Module, transform: Callable[[Any], nn.Module]) -> None:
        super().__init__()
        self.module = module
        self.transform = transform
        self.parameter_transforms = nn.ModuleDict()
        for name, parameter in module.named_parameters():
            self.parameter_transforms[name.replace(".", "/")] = transform(parameter)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module gives with the transformed parameters."""
        transforms = self.parameter_transforms.values()
        parameters = zip(self.module.parameters(), transforms, strict=True)
        # A copy carries the transformed weights, so that whatever runs again in the backward pass
        # (activation checkpointing) has them too.
        transformed = clone_module(self.module, {id(p): change(p) for p, change in parameters})
        return transformed(*args, **kwargs)

    def meta_parameters(self) -> Iterator[Tensor]:
        """The transforms' own parameters."""
        return iter(self.parameter_transforms.parameters())


def _unwrapped(module: nn.Module) -> nn.Module:
    replaced = module._modules.get("module")
    original = module if replaced is None else replaced
    for name, child in list(original._modules.items()):
        if child is not None:
            original._modules[name] = _unwrapped(child)
    return original


__getattr__ = nearest(__name__, ["MetaModule", "ParameterTransform"])
