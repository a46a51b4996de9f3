"""Several processes as one: they agree at the start, share out tasks, and none waits for one that
is gone.
"""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import SGD
from torch.utils.data import DataLoader

from metalearn import MAML
from metalearn.__main__ import main
from metalearn.episodes import Episode
from metalearn.evaluation import evaluate
from metalearn.experiments.experiment import Experiment
from metalearn.models import MLP
from metalearn.runtime import distributed, provenance
from metalearn.tasks import Sinusoid
from metalearn.training import checkpoints
from metalearn.training.loop import meta_train
from tests.helpers import rank_records, weights_vector

Started = Callable[..., list[BaseProcess]]
OPTIONS: dict[str, Any] = {
    "steps": 8,
    "meta_batch": 3,
    "optimizer": lambda p: SGD(p, lr=0.01),
    "progress": False,
}


class Tasks(Sinusoid):
    """Sinusoids; something happens to this rank when it draws task `at`."""

    at, happens = -1, staticmethod(lambda: None)

    def __getitem__(self, index: int) -> Episode:
        if index == self.at:
            self.happens()
        return super().__getitem__(index)


class Spoilt(Tasks):
    """One task has an input that is not a number."""

    def __getitem__(self, index: int) -> Episode:
        episode = super().__getitem__(index)
        if index == 33:
            episode.support.inputs[0] = math.nan
        return episode


def build(seed: int = 0) -> MAML:
    torch.manual_seed(seed)
    return MAML(MLP(1, 1).double(), 0.01, loss=torch.nn.functional.mse_loss)


def train_and_die(
    rank: int,
    folder: Path,
    happens: Callable[[], None] = lambda: os.kill(os.getpid(), signal.SIGKILL),
) -> list[float]:
    tasks = Tasks(tasks=100)
    if rank == 1 and not (folder / "died").exists():
        (folder / "died").touch()
        tasks.at, tasks.happens = 16, happens  # type: ignore[method-assign]
    learner = build(rank)
    meta_train(learner, tasks, checkpoint=folder / "run", checkpoint_every=2, **OPTIONS)
    return weights_vector(learner).tolist()


def fall_silent(rank: int, folder: Path) -> list[float]:
    return train_and_die(rank, folder, lambda: os.kill(os.getpid(), signal.SIGSTOP))


def test_where_a_rank_is_killed_the_others_stop_with_a_message_and_the_checkpoint_resumes(
    start_ranks: Started, tmp_path: Path
) -> None:
    started = time.monotonic()
    survivor, dead = start_ranks(train_and_die)
    survivor.join(60)
    dead.join(60)
    assert dead.exitcode == -signal.SIGKILL
    assert time.monotonic() - started < 60
    error = json.loads((tmp_path / "rank0").read_text())["error"]
    assert error.startswith("ConnectionError: rank 0 of 2 lost another rank")
    assert "run (step 4). Start all of them again with the same command" in error

    for process in start_ranks(train_and_die):
        process.join(60)
    alone = build()
    meta_train(alone, Tasks(tasks=100), **OPTIONS)
    for result in rank_records(tmp_path, "result"):
        assert result == pytest.approx(weights_vector(alone).tolist(), abs=1e-12)


def test_where_a_rank_falls_silent_the_others_stop_once_their_patience_ends(
    start_ranks: Started, tmp_path: Path
) -> None:
    survivor, _ = start_ranks(fall_silent, METALEARN_RANK_TIMEOUT="2")
    survivor.join(60)
    assert survivor.exitcode == 1
    assert (
        "metalearn: rank 0 of 2 stops: rank 1 has not been heard of for 2 s"
        in (tmp_path / "errors0").read_text()
    )
    assert checkpoints.load(tmp_path / "run")[1]["step"] == 4


def first_falls_silent(rank: int, folder: Path) -> None:
    """The first rank keeps the store that carries the ranks' reports."""
    distributed.join(torch.device("cpu"))
    distributed.all_gather(None)
    if rank == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
    distributed.all_gather(None)


def test_a_silent_first_rank_does_not_silence_the_others_with_its_store(
    start_ranks: Started, tmp_path: Path
) -> None:
    _, survivor = start_ranks(first_falls_silent, METALEARN_RANK_TIMEOUT="2")
    survivor.join(60)
    assert survivor.exitcode == 1
    assert "rank 0 has not been heard of for 2 s" in (tmp_path / "errors1").read_text()


def other_versions(rank: int, folder: Path) -> None:
    own = {**provenance.versions(), **({"torch": "2.6.0"} if rank else {})}
    distributed.versions = lambda: own  # type: ignore[assignment]
    train_and_die(rank, folder)


