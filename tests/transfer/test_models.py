"""The CBR family against the paper's parameter counts, hybrids, and networks by name."""

from __future__ import annotations

import sys

import pytest
import torch
import torchvision
from torch import nn

from metalearn import head, layers
from transfer import initialize, transfusion
from transfer.models import Build, build, cbr, read_channels, slim

TABLE = {"large_t": 8_532_480, "large_w": 8_432_128, "small": 2_108_672, "tiny": 1_076_480}
FULL = {"large_t": 8_539_173, "large_w": 8_443_461, "small": 2_114_341, "tiny": 1_079_845}


@pytest.mark.parametrize("name", TABLE)
def test_parameter_counts_are_the_papers(name: str) -> None:
    """The paper's table counts the convolutions but the first, and the weights of five outputs."""
    model = cbr(name, outputs=5)
    convolutions = [
        module.weight.numel() for module in model.modules() if isinstance(module, nn.Conv2d)
    ]
    assert sum(convolutions[1:]) + model.head.weight.numel() == TABLE[name]
    assert sum(parameter.numel() for parameter in model.parameters()) == FULL[name]


@pytest.mark.parametrize("name", TABLE)
def test_cbr_layers_are_its_blocks_and_head(name: str) -> None:
    blocks = 5 if name == "large_t" else 4
    assert layers(cbr(name, 2)) == [*(f"block{k}" for k in range(1, blocks + 1)), "head"]
    assert head(cbr(name, 2)) == "head"


@pytest.mark.parametrize("size", [1, 8, 28, (32, 48), 96])
@pytest.mark.parametrize("channels", [1, 3])
def test_cbr_takes_images_of_any_size(size: int | tuple[int, int], channels: int) -> None:
    height, width = (size, size) if isinstance(size, int) else size
    model = cbr("tiny", outputs=4, channels=channels)
    assert model(torch.rand(2, channels, height, width)).shape == (2, 4)


@pytest.mark.parametrize(("size", "expected"), [(223, [112, 56, 28, 14]), (224, [109, 52, 23, 9])])
def test_convolutions_are_padded_below_224_pixels_and_not_from_there_on(
    size: int, expected: list[int]
) -> None:
    model, sizes = cbr("tiny", outputs=2, channels=1).eval(), []
    for block in list(model.children())[:-1]:
        block.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[-1]))
    with torch.no_grad():
        model(torch.rand(1, 1, size, size))
    assert sizes == expected


def test_the_last_block_of_large_t_has_no_pool() -> None:
    model = cbr("large_t", outputs=2, channels=1).eval()
    with torch.no_grad():
        assert model.block4(torch.rand(1, 128, 8, 8)).shape[-1] == 4
        assert model.block5(torch.rand(1, 256, 8, 8)).shape[-1] == 8


def test_an_unknown_network_is_named_with_near_matches() -> None:
    with pytest.raises(
        ValueError, match="no CBR network 'huge'; there are large_t, large_w, small, tiny"
    ):
        build("cbr_huge", 2)
    with pytest.raises(ValueError, match="no network 'resnet19'; did you mean resnet18"):
        build("resnet19", 2)


def test_timm_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        ImportError,
        match=r"timm:resnet18 needs the extra: pip install 'metalearn-transfer\[timm\]'",
    ):
        build("timm:resnet18", 2)


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v3_small", "cbr_tiny"])
def test_networks_by_name_have_the_outputs_and_channels_asked_for(name: str) -> None:
    assert build(name, outputs=3, channels=2).eval()(torch.rand(1, 2, 64, 64)).shape == (1, 3)


def test_inception_is_built_without_its_auxiliary_head() -> None:
    with torch.device("meta"):
        assert not [name for name in layers(build("inception_v3", 2)) if "Aux" in name]


def test_a_convolution_for_other_channels_keeps_the_distribution_of_the_one_it_replaces() -> None:
    model = torchvision.models.resnet18()
    old = model.conv1.weight.detach().flatten()
    new = read_channels(model, 6).conv1.weight
    assert new.shape == (64, 6, 7, 7) and new.requires_grad
    assert torch.isin(new.detach().flatten(), old).all()
    assert new.std().item() == pytest.approx(old.std().item(), rel=0.05)
    assert read_channels(model, 6).conv1.weight is new


