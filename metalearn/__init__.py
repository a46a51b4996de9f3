"""Rapid learning or feature reuse? Few-shot learners, and one analysis of what adaptation changes."""

from .algorithms import ANIL, BOIL, MAML, NIL, MetaSGD, ProtoNet, Reptile
from .episodes import Episode, Examples
from .evaluation import evaluate
from .execution import meta_backward
from .layers import body, head, layers
from .learner import Learner
from .norm import batch_statistics, frozen_statistics
from .training import meta_train

__version__ = "0.1.0"

__all__ = [
    "ANIL",
    "BOIL",
    "MAML",
    "NIL",
    "Episode",
    "Examples",
    "Learner",
    "MetaSGD",
    "ProtoNet",
    "Reptile",
    "batch_statistics",
    "body",
    "evaluate",
    "frozen_statistics",
    "head",
    "layers",
    "meta_backward",
    "meta_train",
]
