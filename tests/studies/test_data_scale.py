"""Data scale: the ceiling, nested shares, and shares and seeds that do not fit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from metalearn.analysis import linear_cka
from metalearn.episodes import Examples
from metalearn.studies.data_scale import data_scale


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))


INPUTS = torch.randn(80, 4, generator=torch.Generator().manual_seed(0))
TARGETS = (INPUTS[:, 0] > 0).long()


def test_networks_are_compared_with_those_of_all_data_of_other_seeds() -> None:
    seen: dict[tuple[int, int], nn.Module] = {}
    examples: dict[int, set] = {}

    def train(network: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, seed: int) -> None:
        optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
        for _ in range(5):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(inputs), targets).backward()
            optimizer.step()
        seen[len(inputs), seed] = network
        examples[len(inputs)] = {tuple(row.tolist()) for row in inputs}

    test = torch.randn(60, 4)
    result = data_scale(
        build, INPUTS, TARGETS, train, test, shares=(0.25, 1.0), seeds=(3, 4), layers=["1"]
    )
    assert examples[20] < examples[80]  # a smaller share lies within a larger one
    with torch.no_grad():
        features = {key: network[:2](test) for key, network in seen.items()}
    expected = [linear_cka(features[20, a], features[80, b]) for a, b in ((3, 4), (4, 3))]
    row, ceiling = result.shares
    assert row.similarity["1"].mean == pytest.approx(sum(expected) / 2, abs=1e-6)
    assert row.similarity["1"].runs == 2 and ceiling.examples == 80
    assert ceiling.similarity["1"].mean == pytest.approx(
        linear_cka(features[80, 3], features[80, 4]), abs=1e-6
    )


def test_probes_stand_beside_and_the_figure_has_a_line_a_share() -> None:
    examples = Examples(INPUTS, TARGETS)
    result = data_scale(
        build,
        INPUTS,
        TARGETS,
        lambda *_: None,
        INPUTS,
        shares=(0.5, 1.0),
        layers=["0", "1"],
        labelled=(examples, examples),
        shots=5,
    )
    assert set(result.shares[0].probes) == {"0", "1"}
    assert "probe, 50 %" in str(result)
    assert len(result.figure().axes[0].lines) == 2
    assert len(result.records()) == 4


@pytest.mark.parametrize("shares", [(), (0.5,), (1.0, 0.5), (0.0, 1.0), (0.5, 0.5, 1.0)])
def test_shares_rise_to_all_data(shares: tuple) -> None:
    with pytest.raises(ValueError, match="rising shares"):
        data_scale(build, INPUTS, TARGETS, lambda *_: None, INPUTS, shares=shares)


def test_one_seed_has_no_ceiling() -> None:
    with pytest.raises(ValueError, match="at least two"):
        data_scale(build, INPUTS, TARGETS, lambda *_: None, INPUTS, seeds=(0,))
