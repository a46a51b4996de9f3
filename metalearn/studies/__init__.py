"""Experiments of the feature-reuse papers: one question a file, one function a result."""

from .domains import another_domain, cross_domain
from .regimes import Regimes, training_regimes, under_nil
from .timeline import Point, timeline, timeline_figure

__all__ = [
    "Point",
    "Regimes",
    "another_domain",
    "cross_domain",
    "timeline",
    "timeline_figure",
    "training_regimes",
    "under_nil",
]
