"""How representations settle during training.

Raghu, Gilmer, Yosinski and Sohl-Dickstein 2017 (arXiv:1706.05806); Morcos, Raghu and Bengio 2018
(arXiv:1806.05759).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from numbers import Real
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.analysis.checks import check_kind, check_seed, listed
from metalearn.analysis.plotting.pictured import Pictured
from metalearn.models.weights import read
from metalearn.network.activations import representations
from metalearn.network.layers import layers as layer_names
from metalearn.network.modes import evaluation_mode
from metalearn.runtime.statistics import MeanStd
from metalearn.runtime.tables import Tabular, aligned, plain

from .layerwise import Network, compare_layers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Snapshot: TypeAlias = Mapping[str, Tensor] | str | PathLike[str]


@dataclass(frozen=True)
class Dynamics(Pictured, Tabular):
    """Similarity of every layer at every step to the end of training; prints as a table.

    Attributes:
        steps: the steps of the snapshots, rising; the last is the end.
        layers: the layers.
        values: (layers, steps), similarity to the end of the same training.
        other: (layers, steps), similarity to the end of another training; None without one.
        measure: the measure.
        examples: how many inputs there were.
    """

    steps: tuple[int, ...]
    layers: tuple[str, ...]
    values: np.ndarray
    other: np.ndarray | None
    measure: str
    examples: int

    def reached(self, level: float = 0.9) -> dict[str, int | None]:
        """The first step from which each layer's similarity to the end stays at `level` or above.

        None for a layer that only the end itself satisfies.

        Raises:
            ValueError: `level` is no number.
        """
        if isinstance(level, bool) or not isinstance(level, Real):
            raise ValueError(f"level={level!r}; give a similarity, such as 0.9")
        steps: dict[str, int | None] = {}
        for layer, row in zip(self.layers, self.values, strict=True):
            below = np.flatnonzero(~(row >= level))  # NaN is below
            first = 0 if not below.size else int(below[-1]) + 1
            last = len(self.steps) - 1
            steps[layer] = self.steps[first] if first < last else None
        return steps

    def records(self) -> list[dict[str, Any]]:
        """A row for each layer and step."""
        records = []
        for i, layer in enumerate(self.layers):
            for j, step in enumerate(self.steps):
                record = {"layer": layer, "step": step, "similarity": float(self.values[i, j])}
                if self.other is not None:
                    record["other"] = float(self.other[i, j])
                records.append(record)
        return records

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON-able values; NaN is None."""
        return plain({**vars(self), "reached": self.reached()})

    def __str__(self) -> str:
        reached = self.reached()
        rows = []
        for i, layer in enumerate(self.layers):
            step = reached[layer]
            cells = [f"{value:.3f}" for value in self.values[i]]
            rows.append((layer, *cells, "never" if step is None else str(step)))
        columns = ("layer", *map(str, self.steps), "0.9 from step")
        lines = [
            aligned(columns, rows),
            f"({self.measure} to the end of training, {self.examples} inputs)",
        ]
        if self.other is not None:
            cells = [f"{value:.3f}" for value in np.nanmean(self.other, 0)]
            lines.append(f"to the end of another seed, mean over layers: {', '.join(cells)}")
        return "\n".join(lines)

    def figure(self) -> Figure:
        """Every layer over steps, as a matplotlib `Figure`."""
        from metalearn.analysis.plotting.dynamics import convergences

        return convergences(self.steps, self.layers, self.values, self.other, self.measure)


