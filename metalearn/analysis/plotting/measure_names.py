"""Measures as tables and pictures name them."""

from __future__ import annotations

WORDS = ("procrustes", "subspace")  # the others are abbreviations


def measure_name(measure: str) -> str:
    """The name of a measure in a heading or at an axis.

    Example:
        >>> measure_name("pwcca"), measure_name("linear_cka"), measure_name("procrustes")
        ('PWCCA', 'CKA', 'procrustes')
    """
    if measure in WORDS:
        return measure
    return measure.removeprefix("linear_").replace("_", " ").upper()
