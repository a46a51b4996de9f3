"""Meta-reinforcement learning: MAML and ANIL for policies (Finn et al. 2017, section 5.3).

Example (a few tiny steps; leave the sizes out for those of the papers):
    >>> from metalearn.models import MLP
    >>> policy = GaussianPolicy(MLP(2, 2, hidden=(8, 8)))
    >>> learner = PolicyMAML(policy, lr=0.1)  # lr={"head": 0.1} is ANIL
    >>> sizes = {"meta_batch": 2, "episodes": 3, "horizon": 6}
    >>> curve = meta_train_policy(learner, Navigation(), steps=2, **sizes)
    >>> result = returns(learner, Navigation(), tasks=3, steps=3, episodes=3, horizon=6, seed=1)
    >>> len(result.means)  # after 0, 1, 2, 3 gradient steps
    4
"""

from .environments import Environment
from .evaluation import Returns, returns
from .figures import paths
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
    "paths",
    "policy_reuse",
    "returns",
]
