"""Beside the real learn2learn, in the environment that benchmarks/peers/install.sh builds: the same
tasks, weights and gradients.
"""

from __future__ import annotations

import importlib
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
from tests.helpers import WAYS_TO_RUN, gradients

if importlib.util.find_spec("learn2learn") is None:
    pytest.skip(
        "the real learn2learn is not installed here: benchmarks/peers/install.sh builds its"
        " environment",
        allow_module_level=True,
    )

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of gym and of its own age
    import learn2learn as real

TASKS, WAYS, SHOTS, STEPS = 3, 3, 2, 2


def taskset(l2l: Any, num_tasks: int = TASKS, samples: int = 2 * SHOTS, fused: bool = True) -> Any:
    dataset = l2l.data.MetaDataset(glyphs("train"))
    steps = l2l.data.transforms
    first = (
        [steps.FusedNWaysKShots(dataset, n=WAYS, k=samples)]
        if fused
        else [steps.NWays(dataset, n=WAYS), steps.KShots(dataset, k=samples)]
    )
    task_transforms = [
        *first,
        steps.LoadData(dataset),
        steps.RemapLabels(dataset),
        steps.ConsecutiveLabels(dataset),
    ]
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
    return {
        name: part.view_as(parameter)
        for (name, parameter), part in zip(model.named_parameters(), parts, strict=True)
    }


@pytest.fixture(autouse=True)
def _draws_in_turn() -> None:
    random.seed(0)


@pytest.mark.parametrize("first_order", [False, True])
def test_meta_gradients_are_those_of_the_real_maml(first_order: bool, two_threads: None) -> None:
    tasks = taskset(real)
    theirs = real.algorithms.MAML(network(real), lr=0.4, first_order=first_order)
    compat = copy_weights(
        theirs, ours.algorithms.MAML(network(ours), lr=0.4, first_order=first_order)
    )
    learners = {
        way: copy_weights(
            theirs,
            ml.MAML(
                Conv4(WAYS, hidden=6, pool=False).double(),
                lr=0.4,
                steps=STEPS,
                first_order=first_order,
                execution=way,
            ),
        )
        for way in WAYS_TO_RUN
    }
    expected = script_gradients(theirs, tasks)
    assert expected.abs().max() > 0.1
    assert (script_gradients(compat, tasks) - expected).abs().max() < 1e-10
    wanted = network(real)
    for parameter, gradient in zip(
        wanted.parameters(), by_name_of(wanted, expected).values(), strict=True
    ):
        parameter.data.copy_(gradient)
    wanted = copy_weights(
        wanted, Conv4(WAYS, hidden=6, pool=False).double()
    )  # gradients in the order of Conv4's parameters
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
    start = real.algorithms.MetaSGD(
        real.vision.models.OmniglotFC(784, WAYS, sizes=[8, 6]).double(),
        lr=0.3,
        first_order=first_order,
    )
    for l2l in (
        real,
        ours,
    ):
        # A network that uses each module once: the real one adapts no others with these rates.
        maml = l2l.algorithms.MetaSGD(
            l2l.vision.models.OmniglotFC(784, WAYS, sizes=[8, 6]).double(),
            lr=0.1,
            first_order=first_order,
        )
        found.append(script_gradients(copy_weights(start, maml), tasks))
    assert found[0].abs().max() > 1e-3
    assert (found[1] - found[0]).abs().max() < 1e-10


def test_anil_gradients_are_those_of_the_real_one() -> None:
    tasks, found = taskset(real), []
    start = network(real)
    for l2l in (real, ours):
        model = network(l2l)
        model.load_state_dict(start.state_dict())
        found.append(
            script_gradients(l2l.algorithms.MAML(model.classifier, lr=0.1), tasks, model.features)
        )
    assert (found[1] - found[0]).abs().max() < 1e-10


