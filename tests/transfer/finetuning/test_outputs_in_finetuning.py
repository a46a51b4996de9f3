"""Networks with several outputs or several inputs, fine-tuned and compared."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import NamedTuple

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from metalearn.data.images import LabelledImages
from transfer import compare, everywhere, finetune, fresh, transfusion
from transfer.finetuning.finetune import FineTuning


def pictures(count: int = 8, size: int = 6, channels: int = 1) -> LabelledImages:
    pixels = torch.randint(
        0,
        256,
        (count, channels, size, size),
        generator=torch.Generator().manual_seed(0),
        dtype=torch.uint8,
    )
    return LabelledImages(pixels, torch.arange(count) % 2)


class ModelOutput(OrderedDict):
    """As transformers' (huggingface/transformers#38922 tells of their wrappers): a dictionary with
    its fields as attributes.
    """

    __getattr__ = OrderedDict.__getitem__


class Wrapped(nn.Module):
    """A linear classifier whose logits lie inside of something."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
        self.head = nn.Linear(4, 2)

    def forward(self, images: Tensor):
        features = self.body(images)
        logits = self.head(features)
        if self.kind == "tuple":
            return features, logits
        if self.kind == "dictionary":
            return {"features": features, "out": logits}
        return ModelOutput(loss=None, logits=logits, hidden_states=(features,))


ENTRIES = {"tuple": "1", "dictionary": "out", "model output": "logits"}


@pytest.mark.parametrize(("kind", "entry"), ENTRIES.items())
def test_output_names_the_entry_and_gives_what_the_bare_logits_give(kind: str, entry: str) -> None:
    def curve(model: nn.Module, **options):
        return finetune(pictures(), pictures(), steps=3, batch=4, **options)(model, seed=0)

    torch.manual_seed(0)
    wrapped = Wrapped(kind)
    bare = nn.Sequential(wrapped.body, wrapped.head)
    expected = curve(nn.Sequential(*map(clone, bare)))
    assert curve(wrapped, output=entry).losses == expected.losses


def clone(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module)


@pytest.mark.parametrize(("kind", "entry"), ENTRIES.items())
def test_a_missing_or_wrong_output_lists_the_entries(kind: str, entry: str) -> None:
    for output in (None, "nothing"):
        with pytest.raises(ValueError, match="entries are") as caught:
            finetune(pictures(), pictures(), steps=1, output=output)(Wrapped(kind), seed=0)
        assert f"output='{entry}'" in str(caught.value) or f"{entry} (8 x 2)" in str(caught.value)


class Auxiliary(NamedTuple):
    logits: Tensor
    aux: Tensor


class WithAuxiliary(nn.Sequential):
    """As GoogLeNet and Inception: auxiliary logits in training mode alone."""

    def forward(self, images: Tensor):
        logits = super().forward(images)
        return Auxiliary(logits, logits) if self.training else logits


def test_an_entry_of_training_mode_alone_is_not_missed_in_evaluation() -> None:
    def model() -> nn.Module:
        torch.manual_seed(0)
        return WithAuxiliary(nn.Flatten(), nn.Linear(36, 2))

    with pytest.raises(ValueError, match=r"logits \(4 x 2\).*output='logits'"):
        finetune(pictures(), pictures(), steps=1, batch=4)(model(), seed=0)
    train = finetune(pictures(), pictures(), steps=3, batch=4, output="logits")
    plain = finetune(pictures(), pictures(), steps=3, batch=4)
    assert train(model(), seed=0).losses == plain(nn.Sequential(*model()), seed=0).losses
    with pytest.raises(ValueError, match="no entry 'logits'"):
        train(nn.Sequential(*model()), seed=0)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("googlenet", 32), ("inception_v3", 299)])
def test_torchvisions_networks_with_auxiliary_heads(name: str, size: int) -> None:
    model = torchvision.models.get_model(name, num_classes=2, aux_logits=True, init_weights=False)
    data = pictures(4, size, 3)
    with pytest.raises(ValueError, match=r"logits \(4 x 2\).*output='logits'"):
        finetune(data, data, steps=1, batch=4)(model, seed=0)
    assert len(finetune(data, data, steps=1, batch=4, output="logits")(model, seed=0).losses) == 1


