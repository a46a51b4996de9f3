"""Scores and probes of networks whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from metalearn.data.images import LabelledImages
from metalearn.studies.pointer_probes import VALUES, pointer_probes
from metalearn.studies.pointer_scores import pointer_scores
from metalearn.tasks import pointer_images, pointer_vectors


class Stages(nn.Module):
    """A program in stages: all digits, then the pointed value, then nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.everything = nn.Identity()
        self.pointed = nn.Identity()
        self.nothing = nn.Identity()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, inputs: Tensor) -> Tensor:
        digits = nn.functional.one_hot(inputs, 10).float()  # (examples, 11, 10)
        digits = self.everything(self.scale * digits)
        pointer = digits[:, 0]  # (examples, 10)
        pointed = self.pointed((pointer[:, :, None] * digits[:, 1:]).sum(1))  # (examples, 10)
        self.nothing(0 * pointed)
        return pointed


LAYERS = ["everything", "pointed", "nothing"]


def test_probes_find_each_fact_where_it_is() -> None:
    train, test = pointer_vectors(1000, seed=0), pointer_vectors(500, seed=1)
    probes = pointer_probes(Stages(), train, test, LAYERS)
    assert probes.layers == LAYERS
    assert probes.accuracy("everything", "pointer") == 1
    assert probes.accuracy("everything", VALUES) == 1
    assert probes.accuracy("everything", "value 7") == 1
    # No linear map of the digits gives the pointed one.
    assert probes.accuracy("everything", "pointed value") < 0.5
    assert probes.accuracy("pointed", "pointed value") == probes.accuracy("pointed", "label") == 1
    assert probes.accuracy("pointed", "pointer") < 0.2
    assert probes.accuracy("nothing", "label") < 0.2
    assert "values (mean)" in str(probes)
    assert probes.to_dict()["layers"][0]["pointer"] == 1
    assert 0.1 <= probes.to_dict()["chance"]["pointer"] < 0.2


def test_scores_of_the_program() -> None:
    train, iid = pointer_vectors(100, seed=0), pointer_vectors(100, seed=1)
    scores = pointer_scores(Stages(), train, iid)
    assert scores.train == scores.iid == 1
    assert math.isnan(scores.adversarial) and math.isnan(scores.same_labels)


def test_same_labels_weighs_the_iid_accuracy_by_the_adversarial_labels() -> None:
    class FirstPointed(Stages):
        """Takes the first value for the sum of two: right where the second is 0."""

    settings = {"complexity": 1, "holdout": 1}
    iid = pointer_vectors(4000, seed=1, **settings)
    shifted = pointer_vectors(300, seed=2, adversarial=True, **settings)
    scores = pointer_scores(FirstPointed(), iid, iid, shifted)
    # Of ten pairs with the sum 1, (0, 1) is held out, and (1, 0) alone has its second value 0.
    assert scores.same_labels == pytest.approx(1 / 9, abs=0.05)
    assert scores.adversarial == 0


def test_images_have_facts_too() -> None:
    pixels = torch.randint(256, (30, 1, 28, 28), dtype=torch.uint8)
    digits = LabelledImages(pixels, torch.arange(30) % 10, tuple("0123456789"))
    train = pointer_images(digits, 60, seed=0)
    network = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(100, 10))
    probes = pointer_probes(network, train, pointer_images(digits, 30, seed=1), ["2"])
    assert probes.columns() == ["pointer", "top right", "bottom left", "bottom right", "label"]
    shifted = pointer_images(digits, 20, seed=2, holdout="positions", adversarial=True)
    assert 0 <= pointer_scores(network, train, train, shifted).adversarial <= 1
