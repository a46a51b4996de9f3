"""Numbers that cannot be meant: refused at the call with the value and the cure, or named at the
step at which they arise.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from metalearn import MAML, ProtoNet, evaluate, meta_train
from metalearn.algorithms.base import Learner
from metalearn.episodes import Episode, Examples
from metalearn.experiments.experiment import Experiment
from metalearn.models import MLP
from metalearn.tasks import Sinusoid
from tests.helpers import sinusoid_learner


def train(learner: Learner | None = None, tasks: Any = None, **options: Any) -> Any:
    return meta_train(
        learner or sinusoid_learner(),
        Sinusoid(tasks=9) if tasks is None else tasks,
        **({"steps": 4, "progress": False} | options),
    )


NO_COUNT = [
    0,
    -1,
    2.5,
    2.0,
    math.nan,
    math.inf,
    True,
    "3",
    None,
    [3],
    torch.tensor(0.5),
    np.float32(2),
]
NO_RATE = [
    0,
    -1,
    -0.5,
    math.nan,
    math.inf,
    -math.inf,
    True,
    "0.1",
    [0.1],
    1j,
    torch.tensor([1.0, 2.0]),
    torch.tensor(math.nan),
]


@pytest.mark.parametrize("value", NO_COUNT, ids=repr)
@pytest.mark.parametrize("name", ["steps", "meta_batch", "validate_every", "checkpoint_every"])
def test_meta_train_refuses_what_is_no_count(name: str, value: object) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"{name}=.*a whole number of at least 1"):
        train(**{name: value})


@pytest.mark.parametrize("value", NO_RATE, ids=repr)
@pytest.mark.parametrize("name", ["clip_value", "clip_norm"])
def test_meta_train_refuses_a_clip_value_that_would_climb_or_train_nothing(
    name: str, value: object
) -> None:
    with pytest.raises(
        (TypeError, ValueError),
        match=f"(?s){name}=.*finite number above 0; leave it out",
    ):
        train(**{name: value})


@pytest.mark.parametrize("value", NO_COUNT, ids=repr)
def test_evaluate_refuses_what_is_no_count(value: object) -> None:
    with pytest.raises(
        (TypeError, ValueError), match=r"tasks_at_once=.*a whole number of at least 1"
    ):
        evaluate(sinusoid_learner(), Sinusoid(tasks=2), tasks_at_once=value)  # type: ignore[arg-type]


COUNTS = [
    "ways",
    "shots",
    "queries",
    "test_tasks",
    "size",
    "channels",
    "hidden",
    "meta_batch",
    "train_queries",
    "train_ways",
    "steps",
    "seed",
]
COUNTS += ["inner_steps", "test_steps"]
MAY_BE_ZERO = ("seed", "inner_steps", "test_steps")
MAY_BE_UNSET = (
    "queries",
    "size",
    "channels",
    "hidden",
    "meta_batch",
    "train_queries",
    "train_ways",
    "steps",
    "inner_steps",
    "test_steps",
)


@pytest.mark.parametrize("name", COUNTS)
def test_an_experiment_refuses_what_is_no_count(name: str) -> None:
    for value in NO_COUNT:
        if (value == 0 and name in MAY_BE_ZERO and value is not False) or (
            value is None and name in MAY_BE_UNSET
        ):
            continue
        with pytest.raises((TypeError, ValueError), match=rf"{name}=.*a whole number of at least"):
            Experiment(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["lr", "outer_lr", "clip_value"])
def test_an_experiment_refuses_what_is_no_rate(name: str) -> None:
    for value in NO_RATE:
        with pytest.raises((TypeError, ValueError), match=rf"(?s){name}=.*a finite number above 0"):
            Experiment(**{name: value})  # type: ignore[arg-type]


def test_numbers_of_numpy_and_torch_are_taken_as_python_s(tmp_path: Any) -> None:
    counts = {"steps": np.int64(2), "meta_batch": torch.tensor(2), "checkpoint_every": np.int8(1)}
    assert len(train(**counts, clip_norm=np.float32(1), checkpoint=tmp_path / "run").losses) == 2
    plain = {"steps": 3, "meta_batch": 2, "checkpoint_every": 1}
    assert len(train(**plain, clip_norm=1.0, checkpoint=tmp_path / "run").losses) == 3
    experiment = Experiment(seed=np.int64(1), outer_lr=np.float32(0.5))  # type: ignore[arg-type]
    assert type(experiment.seed) is int
    assert type(experiment.outer_lr) is float


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": lambda p: SGD(p, lr=math.nan)}, "step 1: the outer rate is nan"),
        ({"optimizer": lambda p: SGD(p, lr=math.inf)}, "step 1: the outer rate is inf"),
        ({"optimizer": lambda p: SGD(p, lr=0.0)}, "lr=0 trains nothing"),
        (
            {"schedule": lambda o: LambdaLR(o, lambda step: 1.0 - step)},
            "step 3: the outer rate is -0.001",
        ),
        (
            {"schedule": lambda o: LambdaLR(o, lambda step: math.nan if step else 1.0)},
            "step 2: the outer rate is nan",
        ),
        ({"optimizer": lambda p: torch.optim.LBFGS(p)}, "LBFGS does not step"),
        ({"optimizer": lambda p: None}, "gives a NoneType; give a function that returns"),
        ({"schedule": lambda o: None}, "gives a NoneType; give a function that returns"),
        ({"settings": [1]}, "settings=.* a list; give a dictionary"),
        ({"checkpoint": 5}, "checkpoint=5 is a int; give a path"),
        ({"checkpoint": ""}, "checkpoint='' names no file"),
        ({"log": True}, "log=True is a bool; give a path"),
        ({"tasks": 5}, "training tasks are a int"),
        ({"tasks": "tasks"}, "training tasks are a str"),
        ({"tasks": {0: None}}, "training tasks are a dict"),
        ({"tasks": iter([1])}, "training tasks are a list_iterator"),
        ({"tasks": [5]}, r"task 0 is a int; give an Episode"),
        ({"tasks": [torch.zeros(3, 2)]}, r"task 0 is a Tensor; give an Episode"),
        ({"tasks": torch.zeros(3, 2)}, "training tasks are a Tensor"),
        ({"tasks": Sinusoid(tasks=1)[0]}, "Episode does not support; pass the data set itself"),
        ({"validation": []}, "there are no validation tasks"),
        ({"validation": 3}, "validation tasks are a int"),
        ({"learner": MLP(1, 1)}, "the learner is a MLP; give a Learner"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value,
)
def test_other_odd_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        train(**options)


@pytest.mark.parametrize(
    "episodes",
    [5, None, "tasks", {}, iter([1]), [5], [], torch.zeros(0)],
    ids=lambda value: type(value).__name__,
)
def test_evaluate_names_what_has_no_tasks(episodes: Any) -> None:
    with pytest.raises(
        (TypeError, ValueError), match=r"give a FewShot|give an Episode|there are no test tasks"
    ):
        evaluate(sinusoid_learner(), episodes)
    with pytest.raises(TypeError, match="give a Learner"):
        evaluate(MLP(1, 1), Sinusoid(tasks=1))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (torch.zeros(0, 1), torch.zeros(0, 1), "the support set is empty"),
        (
            torch.zeros(3, 1),
            torch.zeros(2, 1),
            (
                r"inputs of a task are \(3, 1\) and its targets \(2, 1\); give one target for each"
                r" input"
            ),
        ),
        (torch.zeros(3, 1), torch.zeros(()), r"inputs of a task are \(3, 1\) and its targets \(\)"),
        (torch.zeros(()), torch.zeros(3, 1), r"inputs of a task are \(\) and its targets \(3, 1\)"),
        (
            torch.zeros(3, 1),
            torch.zeros(3, 1, dtype=torch.complex64),
            "targets are torch.complex64; give integer labels or real",
        ),
    ],
)
def test_tasks_without_a_target_for_each_input_are_named(
    inputs: torch.Tensor, targets: torch.Tensor, message: str
) -> None:
    task = Episode(Examples(inputs, targets), Examples(torch.zeros(2, 1), torch.zeros(2, 1)))
    with pytest.raises(ValueError, match=message):
        train(tasks=[task])
    with pytest.raises(ValueError, match=message):
        evaluate(sinusoid_learner(), [task])


# At the step and task at which it arises


class Steep(nn.Module):
    """The square root of the distance to each task's own number: its gradient at 0 is infinite, its
    value is not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return (inputs * self.weight).abs().sqrt()


