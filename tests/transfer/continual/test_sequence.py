"""Tasks learned one after another: heads, memories, identities, and a kill in the middle."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from metalearn.data.images import LabelledImages
from metalearn.data.labelled_sets import Split
from metalearn.runtime import files
from metalearn.training.regularisers import pulled
from tests.helpers import striped_images
from transfer import finetune
from transfer.continual.checked_tasks import seed_of
from transfer.continual.memories import ewc, replay
from transfer.continual.sequence import learn_sequence
from transfer.continual.task_sequence import TaskSequence


def build(outputs: int = 3) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 8),
        nn.ReLU(),
        nn.Linear(8, outputs),
    )


def two_tasks(classes: int = 3) -> list[Split]:
    """The second has its stripes in columns."""
    first = Split(striped_images((12,) * classes), None, striped_images((12,) * classes, seed=1))
    parts = [striped_images((12,) * classes, seed=seed) for seed in (2, 3)]
    turned = [LabelledImages(part.images.mT.contiguous(), part.labels) for part in parts]
    return [first, Split(turned[0], None, turned[1])]


VOTES = torch.tensor([[2, 1, 0], [3, 0, 0], [1, 1, 1], [0, 0, 3]])
TRAIN = partial(finetune, steps=12, batch=8, lr=0.05, optimizer="sgd", evaluate_every=6)


def learned(memory: Any = None, **options: Any) -> TaskSequence:
    return learn_sequence(build, two_tasks(), TRAIN, 0, memory, **{"points": 2, **options})


def assert_same(first: TaskSequence, second: TaskSequence) -> None:
    for one, other in zip(first.stages, second.stages, strict=True):
        assert one.weights.keys() == other.weights.keys()
        for name, tensor in one.weights.items():
            assert torch.equal(tensor, other.weights[name]), name
        assert one.curve.losses == other.curve.losses
        accuracies = torch.tensor([one.accuracy, other.accuracy])
        assert torch.equal(accuracies[0].nan_to_num(-1), accuracies[1].nan_to_num(-1))


def body(weights: Any) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in weights.items() if not name.startswith("6.")}


def trained_on(task: int, start: Any, seed: int) -> dict[str, Tensor]:
    """The network that goes on from `start` with one task, without any sequence."""
    model = build()
    model.load_state_dict(start)
    TRAIN(two_tasks()[task].train, two_tasks()[task].test)(model, seed)
    return model.state_dict()


def test_the_first_task_is_a_fine_tuning_and_the_second_goes_on_from_it() -> None:
    result = learned()
    torch.manual_seed(0)
    first = trained_on(0, build().state_dict(), 0)
    assert all(torch.equal(first[name], w) for name, w in result.weights[0].items())
    torch.manual_seed(seed_of(0, 1))
    start = {**build().state_dict(), **body(first)}
    second = trained_on(1, start, seed_of(0, 1))
    assert all(torch.equal(second[name], w) for name, w in result.weights[1].items())


def test_accuracies_are_those_of_the_kept_heads() -> None:
    result = learned()
    assert math.isnan(result.accuracy[0][1])
    assert result.forgetting() == result.accuracy[0][0] - result.accuracy[1][0]
    assert result.backward_transfer == -result.forgetting()
    test = two_tasks()[0].test
    for after in (0, 1):
        model = build()
        model.load_state_dict(result.state(after, 0))
        with torch.no_grad():
            right = model(test.images.float() / 255).argmax(1) == test.labels
        assert float(right.double().mean()) == result.accuracy[after][0]
    head = {name: w for name, w in result.state(1, 0).items() if name.startswith("6.")}
    assert all(torch.equal(w, result.weights[0][name]) for name, w in head.items())
    with pytest.raises(ValueError, match="task 1 has no head after task 0"):
        result.state(0, 1)
    course = result.stages[1].course
    assert list(course) == [0, 6, 12] and course[12] == result.accuracy[1]
    assert course[0][0] == result.accuracy[0][0]


def test_one_head_for_all_goes_on_and_is_tested_on_later_tasks_too() -> None:
    result = learned(heads="shared")
    assert not math.isnan(result.accuracy[0][1])
    again = trained_on(1, result.weights[0], seed_of(0, 1))
    assert all(torch.equal(again[name], w) for name, w in result.weights[1].items())
    assert result.state(1, 0).keys() == result.weights[1].keys()


@pytest.mark.parametrize("heads", ["own", "shared"])
@pytest.mark.parametrize("memory", [replay(0.0), ewc(0.0)])
def test_no_share_and_no_strength_change_nothing(memory: Any, heads: str) -> None:
    assert_same(learned(heads=heads), learned(memory, heads=heads))


def test_replay_alone_is_training_on_the_first_task() -> None:
    result = learned(replay(1.0))
    again = trained_on(0, result.weights[0], seed_of(0, 1))
    found = result.state(1, 0)
    assert all(torch.equal(found[name], w) for name, w in again.items())
    shared = learned(replay(1.0), heads="shared")
    again = trained_on(0, shared.weights[0], seed_of(0, 1))
    assert all(torch.equal(shared.weights[1][name], w) for name, w in again.items())


def test_the_same_task_again_is_not_forgotten() -> None:
    first = two_tasks()[0]
    train = partial(TRAIN, steps=60)
    result = learn_sequence(build, [first, first], train, 0, points=0)
    assert result.accuracy[0][0] > 0.9
    assert result.forgetting() < 0.1


def test_replay_and_ewc_forget_less() -> None:
    train = partial(TRAIN, steps=60)
    forgotten = {}
    for name, memory in {"none": None, "ewc": ewc(300.0), "replay": replay(0.5)}.items():
        result = learn_sequence(build, two_tasks(), train, 0, memory, points=0)
        forgotten[name] = result.forgetting()
    assert forgotten["none"] > 0.25
    assert max(forgotten["ewc"], forgotten["replay"]) < forgotten["none"] - 0.1


def test_a_strength_of_one_layer_holds_that_layer() -> None:
    result = learned(ewc({"": 0.0, "0": 300.0}))
    free = learned()

    def moved(sequence: TaskSequence, name: str) -> float:
        return float((sequence.weights[1][name] - sequence.weights[0][name]).norm())

    assert moved(result, "0.weight") < 0.7 * moved(free, "0.weight")
    assert moved(result, "4.weight") > 0.5 * moved(free, "4.weight")
    assert max(result.stages[1].curve.penalties) > 0


def test_the_head_of_a_task_is_not_pulled_and_a_shared_one_is() -> None:
    with pytest.raises(ValueError, match="reaches no parameter"):
        learned(ewc({"6": 10.0}))
    shared = learned(ewc({"6": 10.0}), heads="shared")
    assert max(shared.stages[1].curve.penalties) > 0


def test_a_penalty_of_the_training_itself_stays() -> None:
    torch.manual_seed(5)
    to = {name: w for name, w in build().state_dict().items() if not name.startswith("6.")}
    train = partial(TRAIN, penalty=pulled(to, {"0": 1.0}))
    result = learn_sequence(build, two_tasks(), train, 0, ewc(1.0), points=0)
    only = learn_sequence(build, two_tasks(), train, 0, points=0)
    assert result.stages[1].curve.penalties[0] == pytest.approx(only.stages[1].curve.penalties[0])
    assert result.stages[1].curve.penalties[-1] > 0


def test_three_tasks_keep_all_heads_through_replay() -> None:
    tasks = [*two_tasks(), two_tasks()[0]]
    result = learn_sequence(build, tasks, TRAIN, 0, replay(0.5), points=1)
    assert [len(stage.heads) for stage in result.stages] == [1, 2, 3]
    before, after = result.stages[1].heads[0], result.stages[2].heads[0]
    assert not torch.equal(before["6.weight"], after["6.weight"])  # it goes on learning
    assert result.stages[2].course[12] == result.accuracy[2]
    three = learn_sequence(build, tasks, TRAIN, 0, ewc(1.0), points=0)
    assert torch.equal(three.stages[1].heads[0]["6.weight"], three.stages[0].heads[0]["6.weight"])


def test_a_sequence_in_a_folder_is_read_and_not_learned_again(tmp_path: Path) -> None:
    first = learned(replay(0.5), folder=tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names[1] == "seed0-task0.safetensors" and len(names) == 2
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = learned(replay(0.5), folder=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == times
    assert_same(first, again)
    assert_same(first, learned(replay(0.5)))
    assert again.stages[1].course == first.stages[1].course
    # The first task is the same for every memory.
    learned(ewc(1.0), folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    train = partial(TRAIN, lr=0.1)
    with pytest.raises(ValueError, match=r"lr is 0\.1 but was 0\.05"):
        learn_sequence(build, two_tasks(), train, 0, folder=tmp_path, points=2)


def test_a_damaged_file_is_learned_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = learned(folder=tmp_path)
    file = tmp_path / "seed0-task1.safetensors"
    file.write_bytes(file.read_bytes()[:-40])
    assert_same(first, learned(folder=tmp_path))
    assert "the task is learned again" in capsys.readouterr().err
    files.load(file)


def slowly(folder: Path) -> None:
    """A sequence whose second task takes long enough to be killed."""
    slow = partial(finetune, steps=4000, batch=8, lr=0.05, optimizer="sgd", evaluate_every=6)
    quick = two_tasks()

    def train(train_set: Any, test_set: Any) -> Any:
        is_first = train_set is quick[0].train
        return replace(slow(train_set, test_set), steps=12 if is_first else 4000)

    learn_sequence(build, quick, train, 0, replay(0.5), folder=folder, points=0)


def test_a_sequence_that_was_killed_ends_with_the_same_weights(
    start: Callable[..., BaseProcess], tmp_path: Path
) -> None:
    process = start(slowly, tmp_path)
    file = tmp_path / "seed0-task0.safetensors"
    while process.is_alive() and not file.exists():
        time.sleep(0.05)
    assert file.exists() and process.is_alive()
    process.kill()  # SIGKILL
    process.join()
    assert process.exitcode == -9
    assert [path.name for path in tmp_path.iterdir()] == ["seed0-task0.safetensors"]

    def shortened(train_set: Any, test_set: Any) -> Any:
        return TRAIN(train_set, test_set)

    # What was cut off starts again: here with fewer steps, to the last bit as without a kill.
    result = learn_sequence(
        build, two_tasks(), shortened, 0, replay(0.5), folder=tmp_path, points=0
    )
    assert_same(result, learned(replay(0.5), points=0))


BAD: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: learn_sequence(build, [two_tasks()[0], two_tasks(2)[1]], TRAIN, heads="shared"),
        "task 1 has 2 classes and task 0 3: one shared head",
    ),
    (
        lambda: learn_sequence(
            build, [two_tasks()[0], Split(*[striped_images(size=8)] * 3)], TRAIN
        ),
        r"images of task 1 are \(1, 8, 8\) and those of task 0 \(1, 6, 6\)",
    ),
    (
        lambda: learn_sequence(build, [two_tasks()[0], two_tasks(1)[1]], TRAIN),
        "task 1: the training set has one class",
    ),
    (
        lambda: learn_sequence(partial(build, 2), two_tasks(), TRAIN),
        r"task 0 has 3 classes, and build\(\) makes .* \(2,\); build it .* with 3 outputs",
    ),
    (lambda: learn_sequence(build, two_tasks()[:1], TRAIN), "there is 1 task"),
    (lambda: learned(heads="both"), "heads='both'; choose 'own'"),
    (lambda: replay(1.2), "share=1.2; give the share"),
    (lambda: replay(-0.1), "from 0 to 1"),
    (lambda: learned(replay(0.01)), "of a batch of 8 is no image; take a share of at least 0.12"),
    (lambda: learned(replay(0.9, store=3)), "store holds 3 images .* of a batch of 8 needs 7"),
    (lambda: learned(replay(0.2, store=2)), "less than one of each of 3 classes; take store=3"),
    (lambda: ewc(labels="true"), "labels='true'; choose model or data"),
    (lambda: learned(ewc(-1.0)), "strength=-1.0; give a finite number from 0"),
    (lambda: learned(ewc({"conv": 1.0})), "no layer 'conv'"),
    (
        lambda: learn_sequence(
            lambda: nn.Sequential(nn.BatchNorm2d(1), build()), two_tasks(), TRAIN, 0, ewc(1.0)
        ),
        "0 .BatchNorm2d. keeps running statistics.*GroupNorm",
    ),
    (
        lambda: learn_sequence(
            lambda: nn.Sequential(nn.Dropout(0.3), build()), two_tasks(), TRAIN, 0, ewc(1.0)
        ),
        "0 .Dropout.* drops units at random",
    ),
    (
        lambda: learn_sequence(build, two_tasks(), partial(TRAIN, balance="loss"), 0, replay(0.5)),
        "use balance='batches'",
    ),
    (
        lambda: learn_sequence(
            build,
            [[TensorDataset(torch.rand(4, 1, 6, 6), VOTES)] * 2] * 2,
            partial(TRAIN, loss="soft"),
        ),
        "task 0: .* one integer label an image; leave out loss=",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_refused_before_any_training(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_other_kinds_are_refused() -> None:
    with pytest.raises(TypeError, match=r"give ewc\(100.0\), replay\(0.1\) or None"):
        learned("replay")
    with pytest.raises(TypeError, match=r"partial\(finetune, steps=3000\)"):
        learn_sequence(build, two_tasks(), lambda train, test: None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="pass a function"):
        learn_sequence(build(), two_tasks(), TRAIN)  # type: ignore[arg-type]


def test_it_prints_and_records() -> None:
    result = learned(replay(0.5))
    assert "memory: replay(share=0.5" in str(result)
    assert len(result.records()) == 3
    assert result.to_dict()["accuracy"][0][1] is None


def test_a_strength_that_diverges_is_named_with_its_task_and_the_cure() -> None:
    with pytest.raises(FloatingPointError, match=r"task 1, seed 0, ewc.strength=1.*lower lr"):
        learned(ewc(1e9))
