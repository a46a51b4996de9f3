import os
import pickle
import random
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from metalearn import MAML
from metalearn.models import MLP
from metalearn.runtime import provenance, random_state
from metalearn.runtime.files import Damaged
from metalearn.training import checkpoints


def write(path, step):
    checkpoints.save(
        path,
        {"learner.weight": torch.full((2,), float(step))},
        {"step": step, "settings": {"lr": step}},
    )


def test_packing_keeps_every_kind_of_value():
    tensors = {}
    value = {
        0: {"step": torch.tensor(3.0), "betas": (0.9, 0.999), "none": None},
        "milestones": Counter({30: 2}),
        "list": [1, "a", True, 0.1],
    }
    back = checkpoints.unpack(checkpoints.pack(value, "x", tensors), tensors)
    assert back == value
    assert isinstance(back["milestones"], Counter)
    assert list(tensors) == ["x.0.step"]
    with pytest.raises(TypeError, match=r"x\.f is a builtin_function"):
        checkpoints.pack({"f": len}, "x", {})


def test_generators_come_back_to_the_last_bit(tmp_path):
    def draw():
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()  # noqa: NPY002

    device = torch.device("cpu")
    torch.randn(1), np.random.randn(), random.gauss(0, 1)  # noqa: NPY002
    checkpoints.save(tmp_path / "run", {}, {"generators": random_state.generators(device)})
    first = draw()
    random_state.set_generators(checkpoints.load(tmp_path / "run")[1]["generators"], device)
    assert draw() == first


def test_the_checkpoint_before_is_kept(tmp_path):
    for step in (1, 2, 3):
        write(tmp_path / "run", step)
    assert sorted(os.listdir(tmp_path)) == ["run", "run.previous"]
    assert checkpoints.load(tmp_path / "run")[1]["step"] == 3
    assert checkpoints.load(tmp_path / "run.previous")[1]["step"] == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[: len(b) // 2],
        lambda b: b[:-4] + b"\0\0\0\1",
        lambda b: b"",
        lambda b: pickle.dumps(len),
    ],
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, damage):
    path = tmp_path / "run"
    write(path, 1)
    write(path, 2)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning, match=r"run\.previous \(step 1\) is used instead"):
        assert checkpoints.load(path, set_aside=True)[1]["step"] == 1
    assert (tmp_path / "run.damaged").exists()
    with pytest.warns(UserWarning, match="is missing"):
        assert checkpoints.load(path)[1]["step"] == 1
    (tmp_path / "run.previous").write_bytes(b"")
    with pytest.raises(Damaged, match="No whole checkpoint is left"):
        checkpoints.load(path)


@pytest.mark.parametrize("broken", [0, 1])
def test_a_crash_between_two_renames_leaves_a_whole_checkpoint(tmp_path, monkeypatch, broken):
    path, renames, replace = tmp_path / "run", [], os.replace
    write(path, 1)

    def crash(source, target):
        renames.append(target)
        if len(renames) == broken + 2:  # the first is the file's own, from its temporary name
            raise InterruptedError
        replace(source, target)

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(InterruptedError):
        write(path, 2)
    monkeypatch.undo()
    if broken:
        with pytest.warns(UserWarning, match="is missing"):
            assert checkpoints.load(path)[1]["step"] == 1
    else:
        assert checkpoints.load(path)[1]["step"] == 1
    write(path, 3)
    assert checkpoints.load(path)[1]["step"] == 3


def test_weights_are_restored_to_a_learner_or_to_its_model(tmp_path):
    trained = MAML(MLP(4, 3), lr=0.1)
    checkpoints.save(
        tmp_path / "run",
        {f"learner.{name}": t for name, t in trained.state_dict().items()},
        {"settings": {"lr": 0.1}},
    )
    for module in (MAML(MLP(4, 3), lr=0.5), MLP(4, 3)):
        assert checkpoints.restore(module, tmp_path / "run") is module
        assert all(
            x.equal(y) for x, y in zip(module.parameters(), trained.parameters(), strict=True)
        )
    assert checkpoints.read_settings(tmp_path / "run") == {"lr": 0.1}


def test_weights_of_another_network_are_refused_by_name(tmp_path):
    checkpoints.save(
        tmp_path / "run", {"learner.weight": torch.ones(3, 4), "learner.extra": torch.ones(1)}, {}
    )
    linear = nn.Linear(4, 5)
    before = linear.weight.clone()
    with pytest.raises(
        ValueError,
        match=(r"bias .*extra .*weight is \(3, 4\) in the file and \(5, 4\)"),
    ):
        checkpoints.restore(linear, tmp_path / "run")
    assert linear.weight.equal(before)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        checkpoints.restore(linear, tmp_path / "nothing")


def test_settings_that_differ_are_named_with_both_values():
    stored = {"learner": {"lr": 0.1}, "run": {"data": "glyphs"}, "training": {"meta_batch": 4}}
    provenance.check_same(
        {**stored, "training": {"meta_batch": 4, "new option of torch": None}}, stored, "run"
    )
    with pytest.raises(
        ValueError,
        match=(r"learner\.lr is 0\.4 but was 0\.1; .*was 'glyphs'.*name another"),
    ):
        provenance.check_same({**stored, "learner": {"lr": 0.4}, "run": {}}, stored, "run")
