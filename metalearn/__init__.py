"""Few-shot learners, and one analysis that compares representations before and after adaptation."""

from metalearn.algorithms.base import Learner
from metalearn.engine.meta_gradient import meta_backward
from metalearn.network.layers import body, head, layers
from metalearn.network.norm import batch_statistics, frozen_statistics
from metalearn.training.loop import meta_train

from .algorithms import (
    ANIL,
    BOIL,
    MAML,
    NIL,
    R2D2,
    Baseline,
    BaselinePlusPlus,
    ImplicitMAML,
    MAMLPlusPlus,
    MetaCurvature,
    MetaSGD,
    ProtoMAML,
    ProtoNet,
    Reptile,
)
from .episodes import Episode, Examples
from .evaluation import evaluate
from .runtime.installation import warn_of_others
from .runtime.moved import announce_moved_modules
from .runtime.version import __version__

announce_moved_modules()
warn_of_others()

__all__ = [
    "ANIL",
    "BOIL",
    "MAML",
    "NIL",
    "R2D2",
    "Baseline",
    "BaselinePlusPlus",
    "Episode",
    "Examples",
    "ImplicitMAML",
    "Learner",
    "MAMLPlusPlus",
    "MetaCurvature",
    "MetaSGD",
    "ProtoMAML",
    "ProtoNet",
    "Reptile",
    "__version__",
    "batch_statistics",
    "body",
    "evaluate",
    "frozen_statistics",
    "head",
    "layers",
    "meta_backward",
    "meta_train",
]
