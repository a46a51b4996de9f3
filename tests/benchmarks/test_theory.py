"""The benchmark of theory: its rows, and what the page draws from them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import theory as benchmark
from benchmarks.harness import rows
from benchmarks.pages import theory as page


@pytest.fixture
def training(tmp_path: Path) -> benchmark.Training:
    return benchmark.Training(
        steps=2, points=1, ratio=1.0, norm=1.0, test_tasks=4, measured_tasks=4,
        folder=tmp_path / "parts", progress=False,
        settings={"ways": 3, "shots": 1, "hidden": 4, "size": 16},
    )  # fmt: skip


def written(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_rows_hold_all_that_the_page_draws(training: benchmark.Training, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows.keep_in(file)
    benchmark.law([0], training.folder, "a note", quick=True)
    benchmark.few_shot("glyphs", ["anil", "protonet"], [0], training, "")
    # Finished parts are read and not computed again.
    before = {path: path.stat().st_mtime_ns for path in training.folder.iterdir()}
    benchmark.few_shot("glyphs", ["anil", "protonet"], [0], training, "")
    rows.keep_in(None)
    assert before == {path: path.stat().st_mtime_ns for path in training.folder.iterdir()}
    lines = written(file)
    assert {"command", "versions", "machine", "commit", "seed"} <= lines[0].keys()
    law = page.law_table(row for row in lines if row["figure"] == "law")
    assert len(law.rows) == 8
    few_shot = page.few_shot_table(row for row in lines if row["figure"] == "glyphs")
    assert [row[2] for row in few_shot.rows] == [
        "nothing", "spectral(1, 1)", "nothing", "unit prototypes",
    ]  # fmt: skip
    assert few_shot.rows[0][4] == "-" and few_shot.rows[1][4] != "-"


def test_linear_networks(training: benchmark.Training, tmp_path: Path) -> None:
    rows.keep_in(tmp_path / "rows.jsonl")
    benchmark.subspace([0], 3, training, "")
    rows.keep_in(None)
    table = page.subspace_table(written(tmp_path / "rows.jsonl"))
    assert [tuple(row[:2]) for row in table.rows] == [
        ("maml", "1"), ("maml", "8"), ("anil", "1"), ("anil", "8"),
    ]  # fmt: skip


def test_tables_draw_without_rows() -> None:
    for draw in (page.law_table, page.subspace_table, page.few_shot_table):
        assert not draw([]).rows


def test_odd_values() -> None:
    with pytest.raises(ValueError, match=r"seeds=0,0 repeat.*once"):
        benchmark.theory(seeds="0,0")
    with pytest.raises(ValueError, match=r"no figure 'laws'.*law, subspace"):
        benchmark.theory(figures="laws")
    with pytest.raises(ValueError, match=r"no learner 'nil'.*protonet"):
        benchmark.theory(learners="nil")
