"""The benchmark of forgetting, on made-up images: its rows, and what the page draws from them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import forgetting as benchmark
from benchmarks.harness import rows
from benchmarks.pages import forgetting as page
from metalearn.data.images import LabelledImages
from metalearn.data.labelled_sets import Split

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def images(each: int, seed: int) -> LabelledImages:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(10).repeat_interleave(each)
    pixels = torch.randint(0, 90, (len(labels), 3, 16, 16), generator=generator)
    pixels[torch.arange(len(labels)), 0, labels] += 150
    return LabelledImages(pixels.to(torch.uint8), labels, NAMES)


@pytest.fixture
def setting(tmp_path: Path) -> benchmark.Setting:
    return benchmark.Setting(
        images=Split(images(8, 0), None, images(4, 1)), model="conv4", hidden=4, norm="group",
        steps=2, batch=8, lr=0.02, each=6, tested=4, device="cpu", folder=tmp_path / "runs",
    )  # fmt: skip


def test_rows_hold_all_that_the_page_draws(setting: benchmark.Setting, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows.keep_in(file)
    memories = {"none": None, "replay 0.5": benchmark.replay(0.5)}
    result = benchmark.anatomy(
        setting, "0,1/2,3", memories, [0], "a note", None, k=(2, 3), progress=False
    )
    rows.keep_in(None)
    written = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["memory"] for row in written] == ["none", "replay 0.5"]
    assert {"command", "versions", "machine", "commit", "seed", "steps"} <= written[0].keys()
    again = page.result_of(written)
    for draw in (page.memories_table, page.criteria_table):
        assert str(draw(again)) == str(draw(result))
    assert str(page.layers_table(again, "none")) == str(page.layers_table(result, "none"))


def test_pairs_are_near_far_and_between(setting: benchmark.Setting) -> None:
    pairs = benchmark.pairs_of_tasks(setting.images)
    assert len(pairs) == 11
    first, second, scored = pairs["ship, truck of ship, truck, other; then cat, horse"]
    assert first.train.names == ("ship", "truck", "other") and scored == (0, 1)
    assert second.train.names == ("cat", "horse")
    name = "ship, truck of deer, dog, ship, truck; then cat, horse"
    measured = benchmark.forgotten_by(setting, name, *pairs[name], seed=0)
    assert measured["forgetting"] == measured["before"] - measured["after"]
    assert 0 <= measured["overlap"] <= 1


def test_tables_draw_without_rows() -> None:
    assert page.table(page.SEMANTICS, []).to_markdown().startswith("| first task")