@pytest.mark.parametrize(
    ("name", "arguments", "shape"),
    [
        ("OmniglotCNN", (5,), (1, 28, 28)),
        ("OmniglotFC", (784, 5), (1, 28, 28)),
        ("MiniImagenetCNN", (5,), (3, 84, 84)),
    ],
)
def test_models_have_the_names_shapes_and_outputs_of_the_real_ones(
    name: str, arguments: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    theirs, mine = (getattr(l2l.vision.models, name)(*arguments).double() for l2l in (real, ours))
    assert [(n, t.shape) for n, t in theirs.state_dict().items()] == [
        (n, t.shape) for n, t in mine.state_dict().items()
    ]
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
    (data, labels), (rest, answers) = real.data.partition_task(
        *to_learn2learn(episodes)[1], shots=1
    )
    assert all(
        map(torch.equal, (data, labels, rest, answers), (*episodes[1].support, *episodes[1].query))
    )


def test_deprecated_task_datasets_are_read_too() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = real.data.MetaDataset(glyphs("train"))
        steps = [
            real.data.transforms.FusedNWaysKShots(dataset, n=WAYS, k=2),
            real.data.transforms.LoadData(dataset),
        ]
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


# The names beyond MAML and Meta-SGD: `both` runs a script on either library from one seed.


def both(script: Any) -> tuple[Any, Any]:
    results = []
    for l2l in (real, ours):
        torch.manual_seed(0)
        random.seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the real one's, of its own age
            results.append(script(l2l))
    return results[0], results[1]


def equal(a: Any, b: Any, tolerance: float = 0.0) -> bool:
    """Whether two lists of tensors are equal."""
    return len(a) == len(b) and all(
        x.shape == y.shape and torch.allclose(x, y, rtol=0, atol=tolerance)
        for x, y in zip(a, b, strict=True)
    )


def tanh_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)).double()


def adapted(learner: nn.Module, steps: int = 3) -> list[Tensor]:
    """The meta-gradients after a few inner steps, and the adapted weights."""
    torch.manual_seed(1)
    support = torch.rand(6, 2, 4, 4, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2]).repeat(2)
    clone = learner.clone()
    for _ in range(steps):
        clone.adapt(F.cross_entropy(clone(support), labels))
    F.cross_entropy(clone(support.flip(0)), labels).backward()
    return [p.grad for p in learner.parameters()] + [p.detach() for p in clone.parameters()]


TRANSFORMS = {
    "none": lambda l2l: lambda p: None,
    "scale": lambda l2l: lambda p: l2l.nn.Scale(p.shape, alpha=0.5).double(),
    "kronecker": (
        lambda l2l: lambda p: l2l.optim.KroneckerTransform(l2l.nn.KroneckerLinear)(p).double()
    ),
    "kronecker bias": (
        lambda l2l: (
            lambda p: l2l.optim.KroneckerTransform(l2l.nn.KroneckerLinear, bias=True, psd=False)(
                p
            ).double()
        )
    ),
    "metacurvature": lambda l2l: lambda p: l2l.optim.MetaCurvatureTransform(p, lr=0.5).double(),
    "module": lambda l2l: lambda p: l2l.optim.ModuleTransform(nn.Linear)(p).double(),
}


@pytest.mark.parametrize(
    ("adapt_transform", "first_order"), [(False, False), (False, True), (True, False)]
)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_gbml_has_the_gradients_of_the_real_one(
    name: str, adapt_transform: bool, first_order: bool
) -> None:
    if name == "none" and adapt_transform:
        pytest.skip("nothing to adapt")

    def script(l2l: Any) -> list[Tensor]:
        options = {"adapt_transform": adapt_transform, "first_order": first_order}
        gbml = l2l.algorithms.GBML(tanh_net(), TRANSFORMS[name](l2l), lr=0.1, **options)
        return adapted(gbml)

    assert equal(*both(script), tolerance=1e-10)


def test_gbml_by_layer_has_the_gradients_and_names_of_the_real_one() -> None:
    def script(l2l: Any) -> tuple[list[str], list[Tensor]]:
        net = tanh_net()
        by_layer = l2l.optim.TransformDictionary(
            {net[0]: TRANSFORMS["metacurvature"](l2l), net[3].bias: TRANSFORMS["scale"](l2l)}
        )
        gbml = l2l.algorithms.GBML(net, by_layer, lr=0.1)
        return list(gbml.state_dict()), adapted(gbml)

    (names, results), (our_names, our_results) = both(script)
    assert names == our_names and equal(results, our_results, tolerance=1e-12)


