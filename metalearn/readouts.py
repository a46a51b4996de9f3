"""Labels from features without a head: the cosine rules that NIL and the analysis share."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .episodes import Examples
from .graphs import value

RULES = ("softmax", "sum", "class_mean")


def cosine_readout(support: Examples, queries: Tensor, ways: int, rule: str = "softmax") -> Tensor:
    """Class scores of queries from the cosines between their features and the support features -> (..., queries, ways).

    With `c_qi` the cosine of query q and support example i (Raghu et al. 2020, section 5.1, leaves the weighting open):

    - "softmax": `log sum_{i of class k} softmax_i(c_q)`, the attention of matching networks; the log of a probability.
    - "sum": `sum_{i of class k} c_qi`.
    - "class_mean": the cosine to the mean feature of class k, as in the code of BOIL (Oh et al. 2021).

    Arguments:
        support: features (..., shots, features) and labels (..., shots).
        queries: features (..., queries, features).
    Raises ValueError for an unknown rule, or labels beyond `ways`.

    Example:
        >>> import torch
        >>> support = Examples(torch.eye(2), torch.tensor([0, 1]))
        >>> cosine_readout(support, torch.tensor([[3.0, 0.1]]), ways=2).argmax(-1)
        tensor([0])
    """
    check_labels(support.targets, ways)
    members = F.one_hot(support.targets, ways).to(queries.dtype)
    if rule == "class_mean":
        return _cosine(queries, members.mT @ support.inputs / members.sum(-2).unsqueeze(-1))
    cosines = _cosine(queries, support.inputs)
    if rule == "sum":
        return cosines @ members
    if rule == "softmax":
        return (cosines.softmax(-1) @ members).log()
    raise ValueError(f"there is no rule {rule!r}; choose one of {', '.join(RULES)}")


def check_labels(targets: Tensor, ways: int) -> None:
    """Raise ValueError where labels are not the integers 0 to ways - 1."""
    if targets.is_floating_point() or targets.is_complex():
        raise ValueError(f"class labels must be integers, not {targets.dtype}; use targets.long()")
    low, high = value(targets.min()), value(targets.max())
    if low < 0 or high >= ways:
        raise ValueError(f"the labels run from {low} to {high}, but there are {ways} ways: labels must be 0 to {ways - 1}")


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).mT
