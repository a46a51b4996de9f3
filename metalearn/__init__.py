"""Rapid learning or feature reuse? Few-shot learners, and one analysis of what adaptation changes."""

from .algorithms import ANIL, BOIL, MAML, NIL, MetaSGD, ProtoNet, Reptile
from .episodes import Episode, Examples
from .execution import meta_backward
from .layers import body, head, layers
from .learner import Learner
from .norm import batch_statistics, frozen_statistics

__version__ = "0.1.0"
