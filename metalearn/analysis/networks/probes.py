"""How much each layer knows of the labels: a linear readout of its features, solved in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
from metalearn.analysis.measures.inputs import real_tensor
from metalearn.analysis.plotting.pictured import Pictured
from metalearn.episodes import Examples
from metalearn.network.activations import representations
from metalearn.network.layers import layers as layer_names
from metalearn.network.layers import resolve
from metalearn.network.modes import evaluation_mode
from metalearn.runtime.statistics import Estimate
from metalearn.runtime.tables import Tabular, aligned, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONVENTIONS = {
    "flatten": "all channels and positions as features",
    "pool": "channels averaged over positions as features",
}
RIDGES = tuple(
    10.0**power for power in range(-5, 3)
)  # times the mean eigenvalue, so that the scale of a layer does not matter


@dataclass(frozen=True)
class Probe:
    """One layer: the probe's accuracy on the test examples with its interval, the number of
    features, and the ridge that was taken.
    """

    layer: str
    accuracy: Estimate
    features: int
    ridge: float


@dataclass(frozen=True)
class Probes(Pictured, Tabular):
    """Accuracy of a linear probe on every layer; prints as a table.

    `chance` is the share of the most frequent class at test.
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
        rows = [
            (
                p.layer,
                f"{100 * p.accuracy.mean:6.2f} ± {100 * p.accuracy.interval:.2f}",
                str(p.features),
                f"{p.ridge:.3g}",
            )
            for p in self.layers
        ]
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
    """Accuracy of a linear classifier on each layer's features -> `Probes`.

    Ridge regression of one-hot labels on the centred features, `W = (X^T X + r I)^-1 X^T Y`; the
    prediction is the largest output. After Alain and Bengio 2016 (arXiv:1610.01644), with a closed
    form in place of logistic regression.

    Args:
        model: a network, or a learner, whose trained weights are probed as they stand.
        train, test: `Examples` or data sets of (input, integer label), such as `LabelledImages`:
            the same classes, no example in both.
        layers: module paths; by default all of `metalearn.layers(model)`.
        shots: training examples per class, drawn by `seed`; None takes all.
        convention: "flatten" or "pool" (channels averaged over positions: as many features early in
            the network as late).
        ridge: `r`, in units of the mean eigenvalue of X^T X; None takes that of 1e-5 to 1e2 whose
            squared leave-one-out error is least.
        batch: examples a forward pass. They are shuffled first: where batch norm takes the batch's
            statistics, a batch of one class would hide the class. The layers are probed one after
            another, so that memory is that of the widest.

    Raises ValueError for a layer that does not exist, a test label that was not trained on, a class
    with fewer than `shots` examples, inputs that the model does not take, and features that are not
    finite (the layer is named).

    Example:
        >>> inputs = torch.cat([torch.randn(20, 4) - 3, torch.randn(20, 4) + 3])
        >>> halves = [Examples(inputs[start::2], torch.arange(2).repeat_interleave(10)) for start in (0, 1)]
        >>> linear_probes(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), *halves, layers=["0"])["0"].accuracy.mean
        1.0
    """
    network = model.model if isinstance(model, Learner) else model
    check_kind(network, nn.Module, "model", "give a network or a learner")
    batch = check_whole(
        batch, "batch", 1, "it is how many examples go through the network at a time"
    )
    seed = check_seed(seed)
    shots = (
        None
        if shots is None
        else check_whole(shots, "shots", 1, "it is how many training examples each class has")
    )
    chosen = (
        layer_names(network)
        if layers is None
        else check_all(listed(layers, "layers"), str, "layers", "give names of modules")
    )
    names = [resolve(network, name) for name in chosen]
    if convention not in CONVENTIONS:
        raise ValueError(
            f"there is no convention {convention!r}; choose {' or '.join(CONVENTIONS)}"
        )
    if ridge is not None and not (is_number(ridge) and 0 < ridge < math.inf):
        raise ValueError(
            f"ridge={ridge} must be above 0; without it features that repeat have no one solution"
        )
    fit, seen = _drawn(train, shots, seed), _drawn(test, None, seed)
    classes, answers = fit.targets.unique(return_inverse=True)
    if not torch.isin(seen.targets, classes).all():
        strange = int(seen.targets[~torch.isin(seen.targets, classes)][0])
        raise ValueError(
            f"the test examples have the label {strange}, which no training example has; probe"
            " classes that both have"
        )
    truth = torch.searchsorted(classes, seen.targets)
    rows = []
    for name in names:
        x, y = (_features(network, name, part.inputs, convention, batch) for part in (fit, seen))
        scores, taken = ridge_readout(
            x, F.one_hot(answers, len(classes)).double(), y, RIDGES if ridge is None else (ridge,)
        )
        rows.append(
            Probe(name, Estimate.of((scores.argmax(1) == truth).double()), x.shape[1], taken)
        )
    chance = float(torch.bincount(truth).max()) / len(truth)
    return Probes(tuple(rows), convention, len(answers), len(truth), len(classes), chance)


