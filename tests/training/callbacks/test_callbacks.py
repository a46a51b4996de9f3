"""Callbacks of `meta_train`: the calls, what stops a training, and resumes to the last bit."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from metalearn import MAML, meta_train
from metalearn.evaluation import evaluate
from metalearn.tasks import Sinusoid
from metalearn.training import checkpoints
from metalearn.training.callbacks import (
    Callback,
    EarlyStopping,
    JsonLines,
    Status,
    StopTraining,
    TimeLimit,
)
from tests.helpers import rank_records, sinusoid_learner, weights_vector

HELD_OUT = Sinusoid(tasks=3, seed=1)


def train(learner: Any, **options: Any) -> Any:
    defaults = {"steps": 6, "meta_batch": 2, "progress": False}
    return meta_train(learner, Sinusoid(tasks=40), **{**defaults, **options})


class Recorder(Callback):
    """Records the calls, and draws random numbers in those that may."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.seen: list[Status] = []

    def note(self, event: str, status: Status) -> None:
        self.calls.append((event, status.step))
        self.seen.append(status)
        if event != "step":
            torch.rand(3)
            random.random()
            np.random.rand()  # noqa: NPY002

    def on_start(self, status: Status) -> None:
        self.note("start", status)

    def on_validation(self, status: Status) -> None:
        self.note("validation", status)

    def on_step(self, status: Status) -> None:
        self.note("step", status)

    def on_checkpoint(self, status: Status) -> None:
        self.note("checkpoint", status)

    def on_end(self, status: Status) -> None:
        self.note("end", status)


class RaiseAt(Callback):
    def __init__(self, step: int, error: Exception, event: str = "on_step") -> None:
        self.step = step
        self.error = error
        setattr(self, event, self.check)

    def check(self, status: Status) -> None:
        if status.step == self.step:
            raise self.error


def test_every_method_is_called_in_its_order(tmp_path: Path) -> None:
    recorder = Recorder()
    curve = train(
        sinusoid_learner(),
        steps=4,
        callbacks=[recorder],
        validation=HELD_OUT,
        validate_every=2,
        checkpoint=tmp_path / "run",
        checkpoint_every=3,
    )
    assert recorder.calls == [
        ("start", 0),
        ("step", 1),
        ("validation", 2), ("step", 2),
        ("step", 3), ("checkpoint", 3),
        ("validation", 4), ("step", 4), ("checkpoint", 4),
        ("end", 4),
    ]  # fmt: skip
    losses = [status.loss for status in recorder.seen if status.step_loss is not None]
    assert losses[0] == curve.losses[0] and losses[-1] == curve.losses[-1]
    last = recorder.seen[-1]
    assert (last.call, last.steps, last.end) == ("meta_train", 4, "finished")
    assert last.validation == curve.validation[-1] and last.lr == 1e-3
    assert last.checkpoint == str(tmp_path / "run") and "learner" in last.settings
    assert recorder.seen[0].loss is None and recorder.seen[0].validation is None
    assert curve.stopped == ""


def test_any_object_with_one_of_the_methods_will_do() -> None:
    class Counter:
        steps = 0

        def on_step(self, status: Status) -> None:
            self.steps += 1

    counter = Counter()
    train(sinusoid_learner(), callbacks=(counter,))
    assert counter.steps == 6


def dropout_learner() -> MAML:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.3), nn.Linear(8, 1))
    return MAML(model, lr=0.01, loss=nn.functional.mse_loss)


def test_the_weights_are_the_same_with_and_without_callbacks_and_after_a_resume(
    tmp_path: Path,
) -> None:
    options: dict[str, Any] = {"validation": HELD_OUT, "validate_every": 2, "checkpoint_every": 4}
    without, whole, paused, resumed = (dropout_learner() for _ in range(4))
    torch.manual_seed(5)
    train(without, **options)
    torch.manual_seed(5)
    train(whole, **options, callbacks=[Recorder()], checkpoint=tmp_path / "whole")
    torch.manual_seed(5)
    callbacks = [Recorder(), RaiseAt(3, StopTraining("a pause"))]
    first = train(paused, **options, callbacks=callbacks, checkpoint=tmp_path / "run")
    assert (len(first.losses), first.stopped) == (3, "a pause")
    assert "stopped: a pause" in repr(first)
    log = tmp_path / "log"
    curve = train(
        resumed, **options, callbacks=[Recorder(), JsonLines(log)], checkpoint=tmp_path / "run"
    )
    assert len(curve.losses) == 6 and curve.stopped == ""
    assert weights_vector(whole).equal(weights_vector(without))
    assert weights_vector(resumed).equal(weights_vector(without))