@pytest.mark.parametrize("name", [name for name in TRANSFORMS if name != "none"])
def test_learnable_optimizers_train_like_the_real_one(name: str) -> None:
    def script(l2l: Any) -> tuple[list[str], list[Tensor]]:
        net = tanh_net()
        metaopt = l2l.optim.LearnableOptimizer(net, TRANSFORMS[name](l2l), lr=0.1)
        opt = torch.optim.SGD(metaopt.parameters(), lr=0.01)
        for _ in range(4):
            metaopt.zero_grad()
            opt.zero_grad()
            net(torch.ones(3, 2, 4, 4).double()).square().mean().backward()
            opt.step()
            metaopt.step()
        return list(metaopt.state_dict()), [*net.parameters(), *metaopt.parameters()]

    (names, results), (our_names, our_results) = both(script)
    assert names == our_names and equal(results, our_results, tolerance=1e-12)


@pytest.mark.parametrize("cell", ["KroneckerLinear", "KroneckerRNN", "KroneckerLSTM"])
@pytest.mark.parametrize("bias", [False, True])
def test_kronecker_layers_give_what_the_real_ones_give(cell: str, bias: bool) -> None:
    def script(l2l: Any) -> tuple[list[str], list[Tensor]]:
        layer = getattr(l2l.nn, cell)(2, 3, bias=bias)
        for parameter in layer.parameters():
            nn.init.normal_(parameter)
        x, state = torch.rand(4, 2, 3), torch.rand(4, 2, 3)
        inputs = {
            "KroneckerLinear": (x,),
            "KroneckerRNN": (x, state),
            "KroneckerLSTM": (x, (state, state)),
        }
        output = layer(*inputs[cell])
        output = output if cell == "KroneckerLinear" else output[0]
        output.square().sum().backward()
        vector = layer(x[0].flatten()) if cell == "KroneckerLinear" else output
        gradients = [p.grad for p in layer.parameters() if p.grad is not None]
        return [n for n, _ in layer.named_parameters()], [output, vector, *gradients]

    (names, results), (our_names, our_results) = both(script)
    assert names == our_names and equal(results, our_results, tolerance=1e-5)


@pytest.mark.parametrize("distance", ["euclidean", "cosine", lambda p, q: torch.cdist(q, p, p=1)])
@pytest.mark.parametrize("normalize", [False, True])
def test_prototypes_give_the_scores_of_the_real_ones(distance: Any, normalize: bool) -> None:
    def script(l2l: Any) -> list[Tensor]:
        support, query = torch.rand(9, 4, requires_grad=True), torch.rand(5, 4)
        classifier = l2l.nn.PrototypicalClassifier(distance=distance, normalize=normalize)
        prototypes = classifier.fit_(support, torch.tensor([2, 7, 4]).repeat(3))
        scores = classifier(query)
        scores.softmax(1)[:, 0].sum().backward()
        return [prototypes, scores, support.grad]

    assert equal(*both(script), tolerance=1e-6)


def test_meta_modules_do_what_the_real_ones_do() -> None:
    def script(l2l: Any) -> tuple[list[str], list[Tensor]]:
        def scaled(layer: nn.Module) -> nn.Module:
            return l2l.nn.ParameterTransform(
                layer, lambda p: l2l.nn.Scale(p.shape, alpha=0.5).double()
            )

        net = tanh_net()
        meta = l2l.nn.MetaModule(net, {nn.Linear: scaled, nn.Conv2d: scaled})
        output = meta(torch.ones(2, 2, 4, 4).double())
        output.square().sum().backward()
        gradients = [p.grad for p in meta.meta_parameters()]
        frozen = [torch.tensor(float(p.requires_grad)) for p in meta.parameters()]
        names = list(meta.state_dict())
        original = meta.module()
        return [*names, *original.state_dict()], [
            output,
            *gradients,
            *frozen,
            *original.parameters(),
        ]

    (names, results), (our_names, our_results) = both(script)
    assert names == our_names and equal(results, our_results, tolerance=1e-12)


