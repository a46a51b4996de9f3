import io
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR, ReduceLROnPlateau

import metalearn.runtime.progress
from metalearn import ANIL, MAML, NIL, Reptile
from metalearn.engine.meta_gradient import meta_backward
from metalearn.episodes import stack
from metalearn.evaluation import evaluate
from metalearn.runtime import files, provenance
from metalearn.training import checkpoints
from metalearn.training.loop import meta_train
from tests.helpers import ROOT, point_task, weights_vector


class Tasks:
    """Three classes of points in four dimensions, a new draw for every index; `act` has something
    happen when one index is drawn.
    """

    def __init__(self, length=40, act=None):
        self.length, self.seed, self.act = length, 7, act or {}

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if not 0 <= index < self.length:
            raise IndexError(index)
        episode = point_task(index, queries=4)
        if index in self.act:
            self.act[index](episode)
        return episode

    def settings(self):
        return {"tasks": self.length, "seed": self.seed}


def build(algorithm=MAML, dropout=0.0, dtype=torch.float32, **options):
    torch.manual_seed(0)
    body = [nn.Linear(4, 8), nn.Tanh(), nn.Dropout(dropout)]
    return algorithm(nn.Sequential(*body, nn.Linear(8, 3)).to(dtype), **({"lr": 0.1} | options))


def train(learner, tasks=None, **options):
    return meta_train(learner, tasks or Tasks(), **({"steps": 6, "progress": False} | options))


def spoil(value, query=False):
    return lambda episode: (episode.query if query else episode.support).inputs.fill_(value)


def long_run(folder, steps):
    """A run in which everything matters that a checkpoint holds; run by the processes that get
    killed.
    """
    torch.set_num_threads(1)
    random.seed(1)
    np.random.seed(2)  # noqa: NPY002
    train(
        build(dropout=0.3),
        steps=steps,
        meta_batch=3,
        schedule=lambda o: CosineAnnealingLR(o, 100),
        clip_norm=1.0,
        validation=Tasks(4),
        validate_every=5,
        checkpoint=folder / "run",
        checkpoint_every=3,
        log=folder / "log.jsonl",
    )


def long_run_on_a_full_disk(folder, room):
    import resource  # Windows has none

    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    try:
        long_run(folder, 9)
    except OSError as error:
        (folder / "error").write_text(str(error))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# The loop


def test_training_is_the_plain_loop_over_the_tasks_in_turn():
    ours, plain, tasks = build(), build(), Tasks(5)
    curve = train(ours, tasks, meta_batch=3, optimizer=lambda p: SGD(p, lr=0.1))
    outer, losses = SGD(plain.parameters(), lr=0.1), []
    for step in range(6):
        episodes = stack(tasks[(3 * step + j) % 5] for j in range(3))
        loss = nn.functional.cross_entropy(
            plain(episodes).flatten(0, 1), episodes.query.targets.flatten()
        )
        outer.zero_grad()
        loss.backward()
        outer.step()
        losses.append(loss.item())
    torch.testing.assert_close(weights_vector(ours), weights_vector(plain))
    assert curve.losses == pytest.approx(losses, rel=1e-5)


def test_training_makes_unseen_tasks_better():
    learner, unseen = build(), [Tasks(200)[i] for i in range(150, 200)]
    before = evaluate(learner, unseen)
    curve = train(learner, Tasks(150), steps=150, optimizer=lambda p: Adam(p, lr=0.01))
    assert evaluate(learner, unseen).mean > before.mean + before.interval
    assert sum(curve.accuracies[-30:]) > sum(curve.accuracies[:30])


def test_the_default_is_adam_and_an_optimizer_itself_is_taken():
    default, made, built = build(), build(), build()
    train(default)
    train(made, optimizer=lambda p: Adam(p, lr=1e-3))
    train(built, optimizer=Adam(built.parameters(), lr=1e-3))
    assert weights_vector(default).equal(weights_vector(made))
    assert weights_vector(default).equal(weights_vector(built))


@pytest.mark.parametrize("algorithm", [ANIL, Reptile, NIL])
def test_every_kind_of_learner_trains(algorithm):
    learner = NIL(build().model) if algorithm is NIL else build(algorithm)
    before = weights_vector(learner)
    curve = train(learner)
    assert not weights_vector(learner).equal(before)
    assert all(math.isfinite(loss) for loss in curve.losses)


