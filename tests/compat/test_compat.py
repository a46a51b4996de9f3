"""learn2learn's names on our engine: what scripts rely on, without the real library
(test_learn2learn.py compares with it).
"""

from __future__ import annotations

import gc
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import metalearn as ml
import metalearn.compat.learn2learn as l2l
from metalearn.compat import copy_weights, from_learn2learn, to_learn2learn
from metalearn.data.images import LabelledImages
from metalearn.episodes import Episode
from metalearn.models import Conv4
from metalearn.tasks import FewShot, glyphs
from tests.helpers import gradients, made_up_tasks, outer_loss, smooth_network


def small_images(
    classes: int = 6, each: int = 4, channels: int = 1, size: int = 28
) -> LabelledImages:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(
        256, (classes * each, channels, size, size), dtype=torch.uint8, generator=generator
    )
    return LabelledImages(images, torch.arange(classes).repeat_interleave(each))


def numbered_taskset(
    ways: int, samples: int, num_tasks: int = 20, consecutive: bool = True
) -> l2l.data.Taskset:
    """Tasks whose inputs tell class and example: 100 * class + example."""
    inputs = torch.arange(8)[:, None] * 100 + torch.arange(10)
    dataset = l2l.data.MetaDataset(
        torch.utils.data.TensorDataset(
            inputs.reshape(-1, 1).float(), torch.arange(8).repeat_interleave(10)
        )
    )
    steps = [
        l2l.data.transforms.NWays(dataset, n=ways),
        l2l.data.transforms.KShots(dataset, k=samples),
        l2l.data.transforms.LoadData(dataset),
        l2l.data.transforms.RemapLabels(dataset),
    ]
    if consecutive:
        steps.append(l2l.data.transforms.ConsecutiveLabels(dataset))
    return l2l.data.Taskset(dataset, steps, num_tasks=num_tasks)


def even_and_odd(data: Tensor, labels: Tensor, shots: int, ways: int) -> tuple[Tensor, ...]:
    """The split that learn2learn's examples make."""
    chosen = np.zeros(len(data), dtype=bool)
    chosen[np.arange(shots * ways) * 2] = True
    support, query = torch.from_numpy(chosen), torch.from_numpy(~chosen)
    return data[support], labels[support], data[query], labels[query]


def script_loss(maml: nn.Module, episodes: Episode, steps: int) -> Tensor:
    """The mean query loss, as a learn2learn script computes it."""
    losses = []
    for task in zip(*episodes.support, *episodes.query, strict=True):
        learner = maml.clone()
        for _ in range(steps):
            learner.adapt(F.cross_entropy(learner(task[0]), task[1]))
        losses.append(F.cross_entropy(learner(task[2]), task[3]))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("execution", ["loop", "threads", "vectorized"])
def test_maml_has_the_gradients_of_ours(
    first_order: bool, execution: str, two_threads: None
) -> None:
    episodes = made_up_tasks()
    ours = ml.MAML(
        smooth_network("none"), lr=0.4, steps=2, first_order=first_order, execution=execution
    )
    ml.meta_backward(ours, episodes)
    theirs = l2l.algorithms.MAML(smooth_network("none"), lr=0.4, first_order=first_order)
    script_loss(theirs, episodes, steps=2).backward()
    assert torch.allclose(
        torch.cat([p.grad.flatten() for p in theirs.parameters()]),
        gradients(ours),
        rtol=0,
        atol=1e-10,
    )


def test_meta_sgd_has_the_gradients_of_ours() -> None:
    episodes = made_up_tasks()
    ours, theirs = (
        ml.MetaSGD(smooth_network(), lr=0.3, steps=2),
        l2l.algorithms.MetaSGD(smooth_network(), lr=0.3),
    )
    outer_loss(ours, episodes).backward()
    script_loss(theirs, episodes, steps=2).backward()
    names = [name for name, _ in ours.model.named_parameters()]
    for name, parameter, rate in zip(names, theirs.module.parameters(), theirs.lrs, strict=True):
        assert torch.allclose(
            parameter.grad, ours.model.get_parameter(name).grad, rtol=0, atol=1e-10
        )
        assert torch.allclose(
            rate.grad, ours.learned_rates[name.replace(".", "/")].grad, rtol=0, atol=1e-10
        )