def test_small_names_do_what_the_real_ones_do_too() -> None:
    def script(l2l: Any) -> list[Tensor]:
        net = l2l.nn.freeze(tanh_net())
        flags = [p.requires_grad for p in net.parameters()] + [
            p.requires_grad for p in l2l.nn.unfreeze(net).parameters()
        ]
        l2l.optim.DifferentiableSGD(0.1)(
            net, [None, *[torch.ones_like(p) for p in list(net.parameters())[1:]]]
        )
        scales = [
            l2l.nn.Scale(shape, alpha=2.0).alpha for shape in (None, 3, (2, 3), torch.Size([4]))
        ]
        return [torch.tensor(flags), *net.parameters(), *scales]

    assert equal(*both(script))


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        ("ResNet12", {}, (3, 84, 84)),
        (
            "ResNet12",
            {
                "wider": False,
                "avg_pool": False,
                "hidden_size": 2048,
                "channels": 1,
                "dropblock_size": 1,
            },
            (1, 40, 40),
        ),
        (
            "ResNet12",
            {"hidden_size": 640, "dropblock_dropout": 0.0, "embedding_dropout": 0.5},
            (3, 84, 84),
        ),
    ],
)
def test_resnet12_of_a_seed_is_the_real_one(
    name: str, options: dict[str, Any], shape: tuple[int, ...]
) -> None:
    def script(l2l: Any) -> tuple[list[str], list[Tensor]]:
        net = getattr(l2l.vision.models, name)(5, **options)
        images = torch.rand(2, *shape)
        for block in (net.features.layer3[0], net.features.layer4[0]):
            block.num_batches_tracked = 30000  # so that DropBlock drops much
        torch.manual_seed(5)  # no multiple of 5 corners, which the real one drops in part
        training = net(images).detach()
        return list(net.state_dict()), [training, *net.state_dict().values(), net.eval()(images)]

    (names, results), (our_names, our_results) = both(script)
    assert names == our_names and equal(results, our_results, tolerance=1e-4)


def test_wide_networks_of_a_seed_are_the_real_ones() -> None:
    def script(l2l: Any) -> tuple[list[str], list[Tensor]]:
        net = l2l.vision.models.wrn28.WideResNet(16, 1, 0.3)
        images = torch.rand(2, 3, 84, 84)
        training = net(images).detach()
        return list(net.state_dict()), [training, *net.state_dict().values(), net.eval()(images)]

    (names, results), (our_names, our_results) = both(script)
    assert names == our_names and equal(results, our_results, tolerance=1e-4)
    with torch.device("meta"):
        shapes = [
            {n: t.shape for n, t in l2l.vision.models.WRN28(5).state_dict().items()}
            for l2l in (real, ours)
        ]
    assert list(shapes[0].items()) == list(shapes[1].items())


def test_data_sets_and_samplers_do_what_the_real_ones_do() -> None:
    def script(l2l: Any) -> list[Tensor]:
        images = glyphs("test", classes=6, drawers=4)
        on_device = l2l.data.OnDeviceDataset(images, device="cpu", transform=lambda x: 1 - x)
        parts = [
            l2l.data.FilteredMetaDataset(l2l.data.MetaDataset(on_device), labels)
            for labels in ([5, 1, 2], [0, 1])
        ]
        union = l2l.data.UnionMetaDataset(parts)
        steps = [
            l2l.data.transforms.NWays(union, 3),
            l2l.data.transforms.KShots(union, 2),
            l2l.data.transforms.LoadData(union),
        ]
        tasks = l2l.data.Taskset(union, steps, num_tasks=4)
        sampler = importlib.import_module(f"{l2l.__name__}.data.samplers").TasksetSampler(tasks)
        indices = torch.tensor(list(sampler))
        endless = l2l.data.InfiniteIterator(list(tasks))
        batches = [next(endless) for _ in range(6)]
        return [
            torch.tensor(union.labels),
            indices,
            *[tensor for batch in batches for tensor in batch],
        ]

    assert equal(*both(script))


def test_a_script_on_view_after_convolutions_does_what_the_real_one_does() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(1, 20, 5)
            self.conv2 = nn.Conv2d(20, 8, 5)
            self.fc = nn.Linear(128, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = F.max_pool2d(F.relu(self.conv1(x)), 2)
            x = F.max_pool2d(F.relu(self.conv2(x)), 2)
            return F.log_softmax(self.fc(x.view(-1, 128)), dim=1)

    def script(l2l: Any) -> list[Tensor]:
        meta_model = l2l.algorithms.MAML(Net().double(), lr=0.01)
        data, labels = torch.rand(20, 1, 28, 28).double(), torch.arange(5).repeat(4)
        learner = meta_model.clone()
        for _ in range(2):
            learner.adapt(F.nll_loss(learner(data[:10]), labels[:10]))
        error = F.nll_loss(learner(data[10:]), labels[10:])
        error.backward()
        return [error.detach(), *[p.grad for p in meta_model.parameters()]]

    assert equal(*both(script), tolerance=1e-10)
