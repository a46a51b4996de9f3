"""Every layer against every layer: known answers, one pass, and what is refused by name."""

from __future__ import annotations

import copy
import json
import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from torch import nn

from metalearn.analysis.measures.chance import rearranged
from metalearn.analysis.measures.cka import linear_cka
from metalearn.analysis.networks.similarity_map import similarity_map
from metalearn.network.activations import representations


def images(count: int = 24, seed: int = 0) -> torch.Tensor:
    """Noise in colours of their own: as photographs, they differ most in what is coarse."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, 1, 1, generator=generator) + 0.3 * torch.rand(
        count, 3, 8, 8, generator=generator
    )


def conv_network(depth: int = 2, width: int = 6, seed: int = 0) -> nn.Module:
    """Convolutions with batch norm, whose ReLUs write into what the batch norms put out."""
    torch.manual_seed(seed)
    blocks: list[nn.Module] = []
    for i in range(depth):
        convolution = nn.Conv2d(3 if i == 0 else width, width, 3, padding=1)
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        blocks += [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(width * 64, 5))


class Transformer(nn.Module):
    """Patches as tokens, two blocks of attention, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(2)
        )
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).flatten(2).mT
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(tokens.mean(1))


def outputs(network: nn.Module, names: list[str], x: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad(), representations(network, names) as seen:
        network(x)
    return [seen[name].flatten(1) for name in names]


def hsic(x: torch.Tensor, y: torch.Tensor) -> float:
    """HSIC_1 times n(n-3) as Song et al. write it, in float64."""
    n, k, m = len(x), *(rows.double() @ rows.double().T for rows in (x, y))
    k.fill_diagonal_(0)
    m.fill_diagonal_(0)
    return float(
        (k * m).sum() + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k @ m).sum()
    )


def minibatch_cka(
    a: nn.Module, b: nn.Module, batches: list[torch.Tensor], names: list[str]
) -> np.ndarray:
    """Nguyen et al., from its definition."""
    pairs = [
        (outputs(a.eval(), names, batch), outputs(b.eval(), names, batch)) for batch in batches
    ]
    own = [
        [sum(hsic(side[s][i], side[s][i]) for side in pairs) for i in range(len(names))]
        for s in (0, 1)
    ]
    return np.array(
        [
            [
                sum(hsic(left[i], right[j]) for left, right in pairs)
                / math.sqrt(own[0][i] * own[1][j])
                for j in range(len(names))
            ]
            for i in range(len(names))
        ]
    )


def test_one_batch_is_linear_cka_for_every_pair_of_layers():
    a, b = conv_network().eval(), Transformer().eval()
    found = similarity_map(a, b, [images()])
    left, right = (
        outputs(a, list(found.layers_a), images()),
        outputs(b, list(found.layers_b), images()),
    )
    expected = [[linear_cka(x, y) for y in right] for x in left]
    assert (
        found.values == pytest.approx(np.array(expected), abs=1e-5)
        and found.values.dtype == np.float64
    )
    assert found.layers_a == ("0", "1", "3", "4", "7") and found.layers_b == (
        "patches",
        "blocks.0",
        "blocks.1",
        "head",
    )


def test_several_batches_with_a_short_last_one_are_the_sums_of_the_definition():
    a, b, names = conv_network(), conv_network(seed=1), ["0", "1", "4", "7"]
    batches = list(images(29).split(12))
    found = similarity_map(a, b, batches, names, names)
    assert [len(batch) for batch in batches] == [12, 12, 5] and (found.examples, found.batches) == (
        29,
        3,
    )
    assert found.values == pytest.approx(minibatch_cka(a, b, batches, names), abs=1e-5)


def test_a_network_against_itself_is_symmetric_with_ones_and_runs_once_a_batch():
    network, runs = conv_network(), []
    network.register_forward_hook(lambda *_: runs.append(1))
    found = similarity_map(network, network, images(24).split(8))
    assert np.diag(found.values) == pytest.approx(1, abs=1e-12) and found.values == pytest.approx(
        found.values.T, abs=1e-12
    )
    assert len(runs) == 3
    assert found.values == pytest.approx(
        similarity_map(network, copy.deepcopy(network), images(24).split(8)).values, abs=1e-9
    )


def test_other_layers_of_the_same_network_are_read_in_the_same_pass():
    network, runs = conv_network(), []
    network.register_forward_hook(lambda *_: runs.append(1))
    part = similarity_map(network, network, [images()], ["7", "0"], ["1", "7"])
    whole = similarity_map(network, network, [images()])
    assert len(runs) == 2 and part["7", "7"] == pytest.approx(1)
    assert part.values == pytest.approx(
        np.array([[whole["7", "1"], 1], [whole["0", "1"], whole["0", "7"]]]), abs=1e-9
    )


