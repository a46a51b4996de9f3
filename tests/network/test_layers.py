"""Layer discovery, on torchvision's families and on small networks whose answer is known."""

from __future__ import annotations

import warnings

import pytest
import torch
import torchvision
from torch import nn

import metalearn as ml
from metalearn.models import MLP, Conv4, ResNet12
from metalearn.network.layers import assign, owners

BLOCKS = [
    "layer1.0",
    "layer1.1",
    "layer2.0",
    "layer2.1",
    "layer3.0",
    "layer3.1",
    "layer4.0",
    "layer4.1",
]
DENSE = [f"features.{part}{i}" for i in (1, 2, 3) for part in ("denseblock", "transition")]
EXPECTED = {
    "resnet18": ["conv1", "bn1", *BLOCKS, "fc"],
    "vit_b_16": [
        "conv_proj",
        *(f"encoder.layers.encoder_layer_{i}" for i in range(12)),
        "encoder.ln",
        "heads.head",
    ],
    "vgg11": [
        *(f"features.{i}" for i in (0, 3, 6, 8, 11, 13, 16, 18)),
        "classifier.0",
        "classifier.3",
        "classifier.6",
    ],
    "squeezenet1_0": [*(f"features.{i}" for i in (0, 3, 4, 5, 7, 8, 9, 10, 12)), "classifier.1"],
    "densenet121": [
        "features.conv0",
        "features.norm0",
        *DENSE,
        "features.denseblock4",
        "features.norm5",
        "classifier",
    ],
}
HEADS = {
    "resnet50": "fc",
    "vgg16_bn": "classifier.6",
    "squeezenet1_1": "classifier.1",
    "densenet169": "classifier",
    "convnext_tiny": "classifier.2",
    "efficientnet_b0": "classifier.1",
    "mobilenet_v3_small": "classifier.3",
    "vit_b_32": "heads.head",
    "swin_t": "head",
    "googlenet": "fc",
    "inception_v3": "fc",
}


def built(name: str) -> nn.Module:
    with torch.device("meta"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The default weight initialization", FutureWarning)
        return torchvision.models.get_model(name, weights=None)


@pytest.mark.parametrize("name", EXPECTED)
def test_layers_of_torchvision_models(name: str) -> None:
    assert ml.layers(built(name)) == EXPECTED[name]


@pytest.mark.parametrize("name", [*EXPECTED, *HEADS])
def test_every_tensor_belongs_to_exactly_one_layer_and_every_layer_owns_some(name: str) -> None:
    model = built(name)
    tensors = {n for n, _ in (*model.named_parameters(), *model.named_buffers())}
    assert owners(model).keys() == tensors
    assert set(owners(model).values()) == set(ml.layers(model))


@pytest.mark.parametrize("name", HEADS)
def test_heads_of_torchvision_models(name: str) -> None:
    model = built(name)
    assert ml.head(model) == HEADS[name]
    assert HEADS[name] in ml.layers(model)
    assert ml.body(model) == [layer for layer in ml.layers(model) if layer != HEADS[name]]


def test_convnext_and_efficientnet_blocks_stay_whole() -> None:
    assert ml.layers(built("convnext_tiny"))[:4] == [
        "features.0",
        "features.1.0",
        "features.1.1",
        "features.1.2",
    ]
    assert ml.layers(built("efficientnet_b0"))[:4] == [
        "features.0",
        "features.1.0",
        "features.2.0",
        "features.2.1",
    ]


def test_bare_parameters_belong_to_the_first_layer_of_their_container() -> None:
    owner = owners(built("vit_b_16"))
    assert owner["class_token"] == "conv_proj"
    assert owner["encoder.pos_embedding"] == "encoder.layers.encoder_layer_0"


def test_our_own_models() -> None:
    assert ml.layers(Conv4(5)) == ["block1", "block2", "block3", "block4", "head"]
    assert ml.layers(ResNet12(5)) == ["block1", "block2", "block3", "block4", "head"]
    assert ml.layers(MLP(1, 1)) == ["layer1", "layer2", "head"]
    assert ml.body(Conv4(5)) == ["block1", "block2", "block3", "block4"]


def test_a_backbone_in_a_wrapper_is_opened() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = torchvision.models.resnet18(num_classes=8)
            self.head = nn.Linear(8, 5)

    with torch.device("meta"):
        assert ml.layers(Wrapped()) == [f"backbone.{layer}" for layer in EXPECTED["resnet18"]] + [
            "head"
        ]


def test_a_single_module_is_its_own_layer() -> None:
    assert ml.layers(nn.Linear(2, 2)) == [""]
    assert ml.head(nn.Linear(2, 2)) == ""
    assert ml.layers(nn.ReLU()) == []


def test_rates_reach_a_prefix_and_the_longest_path_wins() -> None:
    model = torchvision.models.resnet18(num_classes=5)
    rates = assign(model, {"layer2": 0.1, "layer2.1.bn2": 0.2, "layer2.1.bn2.bias": 0.3})
    assert {name.split(".")[0] for name in rates} == {"layer2"}
    assert rates["layer2.0.conv1.weight"] == 0.1
    assert rates["layer2.1.bn2.weight"] == 0.2
    assert rates["layer2.1.bn2.bias"] == 0.3


def test_a_name_that_does_not_exist_lists_near_ones() -> None:
    with pytest.raises(ValueError, match=r"no layer 'layer5'; did you mean layer\d"):
        assign(torchvision.models.resnet18(num_classes=5), {"layer5": 1.0})
    with pytest.raises(ValueError, match=r"no layer 'zzz'; .*block1, block2, block3, block4, head"):
        ml.head(Conv4(5), "zzz")
