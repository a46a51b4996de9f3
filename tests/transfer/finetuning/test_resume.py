"""A training that is killed continues from its folder, and ends with the same bits."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from metalearn.runtime import files
from metalearn.runtime.files import Damaged
from metalearn.training import checkpoints
from metalearn.training.regularisers import leading_component, pulled, together
from tests.helpers import striped_images
from transfer import finetune
from transfer.finetuning.curve import Curve

STEPS = 14
EVERY = 4
# The training batch at which this process kills itself; 0 for never.
DEATH = {"at": 0, "seen": 0}


class Drift(nn.Module):
    """A layer that remembers something outside of its state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.mean.mul_(0.5).add_(images.detach().mean())
        return images - self.mean


def network(dropout: float = 0.2) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(dropout),
        Drift(),
        nn.Flatten(),
        nn.Linear(64, 8),
        nn.ReLU(),
        nn.Linear(8, 3),
    ).to(memory_format=torch.channels_last)


def noise(images: Tensor) -> Tensor:
    DEATH["seen"] += 1
    if DEATH["seen"] == DEATH["at"]:
        os.kill(os.getpid(), signal.SIGKILL)
    return images + 0.1 * torch.randn_like(images)


CASES: dict[str, Callable[[], dict[str, Any]]] = {
    "momentum": lambda: {"optimizer": "sgd", "lr": 0.02},
    "held": lambda: {"optimizer": "adam", "frozen": {"0": 6, "1": 6}},
    "held by decay": lambda: {"optimizer": "adamw", "frozen": {"0": 4, "6.weight": 9}},
    "penalties": lambda: {
        "penalty": together(
            pulled(network(), {"": 0.1}), leading_component(1.0, above=0.0, layers=["2", "7"])
        )
    },
    "decay": lambda: {"optimizer": "sgd", "decay": "cosine", "rates": {"0": 0.002}},
    "snapshots": lambda: {"keep": (0, 3, 6, 9, STEPS)},
    "early stop": lambda: {
        "validation": striped_images(seed=2),
        "early_stop": 3,
        "evaluate_every": 2,
        "lr": 0.05,
    },
    "balanced batches": lambda: {"balance": "batches", "images": 20, "rates": {"0": 1e-4}},
}


def training(folder: Path | None, case: str, seed: int = 3, **changes: Any) -> tuple[Any, Curve]:
    model = changes.pop("model", None) or network()
    data = changes.pop("data", (striped_images(), striped_images(seed=1)))
    settings = {"steps": STEPS, "batch": 8, "lr": 0.01, "evaluate_every": EVERY, "augment": noise}
    train = finetune(*data, **settings | CASES[case]() | {"folder": folder} | changes)
    return model, train(model, seed)


def dying(folder: Path, case: str, at: int) -> None:
    DEATH["at"] = at
    training(folder, case)


def tensors(snapshot: Any) -> dict[str, Tensor]:
    return dict(snapshot) if isinstance(snapshot, dict) else safetensors.torch.load_file(snapshot)


def assert_same(one: tuple[nn.Module, Curve], other: tuple[nn.Module, Curve]) -> None:
    """Models, snapshots and curves agree to the last bit, but for the seconds."""
    for name, tensor in one[0].state_dict().items():
        assert torch.equal(tensor, other[0].state_dict()[name]), name
    assert torch.equal(one[0][4].mean, other[0][4].mean)
    first, second = (
        {**curve.to_dict(), "seconds": 0, "snapshots": list(curve.snapshots)}
        for _, curve in (one, other)
    )
    assert first == second
    for step, snapshot in one[1].snapshots.items():
        for name, tensor in tensors(snapshot).items():
            assert torch.equal(tensor, tensors(other[1].snapshots[step])[name]), (step, name)


