"""What a user gives as activations, as a matrix in float64 that knows how coarsely its values were
stored.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

Matrix: TypeAlias = Tensor | np.ndarray

# Networks compute in float32 at best, so constants and dependent features are off by a few
# roundings.
ARITHMETIC = 4 * 2.0**-24
SINGLE = 1e-13**0.5
WHOLE = 2**53  # the largest integer below which float64 holds every other

_KINDS = "numbers: floats, integers or bools"


class Rounding(NamedTuple):
    """How far a stored value is from the true one: `relative` to the value, and `absolute` near
    zero.
    """

    relative: float
    absolute: float

    @classmethod
    def of(cls, dtype: torch.dtype) -> Rounding:
        """The rounding of a dtype; integers and bools are exact, so theirs is that of float64.

        Example:
            >>> Rounding.of(torch.float64).relative == 2**-53, 2**-8 < Rounding.of(torch.bfloat16).relative < 2**-7.99
            (True, True)
        """
        if not dtype.is_floating_point or dtype == torch.float64:
            return cls(2.0**-53, 0.0)
        limits = torch.finfo(dtype)
        return cls(limits.eps / 2 + ARITHMETIC, limits.smallest_normal * limits.eps / 2)

    @property
    def double(self) -> bool:
        """Whether the values carry more than single precision."""
        return self.relative == 2.0**-53

    @property
    def share(self) -> float:
        """The share of the largest singular value below which a direction is rounding, whatever the
        sizes of the values.
        """
        return 1e-10 if self.double else SINGLE

    @property
    def ties(self) -> float:
        """How close two correlations, or two singular values as a share of them, are the same but
        for rounding.

        Vectors of values that are further apart than the square root of the rounding are determined
        to about that root.
        """
        return min(self.relative**0.5, 1e-3)

    def noise(self, longest_row: float, longest_column: float, shape: tuple[int, int]) -> float:
        """About the largest singular value of the rounding of a matrix whose rows and columns have
        at most these norms.

        Independent errors of at most e_ij have a spectral norm near `max_i |e_i.| + max_j |e_.j|`
        (Bandeira and van Handel 2016).
        """
        return self.relative * (longest_row + longest_column) + self.absolute * (
            shape[0] ** 0.5 + shape[1] ** 0.5
        )


@dataclass(frozen=True)
class Activations:
    """A matrix (examples, features) of finite values in float64, and how coarsely they were stored
    before.
    """

    values: Tensor
    rounding: Rounding

    @property
    def noise(self) -> float:
        """About the largest singular value that rounding alone gives."""
        rows, columns = (
            float(torch.linalg.vector_norm(self.values, dim=dim).max()) for dim in (1, 0)
        )
        return self.rounding.noise(rows, columns, tuple(self.values.shape))  # type: ignore[arg-type]

    def is_rounding(self, centred: Tensor) -> bool:
        """Whether what centring leaves of the values is no more than their rounding."""
        lost = self.rounding.relative * self.values.norm() + self.rounding.absolute * math.sqrt(
            self.values.numel()
        )
        return bool(centred.norm() <= lost)


def activations(x: Any, name: str) -> Activations:
    """What a user gives as (examples, features), in float64.

    Args:
        x: a tensor, an array or nested lists of numbers of any real dtype.
        name: what to call it in errors.

    Raises:
        TypeError: no numbers.
        ValueError: another shape, no examples, complex numbers, or a value that is not finite.

    Example:
        >>> activations(np.array([[1, 2], [3, 4]], dtype=np.uint8), "x").values
        tensor([[1., 2.],
                [3., 4.]], dtype=torch.float64)
    """
    tensor = real_tensor(x, name)
    if tensor.ndim != 2:
        raise ValueError(
            f"{name} must be (examples, features), got {tuple(tensor.shape)}; flatten an image's"
            " features, or take positions as examples"
        )
    tensor = tensor.cpu() if tensor.device.type == "mps" else tensor  # it has no float64
    values = tensor.double()
    found = enough(Activations(values, Rounding.of(computed_in(tensor))), name, 1)
    if not bool(torch.stack(values.aminmax()).isfinite().all()):
        raise ValueError(
            f"{name} holds {int((~values.isfinite()).sum())} values that are NaN or infinite; find"
            " where activations overflow"
        )
    return found


def enough(x: Activations, name: str, fewest: int) -> Activations:
    """The same. Raises ValueError where there are fewer examples than `fewest`, or no features."""
    shape = tuple(x.values.shape)
    if shape[0] < fewest or not shape[1]:
        raise ValueError(
            f"{name} has shape {shape}; this measure needs at least {fewest} examples and one"
            " feature"
        )
    return x


def computed_in(x: Tensor) -> torch.dtype:
    """The dtype of (examples, features) before any cast to a wider one: the narrowest float that
    holds every value.

    numpy has no bfloat16, so activations come as `.float().numpy()`. Whole numbers are not taken
    for rounded ones.

    Example:
        >>> computed_in(torch.randn(9, 2).bfloat16().double()), computed_in(torch.arange(4.0)[:, None])
        (torch.bfloat16, torch.float32)
    """
    parts = x[:16], x  # the first rows tell most matrices apart at little cost
    if x.dtype not in (torch.float32, torch.float64) or all(
        torch.equal(part, part.round()) for part in parts
    ):
        return x.dtype
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        if all(torch.equal(part, part.to(dtype).to(x.dtype)) for part in parts):
            return dtype
    return x.dtype


def real_tensor(x: Any, name: str) -> Tensor:
    """Numbers of any real dtype as a dense, detached tensor that keeps their precision.

    Raises as `activations` does.
    """
    tensor = x.detach() if isinstance(x, Tensor) else _from_array(x, name)
    if tensor.is_nested:
        raise TypeError(
            f"{name} is a nested tensor, whose rows differ in length; pad them to one tensor"
            " (examples, features)"
        )
    if tensor.is_quantized:
        raise TypeError(f"{name} is a quantized tensor; pass {name}.dequantize()")
    if tensor.device.type == "meta":
        raise ValueError(
            f"{name} is on the meta device, so it holds no values; run the network on a real one"
        )
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_complex():
        raise ValueError(
            f"{name} holds complex numbers ({tensor.dtype}), which no measure compares; pass its"
            " abs(), or real and imaginary parts as features: torch.view_as_real(...).flatten(1)"
        )
    if tensor.dtype.is_floating_point or tensor.dtype in (
        torch.bool,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
    ):
        return _known(tensor, name)
    whole = _known(tensor, name).long()
    # uint64 beyond int64 wraps round to negative numbers.
    wrapped = tensor.dtype == torch.uint64 and bool((whole < 0).any())
    if wrapped or (whole.numel() and bool((whole.abs() > WHOLE).any())):
        raise ValueError(
            f"{name} holds integers beyond 2**53, which float64 rounds; subtract what they have in"
            " common first"
        )
    return whole


def _known(tensor: Tensor, name: str) -> Tensor:
    """The tensor itself.

    Raises TypeError for a dtype whose values torch cannot read, such as packed 4-bit floats.
    """
    try:
        tensor.reshape(-1)[:1].double()
        Rounding.of(tensor.dtype)
    except (RuntimeError, TypeError):
        raise TypeError(
            f"{name} has the dtype {tensor.dtype}, which torch does not turn into float64; convert"
            " it first"
        ) from None
    return tensor


def _from_array(x: Any, name: str) -> Tensor:
    if isinstance(x, str | bytes | dict | set) or x is None:
        raise TypeError(f"{name} is a {type(x).__name__}; give a tensor or an array of {_KINDS}")
    if np.ma.is_masked(x):
        masked = int(np.ma.count_masked(x))
        raise ValueError(
            f"{name} is a masked array with {masked} masked values; leave those examples out of"
            " both sides"
        )
    try:
        array = np.asarray(x)
    except (ValueError, TypeError, RuntimeError) as error:
        raise TypeError(
            f"{name} is a {type(x).__name__} that is no array ({error}); give rows of one length of"
            f" {_KINDS}"
        ) from error
    if array.dtype.kind not in "fiubc":
        raise TypeError(f"{name} is an array of {array.dtype}; give {_KINDS}")
    return torch.from_numpy(
        np.require(array, dtype=_torch_dtype(array.dtype), requirements=["C", "W"])
    )


def _torch_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype of this machine's byte order that torch has, of the same values."""
    if dtype.kind == "f" and dtype.itemsize > 8:
        return np.dtype(np.float64)
    if dtype.kind == "c" and dtype.itemsize > 16:
        return np.dtype(np.complex128)
    return dtype.newbyteorder("=")


