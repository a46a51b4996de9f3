"""Each file is what distinguishes one algorithm."""

from .anil import ANIL
from .baseline import Baseline, BaselinePlusPlus
from .boil import BOIL
from .joint_representation import joint_representation
from .maml import MAML
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
    "MetaSGD",
    "ProtoMAML",
    "ProtoNet",
    "Reptile",
    "joint_representation",
]
