"""Snapshots, penalties and layers frozen by step, in one fine-tuning."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from metalearn.training.regularisers import leading_component, pulled, together
from tests.helpers import striped_images
from transfer import finetune
from transfer.finetuning.curve import Curve


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 8),
        nn.ReLU(),
        nn.Linear(8, 3),
    )


def training(**options: object) -> Curve:
    settings = {"steps": 9, "batch": 8, "lr": 0.01, "evaluate_every": 4, **options}
    return finetune(striped_images(), striped_images(seed=1), **settings)(network(), seed=3)


def weights(curve: Curve, step: int) -> dict[str, Tensor]:
    snapshot = curve.snapshots[step]
    return dict(snapshot) if isinstance(snapshot, dict) else safetensors.torch.load_file(snapshot)


def test_snapshots_are_the_weights_after_their_steps() -> None:
    curve = training(keep=(0, 3, 9))
    assert list(curve.snapshots) == [0, 3, 9]
    start = network().state_dict()
    assert all(torch.equal(start[name], w) for name, w in weights(curve, 0).items())
    shorter = training(steps=3, keep=(3,))
    for name, tensor in weights(curve, 3).items():
        assert torch.equal(tensor, weights(shorter, 3)[name]), name
    free = training()  # keeping changes nothing
    assert (curve.losses, curve.values) == (free.losses, free.values)


def test_snapshots_in_files_are_the_same_and_survive_in_the_record(tmp_path: Path) -> None:
    curve = training(keep=(0, 9), folder=tmp_path / "snapshots")
    assert sorted(path.name for path in (tmp_path / "snapshots").glob("*.safetensors")) == [
        "seed3-step00000000.safetensors",
        "seed3-step00000009.safetensors",
    ]
    in_memory = training(keep=(0, 9))
    for name, tensor in weights(curve, 9).items():
        assert torch.equal(tensor, weights(in_memory, 9)[name]), name
    again = Curve.from_dict(curve.to_dict())
    assert again.snapshots == curve.snapshots
    assert "snapshots" not in in_memory.to_dict()


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_a_layer_that_is_held_keeps_every_bit(optimizer: str) -> None:
    curve = training(optimizer=optimizer, frozen={"0": 4, "1": 4}, keep=range(10))
    free = training(optimizer=optimizer, keep=(4,))
    held = weights(curve, 4)
    assert all(torch.equal(tensor, weights(free, 4)[name]) for name, tensor in held.items())
    for step in range(5, 10):
        for name, tensor in weights(curve, step).items():
            is_held = name.startswith(("0.", "1.")) and "num_batches" not in name
            if is_held:
                assert torch.equal(tensor, held[name]), (step, name)
    assert not torch.equal(weights(curve, 9)["4.weight"], held["4.weight"])


def test_zeros_as_gradients_would_move_a_layer_and_do_not_here() -> None:
    """Momentum and weight decay move a parameter whose gradient is zero."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    before = model.weight.detach().clone()
    optimizer.zero_grad(set_to_none=False)
    optimizer.step()
    assert not torch.equal(model.weight, before)


def test_the_longest_path_decides_and_step_zero_is_from_the_start() -> None:
    curve = training(frozen={"0": 0, "0.bias": 5}, keep=range(10))
    start = network().state_dict()
    assert torch.equal(weights(curve, 9)["0.weight"], start["0.weight"])
    assert not torch.equal(weights(curve, 5)["0.bias"], start["0.bias"])
    assert torch.equal(weights(curve, 5)["0.bias"], weights(curve, 9)["0.bias"])


def test_losses_and_penalties_are_recorded_apart() -> None:
    towards = network()
    free, strong = training(), training(penalty=pulled(towards, 10.0))
    assert free.penalties == ()
    assert len(strong.penalties) == len(strong.losses) == 9
    assert strong.penalties[0] == 0  # it starts there
    assert strong.losses[0] == free.losses[0]
    assert max(strong.penalties) > 0
    assert Curve.from_dict(strong.to_dict()).penalties == strong.penalties


def test_strength_zero_leaves_every_bit() -> None:
    free = training(keep=(9,))
    none = training(
        keep=(9,), penalty=together(pulled(network(), 0.0), leading_component(0.0, layers=["2"]))
    )
    assert none.losses == free.losses
    for name, tensor in weights(free, 9).items():
        assert torch.equal(tensor, weights(none, 9)[name]), name


def test_all_three_together_repeat_bit_by_bit(tmp_path: Path) -> None:
    options = {"penalty": pulled(network(), {"4": 1.0}), "frozen": {"0": 3}, "keep": (0, 5, 9)}
    first = training(**options, folder=tmp_path)
    again = training(**options)
    assert (first.losses, first.penalties) == (again.losses, again.penalties)
    for name, tensor in weights(first, 9).items():
        assert torch.equal(tensor, weights(again, 9)[name]), name


def test_settings_record_what_decides() -> None:
    data = striped_images(), striped_images(seed=1)
    plain = finetune(*data, steps=5).settings
    assert plain["frozen"] is None
    assert "penalty" not in plain
    scheduled = finetune(*data, steps=5, frozen={"0": 2}, penalty=pulled(network(), 1.0)).settings
    assert scheduled["frozen"] == {"0": 2}
    assert "pulled" in scheduled["penalty"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frozen": {"0": 9}}, "past the end of 9 steps"),
        ({"frozen": {"0": -1}}, r"frozen\['0'\]=-1 must be at least 0"),
        ({"frozen": {"conv": 1}}, "no layer 'conv'"),
        ({"frozen": {"2": 1}}, r"frozen names '2' \(ReLU\), which has no parameters"),
        ({"frozen": {"": 3}}, "holds all parameters from step 3 on"),
        ({"rates": {"2": 0.1}}, r"rates names '2' \(ReLU\), which has no parameters"),
        ({"penalty": pulled({}, {"2": 1.0})}, "strength names '2'"),
        ({"penalty": leading_component(layers=[])}, "no layer of Sequential to penalise"),
        ({"folder": ""}, "folder='' is empty"),
        ({"keep": (0, 10)}, "keep=10 lies past the end of 9 steps"),
        ({"keep": (-1,)}, r"keep\[0\]=-1"),
        ({"penalty": pulled({"0.bias": torch.ones(4)}, {"0": 1.0})}, "no value for '0.weight'"),
    ],
)
def test_bad_schedules_and_snapshots_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        training(**options)


def test_other_kinds_are_refused() -> None:
    with pytest.raises(TypeError, match="a penalty, such as pulled"):
        training(penalty=3)
    with pytest.raises(TypeError, match="returned a NoneType for the model"):
        training(penalty=lambda model: None)
    with pytest.raises(TypeError, match=r"\{layer: step\}"):
        training(frozen=3)
    with pytest.raises(TypeError, match="whole number"):
        training(frozen={"0": 0.5})


def test_a_penalty_that_is_not_finite_is_named() -> None:
    nan = {name: torch.full_like(p, torch.nan) for name, p in network().named_parameters()}
    with pytest.raises(FloatingPointError, match="the penalty is nan at step 1"):
        training(penalty=pulled(nan, 1.0))
