"""Two networks compared layer by layer, over one tensor and over a loader, with the inputs that
spoil a comparison.
"""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from metalearn.analysis import cca, compare_layers, linear_cka
from metalearn.analysis.measures.streaming import Streaming

MEASURES: list[tuple[str, dict[str, float]]] = [
    ("cca", {}),
    ("svcca", {}),
    ("pwcca", {}),
    ("linear_cka", {}),
    ("rbf_cka", {}),
    ("procrustes", {}),
    ("subspace", {"k": 2}),
]
FROM_MOMENTS = [pair for pair in MEASURES if pair[0] != "rbf_cka"]


class Attention(nn.Module):
    """Images to tokens to a vector, as vision transformers do."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 4, stride=4)
        self.block = nn.TransformerEncoderLayer(width, 2, 8, dropout=0.0, batch_first=True)
        self.head = nn.Linear(width, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.block(self.patches(images).flatten(2).mT).mean(1))


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return Attention().eval()


def images(count: int = 60) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(9))


def loader(count: int = 60, size: int = 16, **options: bool) -> DataLoader:
    return DataLoader(TensorDataset(images(count), torch.zeros(count)), batch_size=size, **options)


@pytest.mark.parametrize(("measure", "options"), FROM_MOMENTS)
@pytest.mark.parametrize("convention", ["positions", "pool"])
def test_a_loader_gives_what_one_tensor_gives(
    measure: str, options: dict[str, float], convention: str
) -> None:
    whole = compare_layers(
        net(0), net(1), images(), measure=measure, convention=convention, draws=2, **options
    )
    over = compare_layers(
        net(0), net(1), loader(), measure=measure, convention=convention, draws=2, **options
    )
    assert [row.layer for row in over.layers] == ["patches", "block", "head"]
    for ours, theirs in zip(over.layers, whole.layers, strict=True):
        assert ours.similarity == pytest.approx(
            theirs.similarity, abs=1e-5
        )  # a batch's own rounding in float32
        assert (ours.examples, ours.features) == (theirs.examples, theirs.features)
        assert len(ours.chance) == 2
    assert whole.streamed == "" and over.streamed == "moments summed over 4 batches of up to 16"
    shuffled = (
        "neurons shuffled" if measure == "subspace" else "examples shuffled within each batch"
    )
    assert f"moments summed over 4 batches of up to 16; chance: one side's {shuffled})" in str(over)


@pytest.mark.parametrize("measure", ["linear_cka", "rbf_cka"])
def test_flattened_images_stream_by_minibatch_cka_and_the_table_says_so(measure: str) -> None:
    a, b, over = net(0), net(1), compare_layers(net(0), net(1), loader(), measure=measure)
    stream = Streaming(measure, minibatch=True)
    with torch.no_grad():
        for batch, _ in loader():
            stream.update(a.patches(batch).flatten(1), b.patches(batch).flatten(1))
    assert over["patches"].similarity == pytest.approx(stream.compute(), abs=1e-10)
    assert over["patches"].examples == 60 and over["patches"].features == (24, 24)
    assert "minibatch CKA over 4 batches of up to 16" in str(over)
    assert over.to_dict()["streamed"].startswith("minibatch CKA")
    one = compare_layers(net(0), net(1), loader(size=60), measure="linear_cka")
    assert one["block"].similarity == pytest.approx(
        compare_layers(net(0), net(1), images())["block"].similarity, abs=1e-10
    )


@pytest.mark.parametrize(("measure", "options"), MEASURES)
def test_the_same_network_is_one_under_a_shuffling_loader_and_another_never_is(
    measure: str, options: dict[str, float]
) -> None:
    same = compare_layers(net(0), net(0), loader(shuffle=True), measure=measure, draws=2, **options)
    other = compare_layers(
        net(0), net(1), loader(shuffle=True), measure=measure, draws=2, **options
    )
    whole = compare_layers(net(0), net(1), images(), measure=measure, draws=2, **options)
    assert [row.similarity for row in same.layers] == [1.0, 1.0, 1.0]
    for row in (*other.layers[:2], *whole.layers[:2]):
        assert row.similarity < 0.999
    for row in same.layers:
        assert row.floor.median < 0.9


def test_conventions_of_images_tokens_and_vectors_are_those_that_the_table_says() -> None:
    a, b, x = net(0), net(1), images()
    with torch.no_grad():
        maps_a, maps_b = a.patches(x), b.patches(x)
        tokens_a, tokens_b = a.block(maps_a.flatten(2).mT), b.block(maps_b.flatten(2).mT)
        vectors_a, vectors_b = a(x), b(x)
    flat = compare_layers(a, b, x, draws=0)
    assert flat["patches"].similarity == pytest.approx(
        linear_cka(maps_a.flatten(1), maps_b.flatten(1)), abs=1e-6
    )
    assert flat["block"].similarity == pytest.approx(
        linear_cka(tokens_a.flatten(1), tokens_b.flatten(1)), abs=1e-6
    )
    by_position = compare_layers(a, b, x, measure="cca", draws=0)
    rows = [m.permute(0, 2, 3, 1).reshape(-1, 6) for m in (maps_a, maps_b)]
    assert by_position["patches"].similarity == pytest.approx(cca(*rows), abs=1e-6)
    assert by_position["block"].similarity == pytest.approx(
        cca(tokens_a.reshape(-1, 6), tokens_b.reshape(-1, 6)), abs=1e-6
    )
    pooled = compare_layers(a, b, x, convention="pool", draws=0)
    assert pooled["patches"].similarity == pytest.approx(
        linear_cka(maps_a.mean((2, 3)), maps_b.mean((2, 3))), abs=1e-6
    )
    assert pooled["block"].similarity == pytest.approx(
        linear_cka(tokens_a.mean(1), tokens_b.mean(1)), abs=1e-6
    )
    for profile, said in (
        (flat, "an example a row"),
        (by_position, "a position of an example a row"),
        (pooled, "averaged over positions"),
    ):
        assert profile["head"].features == (3, 3) and profile["head"].examples == 60
        assert said in str(profile)
    assert compare_layers(a, b, x, convention="pool", draws=0)["head"].similarity == pytest.approx(
        linear_cka(vectors_a, vectors_b), abs=1e-6
    )


def test_rows_are_the_same_positions_of_every_batch_however_short() -> None:
    whole = compare_layers(net(0), net(1), images(), ["patches"], measure="cca", rows=120, draws=0)
    over = compare_layers(net(0), net(1), loader(), ["patches"], measure="cca", rows=32, draws=0)
    assert whole["patches"].examples == over["patches"].examples == 120
    assert over["patches"].similarity == pytest.approx(whole["patches"].similarity, abs=1e-5)


def test_any_iterable_of_batches_is_a_loader() -> None:
    class Endless(IterableDataset):
        def __iter__(self):
            return iter(images())

    expected = compare_layers(net(0), net(1), loader(), ["block"])["block"].similarity
    for inputs in (
        list(images().split(16)),
        iter(images().split(16)),
        DataLoader(Endless(), batch_size=16),
    ):
        assert compare_layers(net(0), net(1), inputs, ["block"], progress=True)[
            "block"
        ].similarity == pytest.approx(expected, abs=1e-10)


def test_batches_of_one_image_have_values_but_no_floor() -> None:
    profile = compare_layers(net(0), net(1), loader(size=1), measure="cca", draws=2)
    assert profile["block"].similarity == pytest.approx(
        compare_layers(net(0), net(1), images(), measure="cca")["block"].similarity, abs=1e-5
    )
    assert (
        math.isnan(profile["block"].floor.median)
        and "every batch holds one example" in profile["block"].note
    )
    assert profile.to_dict()["layers"][0]["floor"] == {"median": None, "upper": None, "draws": 0}
    minibatch = compare_layers(net(0), net(1), loader(size=1))
    assert (
        math.isnan(minibatch["block"].similarity)
        and "fewer than the 4 examples" in minibatch["block"].note
    )


def test_a_short_last_batch_of_one_image_counts() -> None:
    over = compare_layers(net(0), net(1), loader(count=33), measure="cca")
    whole = compare_layers(net(0), net(1), images(33), measure="cca")
    assert over["patches"].similarity == pytest.approx(whole["patches"].similarity, abs=1e-5)


def test_a_measure_that_says_nothing_over_a_loader_is_nan_with_the_reason() -> None:
    class Dead(nn.Sequential):
        pass

    model = nn.Sequential(nn.Flatten(), Dead(nn.Linear(64, 8), nn.ReLU()), nn.Linear(8, 2))
    nn.init.constant_(model[1][0].bias, -100)
    profile = compare_layers(model, model, loader(), measure="cca")
    assert math.isnan(profile["1"].similarity) and "no variance" in profile["1"].note
    for measure in ("linear_cka", "rbf_cka"):
        row = compare_layers(model, model, loader(), measure=measure)["1"]
        assert math.isnan(row.similarity) and "equally far apart" in row.note
    batches = [torch.cat([torch.zeros(15, 1, 8, 8), torch.ones(1, 1, 8, 8)])] * 2
    coincide = compare_layers(net(0), net(1), batches, ["patches"], measure="rbf_cka")["patches"]
    assert (
        math.isnan(coincide.similarity)
        and "the median distance is 0; use linear_cka (in a batch)" in coincide.note
    )


@pytest.mark.parametrize("inputs", [images, loader])
def test_activations_that_are_not_finite_name_the_layer(inputs) -> None:
    broken = net(1)
    with torch.no_grad():
        broken.block.linear2.bias[0] = math.nan
    with pytest.raises(ValueError, match=r"after: layer 'block' outputs \d+ values that are NaN"):
        compare_layers(net(0), broken, inputs())
    with pytest.raises(
        ValueError, match=r"before: layer 'block' outputs"
    ):  # not 'patches' after, which an inner loop then broke too
        compare_layers(broken, net(0), inputs())


class Pair(NamedTuple):
    hidden: Tensor
    weights: list[Tensor]


class Several(nn.Module):
    """A layer that puts out several things."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.linear, self.never = kind, nn.Linear(64, 5), nn.Linear(5, 5)

    def forward(self, x: Tensor):
        y = self.linear(x.flatten(1))
        return {
            "tuple": (y, (y, y)),
            "dictionary": OrderedDict(last=y, all=[y]),
            "named": Pair(y, [y]),
            "nothing": None,
        }[self.kind]


