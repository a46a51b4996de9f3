"""Activations as users give them, read as float64 matrices that know how they were rounded."""

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

# Networks compute in float32 at best, so constant and dependent features are off by a few
# roundings.
ARITHMETIC = 4 * 2.0**-24

# Share of the largest singular value below which a direction of single precision is rounding.
SINGLE = 1e-13**0.5

# Share of a feature's largest value that its range must exceed to count as varying.
CONSTANT = 1e-12

# The largest integer below which float64 represents every other integer.
LARGEST_INTEGER = 2**53

EXACT_DTYPES = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32)

_NUMBERS = "numbers: floats, integers or bools"


class Rounding(NamedTuple):
    """The distance of a stored value from the true one.

    Attributes:
        relative: the error as a share of the value.
        absolute: the error near zero.
    """

    relative: float
    absolute: float

    @classmethod
    def of(cls, dtype: torch.dtype) -> Rounding:
        """The rounding of a dtype; integers and bools are exact, so they count as float64.

        Example:
            >>> Rounding.of(torch.float64).relative == 2**-53
            True
            >>> 2**-8 < Rounding.of(torch.bfloat16).relative < 2**-7.99
            True
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
        """The share of the largest singular value below which a direction is rounding."""
        return 1e-10 if self.double else SINGLE

    @property
    def ties(self) -> float:
        """The difference below which two correlations, or relative singular values, are equal.

        Singular vectors are determined to about the square root of the rounding, if their values
        are further apart than that root.
        """
        return min(self.relative**0.5, 1e-3)

    def noise(self, longest_row: float, longest_column: float, shape: tuple[int, int]) -> float:
        """The approximate spectral norm of the rounding errors of a matrix.

        Independent errors of size `e_ij` have a spectral norm near `max_i |e_i.| + max_j |e_.j|`
        (Bandeira and van Handel 2016).

        Args:
            longest_row: the largest norm of a row.
            longest_column: the largest norm of a column.
            shape: (examples, features).
        """
        relative_errors = self.relative * (longest_row + longest_column)
        absolute_errors = self.absolute * (shape[0] ** 0.5 + shape[1] ** 0.5)
        return relative_errors + absolute_errors


@dataclass(frozen=True)
class Activations:
    """A matrix (examples, features) of finite float64 values, and its original rounding."""

    values: Tensor
    rounding: Rounding

    @property
    def noise(self) -> float:
        """The approximate largest singular value of the rounding errors alone."""
        longest_row = float(torch.linalg.vector_norm(self.values, dim=1).max())
        longest_column = float(torch.linalg.vector_norm(self.values, dim=0).max())
        examples, features = self.values.shape
        return self.rounding.noise(longest_row, longest_column, (examples, features))

    def is_rounding(self, centred: Tensor) -> bool:
        """Whether the values after centring are no larger than their rounding."""
        relative_error = self.rounding.relative * self.values.norm()
        absolute_error = self.rounding.absolute * math.sqrt(self.values.numel())
        return bool(centred.norm() <= relative_error + absolute_error)


def activations(x: Any, name: str) -> Activations:
    """Activations (examples, features) in float64.

    Args:
        x: a tensor, an array or nested lists of numbers of any real dtype.
        name: what to call it in errors.

    Raises:
        TypeError: `x` does not hold numbers.
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
    tensor = where_float64_exists(tensor)
    values = tensor.double()
    check_size(values, name, 1)
    if not bool(torch.stack(values.aminmax()).isfinite().all()):
        raise ValueError(
            f"{name} holds {count_not_finite(values)} values that are NaN or infinite; find"
            " the layer whose activations overflow"
        )
    return Activations(values, Rounding.of(original_dtype(tensor)))


def check_size(values: Tensor, name: str, fewest: int) -> None:
    """Raise ValueError if there are fewer examples than `fewest`, or no features."""
    examples, features = values.shape
    if examples < fewest or not features:
        raise ValueError(
            f"{name} has shape {(examples, features)}; this measure needs at least {fewest}"
            " examples and one feature"
        )


def original_dtype(x: Tensor) -> torch.dtype:
    """The dtype of (examples, features) before any cast to a wider one.

    This is the narrowest float that represents every value: numpy has no bfloat16, so such
    activations come as `.float().numpy()`. Whole numbers are exact in every dtype, so they tell
    nothing and keep theirs.

    Example:
        >>> original_dtype(torch.randn(9, 2).bfloat16().double())
        torch.bfloat16
        >>> original_dtype(torch.arange(4.0)[:, None])
        torch.float32
    """
    if x.dtype not in (torch.float32, torch.float64):
        return x.dtype
    parts = x[:16], x  # the first rows decide for most matrices, at little cost
    if all(torch.equal(part, part.round()) for part in parts):
        return x.dtype
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        if all(torch.equal(part, part.to(dtype).to(x.dtype)) for part in parts):
            return dtype
    return x.dtype


