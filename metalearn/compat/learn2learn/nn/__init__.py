"""learn2learn's modules: small layers, a classifier of features, and wrappers of a module."""

from metalearn.compat.learn2learn._missing import nearest

from . import kroneckers, metalayers, misc, protonet
from .kroneckers import KroneckerLinear, KroneckerLSTM, KroneckerRNN
from .metalayers import MetaModule, ParameterTransform
from .misc import Flatten, Lambda, Scale, freeze, unfreeze
from .protonet import PrototypicalClassifier

__all__ = [
    "Flatten",
    "KroneckerLSTM",
    "KroneckerLinear",
    "KroneckerRNN",
    "Lambda",
    "MetaModule",
    "ParameterTransform",
    "PrototypicalClassifier",
    "Scale",
    "freeze",
    "kroneckers",
    "metalayers",
    "misc",
    "protonet",
    "unfreeze",
]

_SVM = (
    "a differentiable support vector machine needs a solver of quadratic programs, which is not "
    "covered; PrototypicalClassifier has the same fit_(support, labels)"
)
__getattr__ = nearest(__name__, __all__, instead={"SVClassifier": _SVM, "metaoptnet": _SVM})