def convergence(
    build: nn.Module | Callable[[], nn.Module],
    snapshots: Mapping[int, Snapshot],
    inputs: Any,
    *,
    measure: str = "pwcca",
    layers: Sequence[str] | None = None,
    other: Snapshot | None = None,
    **options: Any,
) -> Dynamics:
    """How similar each layer is at each snapshot to what it becomes at the end.

    The paper finds that layers settle from the bottom up. Similarity to the end of another seed is
    the control: a layer that only nears its own end drifts to a solution of its own.

    Args:
        build: a network, or a function without arguments that returns one.
        snapshots: `{step: weights}`, a state dict or a safetensors file each; such as
            `curve.snapshots` of a fine-tuning.
        inputs: what the networks are compared on, as in `compare_layers`.
        measure: a measure of `compare_layers`; for the CCA family take several times as many
            examples as a layer has directions.
        layers: names of layers; by default `metalearn.layers(network)`.
        other: the last weights of a training from another seed.
        **options: further arguments of `compare_layers`; `draws=0` unless given.

    Raises:
        ValueError: Fewer than two snapshots, or one of another network.

    Example:
        >>> network = nn.Linear(3, 3)  # every invertible one spans the inputs
        >>> start = {name: torch.randn_like(p) for name, p in network.named_parameters()}
        >>> end = dict(network.state_dict())
        >>> inputs = torch.randn(50, 3)
        >>> found = convergence(network, {0: start, 9: end}, inputs, layers=[""], measure="cca")
        >>> found.values.round(6)
        array([[1., 1.]])
    """
    network = build if isinstance(build, nn.Module) else build()
    check_kind(network, nn.Module, "build", "give a network, or a function that returns one")
    steps = sorted(snapshots)
    if len(steps) < 2:
        raise ValueError(f"{len(steps)} snapshots; give at least a step and the end")
    weights = {
        step: weights_of_snapshot(network, snapshots[step], f"step {step}") for step in steps
    }
    names = layer_names(network) if layers is None else list(listed(layers, "layers"))
    options = {"draws": 0, **options, "measure": measure, "layers": names}
    ends: list[Network] = [(network, weights[steps[-1]])]
    if other is not None:
        ends.append((network, weights_of_snapshot(network, other, "the other training")))
    tables = []
    examples = 0
    for end in ends:
        columns = []
        for step in steps:
            profile = compare_layers((network, weights[step]), end, inputs, **options)
            columns.append([row.similarity for row in profile.layers])
            examples = profile.layers[0].examples
        tables.append(np.array(columns).T)  # (layers, steps)
    second = tables[1] if other is not None else None
    return Dynamics(tuple(steps), tuple(names), tables[0], second, measure, examples)


def weights_of_snapshot(network: nn.Module, snapshot: Snapshot, source: str) -> dict[str, Tensor]:
    """The weights of a snapshot, which must be those of this network."""
    if not isinstance(snapshot, Mapping):
        snapshot = read(os.fspath(snapshot)).tensors
    wanted = network.state_dict()
    missing = [name for name in wanted if name not in snapshot]
    other = [
        name for name in wanted if name in snapshot and snapshot[name].shape != wanted[name].shape
    ]
    # Weights left over are of layers that this network does not have.
    left_over = [name for name in snapshot if name not in wanted]
    if missing or other or left_over:
        name = (missing or other or left_over)[0]
        how = "is only in the snapshot"
        if missing:
            how = "is missing"
        elif other:
            how = f"has shape {tuple(snapshot[name].shape)}"
        raise ValueError(
            f"the snapshot of {source} is not of this {type(network).__name__}: {name!r} {how};"
            " build the network that was trained"
        )
    return {name: snapshot[name] for name in wanted}


@dataclass(frozen=True)
class GroupSimilarity:
    """How alike the networks of two groups are.

    Attributes:
        groups: the names of the groups; the same twice for pairs within one.
        pairs: how many pairs of networks.
        layers: for each layer the similarity over pairs.
    """

    groups: tuple[str, str]
    pairs: int
    layers: Mapping[str, MeanStd]