def test_both_networks_see_the_same_batch_of_a_loader_that_shuffles():
    network = conv_network()
    data = torch.utils.data.TensorDataset(images(32), torch.zeros(32))
    found = similarity_map(
        network, copy.deepcopy(network), torch.utils.data.DataLoader(data, 8, shuffle=True)
    )
    assert np.diag(found.values) == pytest.approx(1, abs=1e-5)


def test_a_rotation_and_a_scale_change_nothing_and_another_map_does():
    torch.manual_seed(0)
    first = nn.Linear(6, 6, bias=False)
    rotated, bent = copy.deepcopy(first), copy.deepcopy(first)
    with torch.no_grad():
        rotated.weight.copy_(3 * torch.linalg.qr(torch.randn(6, 6))[0] @ first.weight)
        bent.weight.copy_(torch.diag(torch.tensor([1.0, 1, 1, 1, 1, 20])) @ first.weight)
    batches = torch.randn(40, 6).split(20)
    assert similarity_map(first, rotated, batches)["", ""] == pytest.approx(1, abs=1e-5)
    assert similarity_map(first, bent, batches)["", ""] < 0.9


class Affine(nn.Module):
    def __init__(self, scale: float, shift: float) -> None:
        super().__init__()
        self.scale, self.shift = scale, shift

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale + self.shift


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 1000.0), (1e25, 0.0), (1e-25, 0.0)])
def test_neither_a_large_mean_nor_values_whose_squares_leave_float32_cost_digits(scale, shift):
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(20, 50, generator=draws)
    plain, moved = (
        nn.Sequential(nn.Identity(), nn.Linear(50, 50)),
        nn.Sequential(Affine(scale, shift)),
    )
    expected = linear_cka(outputs(plain, ["1"], x)[0], outputs(moved, ["0"], x)[0].double() / scale)
    assert similarity_map(plain, moved, [x], ["1"], ["0"]).values == pytest.approx(
        expected, abs=1e-5
    )


@pytest.mark.parametrize("setting", ["medium", "autocast"])
def test_coarser_products_asked_of_torch_do_not_reach_the_gram_matrices(setting):
    a, b = nn.Sequential(nn.Identity()), nn.Sequential(Affine(2.0, 1.0), Affine(-1.0, 0.5))
    x = torch.randn(64, 4096, generator=torch.Generator().manual_seed(0)) + 0.2
    expected = similarity_map(a, b, [x], ["0"], ["0", "1"]).values
    before = torch.get_float32_matmul_precision()
    try:
        if setting == "medium":
            torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=setting == "autocast"):
            found = similarity_map(a, b, [x], ["0"], ["0", "1"]).values
    finally:
        torch.set_float32_matmul_precision(before)
    assert found == pytest.approx(expected, abs=1e-5)


def test_the_order_in_memory_does_not_matter():
    network, x = conv_network(), images()
    found = similarity_map(network, network, [x.to(memory_format=torch.channels_last)])
    assert found.values == pytest.approx(similarity_map(network, network, [x]).values, abs=1e-5)