def test_clipping_by_value_and_by_norm():
    learner, gradient = build(), build()
    before = weights_vector(learner)
    train(learner, steps=1, optimizer=lambda p: SGD(p, lr=1.0), clip_value=0.01)
    meta_backward(gradient, stack(Tasks()[i] for i in range(4)))
    expected = torch.cat([p.grad.clamp(-0.01, 0.01).flatten() for p in gradient.parameters()])
    torch.testing.assert_close(before - weights_vector(learner), expected, atol=1e-7, rtol=0)
    learner = build()
    train(learner, steps=1, optimizer=lambda p: SGD(p, lr=1.0), clip_norm=0.01)
    assert float((before - weights_vector(learner)).norm()) == pytest.approx(0.01, rel=1e-3)


def test_the_schedule_is_stepped_once_a_step(tmp_path):
    train(
        build(),
        schedule=lambda o: MultiStepLR(o, [2, 4]),
        optimizer=lambda p: SGD(p, lr=1.0),
        log=tmp_path / "log",
    )
    assert [line["lr"] for line in read(tmp_path / "log")] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )


def test_bfloat16_trains_close_to_full_precision():
    full, mixed = build(), build()
    a, b = train(full, steps=3), train(mixed, steps=3, precision="bfloat16")
    assert a.losses != b.losses
    assert b.losses == pytest.approx(a.losses, rel=0.05)
    assert weights_vector(mixed).dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps=0"),
        ({"checkpoint_every": -1}, "checkpoint_every=-1"),
        ({"precision": "float16"}, "float16.*bfloat16"),
        ({"precision": "half"}, "'half' is not one of"),
        ({"precision": "tf32"}, "'tf32' needs a CUDA device, but the learner is on cpu"),
        ({"optimizer": SGD(nn.Linear(1, 1).parameters())}, "not the learner's"),
        ({"schedule": lambda o: ReduceLROnPlateau(o)}, "ReduceLROnPlateau"),
        ({"tasks": []}, "no training tasks"),
    ],
)
def test_bad_arguments_are_named(options, message):
    tasks = options.pop("tasks", Tasks())
    with pytest.raises(ValueError, match=message):
        meta_train(build(), tasks, **({"steps": 1, "progress": False} | options))


def test_nothing_to_train_is_refused():
    with pytest.raises(ValueError, match="no parameter to train"):
        train(build().requires_grad_(False))


# Validation, log, TensorBoard, progress


def read(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_the_best_checkpoint_is_kept_and_is_the_one_that_was_best(tmp_path):
    learner = build()
    curve = train(
        learner,
        validation=Tasks(9),
        validate_every=2,
        checkpoint=tmp_path / "run",
        optimizer=lambda p: Adam(p, lr=0.1),
        steps=9,
    )
    assert [record["step"] for record in curve.validation] == [2, 4, 6, 8, 9]
    assert curve.best["mean"] == max(record["mean"] for record in curve.validation)
    best = checkpoints.restore(build(), tmp_path / "run.best")
    assert evaluate(best, Tasks(9)).mean == curve.best["mean"]
    assert checkpoints.load(tmp_path / "run.best")[1]["step"] == curve.best["step"]


def test_the_log_has_each_step_once_also_after_a_resume(tmp_path):
    options = {
        "checkpoint": tmp_path / "run",
        "checkpoint_every": 4,
        "log": tmp_path / "log",
        "validation": Tasks(2),
        "validate_every": 5,
    }
    (tmp_path / "log").write_text("of an earlier run\n")
    with pytest.raises(OSError, match="stop"):
        train(
            build(), Tasks(100, {27: fail}), **options, steps=10
        )  # in step 7; the last checkpoint is at 4
    assert [line["step"] for line in read(tmp_path / "log")] == [1, 2, 3, 4, 5, 6]
    with (tmp_path / "log").open("a") as file:
        file.write('{"step": 7, "lo')
    curve = train(build(), Tasks(100), **options, steps=10)
    lines = read(tmp_path / "log")
    assert [line["step"] for line in lines] == list(range(1, 11))
    assert [line["loss"] for line in lines] == curve.losses
    assert [line["validation"]["mean"] for line in lines if "validation" in line] == [
        record["mean"] for record in curve.validation
    ]
    assert (tmp_path / "log.previous").read_text() == "of an earlier run\n"


def fail(episode):
    raise OSError("stop")


def test_tensorboard_gets_its_curves(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curve = train(build(), tensorboard=tmp_path, validation=Tasks(2))
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.value for event in events.Scalars("training/loss")] == pytest.approx(curve.losses)
    assert events.Scalars("validation/accuracy")[0].step == 6


def test_a_missing_tensorboard_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"metalearn-transfer\[tensorboard\]"):
        train(build(), tensorboard=tmp_path)


def test_progress_is_plain_lines_with_rate_and_time_left(monkeypatch, capsys):
    monkeypatch.setattr(metalearn.runtime.progress, "PLAIN_SECONDS", 0.0)
    train(build(), progress=True)
    how, *lines = capsys.readouterr().err.splitlines()
    assert how.startswith("training: tasks vectorized, 4 at once: ")
    assert len(lines) == 6
    assert all(
        part in lines[1] for part in ("training  2/6", "loss ", "accuracy ", "steps/s", " left")
    )
    assert "took" in lines[-1]


