"""Blocks are found by the stated rule, and nothing else is."""

from __future__ import annotations

import numpy as np
import pytest

from metalearn.analysis.networks.block_structure import block_structure
from metalearn.analysis.networks.components import Component, Components
from metalearn.analysis.networks.similarity_map import SimilarityMap


def made_map(values: np.ndarray) -> SimilarityMap:
    names = tuple(f"layer{i}" for i in range(len(values)))
    chance = np.zeros((0, *values.shape))
    return SimilarityMap(values, names, names, 100, 1, chance, ("Net", "Net"))


def made_components(shares: list[float], turned_at: int | None = None) -> Components:
    """Components whose first vectors are equal, but for a turn before one layer."""
    rows = []
    for number, share in enumerate(shares):
        scores = np.zeros(100)
        scores[0 if turned_at is None or number < turned_at else 1] = 1
        row = Component(f"layer{number}", share, 1.0, scores, np.ones(1), np.zeros(1), 0.0)
        rows.append(row)
    return Components(tuple(rows), 100)


def blocks_map(count: int, first: int, last: int, low: float = 0.3) -> np.ndarray:
    values = np.full((count, count), low)
    values[first : last + 1, first : last + 1] = 0.97
    np.fill_diagonal(values, 1)
    return values


def test_a_block_is_found_with_its_contrast() -> None:
    found = block_structure(made_map(blocks_map(10, 3, 7)), made_components([0.8] * 10))
    assert len(found) == 1
    block = found.blocks[0]
    assert (block.first, block.last) == ("layer3", "layer7")
    assert block.inside == pytest.approx(0.97)
    assert block.outside == pytest.approx(0.3)
    assert "layer3 to layer7" in str(found)
    assert found.records()[0]["layers"] == [f"layer{i}" for i in range(3, 8)]


def test_each_condition_can_refuse_a_run() -> None:
    similar = made_map(blocks_map(10, 3, 7))
    small = [0.8] * 10
    small[5] = 0.2  # splits the run into two of two layers
    assert len(block_structure(similar, made_components(small))) == 0
    assert len(block_structure(similar, made_components([0.8] * 10, turned_at=5))) == 1
    assert (
        block_structure(similar, made_components([0.8] * 10, turned_at=5)).blocks[0].first
        == "layer5"
    )
    close = block_structure(made_map(blocks_map(10, 3, 7, low=0.89)), made_components([0.8] * 10))
    assert len(close) == 0
    assert "differ by less than 0.1" in close.notes[0]
    assert len(block_structure(similar, shortest=6)) == 0


def test_a_smooth_residual_stream_is_no_block() -> None:
    depth = np.arange(16)
    values = 1 - 0.25 * (np.abs(depth[:, None] - depth) / 15) ** 1.5
    found = block_structure(made_map(values))
    assert len(found) == 0
    assert all("is no block" in note for note in found.notes)


def test_alike_everywhere_has_no_outside() -> None:
    found = block_structure(made_map(blocks_map(6, 0, 5)))
    assert len(found) == 0
    assert "there is no layer outside" in found.notes[0]


def test_the_longest_of_overlapping_runs_is_the_block() -> None:
    values = blocks_map(12, 2, 5)
    values[4:9, 4:9] = 0.97
    np.fill_diagonal(values, 1)
    found = block_structure(made_map(values))
    assert [(block.first, block.last) for block in found.blocks] == [("layer4", "layer8")]
    assert found.candidates == 2
    assert "of 2 overlapping runs" in found.notes[-1]


def test_a_dead_layer_ends_a_run_and_is_named() -> None:
    values = blocks_map(12, 1, 9)
    values[5, :] = values[:, 5] = np.nan
    found = block_structure(made_map(values))
    assert [(block.first, block.last) for block in found.blocks] == [
        ("layer1", "layer4"),
        ("layer6", "layer9"),
    ]
    assert found.notes[0] == "layer layer5 has no similarity, so runs end there"


def test_what_was_not_checked_is_reported_and_what_does_not_fit_is_refused() -> None:
    similar = made_map(blocks_map(10, 3, 7))
    assert "first components not checked" in block_structure(similar).rule
    with pytest.raises(ValueError, match=r"layers=map\.layers_a"):
        block_structure(similar, made_components([0.8] * 9))
    other = SimilarityMap(
        similar.values, similar.layers_a, ("x",) * 10, 100, 1, similar.chance, ("A", "B")
    )
    with pytest.raises(ValueError, match=r"similarity_map\(network, network"):
        block_structure(other)