def test_anil_as_a_body_and_a_maml_on_the_head_has_the_gradients_of_ours() -> None:
    episodes = made_up_tasks()
    ours = ml.ANIL(smooth_network("none"), lr=0.4, steps=3)
    outer_loss(ours, episodes).backward()
    model = smooth_network("none")
    body, head = model[:-1], l2l.algorithms.MAML(model[-1], lr=0.4)
    losses = []
    for task in zip(*episodes.support, *episodes.query, strict=True):
        learner, support, query = head.clone(), body(task[0]), body(task[2])
        for _ in range(3):
            learner.adapt(F.cross_entropy(learner(support), task[1]))
        losses.append(F.cross_entropy(learner(query), task[3]))
    torch.stack(losses).mean().backward()
    assert torch.allclose(
        torch.cat([p.grad.flatten() for p in model.parameters()]),
        gradients(ours),
        rtol=0,
        atol=1e-10,
    )


def test_the_loop_of_the_readme_trains() -> None:
    torch.manual_seed(0)
    inputs, targets = torch.rand(20, 3), torch.rand(20, 1)

    def compute_loss(model: nn.Module) -> Tensor:
        return F.mse_loss(model(inputs), targets)

    maml = l2l.algorithms.MAML(nn.Linear(3, 1), lr=0.1)
    opt = torch.optim.SGD(maml.parameters(), lr=0.1)
    seen = []
    for _ in range(10):
        opt.zero_grad()
        task_model = maml.clone()
        task_model.adapt(compute_loss(task_model))
        evaluation_loss = compute_loss(task_model)
        evaluation_loss.backward()
        opt.step()
        seen.append(evaluation_loss.item())
    assert seen[-1] < seen[0]


def test_a_learner_forwards_attributes_and_state() -> None:
    maml = l2l.algorithms.MAML(l2l.vision.models.OmniglotFC(4, 2, sizes=[3]), lr=0.1)
    assert maml.classifier is maml.module.classifier
    assert maml.input_size == 4
    assert all(name.startswith("module.") for name in maml.state_dict())
    with pytest.raises(AttributeError, match="no_such_layer"):
        maml.no_such_layer  # noqa: B018


def test_clones_keep_shared_modules_and_tied_weights_together() -> None:
    shared = nn.Linear(3, 3)
    model = nn.ModuleDict({"a": shared, "b": shared, "c": nn.Linear(3, 3)})
    model["c"].weight = shared.weight
    clone = l2l.clone_module(model)
    assert clone["a"] is clone["b"] is not shared
    assert clone["c"].weight is clone["a"].weight
    l2l.update_module(clone, [torch.ones_like(p) for p in clone.parameters()])
    assert torch.equal(clone["c"].weight, shared.weight + 1)
    assert clone["c"].weight is clone["b"].weight
    assert model["a"].weight is shared.weight and isinstance(shared.weight, nn.Parameter)


def test_running_statistics_are_updated_in_the_one_network() -> None:
    torch.manual_seed(0)
    plain, wrapped = (l2l.vision.models.OmniglotCNN(2, hidden_size=4) for _ in range(2))
    wrapped.load_state_dict(plain.state_dict())
    images = torch.rand(6, 1, 28, 28)
    plain(images)
    l2l.algorithms.MAML(wrapped, lr=0.1).clone()(images)
    torch.testing.assert_close(
        wrapped.base[0].normalize.running_mean, plain.base[0].normalize.running_mean
    )
    assert wrapped.base[3].normalize.num_batches_tracked == 1


def test_update_module_takes_the_update_attributes_once() -> None:
    clone = l2l.clone_module(nn.Linear(2, 1))
    before = clone.weight.clone()
    clone.weight.update = torch.ones(1, 2)
    l2l.update_module(l2l.update_module(clone))
    assert torch.equal(clone.weight, before + 1)
    with pytest.raises(ValueError, match="1 updates for 2 parameters"):
        l2l.update_module(clone, [torch.ones(1, 2)])


