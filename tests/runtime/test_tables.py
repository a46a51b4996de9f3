"""A table in every form, and every result as a data frame."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import metalearn as ml
from metalearn.__main__ import main as metalearn
from metalearn.analysis import (
    compare_layers,
    feature_reuse,
    freezing,
    over_seeds,
    similarity_between,
    similarity_map,
)
from metalearn.models import MLP
from metalearn.runtime.tables import FORMS, Table, check_table, flat_record, plain
from tests.helpers import made_up_tasks
from transfer import copied, everywhere, initialize
from transfer.__main__ import main as transfuse
from transfer.finetuning.curve import Curve

HARD = Table(("layer & co", "a_b", "50 %"), (("<b>", "x|y", "0.9 ± 0.1"), ("$1", "{}", "a,b")))


class Cells(HTMLParser):
    """The text of every cell."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(data)


def test_csv_reads_back() -> None:
    assert list(csv.reader(io.StringIO(HARD.to_csv()))) == [
        list(HARD.columns),
        *map(list, HARD.rows),
    ]


def test_html_is_escaped_and_reads_back() -> None:
    page = HARD.to_html()
    assert "<b>" not in page
    cells = Cells()
    cells.feed(page)
    assert cells.texts == [*HARD.columns, *HARD.rows[0], *HARD.rows[1]]


def test_latex_escapes_what_latex_reads() -> None:
    lines = HARD.to_latex().splitlines()
    assert lines[0] == r"\begin{tabular}{lll}" and lines[-1] == r"\end{tabular}"
    assert lines[2] == r"layer \& co & a\_b & 50 \% \\"
    assert lines[4] == r"<b> & x|y & 0.9 $\pm$ 0.1 \\"
    assert lines[5] == r"\$1 & \{\} & a,b \\"


def test_markdown_keeps_its_columns() -> None:
    lines = HARD.to_markdown().splitlines()
    assert lines[1] == "|---|---|---|"
    assert lines[2] == r"| <b> | x\|y | 0.9 ± 0.1 |"


@pytest.mark.parametrize("ending", FORMS)
def test_the_ending_of_a_file_says_how(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"table{ending}"
    HARD.write(path)
    assert path.read_text().strip() == getattr(HARD, FORMS[ending])().strip()


@pytest.mark.parametrize("name", ["table", "table.xlsx", ""])
def test_another_ending_is_refused_with_the_choices(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"use \.txt, \.csv, \.md, \.tex, \.html"):
        check_table(name)
    with pytest.raises(ValueError, match=r"use \.txt"):
        HARD.write(tmp_path / name)


def test_a_row_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match="a row has 1 cells for 2 columns"):
        Table(("a", "b"), (("x",),))


def learner(seed: int = 0) -> ml.MAML:
    torch.manual_seed(seed)
    return ml.MAML(MLP(4, 3, (8,)), 0.1)


def tasks() -> ml.Episode:
    return made_up_tasks(4, shape=(4,)).to(torch.float32)


def initialisation() -> Any:
    model = MLP(4, 3, (8,))
    return initialize(model, everywhere(copied(MLP(4, 3, (8,)).state_dict())))


INPUTS = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
RESULTS: dict[str, tuple[Callable[[], Any], set[str]]] = {
    "Evaluation": (lambda: ml.evaluate(learner(), tasks()), {"task", "accuracy"}),
    "Freezing": (lambda: freezing(learner(), tasks()), {"layers", "accuracy_mean", "cost_mean"}),
    "Freezing over seeds": (
        lambda: over_seeds([freezing(learner(seed), tasks()) for seed in (0, 1)]),
        {"layers", "accuracy_mean", "accuracy_std"},
    ),
    "Profile": (
        lambda: compare_layers(learner(0).model, learner(1).model, INPUTS),
        {"layer", "similarity", "p_adjusted"},
    ),
    "SimilarityMap": (
        lambda: similarity_map(learner(0).model, learner(1).model, INPUTS.split(20)),
        {"layer_a", "layer_b", "similarity"},
    ),
    "Between": (
        lambda: similarity_between({"a": [learner(0), learner(1)]}, tasks()),
        {"groups", "pairs"},
    ),
    "Reuse": (lambda: feature_reuse(learner(), tasks()), {"learner", "layer", "cka_mean"}),
    "Decomposition": (
        lambda: feature_reuse(learner(), tasks()).decomposition,
        {"name", "score_mean", "cost_interval"},
    ),
    "Initialisation": (initialisation, {"name", "how", "parameters"}),
    "Curve": (lambda: Curve("accuracy", (0, 5), {"accuracy": (0.5, 0.75)}), {"step", "accuracy"}),
}


