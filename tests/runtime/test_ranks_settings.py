"""Ranks that were started with different settings: each difference is refused before the first
step.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR

from metalearn import ANIL, evaluate, meta_train
from metalearn.algorithms.base import Learner
from metalearn.episodes import Episode
from metalearn.runtime import distributed
from metalearn.tasks import Sinusoid
from metalearn.training import checkpoints
from tests.helpers import ROOT, sinusoid_learner

USUAL: dict[str, Any] = {"steps": 3, "meta_batch": 2, "progress": False}


def sgd(**options: float) -> dict[str, Any]:
    return {"optimizer": lambda parameters: SGD(parameters, **options)}


def decay(rate: float) -> dict[str, Any]:
    return {"schedule": lambda optimizer: LambdaLR(optimizer, lambda step: rate**step)}


def cosine(steps: int) -> dict[str, Any]:
    return {"schedule": lambda optimizer: CosineAnnealingLR(optimizer, steps)}


def ones(shots: int = 5) -> list[Episode]:
    return [Sinusoid(shots=shots, tasks=1)[0]] * 4


def other_ones() -> list[Episode]:
    return [Sinusoid(shots=5, tasks=1, seed=1)[0]] * 4


def held_still() -> Learner:
    learner = sinusoid_learner()
    learner.model.requires_grad_(False)
    learner.model.head.requires_grad_(True)
    return learner


# What rank 0 has, what rank 1 has, and a part of the message. Each entry overrides the learner, the
# tasks or the options.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "inner rate": (
        {"learner": sinusoid_learner()},
        {"learner": sinusoid_learner(0.02)},
        "learner.lr 0.02",
    ),
    "inner steps": (
        {"learner": sinusoid_learner()},
        {"learner": sinusoid_learner(steps=2)},
        "learner.steps 2",
    ),
    "algorithm": (
        {"learner": sinusoid_learner()},
        {"learner": sinusoid_learner(algorithm=ANIL)},
        "learner.algorithm ANIL",
    ),
    "first order": (
        {"learner": sinusoid_learner()},
        {"learner": sinusoid_learner(first_order=True)},
        "learner.first_order true",
    ),
    "frozen layers": (
        {"learner": sinusoid_learner()},
        {"learner": sinusoid_learner().frozen(["head"])},
        "moving",
    ),
    "trained layers": ({"learner": sinusoid_learner()}, {"learner": held_still()}, "not trained"),
    "network": (
        {"learner": sinusoid_learner()},
        {"learner": sinusoid_learner(hidden=(9,))},
        "(9, 1)",
    ),
    "evaluation mode": (
        {"learner": sinusoid_learner()},
        {"learner": sinusoid_learner().eval()},
        "in evaluation mode",
    ),
    "dtype": (
        {"learner": sinusoid_learner()},
        {"learner": sinusoid_learner().double()},
        "torch.float64",
    ),
    "task seed": (
        {"tasks": Sinusoid(tasks=9)},
        {"tasks": Sinusoid(tasks=9, seed=1)},
        "episodes.seed 1",
    ),
    "task count": ({"tasks": Sinusoid(tasks=9)}, {"tasks": Sinusoid(tasks=8)}, "episodes.tasks 8"),
    "task data": ({"tasks": ones()}, {"tasks": other_ones()}, "first task"),
    "steps": ({"steps": 3}, {"steps": 4}, "rank 0 has steps 3; rank 1 has steps 4"),
    "meta-batch": ({"meta_batch": 2}, {"meta_batch": 4}, "training.meta_batch 4"),
    "optimizer": ({}, sgd(lr=1e-3), "training.optimizer.name SGD"),
    "momentum": (sgd(lr=0.1), sgd(lr=0.1, momentum=0.9), "momentum 0.9"),
    "outer rate": ({}, {"optimizer": lambda p: Adam(p, 2e-3)}, "training.optimizer.0.lr 0.002"),
    "optimizer's part": ({}, {"optimizer": lambda p: Adam(p[:2])}, "optimizer of.0"),
    "schedule": ({}, cosine(5), "training.schedule.name CosineAnnealingLR"),
    "schedule's length": (cosine(5), cosine(6), "training.schedule.T_max 6"),
    "function in a schedule": (decay(0.9), decay(0.8), "at step 2 the outer rate"),
    "clip_norm": ({}, {"clip_norm": 1.0}, "training.clip_norm 1.0"),
    "clip_value": ({"clip_value": 1.0}, {"clip_value": 2.0}, "training.clip_value 2.0"),
    "precision": ({}, {"precision": "bfloat16"}, "training.precision bfloat16"),
    "checkpoint_every": (
        {"checkpoint": "run"},
        {"checkpoint": "run", "checkpoint_every": 1},
        "checkpoint_every 1",
    ),
    "checkpoint": ({"checkpoint": "run"}, {}, "checkpoint_every null"),
    "validation": ({}, {"validation": ones()}, "validation.tasks 4"),
    "validate_every": (
        {"validation": ones()},
        {"validation": ones(), "validate_every": 1},
        "validate_every 1",
    ),
    "caller's own settings": ({"settings": {"seed": 0}}, {"settings": {"seed": 1}}, "run.seed 1"),
}


def refusal(call: Callable[[], object]) -> str:
    try:
        call()
    except ValueError as error:
        return str(error)
    return "not refused"


def train(case: dict[str, Any]) -> None:
    options = USUAL | case
    learner, tasks = (
        options.pop("learner", sinusoid_learner()),
        options.pop("tasks", Sinusoid(tasks=9)),
    )
    meta_train(learner, tasks, **options)


def differences(rank: int, folder: Path) -> dict[str, str]:
    os.chdir(folder)
    messages = {
        name: refusal(lambda sides=sides: train(sides[rank])) for name, sides in CASES.items()
    }
    learner, tasks = sinusoid_learner((0.01, 0.02)[rank]), Sinusoid(tasks=9)
    messages["evaluate: inner rate"] = refusal(lambda: evaluate(learner, tasks))
    messages["evaluate: tasks_at_once"] = refusal(
        lambda: evaluate(sinusoid_learner(), tasks, tasks_at_once=2 + rank)
    )
    messages["evaluate: task data"] = refusal(
        lambda: evaluate(sinusoid_learner(), other_ones() if rank else ones())
    )
    messages["evaluate: nothing"] = refusal(
        lambda: evaluate(sinusoid_learner(), tasks, tasks_at_once=rank)
    )
    messages["number on one rank"] = refusal(lambda: train({"clip_norm": 1.0 - 2 * rank}))
    messages["another call"] = refusal(
        lambda: evaluate(sinusoid_learner(), tasks) if rank else train({})
    )
    return messages


def random_tasks(rank: int, folder: Path) -> dict[str, Any]:
    """Tasks that are drawn at random are other ones on each rank on purpose; notes do not decide
    the run.
    """

    class Random(Sinusoid):
        def __getitem__(self, index: int) -> Episode:
            return super().__getitem__(int(torch.randint(9, ())))

    torch.manual_seed(rank)
    train({"tasks": Random(tasks=9), "settings": {"notes": {"rank": rank}}})
    return {}


def terminated(rank: int, folder: Path) -> dict[str, Any]:
    class Slow(Sinusoid):
        def __getitem__(self, index: int) -> Episode:
            time.sleep(0.05)
            (folder / f"drawing{rank}").touch()
            return super().__getitem__(index)

    train({"tasks": Slow(tasks=9), "steps": 10_000, "checkpoint": folder / "run"})
    return {}


def other_calls(rank: int, folder: Path) -> dict[str, Any]:
    """Rank 0 leaves out a call, so that each rank waits for the other."""
    distributed.join(torch.device("cpu"))
    distributed.all_gather(None)
    if rank:
        distributed.all_reduce(torch.zeros(1))
    distributed.all_gather(None)
    return {}


def start(folder: Path, work: str, **settings: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | settings
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, __file__, work, str(folder)]
    return subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts two ranks, and ends what is left of them with the test."""
    processes: list[subprocess.Popen[str]] = []

    def begin(work: str, **settings: str) -> subprocess.Popen[str]:
        processes.append(start(tmp_path, work, **settings))
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_ranks_with_other_settings_are_refused_before_the_first_step(
    started: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = started("differences")
    error = process.communicate(timeout=200)[1]
    assert process.returncode == 0, error
    for rank in (0, 1):
        messages = json.loads((tmp_path / f"differences{rank}").read_text())
        wrong = {
            name: messages[name] for name, case in CASES.items() if case[2] not in messages[name]
        }
        assert not wrong
        assert "learners.learner.lr 0.02" in messages["evaluate: inner rate"]
        assert (
            "rank 0 has tasks_at_once 2; rank 1 has tasks_at_once 3"
            in messages["evaluate: tasks_at_once"]
        )
        assert "first task" in messages["evaluate: task data"]
        assert "tasks_at_once=0 must be at least 1" in messages["evaluate: nothing"]
        assert "clip_norm=-1: it must be a finite number above 0" in messages["number on one rank"]
        assert "rank 0 has call meta_train" in messages["another call"]


@pytest.mark.slow
def test_random_tasks_and_notes_may_differ(started: Callable[..., subprocess.Popen[str]]) -> None:
    process = started("random_tasks")
    error = process.communicate(timeout=200)[1]
    assert process.returncode == 0, error


@pytest.mark.slow
def test_sigterm_to_torchrun_leaves_a_checkpoint_of_the_last_step(
    started: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = started("terminated")
    while not (tmp_path / "drawing1").exists():
        time.sleep(0.1)
    time.sleep(2)
    process.send_signal(signal.SIGTERM)
    error = process.communicate(timeout=200)[1]
    step = checkpoints.load(tmp_path / "run")[1]["step"]
    assert step > 0
    assert f"SIGTERM: stopped after step {step} of 10000" in error
    assert "Start all of them again with the same command" in error


@pytest.mark.slow
def test_ranks_that_wait_for_each_other_stop(started: Callable[..., subprocess.Popen[str]]) -> None:
    begun = time.monotonic()
    process = started("other_calls", METALEARN_RANK_TIMEOUT="4")
    error = process.communicate(timeout=200)[1]
    assert process.returncode == 1
    assert "they do not make the same calls" in error
    assert time.monotonic() - begun < 120


if __name__ == "__main__":
    work, folder, rank = sys.argv[1], Path(sys.argv[2]), int(os.environ["RANK"])
    (folder / f"{work}{rank}").write_text(json.dumps(globals()[work](rank, folder)))
