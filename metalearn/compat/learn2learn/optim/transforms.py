"""Modules that turn gradients into updates, each made for one parameter."""

# learn2learn's signatures take booleans by position.
# ruff: noqa: FBT001, FBT002

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.compat.learn2learn._missing import nearest


class ReshapedTransform(nn.Module):
    """A module that receives gradients reshaped to `shape`; its updates are shaped back."""

    def __init__(self, transform: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.transform = transform
        self.in_shape = shape

    def forward(self, grad: Tensor) -> Tensor:
        """Turn the gradient of a parameter into its update, of the same shape."""
        return self.transform(grad.reshape(self.in_shape)).reshape(grad.shape)


class ModuleTransform:
    """Makes a transform of all values of a parameter at once, `module_cls(numel, numel)`.

    Args:
        module_cls: called with the numbers of inputs and outputs; returns a module, such as
            `nn.Linear`, for gradients of shape (1, numel).

    Example:
        >>> update = ModuleTransform(nn.Linear)(nn.Linear(3, 2).weight)
        >>> update(torch.ones(2, 3)).shape
        torch.Size([2, 3])
    """

    def __init__(self, module_cls: Callable[[int, int], nn.Module]) -> None:
        self.module_cls = module_cls

    def __call__(self, parameter: Tensor) -> ReshapedTransform:
        """Make the transform of a parameter."""
        count = parameter.numel()
        return _like(parameter, ReshapedTransform(self.module_cls(count, count), (1, count)))


class KroneckerTransform:
    """Makes a transform with a Kronecker product for a matrix (Arnold et al. 2019).

    It needs n² + m² numbers; `ModuleTransform` needs (nm)². A matrix is (n, m), a vector (n, 1),
    and the weight of a convolution (inputs, positions of the kernel) for each of its outputs.

    Args:
        kronecker_cls: called with n, m, bias and psd, such as `l2l.nn.KroneckerLinear`.
        bias: whether the transform adds a bias.
        psd: whether the transform is positive semi-definite.

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
        """Make the transform of a parameter."""
        n, m = _matrix(param)
        module = self.kronecker_cls(n=n, m=m, bias=self.bias, psd=self.psd)
        return _like(param, ReshapedTransform(module, (-1, n, m)))


class MetaCurvatureTransform(nn.Module):
    """The gradient times a trained matrix along each of its axes (Park and Oliva 2019).

    All start as the identity. A vector is multiplied value by value; the height and width of a
    convolution's kernel are one axis.

    Args:
        param: the parameter whose gradients are transformed.
        lr: a constant factor of the update.

    Raises:
        NotImplementedError: if the parameter is no vector, matrix or weight of a 2d convolution.

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
        rows, columns, *kernel = param.shape
        self.mc_in = nn.Parameter(_identity(rows, param))
        self.mc_out = nn.Parameter(_identity(columns, param))
        if kernel:
            self.mc_f = nn.Parameter(_identity(kernel[0] * kernel[1], param))

    def forward(self, grad: Tensor) -> Tensor:
        """Turn the gradient of the parameter into its update, of the same shape."""
        if self.dim == 1:
            return self.lr * (self.mc * grad)
        if self.dim == 2:
            return self.lr * (self.mc_in @ grad @ self.mc_out)
        kernels = grad.flatten(2)  # (rows, columns, positions of the kernel)
        # update[i, l, p] = sum over j, k, q of in[i, j] grad[j, k, q] out[k, l] f[p, q]
        update = torch.einsum("ij,jkq,kl,pq->ilp", self.mc_in, kernels, self.mc_out, self.mc_f)
        return self.lr * update.reshape(grad.shape)


class TransformDictionary:
    """Chooses the transform of a parameter by the parameter, or by the module that holds it.

    Args:
        dictionary: modules or parameters -> transforms. A parameter without an entry gets None,
            which leaves its gradient as it is; the last of several entries counts.

    Raises:
        ValueError: if a key is neither a module nor a parameter.
    """

    def __init__(self, dictionary: Mapping[Any, Callable[..., nn.Module | None]]) -> None:
        self.param_to_transform: dict[Tensor, Callable[..., nn.Module | None]] = {}
        for key, transform in dictionary.items():
            if isinstance(key, nn.Module):  # all of its parameters
                self.param_to_transform.update(dict.fromkeys(key.parameters(), transform))
            elif isinstance(key, nn.Parameter):
                self.param_to_transform[key] = transform
            else:
                raise ValueError(
                    "a key of TransformDictionary must be a module or a parameter, not a"
                    f" {type(key).__name__}"
                )

    def __call__(self, param: Tensor, *args: Any, **kwargs: Any) -> nn.Module | None:
        """Make the transform of a parameter, or return None."""
        transform = self.param_to_transform.get(param)
        return None if transform is None else transform(param, *args, **kwargs)


def _matrix(parameter: Tensor) -> tuple[int, int]:
    """The shape of a parameter as a matrix."""
    shape = parameter.shape
    if len(shape) == 1:
        return shape[0], 1
    if len(shape) == 2:
        return shape[0], shape[1]
    # (outputs, inputs, height, width) -> inputs x positions, for each output
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
