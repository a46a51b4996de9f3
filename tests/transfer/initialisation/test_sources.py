"""What one tensor starts from: its distribution, its values, and what stays as built."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from metalearn.analysis import compare_layers
from transfer import copied, everywhere, fresh, gabor, initialize, mean_var, permuted


def network(seed: int = 0, channels: int = 3, width: int = 16) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(channels, width, 7, padding=3), nn.BatchNorm2d(width), nn.ReLU()),
        *(
            nn.Conv2d(width, width, 5, padding=2),
            nn.GroupNorm(2, width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        ),
        nn.Linear(width, 5),
    )


def pretrained() -> nn.Module:
    """As `network`, with every tensor far from how a network is built: another mean and scale for
    each.
    """
    model = network(seed=1)
    with torch.no_grad():
        for number, tensor in enumerate(model.state_dict().values()):
            if tensor.is_floating_point():
                tensor.mul_(1 + number).add_(0.1 * number)
    return model


def test_fresh_changes_nothing() -> None:
    model, untouched = network(), network()
    report = initialize(model, everywhere(fresh(), head=True))
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), untouched.state_dict().values(), strict=True)
    )
    assert {row.how for row in report.rows} == {"fresh"}


def test_copying_everything_gives_the_outputs_of_the_source_exactly() -> None:
    source, images = pretrained(), torch.rand(6, 3, 12, 12)
    source.train()(images)  # moves the running statistics, so that the buffers matter
    model = network()
    initialize(model, everywhere(copied(source), head=True))
    assert torch.equal(model.eval()(images), source.eval()(images))
    assert torch.equal(model[1].running_var, source[1].running_var)
    assert model[1].num_batches_tracked == 1


@pytest.mark.parametrize("seed", range(5))
def test_mean_var_has_the_mean_and_variance_of_each_tensor_within_sampling_error(seed: int) -> None:
    source, model = pretrained(), network()
    report = initialize(model, everywhere(mean_var(source), head=True), seed)
    drawn = [row for row in report.rows if row.how == "drawn"]
    assert {row.name for row in drawn} == {
        f"{layer}.{kind}" for layer in (0, 3, 8) for kind in ("weight", "bias")
    }
    for row in drawn:
        before, after = (
            source.get_parameter(row.name).double(),
            model.get_parameter(row.name).double(),
        )
        count, deviation = before.numel(), before.std(correction=0).item()
        assert row.mean == pytest.approx(before.mean().item(), abs=1e-12)
        assert row.variance == pytest.approx(deviation**2, rel=1e-12)
        # Five standard errors: of a normal's mean, sigma / sqrt(n), and of its deviation, sigma /
        # sqrt(2 n).
        assert abs(after.mean().item() - before.mean().item()) < 5 * deviation / math.sqrt(count)
        assert (
            abs(after.std(correction=0).item() - deviation)
            < 5 * deviation / math.sqrt(2 * count) + deviation / count
        )


@pytest.mark.parametrize("source", [mean_var, permuted])
def test_statistics_only_sources_leave_normalisation_and_its_buffers_as_built(source: type) -> None:
    model, untouched = network(), network()
    report = initialize(model, everywhere(source(pretrained())))
    for name in ("1.weight", "1.bias", "1.running_mean", "1.running_var", "4.weight", "4.bias"):
        assert torch.equal(model.state_dict()[name], untouched.state_dict()[name])
        assert report[name].how == "skipped" and "normalisation" in report[name].note


def test_mean_var_draws_a_tensor_of_another_shape_at_its_own() -> None:
    source, model = pretrained(), network(channels=1)
    row = initialize(model, everywhere(mean_var(source)))["0.weight"]
    assert row.shape == (16, 1, 7, 7) and "(16, 3, 7, 7)" in row.note
    assert row.mean == pytest.approx(source[0].weight.double().mean().item())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), width=st.integers(1, 6))
def test_permuted_keeps_the_sorted_values(seed: int, width: int) -> None:
    source, model = (
        nn.Sequential(nn.Linear(width, 3), nn.Linear(3, 2)),
        nn.Sequential(nn.Linear(width, 3), nn.Linear(3, 2)),
    )
    initialize(model, everywhere(permuted(source), head=True), seed)
    for before, after in zip(source.parameters(), model.parameters(), strict=True):
        assert torch.equal(before.flatten().sort().values, after.flatten().sort().values)


def test_permuted_moves_values_to_other_places() -> None:
    source, model = pretrained(), network()
    initialize(model, everywhere(permuted(source)))
    assert (source[3].weight == model[3].weight).float().mean() < 0.01


def detector(pattern: torch.Tensor) -> nn.Module:
    """A network whose features are all about one pattern of its inputs."""
    model = nn.Sequential(
        nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3)
    )
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(32, 1).sign() * pattern)
        model[0].bias.zero_()
    return model


@pytest.mark.parametrize("layer", ["0", "2"])
@pytest.mark.parametrize("destroy", [mean_var, permuted])
def test_statistics_only_sources_destroy_features(destroy: type, layer: str) -> None:
    """Inputs are full of what the source does not look at, so that CKA to it is at the floor for a
    network that lost its features.
    """
    torch.manual_seed(0)
    pattern = torch.randn(64).sign() / 8
    source, copy, drawn = (detector(pattern) for _ in range(3))
    noise = 10 * torch.randn(500, 64)
    inputs = noise - (noise @ pattern)[:, None] * pattern + torch.randn(500, 1) * pattern
    initialize(copy, everywhere(copied(source)))
    initialize(drawn, everywhere(destroy(source)))
    kept, lost = (compare_layers(source, model, inputs, [layer])[layer] for model in (copy, drawn))
    assert kept.similarity == pytest.approx(1)
    assert lost.similarity <= lost.floor.upper < 0.1


@pytest.mark.parametrize("kernel", [3, 4, 5, 7, 11, (3, 9), 16])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_gabor_filters_have_any_size_and_the_scale_that_the_layer_was_built_with(
    kernel: int | tuple[int, int], channels: int
) -> None:
    model = nn.Sequential(nn.Conv2d(channels, 20, kernel), nn.Flatten(), nn.LazyLinear(2))
    model(torch.rand(1, channels, 20, 20))
    built = model[0].weight.detach().clone()
    report = initialize(model, {"0": gabor(), "": fresh()})
    weight = model[0].weight.detach()
    assert report["0.weight"].how == "drawn" and report["0.bias"].how == "skipped"
    assert weight.std(correction=0).item() == pytest.approx(
        built.std(correction=0).item(), rel=1e-5
    )
    torch.testing.assert_close(weight.mean((2, 3)), torch.zeros(20, channels), atol=1e-6, rtol=0)
    torch.testing.assert_close(weight, weight[:, :1].expand_as(weight))
    norms = weight.flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, norms[:1].expand(20))


def test_a_gabor_filter_answers_to_one_orientation_more_than_to_the_one_across_it() -> None:
    model = nn.Sequential(nn.Conv2d(1, 64, 11), nn.Flatten(), nn.Linear(64, 2))
    initialize(model, {"": gabor()})
    spectrum = torch.fft.fft2(model[0].weight.detach()[:, 0], s=(32, 32)).abs()
    peaks = spectrum.flatten(1).argmax(1)
    across = torch.stack(
        [spectrum[i].roll((1,), (0,)).flip(0).T.flatten()[peak] for i, peak in enumerate(peaks)]
    )
    assert (across < 0.6 * spectrum.flatten(1).amax(1)).float().mean() > 0.9


def test_gabor_refuses_a_kernel_without_room_and_a_layer_that_is_not_the_first() -> None:
    with pytest.raises(ValueError, match="kernel of 1 x 1"):
        initialize(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 3)), everywhere(gabor()))
    with pytest.raises(ValueError, match="does not reach the first convolution"):
        initialize(network(), {"3": gabor(), "": fresh()})


@pytest.mark.parametrize(
    "source", [lambda: mean_var(pretrained()), lambda: permuted(pretrained()), gabor]
)
def test_the_same_seed_gives_the_same_draw_and_another_seed_another(source: type) -> None:
    first, again, other = network(), network(), network()
    for model, seed in ((first, 3), (again, 3), (other, 4)):
        initialize(model, everywhere(source()), seed)
    assert torch.equal(first[0].weight, again[0].weight)
    assert not torch.equal(first[0].weight, other[0].weight)


def test_a_draw_depends_on_the_tensor_alone_and_leaves_the_global_generator() -> None:
    alone, together, source = network(), network(), pretrained()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    initialize(alone, {"": fresh(), "3": mean_var(source)}, seed=5)
    initialize(together, everywhere(mean_var(source)), seed=5)
    assert torch.equal(alone[3].weight, together[3].weight)
    assert torch.equal(before, torch.get_rng_state())


def test_tensors_of_one_network_are_drawn_independently() -> None:
    model = nn.Sequential(*(nn.Linear(30, 30) for _ in range(3)))
    initialize(model, everywhere(mean_var(model)))
    a, b = (layer.weight.detach().flatten() for layer in model[:2])
    assert torch.corrcoef(torch.stack([a, b]))[0, 1].abs() < 5 / math.sqrt(900)


def test_averaged_channels_give_a_grey_image_what_it_gave_repeated() -> None:
    source, model, images = pretrained(), network(channels=1), torch.rand(2, 1, 9, 9)
    report = initialize(model, everywhere(copied(source, average_channels=True)))
    torch.testing.assert_close(model[0](images), source[0](images.repeat(1, 3, 1, 1)))
    assert (
        report["0.weight"].how == "copied"
        and "3 channels averaged into 1" in report["0.weight"].note
    )


def test_other_input_channels_are_refused_by_name_with_the_cure() -> None:
    with pytest.raises(ValueError, match=r"0\.weight reads 3 channels .*average_channels=True"):
        initialize(network(channels=1), everywhere(copied(pretrained())))
    with pytest.raises(
        ValueError, match=r"3\.weight is \(16, 16, 5, 5\) in the weights"
    ):  # a width is no number of channels
        initialize(
            network(width=8), {"": fresh(), "3": copied(pretrained(), average_channels=True)}
        )


def test_a_source_of_ones_own_is_a_callable() -> None:
    from transfer.initialisation.sources import Slot, Start

    def zeros(slot: Slot, generator: torch.Generator) -> Start:
        return Start(torch.zeros_like(slot.tensor), "drawn", "zeros")

    model = network()
    row = initialize(model, {"": fresh(), "3": zeros})["3.weight"]
    assert not model[3].weight.any()
    assert (row.mean, row.variance, row.note) == (0, 0, "zeros")
