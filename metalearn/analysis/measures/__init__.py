"""How alike two matrices of activations are, up to the maps that a measure calls the same.

Every measure takes (examples, features) twice, as torch or numpy of any real dtype, computes in
float64, and returns a similarity: 1 for the same, never a distance. What each one ignores, of
either side: `cca` any invertible linear map (as `pwcca` does of its second side); `svcca`, CKA and
Procrustes rotation and scale; `subspace` scale, and a rotation only where it is of both; and all of
them the mean. Unrelated matrices score high at few examples and many features, so a number is read
beside what chance scores.
"""

from .cca import canonical_correlations, cca, pwcca, svcca
from .cka import linear_cka, rbf_cka
from .procrustes import procrustes
from .subspace import subspace

__all__ = [
    "canonical_correlations",
    "cca",
    "linear_cka",
    "procrustes",
    "pwcca",
    "rbf_cka",
    "subspace",
    "svcca",
]
