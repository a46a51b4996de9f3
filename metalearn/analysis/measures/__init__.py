"""Similarity of two activation matrices, and the transformations each measure is invariant to.

Every measure takes (examples, features) twice, as torch or numpy of any real dtype. It computes in
float64 and returns a similarity: 1 for equal matrices, never a distance.

All measures are invariant to translations of either side, and to isotropic scaling. They are also
invariant to

- `cca`: any invertible linear map of either side;
- `pwcca`: any invertible linear map of its second argument;
- `svcca`, `linear_cka`, `rbf_cka`, `procrustes`: a rotation or reflection of either side;
- `subspace`, `overlap`: a rotation or reflection of both sides together.

`overlap` is of two sets of examples that need not correspond; it is invariant to translations only
with `centred=True`.

Unrelated matrices score high if there are few examples and many features, so read a similarity
beside its chance level (`chance.measured`).
"""

from .cca import canonical_correlations, cca, pwcca, svcca
from .cka import linear_cka, rbf_cka
from .overlap import overlap
from .procrustes import procrustes
from .subspace import subspace

__all__ = [
    "canonical_correlations",
    "cca",
    "linear_cka",
    "overlap",
    "procrustes",
    "pwcca",
    "rbf_cka",
    "subspace",
    "svcca",
]
