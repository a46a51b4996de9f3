"""What the tests share: the family of learners, smooth little networks, and made-up tasks with
known shapes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import metalearn as ml
from metalearn.episodes import Episode, Examples

FAMILY: dict[str, Callable[..., ml.Learner]] = {
    "MAML": lambda model, **options: ml.MAML(model, lr=0.4, steps=2, **options),
    "FOMAML": lambda model, **options: ml.MAML(model, lr=0.4, steps=2, first_order=True, **options),
    "ANIL": lambda model, **options: ml.ANIL(model, lr=0.4, steps=3, **options),
    "BOIL": lambda model, **options: ml.BOIL(model, lr=0.4, steps=2, **options),
    "MetaSGD": lambda model, **options: ml.MetaSGD(model, lr=0.3, steps=2, **options),
    "NIL softmax": lambda model, **options: ml.NIL(model, **options),
    "NIL sum": lambda model, **options: ml.NIL(model, rule="sum", **options),
    "NIL class_mean": lambda model, **options: ml.NIL(model, rule="class_mean", **options),
    "ProtoNet": lambda model, **options: ml.ProtoNet(model, **options),
}
EXACT = [name for name in FAMILY if name != "FOMAML"]
WAYS_TO_RUN = ["loop", "threads", "vectorized"]


def smooth_network(norm: str = "batch", ways: int = 3) -> nn.Module:
    """Softplus instead of ReLU, so that central differences have no kinks to fall into; affine
    parameters far from 1 and 0.
    """
    layer = {
        "batch": lambda: nn.BatchNorm2d(4, track_running_stats=False),
        "layer": lambda: nn.LayerNorm([4, 5, 5]),
        "instance": lambda: nn.InstanceNorm2d(4, affine=True),
        "group": lambda: nn.GroupNorm(2, 4),
        "frozen": lambda: ml.frozen_statistics(nn.BatchNorm2d(4)),
        "none": nn.Identity,
    }[norm]
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        layer(),
        nn.Softplus(),
        nn.Flatten(),
        nn.Linear(100, 8),
        nn.Softplus(),
        nn.Linear(8, ways),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.double()


def made_up_tasks(
    tasks: int = 3,
    ways: int = 3,
    shots: int = 2,
    queries: int = 3,
    shape: tuple[int, ...] = (1, 5, 5),
    seed: int = 1,
) -> Episode:
    """A stack of tasks of random inputs in float64, with all classes in support and query."""
    generator = torch.Generator().manual_seed(seed)

    def examples(count: int) -> Examples:
        inputs = torch.rand(tasks, ways * count, *shape, generator=generator, dtype=torch.float64)
        return Examples(inputs, torch.arange(ways).repeat_interleave(count).repeat(tasks, 1))

    return Episode(examples(shots), examples(queries))


def outer_loss(learner: ml.Learner, episodes: Episode) -> torch.Tensor:
    """The mean over queries, then over tasks."""
    logits = learner(episodes)
    return torch.stack(
        [learner.loss(*pair) for pair in zip(logits, episodes.query.targets, strict=True)]
    ).mean()


def gradients(learner: ml.Learner) -> torch.Tensor:
    """`.grad` of everything that the outer loop trains, as one vector."""
    return torch.cat([parameter.grad.flatten() for parameter in learner.meta_parameters().values()])


@pytest.fixture
def data() -> Path:
    """The folder of real data sets, or a skip."""
    folder = os.environ.get("METALEARN_DATA")
    if not folder:
        pytest.skip("METALEARN_DATA is not set: it names the folder with the real data sets")
    return Path(folder)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Threads are only taken where torch may use more than one."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
