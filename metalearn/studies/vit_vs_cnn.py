"""Do vision transformers see like convolutional networks?

Raghu, Unterthiner, Kornblith, Zhang and Dosovitskiy 2021 (arXiv:2108.08810).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
from torch import Tensor, nn

from metalearn.analysis.networks.attention import (
    AttentionDistances,
    StreamNorms,
    attention_distances,
    patch_grid,
    residual_points,
    stream_norms,
)
from metalearn.analysis.networks.localisation import Localisation, localisation
from metalearn.analysis.networks.probes import Probes, linear_probes
from metalearn.analysis.networks.receptive_fields import ReceptiveFields, receptive_fields
from metalearn.analysis.networks.similarity_map import SimilarityMap, similarity_map
from metalearn.analysis.plotting.page import Section, write_page
from metalearn.runtime.tables import Table, Tabular, plain

FIELD_IMAGES = 64  # images of which receptive fields are taken


@dataclass(frozen=True)
class BestMatch:
    """The layer of the convolutional network that is most like a layer of the transformer.

    Attributes:
        layer: of the transformer.
        depth: its place, from 0 for the lowest to 1 for the highest.
        match: the most similar layer of the convolutional network.
        match_depth: its place.
        similarity: their similarity.
    """

    layer: str
    depth: float
    match: str
    match_depth: float
    similarity: float


def best_matches(found: SimilarityMap) -> list[BestMatch]:
    """For each layer of a, the most similar layer of b; a layer without a similarity is left out.

    Example:
        >>> import torch
        >>> network = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        >>> found = similarity_map(network, network, torch.randn(50, 4), ["0", "2"], ["0", "2"])
        >>> [row.match for row in best_matches(found)]
        ['0', '2']
    """
    rows = []
    for place, layer in enumerate(found.layers_a):
        values = found.values[place]
        if np.isnan(values).all():
            continue
        best = int(np.nanargmax(values))
        rows.append(
            BestMatch(
                layer,
                place / max(1, len(found.layers_a) - 1),
                found.layers_b[best],
                best / max(1, len(found.layers_b) - 1),
                float(values[best]),
            )
        )
    return rows


@dataclass(frozen=True)
class ViTStudy(Tabular):
    """A vision transformer beside a convolutional network.

    Attributes:
        across: similarity of the transformer's layers with the convolutional network's.
        within_vit: of the transformer's layers with each other.
        within_cnn: of the convolutional network's layers with each other.
        distances: how far each head looks.
        norms: what the skip connections carry.
        fields_vit: receptive fields of the transformer's blocks.
        fields_cnn: receptive fields of the convolutional network's layers.
        places: how well tokens keep their place.
        probes: 10-shot readouts of the class token and of the mean over patches; None without
            labelled images.
    """

    across: SimilarityMap
    within_vit: SimilarityMap
    within_cnn: SimilarityMap
    distances: AttentionDistances
    norms: StreamNorms
    fields_vit: ReceptiveFields
    fields_cnn: ReceptiveFields
    places: Localisation
    probes: Probes | None = None

    def records(self) -> list[dict[str, Any]]:
        """A row for each layer of the transformer: its best match."""
        return [dict(vars(row)) for row in best_matches(self.across)]

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON-able values."""
        return plain(
            {
                "best_matches": self.records(),
                "distances": self.distances.to_dict(),
                "norms": self.norms.to_dict(),
                "fields_vit": self.fields_vit.records(),
                "fields_cnn": self.fields_cnn.records(),
                "places": self.places.to_dict(),
                "probes": None if self.probes is None else self.probes.to_dict(),
            }
        )

    def answer(self) -> str:
        """Sentences on the main measurements."""
        rows = best_matches(self.across)
        lower = [row.match_depth for row in rows if row.depth <= 0.25]
        upper = [row.match_depth for row in rows if row.depth >= 0.75]
        medians = [float(np.nanmedian(heads)) for heads in self.distances.distances]
        return (
            f"The lowest quarter of the transformer is most like the convolutional network at"
            f" {100 * float(np.mean(lower)):.0f} % of its depth, the highest quarter at"
            f" {100 * float(np.mean(upper)):.0f} %. Heads look {min(medians):.1f} to"
            f" {max(medians):.1f} pixels far (median of a layer); uniform attention would look"
            f" {self.distances.uniform:.1f}."
        )

    def __str__(self) -> str:
        parts = [self.answer(), str(self.match_table()), str(self.distances), str(self.norms)]
        parts += [str(self.places), str(self.fields_vit), str(self.fields_cnn)]
        return "\n\n".join([*parts, *([] if self.probes is None else [str(self.probes)])])

    def match_table(self) -> Table:
        """Best matches as a table."""
        rows = [
            (
                row.layer,
                f"{row.depth:.2f}",
                row.match,
                f"{row.match_depth:.2f}",
                f"{row.similarity:.3f}",
            )
            for row in best_matches(self.across)
        ]
        return Table(("transformer", "depth", "most similar", "its depth", "CKA"), rows)

    def report(self, path: str | PathLike[str]) -> None:
        """Write the page."""
        maps = {
            "The transformer beside the convolutional network": self.across.figure(),
            "The transformer's layers": self.within_vit.figure(),
            "The convolutional network's layers": self.within_cnn.figure(),
        }
        fields = {
            "Receptive fields of the transformer": self.fields_vit.figure(),
            "Receptive fields of the convolutional network": self.fields_cnn.figure(),
        }
        sections = [
            Section("Similarity of layers", tables=[self.match_table()], pictures=maps),
            Section(
                "How far heads look",
                [str(self.distances).splitlines()[-1]],
                pictures={"Every head of every layer": self.distances.figure()},
            ),
            Section(
                "What the skip connections carry",
                pictures={"Stream over branch": self.norms.figure()},
            ),
            Section("Receptive fields", pictures=fields),
            Section("Where tokens are", tables=[self.place_table()]),
        ]
        if self.probes is not None:
            pictures = {"10-shot accuracy of tokens": self.probes.figure()}
            sections.append(Section("What tokens know", pictures=pictures))
        write_page(path, "Do vision transformers see like CNNs?", self.answer(), sections)

    def place_table(self) -> Table:
        """How well tokens keep their place, as a table."""
        rows = [
            (row.layer, f"{row.own:.3f}", f"{row.elsewhere:.3f}", f"{row.rank:.1f}")
            for row in self.places.layers
        ]
        note = f"rank among {self.places.patches} patches"
        return Table(("layer", "own patch", "elsewhere", "rank of own"), rows, note=note)


