"""Overlap of principal subspaces."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from metalearn.analysis.checks import is_whole
from metalearn.analysis.measures.inputs import Activations, Matrix, Undefined, both_centred
from metalearn.analysis.measures.prepared import compared


def subspace(x: Matrix, y: Matrix, k: int) -> float:
    """The overlap of the two subspaces spanned by the first `k` principal directions.

    `||V_k^T U_k||_F² / k`, with `V_k` and `U_k` (features, k) the leading right singular vectors of
    the centred matrices. Both sides must have the same neurons in the same order: one network
    before and after training, or on two tasks (Ramasesh et al. 2021, arXiv:2007.07400). Invariant
    to isotropic scaling and translation of either side, to the order of examples, and to a rotation
    of both sides together. Unrelated subspaces score about k / features. If other singular values
    tie with the k-th, all of their directions count in part. Chance shuffles the neurons, because
    the measure ignores the order of examples.

    Args:
        x: (examples, features).
        y: (examples, features), the same neurons.
        k: how many directions, from 1 to the number that vary.

    Raises:
        ValueError: as `linear_cka` does; also for different widths, or fewer than `k` directions
            that vary.

    Example:
        >>> scales = torch.tensor([9.0, 5.0, 1.0, 0.1])
        >>> x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * scales
        >>> round(subspace(x, 2 * x + 1, k=2), 6), round(subspace(x, x.flip(1), k=2), 2)
        (1.0, 0.0)
    """
    check_k(k)
    return compared(partial(subspace_forms, k=k), x, y)


@dataclass(frozen=True)
class Principal:
    """Leading principal directions in neuron space.

    Attributes:
        axes: (features, directions), scaled such that the overlap with itself is 1.
    """

    axes: Tensor

    @classmethod
    def of(cls, axes: Tensor, scales: Tensor, k: int, ties: float) -> Principal:
        """The first `k` directions.

        If m directions tie with the k-th, and r of them are among the first k, each counts r / m.

        Args:
            axes: (features, directions), orthonormal.
            scales: their singular values (directions,), largest first.
            k: how many to take.
            ties: the relative difference below which singular values are equal.
        """
        above = int((scales * (1 - ties) > scales[k - 1]).sum())
        reach = int((scales >= scales[k - 1] * (1 - ties)).sum())
        shares = torch.ones_like(scales[:reach])
        shares[above:] = (k - above) / (reach - above)
        # The projector P = V diag(shares) V^T has ||P||_F² = sum of shares²; the axes carry half of
        # each share and of the norm, since the overlap is tr(P_x P_y) = ||A_x^T A_y||².
        return cls(axes[:, :reach] * shares.sqrt() / shares.square().sum() ** 0.25)

    def similarity(self, other: Principal) -> float:
        """The overlap, `||A_x^T A_y||_F²`, at most 1."""
        return min(1.0, float((self.axes.T @ other.axes).square().sum()))

    def chance(self, other: Principal, orders: Tensor, generator: torch.Generator) -> Tensor:
        """The overlaps with the neurons of the other side shuffled (draws,), one an order."""
        device = self.axes.device
        features = len(self.axes)
        overlaps = []
        for _ in orders:
            neurons = torch.randperm(features, generator=generator).to(device)
            overlaps.append(self.similarity(Principal(other.axes[neurons])))
        return self.axes.new_tensor(overlaps)


def check_k(k: object) -> None:
    """Raise ValueError if `k` is not a positive whole number."""
    if not is_whole(k) or k < 1:  # type: ignore[operator]
        raise ValueError(
            f"k={k!r} must be at least 1 and whole: it is how many principal directions are"
            " compared"
        )


def check_width(left: int, right: int) -> None:
    """Raise ValueError if the widths differ."""
    if left != right:
        raise ValueError(
            f"x has {left} features and y has {right}: subspace compares directions in one neuron"
            " space, so feature i must be the same neuron in both; use linear_cka, procrustes or"
            " cca for other widths"
        )


def check_leading(k: int, rank: int, name: str) -> None:
    """Raise Undefined if fewer than `k` directions of `name` vary."""
    if k > rank:
        raise Undefined(
            f"{name} varies in {rank} directions, fewer than k={k}; take k={rank} or less"
        )


def subspace_forms(x: Activations, y: Activations, k: int) -> tuple[Principal, Principal]:
    """The first `k` principal directions of both matrices."""
    left, right = both_centred(x, y, keep_constant=True)
    check_width(left.shape[1], right.shape[1])
    return _principal(left, x, k, "x"), _principal(right, y, k, "y")


def _principal(centred: Tensor, x: Activations, k: int, name: str) -> Principal:
    _, scales, axes = torch.linalg.svd(centred, full_matrices=False)
    rounding = max(x.rounding.share * float(scales[0]), x.noise)
    rank = int((scales > rounding).sum())
    check_leading(k, rank, name)
    return Principal.of(axes.T[:, :rank], scales[:rank], k, x.rounding.ties)
