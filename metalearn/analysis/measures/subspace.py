"""Overlap of principal subspaces."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from metalearn.analysis.checks import is_whole
from metalearn.analysis.measures.inputs import Activations, Matrix, Undefined, _both
from metalearn.analysis.measures.prepared import compared


def subspace(x: Matrix, y: Matrix, k: int) -> float:
    """How much of one side's `k` principal directions lies in the other's: `||V_k^T U_k||² / k`,
    Frobenius norm.

    `V_k` and `U_k` (features, k) are the leading right singular vectors of the centred matrices, so
    feature i must be the same neuron in both: one network before and after training, or on two
    tasks (Ramasesh et al. 2021, arXiv:2007.07400). Unrelated subspaces score about k / features.
    Where the k-th singular value ties with others, all directions that tie count, each in part. The
    floor shuffles neurons, since the order of examples is nothing to this measure.

    Args:
        x, y: (examples, features), as many of both in both.
        k: how many directions, from 1 to those that vary.

    Raises:
        ValueError: as `linear_cka` does, and where the widths differ or fewer than `k` directions
            vary.

    Example:
        >>> x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([9.0, 5.0, 1.0, 0.1])
        >>> round(subspace(x, 2 * x + 1, k=2), 6), round(subspace(x, x.flip(1), k=2), 2)
        (1.0, 0.0)
    """
    check_k(k)
    return compared(partial(_subspace_forms, k=k), x, y)


@dataclass(frozen=True)
class Principal:
    """The leading principal directions in neuron space, `axes` (features, directions), scaled so
    that the overlap with itself is 1.
    """

    axes: Tensor

    @classmethod
    def of(cls, axes: Tensor, scales: Tensor, k: int, ties: float) -> Principal:
        """The first `k` of orthonormal `axes` (features, directions) with the singular values
        `scales` (directions,), largest first.

        Of m directions that tie with the k-th, r of which are among the first k, each counts by r /
        m.
        """
        above = int((scales * (1 - ties) > scales[k - 1]).sum())
        reach = int((scales >= scales[k - 1] * (1 - ties)).sum())
        shares = torch.ones_like(scales[:reach])
        shares[above:] = (k - above) / (reach - above)
        return cls(axes[:, :reach] * shares.sqrt() / shares.square().sum() ** 0.25)

    def similarity(self, other: Principal) -> float:
        return min(1.0, float((self.axes.T @ other.axes).square().sum()))

    def chance(self, other: Principal, orders: Tensor, generator: torch.Generator) -> Tensor:
        neurons = [
            torch.randperm(len(self.axes), generator=generator).to(self.axes.device) for _ in orders
        ]
        return self.axes.new_tensor(
            [self.similarity(Principal(other.axes[order])) for order in neurons]
        )


def check_k(k: object) -> None:
    """Raise ValueError if this is no number of directions."""
    if not is_whole(k) or k < 1:  # type: ignore[operator]
        raise ValueError(
            f"k={k!r} must be at least 1 and whole: it is how many principal directions are"
            " compared"
        )


def _subspace_forms(x: Activations, y: Activations, k: int) -> tuple[Principal, Principal]:
    left, right = _both(x, y, constant=True)
    same_width(left.shape[1], right.shape[1])
    return _principal(left, x, k, "x"), _principal(right, y, k, "y")


def _principal(centred: Tensor, x: Activations, k: int, name: str) -> Principal:
    _, s, v = torch.linalg.svd(centred, full_matrices=False)
    found = int((s > max(x.rounding.share * float(s[0]), x.noise)).sum())
    return Principal.of(v.T[:, :found], s[:found], leading(k, found, name), x.rounding.ties)


def same_width(left: int, right: int) -> None:
    """Raises ValueError where the widths differ: `subspace` compares directions in one neuron
    space.
    """
    if left != right:
        raise ValueError(
            f"x has {left} features and y has {right}: subspace compares directions in one neuron"
            " space, so feature i must be the same neuron in both; use linear_cka, procrustes or"
            " cca for other widths"
        )


def leading(k: int, found: int, name: str) -> int:
    """`k`, where there are so many among the `found` directions of `name` that vary."""
    if k > found:
        raise Undefined(
            f"{name} varies in {found} directions, fewer than k={k}; ask for at most k={found}"
        )
    return k
