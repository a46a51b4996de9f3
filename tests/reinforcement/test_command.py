"""The command `metalearn rl`, and the tables of its benchmark."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import reinforcement
from benchmarks.harness.rows import load
from benchmarks.pages import reinforcement as pages
from metalearn.__main__ import main

SMALL = "--meta-batch 2 --episodes 3 --horizon 6 --hidden 5 --test-tasks 3 --test-episodes 3"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(text: str) -> int:
    return main(["rl", *SMALL.split(), "--progress", "false", *text.split()])


def test_the_command_ends_with_a_table_and_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--steps 2 --test-steps 1 --table returns.csv") == 0
    printed = capsys.readouterr().out
    assert "gradient steps  return" in printed
    assert "network.layer1" in printed
    assert f"The picture: {tmp_path / 'rl.png'}" in printed
    assert (tmp_path / "rl.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "returns.csv").read_text().startswith("gradient steps,return")
    # More steps go on from the file.
    assert run("--steps 3 --test-steps 1") == 0
    assert "TRPO accepted 3 of 3 steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("--environment maze", "there is no environment 'maze'; choose from navigation"),
        ("--algorithm reptile", "algorithm='reptile' is not one of maml, anil"),
        ("--horizon 0", "horizon=0 must be at least 1"),
        ("--episodes 0", "episodes=0 must be at least 1"),
        ("--test-tasks 0", "test_tasks=0 must be at least 1"),
        ("--device nowhere", "device='nowhere' cannot be used here"),
        ("--steps 0", "steps=0 must be at least 1"),
        ("--picture paths.doc", "'paths.doc' does not end in a kind of picture"),
        ("--hidden 8,x", "hidden='8,x' are not whole numbers"),
        ("--lr -1", "inner rate of log_std is -1"),
        ("--checkpoint text.txt", "text.txt is truncated or not a safetensors file"),
    ],
)
def test_bad_settings_are_named(
    arguments: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text("no checkpoint")
    assert run(f"--steps 1 {arguments}") == 2
    assert named in capsys.readouterr().err


def test_the_tables_draw_what_the_benchmark_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tmp_path / "rows.jsonl"
    reinforcement.reinforcement(
        seeds="0,1",
        steps=1,
        meta_batch=2,
        episodes=3,
        horizon=6,
        hidden="5",
        test_tasks=3,
        progress=False,
        results=str(rows),
    )
    assert [(row["algorithm"], row["seed"]) for row in load(rows)] == [
        ("maml", 0),
        ("anil", 0),
        ("maml", 1),
        ("anil", 1),
    ]
    monkeypatch.setattr(pages, "RESULTS", rows)
    drawn = {name: draw() for name, draw in pages.TABLES.items()}
    assert [row[1] for row in drawn["policy_returns"].rows] == ["maml", "anil"]
    assert "±" in drawn["policy_returns"].rows[0][2]
    # ANIL's body is held anyway.
    assert [(row[1], row[3]) for row in drawn["policy_body"].rows] == [
        ("maml", "1"),
        ("maml", "2"),
        ("maml", "4"),
    ]
    layers = [(row[1], row[2]) for row in drawn["policy_layers"].rows]
    assert layers == [(name, layer) for name in ("maml", "anil") for layer in ("layer1", "head")]
    assert "benchmarks.reinforcement" in drawn["reinforcement_runs"]
