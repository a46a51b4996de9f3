"""ResNet12: its norms, and DropBlock."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import metalearn as ml
from metalearn.experiments.experiment import Experiment
from metalearn.models import DropBlock, ResNet12
from metalearn.network.norm import statistics
from tests.helpers import made_up_tasks

WIDTHS = (4, 4, 8, 8)


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("channels", [1, 3])
def test_norms(norm: str, channels: int) -> None:
    model = ResNet12(5, channels, WIDTHS, norm=norm)
    images = torch.rand(4, channels, 32, 32)
    with torch.no_grad():
        together, apart = model(images)[:2], model(images[:2])
    # Only batch norm lets examples meet.
    assert torch.allclose(together, apart, atol=1e-6) == (norm != "batch")
    kinds = {type(module) for module in model.modules()}
    assert (nn.GroupNorm in kinds) == (norm == "group")
    assert (nn.BatchNorm2d in kinds) == (norm == "batch")
    assert ml.layers(model) == ["block1", "block2", "block3", "block4", "head"]


def test_without_norms_the_scale_of_the_maps_stays() -> None:
    torch.manual_seed(0)
    model = ResNet12(5, 8, (32, 32, 32, 32), norm="none")
    maps = torch.randn(16, 8, 64, 64)
    with torch.no_grad():
        for name, block in model.named_children():
            if name != "head":
                maps = block(maps)
                assert 0.3 < float(maps.var()) < 3, name


@pytest.mark.parametrize("norm", ["group", "none"])
def test_every_way_agrees(norm: str) -> None:
    torch.manual_seed(0)
    model = ResNet12(3, 1, WIDTHS, norm=norm).double()
    episodes = made_up_tasks(tasks=2, shape=(1, 16, 16))
    logits = [ml.MAML(model, 0.1, execution=way)(episodes) for way in ("loop", "vectorized")]
    torch.testing.assert_close(*logits, rtol=1e-9, atol=1e-10)


def test_the_command_line_knows_its_norms() -> None:
    model = Experiment(model="resnet12", norm="group").fresh_model()
    assert statistics(model) == "no batch norm"


# DropBlock


def test_about_the_share_is_dropped_and_the_mean_stays() -> None:
    torch.manual_seed(0)
    maps = torch.ones(64, 16, 20, 20)
    dropped = DropBlock(0.1, size=5)(maps)
    # Squares overlap, so a little less than p is dropped.
    assert 0.07 < float((dropped == 0).double().mean()) < 0.11
    assert float(dropped.mean()) == pytest.approx(1, abs=1e-5)


def test_what_is_dropped_are_whole_squares() -> None:
    torch.manual_seed(0)
    drop = DropBlock(0.02, size=3)
    holes = drop(torch.ones(50, 4, 12, 12)).eq(0).double()
    kernel = torch.ones(1, 1, 3, 3, dtype=torch.float64)
    flat = holes.flatten(0, 1).unsqueeze(1)  # (maps, 1, height, width)
    # Every dropped value is inside a square of dropped values.
    full = nn.functional.conv2d(flat, kernel).eq(9).double()
    assert torch.equal(nn.functional.conv_transpose2d(full, kernel).gt(0).double(), flat)
    assert holes.sum() > 0


def test_a_map_smaller_than_the_square_is_dropped_as_a_whole() -> None:
    torch.manual_seed(0)
    dropped = DropBlock(0.5, size=5)(torch.ones(40, 10, 2, 2)).eq(0).flatten(2)
    assert torch.equal(dropped.any(-1), dropped.all(-1))
    assert 0.4 < float(dropped.double().mean()) < 0.6


def test_it_is_silent_in_evaluation_and_runs_in_the_loop() -> None:
    torch.manual_seed(0)
    model = ResNet12(3, 1, WIDTHS, drop=0.3).double()
    kinds = [type(model.get_submodule(f"block{i}").finish[2]).__name__ for i in range(1, 5)]
    assert kinds == ["Dropout", "Dropout", "DropBlock", "DropBlock"]
    episodes = made_up_tasks(tasks=2, shape=(1, 32, 32))
    learner = ml.MAML(model, 0.1, execution="vectorized")
    with pytest.raises(ValueError, match="draws random numbers"):
        learner(episodes)
    plain = ResNet12(3, 1, WIDTHS).double()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(learner.eval()(episodes), ml.MAML(plain, 0.1)(episodes))


def test_odd_values() -> None:
    for bad in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"drop=.*below 1"):
            ResNet12(5, drop=bad)
    with pytest.raises(ValueError, match=r"norm='layer'; choose batch, group, none"):
        ResNet12(5, norm="layer")
    with pytest.raises(ValueError, match=r"size=0"):
        DropBlock(0.1, size=0)
    with pytest.raises(ValueError, match=r"p=1"):
        DropBlock(1.0)
