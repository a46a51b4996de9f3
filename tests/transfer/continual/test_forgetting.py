"""Where a task is forgotten: identities of resets and freezing, statistics over seeds, the page."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from metalearn.analysis import compare_layers
from metalearn.data.images import LabelledImages
from metalearn.data.labelled_sets import Split
from metalearn.runtime.statistics import Estimate
from tests.helpers import Page, striped_images
from transfer import ewc, finetune, forgetting, linear_probe, replay
from transfer.continual.anatomy import BOTH, COMPARISONS, Anatomy, LayerAnatomy, anatomy
from transfer.continual.forgetting import Forgetting
from transfer.continual.norms import group_normalised, keeps_running_statistics, reestimated
from transfer.continual.resets import layer_groups, reset
from transfer.continual.results import Run, rank_correlation
from transfer.continual.sequence import Learner
from transfer.continual.tables import criteria, layers_table, memories_table


def build(norm: Callable[[int], nn.Module] = lambda width: nn.GroupNorm(2, width)) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), norm(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.ReLU(),
        nn.Linear(8, 3),
    )  # fmt: skip


def two_tasks() -> list[Split]:
    """The second has its stripes in columns."""
    parts = [striped_images(seed=seed) for seed in range(4)]
    turned = [LabelledImages(part.images.mT.contiguous(), part.labels) for part in parts[2:]]
    return [Split(parts[0], None, parts[1]), Split(turned[0], None, turned[1])]


TRAIN = partial(finetune, steps=40, batch=8, lr=0.05, optimizer="sgd", evaluate_every=40)
QUICK: dict[str, Any] = {"probe": 36, "k": (2, 3), "points": 1}


@pytest.fixture(scope="module")
def learned() -> Forgetting:
    memories = {"none": None, "ewc": ewc(100.0), "replay": replay(0.5)}
    return forgetting(build, two_tasks(), TRAIN, [0, 1], memories, **QUICK)


@pytest.mark.parametrize("heads", ["own", "shared"])
def test_a_reset_of_all_layers_is_the_network_before_and_of_none_the_one_after(heads: str) -> None:
    learner = Learner.of(build, two_tasks(), TRAIN, heads=heads, points=0)
    result = learner.learn(0)
    before, after = result.state(0, 0), result.state(1, 0)
    model = learner.network(after)
    reset(model, after, before, set(before), learner.head)
    assert all(torch.equal(before[name], w) for name, w in model.state_dict().items())
    reset(model, after, before, set(), learner.head)
    assert all(torch.equal(after[name], w) for name, w in model.state_dict().items())
    measured = anatomy(learner, result, probe=36, k=(2,))
    assert measured.layers[0].reset_top == measured.before == result.accuracy[0][0]
    assert measured.after == result.accuracy[1][0]
    if heads == "own":  # the head of the first task has not changed
        assert measured.layers[-1].reset_bottom == measured.before
        assert measured.reset_head == measured.after


def test_nothing_changes_with_all_but_the_head_frozen() -> None:
    train = partial(TRAIN, frozen=None)
    frozen = lambda first, second: replace(train(first, second), frozen=linear_probe)  # noqa: E731
    learner = Learner.of(build, two_tasks(), train, points=0)
    first = learner.stage([], 0)
    held = replace(learner, trainings=tuple(frozen(t.train, t.test) for t in two_tasks()))
    measured = anatomy(held, held.learn(0, first=first), probe=36, k=(2,))
    for row in measured.layers:
        assert row.cka == pytest.approx(1.0, abs=1e-12)
        assert row.subspace[2]["first task, before and after"] == pytest.approx(1.0, abs=1e-9)
        assert row.reset_top == row.reset_bottom == row.reset_single == measured.before
        assert row.probe_before == row.probe_after
    assert measured.before == measured.after and measured.forgetting == Estimate(0.0, 0.0)


def test_every_tensor_is_in_one_group_from_the_bottom_to_the_top() -> None:
    model = build()
    assert [group.layer for group in layer_groups(model, "6")] == ["0", "1", "4"]
    groups = layer_groups(model, "6", ["1", "4"])
    assert groups[0].names == ("0.weight", "0.bias", "1.weight", "1.bias")
    assert layer_groups(model, "6", ["0"])[0].names[-1] == "4.bias"
    with pytest.raises(ValueError, match="not in the order of the network: '0' lies below"):
        layer_groups(model, "6", ["1", "0"])
    with pytest.raises(ValueError, match="'6', the head"):
        layer_groups(model, "6", ["6"])
    with pytest.raises(ValueError, match="has no layer 'conv'"):
        layer_groups(model, "6", ["conv"])


def test_of_two_sets_of_images_chance_shuffles_the_neurons() -> None:
    """The rows of the two sides do not belong together, so shuffling them would say nothing."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(60, 20, generator=generator) for _ in range(2))
    profile = compare_layers({"a": x}, {"a": y}, None, ["a"], measure="subspace", k=4, draws=40)
    assert profile["a"].floor.median == pytest.approx(4 / 20, abs=0.1)
    again = compare_layers({"a": x}, {"a": x}, None, ["a"], measure="subspace", k=4, draws=40)
    assert again["a"].similarity == 1.0 and again["a"].floor.upper < 0.6