def test_detached_clones_have_no_history() -> None:
    net = nn.Linear(2, 1)
    for keep in (False, True):
        clone = l2l.clone_module(net)
        l2l.detach_module(clone, keep_requires_grad=keep)
        assert all(p.grad_fn is None and p.requires_grad == keep for p in clone.parameters())
    clone(torch.ones(1, 2)).sum().backward()
    assert net.weight.grad is None and clone.weight.grad is not None


def test_recurrent_networks_adapt() -> None:
    torch.manual_seed(0)
    maml = l2l.algorithms.MAML(nn.GRU(2, 3), lr=0.01)
    inputs = torch.rand(4, 1, 2)
    learner = maml.clone()
    before = learner(inputs)[0].square().sum()
    learner.adapt(before)
    after = learner(inputs)[0].square().sum()
    after.backward()
    assert after < before and maml.weight_hh_l0.grad.abs().sum() > 0


def test_attention_is_differentiated_twice() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    maml = l2l.algorithms.MAML(layer, lr=0.1)
    learner = maml.clone()
    learner.adapt(learner(torch.rand(2, 3, 8)).square().mean())
    learner(torch.rand(2, 3, 8)).square().mean().backward()
    assert all(p.grad is not None for p in layer.parameters())


def test_magic_box_is_one_with_the_gradient_of_its_argument() -> None:
    x = torch.tensor(3.0, requires_grad=True)
    box = l2l.magic_box(2 * x)
    box.backward()
    assert box.item() == 1 and x.grad.item() == 2 and l2l.magic_box("x") == "x"


def test_unused_and_frozen_parameters_are_named_or_left_alone() -> None:
    model = nn.ModuleDict({"used": nn.Linear(2, 1), "spare": nn.Linear(2, 1)})
    learner = l2l.algorithms.MAML(model, lr=0.1).clone()
    with pytest.raises(RuntimeError, match=r"spare\.weight \(and 1 more\).*allow_unused=True"):
        learner.adapt(learner.module["used"](torch.ones(1, 2)).sum())
    old = learner.module["spare"].weight
    learner.adapt(learner.module["used"](torch.ones(1, 2)).sum(), allow_unused=True)
    assert learner.module["spare"].weight is old
    model["used"].bias.requires_grad_(False)
    learner = l2l.algorithms.MAML(model["used"], lr=0.1).clone()
    with pytest.raises(RuntimeError, match=r"bias.*allow_nograd=True"):
        learner.adapt(learner(torch.ones(1, 2)).sum())
    learner.adapt(learner(torch.ones(1, 2)).sum(), allow_nograd=True)
    assert torch.equal(learner.bias, model["used"].bias)


def test_memory_does_not_grow_over_hundreds_of_adaptations() -> None:
    maml = l2l.algorithms.MAML(l2l.vision.models.OmniglotFC(8, 2, sizes=[4]), lr=0.1)
    inputs, labels = torch.rand(4, 8), torch.tensor([0, 1, 0, 1])

    def adapt(times: int) -> None:
        for _ in range(times):
            learner = maml.clone()
            for _ in range(2):
                learner.adapt(F.cross_entropy(learner(inputs), labels))
            F.cross_entropy(learner(inputs), labels).backward()

    def tensors() -> int:
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    adapt(2)
    gc.collect()
    gc.disable()  # what only the collector of cycles would free counts as growth
    try:
        before = tensors()
        adapt(250)
        assert tensors() <= before
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("module", "asked", "nearest"),
    [
        (l2l, "clone_modules", "clone_module"),
        (l2l, "optims", "optim"),
        (l2l.algorithms, "MAMLpp", "MAML"),
        (l2l.utils, "detach_modul", "detach_module"),
        (l2l.nn, "Flaten", "Flatten"),
        (l2l.data, "MetaDatset", "MetaDataset"),
        (l2l.data.transforms, "NWay", "NWays"),
        (l2l.vision, "model", "models"),
        (l2l.vision.models, "ResNet18", "ResNet12"),
        (l2l.vision.datasets, "FC10", "FC100"),
        (l2l.vision.benchmarks, "get_taskset", "get_tasksets"),
        (l2l.vision.transforms, "RandomRotation", "RandomClassRotation"),
    ],
)
def test_a_name_that_is_not_offered_is_named_with_the_nearest(
    module: object, asked: str, nearest: str
) -> None:
    with pytest.raises(AttributeError, match=f"no '{asked}'.*{nearest}"):
        getattr(module, asked)
    assert not hasattr(module, asked)


