"""Starts compared: statistics against scipy and by hand, runs that go on after a kill, and what it
refuses.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import re
import signal
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from metalearn.runtime import files
from tests.helpers import Page, drawn_curves, rank_records, striped_images
from transfer import compare, everywhere, finetune, fresh, mean_var, transfusion
from transfer.comparison import run as running
from transfer.comparison.compare import Comparison
from transfer.comparison.figures import summary
from transfer.comparison.statistics import (
    holm,
    over_seeds,
    paired,
    seeds_needed,
    sign_flip,
    smallest_p,
)
from transfer.comparison.text import start_words
from transfer.finetuning import training
from transfer.finetuning.curve import Curve
from transfer.finetuning.figures import start_look


def build() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )


def slim() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 2),
        nn.Linear(2, 3),
    )


def pretrained() -> nn.Module:
    torch.manual_seed(9)
    return build()


def starts() -> dict:
    weights = pretrained()
    return {
        "random": everywhere(fresh()),
        "mean_var": everywhere(mean_var(weights)),
        "through 0": transfusion(weights, through="0"),
    }


TRAIN = finetune(striped_images(), striped_images(seed=1), steps=6, batch=8, evaluate_every=2)


def test_the_paired_t_test_and_its_interval_are_scipys() -> None:
    a, b = [0.81, 0.84, 0.79, 0.90], [0.78, 0.80, 0.80, 0.82]
    found, expected = paired(a, b), stats.ttest_rel(a, b)
    assert (found.t, found.p) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-10)
    low, high = expected.confidence_interval(0.95)
    assert (found.difference.low, found.difference.high) == pytest.approx((low, high), rel=1e-10)
    estimate, limits = over_seeds(a), stats.t.interval(0.95, 3, loc=np.mean(a), scale=stats.sem(a))
    assert (estimate.low, estimate.high) == pytest.approx(limits)


@given(st.lists(st.integers(-20, 20), min_size=2, max_size=7))
@settings(max_examples=30, deadline=None)
def test_the_sign_flip_test_is_scipys_permutation_test(differences: list[int]) -> None:
    exact = stats.permutation_test(
        (np.array(differences, dtype=float),),
        lambda x, axis: np.abs(np.sum(x, axis)),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
        alternative="greater",
    )
    assert sign_flip(differences) == pytest.approx(exact.pvalue)
    assert sign_flip(differences) >= smallest_p(len(differences)) - 1e-12


def test_the_smallest_p_is_reached_where_all_seeds_agree_and_six_decide() -> None:
    assert sign_flip([1.0, 2.0, 0.5]) == smallest_p(3) == 0.25
    assert [seeds_needed(level) for level in (0.05, 0.0625, 0.01)] == [6, 5, 8]
    assert sign_flip(np.ones(20)) < 0.001


def test_holm_by_hand() -> None:
    # 3 x 0.01 = 0.03; 2 x 0.02 = 0.04; 1 x 0.035 = 0.035, which may not fall below the one before
    assert holm([0.02, 0.01, 0.035]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == []
    with_unknown = holm([math.nan, 0.01], tests=2)
    assert math.isnan(with_unknown[0]) and with_unknown[1] == pytest.approx(0.02)


def test_differences_without_spread_have_no_p_unless_all_are_zero() -> None:
    assert paired([0.5, 0.6], [0.5, 0.6]).p == 1
    assert math.isnan(paired([0.6, 0.7, 0.8], [0.5, 0.6, 0.7]).p)
    assert math.isnan(paired([0.6], [0.5]).difference.interval)
    with pytest.raises(ValueError, match="as many values"):
        paired([0.5], [0.5, 0.6])
    with pytest.raises(ValueError, match="not finite"):
        paired([math.nan], [0.5])


@pytest.fixture(scope="module", autouse=True)
def threads():
    """One thread, as each of two processes on two cores has: other numbers of threads add up in
    other orders.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def found(threads):
    return compare(starts(), build, TRAIN, TRAIN.probe(36), seeds=[0, 1, 2])


def test_every_start_is_built_under_the_seed_initialised_and_trained(found) -> None:
    from transfer import initialize

    for run in found.runs:
        torch.manual_seed(run.seed)
        model = build()
        initialize(model, starts()[run.strategy], seed=run.seed)
        assert TRAIN(model, run.seed).losses == run.curve.losses
    assert [(run.strategy, run.seed) for run in found.runs[:4]] == [
        ("random", 0),
        ("random", 1),
        ("random", 2),
        ("mean_var", 0),
    ]


