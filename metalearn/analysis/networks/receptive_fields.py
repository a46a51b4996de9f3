"""How much of the image each layer sees: effective receptive fields.

Luo, Li, Urtasun and Zemel 2016 (arXiv:1701.04128); for vision transformers beside convolutional
networks Raghu et al. 2021 (arXiv:2108.08810).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from metalearn.analysis.checks import check_kind, check_seed, listed
from metalearn.analysis.plotting.pictured import Pictured
from metalearn.network.activations import representations
from metalearn.network.layers import layers as layer_names
from metalearn.network.modes import evaluation_mode
from metalearn.runtime.tables import Tabular, aligned, plain

from .attention import patch_grid
from .batches import running, tensor_of, to_device

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class ReceptiveField:
    """What the centre position of one layer sees.

    Attributes:
        layer: the layer.
        radius: `sqrt(sum p r^2)` in pixels, with r the distance from the position's own centre.
        own: the share of the gradient within the pixels of the position's own cell.
        support: how many pixels have any gradient.
        weights: (height, width), the mean absolute gradient, normalised to a sum of 1.
    """

    layer: str
    radius: float
    own: float
    support: int
    weights: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class ReceptiveFields(Pictured, Tabular):
    """The effective receptive field of every layer; prints as a table."""

    layers: tuple[ReceptiveField, ...]
    images: int

    def __getitem__(self, layer: str) -> ReceptiveField:
        for row in self.layers:
            if row.layer == layer:
                return row
        known = ", ".join(row.layer for row in self.layers)
        raise KeyError(f"no field of layer {layer!r} was taken; these were: {known}")

    def records(self) -> list[dict[str, Any]]:
        """A row for each layer, without the maps."""
        names = ("layer", "radius", "own", "support")
        return [{name: getattr(row, name) for name in names} for row in self.layers]

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON-able values, with the maps."""
        return plain(self)

    def __str__(self) -> str:
        pixels = self.layers[0].weights.size
        rows = [
            (row.layer, f"{row.radius:.2f}", f"{100 * row.own:.1f}", f"{row.support}")
            for row in self.layers
        ]
        table = aligned(("layer", "radius, pixels", "own cell, %", "support, pixels"), rows)
        return (
            f"{table}\n(mean absolute gradient of the centre position over {self.images} images of"
            f" {pixels} pixels)"
        )

    def figure(self) -> Figure:
        """The field of every layer as a map, as a matplotlib `Figure`."""
        from metalearn.analysis.plotting.maps import strip

        titles = [f"{row.layer}\nradius {row.radius:.1f}" for row in self.layers]
        return strip([row.weights for row in self.layers], titles)


def receptive_fields(
    model: nn.Module,
    images: Tensor,
    layers: Sequence[str] | None = None,
    *,
    signs: bool = True,
    seed: int = 0,
) -> ReceptiveFields:
    """The effective receptive field of the centre position of every layer.

    `p = mean_images sum_channels |d (s . h_centre) / d x|`, normalised to a sum of 1, with `s` one
    random sign for each channel of the layer. The network runs in evaluation mode; norms with the
    statistics of the batch let every position see the whole batch.

    Args:
        model: any network whose layers return maps (images, channels, height, width) or tokens
            (images, tokens, features).
        images: (images, channels, height, width).
        layers: names of layers; by default those of `metalearn.layers(model)` with positions.
        signs: random signs for the channels of a layer; False for their sum, which cancels less in
            networks of positive weights.
        seed: what the signs depend on.

    Raises:
        ValueError: A named layer returns no positions, or no gradient reaches the images.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3, padding=1))
        >>> found = receptive_fields(network, torch.rand(4, 1, 9, 9))
        >>> [row.support for row in found.layers]
        [9, 25]
    """
    check_kind(model, nn.Module, "model", "give a network (an nn.Module)")
    check_kind(images, Tensor, "images", "give a tensor (images, channels, height, width)")
    if images.ndim != 4:
        raise ValueError(
            f"images has shape {tuple(images.shape)}; give (images, channels, height, width)"
        )
    seed = check_seed(seed)
    names = layer_names(model) if layers is None else listed(layers, "layers")
    inputs = to_device(images, tensor_of(model)).detach().requires_grad_()
    with (
        evaluation_mode([model]),
        torch.enable_grad(),
        representations(model, names) as outputs,
        running(model, inputs, "the network"),
    ):
        model(inputs)
    generator = torch.Generator().manual_seed(seed) if signs else None
    found = []
    for name in names:
        output = outputs[name]
        if output.ndim in (3, 4):
            cell = _centre(model, inputs, output)
            found.append(_field(name, cell, inputs, generator))
        elif layers is not None:
            raise ValueError(
                f"layer {name!r} returned no maps (images, channels, height, width) and no tokens"
                " (images, tokens, features), so it has no positions; name another"
            )
    if not found:
        raise ValueError(f"{type(model).__name__} has no layer that returns positions")
    return ReceptiveFields(tuple(found), len(images))


class _Centre(NamedTuple):
    """The centre position of a layer: its values, and where it lies in which grid."""

    values: Tensor  # (images, channels)
    grid: tuple[int, int]
    row: int
    column: int


def _centre(model: nn.Module, images: Tensor, output: Tensor) -> _Centre:
    """Of maps (images, channels, rows, columns) or tokens (images, tokens, features)."""
    if output.ndim == 4:
        rows, columns = output.shape[2], output.shape[3]
        row, column = rows // 2, columns // 2
        return _Centre(output[:, :, row, column], (rows, columns), row, column)
    rows, columns, special, _ = patch_grid(model, images.detach())
    if rows * columns + special != output.shape[1]:
        raise ValueError(
            f"a layer returned {output.shape[1]} tokens, and the patch embedding {rows} x {columns}"
            f" patches and {special} others; name layers that keep the tokens"
        )
    row, column = rows // 2, columns // 2
    token = special + row * columns + column
    return _Centre(output[:, token], (rows, columns), row, column)


def _field(
    name: str, centre: _Centre, images: Tensor, generator: torch.Generator | None
) -> ReceptiveField:
    signs = torch.ones(centre.values.shape[1])
    if generator is not None:
        signs = 2.0 * torch.randint(0, 2, signs.shape, generator=generator) - 1
    value = (centre.values * signs.to(centre.values)).sum()
    gradient = None
    if value.requires_grad:
        gradient = torch.autograd.grad(value, images, retain_graph=True, allow_unused=True)[0]
    if gradient is None or not gradient.abs().sum() > 0:
        raise ValueError(
            f"no gradient from the centre of layer {name!r} reaches the images; is the layer dead,"
            " or not computed from the images?"
        )
    weights = gradient.double().abs().sum(1).mean(0).cpu()  # (height, width)
    weights = weights / weights.sum()
    (rows, columns), row, column = centre.grid, centre.row, centre.column
    height, width = weights.shape
    # A position covers a cell of the image; with stride 1 that is one pixel.
    cell_height, cell_width = height / rows, width / columns
    down = torch.arange(height) - ((row + 0.5) * cell_height - 0.5)
    right = torch.arange(width) - ((column + 0.5) * cell_width - 0.5)
    squared = down[:, None].square() + right.square()  # (height, width)
    top, left = int(row * cell_height), int(column * cell_width)
    own = weights[top : int(top + cell_height), left : int(left + cell_width)]
    return ReceptiveField(
        name,
        float((weights * squared).sum().sqrt()),
        float(own.sum()),
        int((weights > 0).sum()),
        weights.numpy(),
    )
