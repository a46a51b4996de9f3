"""The papers' networks: shapes, sizes, and that pooling before ReLU changes nothing."""

from __future__ import annotations

import pytest
import torch

from metalearn.models import MLP, Conv4, ResNet12, registry
from metalearn.network.norm import check_statistics


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_finns_mini_imagenet_network_has_its_number_of_weights() -> None:
    # 32,645 weights and 128 shifts of batch norm, in his checkpoint; ours has 128 scales more.
    assert parameters(Conv4(5, channels=3, hidden=32, size=84)) == 32_645 + 128 + 128


def test_output_shapes() -> None:
    assert Conv4(5)(torch.rand(2, 1, 28, 28)).shape == (2, 5)
    assert Conv4(20, pool=False)(torch.rand(2, 1, 28, 28)).shape == (2, 20)
    assert Conv4(5, channels=3, hidden=8, size=84)(torch.rand(2, 3, 84, 84)).shape == (2, 5)
    assert ResNet12(5, widths=(4, 8, 8, 8))(torch.rand(2, 3, 32, 32)).shape == (2, 5)
    assert MLP(3, 2)(torch.rand(7, 3)).shape == (7, 2)
    assert parameters(MLP(1, 1)) == 40 + 40 + 40 * 40 + 40 + 40 + 1


def test_they_use_batch_statistics() -> None:
    for model in (Conv4(5, channels=3, hidden=4, size=32), ResNet12(5, widths=(4, 8, 8, 8))):
        check_statistics(model)
        images = torch.rand(4, 3, 32, 32)
        with torch.no_grad():
            together, apart = model.eval()(images)[:2], model.eval()(images[:2])
        assert not torch.allclose(together, apart)


def test_pooling_before_relu_is_the_same_function() -> None:
    block, maps = Conv4(5).double().block1, torch.rand(3, 1, 28, 28, dtype=torch.float64)
    expected = torch.nn.functional.max_pool2d(torch.relu(block.norm(block.conv(maps))), 2)
    torch.testing.assert_close(block(maps), expected, rtol=1e-12, atol=1e-12)
    seen: list[torch.Size] = []
    block.norm.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    torch.testing.assert_close(block(maps), expected, rtol=1e-12, atol=1e-12)
    assert seen == [(3, 64, 28, 28)]  # whoever watches a layer sees what it puts out


def test_the_same_seed_gives_the_same_weights() -> None:
    nets = []
    for _ in range(2):
        torch.manual_seed(3)
        nets.append(Conv4(5))
    assert all(
        torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True)
    )


def test_images_too_small_for_four_poolings() -> None:
    with pytest.raises(ValueError, match="images of 8 pixels vanish"):
        Conv4(5, size=8)


def test_one_registry_builds_our_networks_and_those_of_a_callers_table() -> None:
    network = registry.build("conv4", 5, 1, hidden=8, size=16)
    assert isinstance(network, Conv4)
    assert network(torch.rand(2, 1, 16, 16)).shape == (2, 5)
    table = {"mlp": lambda outputs, channels: MLP(channels, outputs)}
    assert isinstance(registry.build("mlp", 2, 3, networks=table), MLP)
    with pytest.raises(ValueError, match="there is no network 'conv5'; did you mean conv4"):
        registry.build("conv5", 5)
    with pytest.raises(TypeError, match="squeezenet1_1 takes no options, but size"):
        registry.build("squeezenet1_1", 5, size=16)


@pytest.mark.parametrize("name", ["smallvit", "cifar_resnet20"])
@pytest.mark.parametrize("channels", [1, 3])
def test_networks_for_small_images_are_built_by_name(name: str, channels: int) -> None:
    options = {"size": 28, "depth": 1, "width": 12} if name == "smallvit" else {}
    network = registry.build(name, 4, channels, **options)
    assert network(torch.rand(2, channels, 28, 28)).shape == (2, 4)


def test_cifar_resnets_have_their_number_of_weights() -> None:
    """He et al. 2016, table 6, in millions: without the batch norms and the bias."""
    for depth, millions in ((20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)):
        network = registry.build(f"cifar_resnet{depth}", 10)
        count = sum(weight.numel() for weight in network.parameters() if weight.ndim > 1)
        assert count / 1e6 == pytest.approx(millions, abs=0.03)
    assert registry.build("cifar_resnet20", 10, width=2).linear.in_features == 128


def test_near_names_of_networks_for_small_images() -> None:
    with pytest.raises(ValueError, match="cifar_resnet20"):
        registry.build("cifar_resnet21", 10)
    with pytest.raises(ValueError, match="patch=4 does not divide images of 30 pixels"):
        registry.build("smallvit", 10, size=30)