def test_a_depthwise_first_convolution_is_refused() -> None:
    with pytest.raises(ValueError, match="the first convolution 0 has 3 groups"):
        read_channels(nn.Sequential(nn.Conv2d(3, 6, 3, groups=3)), 1)


@pytest.mark.parametrize(
    ("name", "width"), [("resnet18", 0.5), ("resnet50", 0.5), ("resnet18", 0.25)]
)
def test_slim_narrows_the_stages_above_and_leaves_those_below(name: str, width: float) -> None:
    with torch.device("meta"):
        thin, full = (
            slim(name, "layer2", outputs=4, width=width),
            torchvision.models.get_model(name, weights=None),
        )
    a, b = thin.state_dict(), full.state_dict()
    assert a.keys() == b.keys()
    for key in a:
        if key.startswith(("layer3", "layer4")) and a[key].ndim:
            assert a[key].shape[0] == round(width * b[key].shape[0])
        elif not key.startswith("fc"):
            assert a[key].shape == b[key].shape
    assert thin.fc.weight.shape == (4, round(width * full.fc.in_features))
    assert (
        thin.layer3[0].conv1.in_channels == full.layer3[0].conv1.in_channels
    )  # reads what layer2 puts out


@pytest.mark.parametrize("through", ["bn1", "layer1", "layer2", "layer3"])
def test_slim_runs_at_every_cut_and_its_lower_part_takes_the_full_networks_weights(
    through: str,
) -> None:
    source, model = torchvision.models.resnet18(), slim("resnet18", through, outputs=2, channels=3)
    report = initialize(model, transfusion(source, through=through))
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 2)
    lower = [name for name, _ in model.named_parameters() if report[name].how == "copied"]
    assert all(torch.equal(model.get_parameter(name), source.get_parameter(name)) for name in lower)
    assert [name for name, _ in model.named_parameters() if name.startswith(through)][-1] in lower
    assert report["layer4.0.conv1.weight"].how == "fresh"


def test_slims_upper_part_is_initialised_as_torchvision_does() -> None:
    torch.manual_seed(0)
    weight = slim("resnet18", "layer3", outputs=2).layer4[1].conv1.weight
    assert weight.std().item() == pytest.approx(
        (2 / (256 * 9)) ** 0.5, rel=0.02
    )  # normal, by fan out


def test_the_weights_of_a_full_network_do_not_fit_the_narrow_part() -> None:
    with pytest.raises(
        ValueError,
        match=(
            r"layer3\.0\.conv1\.weight is \(256, 128, 3, 3\) in the weights and \(128, 128, 3, 3\)"
            r" here"
        ),
    ):
        initialize(
            slim("resnet18", "layer2", outputs=2),
            transfusion(torchvision.models.resnet18(), through="layer3"),
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"through": "layer4"}, "through='layer4': above it there is no stage"),
        ({"through": "layer9"}, "name one of bn1, layer1, layer2, layer3"),
        ({"width": 0}, "width=0"),
        ({"width": 1.5}, r"width=1\.5"),
        ({"name": "vgg11"}, "'vgg11' is no ResNet"),
    ],
)
def test_slim_refuses_what_it_cannot_make(options: dict, message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        slim(**{"name": "resnet18", "through": "layer2", "outputs": 2, **options})


@pytest.mark.parametrize("name", ["smallvit", "cifar_resnet20"])
def test_networks_for_small_images_take_the_size_of_the_images(name: str) -> None:
    make = Build(name, outputs=3, channels=1, size=12)
    assert make()(torch.rand(2, 1, 12, 12)).shape == (2, 3)
    assert head(make()) in ("head", "linear")


def test_networks_that_normalise_by_the_batch_have_no_name_here() -> None:
    with pytest.raises(ValueError, match="no network 'conv4'"):
        build("conv4", 2)
