"""learn2learn's reinforcement learning environments: not covered; every name raises an error."""

from ._missing import uncovered

__getattr__ = uncovered(
    __name__,
    "reinforcement learning is not covered under learn2learn's names; metalearn.reinforcement has"
    " MAML and ANIL for policies, and metalearn.engine.inner_loop.inner_loop takes any"
    " differentiable loss, such as a policy gradient",
)
