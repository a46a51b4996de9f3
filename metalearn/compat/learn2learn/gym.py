"""learn2learn's reinforcement learning environments: not covered; every name raises an error."""

from ._missing import uncovered

__getattr__ = uncovered(
    __name__,
    "reinforcement learning is not covered; environments come from gymnasium, and"
    " metalearn.engine.inner_loop.inner_loop takes any differentiable loss, such as a policy"
    " gradient",
)
