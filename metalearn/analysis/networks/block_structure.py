"""Block structure: a run of layers that are all alike, unlike their neighbours.

Nguyen, Raghu and Kornblith 2021 (arXiv:2010.15327). The papers show blocks and do not define them;
the rule below is this project's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from metalearn.runtime.tables import Tabular, aligned, plain

from .components import Components
from .similarity_map import SimilarityMap

STEPS_OUTSIDE = 2  # layers on each side that count as the neighbourhood of a run


@dataclass(frozen=True)
class Block:
    """One block.

    Attributes:
        first: its first layer.
        last: its last layer.
        layers: all of its layers.
        inside: mean similarity of its layers with each other.
        outside: mean similarity of its layers with those within two steps of it.
    """

    first: str
    last: str
    layers: tuple[str, ...]
    inside: float
    outside: float


@dataclass(frozen=True)
class BlockStructure(Tabular):
    """The blocks of a network, the rule they satisfy, and what stood in the way of others.

    Attributes:
        blocks: none overlaps another; the longest come first where runs overlapped.
        candidates: how many runs satisfied the rule, overlapping ones counted.
        rule: the rule in words.
        notes: which layers have no similarity, which runs were no blocks and why.
    """

    blocks: tuple[Block, ...]
    candidates: int
    rule: str
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.blocks)

    def records(self) -> list[dict[str, Any]]:
        """A row for each block."""
        return [plain(block) for block in self.blocks]

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON-able values."""
        return plain(self)

    def __str__(self) -> str:
        lines = ["no block"]
        if self.blocks:
            rows = [
                (
                    f"{block.first} to {block.last}",
                    str(len(block.layers)),
                    f"{block.inside:.3f}",
                    f"{block.outside:.3f}",
                )
                for block in self.blocks
            ]
            lines = [aligned(("block", "layers", "similarity inside", "outside"), rows)]
        return "\n".join([*lines, f"({self.rule})", *self.notes])


def block_structure(
    similarity: SimilarityMap,
    components: Components | None = None,
    *,
    level: float = 0.9,
    share: float = 0.5,
    agreement: float = 0.9,
    contrast: float = 0.1,
    shortest: int = 3,
) -> BlockStructure:
    """The blocks of a network.

    A block is a run of at least `shortest` consecutive layers in which

    - every pair of layers has a similarity of at least `level`;
    - the first component of each layer holds at least `share` of its variance;
    - the first components of neighbours agree: `cos^2 >= agreement`;
    - the mean similarity inside exceeds that with the layers within two steps outside by at least
      `contrast`.

    Without the last three, the residual stream of any network looks like a block. Without
    `components` the second and third are not checked, and the result says so.

    Args:
        similarity: the map of a network against itself.
        components: the components of the same layers.
        level: smallest similarity of two layers of a block.
        share: smallest share of the variance of a first component.
        agreement: smallest squared cosine of the first components of neighbours.
        contrast: smallest difference of the similarity inside and outside.
        shortest: fewest layers.

    Raises:
        ValueError: The map has other layers in its rows than in its columns, or than `components`.

    Example:
        >>> import torch
        >>> from metalearn.analysis import similarity_map
        >>> network = torch.nn.Sequential(*(torch.nn.Linear(6, 6) for _ in range(4)))
        >>> found = similarity_map(network, network, torch.randn(40, 6))
        >>> len(block_structure(found, level=1.01))
        0
    """
    layers = similarity.layers_a
    if similarity.layers_b != layers:
        raise ValueError(
            "a block is a run of layers of one network: give similarity_map(network, network, ...)"
        )
    if components is not None and tuple(row.layer for row in components.layers) != layers:
        raise ValueError(
            "components has other layers than the map; call components(network, loader,"
            " layers=map.layers_a)"
        )
    rule = _Rule(similarity.values, components, level, share, agreement)
    notes = [
        f"layer {layer} has no similarity, so runs end there"
        for layer, row in zip(layers, similarity.values, strict=True)
        if np.isnan(row).all()
    ]
    candidates = []
    for first, last in rule.runs(shortest):
        inside, outside = rule.contrast(first, last)
        if inside - outside >= contrast:
            block = Block(layers[first], layers[last], layers[first : last + 1], inside, outside)
            candidates.append((first, last, block))
            continue
        why = "there is no layer outside"
        if math.isfinite(outside):
            why = f"{inside:.3f} inside and {outside:.3f} outside differ by less than {contrast:g}"
        notes.append(f"{layers[first]} to {layers[last]} is no block: {why}")
    blocks = _longest(candidates)
    if len(blocks) < len(candidates):
        notes.append(f"of {len(candidates)} overlapping runs the longest are blocks")
    conditions = [f"similarity >= {level:g}"]
    if components is None:
        conditions.append("first components not checked, since none were given")
    else:
        conditions.append(f"share of the first component >= {share:g}")
        conditions.append(f"cos2 of neighbours >= {agreement:g}")
    conditions.append(f"contrast >= {contrast:g}")
    rule_text = f"at least {shortest} layers; {'; '.join(conditions)}"
    return BlockStructure(tuple(blocks), len(candidates), rule_text, tuple(notes))


class _Rule:
    """Which runs of layers satisfy the conditions on pairs and on neighbours."""

    def __init__(
        self,
        values: np.ndarray,
        components: Components | None,
        level: float,
        share: float,
        agreement: float,
    ) -> None:
        self.values = values
        count = len(values)
        self.alike = values >= level  # NaN is not
        self.dominated = np.ones(count, dtype=bool)
        self.agrees = np.ones(count, dtype=bool)  # of a layer with the next
        if components is not None:
            self.dominated = np.array([row.share >= share for row in components.layers])
            self.agrees = np.array([value >= agreement for value in components.agreement])

    def runs(self, shortest: int) -> list[tuple[int, int]]:
        """The longest run from each layer on, without those inside an earlier one."""
        runs: list[tuple[int, int]] = []
        for first in range(len(self.values)):
            last = self._last(first)
            inside_earlier = bool(runs) and last <= runs[-1][1]
            if last - first + 1 >= shortest and not inside_earlier:
                runs.append((first, last))
        return runs

    def _last(self, first: int) -> int:
        """The last layer of the run from `first`; before it if the layer itself fails."""
        last = first - 1
        for layer in range(first, len(self.values)):
            joined = layer == first or self.agrees[layer - 1]
            alike = self.alike[first : layer + 1, layer].all()
            if not (joined and alike and self.dominated[layer]):
                break
            last = layer
        return last

    def contrast(self, first: int, last: int) -> tuple[float, float]:
        """Mean similarity inside a run, and with the layers next to it; NaN without such."""
        inside = self.values[first : last + 1, first : last + 1]
        pairs = inside[~np.eye(len(inside), dtype=bool)]
        before = range(max(0, first - STEPS_OUTSIDE), first)
        after = range(last + 1, min(len(self.values), last + 1 + STEPS_OUTSIDE))
        neighbours = self.values[first : last + 1][:, [*before, *after]]
        known = neighbours[np.isfinite(neighbours)]
        return float(pairs.mean()), float(known.mean()) if known.size else math.nan


def _longest(candidates: list[tuple[int, int, Block]]) -> list[Block]:
    """The longest of overlapping runs, in order of depth."""
    taken: list[tuple[int, int, Block]] = []
    for first, last, block in sorted(candidates, key=lambda run: run[0] - run[1]):
        if all(last < start or first > end for start, end, _ in taken):
            taken.append((first, last, block))
    return [block for _, _, block in sorted(taken, key=lambda run: run[0])]
