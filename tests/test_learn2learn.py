"""Beside the real learn2learn, in the environment that benchmarks/peers/install.sh builds: the same tasks, weights and gradients."""

from __future__ import annotations

import importlib.util
import random
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metalearn as ml
import metalearn.compat.learn2learn as ours
from metalearn.compat import copy_weights, from_learn2learn, to_learn2learn
from metalearn.models import Conv4
from metalearn.tasks import FewShot, glyphs

from .conftest import WAYS_TO_RUN, gradients

if importlib.util.find_spec("learn2learn") is None:
    pytest.skip("the real learn2learn is not installed here: benchmarks/peers/install.sh builds its environment", allow_module_level=True)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of gym and of its own age
    import learn2learn as real

TASKS, WAYS, SHOTS, STEPS = 3, 3, 2, 2


def taskset(l2l: Any, num_tasks: int = TASKS, samples: int = 2 * SHOTS, fused: bool = True) -> Any:
    dataset = l2l.data.MetaDataset(glyphs("train"))
    steps = l2l.data.transforms
    first = (
        [steps.FusedNWaysKShots(dataset, n=WAYS, k=samples)] if fused else [steps.NWays(dataset, n=WAYS), steps.KShots(dataset, k=samples)]
    )
    task_transforms = [*first, steps.LoadData(dataset), steps.RemapLabels(dataset), steps.ConsecutiveLabels(dataset)]
    return l2l.data.Taskset(dataset, task_transforms, num_tasks=num_tasks)


def network(l2l: Any) -> nn.Module:
    torch.manual_seed(0)
    return l2l.vision.models.OmniglotCNN(WAYS, hidden_size=6).double()


def script_gradients(maml: nn.Module, tasks: Any, body: nn.Module | None = None) -> Tensor:
    """The meta-gradient of the mean query loss, by the loop of learn2learn's examples."""
    for i in range(TASKS):
        data, labels = tasks[i]
        data = data.double() if body is None else body(data.double())
        support = torch.zeros(len(data), dtype=torch.bool)
        support[torch.arange(SHOTS * WAYS) * 2] = True
        learner = maml.clone()
        for _ in range(STEPS):
            learner.adapt(F.cross_entropy(learner(data[support]), labels[support]))
        (F.cross_entropy(learner(data[~support]), labels[~support]) / TASKS).backward()
    trained = maml if body is None else nn.ModuleList([body, maml])
    return torch.cat([parameter.grad.flatten() for parameter in trained.parameters()])


def by_name_of(model: nn.Module, flat: Tensor) -> dict[str, Tensor]:
    parts = flat.split([parameter.numel() for parameter in model.parameters()])
    return {name: part.view_as(parameter) for (name, parameter), part in zip(model.named_parameters(), parts, strict=True)}


@pytest.fixture(autouse=True)
def _draws_in_turn() -> None:
    random.seed(0)


@pytest.mark.parametrize("first_order", [False, True])
def test_meta_gradients_are_those_of_the_real_maml(first_order: bool, two_threads: None) -> None:
    tasks = taskset(real)
    theirs = real.algorithms.MAML(network(real), lr=0.4, first_order=first_order)
    compat = copy_weights(theirs, ours.algorithms.MAML(network(ours), lr=0.4, first_order=first_order))
    learners = {
        way: copy_weights(
            theirs,
            ml.MAML(Conv4(WAYS, hidden=6, pool=False).double(), lr=0.4, steps=STEPS, first_order=first_order, execution=way),
        )
        for way in WAYS_TO_RUN
    }
    expected = script_gradients(theirs, tasks)
    assert expected.abs().max() > 0.1
    assert (script_gradients(compat, tasks) - expected).abs().max() < 1e-10
    wanted = network(real)
    for parameter, gradient in zip(wanted.parameters(), by_name_of(wanted, expected).values(), strict=True):
        parameter.data.copy_(gradient)
    wanted = copy_weights(wanted, Conv4(WAYS, hidden=6, pool=False).double())  # gradients in the order of Conv4's parameters
    episodes = from_learn2learn(tasks, WAYS, SHOTS, SHOTS)
    stacked = ml.episodes.stack(episodes[i] for i in range(TASKS)).to(torch.float64)
    for way, learner in learners.items():
        ml.meta_backward(learner, stacked)
        difference = gradients(learner) - nn.utils.parameters_to_vector(wanted.parameters())
        assert difference.abs().max() < 1e-10, way