def test_scores_and_steps_are_compared_seed_by_seed_with_the_baseline(found) -> None:
    finals = {name: [run.curve.final for run in found.of(name)] for name in found.strategies}
    assert found.baseline == "random" and found.threshold == pytest.approx(
        0.98 * np.mean(finals["random"])
    )
    assert "98 % of the mean final score of random" in str(found)
    rows = {row.strategy: row for row in found.finals}
    assert rows["random"].paired is None
    for name in ("mean_var", "through 0"):
        assert rows[name].paired.difference.mean == pytest.approx(
            np.mean(np.subtract(finals[name], finals["random"]))
        )
        assert rows[name].answer == "not decidable" and rows[name].paired.smallest == 0.25
    assert (
        "with 3 seeds 0.25 at least, above the level 0.05: not decidable; 6 seeds can decide"
        in str(found)
    )


def test_kept_layers_are_those_of_compare_layers_and_copied_weights_correlate(found) -> None:
    kept = found.kept("through 0")
    assert set(kept) == {"0", "1", "4"}
    runs = found.of("through 0")
    for i, layer in enumerate(kept):
        assert kept[layer][0].mean == pytest.approx(
            np.mean([run.kept[i].similarity for run in runs])
        )
    assert kept["0"][2].mean > 0.9
    assert math.isnan(kept["1"][2].mean)
    run = runs[0]
    assert torch.equal(run.filters[0], pretrained()[0].weight.detach()) and not torch.equal(
        run.filters[0], run.filters[1]
    )
    assert {row.strategy for row in found.alike} == set(found.strategies)
    same = [row for row in found.alike if row.strategy == "random"]
    assert all(row.seeds == row.baseline for row in same)


def test_a_threshold_that_is_not_reached_is_said_and_never_a_number() -> None:
    found = compare(
        dict(list(starts().items())[:2]),
        build,
        TRAIN,
        TRAIN.probe(36),
        seeds=[0, 1],
        threshold=1.01,
    )
    assert all(
        row.estimate is None and row.paired is None and row.reached == 0 for row in found.steps
    )
    assert "not reached by 2 of 2" in str(found) and "nan" not in str(found).lower()
    assert [row["estimate"] for row in found.to_dict()["steps"]] == [None, None]


