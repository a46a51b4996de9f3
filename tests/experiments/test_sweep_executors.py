"""A sweep on executors: the same rows, workers that die, and the result file that resumes."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import tempfile
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from metalearn.__main__ import main
from metalearn.experiments.experiment import Experiment
from metalearn.experiments.sweep import sweep

SMALL: dict[str, Any] = {"steps": 2, "hidden": 4, "meta_batch": 2, "test_tasks": 5}


class InThisProcess(Executor):
    """Runs each job when it is submitted."""

    def submit(self, function: Any, /, *arguments: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*arguments))
        return future


def in_this_process() -> InThisProcess:
    return InThisProcess()


def deadly_file(process: int) -> Path:
    """The file whose presence kills the workers of a process."""
    return Path(tempfile.gettempdir()) / f"metalearn-test-{process}.deadly"


def dying(ways: int) -> nn.Module:
    """A model whose process is killed while it is built, as long as a file is there."""
    parent = multiprocessing.parent_process()
    if parent and parent.pid and deadly_file(parent.pid).exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.ReLU(), nn.Linear(8, ways))


def problems(folder: Path, *seeds: int, **settings: Any) -> list[Experiment]:
    values = {**SMALL, "runs": str(folder / "runs"), **settings}
    return [Experiment(seed=seed, **values) for seed in seeds]


def rows_of(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_worker_that_dies_is_named_with_its_job_and_the_same_call_repeats_it(
    tmp_path: Path, processes: BaseContext, capsys: pytest.CaptureFixture[str]
) -> None:
    deadly = deadly_file(os.getpid())
    deadly.touch()
    asked = [
        *problems(tmp_path, 0),
        *problems(tmp_path, 1, model="tests.experiments.test_sweep_executors:dying"),
    ]
    results = tmp_path / "rows.jsonl"
    with ProcessPoolExecutor(1, processes) as executor:
        first = sweep(asked, ["protonet"], results, executor=executor)
    deadly.unlink()
    assert "error" not in first[0]
    assert "its worker failed: BrokenProcessPool" in first[1]["error"]
    printed = capsys.readouterr().err
    assert "protonet, glyphs 5-way 1-shot, seed 1: submitted" in printed
    assert "protonet, glyphs 5-way 1-shot, seed 1: failed: its worker failed" in printed
    with ProcessPoolExecutor(1, processes) as executor:
        second = sweep(asked, ["protonet"], results, executor=executor)
    assert second[0] == first[0] and "error" not in second[1]
    assert len(rows_of(results)) == 3
    alone = sweep(problems(tmp_path / "alone", 0), ["protonet"], tmp_path / "b", progress=False)
    assert alone[0]["accuracy"] == first[0]["accuracy"]


def test_the_command_takes_an_executor_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["sweep", "--algorithms", "protonet", "--seeds", "0,1", "--progress", "false"]
    for name, value in SMALL.items():
        command += [f"--{name}", str(value)]
    named = "tests.experiments.test_sweep_executors:in_this_process"
    assert main([*command, "--executor", named]) == 0
    assert "2 figures in sweep.jsonl" in capsys.readouterr().out
    assert [row["seed"] for row in rows_of(tmp_path / "sweep.jsonl")] == [0, 1]
    assert main([*command, "--executor", "processes"]) == 0
    assert main([*command, "--executor", "slurm", "--seeds", "2"]) == 2
    assert "no executor 'slurm'" in capsys.readouterr().err


def test_what_is_no_executor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="executor=4 is a int without submit"):
        sweep(problems(tmp_path, 0), ["protonet"], tmp_path / "rows", executor=4)
    with pytest.raises(ValueError, match="the executor decides how many run at once"):
        sweep(
            problems(tmp_path, 0), ["protonet"], tmp_path / "rows", executor=InThisProcess(),
            processes=2,
        )  # fmt: skip


def test_the_device_is_that_of_the_process_that_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine without a GPU may submit to workers that have one."""
    (problem,) = problems(tmp_path, 0)
    assert problem.device == "auto"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    devices: list[str] = []

    def to(self: nn.Module, *, device: str, dtype: torch.dtype) -> nn.Module:
        devices.append(device)
        return self

    monkeypatch.setattr(nn.Module, "to", to)
    problem.fresh_model()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    problem.fresh_model()
    assert devices == ["cuda", "cpu"]


def test_a_device_that_cannot_be_used_is_refused_where_the_experiment_is_built() -> None:
    with pytest.raises(ValueError, match="device='abacus' cannot be used here"):
        Experiment(device="abacus")
