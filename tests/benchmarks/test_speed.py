"""The speed benchmark: every side computes the same thing, what is missing is said, and the bare
convolutions are those of the step.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import accuracy_time, speed
from benchmarks.harness import clock
from benchmarks.pages import speed as speed_tables
from benchmarks.peers import loops as peer_loops
from benchmarks.speed import OURS, WITH_PEERS, Case
from metalearn.episodes import unstack

SMALL = {"tasks": 2, "queries": 2, "hidden": 3, "double": True}
PEERS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(bool(why := peer_loops.missing(name)), reason=f"{name} {why}"),
    )
    for name in peer_loops.LOOPS
]


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize(
    ("setting", "algorithm"),
    [*product(("omniglot-5", "sinusoid"), WITH_PEERS), ("omniglot-20", "anil")],
    ids=lambda name: name,
)
def test_every_side_computes_the_same_meta_gradient(
    setting: str, algorithm: str, peer: str, two_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(speed.SETTINGS, "sinusoid", replace(speed.SETTINGS["sinusoid"], steps=3))
    ways = ("loop", "threads", "vectorized") if setting == "sinusoid" else ("loop", "threads")
    found = speed.differences(Case(setting, algorithm, **SMALL), [peer], ways)
    assert found.keys() == {f"{peer}, {way}" for way in ways}
    assert max(found.values()) < 1e-10


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("algorithm", ["maml", "anil"])
def test_every_side_predicts_the_same_and_leaves_no_gradient(algorithm: str, peer: str) -> None:
    case = Case("omniglot-5", algorithm, **SMALL)
    net = case.plain()
    with torch.no_grad():
        expected = case.learner()(case.episodes())
    found = peer_loops.predictions(
        peer, net, replace(case.recipe(), test=True), unstack(case.episodes())
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert all(parameter.grad is None and parameter.is_leaf for parameter in net.parameters())


@pytest.mark.parametrize("peer", PEERS)
def test_a_difference_is_seen(peer: str) -> None:
    case = Case("sinusoid", "maml", **SMALL)
    net, tasks = case.plain(), unstack(case.episodes())
    gradients = []
    for how in (case.recipe(), replace(case.recipe(), first_order=True)):
        net.zero_grad()
        peer_loops.meta_backward(peer, net, how, tasks)
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in net.parameters()]))
    assert (gradients[0] - gradients[1]).abs().max() > 1e-4 * gradients[0].abs().max()


def test_the_images_of_a_setting_have_its_sizes() -> None:
    for name, of in speed.SETTINGS.items():
        if of.ways:
            support, query = Case(name, "maml", tasks=2, queries=3).episodes()
            assert support.inputs.shape == (2, of.ways, of.channels, of.size, of.size)
            assert query.inputs.shape[1] == 3 * of.ways
            assert Case(name, "maml", hidden=2).plain()(support.inputs[0]).shape == (
                of.ways,
                of.ways,
            )


@pytest.mark.parametrize(
    ("algorithm", "forward", "backward", "double"),
    # Per layer, the double backward of one backward takes four convolutions (two for each of the
    # gradients by weight and input that it is
    # differentiated through), and two in the first layer, whose input needs no gradient; then the
    # support pass is gone back through.
    [("fomaml", 8, 8, 0), ("anil", 8, 8, 0), ("maml", 8, 8 + 4, 3 * 4 + 2)],
)
def test_bare_convolutions_are_all_those_of_a_step(
    algorithm: str, forward: int, backward: int, double: int
) -> None:
    calls = speed.convolutions(Case("omniglot-5", algorithm, queries=2, hidden=3))
    kinds = [operation for operation, _ in calls]
    assert kinds.count(torch.ops.aten.convolution.default) == forward + double
    assert kinds.count(torch.ops.aten.convolution_backward.default) == backward
    images = [
        arguments[0].shape
        for operation, arguments in calls
        if operation is torch.ops.aten.convolution.default
    ]
    assert (
        images[:8] == [(n, c, s, s) for n in (5, 10) for c, s in ((1, 28), (3, 14), (3, 7), (3, 3))]
        or algorithm == "maml"
    )


def test_bare_convolutions_are_made_again_as_they_were() -> None:
    calls = speed.convolutions(Case("omniglot-5", "maml", queries=1, hidden=2))
    with speed._Recorded() as again:
        speed.replay_all(calls, tasks=2)
    described = [
        [(a.shape, a.stride()) if isinstance(a, torch.Tensor) else a for a in arguments]
        for _, arguments in calls
    ]
    repeated = [
        [(a.shape, a.stride()) if isinstance(a, torch.Tensor) else a for a in arguments]
        for _, arguments in again.calls
    ]
    assert repeated == 2 * described
    assert [operation for operation, _ in again.calls] == 2 * [operation for operation, _ in calls]


def test_sides_take_turns_each_round_beginning_with_another() -> None:
    order: list[str] = []
    seconds = clock.take_turns(
        {name: lambda name=name: order.append(name) for name in "abc"}, rounds=2
    )
    assert "".join(order) == "abcbcacab"
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2, "c": 2}


def test_a_peer_that_is_not_there_is_said_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "higher", None)  # what an import then finds is nothing
    monkeypatch.setattr(speed_tables, "RESULTS", tmp_path / "speed.jsonl")
    monkeypatch.setattr(speed_tables, "is_full", lambda row: True)
    asked = {
        "settings": "sinusoid",
        "algorithms": "maml,boil,nil",
        "peers": "higher,torch",
        "figures": "time,gradients,test",
    }
    speed.speed(
        **asked,
        rounds=1,
        tasks=2,
        bfloat16=True,
        device="cpu",
        results=str(tmp_path / "speed.jsonl"),
    )
    rows = [json.loads(line) for line in (tmp_path / "speed.jsonl").read_text().splitlines()]
    assert [(row["figure"], row["algorithm"]) for row in rows] == [
        *(("time", "maml"), ("gradients", "maml"), ("test", "maml")),
        *(("time", "boil"), ("test", "boil")),
    ]
    for row in rows:
        assert row["missing"] == {"higher": "not installed"}
        assert {"versions", "machine", "commit", "command", "device", "threads"} <= row.keys()
    assert rows[0]["seconds"].keys() == {OURS, "torch", f"{OURS}, bfloat16"}
    assert all(len(values) == 1 for values in rows[0]["seconds"].values())
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("time, sinusoid 10-shot, maml: metalearn ") and printed[
        0
    ].endswith("; higher not installed")
    tables = {
        name: table().to_markdown()
        for name, table in speed_tables.TABLES.items()
        if name != "speed_runs"
    }
    for name in ("speed", "speed_test", "speed_gradients", "speed_devices"):
        assert "not installed" in tables[name], name
    assert " x |" in tables["speed"] or "- |" in tables["speed"]


def test_tables_show_what_a_row_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed_tables, "RESULTS", tmp_path / "speed.jsonl")
    rows = []
    for number, (name, of) in enumerate(speed.SETTINGS.items()):
        rows.append(
            {
                "figure": "time",
                "setting": name,
                "algorithm": "maml",
                "tasks": of.tasks,
                "queries": 15,
                "hidden": of.hidden,
            }
        )
        rows[-1] |= {
            "inner_steps": of.steps,
            "asked_execution": "auto",
            "device": "cpu",
            "threads": 2,
            "missing": {"higher": "not installed"},
        }
        rows[-1] |= {
            "seconds": {
                OURS: [1.0, 2.0, 9.0],
                "learn2learn": [2.0 * 2**number] * 3,
                speed.BARE: [0.5] * 3,
            },
            "execution": "threads",
            "command": "python -m benchmarks.speed",
        }
    rows.append({**rows[0], "tasks": 2, "seconds": {OURS: [7.0]}})  # not a full one
    speed_tables.RESULTS.write_text("\n".join(map(json.dumps, rows)))
    drawn = speed_tables.seconds().to_markdown().splitlines()
    first = (
        "| cpu, 2 threads | Omniglot 5-way 1-shot, 32 tasks, 1 step | maml | 2.00 s (1.00 s) |"
        " threads |"
    )
    rest = "1.00 x (2.00 s) | not installed | - | - | - | 4.00 x (500.0 ms) | 1 |"
    assert drawn[2] == f"{first} {rest}"
    assert "7.00" not in "".join(drawn)
    assert drawn[-1].startswith(
        "| cpu, 2 threads | geometric mean of the 3 image settings | maml |  |  | 2.00 x |"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            {"settings": "omniglot"},
            "there is no setting 'omniglot'; choose from omniglot-5, omniglot-20",
        ),
        ({"algorithms": "reptile"}, "there is no algorithm 'reptile'; choose from maml"),
        ({"peers": "learn2lern"}, "there is no peer 'learn2lern'; choose from learn2learn"),
        ({"figures": "speed"}, "there is no figure 'speed'; choose from time"),
        ({"rounds": 0}, "rounds=0; each side is timed at least once"),
    ],
)
def test_what_is_not_known_is_named(arguments: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        speed.speed(**arguments)


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(),
    reason="the peak of a process is read from Linux's /proc",
)
def test_memory_is_measured_in_a_fresh_process() -> None:
    found = speed.in_fresh_process(
        f"peak({Case('omniglot-5', 'maml', tasks=1, queries=2, hidden=16)!r}, {OURS!r}, 1)"
    )
    assert 15 * 16 * 28 * 28 * 4 < found < 200 * 2**20  # the first layer's maps at least


def test_our_sampler_draws_episodes_of_the_images_that_learn2learn_is_given() -> None:
    drawn = speed.samplers(2, learn2learn=False, classes=6)[OURS]()
    assert drawn.support.inputs.shape == (5, 1, 28, 28)
    assert drawn.query.inputs.shape == (10, 1, 28, 28)


def test_a_race_notes_accuracy_over_seconds_and_draws_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {
        "seconds": 0.02,
        "slice": 0.01,
        "test_tasks": 3,
        "dataset": "glyphs",
        "hidden": 2,
        "progress": False,
    }
    monkeypatch.setitem(sys.modules, "learn2learn", None)
    accuracy_time.accuracy_time("maml,anil", results=str(tmp_path / "accuracy_time.jsonl"), **small)
    rows = [
        json.loads(line) for line in (tmp_path / "accuracy_time.jsonl").read_text().splitlines()
    ]
    assert [(row["side"], row["algorithm"], len(row["points"])) for row in rows] == [
        ("metalearn", "maml", 3),
        ("metalearn", "anil", 3),
    ]
    for row in rows:
        seconds, steps = ([point[key] for point in row["points"]] for key in ("seconds", "steps"))
        assert seconds == sorted(seconds) and seconds[0] == 0 and seconds[-1] >= 0.02
        assert steps[0] == 0 and steps[-1] >= 2
    with Image.open(tmp_path / "accuracy_time.png") as picture:  # a panel an algorithm
        assert picture.size == (round(120 * 3.6 * 2), round(120 * 3.2))
        panels = np.asarray(picture.convert("L")).reshape(384, 2, 432)
    assert (panels < 128).any(2).any(0).all()
    assert (
        "learn2learn not installed; benchmarks/peers/install.sh builds an environment with it"
        in capsys.readouterr().out
    )


def test_both_sides_of_a_race_take_the_same_steps() -> None:
    experiment = accuracy_time.Experiment(dataset="glyphs", hidden=2, schedule="constant")
    ours, theirs = (
        accuracy_time.Racer.of(side, "maml", experiment) for side in ("metalearn", "torch")
    )
    before = [parameter.clone() for parameter in ours.net.parameters()]
    for racer in (ours, theirs):
        racer.optimizer = torch.optim.SGD(
            racer.net.parameters(), lr=0.1
        )  # Adam would blow rounding errors up
        while racer.steps < 2:
            racer.train(1e-9)
    for start, mine, other in zip(
        before, ours.net.parameters(), theirs.net.parameters(), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
        assert mine.ndim == 1 or not torch.equal(mine, start)
    theirs.test(2)
    torch.testing.assert_close(theirs.learner.model.head.weight, theirs.net.head.weight)


def test_a_race_names_what_is_not_known() -> None:
    with pytest.raises(
        ValueError, match="there is no algorithm 'reptile'; choose from maml, fomaml, anil"
    ):
        accuracy_time.accuracy_time("reptile")