# What stops


@pytest.mark.parametrize("event", ["on_validation", "on_step"])
def test_the_checkpoint_is_written_before_the_error_of_a_callback(
    tmp_path: Path, event: str
) -> None:
    recorder = Recorder()
    with pytest.raises(ZeroDivisionError, match="in a callback"):
        train(
            sinusoid_learner(),
            callbacks=[RaiseAt(4, ZeroDivisionError("in a callback"), event), recorder],
            checkpoint=tmp_path / "run",
            validation=HELD_OUT,
            validate_every=2,
        )
    assert checkpoints.load(tmp_path / "run")[1]["step"] == 4
    # The others are called to the end.
    assert recorder.calls[-3:] == [("step", 4), ("checkpoint", 4), ("end", 4)]
    assert recorder.seen[-1].end == "failed: ZeroDivisionError: in a callback"


def test_an_error_of_on_checkpoint_is_raised_after_another_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no room"):
        train(
            sinusoid_learner(),
            callbacks=[RaiseAt(2, OSError("no room"), "on_checkpoint")],
            checkpoint=tmp_path / "run",
            checkpoint_every=2,
        )
    assert checkpoints.load(tmp_path / "run")[1]["step"] == 3
    with pytest.raises(OSError, match="no room"):
        train(
            sinusoid_learner(),
            callbacks=[RaiseAt(6, OSError("no room"), "on_checkpoint")],
            checkpoint=tmp_path / "last",
        )


def test_an_error_of_on_start_is_raised_before_the_first_step_and_ends_the_others() -> None:
    recorder = Recorder()
    with pytest.raises(OSError, match="no server"):
        train(
            sinusoid_learner(), callbacks=[recorder, RaiseAt(0, OSError("no server"), "on_start")]
        )
    assert recorder.calls == [("start", 0), ("end", 0)]


def test_an_error_of_on_end_is_raised_and_does_not_hide_another(tmp_path: Path) -> None:
    failing = RaiseAt(6, OSError("not closed"), "on_end")
    with pytest.raises(OSError, match="not closed"):
        train(sinusoid_learner(), callbacks=[failing])
    with pytest.raises(ValueError, match="the first") as raised:
        train(sinusoid_learner(), callbacks=[RaiseAt(6, ValueError("the first")), failing])
    assert "on_end failed too: OSError: not closed" in raised.value.__notes__[0]


def test_an_error_counts_more_than_stop_training() -> None:
    stop, error = RaiseAt(2, StopTraining("enough")), RaiseAt(2, OSError("lost"))
    with pytest.raises(OSError, match="lost"):
        train(sinusoid_learner(), callbacks=[stop, error])
    assert len(train(sinusoid_learner(), callbacks=[stop]).losses) == 2


def test_ctrl_c_in_a_callback_stops_at_once() -> None:
    class Interrupt(Callback):
        def on_step(self, status: Status) -> None:
            raise KeyboardInterrupt

    recorder = Recorder()
    with pytest.raises(KeyboardInterrupt):
        train(sinusoid_learner(), callbacks=[Interrupt(), recorder])
    assert recorder.calls[-1] == ("end", 1)


@pytest.mark.parametrize(
    ("callbacks", "error", "message"),
    [
        (JsonLines, TypeError, "give a list"),
        ("log", TypeError, "callbacks='log' is a str; give a list"),
        ([EarlyStopping], TypeError, "holds the class EarlyStopping"),
        ([print], TypeError, "without a method of a callback"),
        ([EarlyStopping(2)], ValueError, "EarlyStopping needs validations: pass validation="),
    ],
)
def test_what_is_no_callback_is_refused(
    callbacks: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        train(sinusoid_learner(), callbacks=callbacks)


def test_a_misspelled_method_is_named() -> None:
    class Misspelled(Callback):
        def on_steps(self, status: Status) -> None: ...

    with pytest.raises(ValueError, match=r"Misspelled.on_steps is never called.*on_step"):
        train(sinusoid_learner(), callbacks=[Misspelled()])


# Early stopping, time limit, the best weights


def worsening(steps: int) -> Any:
    """Tasks, and rates under which the validation loss rises after a few steps."""
    return {
        "steps": steps,
        "validation": HELD_OUT,
        "validate_every": 1,
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.3),
        "clip_norm": 1.0,
    }


