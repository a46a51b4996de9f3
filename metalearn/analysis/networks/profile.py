"""The result of comparing two networks layer by layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from metalearn.analysis.measures.chance import Floor
from metalearn.analysis.plotting.pictured import Pictured
from metalearn.runtime.statistics import holm, p_value
from metalearn.runtime.tables import Tabular, aligned, plain

from .positions import CONVENTIONS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class LayerSimilarity:
    """One layer of two networks.

    Attributes:
        layer: its name, or both names.
        similarity: the measure's value; NaN if it has none for these examples.
        chance: its values with one side shuffled (draws,).
        examples: how many rows were compared.
        features: the widths of both sides.
        note: why there is no similarity, or how to read it.
        orders: how many different shuffles there are.
    """

    layer: str
    similarity: float
    chance: np.ndarray
    examples: int
    features: tuple[int, int]
    note: str = ""
    orders: float = math.inf

    @property
    def floor(self) -> Floor:
        """The chance level: median and 95 % quantile of the shuffled values."""
        return Floor.of(self.chance)

    @property
    def p(self) -> float:
        """The add-one p value under chance (`p_value`), not corrected over layers.

        NaN without a similarity or without draws.
        """
        return p_value(self.similarity, self.chance, self.orders)


@dataclass(frozen=True)
class Profile(Pictured, Tabular):
    """Per-layer similarities of two networks; prints as a table.

    Attributes:
        measure: the name of the measure.
        convention: how outputs became matrices (`CONVENTIONS`).
        layers: the rows, in order.
        streamed: what was summed over which batches, if the inputs were a loader.
    """

    measure: str
    convention: str
    layers: tuple[LayerSimilarity, ...]
    streamed: str = ""

    def __getitem__(self, layer: str) -> LayerSimilarity:
        for row in self.layers:
            if row.layer == layer:
                return row
        raise KeyError(
            f"no layer {layer!r} was compared; these were:"
            f" {', '.join(row.layer for row in self.layers)}"
        )

    @property
    def adjusted(self) -> tuple[float, ...]:
        """The p value of each layer, corrected over the layers (`holm`)."""
        return tuple(holm([row.p for row in self.layers]))

    def __str__(self) -> str:
        rows = []
        for row, p in zip(self.layers, self.adjusted, strict=True):
            cells = (
                row.layer,
                f"{row.similarity:.4f}",
                f"{row.floor.median:.3f}",
                f"{row.floor.upper:.3f}",
                shown_p(p),
                f"{row.examples} x {_shown_widths(row.features)}",
                row.note,
            )
            rows.append(cells)
        table = aligned(("layer", self.measure, "chance", "95 %", "p", "n x d", ""), rows)
        return f"{table}\n({'; '.join(self._caption())})"

    def _caption(self) -> list[str]:
        """What the table shows, in parts."""
        draws = max((len(row.chance) for row in self.layers), default=0)
        parts = [
            f"{self.measure}: {CONVENTIONS[self.convention]}",
            f"{draws} draws for chance; p: {corrected(draws)}",
        ]
        if self.streamed:
            parts.append(self.streamed)
        if self.measure == "subspace":
            parts.append("chance: one side's neurons shuffled")
        elif self.streamed:
            parts.append("chance: one side's examples shuffled within each batch")
        else:
            parts.append("chance: one side's examples shuffled")
        return parts

    def records(self) -> list[dict[str, Any]]:
        """The rows as dictionaries of numbers and names."""
        return list(self.to_dict()["layers"])

    def to_dict(self) -> dict[str, Any]:
        """The table as JSON-able values; NaN is None."""
        names = ("layer", "similarity", "floor", "p", "examples", "features", "note")
        rows = []
        for row, p in zip(self.layers, self.adjusted, strict=True):
            values = {name: getattr(row, name) for name in names}
            rows.append({**values, "p_adjusted": p})
        return plain(
            {
                "measure": self.measure,
                "convention": self.convention,
                "streamed": self.streamed,
                "layers": rows,
            }
        )

    def figure(self) -> Figure:
        """The similarity of every layer with its chance level, as a matplotlib `Figure`."""
        from metalearn.analysis.plotting.layers import similarities

        names = [row.layer for row in self.layers]
        values = [row.similarity for row in self.layers]
        return similarities(names, values, [row.floor for row in self.layers], self.measure)


def shown_p(p: float) -> str:
    """A p value as tables print it.

    Example:
        >>> shown_p(0.0249), shown_p(float("nan"))
        ('0.025', '-')
    """
    return "-" if math.isnan(p) else f"{p:.2g}"


def corrected(draws: int) -> str:
    """What the column of p values holds.

    Example:
        >>> corrected(200)
        'add-one (0.005 or more), corrected over the layers (Holm)'
    """
    if not draws:
        return "none without draws"
    return f"add-one ({1 / (1 + draws):.2g} or more), corrected over the layers (Holm)"


def _shown_widths(features: tuple[int, int]) -> str:
    before, after = features
    return f"{before}" if before == after else f"{before}, {after}"