def test_importing_a_name_that_is_not_offered_names_the_nearest() -> None:
    with pytest.raises(ImportError, match=r"no 'MetaSGDs'; the nearest name is 'MetaSGD'"):
        from metalearn.compat.learn2learn.algorithms import MetaSGDs  # noqa: F401
    with pytest.raises(ValueError, match="nearest is 'mini-imagenet'"):
        l2l.vision.benchmarks.get_tasksets("mini_imagenet")


def test_tasks_repeat_and_hold_what_the_transforms_say() -> None:
    taskset = numbered_taskset(ways=3, samples=4)
    data, labels = taskset[5]
    assert torch.equal(data, taskset[5][0])
    classes = (data[:, 0] // 100).long()
    assert classes.tolist() == sorted(classes.tolist()) and len(set(classes.tolist())) == 3
    assert data.unique().numel() == 12
    assert sorted(labels.tolist()) == [0] * 4 + [1] * 4 + [2] * 4
    assert len({(c, n) for c, n in zip(classes.tolist(), labels.tolist(), strict=True)}) == 3
    with pytest.raises(IndexError, match="task 20"):
        taskset[20]
    assert len(list(taskset)) == 20


def test_filtered_data_sets_keep_their_labels() -> None:
    dataset = l2l.data.MetaDataset(small_images())
    filtered = l2l.data.FilteredMetaDataset(dataset, [4, 1])
    assert len(filtered) == 8 and filtered.labels == [4, 1]
    assert all(filtered[i][1] == filtered.indices_to_labels[i] for i in range(8))
    tasks = l2l.data.Taskset(
        filtered,
        [
            l2l.data.transforms.FusedNWaysKShots(filtered, n=2, k=2),
            l2l.data.transforms.LoadData(filtered),
        ],
        num_tasks=3,
    )
    assert set(tasks.sample()[1].tolist()) == {1, 4}


@pytest.mark.parametrize("steps", ["NWays", "FusedNWaysKShots"])
def test_too_many_ways_or_shots_are_refused(steps: str) -> None:
    dataset = l2l.data.MetaDataset(small_images())
    with pytest.raises(ValueError, match="6 labels but n=7"):
        getattr(l2l.data.transforms, steps)(dataset, n=7)(None)
    with pytest.raises(ValueError, match="has 4 examples but k=5"):
        l2l.data.transforms.FusedNWaysKShots(dataset, n=2, k=5)(None)


def test_classes_are_turned_one_by_one() -> None:
    images = small_images()
    dataset = l2l.data.MetaDataset(images)
    steps = [
        l2l.data.transforms.FusedNWaysKShots(dataset, n=6, k=4),
        l2l.data.transforms.LoadData(dataset),
        l2l.vision.transforms.RandomClassRotation(dataset, [0.0, 90.0, 180.0, 270.0]),
    ]
    random.seed(1)
    data, labels = l2l.data.Taskset(dataset, steps, num_tasks=1)[0]
    turned = {}
    for label in range(6):
        originals = {images[i][0].numpy().tobytes() for i in range(4 * label, 4 * label + 4)}
        found = [
            k
            for k in range(4)
            if {torch.rot90(x, -k, (-2, -1)).numpy().tobytes() for x in data[labels == label]}
            == originals
        ]
        assert len(found) == 1
        turned[label] = found[0]
    assert len(set(turned.values())) > 1


@pytest.mark.parametrize(("shots", "ways"), [(1, 5), (3, 4)])
def test_a_taskset_gives_the_even_and_odd_examples_of_its_scripts(shots: int, ways: int) -> None:
    taskset = numbered_taskset(ways, 2 * shots)
    for index in range(3):
        support, support_labels, query, query_labels = even_and_odd(*taskset[index], shots, ways)
        ours = from_learn2learn(taskset, ways, shots, shots)[index]
        assert set(
            zip(ours.support.inputs[:, 0].tolist(), ours.support.targets.tolist(), strict=True)
        ) == set(zip(support[:, 0].tolist(), support_labels.tolist(), strict=True))
        assert set(
            zip(ours.query.inputs[:, 0].tolist(), ours.query.targets.tolist(), strict=True)
        ) == set(zip(query[:, 0].tolist(), query_labels.tolist(), strict=True))
        assert ours.support.targets.tolist() == sorted(ours.support.targets.tolist())


def test_a_taskset_with_more_queries_gives_the_first_shots_as_partition_task_does() -> None:
    taskset = numbered_taskset(ways=3, samples=7, consecutive=False)
    support, query = from_learn2learn(taskset, ways=3, shots=2, queries=5)[4]
    (data, labels), (rest, answers) = l2l.data.partition_task(*taskset[4], shots=2)
    assert torch.equal(support.inputs, data) and torch.equal(support.targets, labels)
    assert torch.equal(query.inputs, rest) and torch.equal(query.targets, answers)


def test_tasks_without_end_repeat_by_seed_and_leave_random_alone() -> None:
    taskset = numbered_taskset(ways=3, samples=2, num_tasks=-1)
    with pytest.raises(ValueError, match="tasks="):
        from_learn2learn(taskset, 3, 1, 1)
    state = random.getstate()
    episodes = from_learn2learn(taskset, 3, 1, 1, tasks=50, seed=1)
    first = [episodes[i].support.inputs for i in range(5)]
    assert random.getstate() == state
    assert all(torch.equal(episodes[i].support.inputs, first[i]) for i in (4, 2, 0))
    assert not all(torch.equal(a, first[0]) for a in first[1:])
    other = from_learn2learn(taskset, 3, 1, 1, tasks=50, seed=2)
    assert not all(torch.equal(other[i].support.inputs, first[i]) for i in range(5))


def test_labels_that_were_not_remapped_are_numbered() -> None:
    data = [(torch.arange(4.0)[:, None], torch.tensor([7, 3, 7, 3]))]
    support, query = from_learn2learn(data, ways=2, shots=1, queries=1)[0]
    assert support.inputs.flatten().tolist() == [0, 1] and query.inputs.flatten().tolist() == [2, 3]
    assert support.targets.tolist() == query.targets.tolist() == [0, 1]


def test_tasksets_that_do_not_fit_are_refused() -> None:
    taskset = numbered_taskset(ways=3, samples=4)
    with pytest.raises(ValueError, match="has 3 classes but ways=5"):
        from_learn2learn(taskset, 5, 1, 1)[0]
    with pytest.raises(ValueError, match=r"has 4 examples but shots=2 and queries=3 need 5.*k=5"):
        from_learn2learn(taskset, 3, 2, 3)[0]
    with pytest.raises(ValueError, match="has 20 tasks"):
        from_learn2learn(taskset, 3, 1, 1, tasks=21)
    with pytest.raises(ValueError, match="use split='first'"):
        from_learn2learn(taskset, 3, 1, 2, split="alternating")
    with pytest.raises(ValueError, match="split='odd' is not one of alternating, first"):
        to_learn2learn([], split="odd")
    with pytest.raises(ValueError, match=r"\[1, 2\] examples"):
        l2l.data.partition_task(torch.rand(3, 1), torch.tensor([0, 1, 1]))


def test_our_episodes_are_split_right_by_their_loops() -> None:
    episodes = FewShot(small_images(), ways=3, shots=2, queries=2, tasks=4)
    tasks = to_learn2learn(episodes)
    for theirs, ours in zip(tasks, [episodes[i] for i in range(4)], strict=True):
        assert all(
            map(torch.equal, even_and_odd(*theirs, shots=2, ways=3), (*ours.support, *ours.query))
        )
    assert tasks.sample()[0].shape == (12, 1, 28, 28)
    uneven = FewShot(small_images(), ways=3, shots=1, queries=3, tasks=4)
    (data, labels), (rest, answers) = l2l.data.partition_task(*to_learn2learn(uneven)[2], shots=1)
    assert all(
        map(torch.equal, (data, labels, rest, answers), (*uneven[2].support, *uneven[2].query))
    )


@pytest.mark.parametrize("queries", [1, 3])
def test_tasks_survive_the_way_there_and_back(queries: int) -> None:
    episodes = FewShot(small_images(), ways=3, shots=1, queries=queries, tasks=4)
    back = from_learn2learn(to_learn2learn(episodes), 3, 1, queries)
    assert len(back) == 4
    for i in range(4):
        assert all(
            map(
                torch.equal,
                (*back[i].support, *back[i].query),
                (*episodes[i].support, *episodes[i].query),
            )
        )


def test_a_taskset_is_evaluated_and_trained_on() -> None:
    dataset = l2l.data.MetaDataset(glyphs("train"))
    steps = [
        l2l.data.transforms.FusedNWaysKShots(dataset, n=3, k=2),
        l2l.data.transforms.LoadData(dataset),
        l2l.data.transforms.RemapLabels(dataset),
        l2l.data.transforms.ConsecutiveLabels(dataset),
    ]
    episodes = from_learn2learn(l2l.data.Taskset(dataset, steps), 3, 1, 1, tasks=4)
    learner = ml.ANIL(Conv4(3, hidden=4), lr=0.1, execution="loop")
    ml.meta_train(learner, episodes, steps=1, meta_batch=2, progress=False)
    result = ml.evaluate(learner, episodes)
    assert len(result.per_episode) == 4
    assert result.to_dict()["episodes"]["data"] == {"source": "learn2learn LabelledImages"}


@pytest.mark.parametrize("network", ["OmniglotCNN", "MiniImagenetCNN"])
def test_weights_go_to_conv4_and_back_as_the_same_function(network: str) -> None:
    torch.manual_seed(0)
    if network == "OmniglotCNN":
        theirs, ours = (
            l2l.vision.models.OmniglotCNN(3, hidden_size=4),
            Conv4(3, hidden=4, pool=False),
        )
        images = torch.rand(5, 1, 28, 28)
    else:
        theirs, ours = (
            l2l.vision.models.MiniImagenetCNN(3, hidden_size=4),
            Conv4(3, channels=3, hidden=4, size=84),
        )
        images = torch.rand(5, 3, 84, 84)
    images = images.double()  # single precision depends on the kernels that torch picks
    maml = l2l.algorithms.MAML(theirs.double(), lr=0.5)
    learner = copy_weights(maml, ml.MAML(ours.double(), lr=0.5))
    assert torch.allclose(learner.model(images), maml(images), atol=1e-10)
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(torch.randn_like(parameter))
    statistics = maml.state_dict()
    copy_weights(learner, maml)
    assert torch.allclose(learner.model(images), maml(images), atol=1e-10)
    kept = [name for name in statistics if "running" in name]
    assert kept and all(name in maml.state_dict() for name in kept)


def test_weights_and_rates_of_meta_sgd_go_both_ways(tmp_path: Path) -> None:
    theirs = l2l.algorithms.MetaSGD(smooth_network(), lr=0.1)
    with torch.no_grad():
        for number, rate in enumerate(theirs.lrs):
            rate.fill_(number)
    torch.save(theirs.state_dict(), tmp_path / "weights.pt")
    ours = copy_weights(
        torch.load(tmp_path / "weights.pt", weights_only=True), ml.MetaSGD(smooth_network(), lr=0.5)
    )
    assert [rate.flatten()[0].item() for rate in ours.current_rates().values()] == [
        *range(len(theirs.lrs))
    ]
    back = copy_weights(ours, l2l.algorithms.MetaSGD(smooth_network("batch", ways=3), lr=0.9))
    assert all(map(torch.equal, back.state_dict().values(), theirs.state_dict().values()))


def test_a_rate_of_tied_weights_has_the_place_of_their_first_name() -> None:
    def tied() -> nn.Sequential:
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2), nn.Linear(2, 3), nn.Linear(3, 3))
        model[3].weight = model[0].weight
        return model

    source = l2l.algorithms.MetaSGD(tied(), lr=0.1)
    with torch.no_grad():
        for number, rate in enumerate(source.lrs):
            rate.fill_(number)
    target = copy_weights(source, ml.MetaSGD(tied(), lr=0.5))
    rates = target.current_rates()
    numbers = [rates[name].flatten()[0].item() for name, _ in target.model.named_parameters()]
    assert numbers == [*range(len(source.lrs))]