@pytest.mark.slow
def test_a_segmentation_network_is_refused_with_the_shape_of_its_output() -> None:
    data = pictures(4, 64, 3)
    model = torchvision.models.segmentation.deeplabv3_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=2
    )
    with pytest.raises(ValueError, match="one number a class"):
        finetune(data, data, steps=1, batch=4, output="out")(model, seed=0)
    with pytest.raises(ValueError, match="entries are out"):
        finetune(data, data, steps=1, batch=4)(model, seed=0)


class Text(nn.Module):
    """A masked bag of words, called with names as transformers' models are."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 6)
        self.body = nn.Linear(6, 5)
        self.head = nn.Linear(5, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> ModelOutput:
        words = self.embedding(input_ids) * attention_mask[..., None]
        return ModelOutput(logits=self.head(torch.relu(self.body(words.sum(1)))))


class Sentences(torch.utils.data.Dataset):
    """Dictionaries of token numbers; class 1 has higher ones."""

    def __init__(self, length: int = 7, as_tuple: bool = False) -> None:
        self.length, self.as_tuple = length, as_tuple

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int):
        generator = torch.Generator().manual_seed(index)
        ids = torch.randint(0, 10, (self.length,), generator=generator) + 10 * (index % 2)
        mask = torch.ones(self.length, dtype=torch.int64)
        return (
            (ids, mask) if self.as_tuple else {"input_ids": ids, "attention_mask": mask}
        ), index % 2


def test_dictionary_and_tuple_batches_train_and_are_compared() -> None:
    by_name = finetune(Sentences(), Sentences(), steps=30, batch=8, lr=0.05, output="logits")
    by_place = finetune(
        Sentences(as_tuple=True),
        Sentences(as_tuple=True),
        steps=30,
        batch=8,
        lr=0.05,
        output="logits",
    )
    torch.manual_seed(0)
    curve = by_name(Text(), seed=0)
    torch.manual_seed(0)
    assert by_place(Text(), seed=0).losses == curve.losses
    assert curve.final == 1
    found = compare(
        {"a": everywhere(fresh()), "b": transfusion(Text())},
        Text,
        by_name,
        by_name.probe(24),
        seeds=[0, 1],
    )
    assert set(found.kept("a")) == {"embedding", "body", "head"}
    assert found.settings["train"]["output"] == "logits"


def test_a_probe_or_a_set_that_does_not_fit_is_named() -> None:
    with pytest.raises(
        ValueError,
        match=(r"inputs.input_ids, inputs.attention_mask .*inputs.0"),
    ):
        finetune(Sentences(), Sentences(as_tuple=True), steps=1)
    with pytest.raises(ValueError, match="entry 'input_ids' of item 1"):
        finetune(
            [({"input_ids": torch.ones(2)}, 0), ({"input_ids": torch.ones(3)}, 1)],
            Sentences(),
            steps=1,
        )
    with pytest.raises(TypeError, match="is missing or no tensor"):
        finetune(
            [({"input_ids": torch.ones(2)}, 0), ({"ids": torch.ones(2)}, 1)], Sentences(), steps=1
        )
    with pytest.raises(TypeError, match="give pairs of inputs and label"):
        finetune([{"input_ids": torch.ones(2), "labels": 0}], Sentences(), steps=1)
    train = finetune(pictures(), pictures(), steps=1)
    with pytest.raises(ValueError, match="does not take the probe"):
        compare(
            {"a": everywhere(fresh()), "b": everywhere(fresh())},
            Text,
            train,
            {"ids": torch.ones(3, 7)},
            seeds=[0],
        )


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 4, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.lstm(images[:, 0])[0][:, -1])


def test_a_layer_that_puts_out_a_tuple_is_named_before_training_and_layers_chooses() -> None:
    train: FineTuning = finetune(pictures(), pictures(), steps=1)
    starts = {"a": everywhere(fresh()), "b": everywhere(fresh())}
    with pytest.raises(ValueError, match="name one as 'lstm:0'"):
        compare(starts, Recurrent, train, train.probe(8), seeds=[0])
    found = compare(starts, Recurrent, train, train.probe(8), seeds=[0], layers=["lstm:0", "head"])
    assert list(found.kept("a")) == ["lstm:0", "head"]


def test_features_alone_train_as_before() -> None:
    features = TensorDataset(torch.rand(12, 5), torch.arange(12) % 2)
    assert len(finetune(features, features, steps=2)(nn.Linear(5, 2), seed=0).losses) == 2
