"""Modules from gradients to updates, made for one parameter each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.compat.learn2learn._missing import nearest


class ReshapedTransform(nn.Module):
    """A module between a gradient brought to `shape` and an update of the gradient's own shape."""

    def __init__(self, transform: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.transform = transform
        self.in_shape = shape

    def forward(self, grad: Tensor) -> Tensor:
        """The gradient of a parameter -> its update, of the same shape."""
        return self.transform(grad.reshape(self.in_shape)).reshape(grad.shape)


class ModuleTransform:
    """Makes a transform of all values of a parameter at once, `module_cls(numel, numel)`.

    Args:
        module_cls: From the numbers of inputs and outputs to a module, such as `nn.Linear`. The
            module gets gradients of shape (1, numel).

    Example:
        >>> update = ModuleTransform(nn.Linear)(nn.Linear(3, 2).weight)
        >>> update(torch.ones(2, 3)).shape
        torch.Size([2, 3])
    """

    def __init__(self, module_cls: Callable[[int, int], nn.Module]) -> None:
        self.module_cls = module_cls

    def __call__(self, parameter: Tensor) -> ReshapedTransform:
        count = parameter.numel()
        return _like(parameter, ReshapedTransform(self.module_cls(count, count), (1, count)))


class KroneckerTransform:
    """Makes a transform with a Kronecker product for a matrix (Arnold et al. 2019).

    It needs n² + m² numbers where `ModuleTransform` needs (nm)². A matrix is (n, m); a vector
    (n, 1); the weight of a convolution, for each of its outputs, (inputs, places of the kernel).

    Args:
        kronecker_cls: Called with n, m, bias and psd, such as `l2l.nn.KroneckerLinear`.
        bias: Whether the transform adds a bias.
        psd: Whether the transform is positive semi-definite.

    Example:
        >>> from metalearn.compat import learn2learn as l2l
        >>> update = KroneckerTransform(l2l.nn.KroneckerLinear)(nn.Linear(3, 2).weight)
        >>> update(torch.ones(2, 3)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self, kronecker_cls: Callable[..., nn.Module], bias: bool = False, psd: bool = True
    ) -> None:
        self.kronecker_cls = kronecker_cls
        self.bias = bias
        self.psd = psd

    def __call__(self, param: Tensor) -> ReshapedTransform:
        n, m = _matrix(param)
        module = self.kronecker_cls(n=n, m=m, bias=self.bias, psd=self.psd)
        return _like(param, ReshapedTransform(module, (-1, n, m)))


class MetaCurvatureTransform(nn.Module):
    """The gradient times a trained matrix along each of its axes (Park and Oliva 2019).

    All start as the identity. A vector is multiplied value by value; the height and width of a
    convolution's kernel are one axis.

    Args:
        param: The parameter whose gradients are transformed.
        lr: A constant factor of the update.

    Raises:
        NotImplementedError: The parameter is no vector, matrix or weight of a 2d convolution.

    Example:
        >>> update = MetaCurvatureTransform(nn.Linear(3, 2).weight)
        >>> [tuple(p.shape) for p in update.parameters()], update(torch.ones(2, 3)).shape
        ([(2, 2), (3, 3)], torch.Size([2, 3]))
    """

    def __init__(self, param: Tensor, lr: float = 1.0) -> None:
        super().__init__()
        self.lr = lr
        self.dim = param.ndim
        if self.dim not in (1, 2, 4):
            raise NotImplementedError(_unsupported(param, "MetaCurvatureTransform"))
        if self.dim == 1:
            self.mc = nn.Parameter(torch.ones_like(param))
            return
        rows, columns, *places = param.shape
        self.mc_in = nn.Parameter(_identity(rows, param))
        self.mc_out = nn.Parameter(_identity(columns, param))
        if places:
            self.mc_f = nn.Parameter(_identity(places[0] * places[1], param))

    def forward(self, grad: Tensor) -> Tensor:
        """The gradient of the parameter -> its update, of the same shape."""
        if self.dim == 1:
            return self.lr * (self.mc * grad)
        if self.dim == 2:
            return self.lr * (self.mc_in @ grad @ self.mc_out)
        kernels = grad.flatten(2)  # (rows, columns, places)
        update = torch.einsum("ij,jkq,kl,pq->ilp", self.mc_in, kernels, self.mc_out, self.mc_f)
        return self.lr * update.reshape(grad.shape)


class TransformDictionary:
    """Chooses the transform of a parameter by the parameter, or by the module that holds it.

    Args:
        dictionary: From modules or parameters to transforms. Parameters in none of them get None,
            which leaves their gradients as they are; of two entries the later counts.

    Raises:
        ValueError: A key is neither a module nor a parameter.
    """

    def __init__(self, dictionary: Mapping[Any, Callable[..., nn.Module | None]]) -> None:
        self.param_to_transform: dict[Tensor, Callable[..., nn.Module | None]] = {}
        for key, transform in dictionary.items():
            if isinstance(key, nn.Module):
                self.param_to_transform.update(dict.fromkeys(key.parameters(), transform))
            elif isinstance(key, nn.Parameter):
                self.param_to_transform[key] = transform
            else:
                raise ValueError(
                    "a key of TransformDictionary must be a module or a parameter, not a"
                    f" {type(key).__name__}"
                )

    def __call__(self, param: Tensor, *args: Any, **kwargs: Any) -> nn.Module | None:
        transform = self.param_to_transform.get(param)
        return None if transform is None else transform(param, *args, **kwargs)


def _matrix(parameter: Tensor) -> tuple[int, int]:
    shape = parameter.shape
    if len(shape) == 1:
        return shape[0], 1
    if len(shape) == 2:
        return shape[0], shape[1]
    if len(shape) == 4:
        return shape[1], shape[2] * shape[3]
    raise NotImplementedError(_unsupported(parameter, "KroneckerTransform"))


def _unsupported(parameter: Tensor, name: str) -> str:
    return (
        f"{name} takes parameters of 1, 2 or 4 dimensions, not of shape {tuple(parameter.shape)}; "
        "give that parameter another transform, or none, with TransformDictionary"
    )


def _identity(size: int, like: Tensor) -> Tensor:
    return torch.eye(size, dtype=like.dtype, device=like.device)


def _like(parameter: Tensor, transform: ReshapedTransform) -> ReshapedTransform:
    return transform.to(device=parameter.device, dtype=parameter.dtype)


__getattr__ = nearest(
    __name__,
    [
        "KroneckerTransform",
        "MetaCurvatureTransform",
        "ModuleTransform",
        "ReshapedTransform",
        "TransformDictionary",
    ],
)
