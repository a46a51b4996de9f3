"""Norms that people bring: subclasses, fused ones, their own with buffers."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

import metalearn as ml
from metalearn.network.norm import (
    check_statistics,
    is_norm,
    keeps_statistics,
    norm_parameters,
    statistics,
)
from transfer import everywhere, freeze, frozen_transformer, initialize, linear_probe, mean_var


class Activated(nn.BatchNorm2d):
    """A norm with its activation, as timm has it (timm#1254)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(super().forward(x))


class Dropping(nn.BatchNorm2d):
    """A norm with a dropout and a learned activation inside."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop = nn.Dropout(0.5)
        self.act = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


class OwnBatchNorm(nn.Module):
    """Batch norm written by hand."""

    def __init__(self, channels: int, mean: str = "running_mean", var: str = "running_var") -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(1, channels, 1, 1))
        self.beta = nn.Parameter(torch.rand(1, channels, 1, 1))
        self.names = mean, var
        self.register_buffer(mean, torch.zeros(channels))
        self.register_buffer(var, torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        mean, var = (getattr(self, name) for name in self.names)
        if self.training:
            batch = x.mean((0, 2, 3)), x.var((0, 2, 3))
            for name, old, new in zip(self.names, (mean, var), batch, strict=True):
                setattr(self, name, 0.9 * old + 0.1 * new.detach())
            mean, var = batch
        scaled = (x - mean.view(1, -1, 1, 1)) / (var.view(1, -1, 1, 1) + 1e-5).sqrt()
        return self.gamma * scaled + self.beta


class GhostBatchNorm(nn.BatchNorm2d):
    """Statistics of half batches, averaged when evaluation starts."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.register_buffer("running_mean", torch.zeros(2 * channels))
        self.register_buffer("running_var", torch.ones(2 * channels))

    def train(self, mode: bool = True) -> Any:
        if self.training and not mode and self.running_mean is not None:
            for buffer in (self.running_mean, self.running_var):
                buffer.copy_(buffer.view(2, -1).mean(0).repeat(2))
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        if not self.training:
            return F.batch_norm(
                x, self.running_mean[:c], self.running_var[:c], self.weight, self.bias
            )
        halves = F.batch_norm(
            x.view(-1, 2 * c, h, w),
            self.running_mean,
            self.running_var,
            self.weight.repeat(2),
            self.bias.repeat(2),
            training=True,
        )
        return halves.view(n, c, h, w)


class RMS(nn.Module):
    """A norm that is not named one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


class LayerNorm2d(nn.Module):
    """Layer norm over channels that come second."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.g * (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1e-5).sqrt()


class PreNorm(nn.Module):
    """A block that is named after the norm in it."""

    def __init__(self, norm: nn.Module, block: nn.Module) -> None:
        super().__init__()
        self.norm, self.fn = norm, block

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fn(self.norm(x))


class NormalizedLinear(nn.Linear):
    """A cosine head."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(x), F.normalize(self.weight), self.bias)


class LayerScale(nn.Module):
    """A scale alone."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * x


NORMS = {
    "plain": nn.BatchNorm2d,
    "activated": Activated,
    "dropping": Dropping,
    "ghost": GhostBatchNorm,
    "own": OwnBatchNorm,
    "own, moving": lambda c: OwnBatchNorm(c, "moving_mean", "moving_var"),
    "sync": nn.SyncBatchNorm,
    "instance": lambda c: nn.InstanceNorm2d(c, affine=True, track_running_stats=True),
    "no affine": lambda c: nn.BatchNorm2d(c, affine=False),
    "cumulative": lambda c: nn.BatchNorm2d(c, momentum=None),
    "detection": FrozenBatchNorm2d,
}


def network(kind: str) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), NORMS[kind](4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    # Seen by the running statistics; SyncBatchNorm trains on CUDA devices alone
    for _ in range(3 * (kind != "sync")):
        model(3 * torch.randn(6, 3, 8, 8) + 1)
    if kind == "sync":
        model[1].running_mean.normal_()
    return model


@pytest.mark.parametrize("kind", NORMS)
def test_frozen_statistics_keep_the_output_of_evaluation_mode(kind: str) -> None:
    model, images = network(kind), torch.randn(6, 3, 8, 8)
    expected = copy.deepcopy(model).eval()(images)
    assert ml.frozen_statistics(ml.frozen_statistics(model)) is model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert torch.equal(model.eval()(images), expected)
    model.train()
    output = model(images)
    assert torch.equal(output, expected) or kind == "dropping"
    output.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    check_statistics(model)
    assert statistics(model) == "frozen statistics"
    for copied in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)) if kind != "own, moving" else model,
    ):
        assert torch.equal(copied.train().eval()(images), expected)
        assert torch.equal(copied.train()(images), expected) or kind == "dropping"
        assert copied.state_dict().keys() == before.keys()


