"""Each file is what distinguishes one algorithm."""

from .anil import ANIL
from .boil import BOIL
from .joint_representation import joint_representation
from .maml import MAML
from .meta_sgd import MetaSGD
from .nil import NIL
from .protomaml import ProtoMAML
from .protonet import ProtoNet
from .reptile import Reptile

__all__ = [
    "ANIL",
    "BOIL",
    "MAML",
    "NIL",
    "MetaSGD",
    "ProtoMAML",
    "ProtoNet",
    "Reptile",
    "joint_representation",
]
