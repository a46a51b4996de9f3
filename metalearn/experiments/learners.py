"""The registry of algorithms by name."""

from __future__ import annotations

from typing import Any

from torch import nn

from metalearn.algorithms import (
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
from metalearn.algorithms.base import Learner
from metalearn.algorithms.joint import JointTraining
from metalearn.network.cosine_head import cosine_head
from metalearn.network.norm import norm_parameters
from metalearn.runtime.options import Listed, listed

from .presets import Preset

# Learners with an inner loop of gradient steps.
GRADIENT_BASED = {
    "maml": MAML,
    "fomaml": MAML,
    "imaml": ImplicitMAML,
    "anil": ANIL,
    "boil": BOIL,
    "meta-sgd": MetaSGD,
    "meta-curvature": MetaCurvature,
    "reptile": Reptile,
    "maml++": MAMLPlusPlus,
    "protomaml": ProtoMAML,
    "baseline": Baseline,
}
# These move the head alone, so they reach no norm.
HEAD_ALONE = ("anil", "baseline")
# Trained with one head for all training classes; Baseline++ is then tested with a fresh one.
MULTICLASS = ("multiclass", "baseline++")
# Trainings with one head for all classes or tasks, or none; NIL's rule tests the body.
JOINT = ("multiclass", "multitask", "random")
WITHOUT_INNER_LOOP = ("protonet", "r2d2", "nil", "nil-train", *JOINT)
# Learners whose tasks may have other ways in training than at test.
ANY_WAYS = ("protonet", "r2d2", "nil-train", "protomaml")
ALGORITHMS = (*GRADIENT_BASED, "baseline++", *WITHOUT_INNER_LOOP)


def build_learner(algorithm: str, model: nn.Module, preset: Preset, execution: str) -> Learner:
    """A learner by name, as it is trained.

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
    if algorithm == "r2d2":
        return R2D2(model, execution=execution)
    if algorithm == "baseline++":
        return JointTraining(cosine_head(model), execution=execution)
    if algorithm in JOINT:
        return JointTraining(model, execution=execution)
    lr: Any = preset.lr
    if not preset.adapt_norm and algorithm not in HEAD_ALONE:
        norms = [name.rpartition(".")[0] for name in norm_parameters(model)]
        if norms:
            lr = {"": preset.lr, **dict.fromkeys(norms, 0.0)}
    options: dict[str, Any] = {"execution": execution}
    if algorithm == "fomaml":
        options["first_order"] = True
    if algorithm == "imaml":
        options |= {"strength": 0.5, "solver_steps": 3}
    if algorithm == "maml++":
        # The paper trains 100 epochs of 500 steps, the first 50 of first order.
        options |= {
            "multi_step_epochs": 10,
            "first_order_epochs": 50,
            "learned_rates": True,
            "step_norms": bool(norm_parameters(model)),
            "epoch": max(preset.steps // 100, 1),
        }
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

    NIL's test-time rule takes the body of ANIL, as in the paper's table, and Baseline one that was
    trained on all classes at once.
    """
    return {"nil": "anil", "baseline": "multiclass"}.get(algorithm, algorithm)


def at_test(algorithm: str, learner: Learner, preset: Preset) -> Learner:
    """The learner as it is tested.

    An inner loop takes the preset's steps at test. A body that was trained without an inner loop is
    tested by NIL's rule, or by the fresh head of Baseline++.

    Args:
        algorithm: its name.
        learner: as it was trained.
        preset: the inner rate, and the steps at test.
    """
    if algorithm == "baseline++":
        return BaselinePlusPlus(
            learner.model, preset.lr, preset.test_steps, execution=learner.execution
        )
    if isinstance(learner, JointTraining):
        return NIL(learner.model, execution=learner.execution)
    if isinstance(learner, MAML):
        return learner.with_steps(preset.test_steps)
    return learner
