"""The spectral penalty: values known by hand, its gradient, and what it refuses."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from metalearn import ANIL, MAML, ProtoNet, meta_train
from metalearn.data.glyphs import glyphs
from metalearn.models import MLP
from metalearn.tasks import FewShot, Sinusoid
from metalearn.training.regularisers import spectral, together


def network(weight: Tensor) -> nn.Sequential:
    ways, features = weight.shape
    model = nn.Sequential(nn.Linear(2, features), nn.Linear(features, ways)).double()
    with torch.no_grad():
        model[1].weight.copy_(weight)
    return model


def value(weight: Tensor, **strengths: float) -> float:
    model = network(weight)
    with spectral(**strengths)(model) as extra:
        return float(extra().detach())


def orthonormal(rows: int, columns: int) -> Tensor:
    return torch.linalg.qr(torch.randn(columns, rows, dtype=torch.float64))[0].T


def test_orthonormal_rows_have_ratio_1_and_norm_root_n() -> None:
    rows = orthonormal(5, 8)
    assert value(rows, ratio=1.0, norm=0.0) == pytest.approx(1)
    assert value(rows, ratio=0.0, norm=1.0) == pytest.approx(math.sqrt(5))


def test_rows_scaled_by_1_to_5() -> None:
    rows = torch.arange(1.0, 6).double().unsqueeze(1) * orthonormal(5, 8)
    assert value(rows, ratio=1.0, norm=0.0) == pytest.approx(25)  # cond(W) squared
    assert value(rows, ratio=0.0, norm=1.0) == pytest.approx(31.2889757)  # root of 979
    assert value(rows, ratio=2.0, norm=3.0) == pytest.approx(50 + 3 * math.sqrt(979))


def test_a_rotation_of_the_features_changes_nothing() -> None:
    rows = torch.randn(4, 6, dtype=torch.float64)
    assert value(rows @ orthonormal(6, 6)) == pytest.approx(value(rows))


@pytest.mark.parametrize("strengths", [(1.0, 0.0), (0.0, 1.0), (0.7, 0.3)])
def test_the_gradient_agrees_with_central_differences(strengths: tuple[float, float]) -> None:
    weight = torch.randn(4, 6, dtype=torch.float64)
    model = network(weight)
    with spectral(*strengths)(model) as extra:
        extra().backward()
    direction = torch.randn(4, 6, dtype=torch.float64)
    step = 1e-6
    ratio, norm = strengths
    ends = [value(weight + sign * step * direction, ratio=ratio, norm=norm) for sign in (1, -1)]
    exact = float((model[1].weight.grad * direction).sum())
    assert exact == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-6)


def test_the_gradient_is_finite_if_singular_values_meet() -> None:
    model = network(orthonormal(4, 6))
    with spectral()(model) as extra:
        extra().backward()
    assert model[1].weight.grad.isfinite().all()


def test_more_ways_than_features_are_refused() -> None:
    with pytest.raises(ValueError, match=r"3 features for 5 ways.*wider"):
        value(torch.randn(5, 3, dtype=torch.float64))


@pytest.mark.parametrize("weight", [torch.zeros(3, 5), torch.ones(3, 5)])
def test_a_head_without_full_rank_is_refused(weight: Tensor) -> None:
    with pytest.raises(ValueError, match=r"'1' has no full rank.*at random.*ratio=0"):
        value(weight.double())
    assert math.isfinite(value(weight.double(), ratio=0.0))


@pytest.mark.parametrize("strengths", [{"ratio": -1}, {"norm": math.inf}, {"ratio": "1"}])
def test_strengths_that_are_no_numbers_from_0(strengths: dict) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(strengths))}=.*finite number from 0"):
        value(torch.eye(2).double(), **strengths)


def test_heads_that_do_not_exist_or_have_no_weight() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"heat"), spectral(head="heat")(model):
        pass
    with pytest.raises(ValueError, match=r"'1' has none.*head="), spectral(head="1")(model):
        pass


def tasks() -> FewShot:
    return FewShot(glyphs("train", size=8), ways=5, shots=1, queries=2, tasks=100)


def images_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), *MLP(64, 5, hidden=(16,)))


def trained(penalty: object, path: Path | None = None, steps: int = 6) -> nn.Sequential:
    model = images_network()
    meta_train(
        ANIL(model, lr=0.1, steps=1), tasks(), steps=steps, optimizer=lambda p: torch.optim.Adam(
            p, lr=0.02), penalty=penalty, progress=False, checkpoint=path,
    )  # fmt: skip
    return model


def test_training_with_it_lowers_the_condition_number(tmp_path: Path) -> None:
    def condition(model: nn.Sequential) -> float:
        return float(torch.linalg.cond(model[-1].weight.detach()))

    start = condition(images_network())
    assert condition(trained(spectral(ratio=1.0, norm=0.1))) < 0.9 * start
    assert condition(trained(spectral(ratio=1.0, norm=0.1))) < condition(trained(None))


def test_strength_0_changes_no_weight() -> None:
    for left, right in zip(
        trained(spectral(ratio=0.0, norm=0.0)).parameters(), trained(None).parameters(), strict=True
    ):
        assert torch.equal(left, right)


def test_a_resumed_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = trained(together(spectral()), None)
    trained(together(spectral()), tmp_path / "run.safetensors", steps=3)
    resumed = trained(together(spectral()), tmp_path / "run.safetensors", steps=6)
    for left, right in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(left, right)


def test_a_learner_that_does_not_train_its_head_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no parameter that ProtoNet trains"):
        meta_train(ProtoNet(images_network()), tasks(), steps=1, penalty=spectral(), progress=False)


def test_regression_heads_of_one_output_have_ratio_1() -> None:
    learner = MAML(MLP(1, 1), lr=0.01, loss=nn.functional.mse_loss)
    sinusoids = Sinusoid(shots=5, queries=5, tasks=10)
    meta_train(learner, sinusoids, steps=2, penalty=spectral(), progress=False)
    with spectral(norm=0.0)(learner.model) as extra:
        assert float(extra().detach()) == pytest.approx(1)


def test_a_penalty_that_was_not_called_is_refused() -> None:
    with pytest.raises(TypeError, match=r"returned a spectral.*context manager"):
        trained(spectral)