class Viewing(nn.Module):
    """A convolution whose output is flattened with view(), which takes no other order in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4 * 6 * 6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(x).view(len(x), -1))


def test_networks_that_ask_for_an_order_in_memory_with_view_get_the_images_as_they_came():
    x, names = images(24), ["conv", "fc"]
    network = Viewing().eval()
    found = similarity_map(network, network, [x[:12], x[12:]], names, names)
    np.testing.assert_allclose(
        found.values, minibatch_cka(network, network, [x[:12], x[12:]], names), atol=1e-5
    )


def test_an_error_of_the_network_is_its_own_and_raised_once():
    runs = []

    def fail(*_: object) -> None:
        runs.append(1)
        raise RuntimeError("out of something")

    network = conv_network().eval()
    network[-1].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of something"):
        similarity_map(network, network, [images()])
    assert runs == [1]


def test_networks_keep_their_modes_and_no_hooks_so_that_they_can_be_copied():
    network = conv_network().train()
    network[1].eval()
    modes = [module.training for module in network.modules()]
    statistics = copy.deepcopy(network.state_dict())
    similarity_map(network, network, [images()])
    with pytest.raises(ValueError, match="has 3 images"):
        similarity_map(network, network, [images(8), images(3), images(8)])
    assert [module.training for module in network.modules()] == modes
    assert not any(module._forward_hooks for module in network.modules())
    assert all(
        torch.equal(value, statistics[name])
        for name, value in copy.deepcopy(network).state_dict().items()
    )


def test_hooks_are_removed_when_the_network_fails():
    network = conv_network()
    with pytest.raises(RuntimeError):
        similarity_map(network, network, [torch.rand(8, 4, 8, 8)])
    assert not any(module._forward_hooks for module in network.modules())


def test_chance_has_the_spread_of_a_random_permutation_and_the_floor_is_read_from_it():
    """Of centred matrices under permutations, the mean square of the cosine is 2 / (n (n - 3)),
    whatever they are.
    """
    n, draws = 24, 400
    found = similarity_map(
        conv_network(), conv_network(seed=1), [images(n)], ["0", "7"], ["1", "4"], draws=draws
    )
    assert found.chance.shape == (draws, 2, 2)
    assert np.sqrt((found.chance**2).mean()) == pytest.approx(
        math.sqrt(2 / (n * (n - 3))), rel=0.15
    )
    assert (
        found.floor.upper == pytest.approx(np.quantile(found.chance, 0.95))
        and found.floor.upper < found.values.min()
    )
    again = similarity_map(
        conv_network(), conv_network(seed=1), [images(n)], ["0", "7"], ["1", "4"], draws=draws
    )
    assert np.array_equal(found.chance, again.chance)


def test_chance_is_the_similarity_to_shuffled_images():
    a, b, x, names = conv_network(), conv_network(seed=1), images(9), ["0", "7"]
    found = similarity_map(a, b, [x], names, names, draws=1, seed=3)
    order = rearranged(9, 9, torch.Generator().manual_seed(3))
    left, right = outputs(a.eval(), names, x), [rows[order] for rows in outputs(b.eval(), names, x)]
    assert found.chance[0] == pytest.approx(
        np.array([[linear_cka(u, v) for v in right] for u in left]), abs=1e-5
    )


def test_a_dead_layer_has_no_number_and_a_note():
    network = conv_network()
    nn.init.zeros_(network[3].weight)  # its bias is left: constant over the images
    found = similarity_map(network, conv_network(seed=1), images(16).split(8))
    dead = [
        name for name, row in zip(found.layers_a, found.values, strict=True) if np.isnan(row).all()
    ]
    assert dead == ["3", "4", "7"] and np.isfinite(found.values[:2]).all()
    assert "no similarity (-) for 3, 4, 7 of a" in found.notes[0] and found.notes[0][:30] in str(
        found
    )
    assert np.isfinite(found.floor.upper) and json.dumps(found.to_dict(), allow_nan=False)


def test_images_that_are_equally_far_apart_have_no_number():
    found = similarity_map(
        nn.Sequential(nn.Identity()), nn.Sequential(nn.Identity()), [torch.eye(8)], ["0"], ["0"]
    )
    assert np.isnan(found["0", "0"])


def test_text_dictionary_and_lookup():
    found = similarity_map(conv_network(), Transformer(), images(16).split(8))
    text = str(found)
    assert (
        "debiased minibatch linear CKA; an image a row" in text and "16 images in 2 batches" in text
    )
    assert (
        f"{round(100 * found['3', 'blocks.1']):3d}" in text.splitlines()[3]
        and "a (Sequential); columns: b (Transformer), 1 patches" in text
    )
    assert f"{found.floor.upper:.3f} (95 %)" in " ".join(text.split("\n"))
    told = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert (
        told["values"][2][1] == found["3", "blocks.0"]
        and told["floor"]["upper"] == found.floor.upper
        and told["draws"] == 200
    )
    with pytest.raises(KeyError, match="'stem' was compared; these were: 0, 1"):
        found["stem", "patches"]
    none = similarity_map(conv_network(), Transformer(), [images(8)], draws=0)
    assert math.isnan(none.floor.upper) and "shuffled" not in str(none)


@pytest.mark.parametrize(
    ("ending", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")]
)
def test_the_heatmap_names_every_layer_and_is_written(tmp_path, ending, start):
    found = similarity_map(conv_network(depth=15), Transformer(), [images(8)])
    axes = found.figure().axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(found.layers_a)
    assert [label.get_text() for label in axes.get_xticklabels()] == list(found.layers_b)
    assert np.array_equal(axes.images[0].get_array(), found.values) and axes.images[
        0
    ].get_clim() == (0, 1)
    found.plot(tmp_path / f"map.{ending}")
    assert (tmp_path / f"map.{ending}").read_bytes().startswith(start)
    if ending == "svg":
        assert ET.parse(tmp_path / "map.svg").getroot().tag.endswith("svg")


def test_the_heatmap_darkens_steadily_in_grey_and_hatches_what_has_no_value():
    network = conv_network()
    nn.init.zeros_(network[3].weight)
    axes = similarity_map(network, network, [images(8)]).figure().axes[0]
    red, green, blue, _ = axes.images[0].get_cmap()(np.linspace(0, 1, 64)).T
    assert (np.diff(0.299 * red + 0.587 * green + 0.114 * blue) < 0).all()
    assert axes.patch.get_hatch() and np.ma.getmaskarray(axes.images[0].get_array()).any()


class Odd(nn.Module):
    """Layers that return several things, run twice or never, or swap images and features."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.shared, self.unused = (
            nn.LSTM(8, 4, batch_first=True),
            nn.Linear(4, 4),
            nn.Linear(4, 4),
        )
        self.turned, self.last = nn.Identity(), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out, _ = self.lstm(x[:, 0])
        self.turned(out.transpose(0, 1))
        return self.last(self.shared(self.shared(out)).mean(1))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("lstm", r"'lstm' returned a tuple.*its entries are 0 \(6 x 8 x 4\), 1 \(tuple\)"),
        ("shared", "'shared' ran 2 times"),
        ("unused", "'unused' ran 0 times"),
        ("turned", r"'turned' of a outputs \(8, 6, 4\) for 6 images"),
        ("lats", "no layer 'lats'; did you mean last"),
    ],
)
def test_layers_that_have_no_one_output_are_refused_by_name(layer, message):
    with pytest.raises(ValueError, match=message):
        similarity_map(Odd(), conv_network(), [images(6)], [layer])