def test_early_stopping_stops_after_its_patience_and_a_resume_does_not_go_on(
    tmp_path: Path,
) -> None:
    options = worsening(40)
    curve = train(
        sinusoid_learner(), **options, callbacks=[EarlyStopping(3)], checkpoint=tmp_path / "run"
    )
    best = curve.best["step"]
    assert len(curve.losses) == best + 3 < 40
    assert f"at step {best}" in curve.stopped
    again = train(
        sinusoid_learner(), **options, callbacks=[EarlyStopping(3)], checkpoint=tmp_path / "run"
    )
    assert len(again.losses) == best + 3 and again.stopped == curve.stopped
    # Without it, or with more patience, the same call goes on.
    more = train(sinusoid_learner(), **options, checkpoint=tmp_path / "run")
    assert len(more.losses) == 40


def test_min_delta_and_the_direction_of_a_measure() -> None:
    def records(measure: str, *means: float) -> list[dict[str, Any]]:
        return [{"step": step, "measure": measure, "mean": mean} for step, mean in enumerate(means)]

    stopping = EarlyStopping(2, min_delta=0.1)
    assert stopping._best(records("accuracy", 0.5, 0.55, 0.7))[1] == 0
    assert stopping._best(records("accuracy", 0.5, 0.55, 0.59))[1] == 2
    assert stopping._best(records("loss", 0.5, 0.45, 0.3))[1] == 0
    assert stopping._best(records("loss", 0.5, 0.7))[1] == 1
    for arguments in ((0,), (2, -1.0)):
        with pytest.raises(ValueError, match=r"patience|min_delta"):
            EarlyStopping(*arguments)


@pytest.mark.parametrize("checkpoint", [False, True])
def test_keep_best_leaves_the_weights_of_the_best_validation(
    tmp_path: Path, checkpoint: bool
) -> None:
    path = {"checkpoint": tmp_path / "run"} if checkpoint else {}
    learner, last = sinusoid_learner(), sinusoid_learner()
    curve = train(learner, **worsening(12), keep_best=True, **path)
    train(last, **worsening(12))
    assert curve.best["step"] < 12
    assert evaluate(learner, HELD_OUT).mean == curve.best["mean"]
    assert evaluate(last, HELD_OUT).mean == curve.validation[-1]["mean"]
    if checkpoint:
        # The same call once more, and a longer one, which goes on from the last step.
        again, longer = sinusoid_learner(), sinusoid_learner()
        train(again, **worsening(12), keep_best=True, **path)
        assert weights_vector(again).equal(weights_vector(learner))
        assert len(train(longer, **worsening(14), **path).losses) == 14
        (tmp_path / "run.best").unlink()
        with pytest.raises(FileNotFoundError, match=r"run\.best is missing"):
            train(sinusoid_learner(), **worsening(14), keep_best=True, **path)


def test_keep_best_needs_a_validation() -> None:
    with pytest.raises(ValueError, match="keep_best=True needs validations: pass validation="):
        train(sinusoid_learner(), keep_best=True)


def test_a_time_limit_stops_with_a_checkpoint(tmp_path: Path) -> None:
    curve = train(
        sinusoid_learner(), callbacks=[TimeLimit(1e-9)], checkpoint=tmp_path / "run", steps=3
    )
    assert len(curve.losses) == 1 and "time limit" in curve.stopped
    assert checkpoints.load(tmp_path / "run")[1]["step"] == 1
    assert train(sinusoid_learner(), callbacks=[TimeLimit(1000)]).stopped == ""
    with pytest.raises(ValueError, match="seconds=0"):
        TimeLimit(0)


# Ranks


def train_on_ranks(rank: int, folder: Path) -> Any:
    recorder = Recorder()
    callbacks = [recorder, RaiseAt(2, StopTraining("enough"))]
    curve = train(sinusoid_learner(), callbacks=callbacks, checkpoint=folder / "run")
    try:
        train(
            sinusoid_learner(),
            callbacks=[RaiseAt(3, ZeroDivisionError("on the first rank"))],
            checkpoint=folder / "failed",
        )
    except ZeroDivisionError as error:
        return [recorder.calls, curve.stopped, str(error)]


def test_the_first_rank_calls_callbacks_and_stops_all(start_ranks: Any, tmp_path: Path) -> None:
    for process in start_ranks(train_on_ranks):
        process.join(120)
    first, second = rank_records(tmp_path, "result")
    assert first[0][-1] == ["end", 2] and second[0] == []
    assert first[1] == second[1] == "enough"
    assert first[2] == "on the first rank" and "rank 0: on the first rank" in second[2]
    assert checkpoints.load(tmp_path / "failed")[1]["step"] == 3
