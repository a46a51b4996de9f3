"""learn2learn's reinforcement learning environments: not covered, and every name says so."""

from ._missing import uncovered

__getattr__ = uncovered(
    __name__,
    "reinforcement learning is not covered; metalearn.inner_loop takes any differentiable loss, a "
    "policy gradient too, and environments come from gymnasium",
)