def flat_task(value: float) -> Episode:
    examples = Examples(torch.full((2, 1), value), torch.zeros(2, 1))
    return Episode(examples, examples)


def test_the_task_whose_gradient_is_not_finite_is_named() -> None:
    tasks = [flat_task(1.0), flat_task(2.0), flat_task(0.0), flat_task(3.0)]
    learner = MAML(
        Steep(), 0.01, steps=0, head="", loss=lambda x, y: (x - y).mean(), execution="loop"
    )
    with pytest.raises(
        FloatingPointError, match=r"step 1: the gradient of model.weight over tasks 2 \("
    ):
        meta_train(learner, tasks, steps=2, progress=False)


class Dividing(SGD):
    """Steps to infinity, as Adam with eps=0 does if a gradient is zero."""

    def step(self, closure: Any = None) -> None:
        super().step()
        with torch.no_grad():
            self.param_groups[0]["params"][-1].div_(0)


@pytest.mark.parametrize("steps", [1, 4])
def test_weights_that_the_optimizer_breaks_are_named_at_their_step(
    tmp_path: Any, steps: int
) -> None:
    message = r"step 1: the optimizer's step made model.head.bias not finite.*run \(step 0\)"
    with pytest.raises(FloatingPointError, match=message):
        train(steps=steps, optimizer=lambda p: Dividing(p, lr=0.1), checkpoint=tmp_path / "run")


def test_what_is_right_still_trains() -> None:
    images = Experiment(
        ways=2, hidden=4, steps=1, meta_batch=1, seed=0, inner_steps=0, test_steps=0, lr=0.1
    )
    assert images.settings().inner_steps == 0
    assert len(train(clip_norm=1e-3, clip_value=1e9).losses) == 4
    assert (
        len(train(schedule=lambda o: LambdaLR(o, lambda step: float(step > 0))).losses) == 4
    )  # a rate of 0 at first
    assert isinstance(ProtoNet(MLP(1, 2)), Learner)
