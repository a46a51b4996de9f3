"""What changed, where, and is it more than chance: similarities of matrices, and questions asked of networks and learners."""

from .freezing import Estimate, Freezing, freezing
from .layerwise import LayerSimilarity, Profile, compare_layers
from .report import report
from .reuse import Reuse, feature_reuse
from .similarity import canonical_correlations, cca, linear_cka, procrustes, pwcca, rbf_cka, svcca
from .verdict import Verdict, verdict

__all__ = [
    "Estimate",
    "Freezing",
    "LayerSimilarity",
    "Profile",
    "Reuse",
    "Verdict",
    "canonical_correlations",
    "cca",
    "compare_layers",
    "feature_reuse",
    "freezing",
    "linear_cka",
    "procrustes",
    "pwcca",
    "rbf_cka",
    "report",
    "svcca",
    "verdict",
]
