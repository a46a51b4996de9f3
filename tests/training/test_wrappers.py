"""Under Fabric, Accelerate and DistributedDataParallel a learner trains as any module does."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

import metalearn as ml
from metalearn.episodes import Episode, stack
from metalearn.models import MLP
from metalearn.runtime import distributed
from tests.helpers import point_task, rank_records, weights_vector

Wrap = Callable[[nn.Module, torch.optim.Optimizer, DataLoader], tuple[Any, Any, Any, Any]]
TASKS = 8
BUILDS: dict[str, Callable[[nn.Module], ml.Learner]] = {
    "MAML": lambda model: ml.MAML(model, 0.3, 2),
    "ANIL": lambda model: ml.ANIL(model, 0.3, 2),
    "MetaSGD": lambda model: ml.MetaSGD(model, 0.3),
    "ImplicitMAML": lambda model: ml.ImplicitMAML(model, 0.05, 5),
    "ProtoNet": ml.ProtoNet,
}


def make_learner(name: str) -> ml.Learner:
    torch.manual_seed(0)
    return BUILDS[name](MLP(4, 3, hidden=(8,)).double())


def make_loader(batch_size: int) -> DataLoader:
    tasks = [point_task(seed) for seed in range(TASKS)]
    double = [Episode(*(part.to(torch.float64) for part in task)) for task in tasks]
    return DataLoader(double, batch_size=batch_size)  # type: ignore[arg-type]


def alone(learner: nn.Module, optimizer: torch.optim.Optimizer, loader: DataLoader) -> Any:
    return learner, optimizer, loader, Tensor.backward


def by_fabric(learner: nn.Module, optimizer: torch.optim.Optimizer, loader: DataLoader) -> Any:
    lightning = pytest.importorskip("lightning.fabric")
    fabric = lightning.Fabric(accelerator="cpu", devices=1)
    wrapped, optimizer = fabric.setup(learner, optimizer)
    return wrapped, optimizer, fabric.setup_dataloaders(loader), fabric.backward


def by_accelerate(learner: nn.Module, optimizer: torch.optim.Optimizer, loader: DataLoader) -> Any:
    accelerator = pytest.importorskip("accelerate").Accelerator(cpu=True)
    return *accelerator.prepare(learner, optimizer, loader), accelerator.backward


def train(learner: ml.Learner, wrap: Wrap, batch_size: int = 4) -> Tensor:
    """The weights after a plain training loop on the wrapped learner."""
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.1)
    wrapped, optimizer, loader, backward = wrap(learner, optimizer, make_loader(batch_size))
    for episodes in loader:
        logits = wrapped(episodes)  # (tasks, queries, ways)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), episodes.query.targets.flatten())
        optimizer.zero_grad()
        backward(loss)
        optimizer.step()
    return weights_vector(learner)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.parametrize("wrap", [by_fabric, by_accelerate])
def test_it_trains_as_in_a_plain_loop(wrap: Wrap, name: str) -> None:
    torch.testing.assert_close(
        train(make_learner(name), wrap), train(make_learner(name), alone), rtol=0, atol=0
    )


@pytest.mark.filterwarnings("ignore")
def test_the_learner_itself_adapts_and_is_evaluated() -> None:
    """It is the same object with the same parameters, before and after it is wrapped."""
    learner = make_learner("MAML")
    wrapped = by_fabric(learner, torch.optim.SGD(learner.parameters(), lr=0.1), make_loader(4))[0]
    assert wrapped.module is learner
    episodes = next(iter(make_loader(4)))
    assert ml.evaluate(learner, make_loader(4), progress=False).per_episode.shape == (TASKS,)
    ml.meta_backward(learner, episodes)
    assert all(parameter.grad is not None for parameter in wrapped.parameters())
    for call in (
        lambda: ml.meta_backward(wrapped, episodes),
        lambda: ml.evaluate(wrapped, make_loader(4), progress=False),
        lambda: ml.meta_train(wrapped, make_loader(4).dataset, steps=1, progress=False),
    ):
        with pytest.raises(TypeError, match=r"_FabricModule, a wrapper.*of the MAML.*its \.module"):
            call()


# Two ranks


def by_ddp(learner: ml.Learner, optimizer: torch.optim.Optimizer, loader: DataLoader) -> Any:
    if isinstance(learner, ml.ProtoNet):
        learner.model.get_submodule(learner.head).requires_grad_(False)  # which it does not use
    mine = list(loader.dataset)[distributed.rank() :: 2]  # type: ignore[call-overload]
    wrapped = DistributedDataParallel(learner)
    return wrapped, optimizer, DataLoader(mine, batch_size=2), Tensor.backward


def as_rank_of_ddp(rank: int, folder: Path) -> Any:
    """The weights after training under DistributedDataParallel, and after `meta_backward`."""
    distributed.join(torch.device("cpu"))
    names = ("MAML", "ANIL", "ImplicitMAML", "ProtoNet")
    weights = {name: train(make_learner(name), by_ddp).tolist() for name in names}
    learner = make_learner("MAML")
    episodes = stack(make_loader(1).dataset[i] for i in range(rank, 4, 2))
    ml.meta_backward(learner, episodes, scale=1 / 4)
    distributed.all_reduce_gradients(learner.parameters())
    slopes = torch.cat([parameter.grad.flatten() for parameter in learner.parameters()])
    return {"weights": weights, "gradient": slopes.tolist()}


def check_ranks(folder: Path) -> None:
    first, second = rank_records(folder, "result")
    assert first == second
    for name, weights in first["weights"].items():
        learner = make_learner(name)
        expected = train(learner, alone)
        torch.testing.assert_close(
            torch.tensor(weights, dtype=torch.float64), expected, rtol=1e-9, atol=1e-12
        )


@pytest.mark.slow
def test_two_ranks_train_as_one_process(
    start_ranks: Callable[..., list[Any]], tmp_path: Path
) -> None:
    for process in start_ranks(as_rank_of_ddp):
        process.join(60)
    check_ranks(tmp_path)
    learner = make_learner("MAML")
    ml.meta_backward(learner, next(iter(make_loader(4))))
    slopes = torch.cat([parameter.grad.flatten() for parameter in learner.parameters()])
    for record in rank_records(tmp_path, "result"):
        gradient = torch.tensor(record["gradient"], dtype=torch.float64)
        torch.testing.assert_close(gradient, slopes, rtol=1e-9, atol=1e-12)


def as_rank_of_accelerate(rank: int, folder: Path) -> Any:
    os.environ["LOCAL_RANK"] = str(rank)
    names = ("MAML", "ImplicitMAML")
    return {
        "weights": {name: train(make_learner(name), by_accelerate, 2).tolist() for name in names}
    }


def as_rank_of_fabric(rank: int, folder: Path) -> Any:
    from lightning.fabric import Fabric

    os.environ["LOCAL_RANK"] = str(rank)
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()

    def wrap(learner: Any, optimizer: Any, loader: Any) -> Any:
        wrapped, optimizer = fabric.setup(learner, optimizer)
        return wrapped, optimizer, fabric.setup_dataloaders(loader), fabric.backward

    names = ("MAML", "ImplicitMAML")
    return {"weights": {name: train(make_learner(name), wrap, 2).tolist() for name in names}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "work"),
    [("accelerate", as_rank_of_accelerate), ("lightning.fabric", as_rank_of_fabric)],
)
def test_two_ranks_of_fabric_and_accelerate(
    package: str, work: Any, start_ranks: Callable[..., list[Any]], tmp_path: Path
) -> None:
    pytest.importorskip(package)
    for process in start_ranks(work):
        process.join(120)
    check_ranks(tmp_path)
