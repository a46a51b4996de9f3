"""Only a failed checksum or parse is damage; what cannot be read or written now stops with its
reason.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from metalearn import MAML, meta_train
from metalearn.__main__ import main
from metalearn.experiments.experiment import Experiment
from metalearn.experiments.sweep import append, sweep
from metalearn.models import MLP
from metalearn.models.weights import read
from metalearn.runtime import files
from metalearn.tasks import Sinusoid
from metalearn.training import checkpoints


def train(steps: int = 2, **options: Any) -> Any:
    torch.manual_seed(0)
    learner = MAML(
        MLP(1, 1, hidden=(4,)), lr=0.01, loss=torch.nn.functional.mse_loss, execution="loop"
    )
    tasks = Sinusoid(shots=2, queries=2, tasks=10)
    return meta_train(learner, tasks, steps=steps, meta_batch=1, progress=False, **options)


@contextmanager
def no_open_files_left() -> Iterator[None]:
    resource = pytest.importorskip("resource")  # Windows has none
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def whole(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in folder.iterdir() if path.name.startswith("run")
    }


def test_a_checkpoint_that_cannot_be_read_now_is_left_as_it_is(here: Path) -> None:
    train(checkpoint="run")
    before = whole(here)
    with (
        no_open_files_left(),
        pytest.raises(OSError, match=r"could not read run \(Too many open files\)"),
    ):
        checkpoints.load("run", set_aside=True)
    assert whole(here) == before
    train(checkpoint="run")
    assert whole(here)["run"] == before["run"]


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ENFILE, errno.ESTALE, errno.ELOOP])
def test_training_stops_with_the_reason_and_does_not_start_again(
    here: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    train(checkpoint="run")
    before = whole(here)
    monkeypatch.setattr(os, "stat", _failing(os.stat, code, "run"))
    with pytest.raises(OSError, match=rf"could not read run \({os.strerror(code)}\)") as raised:
        train(steps=4, checkpoint="run")
    monkeypatch.undo()
    assert raised.value.errno == code
    assert whole(here) == before


def _failing(real: Callable[..., Any], code: int, name: str) -> Callable[..., Any]:
    def failing(path: Any, *arguments: Any, **options: Any) -> Any:
        if path == Path(name):
            raise OSError(code, os.strerror(code))
        return real(path, *arguments, **options)

    return failing


def test_a_failing_reader_is_not_a_missing_file(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(checkpoint="run")

    def missing(*arguments: Any, **options: Any) -> None:
        raise FileNotFoundError(
            "No such file or directory: run"
        )  # what safetensors says of any failure

    monkeypatch.setattr("safetensors.safe_open", missing)
    with pytest.raises(OSError, match="could not read run") as raised:
        train(checkpoint="run")
    assert not isinstance(raised.value, FileNotFoundError)


def test_what_is_no_regular_file_is_named(here: Path) -> None:
    (here / "folder").mkdir()
    os.mkfifo(here / "pipe")
    (here / "loop").symlink_to("loop")
    for name, reason in (
        ("folder", "it is a folder"),
        ("pipe", "a device or a pipe"),
        ("loop", "Too many levels"),
    ):
        for load in (files.load, checkpoints.load, read):
            with pytest.raises(
                OSError, match=rf"could not read {name} .*{reason}|{name} is a folder"
            ):
                load(name)


def test_a_file_of_someone_else_is_neither_renamed_nor_deleted(here: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.ones(2)}, here / "theirs.safetensors")
    (here / "page.safetensors").write_text("<!DOCTYPE html><html>404</html>")
    (here / "empty.safetensors").write_bytes(b"")
    before = {path.name: path.read_bytes() for path in here.iterdir()}
    for name in before:
        with pytest.raises(files.Damaged, match=name) as raised:
            train(checkpoint=name)
        assert "delete" not in str(raised.value).lower()
        assert (here / name).read_bytes() == before[name]
    assert not [path.name for path in here.iterdir() if path.name.endswith(".damaged")]


def test_the_runs_folder_may_be_a_file_and_is_named(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "runs").write_text("notes")
    assert main(["train", "--steps", "1", "--hidden", "2", "--progress", "false"]) == 2
    assert "runs is a file, not a folder: name another folder" in capsys.readouterr().err
    assert (here / "runs").read_text() == "notes"
    with pytest.raises(OSError, match=r"runs is a file, not a folder"):
        files.save("runs/deep/er", {})


def hold(path: Path) -> None:
    with files.locked(path):
        (path.parent / "held").touch()
        time.sleep(60)


def test_two_processes_on_one_checkpoint_say_who_holds_it(
    here: Path, start: Callable[..., BaseProcess]
) -> None:
    process = start(hold, here / "run")
    until = time.monotonic() + 60
    while not (here / "held").exists() and time.monotonic() < until:
        time.sleep(0.01)
    with pytest.raises(
        BlockingIOError, match=rf"run is in use by process {process.pid} on .*name another path"
    ):
        train(checkpoint=here / "run")
    assert not (here / "run").exists()
    process.kill()
    process.join()
    train(checkpoint=here / "run")  # a lock does not outlive its holder
    train(checkpoint=here / "run")


def test_a_lock_ends_with_a_run_that_fails(here: Path) -> None:
    train(steps=3, checkpoint="run")
    for _ in range(2):
        with pytest.raises(ValueError, match="is at step 3 already"):
            train(steps=2, checkpoint="run")
    assert sorted(os.listdir()) == ["run", "run.lock", "run.previous"]


def test_a_resumed_log_with_bytes_of_no_text_keeps_its_lines(here: Path) -> None:
    train(steps=2, checkpoint="run", log="log")
    lines = (here / "log").read_bytes()
    (here / "log").write_bytes(
        lines + b'\xff\xfe\x00torn\n{"step": "x"}\n[1]\n' + b'{"step": 2, "lo'
    )
    train(steps=3, checkpoint="run", log="log")
    rows = [json.loads(line) for line in (here / "log").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]


def test_a_full_disk_under_the_log_or_the_results_is_named(here: Path) -> None:
    (here / "full").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"log full \(No space left on device\); free some space"):
        train(log="full", checkpoint="run")
    assert files.load("run")[1]["step"] == 1  # the checkpoint is written before the error
    with pytest.raises(
        OSError, match=r"could not write the results full \(No space left on device\)"
    ):
        append(Path("full"), [{"a": 1}])


def test_results_that_are_no_results_are_passed_over(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = {
        "steps": 1,
        "hidden": 2,
        "meta_batch": 1,
        "test_tasks": 2,
        "runs": "runs",
        "execution": "loop",
    }
    problem = [Experiment(**quick)]
    rows = sweep(problem, ["protonet"], "rows.jsonl", progress=False)
    line = (here / "rows.jsonl").read_bytes()
    odd = {**json.loads(line), "accuracy": "[red]100"}
    (here / "odd.jsonl").write_bytes(
        b"\xff\xfe\n[]\n" + b"[" * 10**6 + b"\n" + json.dumps(odd).encode() + b"\n" + line
    )
    started = time.monotonic()
    assert sweep(problem, ["protonet"], "odd.jsonl", progress=False) == rows
    assert time.monotonic() - started < 20
    assert main(["sweep", "--results", str(here), "--steps", "1"]) == 2
    assert "is a folder; name a file" in capsys.readouterr().err