@dataclass(frozen=True)
class Generalisation(Tabular):
    """Networks trained on true labels and on shuffled ones; prints as a table.

    Attributes:
        groups: similarity within each group and between them.
        training: for each group the training accuracy over its networks.
        measure: the measure.
        examples: how many inputs they were compared on.
    """

    groups: tuple[GroupSimilarity, ...]
    training: Mapping[str, MeanStd]
    measure: str
    examples: int

    def __getitem__(self, groups: tuple[str, str]) -> GroupSimilarity:
        for row in self.groups:
            if row.groups == groups:
                return row
        known = ", ".join(" and ".join(row.groups) for row in self.groups)
        raise KeyError(f"no pairs of {groups}; there are {known}")

    def records(self) -> list[dict[str, Any]]:
        """A row for each pair of groups and layer."""
        records = []
        for row in self.groups:
            for layer, value in row.layers.items():
                pair = {"first": row.groups[0], "second": row.groups[1], "pairs": row.pairs}
                records.append({**pair, "layer": layer, "similarity": value})
        return records

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON-able values."""
        return plain(self)

    def __str__(self) -> str:
        layers = list(self.groups[0].layers)
        rows = []
        for row in self.groups:
            first, second = row.groups
            name = f"within {first}" if first == second else f"{first} and {second}"
            cells = [f"{row.layers[layer].mean:.3f}" for layer in layers]
            rows.append((name, str(row.pairs), *cells))
        accuracies = [
            f"{name}: {value.text(100, 1, 'network')}" for name, value in self.training.items()
        ]
        return (
            f"{aligned(('networks', 'pairs', *layers), rows)}\n({self.measure} on"
            f" {self.examples} inputs; training accuracy, %: {'; '.join(accuracies)})"
        )


def generalising(
    build: Callable[[], nn.Module],
    inputs: Tensor,
    targets: Tensor,
    train: Callable[[nn.Module, Tensor, Tensor, int], Any],
    test: Tensor,
    *,
    seeds: Sequence[int] = tuple(range(5)),
    labels_seed: int = 0,
    measure: str = "pwcca",
    layers: Sequence[str] | None = None,
    **options: Any,
) -> Generalisation:
    """Are networks that generalise more alike than networks that memorise?

    One group is trained on the true labels, one on labels shuffled once, the same shuffle for all
    of its networks. Networks are compared on `test` inputs, within each group and across.

    Args:
        build: returns a network; called under `torch.manual_seed(seed)`.
        inputs: (examples, ...), what to train on.
        targets: (examples,), the true labels.
        train: `train(network, inputs, targets, seed)` trains a network in place.
        test: (examples, ...), what to compare on.
        seeds: one network of each group for each seed.
        labels_seed: what the shuffle depends on.
        measure: a measure of `compare_layers`.
        layers: names of layers; by default `metalearn.layers(network)`.
        **options: further arguments of `compare_layers`; `draws=0` unless given.

    Raises:
        ValueError: Fewer than two seeds.

    Example:
        >>> x, y = torch.randn(60, 4), torch.arange(60) % 2
        >>> def train(network, inputs, targets, seed):
        ...     optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        ...     F.cross_entropy(network(inputs), targets).backward()
        ...     optimizer.step()
        >>> build = lambda: nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> found = generalising(build, x, y, train, torch.randn(80, 4), seeds=(0, 1))
        >>> found["true", "random"].pairs
        4
    """
    if len(seeds) < 2:
        raise ValueError(f"{len(seeds)} seeds; pairs within a group need at least two")
    shuffle = torch.Generator().manual_seed(check_seed(labels_seed))
    shuffled = targets[torch.randperm(len(targets), generator=shuffle)]
    options = {"draws": 0, **options, "measure": measure}
    members: list[tuple[str, nn.Module]] = []
    training: dict[str, list[float]] = {}
    for name, labels in (("true", targets), ("random", shuffled)):
        for seed in seeds:
            torch.manual_seed(seed)
            network = build()
            train(network, inputs, labels, seed)
            members.append((name, network))
            training.setdefault(name, []).append(_accuracy(network, inputs, labels))
    names = layer_names(members[0][1]) if layers is None else list(listed(layers, "layers"))
    values: dict[tuple[str, str], list[list[float]]] = {}
    examples = 0
    for (first, one), (second, two) in combinations(members, 2):
        profile = compare_layers(one, two, test, layers=names, **options)
        similarities = [row.similarity for row in profile.layers]
        values.setdefault((first, second), []).append(similarities)
        examples = profile.layers[0].examples
    groups = []
    for pair, rows in values.items():
        columns = zip(*rows, strict=True)  # one for each layer
        by_layer = {
            name: MeanStd.of(list(column)) for name, column in zip(names, columns, strict=True)
        }
        groups.append(GroupSimilarity(pair, len(rows), by_layer))
    accuracies = {name: MeanStd.of(scores) for name, scores in training.items()}
    return Generalisation(tuple(groups), accuracies, measure, examples)


def _accuracy(network: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    right = 0
    with evaluation_mode([network]), torch.no_grad():
        for part, labels in zip(inputs.split(256), targets.split(256), strict=True):
            right += int((network(part).argmax(1) == labels).sum())
    return right / len(targets)


@dataclass(frozen=True)
class Sensitivity(Tabular):
    """How much every layer knows of every class; prints as a table.

    Attributes:
        layers: the layers.
        classes: (classes,) the labels.
        values: (layers, classes), canonical correlation with the indicator of the class.
        examples: how many inputs there were.
    """

    layers: tuple[str, ...]
    classes: tuple[int, ...]
    values: np.ndarray
    examples: int

    def records(self) -> list[dict[str, Any]]:
        """A row for each layer and class."""
        records = []
        for i, layer in enumerate(self.layers):
            for j, label in enumerate(self.classes):
                value = float(self.values[i, j])
                records.append({"layer": layer, "class": label, "correlation": value})
        return records

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON-able values; NaN is None."""
        return plain(self)

    def __str__(self) -> str:
        rows = [
            (layer, *(f"{value:.2f}" for value in values))
            for layer, values in zip(self.layers, self.values, strict=True)
        ]
        table = aligned(("layer", *map(str, self.classes)), rows)
        return f"{table}\n(canonical correlation with each class, {self.examples} examples)"