class Around(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(len(kind))
        self.encoder, self.head = Several(kind), nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.encoder(x)
        return self.head(x.flatten(1))


@pytest.mark.parametrize(
    ("kind", "listed", "entry"),
    [
        (
            "tuple",
            (
                r"returned a tuple, not a tensor; its entries are 0 \(60 x 5\), 1 \(tuple\); name"
                r" one as 'encoder:0'"
            ),
            "0",
        ),
        (
            "dictionary",
            r"returned a OrderedDict.* last \(60 x 5\), all \(list\); name one as 'encoder:last'",
            "last",
        ),
        (
            "named",
            r"returned a Pair.* hidden \(60 x 5\), weights \(list\); name one as 'encoder:hidden'",
            "hidden",
        ),
    ],
)
def test_a_layer_that_puts_out_several_things_lists_them_and_one_can_be_named(
    kind: str, listed: str, entry: str
) -> None:
    model = Around(kind)
    with pytest.raises(ValueError, match=listed):
        compare_layers(model, model, images())
    name = f"encoder:{entry}"
    for inputs in (images(), loader()):
        profile = compare_layers(model, model, inputs, [name, "head"])
        assert profile[name].similarity == 1.0 and profile[name].features == (5, 5)
    with pytest.raises(ValueError, match=r"'other' is not a tensor; its entries are"):
        compare_layers(model, model, images(), ["encoder:other"])
    with pytest.raises(ValueError, match=r"'head' .* no entry '0'"):
        compare_layers(model, model, images(), ["head:0"])


def test_a_layer_without_output_is_named() -> None:
    with pytest.raises(ValueError, match=r"'encoder' .*NoneType.* inside or after it"):
        compare_layers(Around("nothing"), Around("nothing"), images())


@pytest.mark.parametrize("inputs", [images, loader])
def test_a_layer_that_ran_twice_or_never_is_named(inputs) -> None:
    shared = nn.Linear(64, 64)
    twice = nn.Sequential(nn.Flatten(), shared, nn.ReLU(), shared)
    with pytest.raises(ValueError, match="'1' ran 2 times"):
        compare_layers(twice, twice, inputs(), ["1"])
    with pytest.raises(ValueError, match=r"'encoder\.never' ran 0 times"):
        compare_layers(Around("tuple"), Around("tuple"), inputs(), ["encoder.never"])


@pytest.mark.parametrize("fails", [False, True])
def test_networks_are_left_as_they_were_and_can_be_copied(fails: bool) -> None:
    model = net().train()
    batches = list(images().split(16)) + [torch.rand(4, 3, 8, 8)] * fails
    if fails:
        with pytest.raises(RuntimeError):
            compare_layers(model, net(1), batches)
    else:
        compare_layers(model, net(1), batches)
    assert not any(module._forward_hooks for module in model.modules())
    assert all(module.training for module in model.modules())
    assert copy.deepcopy(model).head.weight.equal(model.head.weight)


def test_networks_on_different_devices_are_refused_naming_both() -> None:
    elsewhere = net(1).to("meta")
    weights = {name: parameter.to("meta") for name, parameter in net(1).named_parameters()}
    for other in (elsewhere, (net(1), weights)):
        with pytest.raises(ValueError, match=r"cpu and .* meta; .*after\.to\('cpu'\)"):
            compare_layers(net(0), other, images())


def test_inputs_come_to_the_network_in_its_precision_and_whole_numbers_stay() -> None:
    a, b = net(0).double(), net(1).double()
    assert compare_layers(a, b, images())["block"].similarity == pytest.approx(
        compare_layers(net(0), net(1), images())["block"].similarity, abs=1e-5
    )
    words = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 2))
    assert compare_layers(words, words, torch.randint(10, (20, 3)))["0"].similarity == 1.0


