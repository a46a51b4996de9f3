"""The classifier of prototypical networks, fitted to features (Snell et al. 2017)."""

# learn2learn's signatures take booleans by position.
# ruff: noqa: FBT001, FBT002

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from metalearn.compat.learn2learn._missing import nearest


def compute_prototypes(support: Tensor, labels: Tensor) -> Tensor:
    """The mean of the rows of each label, in the order of the labels.

    Args:
        support: (examples, ...).
        labels: (examples,).

    Returns:
        (different labels, ...).

    Example:
        >>> features = torch.tensor([[1.0], [3.0], [10.0]])
        >>> compute_prototypes(features, torch.tensor([7, 7, 2])).tolist()
        [[10.0], [2.0]]
    """
    return torch.stack([support[labels == label].mean(0) for label in labels.unique()])


class PrototypicalClassifier(nn.Module):
    """Class scores of features: minus the distance to the mean feature of each class.

    Args:
        support: features (examples, features) to fit to at once; see `fit_`.
        labels: their labels.
        distance: "euclidean" (in fact its square), "cosine", or a function of the prototypes
            (ways, features) and the queries (queries, features) that returns (queries, ways).
        normalize: whether prototypes and queries are scaled to length 1; "cosine" always does so.

    Raises:
        ValueError: if there is no such distance.

    Example:
        >>> support = torch.tensor([[0.0, 1.0], [4.0, 0.0]])
        >>> classifier = PrototypicalClassifier(support, torch.tensor([0, 1]))
        >>> classifier(torch.tensor([[3.0, 0.0]])).argmax(1).item()
        1
    """

    def __init__(
        self,
        support: Tensor | None = None,
        labels: Tensor | None = None,
        distance: str | Callable[[Tensor, Tensor], Tensor] = "euclidean",
        normalize: bool = False,
    ) -> None:
        super().__init__()
        named = {"euclidean": self.euclidean_distance, "cosine": self.cosine_distance}
        if isinstance(distance, str) and distance not in named:
            raise ValueError(f"there is no distance {distance!r}; use {', '.join(named)}")
        self.distance = named[distance] if isinstance(distance, str) else distance
        # The cosine is the scalar product of rows of length 1.
        self.normalized = normalize or distance == "cosine"
        self.prototypes: Tensor | None = None
        if support is not None and labels is not None:
            self.fit_(support, labels)

    def fit_(self, support: Tensor, labels: Tensor) -> Tensor:
        """Compute the prototypes from support features and labels, and return them.

        They are differentiable to the features, and ordered by label.
        """
        prototypes = compute_prototypes(support, labels)
        if self.normalized:
            prototypes = PrototypicalClassifier.normalize(prototypes)
        self.prototypes = prototypes
        return prototypes

    @staticmethod
    def cosine_distance(prototypes: Tensor, queries: Tensor) -> Tensor:
        """Minus the cosines of rows that have length 1 -> (queries, ways)."""
        return -queries @ prototypes.T

    @staticmethod
    def euclidean_distance(prototypes: Tensor, queries: Tensor) -> Tensor:
        """The squared distances -> (queries, ways)."""
        differences = prototypes - queries.unsqueeze(1)  # (queries, ways, features)
        return differences.square().sum(2)

    @staticmethod
    def normalize(x: Tensor, epsilon: float = 1e-8) -> Tensor:
        """Each row divided by its length."""
        return x / (x.norm(dim=1, keepdim=True) + epsilon)

    def forward(self, x: Tensor) -> Tensor:
        """Features (queries, features) -> scores (queries, ways).

        Raises RuntimeError before `fit_`.
        """
        if self.prototypes is None:
            raise RuntimeError("there are no prototypes yet: call fit_(support, labels) first")
        if self.normalized:
            x = PrototypicalClassifier.normalize(x)
        return -self.distance(self.prototypes, x)


__getattr__ = nearest(__name__, ["PrototypicalClassifier", "compute_prototypes"])
