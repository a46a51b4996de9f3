"""Where in a network are the pointer, the values and the pointed value known?

Linear probes of the layers of a network for pointer value retrieval (Zhang et al. 2021,
arXiv:2107.12580).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from torch import nn

from metalearn.analysis.networks.probes import Probes, linear_probes
from metalearn.episodes import Examples
from metalearn.runtime.tables import Table, Tabular
from metalearn.studies.pointer_scores import PointerData, prepared, stored_inputs

VALUES = "values (mean)"


@dataclass(frozen=True)
class PointerProbes(Tabular):
    """Accuracy of linear probes for what an input says, layer by layer; prints as a table.

    Attributes:
        facts: the probes of each fact by its name: "pointer", "value 0", ..., "label".
    """

    facts: Mapping[str, Probes]

    @property
    def layers(self) -> list[str]:
        """The names of the layers."""
        return [row.layer for row in next(iter(self.facts.values())).layers]

    def accuracy(self, layer: str, fact: str) -> float:
        """The accuracy of a probe.

        Args:
            layer: its name.
            fact: a name of `facts`, or "values (mean)" for the mean over the ten places.
        """
        names = [fact]
        if fact == VALUES:
            names = [name for name in self.facts if name.startswith("value ")]
        return fmean(self.facts[name][layer].accuracy.mean for name in names)

    def columns(self) -> list[str]:
        """The facts of the table; the ten values are one."""
        names = [name for name in self.facts if not name.startswith("value ")]
        if len(names) < len(self.facts):
            names.insert(1, VALUES)
        return names

    def records(self) -> list[dict[str, Any]]:
        """A row for each layer, with the accuracy of each fact."""
        return [
            {"layer": layer, **{fact: self.accuracy(layer, fact) for fact in self.columns()}}
            for layer in self.layers
        ]

    def to_dict(self) -> dict[str, Any]:
        """The rows, and the chance level of each fact."""
        chance = {name: probes.chance for name, probes in self.facts.items()}
        return {"layers": self.records(), "chance": chance}

    def table(self) -> Table:
        """The rows as text, in percent."""
        columns = self.columns()
        rows = []
        for layer in self.layers:
            accuracies = [f"{100 * self.accuracy(layer, fact):.1f}" for fact in columns]
            rows.append((layer, *accuracies))
        return Table(
            ("layer", *columns),
            rows,
            title="Accuracy of linear probes, %",
            note="A digit that is not known is right in about 10 % of the cases.",
        )

    def __str__(self) -> str:
        return str(self.table())


def pointer_probes(
    network: nn.Module,
    train: PointerData,
    test: PointerData,
    layers: Sequence[str] | None = None,
    *,
    seed: int = 0,
) -> PointerProbes:
    """Probe each layer for the pointer, each value, the pointed value and the label.

    Args:
        network: the network.
        train: examples that the probes are fitted on; a few thousand are enough.
        test: examples that they are scored on, of the same kind.
        layers: names of layers; by default all.
        seed: of the order of examples.

    Raises:
        ValueError: as `linear_probes` does.

    Example:
        >>> from metalearn.models import PointerMLP
        >>> from metalearn.tasks import pointer_vectors
        >>> train, test = pointer_vectors(300, seed=0), pointer_vectors(100, seed=1)
        >>> probes = pointer_probes(PointerMLP(embedding=10, hidden=(8,)), train, test)
        >>> probes.layers, probes.columns()
        (['embedding', 'layer1', 'head'], ['pointer', 'values (mean)', 'pointed value', 'label'])
        >>> probes.accuracy("embedding", "pointer")
        1.0
    """
    inputs = prepared(stored_inputs(train))
    test_inputs = prepared(stored_inputs(test))
    targets = train.facts() | {"label": train.labels}
    test_targets = test.facts() | {"label": test.labels}
    facts = {}
    for name, labels in targets.items():
        fitted = Examples(inputs, labels)
        scored = Examples(test_inputs, test_targets[name])
        facts[name] = linear_probes(network, fitted, scored, layers, seed=seed)
    return PointerProbes(facts)