def test_what_is_no_loader_is_refused_with_the_cure() -> None:
    a, b = net(0), net(1)
    for inputs, said in [
        ([], "the loader gave no batch"),
        (iter(()), "batches only once"),
        ([{"pixels": images()}], r"a dict of 'pixels', but its forward takes .*to_inputs="),
        (
            [{"labels": images()}],
            "batch 1 of the loader holds a dict of 'labels'; it must give a tensor",
        ),
        ([(None, images())], "holds a tuple of NoneType, Tensor"),
        ([images()[:0]], r"holds a tensor of shape \(0, 1, 8, 8\)"),
    ]:
        with pytest.raises(ValueError, match=said):
            compare_layers(a, b, inputs)
    with pytest.raises(ValueError, match="groups=5: over a loader"):
        compare_layers(a, b, loader(), groups=5)
    with pytest.raises(ValueError, match="captured earlier have no batches"):
        compare_layers(a, {"head": images()}, loader(), ["head"])
    with pytest.raises(ValueError, match="debiased=False: minibatch CKA"):
        compare_layers(a, b, loader(), debiased=False)


def test_moments_that_would_fill_the_memory_are_refused_with_the_cures() -> None:
    wide = nn.Sequential(nn.Conv2d(1, 200, 1))
    with pytest.raises(ValueError, match=r"layer 0: 12800 and 12800 .*28 GiB.*convention='pool'"):
        compare_layers(wide, wide, loader(), measure="procrustes")
    assert (
        compare_layers(wide, wide, loader(), measure="procrustes", convention="pool")[
            "0"
        ].similarity
        == 1.0
    )


