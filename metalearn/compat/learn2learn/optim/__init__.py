"""learn2learn's differentiable optimizers: a loss trains the functions that made its steps."""

from metalearn.compat.learn2learn._missing import nearest

from . import transforms, update_rules
from .learnable_optimizer import LearnableOptimizer
from .parameter_update import ParameterUpdate
from .transforms import (
    KroneckerTransform,
    MetaCurvatureTransform,
    ModuleTransform,
    ReshapedTransform,
    TransformDictionary,
)
from .update_rules import DifferentiableSGD

__all__ = [
    "DifferentiableSGD",
    "KroneckerTransform",
    "LearnableOptimizer",
    "MetaCurvatureTransform",
    "ModuleTransform",
    "ParameterUpdate",
    "ReshapedTransform",
    "TransformDictionary",
    "transforms",
    "update_rules",
]

__getattr__ = nearest(__name__, __all__)
