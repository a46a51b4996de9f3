"""How do representations settle in training, and what do they keep when they cannot generalise?

Raghu, Gilmer, Yosinski and Sohl-Dickstein 2017 (arXiv:1706.05806); Morcos, Raghu and Bengio 2018
(arXiv:1806.05759).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
from torch import Tensor, nn

from metalearn.analysis.networks.dynamics import (
    Dynamics,
    Generalisation,
    Sensitivity,
    Snapshot,
    class_sensitivity,
    convergence,
    weights_of_snapshot,
)
from metalearn.analysis.plotting.page import Section, write_page
from metalearn.runtime.tables import Table, Tabular, plain


@dataclass(frozen=True)
class DynamicsStudy(Tabular):
    """How the layers of one training near their end.

    Attributes:
        convergence: similarity of each layer at each step to the end.
        sensitivity: how much each layer knows of each class at the end; None without labels.
        generalisation: networks on true and on shuffled labels; None if they were not compared.
        level: the similarity at which a layer counts as settled.
    """

    convergence: Dynamics
    sensitivity: Sensitivity | None = None
    generalisation: Generalisation | None = None
    level: float = 0.9

    def records(self) -> list[dict[str, Any]]:
        """A row for each layer: from which step it is settled, and its similarity at each step."""
        reached = self.convergence.reached(self.level)
        records = []
        for layer, values in zip(self.convergence.layers, self.convergence.values, strict=True):
            steps = dict(zip(self.convergence.steps, values.tolist(), strict=True))
            records.append({"layer": layer, "settled": reached[layer], "similarity": steps})
        return records

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON-able values."""
        parts = {
            "convergence": self.convergence,
            "sensitivity": self.sensitivity,
            "generalisation": self.generalisation,
        }
        found = {name: None if part is None else part.to_dict() for name, part in parts.items()}
        return plain({**found, "bottom_up": self.bottom_up(), "level": self.level})

    def bottom_up(self) -> dict[int, float]:
        """For each step before the end, the rank correlation of depth and similarity to the end.

        -1 if lower layers are always nearer to their end, 1 if higher ones are; NaN if all layers
        are equally near.
        """
        values = self.convergence.values
        depth = np.arange(len(values))
        correlations = {}
        for place, step in enumerate(self.convergence.steps[:-1]):
            correlations[step] = rank_correlation(depth, values[:, place])
        return correlations

    def answer(self) -> str:
        """Sentences on the main measurements."""
        reached = self.convergence.reached(self.level)
        settled = [f"{layer} from {step:,}" for layer, step in reached.items() if step is not None]
        rest = len(reached) - len(settled)
        steps = f"Settled at {self.level:g}: {', '.join(settled) or 'no layer before the end'}"
        if settled and rest:
            steps += f"; {rest} of {len(reached)} layers only at the end"
        correlations = ", ".join(
            f"{value:.2f} at step {step:,}" for step, value in self.bottom_up().items()
        )
        return f"{steps}. Rank correlation of depth and similarity to the end: {correlations}."

    def __str__(self) -> str:
        parts = [self.answer(), str(self.convergence)]
        for part in (self.generalisation, self.sensitivity):
            if part is not None:
                parts.append(str(part))
        return "\n\n".join(parts)

    def table(self) -> Table:
        """Similarity to the end, a row for each layer."""
        steps = self.convergence.steps
        reached = self.convergence.reached(self.level)
        rows = []
        for layer, values in zip(self.convergence.layers, self.convergence.values, strict=True):
            step = reached[layer]
            settled = "at the end" if step is None else f"{step:,}"
            rows.append((layer, *(f"{value:.3f}" for value in values), settled))
        columns = ("layer", *(f"{step:,}" for step in steps), f"{self.level:g} from step")
        return Table(columns, rows)

    def report(self, path: str | PathLike[str], sections: Sequence[Section] = ()) -> None:
        """Write the page.

        Args:
            path: the file.
            sections: further parts, such as a table of freeze training.
        """
        pictures = {"Similarity to the end of training": self.convergence.figure()}
        told = "The dashed line is the control: similarity to the end of another seed's training."
        text = [] if self.convergence.other is None else [told]
        parts = [Section("How layers settle", text, [self.table()], pictures)]
        if self.generalisation is not None:
            note = "Both groups were trained until they fit their training labels, as shown below."
            table = generalisation_table(self.generalisation)
            parts.append(Section("True and shuffled labels", [note], [table]))
        if self.sensitivity is not None:
            table = sensitivity_table(self.sensitivity)
            parts.append(Section("Which layers know a class", tables=[table]))
        title = "How do representations settle in training?"
        write_page(path, title, self.answer(), [*parts, *sections])