def test_page_and_picture_hold_the_numbers_and_load_nothing(found, tmp_path: Path) -> None:
    found.report(tmp_path / "page.html", settings={"command": "<script>"})
    text = (tmp_path / "page.html").read_text()
    page = Page(text)
    assert (
        not page.open
        and len(page.links) == 5
        and all(link.startswith("data:image/svg+xml;base64,") for link in page.links)
    )
    assert not re.search(r"https?://|@import|<script", text)
    words = " ".join(page.words)
    assert (
        "Not decidable with 3 seeds" in words
        and "through 0" in words
        and torch.__version__ in words
        and "nan" not in words.split()
    )
    found.plot(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    curves, similarity, _, finals = summary(found).axes
    for row in found.finals:
        name = row.strategy
        assert drawn_curves(curves)[name][-1] == pytest.approx(row.estimate.mean)
        kept = [estimate.mean for estimate, _, _ in found.kept(name).values()]
        assert drawn_curves(similarity)[name] == pytest.approx(kept)
    assert [label.get_text() for label in finals.get_yticklabels()] == list(found.strategies)
    facts = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert facts["smallest_p"] == 0.25 and len(facts["runs"]) == 9


def test_no_two_starts_are_drawn_alike() -> None:
    styles = [start_look(i) for i in range(40)]
    assert len({(style["color"], style["marker"]) for style in styles}) == 40


def test_a_comparison_goes_on_with_the_runs_that_are_missing_or_damaged(
    found, tmp_path: Path, capsys
) -> None:
    trained: list[int] = []

    def train(model: nn.Module, seed: int) -> Curve:
        trained.append(seed)
        return TRAIN(model, seed)

    def again(**options):
        trained.clear()
        return compare(
            starts(), build, train, TRAIN.probe(36), seeds=[0, 1, 2], folder=tmp_path, **options
        )

    first = again()
    assert len(trained) == 9
    assert str(again()) == str(first) and trained == []
    path = next(tmp_path.glob("mean_var-seed1*"))
    path.write_bytes(path.read_bytes()[:-100])
    assert str(again()) == str(first) and trained == [1]
    assert "is repeated" in capsys.readouterr().err
    (tmp_path / "random-seed2.safetensors").unlink()
    (tmp_path / ".random-seed2.safetensors.1234abcd").write_bytes(b"half")
    assert str(again()) == str(first) and trained == [2]
    assert not list(tmp_path.glob(".*"))
    assert first.to_dict()["finals"] == found.to_dict()["finals"]


def test_changed_settings_are_not_silently_resumed(tmp_path: Path) -> None:
    pair = dict(list(starts().items())[:2])
    compare(pair, build, TRAIN, TRAIN.probe(36), seeds=[0], folder=tmp_path)
    longer = finetune(striped_images(), striped_images(seed=1), steps=8, batch=8, evaluate_every=2)
    with pytest.raises(ValueError, match=r"train\.steps is 8 but was 6"):
        compare(pair, build, longer, TRAIN.probe(36), seeds=[0], folder=tmp_path)
    other = finetune(
        striped_images(seed=3), striped_images(seed=1), steps=6, batch=8, evaluate_every=2
    )
    with pytest.raises(ValueError, match=r"train\.data\.train is"):
        compare(pair, build, other, TRAIN.probe(36), seeds=[0], folder=tmp_path)
    torch.manual_seed(10)
    changed = {**pair, "mean_var": everywhere(mean_var(build()))}
    with pytest.raises(ValueError, match=r"start is .* but was"):
        compare(changed, build, TRAIN, TRAIN.probe(36), seeds=[0], folder=tmp_path)


def test_a_start_may_have_a_network_of_its_own() -> None:
    strategies = {
        "random": everywhere(fresh()),
        "slim": (slim, transfusion(pretrained(), through="0")),
    }
    found = compare(strategies, build, TRAIN, TRAIN.probe(36), seeds=[0, 1])
    assert list(found.kept("slim")) == ["0", "1", "4", "5"]
    assert {row.layer for row in found.alike if row.strategy == "slim"} == {"0", "1", "4"}


def test_memory_is_that_of_one_run() -> None:
    import gc

    alive: list[int] = []

    class Watched(nn.Sequential):
        pass

    def watched() -> nn.Module:
        return Watched(*build())

    def train(model: nn.Module, seed: int) -> Curve:
        gc.collect()
        alive.append(sum(type(thing) is Watched for thing in gc.get_objects()))
        return TRAIN(model, seed)

    compare(
        {"a": everywhere(fresh()), "b": everywhere(fresh())},
        watched,
        train,
        TRAIN.probe(36),
        seeds=[0, 1, 2],
    )
    assert alive == [1] * 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": [0, 1, 0]}, r"has 0 twice"),
        ({"seeds": []}, "seeds is empty"),
        ({"baseline": "full"}, "baseline='full' is none of the strategies random, mean_var"),
        ({"strategies": {"random": everywhere(fresh())}}, "needs two strategies"),
        ({"level": 5}, "level=5 must lie between 0 and 1"),
        ({"processes": 0}, "processes=0"),
        ({"threshold": float("nan")}, "threshold=nan is no score"),
        ({"probe": torch.rand(0, 1, 28, 28)}, "probe holds no inputs"),
        ({"measure": "cka"}, "there is no measure 'cka'"),
        (
            {"probe": torch.rand(5, 3, 28, 28)},
            r"random: the network does not take the probe, inputs \(5, 3, 28, 28\)",
        ),
        (
            {"strategies": {**starts(), "typo": transfusion(build(), through="layer9")}},
            "no layer 'layer9'",
        ),
    ],
)
def test_bad_input_is_refused_before_any_run(arguments: dict, message: str) -> None:
    def train(model: nn.Module, seed: int) -> Curve:
        raise AssertionError("a run was begun")

    given = {
        "strategies": starts(),
        "build": build,
        "train": train,
        "probe": TRAIN.probe(5),
        "seeds": [0],
        **arguments,
    }
    with pytest.raises(ValueError, match=message):
        compare(**given)


def test_what_fails_in_a_run_names_the_run() -> None:
    wrong = finetune(striped_images((9, 9, 9, 9)), striped_images((3, 3, 3, 3)), steps=2)
    with pytest.raises(ValueError, match="random, seed 4: labels run to 3"):
        compare(starts(), build, wrong, TRAIN.probe(5), seeds=[4])


def fails_or_sleeps(model: nn.Module, seed: int) -> Curve:
    time.sleep(200 if seed else 0.5)
    raise ValueError("no luck")


def test_where_a_run_fails_those_beside_it_are_not_waited_for() -> None:
    started = time.monotonic()
    with pytest.raises(ValueError, match="seed 0: no luck"):
        compare(
            dict(list(starts().items())[:2]),
            build,
            fails_or_sleeps,
            TRAIN.probe(5),
            seeds=[0, 1],
            processes=3,
        )
    assert time.monotonic() - started < 150


def test_runs_in_several_processes_give_the_same_table(found, tmp_path: Path) -> None:
    apart = compare(
        starts(), build, TRAIN, TRAIN.probe(36), seeds=[0, 1, 2], folder=tmp_path, processes=2
    )
    assert [run.curve.losses for run in apart.runs] == [run.curve.losses for run in found.runs]
    assert apart.to_dict()["finals"] == found.to_dict()["finals"]
    with pytest.raises(ValueError, match="define build and train at the top of a module"):
        compare(starts(), lambda: build(), TRAIN, TRAIN.probe(36), seeds=[0], processes=2)


