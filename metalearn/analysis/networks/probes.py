"""Linear probes: a linear readout of each layer's features, solved in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.algorithms.base import Learner
from metalearn.analysis.checks import (
    check_all,
    check_kind,
    check_seed,
    check_whole,
    is_number,
    listed,
)
from metalearn.analysis.measures.inputs import as_floats, real_tensor
from metalearn.analysis.plotting.pictured import Pictured
from metalearn.episodes import Examples
from metalearn.network.activations import is_raw, representations
from metalearn.network.layer_names import named_output
from metalearn.network.layers import layers as layer_names
from metalearn.network.modes import evaluation_mode
from metalearn.runtime.statistics import Estimate
from metalearn.runtime.tables import Tabular, aligned, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONVENTIONS = {
    "flatten": "all channels and positions as features",
    "pool": "channels averaged over positions as features",
}

# Ridges as multiples of the mean eigenvalue, so the scale of a layer does not matter.
RIDGES = tuple(10.0**power for power in range(-5, 3))

# Features in float64 in memory at a time.
SLICE = 4096


@dataclass(frozen=True)
class Probe:
    """The probe of one layer.

    Attributes:
        layer: its name.
        accuracy: on the test examples, with its interval.
        features: how many features it has.
        ridge: the ridge that was chosen, as a multiple of the mean eigenvalue.
    """

    layer: str
    accuracy: Estimate
    features: int
    ridge: float


@dataclass(frozen=True)
class Probes(Pictured, Tabular):
    """Accuracy of a linear probe on every layer; prints as a table.

    Attributes:
        layers: the rows, in order.
        convention: how outputs became features (`CONVENTIONS`).
        train: how many training examples there are.
        test: how many test examples there are.
        classes: how many classes there are.
        chance: the share of the most frequent class among the test examples.
    """

    layers: tuple[Probe, ...]
    convention: str
    train: int
    test: int
    classes: int
    chance: float

    def __getitem__(self, layer: str) -> Probe:
        for row in self.layers:
            if row.layer == layer:
                return row
        raise KeyError(
            f"no layer {layer!r} was probed; these were:"
            f" {', '.join(row.layer for row in self.layers)}"
        )

    def __str__(self) -> str:
        rows = []
        for probe in self.layers:
            accuracy = f"{100 * probe.accuracy.mean:6.2f} ± {100 * probe.accuracy.interval:.2f}"
            rows.append((probe.layer, accuracy, str(probe.features), f"{probe.ridge:.3g}"))
        table = aligned(("layer", "accuracy %", "features", "ridge"), rows)
        return (
            f"{table}\n({self.classes} classes, {self.train} training and {self.test} test"
            f" examples; {CONVENTIONS[self.convention]}; chance {100 * self.chance:.1f} %; ± is the"
            " 95 % interval over test examples)"
        )

    def records(self) -> list[dict[str, Any]]:
        """The rows as dictionaries of numbers and names."""
        return list(self.to_dict()["layers"])

    def to_dict(self) -> dict[str, Any]:
        """The table as JSON-able values."""
        return plain(self)

    def figure(self) -> Figure:
        """The accuracy of every layer with its interval, as a matplotlib `Figure`."""
        from metalearn.analysis.plotting.layers import probe_accuracies

        means = [row.accuracy.mean for row in self.layers]
        intervals = [row.accuracy.interval for row in self.layers]
        return probe_accuracies([row.layer for row in self.layers], means, intervals, self.chance)


def linear_probes(
    model: nn.Module,
    train: Any,
    test: Any,
    layers: Sequence[str] | None = None,
    shots: int | None = None,
    *,
    convention: str = "flatten",
    ridge: float | None = None,
    batch: int = 128,
    seed: int = 0,
) -> Probes:
    """Accuracy of a linear classifier on each layer's features.

    Ridge regression of one-hot labels on the centred features, `W = (X^T X + r I)^-1 X^T Y`; the
    prediction is the largest output. After Alain and Bengio 2016 (arXiv:1610.01644), with a closed
    form instead of logistic regression. The layers are probed one after another, so memory is that
    of the widest.

    Args:
        model: a network, or a learner, whose trained weights are probed without adaptation.
        train: `Examples`, or a data set of (input, integer label) such as `LabelledImages`.
        test: the same classes, without any of the training examples.
        layers: module paths; by default all of `metalearn.layers(model)`.
        shots: training examples per class, drawn by `seed`; None takes all.
        convention: "flatten", or "pool" (channels averaged over positions, so early layers have no
            more features than late ones).
        ridge: `r`, in units of the mean eigenvalue of X^T X; None takes the one of 1e-5 to 1e2 with
            the smallest squared leave-one-out error.
        batch: examples a forward pass. They are shuffled first: if batch norm uses the statistics
            of the batch, a batch of one class would hide the class.
        seed: determines the shots and the order of examples.

    Returns:
        A `Probes`: a row a layer.

    Raises:
        TypeError: the data do not consist of pairs (input, integer label).
        ValueError: a layer that does not exist; a test label without training examples; a class
            with fewer than `shots` examples; inputs that the model does not take; or features that
            are not finite (the layer is named).

    Example:
        >>> inputs = torch.cat([torch.randn(20, 4) - 3, torch.randn(20, 4) + 3])
        >>> labels = torch.arange(2).repeat_interleave(10)
        >>> train, test = Examples(inputs[::2], labels), Examples(inputs[1::2], labels)
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> linear_probes(model, train, test, layers=["0"])["0"].accuracy.mean
        1.0
    """
    network = model.model if isinstance(model, Learner) else model
    check_kind(network, nn.Module, "model", "give a network or a learner")
    batch = check_whole(
        batch, "batch", 1, "it is how many examples go through the network at a time"
    )
    seed = check_seed(seed)
    if shots is not None:
        meaning = "it is how many training examples each class has"
        shots = check_whole(shots, "shots", 1, meaning)
    names = probed_layers(network, layers)
    check_probe(convention, ridge)
    training = _examples(train, shots, seed)
    testing = _examples(test, None, seed)
    classes, answers = training.targets.unique(return_inverse=True)
    truth = _class_numbers(testing.targets, classes)
    targets = F.one_hot(answers, len(classes)).double()  # (training examples, classes)
    ridges = RIDGES if ridge is None else (ridge,)
    rows = []
    for name in names:
        x = features_of(network, [name], training.inputs, convention, batch)[name]
        y = features_of(network, [name], testing.inputs, convention, batch)[name]
        outputs, chosen = ridge_readout(x, targets, y, ridges)
        correct = (outputs.argmax(1) == truth).double()
        rows.append(Probe(name, Estimate.of(correct), x.shape[1], chosen))
    chance = float(torch.bincount(truth).max()) / len(truth)
    return Probes(tuple(rows), convention, len(answers), len(truth), len(classes), chance)


def probed_layers(network: nn.Module, layers: Sequence[str] | None) -> list[str]:
    """The names of the layers to probe; by default all of the network."""
    if layers is None:
        return layer_names(network)
    names = check_all(listed(layers, "layers"), str, "layers", "give names of modules")
    return [named_output(network, name).name for name in names]


def check_probe(convention: str, ridge: float | None) -> None:
    """Raise ValueError for an unknown convention, or a ridge that is not above 0."""
    if convention not in CONVENTIONS:
        raise ValueError(
            f"there is no convention {convention!r}; choose {' or '.join(CONVENTIONS)}"
        )
    if ridge is not None and not (is_number(ridge) and 0 < ridge < math.inf):
        raise ValueError(
            f"ridge={ridge} must be above 0 and finite; without a ridge, repeated features have no"
            " unique solution"
        )


def _class_numbers(labels: Tensor, classes: Tensor) -> Tensor:
    """The position of each label among the sorted classes. Raises ValueError for another label."""
    known = torch.isin(labels, classes)
    if not known.all():
        raise ValueError(
            f"the test examples have the label {int(labels[~known][0])}, which no training example"
            " has; probe classes that both have"
        )
    return torch.searchsorted(classes, labels)


def _examples(data: Any, shots: int | None, seed: int) -> Examples:
    """The examples of a data set in random order; `shots` of each class, or all."""
    generator = torch.Generator().manual_seed(seed)
    labels = _labels(data)
    order = torch.randperm(len(labels), generator=generator)
    if shots is not None:
        order = _first_of_each_class(order, labels, shots)
        order = order[torch.randperm(len(order), generator=generator)]
    targets = labels[order.to(labels.device)].cpu()
    if isinstance(data, Examples):
        return Examples(data.inputs[order.to(data.inputs.device)], targets)
    inputs = [torch.as_tensor(data[int(i)][0]) for i in order]
    return Examples(torch.stack(inputs), targets)


def _labels(data: Any) -> Tensor:
    """The integer labels of a data set (examples,)."""
    labels = data.targets if isinstance(data, Examples) else getattr(data, "labels", None)
    if labels is None:
        labels = torch.tensor([_label(data, i) for i in range(_length(data))])
    is_vector = isinstance(labels, Tensor) and labels.ndim == 1
    if is_vector and not len(labels):
        raise ValueError("linear_probes needs examples with integer labels: there are none")
    if not is_vector or labels.is_floating_point():
        raise ValueError("linear_probes needs examples with integer labels, one each")
    if isinstance(data, Examples) and len(data.inputs) != len(labels):
        raise ValueError(
            f"{len(data.inputs)} inputs have {len(labels)} labels; give one label for each"
        )
    return labels


def _first_of_each_class(order: Tensor, labels: Tensor, shots: int) -> Tensor:
    """The first `shots` examples of each class in this order. Raises ValueError for too few."""
    classes = labels.unique()
    of_classes = [order[labels[order] == label] for label in classes]
    fewest = min(map(len, of_classes))
    for label, of_class in zip(classes, of_classes, strict=True):
        if len(of_class) < shots:
            raise ValueError(
                f"shots={shots} but class {int(label)} has {len(of_class)} training examples; ask"
                f" for 1 to {fewest} shots"
            )
    return torch.cat([of_class[:shots] for of_class in of_classes])


def _length(data: Any) -> int:
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise TypeError(
            f"the data is a {type(data).__name__}; give Examples(inputs, labels), or a data set of"
            " (input, integer label)"
        )
    return len(data)


def _label(data: Any, i: int) -> int:
    item = data[i]
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise TypeError(
            f"item {i} of the data is a {type(item).__name__}, not a pair (input, integer label)"
        )
    label = np.asarray(item[1])
    if label.dtype.kind not in "iub" or label.size != 1:
        raise TypeError(f"the label of item {i} is {item[1]!r}, not an integer; number the classes")
    return int(label.item())


def features_of(
    model: nn.Module, layers: Sequence[str], inputs: Tensor, convention: str, batch: int
) -> dict[str, Tensor]:
    """The outputs of layers for all inputs, as matrices (examples, features) on the CPU."""
    floats = (weight for weight in model.parameters() if weight.is_floating_point())
    like = next(floats, torch.empty(0))
    batches = -(-len(inputs) // batch)
    pieces: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    with evaluation_mode([model]), torch.no_grad():
        for part in inputs.tensor_split(batches):
            dtype = like.dtype if part.is_floating_point() else None
            with representations(model, layers) as outputs:
                _forward(model, part.to(like.device, dtype))
            for layer in layers:
                if outputs[layer].shape[:1] != part.shape[:1]:
                    raise ValueError(
                        f"layer {layer}: the output is {tuple(outputs[layer].shape)} for"
                        f" {len(part)} examples; its first dimension is not the examples, so name"
                        " another layer"
                    )
                pieces[layer].append(_matrix(outputs[layer], layer, convention).cpu())
    features = {layer: torch.cat(parts) for layer, parts in pieces.items()}
    for layer, matrix in features.items():
        if not matrix.isfinite().all():
            raise ValueError(
                f"layer {layer}: features that are not finite; check the weights and the inputs"
            )
    return features


def _forward(model: nn.Module, inputs: Tensor) -> None:
    try:
        model(inputs)
    except (RuntimeError, ValueError) as error:
        if not is_raw(error):
            raise  # it names its cure already, such as a position that is not there
        raise ValueError(
            f"the model does not take inputs of {tuple(inputs.shape[1:])}"
            f" ({str(error).splitlines()[0]}); bring the images to its channels and size"
        ) from error


def _matrix(output: Tensor, layer: str, convention: str) -> Tensor:
    """An output as (examples, features)."""
    output = as_floats(real_tensor(output, f"layer {layer}: its output"))
    if convention == "pool" and output.ndim == 3:  # (examples, positions, features)
        return output.mean(1)
    if convention == "pool" and output.ndim > 3:  # (examples, channels, height, width)
        return output.flatten(2).mean(2)
    return output.flatten(1)


class _Decomposition(NamedTuple):
    """The centred training features `X = U S V^T`, and the test features in the same axes.

    Attributes:
        basis: U (training examples, directions).
        energy: the diagonal of S² (directions,).
        projected: the test features minus the training mean, times V (test examples, directions).
    """

    basis: Tensor
    energy: Tensor
    projected: Tensor


def ridge_readout(
    x: Tensor, targets: Tensor, y: Tensor, ridges: Sequence[float] = RIDGES
) -> tuple[Tensor, float]:
    """Ridge regression on training features, with the ridge chosen by the leave-one-out error.

    `W = (X^T X + r I)^-1 X^T T` on centred features X and targets T.

    Args:
        x: training features (n, d).
        targets: (n, outputs), float64.
        y: test features (test examples, d).
        ridges: the candidates, in units of the mean eigenvalue of X^T X.

    Returns:
        The outputs for the test features (test examples, outputs), and the chosen ridge.
    """
    middle = targets.mean(0)
    basis, energy, projected = _decomposed(x, y)
    if not len(energy):  # constant features predict the mean
        return middle.expand(len(y), -1), float(ridges[-1])
    centred = targets - middle
    loadings = basis.T @ centred  # U^T T (directions, outputs)

    def left_out_error(ridge: float) -> float:
        """The mean squared error of each example, predicted from all others."""
        # The hat matrix is H = 1 / n + U S² (S² + r)^-1 U^T, and the error without example i is its
        # residual divided by 1 - H_ii.
        shrink = energy / (energy + ridge * float(energy.mean()))
        leverage = (1 / len(x) + basis.square() @ shrink).clamp(max=1 - 1e-9)  # H_ii (n,)
        residuals = centred - basis @ (shrink[:, None] * loadings)  # (n, outputs)
        return float((residuals / (1 - leverage)[:, None]).square().mean())

    chosen = min(ridges, key=left_out_error)
    # Y W = (Y V) S (S² + r)^-1 U^T T
    shrink = energy.sqrt() / (energy + chosen * float(energy.mean()))
    return middle + projected @ (shrink[:, None] * loadings), chosen


def _decomposed(x: Tensor, y: Tensor) -> _Decomposition:
    """Training features (n, d) and test features, decomposed through the smaller square matrix."""
    mean = x.double().mean(0)
    if len(x) >= x.shape[1]:
        a = x.double() - mean
        b = y.double() - mean
        # X^T X = V S² V^T, so U = X V S^-1.
        energy, right = torch.linalg.eigh(a.T @ a)
        varies = _more_than_rounding(energy)
        energy = energy[varies]
        right = right[:, varies]
        return _Decomposition(a @ right / energy.sqrt(), energy, b @ right)
    # X X^T = U S² U^T, so Y V = (Y X^T) U S^-1. In slices of features, because copies of all of
    # them in float64 might not fit in memory.
    gram = x.new_zeros(len(x), len(x), dtype=torch.float64)
    across = y.new_zeros(len(y), len(x), dtype=torch.float64)
    for first in range(0, x.shape[1], SLICE):
        columns = slice(first, first + SLICE)
        a = x[:, columns].double() - mean[columns]
        b = y[:, columns].double() - mean[columns]
        gram = gram + a @ a.T
        across = across + b @ a.T
    energy, left = torch.linalg.eigh(gram)
    varies = _more_than_rounding(energy)
    energy = energy[varies]
    left = left[:, varies]
    return _Decomposition(left, energy, across @ left / energy.sqrt())


def _more_than_rounding(energy: Tensor) -> Tensor:
    return energy > 1e-10 * energy.max().clamp(min=1e-300)
