"""The penalty that keeps the predictors of tasks diverse: condition number and norm of the head."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metalearn.network.layers import head
from metalearn.training.penalty import Extra, check_from_zero


@dataclass(frozen=True)
class spectral:
    """Keep the singular values of the head's weight alike and small.

    `ratio * s_1 / s_N + norm * ||s||_2`, with `s` the eigenvalues of `W W^T` in falling order and
    `W` (N ways, features) the weight that adaptation starts from. Theory bounds the excess risk of
    a shared representation if the norms of the tasks' predictors stay bounded and the predictors
    span all directions alike (Du et al. 2021, arXiv:2002.09434); the penalty asks for both
    (Bouniot et al. 2022, arXiv:2010.01992).

    `s` holds squared singular values, so the ratio is the square of the condition number of `W`.
    It is differentiable where the smallest singular value is simple.

    Args:
        ratio: the strength of the ratio.
        norm: the strength of the norm.
        head: the path of the head; by default the last Linear or Conv2d of the model.

    Raises:
        ValueError: When it is entered: a strength that is not a finite number from 0, a head that
            does not exist, or more ways than features. In training: a weight without full rank,
            such as one of zeros.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
        >>> rows = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])  # eigenvalues 4 and 1
        >>> model[1].weight = nn.Parameter(rows)
        >>> with spectral(ratio=1.0, norm=0.0)(model) as extra:
        ...     extra().item()
        4.0
    """

    ratio: float = 1.0
    norm: float = 1.0
    head: str | None = None

    @contextmanager
    def __call__(self, model: nn.Module) -> Iterator[Extra]:
        """Enter the penalty for a training of `model`."""
        check_from_zero("ratio", self.ratio)
        check_from_zero("norm", self.norm)
        path = head(model, self.head)
        weight = getattr(model.get_submodule(path), "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim < 2:
            raise ValueError(
                f"spectral() needs the weight of a linear head (ways, features), and"
                f" {path!r} has none; name another layer with head="
            )
        ways, features = weight.flatten(1).shape
        if ways > features:
            raise ValueError(
                f"spectral() needs at least as many features as ways, and the head {path!r} has"
                f" {features} features for {ways} ways: W W^T then has a zero eigenvalue; take a"
                " wider network, or fewer ways"
            )
        yield lambda: self._value(path, weight)

    def _value(self, path: str, weight: Tensor) -> Tensor:
        # Singular values of W itself: no vectors are differentiated, and none of W W^T is squared.
        matrix = weight.flatten(1)
        if matrix.dtype in (torch.float16, torch.bfloat16):
            matrix = matrix.float()
        values = torch.linalg.svdvals(matrix).square()  # (ways,), falling
        total = self.norm * values.norm()
        if not self.ratio:
            return total
        # Below the rounding of a squared singular value, s_N is zero.
        smallest = torch.finfo(matrix.dtype).eps ** 2 * values[0] * weight.numel()
        if values[-1] <= smallest:
            raise ValueError(
                f"the ratio of spectral() is infinite: the weight of the head {path!r} has no full"
                " rank, as if it were zeros or two ways had the same row; draw it at random, or"
                " pass ratio=0"
            )
        return self.ratio * values[0] / values[-1] + total
