"""A result that can be drawn."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Pictured:
    """A result that can be drawn."""

    def figure(self) -> Figure:
        """The picture as a matplotlib `Figure`."""
        raise NotImplementedError

    def plot(self, path: str | PathLike[str]) -> None:
        """Write the picture; the path's ending says how (.png, .svg, .pdf)."""
        from metalearn.analysis.plotting.style import save

        save(self.figure(), path)