def train_slowly(model: nn.Module, seed: int) -> Curve:
    curve = TRAIN(model, seed)
    if "SLOW" in os.environ:
        with open("trained", "a") as file:
            file.write("x")
        time.sleep(0.3)
    return curve


def compare_slowly(folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ["SLOW"] = "1"
    os.chdir(folder)
    compare(starts(), build, train_slowly, TRAIN.probe(36), seeds=[0, 1, 2], folder="runs")


def test_after_a_real_kill_the_same_table_comes_out(
    tmp_path: Path, start: Callable[..., ForkServerProcess]
) -> None:
    killed, trained = start(compare_slowly, tmp_path), tmp_path / "trained"
    until = time.monotonic() + 200
    while (not trained.exists() or trained.stat().st_size < 3) and time.monotonic() < until:
        time.sleep(0.01)
    killed.kill()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    left = sorted((tmp_path / "runs").glob("*.safetensors"))
    assert 2 <= len(left) <= 3
    (tmp_path / "runs" / f".{left[0].name}.0011aabb").write_bytes(
        left[0].read_bytes()[:1000]
    )  # as torn while it was written
    before = {path: path.stat().st_mtime_ns for path in left}
    resumed = compare(
        starts(), build, train_slowly, TRAIN.probe(36), seeds=[0, 1, 2], folder=tmp_path / "runs"
    )
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    # A function of the user's too, whose first step is not measured.
    unbroken = compare(
        starts(),
        build,
        TRAIN.__call__,
        TRAIN.probe(36),
        seeds=[0, 1, 2],
        folder=tmp_path / "unbroken",
    )
    assert str(unbroken) == str(resumed)
    for path in (tmp_path / "unbroken").glob("*.safetensors"):
        ours, theirs = (
            files.load(folder / path.name)[0]
            for folder in (tmp_path / "unbroken", tmp_path / "runs")
        )
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no list of mapped files")
def test_no_run_keeps_its_file_in_memory(tmp_path: Path) -> None:
    found = compare(starts(), build, TRAIN, TRAIN.probe(36), seeds=[0], folder=tmp_path)
    assert found.runs[0].filters is not None
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def compare_as_rank(rank: int, folder: Path) -> str:
    os.chdir(folder)

    def train(model: nn.Module, seed: int) -> Curve:
        with open(f"ran{rank}", "a") as file:
            file.write("x")
        return TRAIN(model, seed)

    result = compare(starts(), build, train, TRAIN.probe(36), seeds=[0, 1, 2], folder="runs")
    return str(result)


def test_ranks_share_out_the_runs(
    tmp_path: Path, start_ranks: Callable[..., list[ForkServerProcess]]
) -> None:
    for process in start_ranks(compare_as_rank):
        process.join(300)
    first, second = rank_records(tmp_path, "result")
    assert first == second
    assert sorted(len((tmp_path / f"ran{rank}").read_text()) for rank in (0, 1)) == [4, 5]


def test_the_page_lists_what_every_start_started_from(found: Comparison) -> None:
    for name in found.strategies:
        counted = found.of(name)[0].initialisation["parameters"]
        assert start_words(found, name) == ", ".join(
            f"{count:,} parameters {how}" for how, count in counted.items()
        )
        assert counted


def test_asking_whether_runs_are_done_builds_no_network_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = dict(list(starts().items())[:2])
    compare(pair, build, TRAIN, TRAIN.probe(36), seeds=[0], folder=tmp_path)
    started = []
    original = running.Plan.start
    monkeypatch.setattr(
        running.Plan,
        "start",
        lambda plan, name, seed: started.append(name) or original(plan, name, seed),
    )
    plan = running.Plan(pair, build, TRAIN, TRAIN.probe(36), None, tmp_path, "linear_cka", {})
    for name in pair:
        for _ in range(3):
            with contextlib.suppress(
                ValueError
            ):  # the settings differ, which is found after the start is known
                plan.done(name, 0)
    assert sorted(started) == sorted(pair)


def test_the_images_of_a_training_are_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = []
    original = training._checksum
    monkeypatch.setattr(
        training, "_checksum", lambda *arguments: hashed.append(1) or original(*arguments)
    )
    train = dataclasses.replace(TRAIN)
    assert train.settings == train.settings
    assert len(hashed) == 2  # training and test images


def test_layers_without_positions_are_compared_by_any_measure() -> None:
    strategies = {"random": everywhere(fresh()), "all": transfusion(pretrained())}
    result = compare(strategies, build, TRAIN, TRAIN.probe(16), seeds=(0,), measure="linear_cka")
    assert result.measure == "linear_cka"