def test_what_is_inside_a_frozen_norm_follows_the_mode() -> None:
    norm = ml.frozen_statistics(network("dropping"))[1]
    assert not norm.train().training and norm.drop.training
    assert not norm.eval().drop.training
    norm.training = True
    assert not norm.training and isinstance(norm, Dropping)


def test_a_frozen_network_is_saved_whole() -> None:
    model, images, file = (
        ml.frozen_statistics(network("activated")),
        torch.randn(6, 3, 8, 8),
        io.BytesIO(),
    )
    torch.save(model, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False).train()(images), model(images))


def test_hooks_on_a_frozen_norm_still_run() -> None:
    model, seen = network("activated"), []
    model[1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    ml.frozen_statistics(model).train()(torch.randn(6, 3, 8, 8))
    assert len(seen) == 1 and float(seen[0].detach().min()) == 0


@pytest.mark.parametrize("kind", ["plain", "activated", "ghost", "own", "instance"])
def test_a_learner_on_frozen_statistics_adapts_as_in_evaluation_mode(kind: str) -> None:
    model, images = network(kind), torch.randn(6, 3, 8, 8)
    support = ml.Examples(images, torch.arange(6) % 3)
    evaluated = copy.deepcopy(model).eval()
    weights = dict(evaluated.named_parameters())
    loss = F.cross_entropy(evaluated(images), support.targets)
    gradients = torch.autograd.grad(loss, list(weights.values()))
    adapted = ml.MAML(ml.frozen_statistics(model).train(), 0.1).adapt(support)
    for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
        torch.testing.assert_close(
            adapted.weights[name].detach(), (weight - 0.1 * gradient).detach()
        )


@pytest.mark.parametrize(
    "kind", ["plain", "activated", "dropping", "sync", "instance", "no affine"]
)
def test_batch_statistics_of_what_is_derived_from_torchs_norms(kind: str) -> None:
    model, images = network(kind), torch.randn(6, 3, 8, 8)
    model[1].weight = None if kind == "no affine" else nn.Parameter(torch.rand(4))
    plain = copy.deepcopy(model)
    plain[1].train()
    for inside in list(plain[1].modules())[1:]:
        inside.eval()
    expected = nn.BatchNorm2d(4)(plain[0](images)) if kind == "sync" else plain[1](plain[0](images))
    for start in (model, ml.frozen_statistics(copy.deepcopy(model))):
        batch = ml.batch_statistics(ml.batch_statistics(start))
        check_statistics(batch)
        assert statistics(batch) == ("no batch norm" if kind == "instance" else "batch statistics")
        if kind != "sync":
            torch.testing.assert_close(batch.eval()[:2](images), expected)
        assert batch.train()[:2](images).shape == expected.shape


@pytest.mark.parametrize("kind", ["own", "own, moving"])
def test_own_statistics_are_refused_with_what_serves(kind: str) -> None:
    with pytest.raises(ValueError, match=r"1 \(OwnBatchNorm\) keeps.*frozen_statistics\(model\)"):
        check_statistics(network(kind))
    with pytest.raises(
        ValueError, match=r"1 \(OwnBatchNorm\) keeps.*BatchNorm2d.*frozen_statistics\(model\)"
    ):
        ml.batch_statistics(network(kind))


def test_statistics_that_no_forward_pass_writes_are_frozen_already() -> None:
    model = network("detection")
    check_statistics(model)
    assert ml.batch_statistics(model) is model and statistics(model) == "frozen statistics"
    state = torch.get_rng_state()
    assert not keeps_statistics(model[1])
    assert torch.equal(state, torch.get_rng_state())


def test_a_norm_without_statistics_yet() -> None:
    model, batch = (
        nn.Sequential(nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(2)) for _ in range(2)
    )
    with pytest.raises(ValueError, match=r"0 \(LazyBatchNorm2d\) .*call the model on one batch"):
        ml.frozen_statistics(model)
    images = torch.rand(2, 3, 4, 4)
    assert ml.batch_statistics(batch)(images).shape == (2, 2)
    model(images)
    expected = model.eval()(images)
    assert torch.equal(ml.frozen_statistics(model).train()(images), expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_a_scripted_norm_is_refused() -> None:
    model = torch.jit.script(network("plain"))
    with pytest.raises(ValueError, match=r"frozen_statistics\(model\) before torch.jit.script"):
        ml.frozen_statistics(model)
    with pytest.raises(ValueError, match="running statistics"):
        check_statistics(model)


@pytest.mark.parametrize("kind", ["activated", "own", "ghost", "sync"])
def test_freeze_holds_the_statistics_of_any_norm(kind: str) -> None:
    model, images = network(kind), torch.randn(6, 3, 8, 8)
    expected = copy.deepcopy(model).eval()[:2](images)
    held = linear_probe(model)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        "4.weight",
        "4.bias",
    ]
    assert "1.weight" in held or "1.gamma" in held
    assert torch.equal(model.train()[:2](images), expected)
    other = network(kind)
    freeze(other, through="0")
    assert other.train()[1].training


def test_norms_are_counted_by_what_they_do() -> None:
    norms = (
        *(
            nn.BatchNorm1d(3),
            nn.LayerNorm(3),
            nn.GroupNorm(1, 3),
            nn.RMSNorm(3),
            nn.InstanceNorm2d(3),
        ),
        *(
            RMS(3),
            LayerNorm2d(3),
            Activated(3),
            Dropping(3),
            OwnBatchNorm(3),
            torchvision.models.convnext.LayerNorm2d(3),
        ),
    )
    assert all(map(is_norm, norms))
    others = (
        *(
            PreNorm(nn.LayerNorm(3), nn.Linear(3, 3)),
            NormalizedLinear(3, 3),
            NormalizedLinear(3, 1),
            LayerScale(3),
        ),
        *(
            nn.PReLU(3),
            nn.PReLU(),
            nn.Linear(1, 1),
            nn.Conv2d(3, 3, 1, groups=3),
            nn.Embedding(1, 3),
            nn.ReLU(),
        ),
        *(
            torchvision.ops.misc.Conv2dNormActivation(3, 3),
            nn.MultiheadAttention(4, 1),
            nn.LSTM(1, 1),
        ),
        nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)),
    )
    assert not any(map(is_norm, others))
    assert norm_parameters(Dropping(3)) == ["weight", "bias"]  # not its activation's