def test_progress_is_a_bar_on_a_terminal(monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(
        metalearn.runtime.progress,
        "Console",
        lambda stderr: Console(file=terminal, force_terminal=True, width=120),
    )
    train(build(), progress=True)
    assert "6/6" in terminal.getvalue()
    assert "━" in terminal.getvalue()


# Interruptions


def equal(one, other):
    (tensors, record), (tensors2, record2) = files.load(one), files.load(other)
    assert tensors.keys() == tensors2.keys()
    assert all(tensor.equal(tensors2[name]) for name, tensor in tensors.items())
    assert record | {"seconds": 0} == record2 | {"seconds": 0}


def test_a_run_killed_at_any_moment_ends_with_the_same_bits(tmp_path, start):
    steps, (whole, killed) = 60, (tmp_path / "whole", tmp_path / "killed")
    reference = start(long_run, whole, steps)
    kills, chance = 0, random.Random(0)
    while True:
        process = start(long_run, killed, steps)
        seen = len((killed / "log.jsonl").read_bytes()) if (killed / "log.jsonl").exists() else 0
        while (
            process.is_alive()
            and kills < 6
            and (
                not (killed / "log.jsonl").exists()
                or len((killed / "log.jsonl").read_bytes()) == seen
            )
        ):
            time.sleep(0.001)
        if kills < 6:
            time.sleep(chance.uniform(0, 0.1))
            process.kill()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        kills += 1
    reference.join()
    assert reference.exitcode == 0
    assert kills >= 2
    equal(killed / "run", whole / "run")
    equal(killed / "run.best", whole / "run.best")
    assert [line["step"] for line in read(killed / "log.jsonl")] == list(range(1, steps + 1))


def test_ctrl_c_finishes_the_step_writes_a_checkpoint_and_stops(tmp_path):
    def interrupt(episode):
        os.kill(os.getpid(), signal.SIGINT)

    whole = build(dropout=0.5)
    train(whole, meta_batch=2)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(
        KeyboardInterrupt, match=r"stopped after step 3 of 6; last checkpoint: .*run \(step 3\)"
    ):
        train(
            build(dropout=0.5), Tasks(act={5: interrupt}), meta_batch=2, checkpoint=tmp_path / "run"
        )
    assert signal.getsignal(signal.SIGINT) is handler
    resumed = build(dropout=0.5)
    curve = train(resumed, meta_batch=2, checkpoint=tmp_path / "run")
    assert len(curve.losses) == 6
    assert weights_vector(resumed).equal(weights_vector(whole))


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    def interrupt(episode):
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(build(), Tasks(act={8: interrupt, 9: interrupt}), checkpoint=tmp_path / "run")
    assert checkpoints.load(tmp_path / "run")[1]["step"] == 0


def test_a_finished_run_is_not_trained_again_and_can_be_prolonged(tmp_path):
    whole, learner = build(), build()
    train(whole, steps=8)
    train(learner, steps=5, checkpoint=tmp_path / "run")
    stopped, again = weights_vector(learner), build()
    assert (
        len(
            train(
                again,
                Tasks(act=dict.fromkeys(range(40), fail)),
                steps=5,
                checkpoint=tmp_path / "run",
            ).losses
        )
        == 5
    )
    assert weights_vector(again).equal(stopped)
    train(again, steps=8, checkpoint=tmp_path / "run")
    assert weights_vector(again).equal(weights_vector(whole))
    with pytest.raises(ValueError, match="is at step 8 already, past steps=3"):
        train(build(), steps=3, checkpoint=tmp_path / "run")


def test_training_goes_on_from_the_previous_checkpoint_where_the_newest_is_damaged(tmp_path):
    whole, learner, path = build(), build(), tmp_path / "run"
    train(whole)
    train(build(), steps=4, checkpoint=path, checkpoint_every=1)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.warns(UserWarning, match=r"truncated.*run\.previous \(step 3\) is used instead"):
        train(learner, checkpoint=path)
    assert weights_vector(learner).equal(weights_vector(whole))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learner": {"lr": 0.2}}, r"0\.2 but was 0\.1"),
        ({"meta_batch": 5}, r"training\.meta_batch is 5 but was 4"),
        ({"tasks": Tasks(41)}, r"episodes\.tasks is 41 but was 40"),
        ({"settings": {"data": "omniglot"}}, r"run\.data is 'omniglot' but was 'glyphs'"),
        (
            {"optimizer": lambda p: Adam(p, lr=0.5)},
            r"training\.optimizer\.0\.lr is 0\.5 but was 0\.001",
        ),
        (
            {"schedule": lambda o: CosineAnnealingLR(o, 7)},
            r"training\.schedule\.T_max is 7 but was 6",
        ),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_naming_the_setting(tmp_path, options, message):
    usual = {
        "checkpoint": tmp_path / "run",
        "settings": {"data": "glyphs"},
        "schedule": lambda o: CosineAnnealingLR(o, 6),
        "steps": 1,
    }
    train(build(), **usual)
    learner, tasks = build(**options.pop("learner", {})), options.pop("tasks", Tasks())
    with pytest.raises(
        ValueError,
        match=rf"a run with other settings: .*{message}.*name another checkpoint",
    ):
        train(learner, tasks, **(usual | options))


def test_other_versions_are_warned_of(tmp_path, monkeypatch):
    train(build(), steps=1, checkpoint=tmp_path / "run")
    monkeypatch.setattr(provenance, "versions", lambda: {"torch": "9.9"})
    with pytest.warns(UserWarning, match=r"goes on under \{'torch': '9\.9'\}"):
        train(build(), steps=2, checkpoint=tmp_path / "run")


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, start):
    process = start(long_run, tmp_path, 6)
    process.join()
    room = (tmp_path / "run").stat().st_size - 1000
    process = start(long_run_on_a_full_disk, tmp_path, room)
    process.join()
    assert "could not write" in (tmp_path / "error").read_text()
    assert checkpoints.load(tmp_path / "run")[1]["step"] == 6
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