_collected: ContextVar[list[str] | None] = ContextVar("collected", default=None)


class Undefined(ValueError):
    """The measure says nothing about these matrices: no variance, or too few examples for their
    directions.
    """


def same(x: Activations, y: Activations) -> bool:
    """Whether two matrices hold the same numbers."""
    return x.values.shape == y.values.shape and bool(
        torch.equal(x.values, y.values.to(x.values.device))
    )


def _centred(x: Activations, name: str, fewest: int = 2, constant: bool = False) -> Tensor:
    """Centred columns, without those that do not vary unless `constant`."""
    values = enough(x, name, fewest).values
    varies = varying(values)
    if not bool(varies.any()):
        raise no_variance(name, len(values))
    centred = values if constant or bool(varies.all()) else values[:, varies]
    centred = centred - centred.mean(0)
    if x.is_rounding(centred):
        raise no_variance(name, len(values))
    return centred


def varying(x: Tensor) -> Tensor:
    """Which features of (examples, features) are not constant (features,)."""
    low, high = x.aminmax(dim=0)
    return high - low > 1e-12 * torch.maximum(high.abs(), low.abs())


def no_variance(name: str, n: int) -> Undefined:
    """The error for a matrix whose features are all constant."""
    return Undefined(
        f"{name} has no variance: every feature is constant over the {n} examples, but for rounding"
        " (a dead layer?)"
    )


def _both(
    x: Activations, y: Activations, fewest: int = 2, constant: bool = False
) -> tuple[Tensor, Tensor]:
    left, right = _centred(x, "x", fewest, constant), _centred(y, "y", fewest, constant)
    matched(left, right)
    return left, right.to(left.device)


def matched(x: Tensor, y: Tensor) -> None:
    """Raises ValueError where the two do not have as many examples."""
    if len(x) != len(y):
        raise ValueError(
            f"x has {len(x)} examples and y has {len(y)}; row i of both must be the same example"
        )


def caution(message: str, stacklevel: int = 2) -> None:
    """Warn of a value that has to be read with care, or keep the message for who collects
    `cautions` in this thread.
    """
    kept = _collected.get()
    if kept is None:
        warnings.warn(message, stacklevel=stacklevel + 1)
    elif message not in kept:
        kept.append(message)


@contextmanager
def cautions() -> Iterator[list[str]]:
    """A list that gets what the measures of this thread warn of.

    `warnings.catch_warnings` belongs to the whole process: it would take what other threads warn of
    at the time, too.
    """
    kept: list[str] = []
    token = _collected.set(kept)
    try:
        yield kept
    finally:
        _collected.reset(token)
