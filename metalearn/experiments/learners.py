"""The registry of algorithms by name."""

from __future__ import annotations

from typing import Any

from torch import nn

from metalearn.algorithms import ANIL, BOIL, MAML, NIL, MetaSGD, ProtoMAML, ProtoNet, Reptile
from metalearn.algorithms.base import Learner
from metalearn.algorithms.joint import JointTraining
from metalearn.network.norm import norm_parameters
from metalearn.runtime.options import Listed, listed

from .presets import Preset

# Learners with an inner loop of gradient steps.
GRADIENT_BASED = {
    "maml": MAML,
    "fomaml": MAML,
    "anil": ANIL,
    "boil": BOIL,
    "meta-sgd": MetaSGD,
    "reptile": Reptile,
    "protomaml": ProtoMAML,
}
# Trainings with one head for all classes or tasks, or none; NIL's rule tests the body.
JOINT = ("multiclass", "multitask", "random")
WITHOUT_INNER_LOOP = ("protonet", "nil", "nil-train", *JOINT)
ALGORITHMS = (*GRADIENT_BASED, *WITHOUT_INNER_LOOP)


def build_learner(algorithm: str, model: nn.Module, preset: Preset, execution: str) -> Learner:
    """A learner by name.

    Args:
        algorithm: one of `ALGORITHMS`.
        model: the network.
        preset: the inner rate and steps, and whether norms adapt.
        execution: how tasks are run.

    Raises:
        ValueError: there is no such algorithm.
    """
    check_algorithm(algorithm)
    if algorithm in ("nil", "nil-train"):
        return NIL(model, execution=execution)
    if algorithm == "protonet":
        return ProtoNet(model, execution=execution)
    if algorithm in JOINT:
        return JointTraining(model, execution=execution)
    lr: Any = preset.lr
    # ANIL moves the head alone, so it reaches no norm.
    if not preset.adapt_norm and algorithm != "anil":
        norms = [name.rpartition(".")[0] for name in norm_parameters(model)]
        if norms:
            lr = {"": preset.lr, **dict.fromkeys(norms, 0.0)}
    options: dict[str, Any] = {"execution": execution}
    if algorithm == "fomaml":
        options["first_order"] = True
    return GRADIENT_BASED[algorithm](model, lr, preset.inner_steps, **options)


def check_algorithm(name: str) -> None:
    """Raise ValueError for a name that is no algorithm."""
    if name not in ALGORITHMS:
        raise ValueError(f"there is no algorithm {name!r}; choose from {', '.join(ALGORITHMS)}")


def parse(algorithms: Listed) -> list[str]:
    """The names of algorithms in a list setting, such as "maml, anil".

    Raises:
        ValueError: one is unknown, or there is none.

    Example:
        >>> parse("maml, anil")
        ['maml', 'anil']
    """
    names = [name.lower() for name in listed(algorithms, "algorithms")]
    unknown = [name for name in names if name not in ALGORITHMS]
    if unknown or not names:
        raise ValueError(
            f"there is no algorithm {', '.join(unknown) or algorithms!r}; choose from"
            f" {', '.join(ALGORITHMS)}"
        )
    return list(dict.fromkeys(names))


def trained_by(algorithm: str) -> str:
    """The algorithm that trains the body which `algorithm` is tested with.

    NIL's test-time rule takes the body of ANIL, as in the paper's table.
    """
    return "anil" if algorithm == "nil" else algorithm
