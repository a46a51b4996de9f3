"""Where positions are: every position of a layer against every position of another.

For a vision transformer: does a token keep its place (Raghu et al. 2021, arXiv:2108.08810)? For a
recurrent network: how alike are its states at two time steps (Raghu et al. 2017,
arXiv:1706.05806)?
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metalearn.analysis.checks import check_kind
from metalearn.network.activations import representations
from metalearn.network.forward import Inputs, arguments
from metalearn.network.layer_names import named_output, positions_of
from metalearn.network.modes import evaluation_mode
from metalearn.runtime.tables import Tabular, aligned, plain

from .attention import PatchGrid, patch_grid
from .batches import ToInputs, inputs_of, loader_of, running, tensor_of, to_device
from .similarity_map import SimilarityMap, similarity_map

INPUT = "input"


class _WithPatches(nn.Module):
    """A network whose module "input" returns the patches of its images."""

    def __init__(self, network: nn.Module, grid: PatchGrid) -> None:
        super().__init__()
        self.network = network
        self.input = _Patches(grid)

    def forward(self, images: Tensor) -> Tensor:
        self.input(images)
        return self.network(images)


class _Patches(nn.Module):
    """Images (images, channels, height, width) as patches (images, patches, numbers)."""

    def __init__(self, grid: PatchGrid) -> None:
        super().__init__()
        self.cell = int(grid.patch[0]), int(grid.patch[1])

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.unfold(images, self.cell, stride=self.cell).mT


def position_map(
    network: nn.Module,
    loader: Any,
    layer: str,
    against: str | None = None,
    *,
    grid: tuple[int, int] | None = None,
    to_inputs: ToInputs | None = None,
    draws: int | None = None,
    seed: int = 0,
) -> SimilarityMap:
    """Debiased minibatch CKA of every position of a layer with every position of another.

    Each position is compared over the images, as a layer is in `similarity_map`. Memory: positions
    x n² x 8 bytes for batches of n images; 197 tokens at n = 256 take 103 MB.

    Args:
        network: any network that returns tokens, time steps or maps.
        loader: one batch, or batches, as `similarity_map` takes them.
        layer: a layer, or an entry of its output ("rnn:0").
        against: another layer; the same layer by default; "input" for the patches of the images, on
            the grid of the patch embedding.
        grid: rows and columns of patches, if the network has no patch embedding.
        to_inputs: from a batch to what the network is called with, for batches of another form.
        draws: as in `similarity_map`.
        seed: determines the draws.

    Returns:
        A `SimilarityMap` whose layers are the positions: `map["blocks.5@3", "input@2"]`.

    Raises:
        ValueError: A layer returns no positions, or the grid does not divide the images.

    Example:
        >>> rnn = nn.RNN(2, 4, batch_first=True)
        >>> result = position_map(rnn, torch.randn(30, 5, 2), ":0")
        >>> result.values.shape
        (5, 5)
    """
    check_kind(network, nn.Module, "network", "give a network (an nn.Module)")
    batches = loader_of(loader)
    if iter(batches) is batches:
        batches = list(batches)  # the first batch is read twice
    inputs = _first(batches, network, to_inputs)
    rows = _positions(network, layer, inputs)
    if against == INPUT:
        layout = patch_grid(network, inputs, grid=grid)
        pair = _WithPatches(network, layout)
        columns = [f"{INPUT}@{i}" for i in range(layout.height * layout.width)]
        found = similarity_map(
            pair,
            pair,
            batches,
            [f"network.{name}" for name in rows],
            columns,
            to_inputs=to_inputs,
            draws=draws,
            seed=seed,
        )
        names = (type(network).__name__, "patches of the images")
        return SimilarityMap(**{**vars(found), "layers_a": tuple(rows), "networks": names})
    columns = rows if against is None else _positions(network, against, inputs)
    return similarity_map(
        network, network, batches, rows, columns, to_inputs=to_inputs, draws=draws, seed=seed
    )


def _first(batches: Any, network: nn.Module, to_inputs: ToInputs | None) -> Inputs:
    for batch in batches:
        inputs = inputs_of(batch, "batch 1 of the loader", to_inputs)
        return to_device(inputs, tensor_of(network))
    raise ValueError("the loader gave no batch")


def _positions(network: nn.Module, layer: str, inputs: Inputs) -> list[str]:
    """The names of all positions of a layer."""
    named_output(network, f"{layer}@0")  # raises for a layer that does not exist
    args, kwargs = arguments(inputs)
    with (
        evaluation_mode([network]),
        torch.no_grad(),
        representations(network, [layer]) as outputs,
        running(network, inputs, "the network"),
    ):
        network(*args, **kwargs)
    output = outputs[layer]
    if output.ndim < 3:
        raise ValueError(
            f"layer {layer!r} returned {tuple(output.shape)}, which has no positions; name a layer"
            " of tokens, time steps or maps"
        )
    return [f"{layer}@{i}" for i in range(positions_of(output).shape[1])]


@dataclass(frozen=True)
class LayerLocalisation:
    """How well the tokens of one layer keep their place.

    Attributes:
        layer: the layer.
        own: mean similarity of a token with the image's patch at its own place.
        elsewhere: mean similarity with all other patches.
        rank: mean rank of the own patch among all patches; 1 is the most similar.
    """

    layer: str
    own: float
    elsewhere: float
    rank: float


@dataclass(frozen=True)
class Localisation(Tabular):
    """How well tokens keep their place, layer by layer; prints as a table."""

    layers: tuple[LayerLocalisation, ...]
    patches: int
    images: int

    def records(self) -> list[dict[str, Any]]:
        """A row for each layer."""
        return [dict(vars(row)) for row in self.layers]

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON-able values."""
        return plain(self)

    def __str__(self) -> str:
        rows = [
            (row.layer, f"{row.own:.3f}", f"{row.elsewhere:.3f}", f"{row.rank:.1f}")
            for row in self.layers
        ]
        table = aligned(("layer", "own patch", "elsewhere", "rank of own"), rows)
        return (
            f"{table}\n(debiased CKA of tokens with patches of the image, {self.images} images;"
            f" rank among {self.patches} patches, {(self.patches + 1) / 2:g} by chance)"
        )


