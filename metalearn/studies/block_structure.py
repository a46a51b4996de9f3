"""Does a network have a block structure, and which images make it?

Nguyen, Raghu and Kornblith 2021 (arXiv:2010.15327) and 2022 (arXiv:2202.07184).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
from torch import Tensor, nn

from metalearn.analysis.networks.block_structure import BlockStructure, block_structure
from metalearn.analysis.networks.components import Components, components, without
from metalearn.analysis.networks.dynamics import Snapshot, weights_of_snapshot
from metalearn.analysis.networks.similarity_map import FEWEST, SimilarityMap, similarity_map
from metalearn.analysis.plotting.maps import strip
from metalearn.analysis.plotting.page import Section, write_page
from metalearn.runtime.tables import Table, Tabular, plain

SHOWN = 16  # images of a strip
CAVEAT = (
    "A few points far from the others can move CKA at will (Davari et al. 2022, arXiv:2210.16156);"
    " dominant images are such points that training data contain."
)


@dataclass(frozen=True)
class BlockStudy(Tabular):
    """A network's block structure, and what is left of it without its dominant images.

    Attributes:
        similarity: the map of the network with itself.
        components: the first components of the same layers.
        structure: the blocks by the stated rule.
        layer: the layer whose first component holds the largest share.
        dominant: the images that dominate it, indices in the order of the loader.
        without_dominant: the map without these images.
        without_random: the map without as many other images.
        removed: the map without the first component of each layer.
    """

    similarity: SimilarityMap
    components: Components
    structure: BlockStructure
    layer: str
    dominant: np.ndarray
    without_dominant: SimilarityMap
    without_random: SimilarityMap
    removed: SimilarityMap

    def maps(self) -> dict[str, SimilarityMap]:
        """The four maps by what they show."""
        return {
            "all images": self.similarity,
            "without the dominant images": self.without_dominant,
            "without as many random images": self.without_random,
            "without the first components": self.removed,
        }

    def records(self) -> list[dict[str, Any]]:
        """A row for each map: the mean similarity of two different layers."""
        return [
            {"map": name, "similarity": mean_similarity(found)}
            for name, found in self.maps().items()
        ]

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON-able values."""
        return plain(
            {
                "structure": self.structure.to_dict(),
                "components": self.components.records(),
                "layer": self.layer,
                "dominant": self.dominant,
                "carried": self.components.carried(self.layer, self.dominant),
                "maps": self.records(),
            }
        )

    def answer(self) -> str:
        """One sentence: the blocks, and how many images carry the strongest component."""
        row = self.components[self.layer]
        blocks = [f"{block.first} to {block.last}" for block in self.structure.blocks]
        found = "No block structure." if not blocks else f"Block structure: {', '.join(blocks)}."
        carried = 100 * self.components.carried(self.layer, self.dominant)
        number = len(self.dominant)
        which = f"the {number} dominant ones hold {carried:.0f} % of it"
        if not len(self.components.dominant(self.layer)):
            which = (
                f"none stands out, and the {number} with the largest scores, taken in their place,"
                f" hold {carried:.0f} % of it"
            )
        return (
            f"{found} The first component of {self.layer} holds {100 * row.share:.0f} % of its"
            f" variance, carried by about {row.participation:.0f} of {self.components.images}"
            f" images; {which}."
        )

    def __str__(self) -> str:
        return "\n\n".join([self.answer(), str(self.structure), str(self.table())])

    def table(self) -> Table:
        """The mean similarity of two layers in each map."""
        rows = [(row["map"], f"{row['similarity']:.3f}") for row in self.records()]
        return Table(("map", "mean similarity of two layers"), rows)

    def report(self, path: str | PathLike[str], images: Tensor | None = None) -> None:
        """Write the page.

        Args:
            path: the file.
            images: all images (images, channels, height, width) in [0, 1], in the order of the
                loader, for the strip of dominant ones.
        """
        pictures = {
            f"Similarity of layers, {name}": found.figure() for name, found in self.maps().items()
        }
        sections = [
            Section("Similarity of layers", tables=[self.table()], pictures=pictures),
            Section(
                "First components",
                [str(self.structure), CAVEAT],
                pictures={"Share, agreement and carriers": self.components.figure()},
            ),
        ]
        if images is not None and len(self.dominant):
            shown = self.dominant[:SHOWN]
            pixels = [images[i].movedim(0, -1).numpy() for i in shown]
            caption = f"The dominant images of {self.layer}, by falling score"
            strips = {caption: strip(pixels, [f"{i}" for i in shown])}
            sections.append(Section("Dominant images", pictures=strips))
        write_page(path, "Block structure", self.answer(), sections)


def mean_similarity(found: SimilarityMap) -> float:
    """The mean similarity of two different layers of a map of one network."""
    values = found.values
    return float(np.nanmean(values[~np.eye(len(values), dtype=bool)]))