def _drawn(data: Any, shots: int | None, seed: int) -> Examples:
    """The examples that are taken, in a shuffled order."""
    generator = torch.Generator().manual_seed(seed)
    labels = data.targets if isinstance(data, Examples) else getattr(data, "labels", None)
    if labels is None:
        labels = torch.tensor([_label(data, i) for i in range(_length(data))])
    if (
        not isinstance(labels, Tensor)
        or labels.ndim != 1
        or not len(labels)
        or labels.is_floating_point()
    ):
        raise ValueError(
            "linear_probes needs examples with integer labels, one each"
            + (": there are none" if not len(labels) else "")
        )
    if isinstance(data, Examples) and len(data.inputs) != len(labels):
        raise ValueError(
            f"{len(data.inputs)} inputs have {len(labels)} labels; give one label for each"
        )
    order = torch.randperm(len(labels), generator=generator)
    if shots is not None:
        picks = [order[labels[order] == label] for label in labels.unique()]
        small = next((pick for pick in picks if len(pick) < shots), None)
        if shots < 1 or small is not None:
            few = (
                f"class {int(labels[small[0]])} has {len(small)} training examples"
                if small is not None
                else "there is no such probe"
            )
            raise ValueError(f"shots={shots} but {few}; ask for 1 to {min(map(len, picks))} shots")
        order = torch.cat([pick[:shots] for pick in picks])
        order = order[torch.randperm(len(order), generator=generator)]
    if isinstance(data, Examples):
        return Examples(
            data.inputs[order.to(data.inputs.device)], labels[order.to(labels.device)].cpu()
        )
    return Examples(
        torch.stack([torch.as_tensor(data[int(i)][0]) for i in order]), labels[order].cpu()
    )


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


def _features(model: nn.Module, layer: str, inputs: Tensor, convention: str, batch: int) -> Tensor:
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    pieces = []
    with evaluation_mode([model]), torch.no_grad():
        for part in inputs.tensor_split(-(-len(inputs) // batch)):
            with representations(model, [layer]) as seen:
                try:
                    model(part.to(like.device, like.dtype if part.is_floating_point() else None))
                except (RuntimeError, ValueError) as error:
                    raise ValueError(
                        f"the model does not take inputs of {tuple(part.shape[1:])}"
                        f" ({str(error).splitlines()[0]}); bring the images to its channels and"
                        " size"
                    ) from error
            output = real_tensor(seen[layer], f"layer {layer}: its output")
            output = output if output.is_floating_point() else output.double()
            if convention == "pool" and output.ndim > 2:
                output = output.mean(1) if output.ndim == 3 else output.flatten(2).mean(2)
            pieces.append(output.flatten(1).cpu())
    found = torch.cat(pieces)
    if not found.isfinite().all():
        raise ValueError(
            f"layer {layer}: features that are not finite; look at the weights or at the inputs"
        )
    return found


def ridge_readout(
    x: Tensor, targets: Tensor, y: Tensor, ridges: Sequence[float] = RIDGES
) -> tuple[Tensor, float]:
    """Training features (n, d), targets (n, outputs), test features -> test outputs, and the ridge
    that was taken.
    """
    mean, middle = x.double().mean(0), targets.mean(0)
    if (
        len(x) < x.shape[1]
    ):  # through the Gram matrix, in slices of features: float64 copies of all of them would not fit
        gram, across = (
            x.new_zeros(len(x), len(x), dtype=torch.float64),
            y.new_zeros(len(y), len(x), dtype=torch.float64),
        )
        for part in range(0, x.shape[1], 4096):
            columns = slice(part, part + 4096)
            a, b = x[:, columns].double() - mean[columns], y[:, columns].double() - mean[columns]
            gram, across = gram + a @ a.T, across + b @ a.T
        energy, left = torch.linalg.eigh(gram)
    else:
        a, b = x.double() - mean, y.double() - mean
        energy, right = torch.linalg.eigh(a.T @ a)
    kept = energy > 1e-10 * energy.max().clamp(min=1e-300)
    if not kept.any():  # constant features say nothing
        return middle.expand(len(y), -1), float(ridges[-1])
    energy, root = energy[kept], energy[kept].sqrt()
    if len(x) < x.shape[1]:
        basis, projected = left[:, kept], across @ left[:, kept] / root
    else:
        basis, projected = a @ right[:, kept] / root, b @ right[:, kept]
    loadings = basis.T @ (targets - middle)
    best, taken = None, 0.0
    for ridge in ridges:
        strength = ridge * float(energy.mean())
        shrink = energy / (energy + strength)
        leverage = (1 / len(x) + basis.square() @ shrink).clamp(max=1 - 1e-9)
        left_out = (targets - middle - basis @ (shrink[:, None] * loadings)) / (1 - leverage)[
            :, None
        ]
        error = float(left_out.square().mean())
        if best is None or error < best:
            best, taken = error, ridge
    strength = taken * float(energy.mean())
    return middle + projected @ ((root / (energy + strength))[:, None] * loadings), taken