def localisation(
    network: nn.Module,
    loader: Any,
    layers: Sequence[str],
    *,
    grid: tuple[int, int] | None = None,
    special: int | None = None,
    to_inputs: ToInputs | None = None,
) -> Localisation:
    """How well the tokens of a vision transformer keep their place.

    The map of `position_map(..., against="input")` without the special tokens: its diagonal beside
    the rest.

    Args:
        network: a vision transformer.
        loader: one batch of images, or batches.
        layers: layers that return all tokens, such as the blocks.
        grid: rows and columns of patches, if the network has no patch embedding.
        special: number of tokens that are not patches; by default all that the grid leaves over.
        to_inputs: from a batch to what the network is called with, for batches of another form.

    Raises:
        ValueError: A layer does not return all tokens.

    Example:
        >>> from metalearn.models import SmallViT
        >>> network = SmallViT(width=12, depth=1, size=8)
        >>> result = localisation(network, torch.rand(20, 3, 8, 8), ["blocks.0"])
        >>> 1 <= result.layers[0].rank <= 4
        True
    """
    rows = []
    patches = images = 0
    for layer in layers:
        found = position_map(network, loader, layer, INPUT, grid=grid, to_inputs=to_inputs, draws=0)
        patches = len(found.layers_b)
        images = found.examples
        start = len(found.layers_a) - patches if special is None else special
        values = found.values[start:]
        if values.shape != (patches, patches):
            raise ValueError(
                f"layer {layer!r} returned {len(found.layers_a)} tokens for {patches} patches and"
                f" {start} others; name a layer that keeps all tokens"
            )
        own = np.diag(values)
        others = values[~np.eye(patches, dtype=bool)]
        ranks = 1 + (values > own[:, None]).sum(1)
        rows.append(
            LayerLocalisation(layer, float(own.mean()), float(others.mean()), float(ranks.mean()))
        )
    return Localisation(tuple(rows), patches, images)
