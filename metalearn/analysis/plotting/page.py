"""Results as one self-contained HTML page: headings, paragraphs, tables and pictures."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any

from metalearn.runtime.files import write_atomically
from metalearn.runtime.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# A wider picture takes the whole width of the page; inches.
HALF_PAGE = 6.5


@dataclass(frozen=True)
class Section:
    """One part of a page.

    Attributes:
        heading: above it.
        text: paragraphs.
        tables: below the text.
        pictures: {caption: figure}, below the tables.
    """

    heading: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Mapping[str, Figure] = field(default_factory=dict)


def write_page(
    path: str | PathLike[str], title: str, answer: str, sections: Sequence[Section]
) -> None:
    """Write a page; pictures are embedded, and nothing is loaded from elsewhere.

    Args:
        path: the file, written whole or not at all.
        title: the question, as the heading.
        answer: one or two sentences, in a box below it.
        sections: the parts, in order.

    Example:
        >>> import tempfile
        >>> table = Table(("layer", "CKA"), (("conv1", "0.99"),))
        >>> sections = [Section("Similarity", tables=[table])]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_page(f"{folder}/page.html", "Are they alike?", "Yes.", sections)
    """
    template = templates("metalearn.analysis.plotting").get_template("page.html")
    page = template.render(
        title=title, answer=answer, sections=sections, picture=picture, half_page=HALF_PAGE
    )
    write_atomically(path, page.encode())


def picture(figure: Figure) -> str:
    """A figure as a data URI: an SVG that needs no font and no network."""
    from .style import rendered

    # As an image of its own: the identifiers inside one SVG cannot clash with those of another.
    return "data:image/svg+xml;base64," + base64.b64encode(rendered(figure, "svg")).decode()


def templates(package: str) -> Any:
    """The templates of a package, a jinja2 `Environment`; "style.html" is that of all pages."""
    # Imported here because it takes long.
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    style = PackageLoader("metalearn.analysis.plotting", ".")
    loader = ChoiceLoader([PackageLoader(package, "."), style])
    # autoescape: names and settings are text, never HTML.
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