@pytest.mark.parametrize(
    ("case", "at"),
    [
        ("momentum", 7),
        ("held", 6),  # continues at step 4, before the step of the schedule
        ("held", 11),  # continues at step 8, after it
        ("snapshots", 8),
        ("early stop", 6),
    ],
)
def test_a_killed_training_ends_with_the_same_bits(
    case: str, at: int, tmp_path: Path, start: Callable[..., Any]
) -> None:
    process = start(dying, tmp_path, case, at)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    seen = DEATH["seen"]
    continued = training(tmp_path, case)
    done = DEATH["seen"] - seen
    whole = training(None, case)
    assert_same(whole, continued)
    assert done < len(whole[1].losses)  # the first evaluations were not repeated


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("at", [3, 10, STEPS])
def test_a_training_that_raised_continues_with_the_same_bits(
    case: str, at: int, tmp_path: Path
) -> None:
    whole = training(None, case)
    stopped_at(tmp_path, case, min(at, len(whole[1].losses)))
    assert_same(whole, training(tmp_path, case))


def test_a_training_killed_several_times_ends_with_the_same_bits(
    tmp_path: Path, start: Callable[..., Any]
) -> None:
    for at in (6, 5):
        process = start(dying, tmp_path, "penalties", at)
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert_same(training(None, "penalties"), training(tmp_path, "penalties"))


@pytest.mark.parametrize("case", ["momentum", "held", "snapshots", "early stop", "penalties"])
def test_a_finished_training_is_loaded(case: str, tmp_path: Path) -> None:
    whole = training(tmp_path, case)
    seen = DEATH["seen"]
    loaded = training(tmp_path, case)
    assert DEATH["seen"] == seen
    assert_same(whole, loaded)
    assert loaded[1] == whole[1]  # the seconds too
    for module, other in zip(whole[0].modules(), loaded[0].modules(), strict=True):
        assert module.training == other.training


def test_saving_changes_nothing_and_seeds_share_a_folder(tmp_path: Path) -> None:
    for seed in (0, 1):
        assert_same(
            training(None, "momentum", seed=seed), training(tmp_path, "momentum", seed=seed)
        )
    assert (tmp_path / "seed0.training").is_file()
    assert (tmp_path / "seed1.training").is_file()


def test_seconds_add_up(tmp_path: Path) -> None:
    partial = stopped_at(tmp_path, "momentum", 9)
    assert 0 < partial < training(tmp_path, "momentum")[1].seconds


def test_the_progress_bar_ends_full(tmp_path: Path) -> None:
    stopped_at(tmp_path, "momentum", 9)
    advances: list[tuple[int, str]] = []
    train = finetune(
        striped_images(),
        striped_images(seed=1),
        **{"steps": STEPS, "batch": 8, "lr": 0.02, "optimizer": "sgd", "evaluate_every": EVERY},
        augment=noise,
        folder=tmp_path,
    )
    train(network(), 3, lambda count, text: advances.append((count, text)))
    assert sum(count for count, _ in advances) == STEPS
    assert advances[0] == (8, "continued after step 8")


class Stopped(Exception):
    """Stands for what stops a training in this process."""


