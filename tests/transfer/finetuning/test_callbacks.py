"""Callbacks of `finetune`: the same protocol, and stops between two evaluations."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from metalearn.training import checkpoints
from metalearn.training.callbacks import (
    Callback,
    EarlyStopping,
    JsonLines,
    Status,
    StopTraining,
    TimeLimit,
)
from tests.helpers import striped_images
from transfer import finetune

TRAIN = striped_images((12, 12), seed=0)
TEST = striped_images((6, 6), seed=1)
HELD_OUT = striped_images((5, 5), seed=2)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(TRAIN.images[0].numel(), 6), nn.Dropout(0.3),
                         nn.Linear(6, 2))  # fmt: skip


def training(**options: Any) -> Any:
    defaults = {"steps": 10, "batch": 4, "evaluate_every": 4, "validation": HELD_OUT}
    return finetune(TRAIN, TEST, **{**defaults, **options})


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.flatten() for parameter in model.parameters()])


class Recorder(Callback):
    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.seen: list[Status] = []

    def note(self, event: str, status: Status) -> None:
        self.calls.append((event, status.step))
        self.seen.append(status)

    def on_start(self, status: Status) -> None:
        torch.rand(2)
        self.note("start", status)

    def on_validation(self, status: Status) -> None:
        torch.rand(2)
        self.note("validation", status)

    def on_step(self, status: Status) -> None:
        self.note("step", status)

    def on_checkpoint(self, status: Status) -> None:
        torch.rand(2)
        self.note("checkpoint", status)

    def on_end(self, status: Status) -> None:
        self.note("end", status)


class At(Callback):
    """Something happens at a step."""

    def __init__(self, step: int, act: Any) -> None:
        self.step = step
        self.act = act

    def on_step(self, status: Status) -> None:
        if status.step == self.step:
            if isinstance(self.act, Exception):
                raise self.act
            self.act()


def test_every_method_is_called_in_its_order(tmp_path: Path) -> None:
    recorder = Recorder()
    train = training(steps=4, evaluate_every=2, folder=tmp_path, callbacks=[recorder])
    curve = train(network(), seed=3)
    assert recorder.calls == [
        ("start", 0), ("validation", 0),
        ("step", 1), ("validation", 2), ("step", 2), ("checkpoint", 2),
        ("step", 3), ("validation", 4), ("step", 4), ("checkpoint", 4),
        ("end", 4),
    ]  # fmt: skip
    steps = [status for (event, _), status in zip(recorder.calls, recorder.seen, strict=True)
             if event == "step"]  # fmt: skip
    assert [status.loss for status in steps] == pytest.approx(curve.losses)
    assert [bool(status.scores) for status in steps] == [False, True, False, True]
    last = recorder.seen[-1]
    assert (last.call, last.settings["seed"], last.end) == ("finetune", 3, "finished")
    assert last.validation == {
        "step": 4, "measure": "accuracy", "mean": curve.validation[-1], "interval": None,
    }  # fmt: skip
    assert last.scores["accuracy"] == curve.final
    assert last.checkpoint == str(tmp_path / "seed3.training")


@pytest.mark.parametrize("at", [1, 4, 6])
def test_a_stop_anywhere_resumes_to_the_same_bits(tmp_path: Path, at: int) -> None:
    whole, stopped, resumed = network(), network(), network()
    expected = training()(whole, seed=0)
    # Stopped at an evaluation or between two, while dropout draws.
    pause = At(at, StopTraining("a pause"))
    options = {"folder": tmp_path, "keep": (2, 6)}
    curve = training(callbacks=[Recorder(), pause], **options)(stopped, seed=0)
    assert (len(curve.losses), curve.stopped) == (at, "a pause")
    assert curve.steps[-1] == at  # evaluated for this result
    assert checkpoints.load(tmp_path / "seed0.training")[1]["step"] == at
    log = tmp_path / "log.jsonl"
    going_on = training(callbacks=[Recorder(), JsonLines(log)], **options)(resumed, seed=0)
    assert weights(resumed).equal(weights(whole))
    assert going_on.scores == expected.scores and going_on.losses == expected.losses
    assert going_on.steps == (0, 4, 8, 10) and going_on.stopped == ""
    assert sorted(going_on.snapshots) == [2, 6]


def test_the_state_is_written_before_the_error_of_a_callback(tmp_path: Path) -> None:
    recorder = Recorder()
    failing = At(3, ZeroDivisionError("in a callback"))
    with pytest.raises(ZeroDivisionError, match="in a callback"):
        training(folder=tmp_path, callbacks=[failing, recorder])(network(), seed=0)
    assert checkpoints.load(tmp_path / "seed0.training")[1]["step"] == 3
    assert recorder.calls[-2:] == [("checkpoint", 3), ("end", 3)]
    assert recorder.seen[-1].end == "failed: ZeroDivisionError: in a callback"
    assert len(training(folder=tmp_path)(network(), seed=0).losses) == 10


def test_sigterm_writes_the_state_and_exits_with_143(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    terminate = At(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as stopped:
        training(folder=tmp_path, callbacks=[terminate])(network(), seed=0)
    assert stopped.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert "stopped after step 3 of 10; last checkpoint: " in capsys.readouterr().err
    whole, resumed = network(), network()
    training()(whole, seed=0)
    training(folder=tmp_path)(resumed, seed=0)
    assert weights(resumed).equal(weights(whole))


def test_a_function_of_the_seed_gives_each_training_a_log(tmp_path: Path) -> None:
    train = training(callbacks=lambda seed: [JsonLines(tmp_path / f"{seed}.jsonl", every=3)])
    curve = train(network(), seed=1)
    train(network(), seed=2)
    lines = [json.loads(line) for line in (tmp_path / "1.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 3, 4, 6, 8, 9, 10]
    assert lines[0]["scores"]["accuracy"] == curve.values[0]
    assert lines[-1]["validation"]["mean"] == curve.validation[-1]
    assert (tmp_path / "2.jsonl").exists()


def test_early_stopping_and_a_time_limit_are_those_of_meta_train() -> None:
    curve = training(steps=400, lr=0.0001, callbacks=[EarlyStopping(2, min_delta=0.9)])(
        network(), seed=0
    )
    assert curve.steps == (0, 4, 8) and "no better validation accuracy" in curve.stopped
    assert "stopped: no better" in repr(curve).replace("\n", " ")
    assert type(curve).from_dict(curve.to_dict()).stopped == curve.stopped
    limited = training(callbacks=[TimeLimit(1e-9)])(network(), seed=0)
    assert len(limited.losses) == 1


def test_keep_best_leaves_the_weights_of_the_best_validation() -> None:
    options = {"steps": 40, "lr": 0.3, "optimizer": "sgd", "evaluate_every": 2}
    model = network()
    curve = training(**options, keep_best=True)(model, seed=0)
    last = training(**options)(network(), seed=0)
    assert curve.losses == last.losses
    assert curve.validation[curve.best] == max(curve.validation)
    again = finetune(TRAIN, HELD_OUT, steps=1, lr=1e-9)(model, seed=0)
    assert again.values[0] == max(curve.validation)
    with pytest.raises(ValueError, match="keep_best=True needs validation="):
        training(validation=None, keep_best=True)


def test_what_is_no_callback_is_refused() -> None:
    with pytest.raises(TypeError, match="holds the class EarlyStopping"):
        training(callbacks=[EarlyStopping])
    with pytest.raises(TypeError, match="give a list"):
        training(callbacks=lambda seed: "log")(network(), seed=0)
    with pytest.raises(ValueError, match="pass validation= to finetune"):
        training(validation=None, callbacks=[EarlyStopping(2)])(network(), seed=0)
