"""The report of an initialisation: what every tensor started from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any

from metalearn.network.layers import is_inside
from metalearn.runtime.tables import Table, Tabular, plain

COLUMNS = ("layer", "shape", "parameters", "start", "mean", "variance", "")
LISTED = 4  # names in a message


@dataclass(frozen=True)
class Row:
    """How one tensor started.

    Attributes:
        name: of the tensor.
        layer: that owns it.
        shape: its shape.
        parameters: its size; 0 for a buffer.
        how: "copied", "drawn", "fresh" or "skipped".
        source: what started it.
        mean: of the distribution it was drawn from.
        variance: of the same.
        note: why.
    """

    name: str
    layer: str
    shape: tuple[int, ...]
    parameters: int
    how: str
    source: str
    mean: float | None = None
    variance: float | None = None
    note: str = ""


@dataclass(frozen=True, repr=False)
class Initialisation(Tabular):
    """Every parameter and buffer of a network and what it started from; prints as a table.

    Attributes:
        rows: one for each tensor. A skipped tensor is one that a source reached and left as built.
        weights: for each set of weights its name, its digest, and the tensors that were not used.
        seed: of the draws.
    """

    rows: tuple[Row, ...]
    weights: tuple[dict[str, Any], ...]
    seed: int

    def __getitem__(self, name: str) -> Row:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(
            f"no tensor {name!r} was initialised; there are"
            f" {', '.join(row.name for row in self.rows)}"
        )

    def parameters(self, layer: str = "") -> dict[str, int]:
        """Numbers of parameters by how they started; buffers count nothing.

        Args:
            layer: a layer or a path above several; by default all.
        """
        counts = dict.fromkeys(("copied", "drawn", "fresh", "skipped"), 0)
        for row in self.rows:
            if is_inside(row.layer, layer):  # everything is inside ""
                counts[row.how] += row.parameters
        return {how: count for how, count in counts.items() if count}

    def __repr__(self) -> str:
        return (
            f"Initialisation({_counted(self.parameters())} parameters; seed {self.seed}; print it"
            " for the table)"
        )

    def __str__(self) -> str:
        return str(self.table())

    def table(self) -> Table:
        """A line for each layer, and one for each of its tensors."""
        # Rows are in the order of layers, so those of a layer are neighbours.
        cells: list[tuple[str, ...]] = []
        for layer, group in groupby(self.rows, key=attrgetter("layer")):
            rows = list(group)
            sources = {row.source for row in rows if row.how != "fresh"}
            # One source of the whole layer stands in the layer's line.
            source = next(iter(sources)) if len(sources) == 1 else ""
            cells.append((layer, "", _counted(self.parameters(layer)), "", "", "", source))
            cells += [_cells(row, with_source=len(sources) > 1) for row in rows]
        counts = self.parameters()
        notes = [f"({sum(counts.values()):,} parameters: {_counted(counts)}; seed {self.seed})"]
        for weights in self.weights:
            if weights["unused"]:
                notes.append(f"(not used of {weights['name']}: {listed(weights['unused'])})")
        return Table(COLUMNS, cells, note="\n".join(notes))

    def records(self) -> list[dict[str, Any]]:
        """A row for each tensor."""
        return list(self.to_dict()["tensors"])

    def to_dict(self) -> dict[str, Any]:
        """The table as JSON-able values, with the counts per layer."""
        layers = {row.layer: self.parameters(row.layer) for row in self.rows}
        return plain(
            {
                "seed": self.seed,
                "parameters": self.parameters(),
                "layers": layers,
                "tensors": self.rows,
                "weights": self.weights,
            }
        )


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    if len(names) > LISTED:
        return f"{', '.join(names[:LISTED])} and {len(names) - LISTED} more"
    return ", ".join(names)


def _cells(row: Row, *, with_source: bool) -> tuple[str, ...]:
    # Only a drawn tensor has a mean and a variance.
    moments = ["" if value is None else f"{value:.3g}" for value in (row.mean, row.variance)]
    notes = [row.note] if row.note else []
    if with_source and row.how != "fresh":
        notes.insert(0, row.source)
    return (
        # Indented below the layer, without the layer's name.
        f"  {row.name.removeprefix(f'{row.layer}.')}",
        " x ".join(map(str, row.shape)) or "scalar",
        f"{row.parameters:,}" if row.parameters else "buffer",
        row.how,
        *moments,
        "; ".join(notes),
    )


def _counted(parameters: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {how}" for how, count in parameters.items()) or "none"
