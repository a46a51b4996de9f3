"""Results print in a line or two, whatever they hold, and every one of them can be drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from metalearn import ANIL, meta_train
from metalearn.analysis import (
    compare_layers,
    feature_reuse,
    freezing,
    linear_probes,
    similarity_map,
)
from metalearn.data.images import LabelledImages
from metalearn.episodes import Episode, Examples, stack
from metalearn.tasks import FewShot
from metalearn.training.loop import Curve
from tests.helpers import drawn_curves


def tasks() -> FewShot:
    pixels = torch.randint(256, (60, 1, 6, 6), generator=torch.Generator().manual_seed(0)).to(
        torch.uint8
    )
    return FewShot(
        LabelledImages(pixels, torch.arange(6).repeat_interleave(10)),
        ways=3,
        shots=2,
        queries=3,
        tasks=4,
    )


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 3))


def test_reprs_are_short() -> None:
    few_shot = tasks()
    assert (
        repr(few_shot)
        == "FewShot(LabelledImages of 6 classes, ways=3, shots=2, queries=3, tasks=4, seed=0)"
    )
    assert repr(few_shot[0].support) == "Examples(inputs=6 x 1 x 6 x 6 float32, targets=6 int64)"
    assert repr(few_shot[0]).startswith("Episode(support=Examples(inputs=6 x 1 x 6 x 6 float32")
    assert len(repr(stack([few_shot[0], few_shot[1]]))) < 200
    assert (
        repr(Examples(torch.tensor(1.0), None))
        == "Examples(inputs=scalar float32, targets=<NoneType>)"
    )
    curve = meta_train(
        ANIL(network(), lr=0.1),
        few_shot,
        steps=3,
        validation=few_shot,
        validate_every=2,
        progress=False,
    )
    assert repr(curve).startswith("Curve(3 steps, last loss ") and "best validation" in repr(curve)
    assert repr(Curve()) == "Curve(no steps)"
    assert len(repr(Curve([0.5] * 60_000, [0.5] * 60_000))) < 100
    assert isinstance(few_shot[0], Episode) and isinstance(few_shot[0], tuple)


@pytest.mark.parametrize("kind", ["profile", "map", "freezing", "probes", "reuse"])
def test_every_result_has_a_picture(kind: str, tmp_path: Path) -> None:
    few_shot, learner = tasks(), ANIL(network(), lr=0.1)
    x = torch.rand(30, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(3).repeat(10)
    result = {
        "profile": lambda: compare_layers(network(0), network(1), x),
        "map": lambda: similarity_map(network(0), network(1), x),
        "freezing": lambda: freezing(learner, few_shot),
        "probes": lambda: linear_probes(
            network(), Examples(x[:15], labels[:15]), Examples(x[15:], labels[15:])
        ),
        "reuse": lambda: feature_reuse(learner, few_shot),
    }[kind]()
    result.plot(tmp_path / "picture.svg")
    assert (tmp_path / "picture.svg").read_bytes().startswith(b"<?xml")
    axes = result.figure().axes[0]
    ticks = [label.get_text() for label in axes.get_xticklabels()]
    assert ticks == (["none", "1"] if kind == "freezing" else ["1", "3"])
    if kind == "map":
        assert np.array_equal(axes.images[0].get_array(), result.values)
    else:
        label, values = {
            "profile": lambda: ("linear_cka", [row.similarity for row in result.layers]),
            "freezing": lambda: ("the learner", [100 * row.accuracy.mean for row in result.rows]),
            "probes": lambda: ("linear probe", [100 * row.accuracy.mean for row in result.layers]),
            "reuse": lambda: ("CKA (mean over tasks)", [row.cka.mean for row in result.layers]),
        }[kind]()
        assert drawn_curves(axes)[label] == pytest.approx(values)
    with pytest.raises(ValueError, match=r"use \.png, \.svg or \.pdf"):
        result.plot(tmp_path / "picture.docx")
    assert result.to_dict()