def stopped_at(folder: Path, case: str, at: int, **changes: Any) -> float:
    """Start a training, stop it in its batch number `at`, and return the seconds in its state."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "kill", _stop)
        patch.setitem(DEATH, "at", DEATH["seen"] + at)
        with pytest.raises(Stopped):
            training(folder, case, **changes)
    stored, record = checkpoints.load(folder / "seed3.training")
    return checkpoints.unpack(record["state"], stored)["history"]["seconds"]


def _stop(process: int, number: int) -> None:
    raise Stopped


def changed(model: nn.Module, change: Callable[[Tensor], Any]) -> nn.Module:
    """A model with a change of the weights of its first layer."""
    change(model[0].weight)
    return model


OTHER = {
    "lr": {"lr": 0.5},
    "steps": {"steps": 15},
    "batch": {"batch": 7},
    "evaluate_every": {"evaluate_every": 5},
    "optimizer": {"optimizer": "adam"},
    "training.optimizer.0.momentum": {
        "optimizer": lambda groups, lr: torch.optim.SGD(groups, lr=lr, momentum=0.5)
    },
    "keep": {"keep": (3,)},
    "frozen": {"frozen": {"0": 2}},
    "rates.0": {"rates": {"0": 0.1}},
    "penalty": {"penalty": leading_component()},
    "augment": {"augment": None},
    "balance": {"balance": "loss"},
    "data.train": {"data": (striped_images(seed=5), striped_images(seed=1))},
    "data.test": {"data": (striped_images(), striped_images(seed=5))},
    "modules of the model": {"model": network(dropout=0.5)},
    "weights at the start": {"model": changed(network(), nn.init.zeros_)},
    "trained parameters": {
        "model": changed(network(), lambda weight: weight.requires_grad_(False))
    },
}


@pytest.mark.parametrize("name", OTHER)
def test_another_training_in_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    stopped_at(tmp_path, "momentum", 6)
    with pytest.raises(ValueError, match=rf"{name}\b.* (is|was) .*another folder="):
        training(tmp_path, "momentum", **OTHER[name])


def test_a_trained_model_is_refused_as_a_start(tmp_path: Path) -> None:
    model, _ = training(tmp_path, "momentum")
    with pytest.raises(ValueError, match=r"weights at the start .*as it was before training"):
        training(tmp_path, "momentum", model=model)


def test_a_file_under_the_name_of_another_seed_is_refused(tmp_path: Path) -> None:
    stopped_at(tmp_path, "momentum", 6)
    (tmp_path / "seed3.training").rename(tmp_path / "seed4.training")
    with pytest.raises(ValueError, match="seed is 4 but was 3"):
        training(tmp_path, "momentum", seed=4)


def test_a_truncated_state_is_reported_and_the_one_before_is_used(tmp_path: Path) -> None:
    stopped_at(tmp_path, "penalties", 11)
    file = tmp_path / "seed3.training"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.warns(UserWarning, match=r"truncated.*previous good checkpoint .* \(step 4\)"):
        continued = training(tmp_path, "penalties")
    assert_same(training(None, "penalties"), continued)
    assert (tmp_path / "seed3.training.damaged").is_file()


def test_without_a_whole_state_training_is_refused(tmp_path: Path) -> None:
    stopped_at(tmp_path, "momentum", 11)
    for name in ("seed3.training", "seed3.training.previous"):
        (tmp_path / name).write_bytes(b"half")
    with pytest.raises(Damaged, match=r"No whole checkpoint is left at .*seed3\.training"):
        training(tmp_path, "momentum")


def test_a_snapshot_that_is_missing_is_named(tmp_path: Path) -> None:
    stopped_at(tmp_path, "snapshots", 10)
    (tmp_path / "seed3-step00000006.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"step00000006.* put it back"):
        training(tmp_path, "snapshots")


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    files.save(tmp_path / "seed3.training", {}, {"step": 2})
    with pytest.raises(Damaged, match="no state of a fine-tuning"):
        training(tmp_path, "momentum")


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="folder=3 is a int; give the path"):
        training(3, "momentum")  # type: ignore[arg-type]
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="is a file, not a folder"):
        training(tmp_path / "file", "momentum")


def holding(folder: Path, ready: Any) -> None:
    with files.locked(folder / "seed3.training"):
        ready.set()
        signal.pause()


def test_two_processes_do_not_train_in_one_folder(
    tmp_path: Path, start: Callable[..., Any], processes: Any
) -> None:
    ready = processes.Event()
    start(holding, tmp_path, ready)
    assert ready.wait(60)
    with pytest.raises(BlockingIOError, match=r"seed3\.training is in use by process"):
        training(tmp_path, "momentum")


def test_a_penalty_of_the_user_s_own_remembers(tmp_path: Path) -> None:
    """It counts its calls, and adds the more the more often it was called."""

    class Rising:
        def __init__(self, model: nn.Module) -> None:
            self.calls = 0
            self.weight = model[0].weight

        def __call__(self) -> Tensor:
            self.calls += 1
            return 0.01 * self.calls * self.weight.square().sum()

        def state_dict(self) -> dict[str, Any]:
            return {"calls": self.calls}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.calls = state["calls"]

    @contextmanager
    def rising(model: nn.Module) -> Iterator[Rising]:
        yield Rising(model)

    stopped_at(tmp_path, "momentum", 10, penalty=rising)
    continued = training(tmp_path, "momentum", penalty=rising)
    assert_same(training(None, "momentum", penalty=rising), continued)