def test_running_statistics_and_weights_after_training_are_those_of_the_real_one() -> None:
    tasks = taskset(real)
    trained = []
    start = network(real)
    for l2l in (real, ours):
        model = network(l2l)
        model.load_state_dict(start.state_dict())
        maml = l2l.algorithms.MAML(model, lr=0.4)
        optimizer = torch.optim.SGD(maml.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            script_gradients(maml, tasks)
            optimizer.step()
        trained.append(maml.state_dict())
    for (name, a), (other, b) in zip(trained[0].items(), trained[1].items(), strict=True):
        assert name == other
        assert torch.allclose(a, b, rtol=0, atol=1e-10), name


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
@pytest.mark.parametrize("first_order", [False, True])
def test_meta_sgd_gradients_are_those_of_the_real_one(first_order: bool) -> None:
    torch.manual_seed(0)
    tasks, found = taskset(real), []
    start = real.algorithms.MetaSGD(real.vision.models.OmniglotFC(784, WAYS, sizes=[8, 6]).double(), lr=0.3, first_order=first_order)
    for l2l in (real, ours):  # a network that uses each module once: the real one does not adapt the others with these rates
        maml = l2l.algorithms.MetaSGD(l2l.vision.models.OmniglotFC(784, WAYS, sizes=[8, 6]).double(), lr=0.1, first_order=first_order)
        found.append(script_gradients(copy_weights(start, maml), tasks))
    assert found[0].abs().max() > 1e-3
    assert (found[1] - found[0]).abs().max() < 1e-10


def test_anil_gradients_are_those_of_the_real_one() -> None:
    tasks, found = taskset(real), []
    start = network(real)
    for l2l in (real, ours):
        model = network(l2l)
        model.load_state_dict(start.state_dict())
        found.append(script_gradients(l2l.algorithms.MAML(model.classifier, lr=0.1), tasks, model.features))
    assert (found[1] - found[0]).abs().max() < 1e-10


@pytest.mark.parametrize(
    ("name", "arguments", "shape"),
    [("OmniglotCNN", (5,), (1, 28, 28)), ("OmniglotFC", (784, 5), (1, 28, 28)), ("MiniImagenetCNN", (5,), (3, 84, 84))],
)
def test_models_have_the_names_shapes_and_outputs_of_the_real_ones(name: str, arguments: tuple[int, ...], shape: tuple[int, ...]) -> None:
    theirs, mine = (getattr(l2l.vision.models, name)(*arguments).double() for l2l in (real, ours))
    assert [(n, t.shape) for n, t in theirs.state_dict().items()] == [(n, t.shape) for n, t in mine.state_dict().items()]
    assert [n for n, _ in theirs.named_parameters()] == [n for n, _ in mine.named_parameters()]
    images = torch.rand(4, *shape, dtype=torch.float64)
    mine.load_state_dict(theirs.state_dict())
    assert torch.allclose(mine(images), theirs(images), rtol=0, atol=1e-10)
    assert torch.allclose(mine.eval()(images), theirs.eval()(images), rtol=0, atol=1e-10)
    theirs.load_state_dict(getattr(ours.vision.models, name)(*arguments).state_dict())


@pytest.mark.parametrize("fused", [True, False])
def test_the_same_seed_draws_the_same_tasks(fused: bool) -> None:
    drawn = []
    for l2l in (real, ours):
        random.seed(3)
        tasks = taskset(l2l, num_tasks=5, fused=fused)
        drawn.append([tasks.sample() for _ in range(8)])
    for (data, labels), (mine, numbers) in zip(*drawn, strict=True):
        assert torch.equal(data, mine) and torch.equal(labels, numbers)


@pytest.mark.parametrize("queries", [SHOTS, 3])
def test_tasks_are_split_as_the_real_partition(queries: int) -> None:
    tasks = taskset(real, samples=SHOTS + queries)
    support, query = from_learn2learn(tasks, WAYS, SHOTS, queries, split="first")[1]
    (data, labels), (rest, answers) = real.data.partition_task(*tasks[1], shots=SHOTS)
    assert all(map(torch.equal, (*support, *query), (data, labels, rest, answers)))


def test_our_episodes_come_back_through_the_real_partition() -> None:
    episodes = FewShot(glyphs("train"), ways=WAYS, shots=1, queries=4, tasks=2)
    (data, labels), (rest, answers) = real.data.partition_task(*to_learn2learn(episodes)[1], shots=1)
    assert all(map(torch.equal, (data, labels, rest, answers), (*episodes[1].support, *episodes[1].query)))


def test_deprecated_task_datasets_are_read_too() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = real.data.MetaDataset(glyphs("train"))
        steps = [real.data.transforms.FusedNWaysKShots(dataset, n=WAYS, k=2), real.data.transforms.LoadData(dataset)]
        tasks = real.data.TaskDataset(dataset, steps, num_tasks=4)
    episodes = from_learn2learn(tasks, WAYS, 1, 1)
    learner = ml.ANIL(Conv4(WAYS, hidden=4), lr=0.1)
    assert len(ml.evaluate(learner, episodes).per_episode) == 4
    assert torch.equal(episodes[2].support.inputs, episodes[2].support.inputs)


def test_low_level_names_do_what_the_real_ones_do() -> None:
    results = []
    for l2l in (real, ours):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
        clone = l2l.clone_module(net)
        loss = clone(torch.ones(2, 3).double()).square().sum()
        grads = torch.autograd.grad(loss, clone.parameters(), create_graph=True)
        l2l.update_module(clone, updates=[-0.1 * g for g in grads])
        (l2l.magic_box(loss) * clone(torch.ones(2, 3).double()).sum()).backward()
        results.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    assert torch.allclose(*results, rtol=0, atol=1e-12)