def test_other_versions_are_refused_at_the_start_by_name(
    start_ranks: Started, tmp_path: Path
) -> None:
    for process in start_ranks(other_versions):
        process.join(60)
    for error in rank_records(tmp_path, "error"):
        assert (
            f"rank 0 has torch {torch.__version__}; rank 1 has torch 2.6.0. Install the same"
            " versions" in error
        )
    assert not (tmp_path / "run").exists()


def evaluations(rank: int, folder: Path) -> dict[str, Any]:
    result = evaluate(build(), Tasks(tasks=101), tasks_at_once=8)
    drawn: list[int] = []
    counted = Tasks(tasks=101)
    counted.at, counted.happens = 5, lambda: drawn.append(rank)  # type: ignore[method-assign]
    evaluate(build(), counted, tasks_at_once=8)
    found: dict[str, Any] = {
        "per_episode": result.per_episode.tolist(),
        "marks": result.fingerprints,
        "mean": result.mean,
        "drawn": drawn,
    }
    for name, learner, tasks in (
        ("nan", build(), Spoilt(tasks=101)),
        ("weights", build(rank), Tasks(tasks=9)),
        ("length", build(), Tasks(tasks=32 + rank)),
        ("shuffled", build(), DataLoader(Tasks(tasks=9), batch_size=2, shuffle=True)),
    ):
        try:
            evaluate(learner, tasks, tasks_at_once=8)
        except (ValueError, FloatingPointError) as error:
            found[name] = f"{type(error).__name__}: {error}"
    with distributed.standalone():
        found["apart"] = (
            (distributed.rank(), distributed.world_size()),
            len(evaluate(build(), Tasks(tasks=3)).per_episode),
        )
    drawing = distributed.tickets("test")
    found["numbers"] = [next(drawing) for _ in range(3)]
    drawing = distributed.tickets("test")  # a second sweep of as many jobs
    found["numbers again"] = [next(drawing) for _ in range(3)]
    distributed.all_gather(
        None
    )  # the first rank keeps the store: it may not leave before the others have drawn
    return found


def test_ranks_share_out_the_test_tasks_and_return_what_one_process_would(
    start_ranks: Started, tmp_path: Path
) -> None:
    for process in start_ranks(evaluations):
        process.join(120)
    alone = evaluate(build(), Tasks(tasks=101), tasks_at_once=8)
    found = rank_records(tmp_path, "result")
    for one in found:
        assert one["per_episode"] == alone.per_episode.tolist()
        assert one["marks"] == list(alone.fingerprints)
        assert one["mean"] == alone.mean
        assert one["apart"] == [[0, 1], 3]
        assert "the predictions for task 33 are NaN" in one["nan"]
        assert one["nan"].startswith("FloatingPointError: ")
        assert "weights of learner differ between rank 1 and rank 0" in one["weights"]
        assert "rank 0 has episodes.tasks 32; rank 1 has episodes.tasks 33" in one["length"]
        assert "build it with shuffle=False" in one["shuffled"]
    assert [one["drawn"] for one in found] == [
        [0],
        [],
    ]  # a task is drawn by the rank that takes it alone
    assert sorted(found[0]["numbers"] + found[1]["numbers"]) == list(range(6))
    assert sorted(found[0]["numbers again"] + found[1]["numbers again"]) == list(range(6))


def evaluate_by_command(rank: int, folder: Path) -> str:
    main(
        ["evaluate", "--checkpoint", os.environ["RUN"], "--test_tasks", "40", "--progress", "false"]
    )
    return ""


def test_metalearn_evaluate_speaks_once(
    start_ranks: Started, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = Experiment(steps=1, hidden=4, meta_batch=1, runs=str(tmp_path))
    experiment.train("protonet", progress=False)
    run = str(experiment.checkpoint("protonet"))
    for process in start_ranks(evaluate_by_command, RUN=run):
        process.join(60)
    main(["evaluate", "--checkpoint", run, "--test_tasks", "40", "--progress", "false"])
    assert (tmp_path / "output0").read_text() == capsys.readouterr().out != ""
    assert (tmp_path / "output1").read_text() == ""


@pytest.mark.parametrize("asked", ["soon", "0", "inf"])
def test_a_patience_that_is_no_number_of_seconds_is_refused(
    asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("METALEARN_RANK_TIMEOUT", asked)
    with pytest.raises(
        ValueError, match=f"METALEARN_RANK_TIMEOUT='{asked}' must be a number of seconds"
    ):
        distributed.join(torch.device("cpu"))


def test_cuda_is_the_gpu_of_the_ranks_own_number(monkeypatch: pytest.MonkeyPatch) -> None:
    assert distributed.device("cuda") == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert [distributed.device(name) for name in ("cuda", "cuda:1", "cpu")] == [
        "cuda:3",
        "cuda:1",
        "cpu",
    ]