@pytest.mark.parametrize("norm", [nn.LayerNorm, RMS, nn.RMSNorm])
def test_a_frozen_transformer_of_prenorm_blocks_trains_its_norms_alone(norm: Any) -> None:
    blocks = nn.Sequential(*(PreNorm(norm(8), nn.Linear(8, 8)) for _ in range(2)))
    model = nn.Sequential(nn.Linear(4, 8), blocks, nn.Linear(8, 2))
    scales = [
        f"1.{number}.norm.{name}" for number in range(2) for name, _ in norm(8).named_parameters()
    ]
    assert frozen_transformer(model) == ["0.weight", "0.bias", *scales, "2.weight", "2.bias"]


def test_a_frozen_maxvit_trains_no_convolution() -> None:
    model = torchvision.models.MaxVit((32, 32), 8, 4, [4, 8], [1, 1], 4, 0.0, num_classes=2)
    trained = set(frozen_transformer(model))
    first = {name for name, _ in model.named_parameters() if name.startswith("stem.")}
    kernels = {
        name
        for name, p in model.named_parameters()
        if p.ndim > 1 and not name.startswith("classifier")
    }
    assert trained & (kernels - first) == set()
    assert "blocks.0.layers.0.layers.MBconv.layers.pre_norm.weight" in trained


def test_mean_var_leaves_any_norm_as_built_and_draws_what_is_only_named_one() -> None:
    def build() -> nn.Module:
        return nn.Sequential(
            PreNorm(RMS(4), NormalizedLinear(4, 4)), LayerScale(4), nn.Linear(4, 2)
        )

    torch.manual_seed(0)
    report = initialize(build(), everywhere(mean_var(build())))
    assert report["0.norm.scale"].how == "skipped"
    assert report["0.fn.weight"].how == report["1.gamma"].how == "drawn"
