"""A comparison as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

from metalearn.analysis.adaptation.tables import flat_settings
from metalearn.analysis.plotting.page import picture, templates
from metalearn.runtime.files import write_atomically
from transfer.comparison.tables import (
    alike_table,
    final_table,
    first_table,
    kept_table,
    steps_table,
    weights_table,
)
from transfer.comparison.text import (
    collapsed_words,
    counts_words,
    explained,
    headlines,
    overall,
    start_words,
)

if TYPE_CHECKING:
    from .results import ComparisonResult


def report(
    comparison: ComparisonResult,
    path: str | PathLike[str],
    *,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Write one HTML page; pictures are embedded, and nothing is loaded from elsewhere.

    The file is written whole or not at all.
    """
    write_atomically(path, html(comparison, settings=settings).encode())


def html(
    comparison: ComparisonResult,
    *,
    settings: Mapping[str, Any] | None = None,
    title: str = "What does a pretrained start bring?",
) -> str:
    """The page that `report` writes."""
    from . import figures

    pages = templates("transfer.comparison")
    # None if no network begins with a convolution.
    filters = figures.filters(comparison)
    recorded = {key: value for key, value in comparison.settings.items() if key != "versions"}
    return pages.get_template("report.html").render(
        title=title,
        answer=overall(comparison),
        collapsed=collapsed_words(comparison),
        headlines=headlines(comparison),
        counts=counts_words(comparison),
        final=final_table(comparison),
        steps=steps_table(comparison),
        first=first_table(comparison),
        explained=explained(comparison),
        kept=kept_table(comparison),
        weights=weights_table(comparison),
        alike=alike_table(comparison) if comparison.alike else None,
        curves=picture(figures.learning_curves(comparison)),
        scores=picture(figures.final_scores(comparison)),
        speed=picture(figures.steps_to_threshold(comparison)),
        layers=picture(figures.what_is_kept(comparison)),
        filters=picture(filters) if filters else None,
        starts=[(name, start_words(comparison, name)) for name in comparison.strategies],
        settings=[*flat_settings(settings or {}), *flat_settings(recorded)],
        versions=comparison.settings.get("versions", {}),
    )
