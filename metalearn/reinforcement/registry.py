"""Environments and learners by name."""

from __future__ import annotations

from collections.abc import Callable

from .environments import Environment
from .learner import PolicyANIL, PolicyMAML
from .locomotion import AntDir, HalfCheetahDir, HalfCheetahVel
from .navigation import Navigation

# Those on MuJoCo import it when they are built.
ENVIRONMENTS: dict[str, Callable[[], Environment]] = {
    "navigation": Navigation,
    HalfCheetahDir.name: HalfCheetahDir,
    HalfCheetahVel.name: HalfCheetahVel,
    AntDir.name: AntDir,
}

ALGORITHMS: dict[str, type[PolicyMAML]] = {"maml": PolicyMAML, "anil": PolicyANIL}


def build_environment(name: str) -> Environment:
    """An environment by name.

    Raises:
        ValueError: there is no such name.
        ImportError: it needs mujoco, which is not installed.

    Example:
        >>> build_environment("navigation").actions
        2
    """
    if name not in ENVIRONMENTS:
        raise ValueError(f"there is no environment {name!r}; choose from {', '.join(ENVIRONMENTS)}")
    return ENVIRONMENTS[name]()


def policy_learner(name: str) -> type[PolicyMAML]:
    """The class of a learner by name.

    Raises:
        ValueError: there is no such name.

    Example:
        >>> policy_learner("anil").__name__
        'PolicyANIL'
    """
    if name not in ALGORITHMS:
        raise ValueError(f"algorithm={name!r} is not one of {', '.join(ALGORITHMS)}")
    return ALGORITHMS[name]
