"""Names of learn2learn that its scripts use, without the real library (test_learn2learn.py compares
with it).
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import metalearn.compat.learn2learn as l2l
from metalearn.tasks import glyphs

SUBMODULES = {
    "algorithms.base_learner": ["BaseLearner"],
    "algorithms.gbml": ["GBML"],
    "algorithms.maml": ["MAML", "maml_update"],
    "algorithms.meta_sgd": ["MetaSGD", "meta_sgd_update"],
    "data.meta_dataset": ["MetaDataset", "UnionMetaDataset", "FilteredMetaDataset"],
    "data.samplers": ["TasksetSampler"],
    "data.task_dataset": ["Taskset", "TaskDataset", "DataDescription"],
    "data.utils": ["InfiniteIterator", "OnDeviceDataset", "partition_task"],
    "nn.kroneckers": ["KroneckerLinear", "KroneckerRNN", "KroneckerLSTM"],
    "nn.metalayers": ["MetaModule", "ParameterTransform"],
    "nn.misc": ["Flatten", "Lambda", "Scale", "freeze", "unfreeze"],
    "nn.protonet": ["PrototypicalClassifier", "compute_prototypes"],
    "optim.learnable_optimizer": ["LearnableOptimizer"],
    "optim.parameter_update": ["ParameterUpdate"],
    "optim.transforms": ["KroneckerTransform", "MetaCurvatureTransform", "ModuleTransform"],
    "optim.update_rules": ["DifferentiableSGD"],
    "vision.models.resnet12": ["ResNet12", "ResNet12Backbone"],
    "vision.models.wrn28": ["WRN28", "WRN28Backbone"],
}


@pytest.mark.parametrize("path", SUBMODULES)
def test_submodules_hold_the_names_that_scripts_import(path: str) -> None:
    module = importlib.import_module(f"metalearn.compat.learn2learn.{path}")
    assert all(hasattr(module, name) for name in SUBMODULES[path])


@pytest.mark.parametrize(
    ("path", "name", "instead"),
    [
        ("algorithms", "LightningMAML", "metalearn.meta_train"),
        ("algorithms", "LightningPrototypicalNetworks", "ProtoNet"),
        ("gym", "MetaEnv", "reinforcement learning is not covered"),
        ("gym", "envs", "inner_loop"),
        ("text", "datasets", "l2l.data.MetaDataset"),
        ("nn", "SVClassifier", "PrototypicalClassifier"),
        ("utils", "clone_distribution", "cloned module"),
        ("vision.benchmarks", "tiered_imagenet_tasksets", "image_folder"),
        ("vision.datasets", "TieredImagenet", "image_folder"),
        ("vision.datasets", "VGGFlower102", r"torchvision\.datasets\.Flowers102"),
        ("vision.datasets", "CUBirds200", "image_folder"),
    ],
)
def test_names_left_out_say_what_serves_instead(path: str, name: str, instead: str) -> None:
    full = f"metalearn.compat.learn2learn.{path}"
    module = importlib.import_module(full)
    with pytest.raises(AttributeError, match=f"no '{name}'.*{instead}"):
        getattr(module, name)
    with pytest.raises(ImportError, match=f"no '{name}'.*{instead}"):
        exec(f"from {full} import {name}")


def test_task_sets_left_out_say_what_serves_instead() -> None:
    with pytest.raises(ValueError, match=r"tiered-imagenet.*image_folder"):
        l2l.vision.benchmarks.get_tasksets("tiered-imagenet")
    with pytest.raises(ValueError, match=r"lee2019.*'normalize'"):
        l2l.vision.benchmarks.mini_imagenet_tasksets(data_augmentation="lee2019")


# The examples of learn2learn, in a script of our own: the same calls, made-up data.


class ConvNet(nn.Module):
    """A network of the kind that the MNIST example has: convolutions, then `view`."""

    def __init__(self, ways: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 16, 5)
        self.fc1 = nn.Linear(256, 64)
        self.fc2 = nn.Linear(64, ways)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc1(x.view(x.size(0), -1)))
        return F.log_softmax(self.fc2(x), dim=1)


def even_and_odd(data: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """Every other example for adaptation, the rest for evaluation."""
    chosen = np.zeros(len(data), dtype=bool)
    chosen[np.arange(len(data) // 2) * 2] = True
    support = torch.from_numpy(chosen)
    query = torch.from_numpy(~chosen)
    return data[support], labels[support], data[query], labels[query]


def test_a_script_like_meta_mnist_learns() -> None:
    torch.manual_seed(0)
    random.seed(0)
    digits = l2l.data.MetaDataset(glyphs("train", classes=10))
    steps = [
        l2l.data.transforms.NWays(digits, 5),
        l2l.data.transforms.KShots(digits, 2),
        l2l.data.transforms.LoadData(digits),
        l2l.data.transforms.RemapLabels(digits),
        l2l.data.transforms.ConsecutiveLabels(digits),
    ]
    tasks = l2l.data.TaskDataset(digits, task_transforms=steps, num_tasks=100)
    meta_model = l2l.algorithms.MAML(ConvNet(5), lr=0.05)
    optimizer = torch.optim.Adam(meta_model.parameters(), lr=0.005)
    loss = nn.NLLLoss(reduction="mean")
    errors = []
    for _ in range(9):
        total = torch.zeros(())
        for _ in range(4):
            learner = meta_model.clone()
            support, support_labels, query, query_labels = even_and_odd(*tasks.sample())
            for _ in range(2):
                learner.adapt(loss(learner(support), support_labels))
            total = total + loss(learner(query), query_labels) / 4
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        errors.append(total.item())
    assert sum(errors[-4:]) < sum(errors[:4])


@pytest.mark.parametrize("way", ["MAML", "GBML"])
def test_a_batch_beyond_the_faster_convolution_runs_through_view(way: str) -> None:
    model = ConvNet(5)
    if way == "MAML":
        learner = l2l.algorithms.MAML(model, lr=0.01)
    else:
        learner = l2l.algorithms.GBML(model, l2l.optim.MetaCurvatureTransform, lr=0.01)
    images = torch.rand(75, 1, 28, 28)
    clone = learner.clone()
    labels = torch.arange(5).repeat(15)
    clone.adapt(F.nll_loss(clone(images), labels))
    F.nll_loss(clone(images), labels).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_script_like_maml_sine_learns() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(1, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 1)
    )
    maml = l2l.algorithms.MAML(network, lr=0.01, first_order=False, allow_unused=True)
    optimizer = torch.optim.Adam(maml.parameters(), 0.005)
    errors = []
    for _ in range(24):
        total = torch.zeros(())
        for _ in range(2):
            learner = maml.clone()
            amplitude, phase = 0.1 + 4.9 * torch.rand(()), 3.1 * torch.rand(())
            x = 10 * torch.rand(20, 1) - 5
            y = amplitude * torch.sin(x + phase)
            learner.adapt(F.mse_loss(learner(x[:10]), y[:10]))
            total = total + F.mse_loss(learner(x[10:]), y[10:]) / 2
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        errors.append(total.item())
    assert sum(errors[-8:]) < sum(errors[:8])


class Hypergrad(nn.Module):
    """A rate for each value of a parameter, as the hypergradient example has."""

    def __init__(self, param: Tensor) -> None:
        super().__init__()
        self.lr = nn.Parameter(0.1 * torch.ones_like(param))

    def forward(self, grad: Tensor) -> Tensor:
        return self.lr * grad


def test_a_script_like_hypergrad_trains_the_rates() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    metaopt = l2l.optim.LearnableOptimizer(model, transform=Hypergrad, lr=1.0)
    opt = torch.optim.SGD(metaopt.parameters(), lr=0.01)
    inputs = torch.rand(16, 3)
    targets = inputs.sum(1, keepdim=True)
    errors = []
    for _ in range(20):
        metaopt.zero_grad()
        opt.zero_grad()
        error = F.mse_loss(model(inputs), targets)
        error.backward()
        opt.step()
        metaopt.step()
        errors.append(error.item())
    assert errors[-1] < 0.2 * errors[0]
    assert all((rate != 0.1).all() for rate in metaopt.parameters())


def test_the_hypergradient_is_minus_the_product_of_two_gradients() -> None:
    model = nn.Linear(1, 1, bias=False).double()
    start = model.weight.item()
    metaopt = l2l.optim.LearnableOptimizer(model, lambda p: l2l.nn.Scale(alpha=0.25).double())
    model.weight.square().sum().backward()  # gradient 2w
    metaopt.step()
    assert model.weight.item() == pytest.approx(start - 0.25 * 2 * start)
    model.weight.square().sum().backward()  # gradient 2w', which is -2w of the rate
    expected = 2 * model.weight.item() * -2 * start
    assert metaopt.transforms[0].alpha.grad.item() == pytest.approx(expected)


def test_parameters_without_a_transform_or_a_gradient_are_left_to_plain_descent() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    model[1].bias.requires_grad_(False)
    by_layer = l2l.optim.TransformDictionary({model[0]: lambda p: l2l.nn.Scale(alpha=0.0)})
    metaopt = l2l.optim.LearnableOptimizer(model, by_layer, lr=0.5)
    before = [parameter.clone() for parameter in model.parameters()]
    model(torch.ones(1, 2)).sum().backward()
    gradient = model[1].weight.grad.clone()
    metaopt.step()
    after = list(model.parameters())
    assert torch.equal(after[0], before[0]) and torch.equal(after[3], before[3])
    assert torch.allclose(after[2], before[2] - 0.5 * gradient)
    with pytest.raises(ValueError, match="no closure"):
        metaopt.step(lambda: None)


# GBML: identities with the algorithms that it generalises.


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def adapted_gradients(learner: nn.Module, steps: int = 2) -> list[Tensor]:
    torch.manual_seed(1)
    support, query = torch.rand(2, 6, 3, dtype=torch.float64)
    targets = torch.rand(6, 2, dtype=torch.float64)
    clone = learner.clone()
    for _ in range(steps):
        clone.adapt(F.mse_loss(clone(support), targets))
    F.mse_loss(clone(query), targets).backward()
    return [parameter.grad for parameter in learner.parameters()]


@pytest.mark.parametrize("first_order", [False, True])
def test_gbml_without_transforms_is_maml(first_order: bool) -> None:
    maml = l2l.algorithms.MAML(small_net(), lr=0.3, first_order=first_order)
    gbml = l2l.algorithms.GBML(small_net(), lambda p: None, lr=0.3, first_order=first_order)
    assert all(map(torch.equal, adapted_gradients(gbml), adapted_gradients(maml)))


@pytest.mark.parametrize("first_order", [False, True])
def test_gbml_that_scales_is_meta_sgd(first_order: bool) -> None:
    meta_sgd = l2l.algorithms.MetaSGD(small_net(), lr=0.25, first_order=first_order)

    def scale(parameter: Tensor) -> nn.Module:
        return l2l.nn.Scale(parameter.shape, alpha=0.25).double()

    gbml = l2l.algorithms.GBML(small_net(), scale, lr=1.0, first_order=first_order)
    expected = adapted_gradients(meta_sgd)
    for gradient, wanted in zip(adapted_gradients(gbml), expected, strict=True):
        assert torch.allclose(gradient, wanted, rtol=0, atol=1e-12)


TRANSFORMS: dict[str, Any] = {
    "metacurvature": l2l.optim.MetaCurvatureTransform,
    "kronecker": l2l.optim.KroneckerTransform(l2l.nn.KroneckerLinear),
    "scale": lambda p: l2l.nn.Scale(p.shape).double(),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_start_as_the_identity(name: str) -> None:
    maml = l2l.algorithms.MAML(small_net(), lr=0.3)
    gbml = l2l.algorithms.GBML(small_net(), TRANSFORMS[name], lr=0.3)
    expected = adapted_gradients(maml)
    for gradient, wanted in zip(adapted_gradients(gbml), expected, strict=False):
        assert torch.allclose(gradient, wanted, rtol=0, atol=1e-12)
    transforms = list(gbml.compute_update.parameters())
    assert transforms and all(p.grad.abs().sum() > 0 for p in transforms)


@pytest.mark.parametrize("first_order", [False, True])
def test_adapted_transforms_move_from_the_second_step_on(first_order: bool) -> None:
    options = {"lr": 0.3, "adapt_transform": True, "first_order": first_order}
    gbml = l2l.algorithms.GBML(small_net(), TRANSFORMS["scale"], **options)
    clone = gbml.clone()
    for step in range(2):
        clone.adapt(clone(torch.ones(1, 3).double()).square().sum())
        moved = [not torch.equal(p, torch.ones_like(p)) for p in clone.compute_update.parameters()]
        assert any(moved) == (step == 1)
    adapted_gradients(gbml, steps=3)
    assert all(p.grad is not None for p in gbml.parameters())


def test_meta_curvature_multiplies_each_axis() -> None:
    weight = torch.rand(3, 2, 2, 2, dtype=torch.float64)
    transform = l2l.optim.MetaCurvatureTransform(weight, lr=0.5)
    torch.manual_seed(0)
    for parameter in transform.parameters():
        nn.init.normal_(parameter)
    axes = transform.mc_in, transform.mc_f, transform.mc_out
    gradient = torch.rand_like(weight)
    matrix = torch.kron(torch.kron(axes[0], axes[2].T.contiguous()), axes[1])
    expected = 0.5 * (matrix @ gradient.flatten()).view_as(gradient)
    assert torch.allclose(transform(gradient), expected, rtol=0, atol=1e-12)


def test_parameters_that_a_transform_cannot_take_are_named() -> None:
    weight = nn.Conv1d(2, 3, 5).weight
    for transform in (TRANSFORMS["kronecker"], l2l.optim.MetaCurvatureTransform):
        with pytest.raises(NotImplementedError, match=r"\(3, 2, 5\).*TransformDictionary"):
            transform(weight)
    with pytest.raises(ValueError, match=r"nn.Module or None.*float"):
        l2l.optim.ParameterUpdate([weight], lambda p: 0.1)
    with pytest.raises(ValueError, match="not a str"):
        l2l.optim.TransformDictionary({"0.weight": nn.Identity})


@pytest.mark.parametrize("name", TRANSFORMS)
def test_recurrent_networks_train_with_hypergradients(name: str) -> None:
    torch.manual_seed(0)
    model = nn.LSTM(2, 3).double()
    metaopt = l2l.optim.LearnableOptimizer(model, TRANSFORMS[name], lr=0.1)
    errors = []
    for _ in range(5):
        metaopt.zero_grad()
        error = model(torch.ones(4, 1, 2).double())[0].square().sum()
        error.backward()
        metaopt.step()
        errors.append(error.item())
    assert errors == sorted(errors, reverse=True)
    assert all(p.grad is not None for p in metaopt.parameters())


def test_updates_of_frozen_and_unused_parameters() -> None:
    model = nn.Linear(2, 1)
    model.bias.requires_grad_(False)
    update = l2l.optim.ParameterUpdate(model.parameters(), lambda p: l2l.nn.Scale(alpha=2.0))
    with pytest.raises(RuntimeError, match="allow_nograd=True"):
        update(model(torch.ones(1, 2)).sum(), model.parameters())
    steps = update(model(torch.ones(1, 2)).sum(), model.parameters(), allow_nograd=True)
    assert steps[0].tolist() == [[2.0, 2.0]] and steps[1] is None
    with pytest.raises(ValueError, match=r"1 parameters.*made for 2"):
        update(model(torch.ones(1, 2)).sum(), [model.weight])


class HalfUsed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(2, 1)
        self.spare = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


@pytest.mark.parametrize("adapt_transform", [False, True])
def test_gbml_names_frozen_and_unused_parameters(adapt_transform: bool) -> None:
    def adapt(model: nn.Module, **options: bool) -> nn.Module:
        options["adapt_transform"] = adapt_transform
        clone = l2l.algorithms.GBML(model, TRANSFORMS["metacurvature"], lr=0.1, **options).clone()
        for _ in range(2):
            clone.adapt(clone(torch.ones(1, 2)).sum())
        return clone.module

    model = HalfUsed()
    with pytest.raises(RuntimeError, match=r"spare\.weight \(and 1 more\).*allow_unused=True"):
        adapt(model)
    assert torch.equal(adapt(model, allow_unused=True).spare.weight, model.spare.weight)
    model.used.bias.requires_grad_(False)
    with pytest.raises(RuntimeError, match=r"used\.bias.*allow_nograd=True"):
        adapt(model, allow_unused=True)
    adapted = adapt(model, allow_unused=True, allow_nograd=True)
    assert torch.equal(adapted.used.bias, model.used.bias)
    assert not torch.equal(adapted.used.weight, model.used.weight)


# nn


@pytest.mark.parametrize("psd", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_a_kronecker_layer_has_the_product_as_its_matrix(psd: bool, bias: bool) -> None:
    torch.manual_seed(0)
    layer = l2l.nn.KroneckerLinear(3, 2, bias=bias, psd=psd).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    left = layer.left.T @ layer.left if psd else layer.left
    right = layer.right.T @ layer.right if psd else layer.right
    vector = torch.rand(6, dtype=torch.float64)
    offset = layer.bias.T.flatten() if bias else 0
    expected = torch.kron(right.T.contiguous(), left) @ vector + offset
    assert torch.allclose(layer(vector), expected, rtol=0, atol=1e-12)
    matrix = vector.view(2, 3).T
    assert torch.allclose(layer(matrix), expected.view(2, 3).T, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match=r"\(\.\.\., 3, 2\).*\(2, 3\)"):
        layer(vector.view(2, 3))


def test_recurrent_kronecker_cells_keep_shapes() -> None:
    x = torch.rand(5, 2, 3)
    output, hidden = l2l.nn.KroneckerRNN(2, 3)(x, torch.zeros(5, 2, 3))
    assert torch.equal(output, hidden) and torch.allclose(hidden, x.tanh())
    h, (h_again, c) = l2l.nn.KroneckerLSTM(2, 3)(x, (x, x))
    assert h is h_again and h.shape == c.shape == x.shape


def test_freeze_and_unfreeze() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert l2l.nn.freeze(model) is model
    assert not any(p.requires_grad for p in model.parameters())
    assert l2l.nn.unfreeze(model) is model
    assert all(p.requires_grad for p in model.parameters())
    clone = l2l.clone_module(model)
    l2l.nn.freeze(clone)
    assert clone[0].weight.grad_fn is None and model[0].weight.requires_grad


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("normalize", [False, True])
def test_prototypes_classify_and_carry_gradients(distance: str, normalize: bool) -> None:
    torch.manual_seed(0)
    centres = 3 * torch.eye(4)[:3]
    labels = torch.tensor([9, 4, 7]).repeat(5)  # any labels, in any order
    support = (centres.repeat(5, 1) + 0.1 * torch.randn(15, 4)).requires_grad_()
    classifier = l2l.nn.PrototypicalClassifier(support, labels, distance, normalize)
    scores = classifier(centres + 0.1 * torch.randn(3, 4))
    assert scores.argmax(1).tolist() == [2, 0, 1]  # of the labels in order: 4, 7, 9
    scores[:, 0].sum().backward()
    assert support.grad.abs().sum() > 0
    with pytest.raises(ValueError, match=r"'manhattan'.*euclidean"):
        l2l.nn.PrototypicalClassifier(distance="manhattan")
    with pytest.raises(RuntimeError, match="fit_"):
        l2l.nn.PrototypicalClassifier()(support)


def scaled(layer: nn.Module) -> nn.Module:
    return l2l.nn.ParameterTransform(layer, lambda weight: l2l.nn.Scale(alpha=0.5))


def test_meta_modules_replace_freeze_and_give_back() -> None:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    net = nn.Sequential(inner, nn.Linear(3, 1))
    x = torch.rand(4, 3)
    before = net(x)
    meta = l2l.nn.MetaModule(net, {nn.Linear: scaled})
    halved = [0.5 * p for p in net.parameters() if not p.requires_grad]
    expected = F.linear(F.linear(x, *halved[:2]).relu(), *halved[2:])
    assert torch.allclose(meta(x), expected)
    assert len(list(meta.meta_parameters())) == 4
    meta(x).sum().backward()
    assert all(p.grad is not None for p in meta.meta_parameters())
    assert all(p.grad is None for p in net.parameters() if not p.requires_grad)
    assert torch.equal(meta.module()(x), before) and meta.module() is net
    assert isinstance(net[0][0], nn.Linear)


def test_meta_modules_adapt_in_maml_and_under_checkpointing() -> None:
    """Whatever runs again in the backward pass uses the transformed weights."""

    class Checkpointed(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(super().forward, x, use_reentrant=False)

    gradients = []
    for kind in (nn.Linear, Checkpointed):
        torch.manual_seed(0)
        net = nn.Sequential(kind(3, 3), nn.Tanh(), kind(3, 1)).double()
        meta = l2l.nn.MetaModule(net, {kind: scaled}, freeze_module=False).double()
        meta(torch.ones(2, 3).double()).square().sum().backward()
        gradients.append([p.grad for p in meta.parameters()])
    assert all(map(torch.allclose, *gradients))
    maml = l2l.algorithms.MAML(
        l2l.nn.MetaModule(nn.Linear(2, 1), {nn.Linear: scaled}), 0.1, allow_nograd=True
    )
    clone = maml.clone()
    clone.adapt(clone(torch.ones(1, 2)).square().sum())
    clone(torch.ones(1, 2)).square().sum().backward()
    assert all(p.grad is not None for p in maml.module.meta_parameters())


# data


def numbered(labels: list[int], first: int = 0) -> TensorDataset:
    inputs = first + torch.arange(float(len(labels)))
    return TensorDataset(inputs[:, None], torch.tensor(labels))


def test_unions_number_labels_anew() -> None:
    parts = [l2l.data.MetaDataset(numbered([5, 5, 3])), numbered([3, 9], first=10)]
    union = l2l.data.UnionMetaDataset(parts)
    assert union.labels == [0, 1, 2, 3]
    assert dict(union.labels_to_indices) == {0: [0, 1], 1: [2], 2: [3], 3: [4]}
    assert [(x.item(), label) for x, label in (union[i] for i in range(5))] == [
        *((0, 0), (1, 0), (2, 1), (10, 2), (11, 3)),
    ]
    kept = l2l.data.FilteredMetaDataset(union, [3, 0])
    assert [kept[i][0].item() for i in range(3)] == [11, 0, 1]
    with pytest.raises(IndexError):
        union[5]
    with pytest.raises(ValueError, match="at least one"):
        l2l.data.UnionMetaDataset([])


def test_data_on_a_device_and_loaders_without_end() -> None:
    data = l2l.data.OnDeviceDataset(numbered([0, 1, 1]), device="cpu", transform=lambda x: x + 1)
    assert [(x.item(), y.item()) for x, y in (data[i] for i in range(3))] == [
        (1, 0),
        (2, 1),
        (3, 1),
    ]
    assert l2l.data.MetaDataset(data).labels == [0, 1]
    endless = l2l.data.InfiniteIterator(DataLoader(data, batch_size=2))
    assert [len(next(endless)[0]) for _ in range(5)] == [2, 1, 2, 1, 2]
    with pytest.raises(ValueError, match="nothing to repeat"):
        next(l2l.data.InfiniteIterator([]))
    pictures = [(Image.new("L", (2, 2)), 0)]
    with pytest.raises(TypeError, match="ToTensor"):
        l2l.data.OnDeviceDataset(pictures)


def test_a_sampler_loads_the_tasks_of_a_taskset() -> None:
    dataset = l2l.data.MetaDataset(numbered([0] * 4 + [1] * 4 + [2] * 4))
    choose = l2l.data.transforms.FusedNWaysKShots(dataset, n=2, k=3)
    taskset = l2l.data.Taskset(dataset, choose, num_tasks=3)
    sampler = l2l.data.samplers.TasksetSampler(taskset, shuffle=False)
    batches = list(DataLoader(dataset, batch_sampler=sampler))
    assert len(batches) == len(sampler) == 3
    for number, (inputs, labels) in enumerate(batches):
        assert inputs.flatten().tolist() == [d.index for d in taskset.sampled_descriptions[number]]
        assert len(labels.unique()) == 2
    endless: Iterator[list[int]] = iter(
        l2l.data.samplers.TasksetSampler(l2l.data.Taskset(dataset, choose))
    )
    assert [len(next(endless)) for _ in range(2)] == [6, 6]


def test_task_sets_come_apart_into_data_and_transforms(tmp_path: Path) -> None:
    for number in range(20):
        folder = (
            tmp_path / "omniglot-py" / "images_background" / "Alphabet" / f"character{number:02}"
        )
        folder.mkdir(parents=True)
        for drawing in range(2):
            Image.new("1", (105, 105)).save(folder / f"{number:04}_{drawing:02}.png")
    make = l2l.vision.benchmarks.omniglot_tasksets
    datasets, transforms = make(2, 2, 1, 1, root=str(tmp_path), device="cpu")
    assert [len(d.labels) for d in datasets] == [14, 1, 5]
    shapes = [
        l2l.data.Taskset(*both, 3).sample()[0].shape
        for both in zip(datasets, transforms, strict=True)
    ]
    assert [tuple(shape) for shape in shapes] == [(4, 1, 28, 28), (1, 1, 28, 28), (1, 1, 28, 28)]


def test_mini_imagenet_task_sets_run_to_255_or_to_1(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for part, classes in (("train", 64), ("val", 16), ("test", 20)):
        for number in range(classes):
            folder = tmp_path / part / f"n{number:02}"
            folder.mkdir(parents=True)
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "0.png")
    options: dict[str, Any] = {"train_samples": 1, "test_samples": 1, "root": str(tmp_path)}
    tasks = []
    for augmentation in (None, "normalize"):
        sets = l2l.vision.benchmarks.get_tasksets(
            "mini-imagenet", data_augmentation=augmentation, **options
        )
        random.seed(0)
        tasks.append(sets.validation.sample())
    (data, labels), (scaled, again) = tasks
    assert data.shape == (5, 3, 84, 84) and sorted(labels.tolist()) == [0, 1, 2, 3, 4]
    assert torch.equal(labels, again) and torch.allclose(data, 255 * scaled, atol=1e-3)
    assert data.max() > 200


# vision.models


@pytest.mark.parametrize(
    ("name", "options", "parameters", "tensors"),
    [
        ("ResNet12", {}, 12427525, 98),
        ("ResNet12", {"wider": False, "hidden_size": 512}, 7999365, 98),
        ("WRN28", {}, 36486085, 183),
    ],
)
def test_large_networks_have_the_published_sizes(
    name: str, options: dict[str, Any], parameters: int, tensors: int
) -> None:
    with torch.device("meta"):
        network = getattr(l2l.vision.models, name)(5, **options)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert len(network.state_dict()) == tensors
    assert {n.split(".")[0] for n in network.state_dict()} == {"features", "classifier"}


def test_resnet12_drops_in_training_only() -> None:
    network = l2l.vision.models.ResNet12Backbone(avg_pool=False, wider=False, channels=1)
    images = torch.rand(2, 1, 48, 48)
    with pytest.raises(ValueError, match=r"3x3.*dropblock_size=1"):
        network(images)
    assert torch.equal(network.eval()(images), network(images))
    assert network.layer1[0].num_batches_tracked == 3


def test_dropped_blocks_are_squares_of_about_the_asked_share() -> None:
    from metalearn.compat.learn2learn.vision.models.resnet12 import drop_blocks

    torch.manual_seed(0)
    maps = drop_blocks(torch.ones(20, 50, 10, 10), share=0.1, size=3)
    dropped = maps == 0
    assert 0.05 < dropped.float().mean() < 0.13
    assert maps.mean().item() == pytest.approx(1, abs=1e-5)
    squares = F.max_pool2d(dropped.float(), 3, 1).eq(0)
    assert squares.any() and dropped.any()


def test_published_backbones_are_read_from_files(tmp_path: Path) -> None:
    get = l2l.vision.models.get_pretrained_backbone
    with pytest.raises(FileNotFoundError, match=r"cnn4\.pth.*zenodo.*download=True"):
        get("cnn4", "fc100", root=tmp_path)
    with pytest.raises(ValueError, match=r"'wrn28' for 'fc100'.*cnn4 of fc100"):
        get("wrn28", "fc100", root=tmp_path)
    backbone = l2l.vision.models.CNN4Backbone(channels=3, max_pool=True)
    path = tmp_path / "pretrained_models" / "fc100" / "cnn4.pth"
    path.parent.mkdir(parents=True)
    torch.save(backbone.state_dict(), path)
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(get("cnn4", "fc100", root=tmp_path).eval()(images), backbone.eval()(images))
