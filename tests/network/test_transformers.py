"""Readers of transformers: right for every library, and the network's output stays as it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.models import SmallViT
from metalearn.network.transformers import attention, dot_product_weights, stream

Case = tuple[nn.Module, Tensor]


def torchvision_vit() -> Case:
    from torchvision.models import VisionTransformer

    network = VisionTransformer(
        image_size=16, patch_size=4, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32
    )
    nn.init.normal_(network.heads.head.weight)  # torchvision starts it from zeros
    return network, torch.rand(2, 3, 16, 16)


def timm_vit(name: str, **options: object) -> Case:
    timm = pytest.importorskip("timm")
    network = timm.create_model(name, img_size=32, patch_size=8, depth=2, **options)
    return network, torch.rand(2, 3, 32, 32)


def encoder(*, norm_first: bool) -> Case:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=norm_first)
    norm = nn.LayerNorm(16)
    network = nn.TransformerEncoder(layer, 2, norm=norm, enable_nested_tensor=False)
    return network, torch.rand(2, 5, 16)


def hugging_face(kind: str, attention_kind: str = "sdpa") -> Case:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 32, "attn_implementation": attention_kind}
    if kind == "vit":
        config = transformers.ViTConfig(image_size=32, patch_size=8, **sizes)
        return First(transformers.ViTModel(config)), torch.rand(2, 3, 32, 32)
    words = torch.randint(0, 50, (2, 7))
    if kind == "bert":
        return First(transformers.BertModel(transformers.BertConfig(vocab_size=50, **sizes))), words
    config = transformers.LlamaConfig(vocab_size=50, num_key_value_heads=1, **sizes)
    return First(transformers.LlamaModel(config)), words


class First(nn.Module):
    """The first output of a network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)[0]


PRE_NORM: dict[str, Callable[[], Case]] = {
    "ours": lambda: (SmallViT(width=12, depth=2), torch.rand(2, 3, 32, 32)),
    "torchvision": torchvision_vit,
    "timm": lambda: timm_vit("vit_tiny_patch16_224"),
    "timm distilled": lambda: timm_vit("deit_tiny_distilled_patch16_224"),
    "timm registers": lambda: timm_vit("vit_small_patch14_reg4_dinov2"),
    "torch encoder": lambda: encoder(norm_first=True),
    "transformers ViT": lambda: hugging_face("vit"),
    "transformers Llama": lambda: hugging_face("llama"),
}


def built(name: str) -> Case:
    torch.manual_seed(0)
    network, inputs = PRE_NORM[name]()
    return network.eval(), inputs


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("name", PRE_NORM)
def test_readers_leave_the_output_as_it_is(name: str, grad: bool) -> None:
    network, inputs = built(name)
    with torch.set_grad_enabled(grad):
        plain = network(inputs)
        with attention(network) as maps:
            assert torch.equal(network(inputs), plain)
        with stream(network) as branches:
            assert torch.equal(network(inputs), plain)
    assert plain.abs().max() > 0
    assert len(maps) == 2
    assert len(branches) == 4
    for weights in maps.values():
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


@pytest.mark.parametrize("name", ["ours", "torchvision", "timm", "torch encoder"])
def test_branches_are_named_after_attention_and_mlp(name: str) -> None:
    network, inputs = built(name)
    with stream(network) as branches, torch.no_grad():
        network(inputs)
    paths = [branch.path for branch in branches]
    assert all("att" in path for path in paths[::2])
    assert all("mlp" in path or "linear2" in path for path in paths[1::2])
    # z_(i+1) = z_i + f_i
    torch.testing.assert_close(branches[0].before + branches[0].added, branches[1].before)


def test_attention_of_a_uniform_head_is_uniform() -> None:
    attending = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    with torch.no_grad():
        attending.in_proj_weight[:8] = 0  # the query
        attending.in_proj_bias[:8] = 0
    tokens = torch.rand(3, 5, 8)
    with attention(attending) as maps, torch.no_grad():
        attending(tokens, tokens, tokens, need_weights=False)
    torch.testing.assert_close(maps[""], torch.full((3, 2, 5, 5), 0.2))


def test_weights_follow_masks_scale_and_shared_keys() -> None:
    query, key, value = torch.rand(3, 2, 4, 6, 8, dtype=torch.float64)
    keep = torch.ones(6, 6, dtype=torch.bool).tril()
    bias = torch.rand(6, 6, dtype=torch.float64)
    shared = key[:, :2], value[:, :2]
    calls = [
        ((query, key, value), {"is_causal": True}),
        ((query, key, value), {"attn_mask": keep, "scale": 2.0}),
        ((query, key, value), {"attn_mask": bias}),
        ((query, *shared), {"enable_gqa": True}),
    ]
    for arguments, options in calls:
        weights = dot_product_weights(*arguments, **options)
        values = arguments[2].repeat_interleave(4 // arguments[2].shape[1], 1)
        expected = F.scaled_dot_product_attention(*arguments, **options)
        torch.testing.assert_close(weights @ values, expected)
    causal = dot_product_weights(query, key, value, is_causal=True)
    assert causal.triu(1).abs().max() == 0


def test_a_module_that_attends_twice_keeps_both_maps() -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            first = F.scaled_dot_product_attention(x, x, x)
            return F.scaled_dot_product_attention(first, first, x)

    network = Twice()
    with attention(network, reduce=lambda weights: weights.shape) as shapes:
        network(torch.rand(1, 1, 4, 8))
    assert shapes == {"": (1, 1, 4, 4), "#2": (1, 1, 4, 4)}


@pytest.mark.parametrize(
    "build",
    [
        lambda: (nn.Sequential(nn.Conv2d(3, 4, 3)), torch.rand(1, 3, 8, 8)),
        lambda: hugging_face("vit", "eager"),
    ],
    ids=["convolution", "eager"],
)
def test_a_network_whose_attention_cannot_be_read_is_refused(build: Callable[[], Case]) -> None:
    network, inputs = build()
    with pytest.raises(ValueError, match="attn_implementation='sdpa'"), attention(network):
        network.eval()(inputs)


@pytest.mark.parametrize(
    "build",
    [lambda: encoder(norm_first=False), lambda: hugging_face("bert")],
    ids=["torch", "bert"],
)
def test_a_post_norm_transformer_is_refused(build: Callable[[], Case]) -> None:
    network, inputs = build()
    with pytest.raises(ValueError, match="norm_first=True"), stream(network):
        network.eval()(inputs)


def test_a_network_without_tokens_has_no_stream() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    with pytest.raises(ValueError, match="no residual stream of tokens"), stream(network):
        network(torch.rand(1, 3, 8, 8))


def test_hooks_are_gone_after_an_error() -> None:
    network = SmallViT(width=12, depth=1).eval()
    for reader in (attention, stream):
        with pytest.raises(ValueError, match="SmallViT"), reader(network):
            network(torch.rand(1, 3, 16, 16))
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for module in network.modules()
    )