def test_a_layer_that_does_not_put_examples_first_is_refused() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.turn = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.turn(x.squeeze(1).transpose(0, 1)).transpose(0, 1)

    with pytest.raises(ValueError, match=r"layer 'turn' outputs \(8, 60, 4\) for 60 examples"):
        compare_layers(Turned(), Turned(), images(), ["turn"])


def test_other_numbers_of_positions_are_refused_over_a_loader_too() -> None:
    small, large = (nn.Sequential(nn.Conv2d(1, 3, size)) for size in (1, 3))
    with pytest.raises(
        ValueError, match=r"layer 0: 1024 rows before and 576 after.*convention='pool'"
    ):
        compare_layers(small, large, loader(), measure="cca")
    assert (
        0
        < compare_layers(small, large, loader(), measure="procrustes", convention="pool")[
            "0"
        ].similarity
        < 1
    )


def test_few_images_are_refused_or_noted_over_a_loader_as_in_memory() -> None:
    few = compare_layers(net(0), net(1), loader(count=6), measure="cca", convention="pool")
    assert "n=6 examples and d=6" in few["patches"].note and math.isnan(few["patches"].similarity)
    noted = compare_layers(net(0), net(1), loader(count=9), measure="cca", convention="pool")
    assert "are 1 whatever the data" in noted["patches"].note
