"""SIGTERM, which schedulers, containers and torchrun send: the step is finished, a checkpoint
written, and the exit code is 143.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metalearn import meta_train
from metalearn.episodes import Episode
from metalearn.experiments.experiment import Experiment
from metalearn.tasks import Sinusoid
from metalearn.training import checkpoints
from tests.helpers import ROOT, sinusoid_learner, weights_vector

OPTIONS: dict[str, Any] = {"steps": 6, "meta_batch": 2, "progress": False}


class Tasks(Sinusoid):
    """Something happens when task `at` is drawn."""

    def __init__(self, at: int, happens: Callable[[], None]) -> None:
        super().__init__(tasks=40)
        self.at, self.happens = at, happens

    def __getitem__(self, index: int) -> Episode:
        if index == self.at:
            self.happens()
        return super().__getitem__(index)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def twice() -> None:
    terminate()
    terminate()


@pytest.mark.parametrize("happens", [terminate, twice])
def test_sigterm_finishes_the_step_writes_a_checkpoint_and_exits_with_143(
    tmp_path: Path, happens: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    whole, resumed = sinusoid_learner(), sinusoid_learner()
    meta_train(whole, Tasks(-1, terminate), **OPTIONS)
    with pytest.raises(SystemExit) as stopped:
        meta_train(sinusoid_learner(), Tasks(5, happens), checkpoint=tmp_path / "run", **OPTIONS)
    assert stopped.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    message = capsys.readouterr().err
    assert "SIGTERM: stopped after step 3 of 6; last checkpoint: " in message
    assert f"This command goes on from there: {sys.orig_argv[0]}" in message
    assert checkpoints.load(tmp_path / "run")[1]["step"] == 3
    curve = meta_train(resumed, Tasks(-1, terminate), checkpoint=tmp_path / "run", **OPTIONS)
    assert len(curve.losses) == 6
    assert weights_vector(resumed).equal(weights_vector(whole))


def test_without_a_checkpoint_the_message_says_how_to_keep_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        meta_train(sinusoid_learner(), Tasks(5, terminate), **OPTIONS)
    assert "Pass checkpoint= to keep what is trained" in capsys.readouterr().err


def test_sigterm_after_ctrl_c_and_ctrl_c_after_sigterm_stop_at_the_same_step(
    tmp_path: Path,
) -> None:
    def both() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        terminate()

    def turned() -> None:
        terminate()
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell may have left it ignored
    try:
        for name, happens in {"both": both, "turned": turned}.items():
            with pytest.raises(SystemExit):
                meta_train(
                    sinusoid_learner(), Tasks(5, happens), checkpoint=tmp_path / name, **OPTIONS
                )
            assert checkpoints.load(tmp_path / name)[1]["step"] == 3
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_handler_of_the_program_stays_its_own() -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        own = signal.getsignal(signal.SIGTERM)
        assert len(meta_train(sinusoid_learner(), Tasks(5, terminate), **OPTIONS).losses) == 6
        assert received == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)


def test_an_error_in_training_leaves_the_handlers_as_they_were() -> None:
    def fail() -> None:
        raise OSError("stop")

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(OSError, match="stop"):
        meta_train(sinusoid_learner(), Tasks(5, fail), **OPTIONS)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_another_thread_trains_without_touching_signals() -> None:
    seen: list[Any] = []
    thread = threading.Thread(
        target=lambda: meta_train(
            sinusoid_learner(),
            Tasks(5, lambda: seen.append(signal.getsignal(signal.SIGTERM))),
            **OPTIONS,
        )
    )
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL]


@pytest.mark.slow
def test_metalearn_train_goes_on_after_sigterm_with_the_command_that_it_names(
    tmp_path: Path,
) -> None:
    settings = {"ways": 2, "hidden": 4, "meta_batch": 1, "test_tasks": 4, "steps": 100_000}
    command = [sys.executable, "-m", "metalearn", "train", "--runs", str(tmp_path / "my runs")]
    for name, value in settings.items():
        command += [f"--{name}", str(value)]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    log = (
        Experiment(runs=str(tmp_path / "my runs"), **settings)
        .checkpoint("maml")
        .with_suffix(".jsonl")
    )  # type: ignore[arg-type]
    while not log.exists() or log.stat().st_size < 5000:
        time.sleep(0.05)
    process.terminate()
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 143
    step = checkpoints.load(log.with_suffix(".safetensors"))[1]["step"]
    assert step == len(log.read_text().splitlines())
    assert f"stopped after step {step} of 100000" in error
    assert f"-m metalearn train --runs '{tmp_path}/my runs' --ways 2" in error
