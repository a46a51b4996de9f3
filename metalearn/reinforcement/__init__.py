"""Meta-reinforcement learning: MAML and ANIL for policies (Finn et al. 2017, section 5.3)."""

from .environments import Environment
from .evaluation import Returns, returns
from .learner import PolicyANIL, PolicyMAML
from .locomotion import AntDir, HalfCheetahDir, HalfCheetahVel
from .navigation import Navigation
from .policies import GaussianPolicy
from .randomness import Draws
from .reuse import PolicyReuse, policy_reuse
from .rollouts import Trajectories, collect
from .training import PolicyCurve, meta_train_policy
from .trpo import TRPO

__all__ = [
    "TRPO",
    "AntDir",
    "Draws",
    "Environment",
    "GaussianPolicy",
    "HalfCheetahDir",
    "HalfCheetahVel",
    "Navigation",
    "PolicyANIL",
    "PolicyCurve",
    "PolicyMAML",
    "PolicyReuse",
    "Returns",
    "Trajectories",
    "collect",
    "meta_train_policy",
    "policy_reuse",
    "returns",
]