@pytest.mark.parametrize("name", RESULTS)
@pytest.mark.filterwarnings("ignore:n=.*canonical correlations")
def test_every_result_is_a_data_frame(name: str) -> None:
    pandas = pytest.importorskip("pandas")
    make, columns = RESULTS[name]
    result = make()
    frame = result.to_frame()
    assert type(result).__name__ == name.split()[0]
    assert isinstance(frame, pandas.DataFrame) and len(frame) == len(result.records()) > 0
    assert columns <= set(frame.columns)


def test_a_frame_without_pandas_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"metalearn-transfer\[pandas\]"):
        Curve("accuracy", (0,), {"accuracy": (0.5,)}).to_frame()


def test_a_flat_record_has_no_number_that_json_lacks() -> None:
    assert flat_record({"a": {"b": math.nan}, "c": [1, 2]}) == {"a_b": None, "c": "1, 2"}


TINY = "--steps 2 --hidden 4 --meta-batch 2 --test-tasks 5 --execution loop --progress false"
COMMANDS = {
    "reuse": (metalearn, f"reuse --algorithms protonet {TINY}"),
    "train": (metalearn, f"train --algorithm protonet {TINY}"),
    "evaluate": (metalearn, "evaluate --test-tasks 5 --progress false --checkpoint"),
    "sweep": (metalearn, f"sweep --algorithms protonet --seeds 0,1 {TINY}"),
    "compare": (
        transfuse,
        "compare --steps 2 --batch 8 --seeds 0 --processes 1 --progress false --probe 40"
        " --pretrain-steps 2 --images 40 --strategies random,full --through=",
    ),
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def arguments(name: str, table: str) -> list[str]:
    words = COMMANDS[name][1].split()
    if name == "evaluate":
        words.append(str(*Path("runs").glob("*.safetensors")))
    return [*words, "--table", table]


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_train_and_evaluate_write_the_accuracy(here: Path) -> None:
    assert metalearn(arguments("train", "train.csv")) == 0
    (trained,) = read(here / "train.csv")
    assert trained["learner"] == "protonet" and "% (5 tasks)" in trained["accuracy"]
    assert metalearn(arguments("evaluate", "evaluated.csv")) == 0
    (evaluated,) = read(here / "evaluated.csv")
    assert evaluated["accuracy"] == trained["accuracy"]
    assert evaluated["data"] == "glyphs, 5-way 1-shot" and evaluated["split"] == "test"


def test_a_sweep_writes_its_table_as_it_prints_it(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert metalearn(arguments("sweep", "sweep.txt")) == 0
    assert (here / "sweep.txt").read_text() in capsys.readouterr().out
    assert metalearn(arguments("sweep", "sweep.csv")) == 0
    (row,) = read(here / "sweep.csv")
    assert row["data"] == "glyphs 5-way 1-shot" and row["seeds"] == "0,1"


def test_learners_without_an_inner_loop_have_a_table_too(here: Path) -> None:
    assert metalearn(arguments("reuse", "reuse.csv")) == 0
    assert read(here / "reuse.csv")[0]["learner"] == "protonet"


def test_a_comparison_writes_its_final_scores(here: Path) -> None:
    assert transfuse(arguments("compare", "final.csv")) == 0
    assert [row["start"] for row in read(here / "final.csv")] == ["random", "full"]


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("results.xlsx", "use .txt, .csv, .md, .tex, .html"),
        ("nowhere/results.csv", "there is no folder 'nowhere'"),
        ("folder.csv", "'folder.csv' is a folder"),
    ],
)
def test_a_table_that_cannot_be_written_is_refused_before_the_work(
    here: Path, name: str, table: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "folder.csv").mkdir()
    (here / "runs").mkdir()
    (here / "runs" / "trained.safetensors").touch()
    assert COMMANDS[name][0](arguments(name, table)) == 2
    output = capsys.readouterr()
    assert message in output.err and not output.out
    assert [path.name for path in (here / "runs").iterdir()] == ["trained.safetensors"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.array([3, 4]), [3, 4]),
        (np.int64(3), 3),
        ([np.int32(4), np.float32(1.5)], [4, 1.5]),
        (np.array([[1.5, np.nan]]), [[1.5, None]]),
        (np.array(3), 3),
        (np.bool_(True), True),
        (torch.tensor(float("inf")), None),
        (torch.tensor([True, False]), [True, False]),
        (np.array(["x"]), ["x"]),
    ],
)
def test_numbers_of_numpy_and_torch_become_those_of_python(value: object, expected: object) -> None:
    found = plain(value)
    assert found == expected and json.loads(json.dumps(found)) == expected
