"""The base of results that can be drawn."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Pictured:
    """A result that can be drawn; a subclass has a `figure`."""

    def figure(self) -> Figure:
        """The picture as a matplotlib `Figure`."""
        raise NotImplementedError

    def plot(self, path: str | PathLike[str]) -> None:
        """Write the picture to a file; the ending of `path` is its format (.png, .svg, .pdf).

        Raises:
            ValueError: matplotlib does not write files of this ending.
        """
        # matplotlib takes long to import, so it is imported only to draw.
        from metalearn.analysis.plotting.style import save

        save(self.figure(), path)