def test_weights_that_do_not_fit_are_refused_and_change_nothing() -> None:
    target = ml.MAML(Conv4(3, hidden=4), lr=0.1)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    for source, message in (
        (Conv4(4, hidden=4), r"head\.weight is \(4, 4\) in the source but \(3, 4\)"),
        (nn.Linear(2, 2), "the source has no block1"),
        (nn.Sequential(Conv4(3, hidden=4), nn.Linear(3, 3)), "the source has no block1"),
        (ml.MetaSGD(Conv4(3, hidden=4), lr=0.1), "the target has no rate of block1"),
    ):
        with pytest.raises(ValueError, match=message):
            copy_weights(source, target)
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())


def omniglot_folder(root: Path, characters: int = 30) -> Path:
    """A little Omniglot: 20 drawings a character, laid out as torchvision does."""
    rng = np.random.default_rng(0)
    for i in range(characters):
        part = "images_background" if i < characters // 2 else "images_evaluation"
        folder = root / "omniglot-py" / part / f"Alphabet{i // 5}" / f"character{i:02}"
        folder.mkdir(parents=True)
        for j in range(20):
            Image.fromarray(rng.integers(0, 2, (105, 105), dtype=np.uint8) * 255).convert("1").save(
                folder / f"{i:04}_{j:02}.png"
            )
    return root


