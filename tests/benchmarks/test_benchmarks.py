"""The benchmarks run, and their page says what the results say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from benchmarks import engine, few_shot, tables
from benchmarks.papers import figures as papers


def test_few_shot_prints_a_table_and_appends_rows_with_everything_behind_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {
        "steps": 2,
        "hidden": 4,
        "meta_batch": 2,
        "test_tasks": 5,
        "runs": str(tmp_path),
        "execution": "loop",
    }
    few_shot.few_shot(
        "maml,anil,nil", progress=False, results=str(tmp_path / "few_shot.jsonl"), **small
    )
    rows = [json.loads(line) for line in (tmp_path / "few_shot.jsonl").read_text().splitlines()]
    assert [row["algorithm"] for row in rows] == ["maml", "anil", "nil"]
    assert [row["body_trained_by"] for row in rows] == ["maml", "anil", "anil"]
    for row in rows:
        answers = row["test_tasks"] * row["ways"] * row["queries"]
        right = row["accuracy"] * answers
        assert right == pytest.approx(round(right), abs=1e-6) and round(right) > 0
        assert row["trained_steps"] == 2
        assert row["test_tasks"] == 5
        assert {
            "seed",
            "lr",
            "inner_steps",
            "versions",
            "machine",
            "commit",
            "command",
            "norm",
            "data",
            "follows",
        } <= row.keys()
    assert rows[0]["minus"] is None
    assert rows[2]["minus"]["mean"] == pytest.approx(rows[2]["accuracy"] - rows[0]["accuracy"])
    assert "minus maml" in capsys.readouterr().out


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda path: path.stem)
def test_a_page_has_what_the_results_have(page: Path) -> None:
    assert tables.drawn(page.read_text()) == page.read_text()


def test_the_overview_is_short_and_links_every_page() -> None:
    text = (tables.HERE / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert len(text.split()) <= 2000
    blocks = re.findall(r"<!-- table \w+ -->\n(.*?)<!-- end -->", text, re.S)
    assert len(blocks) == text.count("<!-- table ")
    for block in blocks:
        lines = block.splitlines()
        assert len(lines) - 2 <= 10, lines[0]
        assert lines[0].count("|") - 1 <= 6, lines[0]
    for page in (tables.HERE / "pages").glob("*.md"):
        assert f"(pages/{page.name})" in text, page


def test_no_cell_holds_a_command() -> None:
    for page in tables.PAGES:
        for line in page.read_text().splitlines():
            if line.startswith("|"):
                assert "python -m" not in line
                assert "metalearn train" not in line


def test_every_table_of_a_page_is_known() -> None:
    for page in tables.PAGES:
        for name in re.findall(r"<!-- table (\w+) -->", page.read_text()):
            assert name in tables.TABLES, (page, name)


def test_the_papers_figures_are_accuracies_with_their_source() -> None:
    for (_, ways, _, _), figures in papers.ACCURACY.items():
        for mean, spread, meaning, paper in figures:
            assert 100 / ways < mean < 100
            assert 0 < spread < 5
            assert re.match("95 % over|std over", meaning)
            assert re.fullmatch(r"\w+ et al\. \d{4}", paper)
    assert (
        papers.beside("omniglot", 5, 1, "maml")
        == "98.7 ± 0.4 (95 % over 600 tasks; Finn et al. 2017)"
    )
    assert papers.beside("glyphs", 5, 1, "maml") == ""


def test_the_plain_loop_that_speed_is_measured_against_computes_the_same_gradient() -> None:
    torch.manual_seed(0)
    model, tasks = (
        engine.Conv4(5, hidden=4).double(),
        engine.episodes(3, queries=2).to(torch.float64),
    )
    engine.plain_loop(model, tasks, 0.4)
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    engine.meta_backward(engine.MAML(model, 0.4), tasks)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-10, atol=1e-12)
