"""DropBlock: dropout of whole squares of a map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.runtime.checks import whole_number


class DropBlock(nn.modules.dropout._DropoutNd):
    """Drop squares of every channel in training (Ghiasi, Lin and Le 2018, arXiv:1810.12890).

    A place is the centre of a dropped square with probability

        gamma = p / size^2 * (height * width) / ((height - size + 1) (width - size + 1))

    among the places whose square fits the map. The values that stay are multiplied by (values) /
    (values that stay). In evaluation mode nothing changes. Squares are no larger than the map, so a
    map of less than `size` pixels is dropped as a whole, or stays.

    Args:
        p: about the share of values to drop, from 0 to less than 1.
        size: the side of a square.

    Raises:
        ValueError: `p` or `size` is out of range.

    Example:
        >>> drop = DropBlock(0.5, size=2)
        >>> maps = torch.ones(2, 3, 8, 8)
        >>> bool((drop(maps) == 0).any()), torch.equal(drop.eval()(maps), maps)
        (True, True)
    """

    def __init__(self, p: float = 0.1, size: int = 5) -> None:
        super().__init__(p)
        if p == 1:
            raise ValueError("p=1 drops everything; give a share below 1")
        self.size = whole_number("size", size)

    def forward(self, maps: Tensor) -> Tensor:
        """(examples, channels, height, width) -> the same shape."""
        if not self.training or not self.p:
            return maps
        *batch, height, width = maps.shape
        rows, columns = min(self.size, height), min(self.size, width)
        fitting = (height - rows + 1) * (width - columns + 1)
        gamma = self.p / (rows * columns) * (height * width) / fitting
        # The corners of the dropped squares, (examples, channels, places that fit).
        corners = torch.rand(
            *batch, height - rows + 1, width - columns + 1, device=maps.device, dtype=maps.dtype
        ).lt(gamma)
        # A square reaches from its corner to the right and down: pad, and take the maximum.
        padded = F.pad(corners.to(maps.dtype), (columns - 1, columns - 1, rows - 1, rows - 1))
        dropped = F.max_pool2d(padded, (rows, columns), stride=1)  # (..., height, width)
        stays = 1 - dropped
        return maps * stays * (stays.numel() / stays.sum().clamp(min=1))

    def extra_repr(self) -> str:
        """The share, and the size."""
        return f"p={self.p}, size={self.size}"