def vit_vs_cnn(
    vit: nn.Module,
    cnn: nn.Module,
    loader: Any,
    blocks: Sequence[str],
    *,
    labelled: tuple[Any, Any] | None = None,
    shots: int = 10,
) -> ViTStudy:
    """Compare a vision transformer with a convolutional network on the same images.

    Args:
        vit: a pre-norm vision transformer.
        cnn: a convolutional network.
        loader: batches of images, the same in every pass.
        blocks: paths of the transformer's blocks.
        labelled: training and test examples for probes of tokens.
        shots: training images a class of the probes.

    Raises:
        ValueError: As the functions for each measurement do.

    Example:
        >>> import torch
        >>> from metalearn.models import SmallViT, cifar_resnet
        >>> vit, cnn = SmallViT(width=12, depth=2, patch=8), cifar_resnet(8)
        >>> study = vit_vs_cnn(vit, cnn, torch.rand(20, 3, 32, 32), ["blocks.0", "blocks.1"])
        >>> len(study.records()) == len(residual_points(vit))
        True
    """
    points = residual_points(vit)
    images = _first_images(loader)[:FIELD_IMAGES]
    probes = None
    if labelled is not None:
        names = [f"{block}@mean" for block in blocks]
        if vit_has_class_token(vit, images):
            names = [name for block in blocks for name in (f"{block}@0", f"{block}@1:mean")]
        probes = linear_probes(vit, *labelled, names, shots)
    return ViTStudy(
        similarity_map(vit, cnn, loader, points, draws=0),
        similarity_map(vit, vit, loader, points, points, draws=0),
        similarity_map(cnn, cnn, loader, draws=0),
        attention_distances(vit, loader),
        stream_norms(vit, loader),
        receptive_fields(vit, images, list(blocks)),
        receptive_fields(cnn, images),
        localisation(vit, loader, blocks),
        probes,
    )


def vit_has_class_token(vit: nn.Module, images: Tensor) -> bool:
    """Whether tokens come before the patches.

    Example:
        >>> import torch
        >>> from metalearn.models import SmallViT
        >>> vit_has_class_token(SmallViT(depth=1, pool="mean"), torch.rand(1, 3, 32, 32))
        False
    """
    return patch_grid(vit, images[:1]).special > 0


def _first_images(loader: Any) -> Tensor:
    if isinstance(loader, Tensor):
        return loader
    batch = next(iter(loader))
    return batch[0] if isinstance(batch, tuple | list) else batch