def real_tensor(x: Any, name: str) -> Tensor:
    """Numbers of any real dtype as a dense, detached tensor of the same precision.

    Args:
        x: a tensor, an array or nested lists of numbers.
        name: what to call it in errors.

    Raises:
        TypeError: `x` does not hold numbers, or is nested or quantized.
        ValueError: `x` has no values, complex numbers, or integers beyond 2**53.
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
    if tensor.dtype.is_floating_point or tensor.dtype in EXACT_DTYPES:
        _check_dtype(tensor, name)
        return tensor
    return _exact_integers(tensor, name)


def where_float64_exists(tensor: Tensor) -> Tensor:
    """The tensor, on the CPU if its device has no float64, as MPS."""
    return tensor.cpu() if tensor.device.type == "mps" else tensor


def as_floats(tensor: Tensor) -> Tensor:
    """Floats of any precision as they are, other numbers in float64."""
    return tensor if tensor.is_floating_point() else tensor.double()


def count_not_finite(tensor: Tensor) -> int:
    """How many values are NaN or infinite."""
    # Floats of one byte have no isfinite of their own.
    narrow = tensor.is_floating_point() and tensor.itemsize == 1
    values = tensor.float() if narrow else tensor
    return int((~values.isfinite()).sum())


def _exact_integers(tensor: Tensor, name: str) -> Tensor:
    """Integers as int64. Raises ValueError for one that float64 would round."""
    _check_dtype(tensor, name)
    integers = tensor.long()
    # uint64 values beyond int64 wrap round to negative numbers.
    wrapped = tensor.dtype == torch.uint64 and bool((integers < 0).any())
    too_large = integers.numel() and bool((integers.abs() > LARGEST_INTEGER).any())
    if wrapped or too_large:
        raise ValueError(
            f"{name} holds integers beyond 2**53, which float64 rounds; subtract a common offset"
            " first"
        )
    return integers


def _check_dtype(tensor: Tensor, name: str) -> None:
    """Raise TypeError for a dtype that torch cannot convert, such as packed 4-bit floats."""
    try:
        # One new number: a view of the tensor could copy all of it.
        torch.zeros(1, dtype=tensor.dtype, device=tensor.device).double()
        Rounding.of(tensor.dtype)
    except (RuntimeError, TypeError):
        raise TypeError(
            f"{name} has the dtype {tensor.dtype}, which torch does not turn into float64; convert"
            " it first"
        ) from None


def _from_array(x: Any, name: str) -> Tensor:
    if isinstance(x, str | bytes | dict | set) or x is None:
        raise TypeError(f"{name} is a {type(x).__name__}; give a tensor or an array of {_NUMBERS}")
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
            f"{name} is a {type(x).__name__}, which numpy does not turn into an array ({error});"
            f" give rows of one length of {_NUMBERS}"
        ) from error
    if array.dtype.kind not in "fiubc":
        raise TypeError(f"{name} is an array of {array.dtype}; give {_NUMBERS}")
    dtype = _torch_dtype(array.dtype)
    return torch.from_numpy(np.require(array, dtype=dtype, requirements=["C", "W"]))


def _torch_dtype(dtype: np.dtype) -> np.dtype:
    """A dtype for the same values that torch has, in this machine's byte order."""
    if dtype.kind == "f" and dtype.itemsize > 8:
        return np.dtype(np.float64)
    if dtype.kind == "c" and dtype.itemsize > 16:
        return np.dtype(np.complex128)
    return dtype.newbyteorder("=")


class Undefined(ValueError):
    """The measure has no value: the matrices do not vary, or have too few examples."""


def same(x: Activations, y: Activations) -> bool:
    """Whether two matrices hold the same numbers."""
    if x.values.shape != y.values.shape:
        return False
    return bool(torch.equal(x.values, y.values.to(x.values.device)))


def both_centred(
    x: Activations, y: Activations, *, fewest: int = 2, keep_constant: bool = False
) -> tuple[Tensor, Tensor]:
    """Both matrices with centred columns, on the device of the first.

    Args:
        x: (examples, features).
        y: (examples, other features).
        fewest: how many examples the measure needs.
        keep_constant: keep features that do not vary, so feature i stays feature i.

    Raises:
        ValueError: too few examples, or different numbers of them.
        Undefined: no feature of one side varies.
    """
    left = _centred(x, "x", fewest, keep_constant=keep_constant)
    right = _centred(y, "y", fewest, keep_constant=keep_constant)
    check_matched(left, right)
    return left, right.to(left.device)


def _centred(x: Activations, name: str, fewest: int, *, keep_constant: bool) -> Tensor:
    check_size(x.values, name, fewest)
    values = x.values
    varies = varying(values)  # (features,)
    if not bool(varies.any()):
        raise no_variance(name, len(values))
    if not keep_constant and not bool(varies.all()):
        values = values[:, varies]  # (examples, features that vary)
    centred = values - values.mean(0)
    if x.is_rounding(centred):
        raise no_variance(name, len(values))
    return centred


def varying(x: Tensor) -> Tensor:
    """Which features of (examples, features) are not constant (features,)."""
    low, high = x.aminmax(dim=0)
    return high - low > CONSTANT * torch.maximum(high.abs(), low.abs())


def no_variance(name: str, n: int) -> Undefined:
    """The error for a matrix whose features are all constant."""
    return Undefined(
        f"{name} has no variance: apart from rounding, every feature is constant over the {n}"
        " examples (a dead layer?)"
    )


def check_matched(x: Tensor, y: Tensor) -> None:
    """Raise ValueError if the two have different numbers of examples."""
    if len(x) != len(y):
        raise ValueError(
            f"x has {len(x)} examples and y has {len(y)}; row i of both must be the same example"
        )


_collected: ContextVar[list[str] | None] = ContextVar("collected", default=None)


def caution(message: str, stacklevel: int = 2) -> None:
    """Warn about a value, or add the message to the list of `cautions` in this thread."""
    messages = _collected.get()
    if messages is None:
        warnings.warn(message, stacklevel=stacklevel + 1)
    elif message not in messages:
        messages.append(message)


@contextmanager
def cautions() -> Iterator[list[str]]:
    """A list that collects the warnings of the measures in this thread.

    `warnings.catch_warnings` acts on the whole process, so it would also take the warnings of
    other threads.
    """
    messages: list[str] = []
    token = _collected.set(messages)
    try:
        yield messages
    finally:
        _collected.reset(token)
