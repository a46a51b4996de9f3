"""Random starts at a given scale."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from transfer import everywhere, initialize, normal, xavier


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(8, 40, 3),
        nn.BatchNorm2d(40),
        nn.Flatten(),
        nn.Linear(400, 200),
        nn.Linear(200, 2),
    )


@pytest.mark.parametrize("source", [normal(0.02), xavier(), xavier(2.0)])
def test_matrices_have_the_scale_and_vectors_are_zero(source: object) -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    report = initialize(model, everywhere(source), seed=1)
    gain = getattr(source, "gain", None)
    for name, fans in (("0.weight", 9 * (8 + 40)), ("3.weight", 600)):
        expected = 0.02 if gain is None else gain * (2 / fans) ** 0.5
        tensor = model.state_dict()[name]
        assert float(tensor.std()) == pytest.approx(expected, rel=0.05)
        assert report[name].how == "drawn"
    assert not bool(model.state_dict()["3.bias"].any())
    assert torch.equal(model.state_dict()["1.weight"], before["1.weight"])  # a norm
    assert torch.equal(model.state_dict()["4.weight"], before["4.weight"])  # the head
    again = network()
    initialize(again, everywhere(source), seed=1)
    assert torch.equal(again.state_dict()["3.weight"], model.state_dict()["3.weight"])


@pytest.mark.parametrize("scale", [0, -1, float("nan"), "big"])
def test_scales_that_are_none_are_refused(scale: object) -> None:
    for source in (normal, xavier):
        with pytest.raises((ValueError, TypeError), match=f"={scale}|='{scale}'"):
            source(scale)
