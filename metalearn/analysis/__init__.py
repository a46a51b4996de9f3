"""Similarities of activation matrices, and analyses of networks and learners built on them."""

from metalearn.analysis.adaptation.decomposition import Condition, Decomposition
from metalearn.analysis.adaptation.feature_reuse import Reuse, feature_reuse
from metalearn.analysis.adaptation.freezing import Freezing, freezing
from metalearn.analysis.adaptation.observe import class_cosines
from metalearn.analysis.adaptation.over_seeds import (
    Difference,
    differences,
    freezing_over_seeds,
    over_seeds,
)
from metalearn.analysis.adaptation.page import report
from metalearn.analysis.adaptation.predictors import Predictors, predictors
from metalearn.analysis.adaptation.verdict import Verdict, verdict
from metalearn.analysis.measures.cca import canonical_correlations, cca, pwcca, svcca
from metalearn.analysis.measures.cka import linear_cka, rbf_cka
from metalearn.analysis.measures.overlap import overlap
from metalearn.analysis.measures.procrustes import procrustes
from metalearn.analysis.measures.streaming import Streaming
from metalearn.analysis.measures.subspace import subspace
from metalearn.analysis.networks.attention import (
    attention_distances,
    residual_off,
    residual_points,
    skip,
    stream_norms,
)
from metalearn.analysis.networks.between import Between, similarity_between
from metalearn.analysis.networks.block_structure import block_structure
from metalearn.analysis.networks.components import components, without
from metalearn.analysis.networks.dynamics import class_sensitivity, convergence, generalising
from metalearn.analysis.networks.layerwise import compare_layers
from metalearn.analysis.networks.localisation import localisation, position_map
from metalearn.analysis.networks.probes import Probe, Probes, linear_probes
from metalearn.analysis.networks.profile import LayerSimilarity, Profile
from metalearn.analysis.networks.receptive_fields import receptive_fields
from metalearn.analysis.networks.shortcuts import shortcut_norms
from metalearn.analysis.networks.similarity_map import SimilarityMap, similarity_map
from metalearn.runtime.renamed import renamed_attributes
from metalearn.runtime.statistics import Estimate, MeanStd

__all__ = [
    "Between",
    "Condition",
    "Decomposition",
    "Difference",
    "Estimate",
    "Freezing",
    "LayerSimilarity",
    "MeanStd",
    "Predictors",
    "Probe",
    "Probes",
    "Profile",
    "Reuse",
    "SimilarityMap",
    "Streaming",
    "Verdict",
    "attention_distances",
    "block_structure",
    "canonical_correlations",
    "cca",
    "class_cosines",
    "class_sensitivity",
    "compare_layers",
    "components",
    "convergence",
    "differences",
    "feature_reuse",
    "freezing",
    "freezing_over_seeds",
    "generalising",
    "linear_cka",
    "linear_probes",
    "localisation",
    "over_seeds",
    "overlap",
    "position_map",
    "predictors",
    "procrustes",
    "pwcca",
    "rbf_cka",
    "receptive_fields",
    "report",
    "residual_off",
    "residual_points",
    "shortcut_norms",
    "similarity_between",
    "similarity_map",
    "skip",
    "stream_norms",
    "subspace",
    "svcca",
    "verdict",
    "without",
]

__getattr__ = renamed_attributes(__name__, {"SeededFreezing": Freezing, "Spread": MeanStd})