def test_one_entry_of_a_tuple_can_be_named():
    network = Odd().eval()
    found = similarity_map(network, network, [images(6)], ["lstm:0", "last"], ["lstm:0"])
    assert found["lstm:0", "lstm:0"] == pytest.approx(1)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_activations_that_are_not_finite_name_the_layer_and_the_network(value):
    network = conv_network(seed=1)
    with torch.no_grad():
        network[4].bias[2] = value
    with pytest.raises(
        ValueError, match=r"layer '4' of b outputs \d+ values that are NaN or infinite"
    ):
        similarity_map(conv_network(), network, [images(6)])


def test_loaders_without_enough_images_are_refused_with_their_sizes():
    network = conv_network()
    with pytest.raises(ValueError, match="no batch"):
        similarity_map(network, network, [])
    with pytest.raises(ValueError, match="batch 1 has 3 images, and the debiased measure needs 4"):
        similarity_map(network, network, [images(3)])
    with pytest.raises(ValueError, match=r"batch 2 has 2 images.*larger batches"):
        similarity_map(network, network, [images(6), images(2), images(6)])
    with pytest.warns(UserWarning, match=r"batch 3 has 1 images.*left out"):
        found = similarity_map(network, network, images(13).split(6))
    assert (found.examples, found.batches) == (12, 2)
    with pytest.raises(ValueError, match=r"a dict of 'pixels', but its forward takes .*to_inputs="):
        similarity_map(network, network, [{"pixels": images(6)}])
    with pytest.raises(TypeError, match="the inputs are a int; give a tensor"):
        similarity_map(network, network, 6)


def test_layers_are_refused_where_they_are_none_or_twice_or_a_string():
    network = conv_network()
    with pytest.raises(ValueError, match="layers_b names '0' twice"):
        similarity_map(network, network, [images(6)], None, ["0", "0"])
    with pytest.raises(ValueError, match=r"a \(Flatten\) has no layers to compare"):
        similarity_map(nn.Flatten(), network, [images(6)])
    with pytest.raises(TypeError, match="one string"):
        similarity_map(network, network, [images(6)], "0")


def test_networks_on_different_devices_are_refused_with_both():
    with pytest.raises(ValueError, match="a is on cpu and b on meta"):
        similarity_map(conv_network(), conv_network().to("meta"), [images(6)])


def test_a_network_in_float64_is_compared_in_float64():
    a, b, x = (
        conv_network().double().eval(),
        conv_network(seed=1).double().eval(),
        images().double(),
    )
    found = similarity_map(a, b, [x], ["0", "7"], ["1"])
    expected = [
        [linear_cka(left, right) for right in outputs(b, ["1"], x)]
        for left in outputs(a, ["0", "7"], x)
    ]
    assert found.values == pytest.approx(np.array(expected), abs=1e-12)