def block_study(
    model: nn.Module,
    loader: Any,
    layers: Sequence[str] | None = None,
    *,
    share: float = 0.01,
    seed: int = 0,
    **rule: Any,
) -> BlockStudy:
    """A network's block structure, with and without the images that dominate it.

    Args:
        model: the network.
        loader: batches in an order that does not change.
        layers: names of layers; by default all but the head.
        share: how many images count as dominant if none stands out by the gap of its score.
        seed: which random images are left out for comparison.
        **rule: numbers of the rule, as `block_structure` takes them.

    Raises:
        ValueError: Too few images beside the dominant ones; and as `components` and
            `similarity_map` do.

    Example:
        >>> import torch
        >>> network = nn.Sequential(*(nn.Linear(6, 6) for _ in range(4)))
        >>> study = block_study(network, torch.randn(60, 6), ["0", "1", "2"])
        >>> [row["map"] for row in study.records()][0]
        'all images'
    """
    parts = components(model, loader, layers, seed=seed)
    names = list(parts.names)
    strongest = parts.strongest.layer
    found = similarity_map(model, model, loader, names, names, draws=0)
    dominant = parts.dominant(strongest)
    if not len(dominant):
        dominant = parts.dominant(strongest, share)
    others = np.setdiff1d(np.arange(parts.images), dominant)
    if len(others) < FEWEST:
        raise ValueError(
            f"{parts.images} images, of which {len(dominant)} dominate {strongest!r}: the map"
            f" without them needs {FEWEST} others; give more images"
        )
    random = np.random.default_rng(seed).choice(others, len(dominant), replace=False)

    def map_without(images: np.ndarray) -> SimilarityMap:
        return similarity_map(model, model, without(loader, images), names, names, draws=0)

    return BlockStudy(
        found,
        parts,
        block_structure(found, parts, **rule),
        strongest,
        dominant,
        map_without(dominant),
        map_without(random),
        parts.similarity(),
    )


@dataclass(frozen=True)
class EvolutionStep:
    """The block structure at one step of a training.

    Attributes:
        step: the step.
        blocks: the number of blocks.
        share: the largest share of a first component.
        participation: the number of images that carry it.
        similarity: the mean similarity of two layers.
        overlap: the share of its most dominant images that are among those of the end, over their
            union.
    """

    step: int
    blocks: int
    share: float
    participation: float
    similarity: float
    overlap: float


@dataclass(frozen=True)
class Evolution(Tabular):
    """How block structure and dominant images come about; prints as a table."""

    steps: tuple[EvolutionStep, ...]

    def records(self) -> list[dict[str, Any]]:
        """A row for each step."""
        return [dict(vars(step)) for step in self.steps]

    def table(self) -> Table:
        """The rows as text."""
        columns = ("step", "blocks", "largest share", "carriers", "similarity", "overlap")
        rows = [
            (
                f"{row.step:,}",
                str(row.blocks),
                f"{row.share:.3f}",
                f"{row.participation:.0f}",
                f"{row.similarity:.3f}",
                f"{row.overlap:.2f}",
            )
            for row in self.steps
        ]
        return Table(columns, rows, note="overlap: of the dominant images with those of the end")

    def __str__(self) -> str:
        return str(self.table())


def evolution(
    build: nn.Module | Callable[[], nn.Module],
    snapshots: Mapping[int, Snapshot],
    loader: Any,
    layers: Sequence[str] | None = None,
    *,
    share: float = 0.01,
    **rule: Any,
) -> Evolution:
    """Block structure and dominant images over a training.

    Args:
        build: a network, or a function without arguments that returns one.
        snapshots: `{step: weights}`, such as `curve.snapshots`.
        loader: batches in an order that does not change.
        layers: names of layers; by default all but the head.
        share: how many images count as dominant.
        **rule: numbers of the rule, as `block_structure` takes them.

    Raises:
        ValueError: No snapshot, or one of another network; or all layers are constant.

    Example:
        >>> import torch
        >>> network = nn.Sequential(*(nn.Linear(6, 6) for _ in range(4)))
        >>> snapshots = {0: network.state_dict(), 5: network.state_dict()}
        >>> evolution(network, snapshots, torch.randn(100, 6), ["0", "1", "2"]).steps[0].overlap
        1.0
    """
    network = build if isinstance(build, nn.Module) else build()
    if not snapshots:
        raise ValueError(
            "there are no snapshots; give {step: weights}, such as curve.snapshots of a fine-tuning"
            " with keep="
        )
    last = max(snapshots)
    measured: dict[int, tuple[Components, SimilarityMap]] = {}
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    try:
        for step in sorted(snapshots):
            weights = weights_of_snapshot(network, snapshots[step], f"step {step}")
            network.load_state_dict(weights)
            parts = components(network, loader, layers)
            names = [row.layer for row in parts.layers]
            measured[step] = parts, similarity_map(network, network, loader, names, names, draws=0)
    finally:
        network.load_state_dict(before)
    end = set(_dominant(measured[last][0], share))
    rows = []
    for step, (parts, found) in measured.items():
        strongest = parts.strongest
        here = set(_dominant(parts, share))
        rows.append(
            EvolutionStep(
                step,
                len(block_structure(found, parts, **rule)),
                strongest.share,
                strongest.participation,
                mean_similarity(found),
                len(here & end) / len(here | end),
            )
        )
    return Evolution(tuple(rows))


def _dominant(parts: Components, share: float) -> list[int]:
    """The most dominant images of the layer whose first component holds the largest share."""
    return parts.dominant(parts.strongest.layer, share).tolist()