def class_sensitivity(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    layers: Sequence[str] | None = None,
) -> Sensitivity:
    """The canonical correlation of each layer with the indicator of each class.

    For one column `y` it is the multiple correlation `||Q^T y|| / ||y||`, with `y` centred and `Q`
    an orthonormal basis of the layer's centred columns: 1 if a linear function of the layer tells
    the class apart without error. Positions are averaged, so that each example is a row.

    Args:
        model: any network; it runs in evaluation mode.
        inputs: (examples, ...), more than a layer has directions.
        targets: (examples,), integer labels.
        layers: names of layers; by default `metalearn.layers(model)`.

    Raises:
        ValueError: One class, or no more examples than a layer has directions.

    Example:
        >>> x = torch.randn(200, 4)
        >>> found = class_sensitivity(nn.Linear(4, 4), x, (x[:, 0] > 0).long(), [""])
        >>> bool(0.7 < found.values[0, 1] < 0.9)  # sqrt(2 / pi) in the limit
        True
    """
    check_kind(model, nn.Module, "model", "give a network (an nn.Module)")
    classes = targets.unique().tolist()
    if len(classes) < 2:
        raise ValueError("the targets hold one class; a correlation needs at least two")
    names = layer_names(model) if layers is None else list(listed(layers, "layers"))
    indicators = F.one_hot(torch.searchsorted(targets.unique(), targets), len(classes)).double()
    centred = indicators - indicators.mean(0)  # (examples, classes)
    with evaluation_mode([model]), torch.no_grad(), representations(model, names) as seen:
        model(inputs)
    rows = []
    for name in names:
        basis = _basis(seen[name], name)
        rows.append(((basis.mT @ centred).norm(dim=0) / centred.norm(dim=0)).numpy())
    return Sensitivity(tuple(names), tuple(classes), np.stack(rows), len(inputs))


def _basis(output: Tensor, name: str) -> Tensor:
    """An orthonormal basis (examples, directions) of a layer's centred columns."""
    matrix = output.double()
    if matrix.ndim == 4:
        matrix = matrix.mean((2, 3))  # (examples, channels)
    elif matrix.ndim == 3:
        matrix = matrix.mean(1)  # (examples, features)
    matrix = matrix - matrix.mean(0)
    left, values, _ = torch.linalg.svd(matrix, full_matrices=False)
    smallest = 3e-7 if output.dtype != torch.float64 else 1e-10
    basis = left[:, values > smallest * values[0]] if values[0] > 0 else left[:, :0]
    if basis.shape[1] >= len(matrix) - 1:
        raise ValueError(
            f"layer {name!r} has {basis.shape[1]} directions and there are {len(matrix)} examples,"
            " so every class would correlate perfectly; take more examples"
        )
    return basis
