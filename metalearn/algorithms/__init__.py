"""Each file is what distinguishes one algorithm."""

from .anil import ANIL
from .baseline import Baseline, BaselinePlusPlus
from .boil import BOIL
from .implicit_maml import ImplicitMAML
from .joint_representation import joint_representation
from .maml import MAML
from .maml_plus_plus import MAMLPlusPlus
from .meta_curvature import MetaCurvature
from .meta_sgd import MetaSGD
from .nil import NIL
from .protomaml import ProtoMAML
from .protonet import ProtoNet
from .r2d2 import R2D2
from .reptile import Reptile

__all__ = [
    "ANIL",
    "BOIL",
    "MAML",
    "NIL",
    "R2D2",
    "Baseline",
    "BaselinePlusPlus",
    "ImplicitMAML",
    "MAMLPlusPlus",
    "MetaCurvature",
    "MetaSGD",
    "ProtoMAML",
    "ProtoNet",
    "Reptile",
    "joint_representation",
]