def test_it_has_every_number_for_every_layer(learned: Forgetting) -> None:
    assert learned.layers == ("0", "1", "4") and len(learned.runs) == 6
    for run in learned.runs:
        assert run.accuracy[0][0] == run.anatomy.before
        assert run.accuracy[1][0] == run.anatomy.after
        assert list(run.courses[1]) == [0, 40]
        for row in run.anatomy.layers:
            assert 0 <= row.overlap <= 1 and row.ceiling <= 1 and row.floor < 1
            assert list(row.subspace) == [2, 3] and list(row.subspace[2]) == list(COMPARISONS)
    base = learned.of("none")
    assert [len(run.frozen) for run in base] == [4, 4]
    assert all(run.frozen[0] == run.accuracy[1][1] for run in base)
    assert not any(run.frozen for run in learned.of("ewc"))
    assert learned.forgetting("none").mean > 0.15
    assert learned.forgetting("replay").mean < learned.forgetting("none").mean
    with pytest.raises(KeyError, match="no memory 'si'; there are none, ewc, replay"):
        learned.of("si")


def test_it_prints_draws_and_writes_a_page(learned: Forgetting, tmp_path: Path) -> None:
    text = str(learned)
    for part in ("What is forgotten", "Layer by layer, memory: none", "ceiling", "holds"):
        assert part in text
    learned.report(tmp_path / "page.html", settings={"steps": 40})
    page = Page((tmp_path / "page.html").read_text())
    assert not page.open and not any(link.startswith("http") for link in page.links)
    learned.plot(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    assert len(learned.records()) == 3 * 2 * 3
    record = learned.to_dict()
    assert record["forgetting"]["none"]["mean"] == learned.forgetting("none").mean
    assert Anatomy.from_dict(learned.runs[0].anatomy.to_dict()) == learned.runs[0].anatomy


def test_it_goes_on_from_its_folder_and_repeats_to_the_last_digit(tmp_path: Path) -> None:
    memories = {"none": None, "replay": replay(0.5)}
    first = forgetting(build, two_tasks(), TRAIN, [0], memories, folder=tmp_path, **QUICK)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    # Two tasks, replay's second, the ceiling, three with frozen layers, two anatomies.
    assert len(written) == 9
    next(path for path in tmp_path.iterdir() if "frozen" in path.name).unlink()
    again = forgetting(build, two_tasks(), TRAIN, [0], memories, folder=tmp_path, **QUICK)
    changed = [p for p in tmp_path.iterdir() if p.stat().st_mtime_ns != written[p]]
    assert len(changed) == 1
    assert (
        str(again)
        == str(first)
        == str(forgetting(build, two_tasks(), TRAIN, [0], memories, **QUICK))
    )


def run(memory: str, seed: int, reset: float = 0.8, after: float = 0.6, **values: Any) -> Run:
    """A run of four layers, whose upper half brings back what was forgotten."""
    layers = []
    for place in range(4):
        spaces = dict.fromkeys(COMPARISONS, 0.5) | {BOTH: values.get("both", 0.5)}
        row = LayerAnatomy(
            layer=f"block{place}", cka=0.95 - 0.1 * place + 0.01 * seed, floor=0.1, ceiling=0.99,
            subspace={10: spaces}, subspace_floor=0.2, overlap=0.3,
            reset_top=reset, reset_bottom=after + 0.01, reset_single=after, probe_before=0.7,
            probe_after=0.6,
        )  # fmt: skip
        layers.append(row)
    lost = Estimate(0.8 - after, 0.02)
    body = Anatomy(tuple(layers), 0.8, after + 0.01 * seed, lost, after)
    matrix = ((0.8, math.nan), (after + 0.01 * seed, 0.9))
    frozen = (0.9, 0.9, 0.89, 0.85, 0.7) if memory == "none" else ()
    return Run(memory, seed, matrix, ({}, {0: (0.8, 0.2), 9: (after, 0.9)}), body, frozen)


def result(*runs: Run, memories: dict[str, str] | None = None) -> Forgetting:
    texts = memories or {"none": "none"}
    seeds = tuple(sorted({each.seed for each in runs}))
    return Forgetting(texts, seeds, 2, tuple(f"block{i}" for i in range(4)), runs)


def test_recovery_is_a_share_of_what_was_forgotten() -> None:
    of_one = result(run("none", 0))
    assert of_one.forgetting("none") == Estimate(pytest.approx(0.2), 0.02)  # over test images
    assert of_one.recovery("none", "reset_top", "block2").mean == pytest.approx(1.0)
    assert of_one.recovery("none", "reset_bottom", "block1").mean == pytest.approx(0.05)
    three = result(*(run("none", seed) for seed in range(3)))
    assert three.forgetting("none").mean == pytest.approx(0.19)
    assert three.recovery("none", "reset_top", "block3").mean == pytest.approx(1.0)
    with pytest.raises(ValueError, match="kind='top'; choose reset_top"):
        three.recovery("none", "top", "block3")
    with pytest.raises(KeyError, match="no layer 'block9'"):
        three.recovery("none", "reset_top", "block9")


def test_recovery_is_not_defined_where_nothing_was_forgotten() -> None:
    nothing = result(run("none", 0, after=0.79))
    assert not nothing.is_forgotten("none")
    assert nothing.recovery("none", "reset_top", "block2") is None
    table = layers_table(nothing, "none")
    assert table.rows[0][7] == "not defined"
    assert "so no recovery is defined" in table.note
    assert "not defined" in nothing.answer()
    # Two seeds that disagree: the interval over seeds holds zero, whatever each one says.
    apart = result(run("none", 0, after=0.5), run("none", 1, after=0.75))
    assert apart.recovery("none", "reset_top", "block2") is None


def test_statements_hold_fail_or_cannot_be_decided() -> None:
    plain = criteria(result(run("none", 0)))
    assert [row.holds for row in plain] == [True, True, True, True, None, None, None]
    weak = criteria(result(run("none", 0, reset=0.65)))
    assert weak[1].holds is False and weak[1].value.startswith("0.25")
    memories = {"none": "none", "a": "ewc(1.0)", "b": "replay(0.1)"}
    runs = run("none", 0), run("a", 0, both=0.8), run("b", 0, both=0.4)
    both = criteria(result(*runs, memories=memories))
    assert both[-1].holds is True and both[-1].value == "replay 0.400, EWC 0.800"
    assert "1 of the 3 settings needed" in both[4].value
    assert memories_table(result(*runs, memories=memories)).rows[1][0] == "a"
    assert math.isnan(rank_correlation([1, 2], [1.0, 2.0]))


def test_running_statistics_that_follow_another_task_are_told_apart() -> None:
    """The first task is forgotten by the statistics alone: no weight of the network changes."""
    tasks = two_tasks()
    bright = [
        LabelledImages((p.images // 8) + 200, p.labels) for p in (tasks[0].train, tasks[0].test)
    ]
    learner = Learner.of(
        partial(build, nn.BatchNorm2d), [tasks[0], Split(bright[0], None, bright[1])],
        partial(TRAIN, steps=120), heads="shared", points=0,
    )  # fmt: skip
    assert keeps_running_statistics(learner.network(learner.learn(0).weights[0]))
    first = learner.stage([], 0)
    # lr 0 moves no weight, and the statistics follow the bright images.
    still = replace(learner, trainings=tuple(replace(t, lr=0.0) for t in learner.trainings))
    sequence = still.learn(0, first=first)
    measured = anatomy(still, sequence, probe=36, k=(2,))
    assert measured.before > 0.9 and measured.after < measured.before - 0.2
    assert measured.reestimated > measured.before - 0.1
    before = {n: w for n, w in sequence.weights[0].items() if "running" not in n}
    assert all(
        torch.equal(w, sequence.weights[1][n]) for n, w in before.items() if "tracked" not in n
    )
    network = learner.network(sequence.weights[1])
    state = {name: w.clone() for name, w in network.state_dict().items()}
    reestimated(network, learner.trainings[0], 0)
    assert all(torch.equal(w, network.state_dict()[name]) for name, w in state.items())


def test_group_norm_takes_the_place_of_batch_norm() -> None:
    model = group_normalised(build(nn.BatchNorm2d), groups=2)
    assert isinstance(model[1], nn.GroupNorm) and not keeps_running_statistics(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": [0, 0]}, "has 0 twice"),
        ({"k": 0}, "k=0 must be at least 1"),
        ({"layers": ["9"]}, "no layer '9'"),
        ({"probe": 0}, "probe=0 must be at least 1"),
        ({"memories": {"replay": replay(0.9, store=3)}}, "the store holds 3 images"),
    ],
)
def test_bad_settings_are_refused_before_any_training(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        forgetting(build, two_tasks(), TRAIN, **{"seeds": [0], **options})


def test_other_kinds_are_refused() -> None:
    with pytest.raises(TypeError, match="give a dictionary by name"):
        forgetting(build, two_tasks(), TRAIN, [0], [ewc(1.0)])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"give ewc\(100.0\)"):
        forgetting(build, two_tasks(), TRAIN, [0], {"ewc": 100.0})  # type: ignore[dict-item]
