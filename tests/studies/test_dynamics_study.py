"""The study of dynamics: what settles when, the ranks of depth, and its page."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from metalearn.analysis import generalising
from metalearn.studies.dynamics import dynamics, rank_correlation


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def moved(weights: dict[str, torch.Tensor], layers: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """The same weights, with those of some layers drawn again."""
    generator = torch.Generator().manual_seed(9)
    found = dict(weights)
    for name, value in weights.items():
        if name.startswith(layers):
            found[name] = torch.randn(value.shape, generator=generator)
    return found


def test_a_layer_that_is_at_its_end_early_is_settled_from_that_step_on() -> None:
    end = network().state_dict()
    snapshots = {0: moved(end, ("0", "2", "4")), 5: moved(end, ("2", "4")), 9: end}
    study = dynamics(
        network(), snapshots, torch.randn(200, 4), layers=["1", "3"], measure="linear_cka"
    )
    settled = {row["layer"]: row["settled"] for row in study.records()}
    assert settled == {"1": 5, "3": None}
    assert study.bottom_up()[5] == -1.0
    assert "1 from 5" in study.answer() and "1 of 2 layers only at the end" in study.answer()


def test_the_control_is_another_end_and_labels_give_the_sensitivity() -> None:
    model = network()
    inputs, targets = torch.randn(200, 4), torch.arange(200) % 3
    snapshots = {0: network(1).state_dict(), 4: model.state_dict()}
    study = dynamics(
        model, snapshots, inputs, targets, layers=["1", "3"], other=network(2).state_dict()
    )
    assert study.convergence.other is not None
    assert study.convergence.other.shape == study.convergence.values.shape == (2, 2)
    assert study.sensitivity is not None and study.sensitivity.values.shape == (2, 3)
    assert study.to_dict()["sensitivity"]["classes"] == [0, 1, 2]
    with torch.no_grad():  # the network keeps its own weights
        assert all(
            torch.equal(model.state_dict()[name], value)
            for name, value in network().state_dict().items()
        )


def test_equal_snapshots_are_settled_from_the_start_and_have_no_rank() -> None:
    model = network()
    snapshots = dict.fromkeys((0, 3, 6), model.state_dict())
    study = dynamics(model, snapshots, torch.randn(100, 4), layers=["1", "3"])
    assert [row["settled"] for row in study.records()] == [0, 0]
    assert all(math.isnan(value) for value in study.bottom_up().values())


def test_its_page_has_every_part_that_was_measured(tmp_path: Path) -> None:
    inputs, targets = torch.randn(90, 4), torch.arange(90) % 3

    def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor, seed: int) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    groups = generalising(network, inputs, targets, train, inputs, seeds=(0, 1), layers=["1"])
    snapshots = {0: network(1).state_dict(), 4: network().state_dict()}
    study = dynamics(network, snapshots, inputs, targets, layers=["1", "3"], generalisation=groups)
    study.report(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    for heading in ("How layers settle", "True and shuffled labels", "Which layers know a class"):
        assert heading in page
    assert "within true" in page and page.count("data:image/svg+xml") == 1


def test_snapshots_of_another_network_are_refused() -> None:
    other = nn.Sequential(nn.Linear(4, 2)).state_dict()
    with pytest.raises(ValueError, match="not of this Sequential"):
        dynamics(network(), {0: other, 1: other}, torch.randn(50, 4), layers=["1"])


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([0, 1, 2, 3], [0.4, 0.3, 0.2, 0.1], -1.0),
        ([0, 1, 2, 3], [1, 5, 6, 9], 1.0),
        ([0, 1, 2], [1, 1, 1], math.nan),
        ([0, 1, 2], [1, math.nan, 1], math.nan),
        ([1, 2, 3, 4], [1, 3, 2, 4], 0.8),
    ],
)
def test_rank_correlation(first: list, second: list, expected: float) -> None:
    assert rank_correlation(first, second) == pytest.approx(expected, nan_ok=True)
