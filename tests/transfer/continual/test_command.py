"""`transfuse forget`: its answers, its refusals, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metalearn.data.class_tasks import split_classes
from tests.helpers import Page
from transfer.__main__ import main
from transfer.continual.memories import ewc, replay
from transfer.continual.question import Forget

TINY = ["--seeds", "0", "--steps", "2", "--batch", "8", "--probe", "30", "--k", "2"]
QUIET = ["--freezing", "false", "--progress", "false", "--device", "cpu"]


def run(*arguments: str) -> int:
    return main(["forget", *TINY, *QUIET, *arguments])


def test_embedded_glyphs_end_with_tables_a_page_and_its_numbers(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--memories", "none,replay:0.5", "--images", "40", "--table", "table.md") == 0
    printed = capsys.readouterr().out
    assert "task 1: 200 training and 200 test images of 10 classes" in printed
    assert "Layer by layer, memory: none" in printed and "replay:0.5" in printed
    page = Page((here / "forgetting.html").read_text())
    assert not page.open and "replay:0.5" in " ".join(page.words)
    facts = json.loads((here / "forgetting.json").read_text())
    assert facts["about"]["dataset"] == "glyphs" and facts["layers"][0] == "block1"
    assert (here / "table.md").read_text().startswith("| memory |")
    files = sorted(path.name for path in (here / "runs").rglob("*.safetensors"))
    assert len(files) == 6  # two tasks, one more with replay, the ceiling, two anatomies


def test_a_folder_of_images_is_cut_by_its_classes(here: Path) -> None:
    generator = np.random.default_rng(0)
    for name in ("ant", "bee", "cow", "dog"):
        (here / "images" / name).mkdir(parents=True)
        for i in range(8):
            pixels = generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(here / "images" / name / f"{i}.png")
    arguments = ["--dataset", "images", "--classes", "ant,cow/bee,dog", "--model", "cbr-mini"]
    assert run(*arguments, "--memories", "none", "--heads", "shared") == 0
    facts = json.loads((here / "forgetting.json").read_text())
    assert facts["shared"] and facts["tasks"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--memories", "si:1"], "there is no memory 'si:1'; choose none, ewc:STRENGTH"),
        (["--memories", "ewc"], "memory 'ewc' needs a number, such as ewc:100"),
        (["--memories", "replay:2"], "share=2.0; give the share"),
        (["--memories", ""], "--memories is empty"),
        (["--tasks", "11"], "--tasks 11 of 20 classes; give 2 to 10 tasks"),
        (["--classes", "0,1/2"], "task 1 has 1 class: there is nothing to tell apart"),
        (["--classes", "0,1/2,99"], "there is no class 99"),
        (["--seeds", "0,0"], "has 0 twice"),
        (["--norm", "layer"], "norm='layer'; choose group or batch"),
        (["--norm", "batch", "--memories", "ewc:1"], "keeps running statistics"),
        (["--classes", "0,1/2,3,4", "--heads", "shared"], "one shared head needs the same"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    arguments: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    errors = capsys.readouterr().err.splitlines()
    assert message in errors[-1]
    assert not list(here.rglob("*.safetensors"))


def test_settings_become_tasks_and_memories() -> None:
    question = Forget(memories="none,ewc:10,replay:0.2", store=50, tasks=4)
    assert question.chosen_memories() == {
        "none": None, "ewc:10": ewc(10.0), "replay:0.2": replay(0.2, 50)
    }  # fmt: skip
    parts = question.parts()
    tasks = question.cut(parts)
    assert [len(task.train.names) for task in tasks] == [5] * 4
    expected = split_classes(parts, [range(5, 10)])[0]
    assert (tasks[1].train.images == expected.train.images).all()
    # Seeds and memories are of one folder, other trainings are not.
    assert question.folder == Forget(memories="none", store=50, tasks=4, seeds="7").folder
    assert question.folder != Forget(memories="none", store=50, tasks=4, steps=7).folder