def test_the_omniglot_and_anil_examples_run(tmp_path: Path) -> None:
    tasksets = l2l.vision.benchmarks.get_tasksets(
        "omniglot",
        train_ways=2,
        train_samples=2,
        test_ways=2,
        test_samples=2,
        num_tasks=10,
        root=str(omniglot_folder(tmp_path)),
    )
    model = l2l.vision.models.OmniglotCNN(2, hidden_size=4)
    maml = l2l.algorithms.MAML(model, lr=0.5, first_order=False)
    head = l2l.algorithms.MAML(model.classifier, lr=0.1)
    opt, loss = torch.optim.Adam(maml.parameters(), 0.003), nn.CrossEntropyLoss(reduction="mean")
    for learner, features in ((maml.clone(), lambda data: data), (head.clone(), model.features)):
        opt.zero_grad()
        data, labels = tasksets.train.sample()
        support, support_labels, query, query_labels = even_and_odd(
            features(data), labels, shots=1, ways=2
        )
        learner.adapt(loss(learner(support), support_labels))
        error = loss(learner(query), query_labels)
        error.backward()
        for p in maml.parameters():
            p.grad.data.mul_(1.0)
        opt.step()
        assert error.isfinite() and all(
            p.grad.abs().sum() > 0 for p in model.classifier.parameters()
        )
    assert [len(part.dataset.labels) for part in tasksets] == [20, 2, 8]
    assert set(tasksets.test.sample()[1].tolist()) == {0, 1}
    whole = l2l.vision.datasets.FullOmniglot(
        str(tmp_path), transform=lambda image: torch.from_numpy(np.array(image))
    )
    assert len(whole) == 600 and whole[599][1] == 29 and whole[0][0].shape == (105, 105)


def test_data_that_are_not_there_are_not_fetched_unasked(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no Omniglot"):
        l2l.vision.benchmarks.get_tasksets("omniglot", root=str(tmp_path), download=False)
    with pytest.raises(FileNotFoundError, match="no miniImageNet"):
        l2l.vision.benchmarks.get_tasksets("mini-imagenet", root=str(tmp_path))
