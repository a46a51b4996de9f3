"""Overlap of the second moments of two sets of activations of one layer."""

from __future__ import annotations

from torch import Tensor

from metalearn.analysis.measures.inputs import Matrix, Undefined, activations


def overlap(x: Matrix, y: Matrix, *, centred: bool = False) -> float:
    """How far two sets of activations use the same directions of one neuron space.

    `tr(S_x S_y) / sqrt(tr(S_x^2) tr(S_y^2))` with `S = X^T X / n`, the cosine between the two
    second moments. It lies in [0, 1] and is 1 only if `S_x` is a multiple of `S_y`. It equals
    linear CKA of the transposed matrices, without centring or debiasing. The definition is this
    package's own; Ramasesh et al. 2021 (arXiv:2007.07400) ask the question of two tasks.

    The examples of the two sides may differ in kind and number, such as the images of two tasks:
    feature i must be the same neuron. The overlap is invariant to isotropic scaling of either side,
    to the order of examples, and to a rotation of both sides together.

    Args:
        x: (examples, features).
        y: (other examples, features), the same neurons.
        centred: whether to subtract the mean of each feature first; the overlap is then one of
            covariances.

    Returns:
        The overlap.

    Raises:
        ValueError: a value is not finite, the widths differ, or a side has only zeros (centred: no
            feature that varies).

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
        >>> round(overlap(x, 3 * x), 6), overlap(x, x.flip(1))
        (1.0, 0.0)
    """
    left = _moments(x, "x", centred=centred)
    right = _moments(y, "y", centred=centred).to(left.device)
    if left.shape[1] != right.shape[1]:
        raise ValueError(
            f"x has {left.shape[1]} features and y has {right.shape[1]}: overlap compares"
            " directions in one neuron space, so feature i must be the same neuron in both"
        )
    # tr(X^T X Y^T Y) = ||X Y^T||_F^2, by the smaller of the two kinds of products.
    if left.shape[1] <= min(len(left), len(right)):
        first = left.T @ left  # (features, features)
        second = right.T @ right
        value = (first * second).sum() / (first.norm() * second.norm())
    else:
        cross = (left @ right.T).square().sum()  # of (examples, other examples)
        value = cross / ((left @ left.T).norm() * (right @ right.T).norm())
    return min(1.0, float(value))


def _moments(x: Matrix, name: str, *, centred: bool) -> Tensor:
    """A side (examples, features), scaled so that its products neither overflow nor vanish."""
    values = activations(x, name).values
    if centred:
        values = values - values.mean(0)
    size = values.abs().max()
    if not size > 0:
        kind = "no feature that varies" if centred else "only zeros"
        raise Undefined(f"{name} has {kind}, so its overlap is not defined (a dead layer?)")
    return values / size
