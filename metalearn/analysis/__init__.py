"""What changed, where, and is it more than chance: similarities of matrices, and questions asked of networks and learners."""

from .decomposition import Condition, Decomposition
from .freezing import Estimate, Freezing, freezing
from .layerwise import LayerSimilarity, Profile, compare_layers
from .observed import class_cosines
from .probes import Probe, Probes, linear_probes
from .report import report
from .reuse import Reuse, feature_reuse
from .seeds import Between, SeededFreezing, Spread, freezing_over_seeds, similarity_between
from .similarity import canonical_correlations, cca, linear_cka, procrustes, pwcca, rbf_cka, subspace, svcca
from .similarity_map import SimilarityMap, similarity_map
from .streaming import Streaming
from .together import Difference, differences, over_seeds
from .verdict import Verdict, verdict

__all__ = [
    "Between",
    "Condition",
    "Decomposition",
    "Difference",
    "Estimate",
    "Freezing",
    "LayerSimilarity",
    "Probe",
    "Probes",
    "Profile",
    "Reuse",
    "SeededFreezing",
    "SimilarityMap",
    "Spread",
    "Streaming",
    "Verdict",
    "canonical_correlations",
    "cca",
    "class_cosines",
    "compare_layers",
    "differences",
    "feature_reuse",
    "freezing",
    "freezing_over_seeds",
    "linear_cka",
    "linear_probes",
    "over_seeds",
    "procrustes",
    "pwcca",
    "rbf_cka",
    "report",
    "similarity_between",
    "similarity_map",
    "subspace",
    "svcca",
    "verdict",
]