def generalisation_table(result: Generalisation) -> Table:
    """Similarity within and between groups of networks, a row for each pair of groups."""
    layers = list(result.groups[0].layers)
    rows = []
    for group in result.groups:
        first, second = group.groups
        name = f"within {first}" if first == second else f"{first} and {second}"
        cells = [f"{group.layers[layer].mean:.3f}" for layer in layers]
        rows.append((name, str(group.pairs), *cells))
    trained = [f"{name} {value.text(100, 1, 'network')}" for name, value in result.training.items()]
    note = f"{result.measure}; training accuracy, %: {'; '.join(trained)}"
    return Table(("networks", "pairs", *layers), rows, note=note)


def sensitivity_table(result: Sensitivity) -> Table:
    """Canonical correlation of each layer with each class."""
    rows = []
    for layer, values in zip(result.layers, result.values, strict=True):
        rows.append((layer, *(f"{value:.2f}" for value in values)))
    note = f"canonical correlation with the indicator of the class, {result.examples} examples"
    return Table(("layer", *map(str, result.classes)), rows, note=note)


def rank_correlation(first: Any, second: Any) -> float:
    """Spearman's rank correlation; NaN if one side is constant or not finite.

    Example:
        >>> rank_correlation([1, 2, 3], [0.9, 0.5, 0.1])
        -1.0
    """
    from scipy.stats import rankdata  # imported here because scipy takes long to import

    sides = [np.asarray(side, dtype=float) for side in (first, second)]
    if not all(np.isfinite(side).all() and np.ptp(side) > 0 for side in sides):
        return float("nan")
    return float(np.corrcoef(rankdata(sides[0]), rankdata(sides[1]))[0, 1].round(12))


def dynamics(
    build: nn.Module | Callable[[], nn.Module],
    snapshots: Mapping[int, Snapshot],
    inputs: Tensor,
    targets: Tensor | None = None,
    *,
    layers: Sequence[str] | None = None,
    other: Snapshot | None = None,
    measure: str = "pwcca",
    level: float = 0.9,
    generalisation: Generalisation | None = None,
    **options: Any,
) -> DynamicsStudy:
    """How the layers of a training settle, with the control of another seed.

    Args:
        build: a network, or a function without arguments that returns one.
        snapshots: `{step: weights}`, such as `curve.snapshots`.
        inputs: (examples, ...), what the networks are compared on.
        targets: (examples,), their labels, for the sensitivity to classes.
        layers: names of layers; by default `metalearn.layers(network)`.
        other: the last weights of a training from another seed.
        measure: a measure of `compare_layers`.
        level: the similarity at which a layer counts as settled.
        generalisation: the result of `generalising`, for the page.
        **options: further arguments of `compare_layers`.

    Raises:
        ValueError: As `convergence` and `class_sensitivity` do.

    Example:
        >>> import torch
        >>> network = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))
        >>> snapshots = {step: network.state_dict() for step in (0, 5)}
        >>> study = dynamics(network, snapshots, torch.randn(60, 3), layers=["0", "2"])
        >>> study.records()[0]["settled"]
        0
    """
    found = convergence(
        build, snapshots, inputs, measure=measure, layers=layers, other=other, **options
    )
    sensitivity = None
    if targets is not None:
        network = build if isinstance(build, nn.Module) else build()
        end = snapshots[max(snapshots)]
        sensitivity = at_weights(network, end, inputs, targets, found.layers)
    return DynamicsStudy(found, sensitivity, generalisation, level)


def at_weights(
    network: nn.Module,
    snapshot: Snapshot,
    inputs: Tensor,
    targets: Tensor,
    layers: Sequence[str],
) -> Sensitivity:
    """The sensitivity to classes at the weights of a snapshot; the network's own are put back."""
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.load_state_dict(weights_of_snapshot(network, snapshot, "the end"))
    try:
        return class_sensitivity(network, inputs, targets, layers)
    finally:
        network.load_state_dict(before)
