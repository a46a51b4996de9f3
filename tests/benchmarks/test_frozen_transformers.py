"""The benchmark of frozen transformers runs, continues, and its tables draw what it measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import frozen_transformers
from benchmarks.harness.rows import load
from benchmarks.pages import frozen_transformers as pages
from metalearn.models import LanguageModel
from tests.helpers import write_llama2c


@pytest.fixture
def weights(tmp_path: Path) -> str:
    torch.manual_seed(0)
    network = LanguageModel(vocabulary=7, width=8, depth=2, heads=2, hidden=12)
    return str(write_llama2c(network, tmp_path / "small.bin", shared=False))


def run(tmp_path: Path, weights: str, **options: object) -> list[dict]:
    settings = {
        "tasks": "xor",
        "starts": "pretrained,statistics,normal,trained",
        "rates": "1e-3,1e-2",
        "seeds": "0,1",
        "quick": True,
        "progress": False,
        "folder": str(tmp_path / "runs"),
        "results": str(tmp_path / "rows.jsonl"),
        **options,
    }
    frozen_transformers.frozen_transformers(weights=weights, **settings)
    return load(tmp_path / "rows.jsonl")


def test_a_run_continues_and_its_rows_are_drawn(
    tmp_path: Path, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = run(tmp_path, weights)
    assert [row["start"] for row in rows] == ["pretrained", "statistics", "normal", "trained"]
    for row in rows:
        assert len(row["tests"]) == 2 and row["rate"] in (1e-3, 1e-2) and row["chance"] == 0.5
        assert {"command", "versions", "machine", "commit"} <= row.keys()
    frozen, trained = rows[0], rows[3]
    # Input 8 + 8, positions 10 x 8, 5 norms of 8 gains, output 2 x 8 + 2.
    assert frozen["trained_parameters"] == 16 + 80 + 40 + 18
    assert trained["trained_parameters"] == trained["parameters"]
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.json")}
    assert len(files) == 4 * 3  # two rates for the first seed, one for the second
    again = run(tmp_path, weights)[4:]
    assert [row["tests"] for row in again] == [row["tests"] for row in rows]
    assert all(path.stat().st_mtime_ns == time for path, time in files.items())
    monkeypatch.setattr(pages, "RESULTS", tmp_path / "rows.jsonl")
    table = pages.frozen_transformers().to_markdown()
    assert table.count("stories, xor") >= 1 and "of 0.001, 0.01, at the edge" in table
    assert "benchmarks.frozen_transformers" in pages.listing()


def test_tables_draw_without_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "RESULTS", tmp_path / "absent.jsonl")
    assert "start of the body" in pages.frozen_transformers().to_markdown()
    assert pages.listing() == ""


def test_bad_settings_are_refused_before_any_training(tmp_path: Path, weights: str) -> None:
    for options, message in (
        ({"tasks": "chess"}, "no task 'chess'; choose from memory"),
        ({"starts": "good"}, "no start 'good'"),
        ({"body": "gpt9"}, "no body 'gpt9'"),
        ({"rates": "0"}, "rates=0"),
    ):
        with pytest.raises(ValueError, match=message):
            run(tmp_path, weights, **options)
    with pytest.raises(FileNotFoundError, match=r"absent\.bin"):
        run(tmp_path, str(tmp_path / "absent.bin"))
