"""The benchmark of Omniglot's three splits, and the tables of its page."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks import omniglot_splits as benchmark
from benchmarks.pages import omniglot_splits as page
from metalearn.experiments.experiment import Experiment


@dataclass
class Made:
    """An experiment on glyphs under the names of Omniglot's settings."""

    settings: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        of_omniglot = {"protocol", "test_rotations", "dataset", "root"}
        kept = {key: value for key, value in self.settings.items() if key not in of_omniglot}
        kept["runs"] = f"{kept['runs']}/{self.settings['protocol']}"
        return getattr(Experiment(hidden=4, meta_batch=1, **kept), name)


def test_every_split_and_seed_is_trained_and_tested_at_the_same_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "Experiment", lambda **settings: Made(settings))
    path = tmp_path / "rows.jsonl"
    benchmark.omniglot_splits(
        splits="vinyals,finn",
        seeds="3,4",
        points="1,2",
        test_tasks=2,
        results=str(path),
        progress=False,
    )
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["seed"], row["protocol"]) for row in rows[::5]] == [
        (3, "vinyals"),
        (3, "finn"),
        (4, "vinyals"),
        (4, "finn"),
    ]
    first = [(row["trained_steps"], row["queries"], row["test"]) for row in rows[:5]]
    assert first == [
        (1, 15, "15 queries a class"),
        (2, 15, "15 queries a class"),
        (2, 15, "turned characters"),
        (2, 1, "one query a class"),
        (2, 1, "turned characters, one query a class"),
    ]
    assert all(0 <= row["accuracy"] <= 1 for row in rows)


def test_what_is_not_known_is_named() -> None:
    with pytest.raises(ValueError, match="there is no split 'ravi'; choose from vinyals, finn"):
        benchmark.omniglot_splits(splits="ravi")
    with pytest.raises(ValueError, match="give numbers of steps that rise"):
        benchmark.omniglot_splits(points="20,10")


def test_the_page_pairs_splits_by_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accuracies = {
        ("vinyals", 0): 0.90,
        ("vinyals", 1): 0.92,
        ("finn", 1): 0.95,
        ("finn", 0): 0.94,
        ("lake", 0): 0.91,
    }
    rows = []
    for (split, seed), accuracy in accuracies.items():
        row = {"protocol": split, "seed": seed, "accuracy": accuracy, "trained_steps": 10}
        rows.append({**row, "test": page.TEST, "characters": 7, "command": "python"})
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setattr(page, "RESULTS", path)
    # 4 and 3 points: 3.5, with 12.7 standard errors of 0.5.
    gain = page.difference("finn", 10)
    assert (gain.mean, gain.interval) == pytest.approx((0.035, 0.0635), abs=1e-4)
    text = page.curve().to_markdown()
    assert "91.0 ± 1.4" in text
    assert "+3.5 ± 6.4" in text
    assert "91.0 (one seed)" in text
    assert "| finn minus vinyals, points, paired |  | 2 |" in text
