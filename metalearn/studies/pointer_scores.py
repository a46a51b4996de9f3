"""What does a network retrieve by a pointer, on inputs like its training set's and on others?

Zhang, Raghu, Kleinberg and Bengio 2021 (arXiv:2107.12580).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from metalearn.analysis.networks.batches import tensor_of, to_device
from metalearn.data.pointer_images import PointerImages
from metalearn.data.pointer_value import PointerVectors, label_entropy
from metalearn.network.modes import evaluation_mode

PointerData = PointerVectors | PointerImages
AT_ONCE = 512  # examples of a forward pass


class PointerScores(NamedTuple):
    """Accuracies of one network, shares from 0 to 1, and entropies in bits.

    Attributes:
        train: on the first training examples.
        iid: on test examples drawn as the training set.
        adversarial: on test examples with what training held out; NaN without any.
        same_labels: on the iid examples, with the label shares of the adversarial ones. It is what
            the adversarial accuracy would be if only the labels were other.
        entropy: of the iid labels.
        adversarial_entropy: of the adversarial labels. With 0, a constant scores 100 %.
    """

    train: float
    iid: float
    adversarial: float
    same_labels: float
    entropy: float
    adversarial_entropy: float


def pointer_scores(
    network: nn.Module,
    train: PointerData,
    iid: PointerData,
    adversarial: PointerData | None = None,
) -> PointerScores:
    """Score a network on the parts of one problem of pointer value retrieval.

    Args:
        network: takes inputs, and returns a score for each of the ten digits.
        train: the training set; as many of its examples are scored as `iid` has.
        iid: test examples drawn as the training set.
        adversarial: test examples with held-out windows or digits.

    Example:
        >>> from metalearn.models import PointerMLP
        >>> from metalearn.tasks import pointer_vectors
        >>> train, iid = pointer_vectors(50, seed=0), pointer_vectors(50, seed=1)
        >>> pointer_scores(PointerMLP(hidden=(8,)), train, iid)._fields[:3]
        ('train', 'iid', 'adversarial')
    """
    right = _right(network, iid, len(iid))
    shifted = same = shifted_entropy = math.nan
    if adversarial is not None:
        shifted = float(_right(network, adversarial, len(adversarial)).mean())
        same = _reweighted(right, iid.labels, adversarial.labels)
        shifted_entropy = label_entropy(adversarial.labels)
    return PointerScores(
        train=float(_right(network, train, len(iid)).mean()),
        iid=float(right.mean()),
        adversarial=shifted,
        same_labels=same,
        entropy=label_entropy(iid.labels),
        adversarial_entropy=shifted_entropy,
    )


def stored_inputs(data: PointerData) -> Tensor:
    """The inputs as they are stored: vectors of int64, or images of uint8."""
    return data.images if isinstance(data, PointerImages) else data.inputs


def prepared(inputs: Tensor) -> Tensor:
    """Inputs as a network takes them: bytes become numbers in [0, 1]."""
    return inputs / 255 if inputs.dtype == torch.uint8 else inputs


def _right(network: nn.Module, data: PointerData, count: int) -> Tensor:
    """1 where the prediction of an example is its label, else 0, (examples,) float64."""
    like = tensor_of(network)
    predicted = []
    with evaluation_mode([network]), torch.no_grad():
        for part in stored_inputs(data)[:count].split(AT_ONCE):
            predicted.append(network(to_device(prepared(part), like)).argmax(1).cpu())
    return (torch.cat(predicted) == data.labels[:count]).double()


def _reweighted(right: Tensor, labels: Tensor, other: Tensor) -> float:
    """The mean of `right` with the label shares of `other`; NaN if one of these has no example."""
    total = 0.0
    for label in other.unique():
        share = float((other == label).double().mean())
        total += share * float(right[labels == label].mean())
    return total
