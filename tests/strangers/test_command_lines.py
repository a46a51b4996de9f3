"""Command lines as people type them: hyphens, bare flags, lists in any form, and errors that name
the type.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import metalearn
import transfer.__main__ as transfuse
from metalearn import __main__ as command_line
from metalearn.experiments.experiment import Experiment
from metalearn.runtime.options import listed, numbers

MAINS = {"metalearn": command_line.main, "transfuse": transfuse.main}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Experiment]]:
    """The algorithms and experiments that a command would have run."""
    runs: list[tuple[str, Experiment]] = []

    def sweep(
        problems: list[Experiment], algorithms: list[str], results: str, **options: Any
    ) -> list[Any]:
        runs.extend((name, problem) for problem in problems for name in algorithms)
        return []

    monkeypatch.setattr(command_line, "run_sweep", sweep)
    return runs


@pytest.mark.parametrize(
    "form", ["0,1,2", "0, 1, 2", "[0, 1, 2]", '["0", 1, "2"]', [0, 1, 2], ("0", "1", "2")]
)
def test_a_list_may_have_any_form(form: Any) -> None:
    assert numbers(form) == [0, 1, 2] and listed(form) == ["0", "1", "2"]


def test_lists_hyphens_and_bare_flags(asked: list[tuple[str, Experiment]], tmp_path: Path) -> None:
    assert (
        command_line.main(
            [
                "sweep",
                "--algorithms",
                "[maml, anil]",
                "--ways",
                "[2, 3]",
                "--seeds=0,1",
                "--meta-batch",
                "2",
                "--download",
            ]
        )
        == 0
    )
    assert {(name, each.ways, each.seed) for name, each in asked} == {
        (n, w, s) for n in ("maml", "anil") for w in (2, 3) for s in (0, 1)
    }
    assert all(each.meta_batch == 2 and each.download for _, each in asked)
    asked.clear()
    assert (
        command_line.main(
            [
                "sweep",
                "--algorithms",
                '["protonet"]',
                "--download",
                "--adapt-norm",
                "--pool",
                "false",
                "--ways",
                "5",
            ]
        )
        == 0
    )
    assert [(name, each.adapt_norm, each.pool, each.download) for name, each in asked] == [
        ("protonet", True, False, True)
    ]
    asked.clear()
    (tmp_path / "sweep.yaml").write_text(
        "algorithms: [maml, anil]\nways: [2, 3]\nshots: 1\nseeds: '0,1'\nsteps: 7\n"
    )
    assert command_line.main(["sweep", "--config", str(tmp_path / "sweep.yaml")]) == 0
    assert len(asked) == 8 and asked[0][1].steps == 7
    (tmp_path / "sweep.json").write_text('{"algorithms": ["maml"], "seeds": [3, 4]}')
    asked.clear()
    assert command_line.main(["sweep", "--config", str(tmp_path / "sweep.json")]) == 0
    assert [each.seed for _, each in asked] == [3, 4]


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("metalearn", ["train", "--steps", "abc"], "--steps=abc must be a whole number (int)"),
        ("metalearn", ["train", "--lr", "fast"], "--lr=fast must be a number (float)"),
        (
            "metalearn",
            ["train", "--download", "maybe"],
            "--download=maybe must be true or false (bool)",
        ),
        ("metalearn", ["evaluate"], "--checkpoint"),
        ("metalearn", ["train", "--stepz", "3"], "--stepz 3"),
        ("metalearn", ["trian"], "trian"),
        ("transfuse", ["compare", "--steps", "1.5"], "--steps=1.5 must be a whole number (int)"),
    ],
)
def test_a_value_of_another_type_is_named_in_one_line(
    command: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        MAINS[command](arguments)
    error = capsys.readouterr().err
    assert message in error and "--help` lists every setting" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["sweep", "--seeds", "0,one"],
            "seeds='0,one' are not whole numbers; write 0,1,2 or [0, 1, 2]",
        ),
        (["sweep", "--seeds", "[0, 1"], "is not a list; write a,b or [a, b]"),
        (["sweep", "--algorithms", "mmal"], "there is no algorithm 'mmal'"),
        (["train", "--device", "tpu9"], "device='tpu9' cannot be used here"),
        (["train", "--split-ratio", "1,2"], "is no folder"),
        (
            ["train", "--preset", "finn"],
            "there is no preset 'finn'; choose one of quick, finn2017, raghu2020, boil2021",
        ),
        (["train", "--schedule", "linear"], "schedule='linear'; choose constant or cosine"),
        (
            ["train", "--execution", "quickly"],
            "there is no execution 'quickly'; choose one of auto, loop",
        ),
    ],
)
def test_a_value_that_cannot_be_is_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", list(MAINS))
def test_both_commands_say_their_version(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        MAINS[command](["--version"])
    assert capsys.readouterr().out == f"{command} {metalearn.__version__}\n"


@pytest.mark.parametrize(
    ("command", "choices"),
    [("metalearn", "{quick,finn2017,raghu2020,boil2021}"), ("transfuse", "{adam,adamw,sgd}")],
)
def test_help_shows_the_choices(
    command: str, choices: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        MAINS[command](["train" if command == "metalearn" else "compare", "--help"])
    assert choices in capsys.readouterr().out.replace("\n", "")


def test_ctrl_c_names_the_command_that_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line, "run_sweep", stopped)
    assert command_line.main(["sweep", "--runs", "my runs", "--seeds", "0,1"]) == 130
    assert "sweep --runs 'my runs' --seeds 0,1" in capsys.readouterr().err


@pytest.fixture
def twelve(tmp_path: Path) -> Path:
    for c in range(12):
        (tmp_path / "own" / f"class{c}").mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (28, 28), (20 * c, 80 * i, 0)).save(
                tmp_path / "own" / f"class{c}" / f"{i}.png"
            )
    return tmp_path / "own"


def counts(**settings: Any) -> list[int]:
    experiment = Experiment(ways=2, queries=1, **settings)
    return [len(experiment.data(split).names) for split in ("train", "validation", "test")]


def test_a_folder_of_twelve_classes_is_divided_as_asked(
    twelve: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = [
        "--dataset",
        str(twelve),
        "--runs",
        str(tmp_path / "runs"),
        "--progress",
        "false",
        "--size",
        "28",
        "--queries",
        "1",
    ]
    assert command_line.main(["train", *small]) == 2
    error = capsys.readouterr().err
    assert (
        "2 classes but ways=5" in error
        and "64/16/20 by seed: 8 for train, 2 for validation" in error
    )
    table = tmp_path / "splits.csv"
    rows = [
        f"class{c}/{i}.png,class{c},{'train' if c < 5 else 'val' if c < 6 else 'test'}"
        for c in range(12)
        for i in range(3)
    ]
    table.write_text("\n".join(["filename,label,split", *rows]))
    assert counts(dataset=str(twelve)) == [8, 2, 2]
    assert (
        counts(dataset=str(twelve), split_ratio="1,1,2")
        == counts(dataset=str(twelve), split_ratio=[1, 1, 2])
        == [3, 3, 6]
    )
    assert counts(dataset=str(twelve), splits=str(table)) == [5, 1, 6]
    tiny = [
        "--steps",
        "1",
        "--hidden",
        "4",
        "--meta-batch",
        "1",
        "--test-tasks",
        "2",
        "--train-queries",
        "1",
    ]
    assert command_line.main(["train", *small, *tiny, "--splits", str(table)]) == 0
    (checkpoint,) = (tmp_path / "runs").glob("*.safetensors")
    assert (
        command_line.main(
            [
                "evaluate",
                "--checkpoint",
                str(checkpoint),
                "--test-tasks",
                "2",
                "--progress",
                "false",
            ]
        )
        == 0
    )
    table.write_text(table.read_text().replace("class4,train", "class4,test"))
    assert (
        command_line.main(
            [
                "evaluate",
                "--checkpoint",
                str(checkpoint),
                "--test-tasks",
                "2",
                "--progress",
                "false",
            ]
        )
        == 2
    )
    assert "splits.csv has changed since" in capsys.readouterr().err
    with pytest.raises(ValueError, match="both divide the classes; give one of them"):
        Experiment(dataset=str(twelve), splits=str(table), split_ratio="1,1,1")
    with pytest.raises(FileNotFoundError, match=r"there is no split file nowhere.csv"):
        Experiment(dataset=str(twelve), splits="nowhere.csv")


@pytest.mark.parametrize("ratio", ["1,2", "a,b,c", "1,1,0", "nan,1,1", "1,1,1,1", [1, -1, 1], 5])
def test_a_ratio_that_cannot_be_is_named(twelve: Path, ratio: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"split_ratio=.* three.* numbers.*write 64,16,20"):
        Experiment(dataset=str(twelve), split_ratio=ratio)