# Losses that are not finite


@pytest.mark.parametrize(
    ("act", "what"),
    [
        ({9: spoil(math.inf)}, "the loss of task 9"),
        ({9: spoil(math.nan, query=True)}, "the loss of task 9"),
    ],
)
def test_a_loss_that_is_not_finite_names_step_task_seed_and_last_good_checkpoint(
    tmp_path, act, what
):
    learner = build()
    with pytest.raises(FloatingPointError, match=rf"step 3: {what} \(seed 7\).*run \(step 2\)"):
        train(learner, Tasks(act=act), checkpoint=tmp_path / "run", checkpoint_every=2)
    good = checkpoints.restore(build(), tmp_path / "run")
    assert weights_vector(learner).equal(weights_vector(good))


def test_a_gradient_that_is_not_finite_names_its_parameters():
    learner = build()
    learner.model[0].bias.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(
        FloatingPointError,
        match=r"step 1: the gradient of model\.0\.bias over tasks 0, 1, 2, 3 .*none was requested",
    ):
        train(learner)


# Two processes


def test_two_ranks_end_with_the_weights_of_one_process(tmp_path):
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "--max-restarts=1",
        __file__,
        str(tmp_path),
    ]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert "failed (exitcode: -9) local_rank: 1" in done.stderr
    alone = build(dtype=torch.float64)
    curve = train(alone, **RANKS)
    shared = checkpoints.restore(build(dtype=torch.float64), tmp_path / "run")
    assert float((weights_vector(alone) - weights_vector(shared)).abs().max()) <= 1e-12
    for rank in range(2):
        said = json.loads((tmp_path / f"rank{rank}").read_text())
        assert said["losses"] == pytest.approx(curve.losses, abs=1e-12)
        assert said["per_episode"] == evaluate(alone, Tasks(37)).per_episode.tolist()
        assert said["fingerprints"] == list(evaluate(alone, Tasks(37)).fingerprints)
        assert "step 2: the loss of task 4 (seed 7) is not finite" in said["error"]


RANKS = {"steps": 8, "meta_batch": 3, "optimizer": lambda p: SGD(p, lr=0.1, momentum=0.9)}


def one_rank(folder):
    """What each of the two ranks does; on its first start rank 1 is killed while it draws its task
    of the sixth step.
    """

    def die(episode):
        if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)

    rank = int(os.environ["RANK"])
    learner = build(dtype=torch.float64)
    if rank:
        nn.init.ones_(learner.model[0].bias)  # the first rank's weights are everyone's
    curve = train(
        learner, Tasks(act={16: die}), checkpoint=folder / "run", checkpoint_every=2, **RANKS
    )
    result = evaluate(learner, Tasks(37), tasks_at_once=5)
    try:
        train(build(), Tasks(act={4: spoil(math.nan)}), meta_batch=3)
    except FloatingPointError as error:
        said = {
            "losses": curve.losses,
            "per_episode": result.per_episode.tolist(),
            "fingerprints": result.fingerprints,
            "error": str(error),
        }
        (folder / f"rank{rank}").write_text(json.dumps(said))


if __name__ == "__main__":
    one_rank(Path(sys.argv[1]))
