"""A zoo of networks that people bring, under every operation; each right, or refused with the cure.

    python -m pytest -m slow tests/strangers/test_zoo.py -s

prints the table; OMP_NUM_THREADS=1 helps on a busy machine. Adaptation is compared through
`torch.func.functional_call` with the plain loop, in double precision.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.func import functional_call
from torchvision.models import convnext, efficientnet, resnet, vgg

import metalearn as ml
from metalearn.analysis import compare_layers
from metalearn.network.layers import head as head_of
from metalearn.network.norm import statistics_of
from transfer import initialize, linear_probe, transfusion

Build = Callable[[], nn.Module]
WAYS = 3
RATE = 0.05


def of_torchvision(name: str, **options: Any) -> nn.Module:
    return torchvision.models.get_model(name, weights=None, num_classes=WAYS, **options)


def without_auxiliary(name: str) -> nn.Module:
    return of_torchvision(name, aux_logits=False, init_weights=False)


def a_resnet(block: Any, **options: Any) -> nn.Module:
    return torchvision.models.ResNet(block, [1, 1, 1, 1], num_classes=WAYS, **options)


def a_vgg(batch_norm: bool) -> nn.Module:
    features = vgg.make_layers([8, "M", 16, "M", 8, "M"], batch_norm)
    with torch.device("meta"):  # its own classifier has 120 million weights
        model = torchvision.models.VGG(features, num_classes=WAYS, init_weights=False)
    model.classifier[0], model.classifier[3] = nn.Linear(8 * 49, 16), nn.Linear(16, 16)
    model.classifier[6] = nn.Linear(16, WAYS)
    return model


def an_alexnet() -> nn.Module:
    model = of_torchvision("alexnet")
    model.classifier[1], model.classifier[4] = nn.Linear(256 * 36, 16), nn.Linear(16, 16)
    model.classifier[6] = nn.Linear(16, WAYS)
    return model


def an_efficientnet_v2() -> nn.Module:
    first = efficientnet.FusedMBConvConfig(1, 3, 1, 8, 8, 1)
    blocks = [first, efficientnet.MBConvConfig(4, 3, 2, 8, 16, 1)]
    return torchvision.models.EfficientNet(blocks, 0.2, num_classes=WAYS, last_channel=32)


def a_convnext() -> nn.Module:
    blocks = [convnext.CNBlockConfig(8, 16, 1), convnext.CNBlockConfig(16, None, 1)]
    return torchvision.models.ConvNeXt(blocks, num_classes=WAYS)


def a_densenet() -> nn.Module:
    return torchvision.models.DenseNet(8, (2, 2, 2, 2), 16, num_classes=WAYS)


def of_timm(name: str, **options: Any) -> nn.Module:
    timm = pytest.importorskip("timm")
    return timm.create_model(name, pretrained=False, num_classes=WAYS, **options)


def a_vit() -> nn.Module:
    model = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=WAYS)
    nn.init.normal_(model.heads.head.weight)
    return model


def a_swin() -> nn.Module:
    return torchvision.models.SwinTransformer([2, 2], 8, [1, 1], [2, 2], [4, 4], num_classes=WAYS)


def a_swin_v2() -> nn.Module:
    from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2

    return torchvision.models.SwinTransformer(
        *([2, 2], 8, [1, 1], [2, 2], [4, 4]),
        num_classes=WAYS,
        block=SwinTransformerBlockV2,
        downsample_layer=PatchMergingV2,
    )


def a_maxvit() -> nn.Module:
    return torchvision.models.MaxVit((64, 64), 8, 4, [8, 16], [1, 1], 4, 0.0, num_classes=WAYS)


# One small network of every family of torchvision's classifiers, and the size of its images
TORCHVISION: dict[str, tuple[Build, int]] = {
    "resnet": (partial(a_resnet, resnet.BasicBlock), 32),
    "resnext": (partial(a_resnet, resnet.Bottleneck, groups=4, width_per_group=4), 32),
    "wide resnet": (partial(a_resnet, resnet.Bottleneck, width_per_group=96), 32),
    "densenet": (a_densenet, 32),
    "efficientnet_b0": (partial(of_torchvision, "efficientnet_b0"), 32),
    "efficientnet_v2": (an_efficientnet_v2, 32),
    "googlenet": (partial(without_auxiliary, "googlenet"), 48),
    "inception": (partial(without_auxiliary, "inception_v3"), 80),
    "mnasnet": (partial(of_torchvision, "mnasnet0_5"), 32),
    "mobilenet_v2": (partial(of_torchvision, "mobilenet_v2", width_mult=0.25), 32),
    "mobilenet_v3": (partial(of_torchvision, "mobilenet_v3_small"), 32),
    "regnet_y": (partial(of_torchvision, "regnet_y_400mf"), 32),
    "regnet_x": (partial(of_torchvision, "regnet_x_400mf"), 32),
    "shufflenet": (partial(of_torchvision, "shufflenet_v2_x0_5"), 32),
    "squeezenet": (partial(of_torchvision, "squeezenet1_1"), 32),
    "vgg": (partial(a_vgg, batch_norm=False), 32),
    "vgg, batch norm": (partial(a_vgg, batch_norm=True), 32),
    "alexnet": (an_alexnet, 64),
    "convnext": (a_convnext, 32),
    "vit": (a_vit, 32),
    "swin": (a_swin, 32),
    "swin_v2": (a_swin_v2, 32),
    "maxvit": (a_maxvit, 64),
}
# Twelve of timm, of different makers
TIMM: dict[str, tuple[Build, int]] = {
    "test_resnet": (partial(of_timm, "test_resnet"), 64),
    "test_efficientnet": (partial(of_timm, "test_efficientnet"), 64),
    "test_vit": (partial(of_timm, "test_vit", img_size=64), 64),
    "test_byobnet": (partial(of_timm, "test_byobnet"), 64),
    "test_convnext": (partial(of_timm, "test_convnext"), 64),
    "test_nfnet": (partial(of_timm, "test_nfnet"), 64),
    "test_mambaout": (partial(of_timm, "test_mambaout"), 64),
    "mobilenetv4_conv_small_035": (partial(of_timm, "mobilenetv4_conv_small_035"), 64),
    "ghostnet_050": (partial(of_timm, "ghostnet_050"), 64),
    "mixer_s32_224": (partial(of_timm, "mixer_s32_224", img_size=64), 64),
    "efficientvit_m0": (partial(of_timm, "efficientvit_m0", img_size=64), 64),
    "levit_128s": (partial(of_timm, "levit_128s", img_size=64), 64),
}
ZOO = {**TORCHVISION, **{f"timm {name}": entry for name, entry in TIMM.items()}}
FEW = ["squeezenet", "vit", "densenet", "efficientnet_v2"]


class Refused(Exception):
    """An operation that is refused, with what serves instead."""


def cured(model: nn.Module) -> nn.Module:
    """The network as it can be adapted: statistics frozen and random layers off."""
    return ml.frozen_statistics(model.eval())


def with_statistics(build: Build, size: int) -> nn.Module:
    """The network with running statistics of some images, and no norm as it was built."""
    torch.manual_seed(0)
    model = build().double()
    with torch.no_grad():
        model.eval()
        for module in model.modules():
            for name in statistics_of(module):
                statistic = getattr(module, name).uniform_(0.5, 1.5)
                if name.endswith("mean"):
                    statistic.sub_(1).mul_(0.2)
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def task(size: int) -> ml.Episode:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(2 * WAYS, 3, size, size, generator=generator, dtype=torch.float64)
    labels = torch.arange(2 * WAYS) % WAYS
    support = ml.Examples(images[:WAYS], labels[:WAYS])
    return ml.Episode(support, ml.Examples(images[WAYS:], labels[WAYS:]))


def plain_loop(
    model: nn.Module, episode: ml.Episode, first_order: bool
) -> tuple[Tensor, list[Tensor]]:
    """Adapted logits and the meta-gradient, by hand.

    Each call has a copy of its own: in evaluation mode LeViT's attention keeps biases of its last.
    """
    weights = dict(model.named_parameters())
    first, second = copy.deepcopy(model), copy.deepcopy(model)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        logits = functional_call(first, weights, (episode.support.inputs,))
        loss = F.cross_entropy(logits, episode.support.targets)
        gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=not first_order)
        moved = {}
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
            moved[name] = weight - RATE * gradient
        logits = functional_call(second, moved, (episode.query.inputs,))
        outer = F.cross_entropy(logits, episode.query.targets)
        return logits.detach(), list(torch.autograd.grad(outer, list(weights.values())))


def stacked(episode: ml.Episode, tasks: int = 1) -> ml.Episode:
    return ml.episodes.stack([episode] * tasks)


def close(actual: Any, expected: Any) -> None:
    scale = max(1.0, *(float(tensor.abs().max()) for tensor in expected))
    torch.testing.assert_close(list(actual), list(expected), rtol=1e-7, atol=1e-9 * scale)


def construct(build: Build, size: int) -> None:
    model = with_statistics(build, size)
    if any(map(statistics_of, model.modules())):
        with pytest.raises(ValueError, match=r"batch_statistics\(model\).*frozen_statistics"):
            ml.MAML(model, RATE)
    learner = ml.MAML(cured(model), RATE)
    head = learner.model.get_submodule(head_of(learner.model))
    outputs = getattr(head, "out_features", getattr(head, "out_channels", None))
    assert outputs == WAYS


def adapt(build: Build, size: int, first_order: bool) -> None:
    model, episode = cured(with_statistics(build, size)), task(size)
    try:
        expected, gradients = plain_loop(model, episode, first_order)
    except RuntimeError as missing:  # torch has no second derivative of an operation
        with pytest.raises(Exception, match="first_order=True"):
            ml.meta_backward(ml.MAML(model, RATE), stacked(episode))
        raise Refused("first_order=True") from missing
    learner = ml.MAML(model, RATE, first_order=first_order)
    logits = ml.meta_backward(learner, stacked(episode)).logits
    close([logits[0]], [expected])
    close([parameter.grad for parameter in model.parameters()], gradients)


def evaluate(build: Build, size: int) -> None:
    model, episode = cured(with_statistics(build, size)), task(size)
    expected, _ = plain_loop(model, episode, first_order=True)
    accuracy = (expected.argmax(1) == episode.query.targets).double().mean()
    evaluation = ml.evaluate(ml.MAML(model, RATE), stacked(episode, 2))
    assert evaluation.mean == pytest.approx(float(accuracy))


def similarities(build: Build, size: int) -> None:
    model = with_statistics(build, size).eval()
    images = torch.rand(8, 3, size, size, dtype=torch.float64)
    report = compare_layers(model, copy.deepcopy(model), images, draws=0)
    values = [row.similarity for row in report.layers]
    assert values and all(value == pytest.approx(1, abs=1e-6) for value in values)


def frozen(build: Build, size: int) -> None:
    model = with_statistics(build, size)
    images = task(size).query.inputs
    copied, before = copy.deepcopy(model), copy.deepcopy(model.state_dict())
    expected = copied.eval()(images)
    ml.frozen_statistics(model.train())(images)
    assert torch.equal(copy.deepcopy(model).eval()(images), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def of_the_batch(build: Build, size: int) -> None:
    model, images = with_statistics(build, size), task(size).query.inputs
    other = copy.deepcopy(model).eval()
    for module in other.modules():
        module.training = module.training or bool(statistics_of(module))
    expected = other(images)  # norms in training mode, all else in evaluation mode
    torch.testing.assert_close(ml.batch_statistics(model).eval()(images), expected)


def probed(build: Build, size: int) -> None:
    model, images = with_statistics(build, size), task(size).query.inputs
    expected = model.eval()(images)
    held = set(linear_probe(model))
    head = head_of(model)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if name.startswith(f"{head}.")}
    assert held.isdisjoint(trained)
    # torch has another kernel for attention whose weights need no gradient
    torch.testing.assert_close(model.eval()(images), expected, rtol=1e-10, atol=1e-12)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.1)
    F.cross_entropy(model.train()(images), torch.arange(WAYS)).backward()
    optimizer.step()
    moved = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    assert moved == trained, f"moved {sorted(moved ^ trained)[:3]}"


def transferred(build: Build, size: int) -> None:
    source = with_statistics(build, size)
    torch.manual_seed(5)
    model = build().double()
    report = initialize(model, transfusion(source))
    head = head_of(model)
    for name, tensor in model.state_dict().items():
        if not name.startswith(f"{head}."):
            assert torch.equal(tensor, source.state_dict()[name]) and report[name].how == "copied"
    part, target = source.get_submodule(head), model.get_submodule(head)
    target.load_state_dict(part.state_dict())
    images = task(size).query.inputs
    assert torch.equal(model.eval()(images), source.eval()(images))


OPERATIONS: dict[str, Callable[[Build, int], None]] = {
    "construct": construct,
    "first": partial(adapt, first_order=True),
    "second": partial(adapt, first_order=False),
    "evaluate": evaluate,
    "compare": similarities,
    "frozen": frozen,
    "batch": of_the_batch,
    "probe": probed,
    "transfusion": transferred,
}


def outcome(operation: str, build: Build, size: int) -> str:
    """ "right", "refused: <the cure>", or "wrong: <what is>"."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            OPERATIONS[operation](build, size)
        except Refused as cure:
            return f"refused: {cure}"
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            return f"wrong: {type(error).__name__}: {lines[0][:160]}"
    return "right"


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("name", FEW)
def test_a_few_of_the_zoo(name: str, operation: str) -> None:
    assert outcome(operation, *ZOO[name]).startswith(("right", "refused"))


@pytest.fixture(scope="module")
def table() -> Iterator[dict[str, dict[str, str]]]:
    """Filled by the tests of the whole zoo, and printed after the last."""
    rows: dict[str, dict[str, str]] = {}
    yield rows
    print("\n" + f"{'':36}" + "".join(f"{operation:>12}" for operation in OPERATIONS))
    for name, row in rows.items():
        cells = (row.get(operation, "-").partition(":")[0] for operation in OPERATIONS)
        print(f"{name:36}" + "".join(f"{cell:>12}" for cell in cells))
    for name, row in rows.items():
        for operation, result in row.items():
            if result != "right":
                print(f"{name}, {operation}: {result}")


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_the_zoo(name: str, table: dict[str, dict[str, str]]) -> None:
    row = table.setdefault(name, {})
    for operation in OPERATIONS:
        row[operation] = outcome(operation, *ZOO[name])
    print(name, row, flush=True)
    assert not [result for result in row.values() if result.startswith("wrong")]
