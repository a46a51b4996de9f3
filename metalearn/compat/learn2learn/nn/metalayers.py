"""Modules that replace others: substitutions by class, and layers with transformed weights."""

# learn2learn's signatures take booleans by position.
# ruff: noqa: FBT001, FBT002

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from metalearn.compat.learn2learn._missing import nearest
from metalearn.compat.learn2learn.utils import clone_module


class MetaModule(nn.Module):
    """A module with some of its submodules replaced, by class.

    Args:
        module: the module to wrap; it is changed in place.
        substitutions: a function for each class, which is called with an instance and returns the
            module that replaces it. Instances of subclasses are not replaced.
        freeze_module: whether the module's own parameters require no gradient any more.

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
        parameters = list(module.parameters())
        self.wrapped_module = self._wrap(module)
        if freeze_module:
            for parameter in parameters:
                parameter.requires_grad = False

    def _wrap(self, module: nn.Module) -> nn.Module:
        """The module with its submodules replaced, or its own replacement."""
        for name, child in list(module._modules.items()):
            if child is not None:
                module._modules[name] = self._wrap(child)
        # Children first, so a substitute receives its module with all replacements inside.
        substitute = self.substitutions.get(type(module))
        return module if substitute is None else substitute(module)

    def module(self) -> nn.Module:
        """The original module: substitutions are undone, in place.

        A substitute must keep the original as its attribute `module`, as `ParameterTransform` does;
        others stay.
        """
        return _unwrap(self.wrapped_module)

    def meta_parameters(self, module: nn.Module | None = None) -> Iterator[Tensor]:
        """The parameters that the substitutes' own `meta_parameters()` return, each once."""
        if module is None:
            module = self.wrapped_module
        seen = set()
        for part in module.modules():
            of_part: Any = getattr(part, "meta_parameters", tuple)
            for parameter in of_part():
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield parameter

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the wrapped module."""
        return self.wrapped_module(*args, **kwargs)


class ParameterTransform(nn.Module):
    """Calls a module with transformed parameters; the module keeps its own.

    Args:
        module: the module to wrap.
        transform: called with each parameter; returns the module that transforms it.
            `parameter_transforms` has these modules by the parameter's name, with "/" for ".".

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
        # A ModuleDict allows no "." in its keys.
        for name, parameter in module.named_parameters():
            self.parameter_transforms[name.replace(".", "/")] = transform(parameter)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module with the transformed parameters."""
        transforms = self.parameter_transforms.values()
        parameters = zip(self.module.parameters(), transforms, strict=True)
        # A copy carries the transformed weights: code that runs again in the backward pass
        # (activation checkpointing) needs them too.
        transformed = clone_module(self.module, {id(p): change(p) for p, change in parameters})
        return transformed(*args, **kwargs)

    def meta_parameters(self) -> Iterator[Tensor]:
        """The transforms' own parameters."""
        return iter(self.parameter_transforms.parameters())


def _unwrap(module: nn.Module) -> nn.Module:
    """The module, or the original that it replaced, with its submodules unwrapped too."""
    replaced = module._modules.get("module")
    original = module if replaced is None else replaced
    for name, child in list(original._modules.items()):
        if child is not None:
            original._modules[name] = _unwrap(child)
    return original


__getattr__ = nearest(__name__, ["MetaModule", "ParameterTransform"])
