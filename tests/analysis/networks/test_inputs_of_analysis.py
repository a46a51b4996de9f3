"""Networks of several inputs and outputs, and loaders of dictionaries, in `compare_layers` and
`similarity_map`.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from metalearn.analysis import compare_layers, similarity_map


class Encoder(nn.Module):
    """Token numbers and a mask -> a dictionary, as a language model's."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.words = nn.Embedding(20, 8)
        self.mix = nn.Linear(8, 6)
        self.top = nn.Linear(6, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        hidden = self.mix(self.words(input_ids)).tanh()  # (examples, positions, 6)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return {"logits": self.top(pooled), "hidden": hidden}


class TwoEyes(nn.Module):
    """Two images by position -> a tuple."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.left = nn.Linear(5, 7)
        self.right = nn.Linear(4, 7)
        self.head = nn.Linear(7, 2)

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        both = (self.left(left) + self.right(right)).relu()
        return self.head(both), both


def text(count: int = 40) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(20, (count, 6), generator=generator)
    mask = (torch.rand(count, 6, generator=generator) < 0.7).long()
    mask[:, 0] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.zeros(count).long()}


def batches(whole: dict[str, Tensor], size: int = 10) -> list[dict[str, Tensor]]:
    parts = zip(*(tensor.split(size) for tensor in whole.values()), strict=True)
    return [dict(zip(whole, part, strict=True)) for part in parts]


def eyes(count: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 5, generator=generator), torch.randn(count, 4, generator=generator)


@pytest.mark.parametrize(
    "inputs", [text(), batches(text()), DataLoader(batches(text()), batch_size=None)]
)
def test_dictionaries_are_inputs_by_name_without_their_labels(inputs) -> None:
    a, b = Encoder(0), Encoder(1)
    profile = compare_layers(a, b, inputs, ["mix", "top"], measure="procrustes")
    found = similarity_map(a, b, inputs, ["mix", "top"], ["mix", "top"], draws=2)
    with torch.no_grad():
        expected = compare_layers(
            {"top": a(**without_labels())["logits"]},
            {"top": b(**without_labels())["logits"]},
            measure="procrustes",
        )
    assert profile["top"].similarity == pytest.approx(expected["top"].similarity, abs=1e-6)
    assert found.examples == 40 and np.isfinite(found.values).all()


def without_labels() -> dict[str, Tensor]:
    return {name: value for name, value in text().items() if name != "labels"}


def test_the_mask_of_a_dictionary_counts() -> None:
    a, b = Encoder(0), Encoder(1)
    masked = compare_layers(a, b, text(), ["top"])["top"].similarity
    whole = compare_layers(a, b, {"input_ids": text()["input_ids"]}, ["top"])["top"].similarity
    assert masked != pytest.approx(whole, abs=1e-4)


def test_several_inputs_by_position_come_as_the_first_entry_of_a_batch() -> None:
    a, b, (left, right) = TwoEyes(0), TwoEyes(1), eyes()
    nested = [((left[i : i + 10], right[i : i + 10]), torch.zeros(10)) for i in range(0, 40, 10)]
    by_name = {"left": left, "right": right}
    pairs = DataLoader(TensorDataset(left, right, torch.zeros(40)), batch_size=10)
    whole = compare_layers(a, b, by_name, measure="procrustes")
    for loader, options in [
        (nested, {}),
        (pairs, {"to_inputs": lambda batch: (batch[0], batch[1])}),
    ]:
        found = compare_layers(a, b, loader, measure="procrustes", **options)
        for layer in ("left", "right", "head"):
            assert found[layer].similarity == pytest.approx(whole[layer].similarity, abs=1e-5)
        assert similarity_map(a, b, loader, draws=1, **options).examples == 40
    assert similarity_map(a, b, by_name, draws=1)["head", "head"] == pytest.approx(
        compare_layers(a, b, by_name)["head"].similarity, abs=1e-5
    )


def test_an_entry_of_the_whole_output_can_be_named() -> None:
    a, b = Encoder(0), Encoder(1)
    found = compare_layers(a, b, text(), [":logits", "top"])
    assert found[":logits"].similarity == found["top"].similarity
    assert similarity_map(a, b, text(), [":logits"], [":hidden"], draws=0).values.shape == (1, 1)
    with pytest.raises(ValueError, match=r"its entries are logits .*, hidden"):
        compare_layers(a, b, text(), [""])


def test_a_map_takes_the_tensor_that_a_comparison_takes() -> None:
    torch.manual_seed(0)
    a, b = (nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)) for _ in range(2))
    x = eyes()[0]
    found = similarity_map(a, b, x, draws=0)
    assert found["0", "0"] == pytest.approx(compare_layers(a, b, x)["0"].similarity, abs=1e-5)
    assert similarity_map(a, b, x.numpy(), draws=0)["2", "2"] == found["2", "2"]
    assert (
        compare_layers(a, b, x.numpy().astype(float))["0"].similarity
        == compare_layers(a, b, x)["0"].similarity
    )


@pytest.mark.parametrize("function", [compare_layers, similarity_map])
def test_what_the_networks_do_not_take_is_named_with_the_cure(function) -> None:
    a, x = Encoder(0), eyes()[0]
    images = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2))
    for network, inputs, said in [
        (
            a,
            {**text(), "idx": torch.arange(40)},
            r"'idx', but its forward takes \(input_ids.*to_inputs=",
        ),
        (a, [{"labels": x}], "batch 1 of the loader holds a dict of 'labels'"),
        (TwoEyes(0), x, r"\(TwoEyes\) was given a tensor .*forward takes \(left.*to_inputs="),
        (
            images,
            torch.zeros(8, 3, 8, 8, dtype=torch.uint8),
            r"torch.uint8, and failed .*images.float\(\) / 255",
        ),
        (
            images,
            [torch.zeros(8, 3, 8, 8, dtype=torch.bool)],
            r"torch.bool, and failed .*images.float\(\) / 255",
        ),
        (images, ["photo.png"], "batch 1 of the loader holds a str"),
        (images, [[]], "holds a list of nothing"),
        (images, torch.zeros(0, 3, 8, 8), r"holds a tensor of shape \(0, 3, 8, 8\)"),
    ]:
        with pytest.raises(ValueError, match=said):
            function(network, network, inputs)
    with pytest.raises(TypeError, match="the inputs are a str; give a tensor"):
        function(images, images, "photo.png")
    with pytest.raises(RuntimeError) as caught:
        function(images, images, torch.zeros(8, 1, 8, 8))
    assert any(
        "was given a tensor of shape (8, 1, 8, 8)" in note for note in caught.value.__notes__
    )


def test_a_layer_of_complex_numbers_is_refused_by_name() -> None:
    class Spectrum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.rfft(self.scale * x)

    model = nn.Sequential(Spectrum())
    for function in (compare_layers, similarity_map):
        with pytest.raises(ValueError, match=r"layer '?0'?.* complex"):
            function(model, model, eyes()[0])
