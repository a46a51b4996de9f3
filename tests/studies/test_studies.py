"""The papers' experiments: identities of the comparisons over seeds, other domains, points of
training, and the benchmark's rows.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import reuse as benchmark
from benchmarks.pages import reuse as reuse_tables
from metalearn import ANIL, MAML, NIL
from metalearn.analysis import (
    Estimate,
    feature_reuse,
    freezing,
    freezing_over_seeds,
    over_seeds,
)
from metalearn.analysis.networks.between import MEASURES, similarity_between
from metalearn.evaluation import evaluate
from metalearn.experiments.experiment import Experiment
from metalearn.experiments.regimes import trained
from metalearn.models import Conv4
from metalearn.runtime.statistics import MeanStd
from metalearn.studies import (
    another_domain,
    cross_domain,
    timeline,
    timeline_figure,
    training_regimes,
    under_nil,
)
from metalearn.tasks import FewShot, LabelledImages
from tests.helpers import drawn_curves

SMALL = {"steps": 2, "hidden": 4, "meta_batch": 2, "test_tasks": 4, "execution": "loop"}


def learner(seed: int, kind: type[MAML] = MAML) -> MAML:
    torch.manual_seed(seed)
    return kind(Conv4(3, hidden=6, size=16), lr=0.3, execution="loop")


def tasks(count: int = 3) -> FewShot:
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.randint(200, (6, 1, 16, 16), generator=generator).repeat_interleave(10, 0)
    noise = torch.randint(55, prototypes.shape, generator=generator)
    return FewShot(
        LabelledImages((prototypes + noise).to(torch.uint8), torch.arange(6).repeat_interleave(10)),
        3,
        1,
        6,
        count,
    )


def test_the_spread_over_seeds_is_numpys() -> None:
    values = [0.3, 0.9, 0.4]
    found = MeanStd.of(values)
    assert found.mean == pytest.approx(np.mean(values))
    assert found.std == pytest.approx(np.std(values, ddof=1))
    assert MeanStd.of([0.5]).text(100, 1) == "50.0 (one run)"
    assert np.isnan(MeanStd.of([0.5]).std)


def test_freezing_tables_over_seeds_have_the_mean_and_deviation_of_each_seeds_table() -> None:
    single = [freezing(learner(seed), tasks()) for seed in range(3)]
    pooled = over_seeds(single)
    record = pooled.to_dict()
    for k, row in enumerate(pooled.rows):
        for name in ("accuracy", "cost"):
            values = [getattr(table.rows[k], name).mean for table in single]
            assert getattr(row, name) == Estimate.of(values)
            std = pytest.approx(np.std(values, ddof=1), abs=1e-9)
            assert pooled.mean_std(name)[k].std == std
            assert record["rows"][k][name]["std"] == std
    assert pooled.rows[0].cost.mean == 0
    assert "standard deviation over 3 seeds" in str(pooled)
    assert record["rows"][4]["layers"] == ["block1", "block2", "block3", "block4"]
    assert record["runs"] == [table.to_dict() for table in single]


def test_the_former_name_of_freezing_over_seeds_warns_and_works() -> None:
    learners = [learner(seed) for seed in range(2)]
    with pytest.warns(FutureWarning, match="over_seeds"):
        pooled = freezing_over_seeds(learners, tasks(2))
    assert pooled == over_seeds([freezing(one, tasks(2)) for one in learners])
    with (
        pytest.warns(FutureWarning, match="over_seeds"),
        pytest.raises(ValueError, match="there is no learner"),
    ):
        freezing_over_seeds([], tasks(2))


def test_freezing_tables_of_other_recipes_are_not_pooled() -> None:
    table = freezing(learner(0), tasks(2))
    with pytest.raises(ValueError, match=r"differ in tasks \(2 against 3\)"):
        over_seeds([table, freezing(learner(1), tasks(3))])
    with pytest.raises(ValueError, match="differ in their layers"):
        over_seeds([table, freezing(learner(1), tasks(2), layers=["block1"])])
    with pytest.raises(ValueError, match="pooled already"):
        over_seeds([table, over_seeds([table])])
    with pytest.raises(TypeError, match=r"reuses\[1\] is a Freezing"):
        over_seeds([feature_reuse(learner(0), tasks(2), draws=0), table])


def test_one_seed_has_no_spread_and_says_so() -> None:
    pooled = over_seeds([freezing(learner(0), tasks(2))])
    assert "one seed has no interval over seeds" in str(pooled) and "(one seed)" in str(pooled)
    assert pooled.to_dict()["rows"][0]["accuracy"]["std"] is None


def test_a_network_is_like_itself_and_groups_may_be_named_in_either_order() -> None:
    one, other = learner(0), learner(1)
    same = similarity_between({"a": [one, one]}, tasks(), draws=1)
    for measure in MEASURES:
        assert same["a", "a"].body[measure].mean == pytest.approx(1, abs=1e-9)
        assert all(
            layer[measure].mean == pytest.approx(1, abs=1e-9)
            for layer in same["a", "a"].layers.values()
        )
    forth = similarity_between({"a": [one], "b": [other]}, tasks(), by_seed=False, draws=1)
    back = similarity_between({"b": [other], "a": [one]}, tasks(), by_seed=False, draws=1)
    for measure in MEASURES:
        assert forth["a", "b"].body[measure].mean == pytest.approx(
            back["a", "b"].body[measure].mean, abs=1e-9
        )
        assert forth["a", "b"].body[measure].mean < 0.999
    with pytest.raises(KeyError, match="were not compared"):
        forth["a", "c"]


def test_networks_of_one_seed_are_not_paired_across_groups() -> None:
    groups = {
        "maml": [learner(seed) for seed in range(3)],
        "anil": [learner(seed, ANIL) for seed in range(3)],
    }
    found = similarity_between(groups, tasks(2), draws=1)
    assert {row.groups: row.pairs for row in found.rows} == {
        ("maml", "maml"): 3,
        ("anil", "anil"): 3,
        ("maml", "anil"): 6,
    }
    apart = similarity_between(
        {"maml": groups["maml"], "same": groups["maml"]}, tasks(2), draws=1, adapted=False
    )
    assert apart["maml", "same"].body["cka"].mean == pytest.approx(
        apart["maml", "maml"].body["cka"].mean, abs=1e-9
    )
    assert "at the meta-initialisation" in str(apart)
    assert set(found.to_dict()["rows"][0]["body"]) == set(MEASURES)
    with pytest.raises(ValueError, match="no two networks of different seeds"):
        similarity_between({"maml": [learner(0)], "anil": [learner(0, ANIL)]}, tasks(2))
    with pytest.raises(ValueError, match="has no layer 'block7'"):
        similarity_between(groups, tasks(2), layers=["block7"])


def test_under_nil_is_nil_whatever_the_head() -> None:
    torch.manual_seed(0)
    wide = Conv4(40, hidden=4, size=16)
    narrow = Conv4(3, hidden=4, size=16)
    narrow.load_state_dict(
        {**wide.state_dict(), "head.weight": wide.head.weight[:3], "head.bias": wide.head.bias[:3]}
    )
    found = under_nil({"wide": wide, "narrow": narrow}, tasks())
    assert torch.equal(found["wide"].per_episode, found["narrow"].per_episode)
    assert torch.equal(found["wide"].per_episode, evaluate(NIL(narrow), tasks()).per_episode)


def test_training_regimes_are_tested_on_the_same_tasks_over_seeds(tmp_path: Path) -> None:
    experiment = Experiment(runs=str(tmp_path), **SMALL)
    found = training_regimes(
        experiment, ["anil", "multiclass", "random"], seeds=[0, 1], progress=False
    )
    for name, runs in found.evaluations.items():
        assert found.accuracy[name].mean == pytest.approx(np.mean([run.mean for run in runs]))
        assert (
            runs[0].fingerprints
            == runs[1].fingerprints
            == found.evaluations["anil"][0].fingerprints
        )
    assert not torch.equal(*(run.per_episode for run in found.evaluations["random"]))
    assert "multiclass" in str(found)
    assert found.to_dict()["accuracy"]["anil"]["runs"] == 2


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for label in range(14):
        folder = tmp_path / "colours" / f"class{label:02}"
        folder.mkdir(parents=True)
        for number in range(18):
            Image.fromarray(generator.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(
                folder / f"{number}.png"
            )
    return tmp_path / "colours"


def test_images_of_another_domain_take_the_models_channels_and_size(
    tmp_path: Path, colours: Path
) -> None:
    shape = {"dataset": str(colours), "ways": 2, "queries": 3}
    home = trained(
        Experiment(runs=str(tmp_path), **{**SMALL, "ways": 2, "queries": 3}), "maml", progress=False
    )
    away = trained(Experiment(runs=str(tmp_path), **SMALL, **shape), "maml", progress=False)
    there, back = (
        another_domain(home, str(colours)).data("test"),
        another_domain(away, "glyphs").data("test"),
    )
    assert there.images.shape[1:] == (1, 28, 28)
    assert (there.description["channels"], there.description["resized"]) == ("colour as grey", 28)
    assert back.images.shape[1:] == (3, 84, 84)
    assert (back.description["channels"], back.description["resized"]) == ("grey, three times", 84)
    assert torch.equal(back.images[:, 0], back.images[:, 2])
    found = cross_domain(
        {"maml": home, "body": trained(home.experiment, "random", progress=False)}, str(colours)
    )
    assert found["maml"].fingerprints == found["body"].fingerprints
    assert len(found["maml"].per_episode) == 4
    with pytest.raises(ValueError, match=r"they take .*home 1 x 28 x 28, away 3 x 84 x 84"):
        cross_domain({"home": home, "away": away}, "glyphs")


def test_the_timeline_looks_at_points_of_one_run_and_is_drawn(tmp_path: Path) -> None:
    experiment = Experiment(runs=str(tmp_path), **SMALL)
    points = timeline(experiment, "anil", [2, 1], analysed_tasks=2, progress=False)
    assert [point.step for point in points] == [1, 2]
    assert [len(point.run.curve.losses) for point in points] == [1, 2]
    assert points[1].reuse.tasks == 2
    again = timeline(experiment, "anil", [1, 2], analysed_tasks=2, progress=False)
    assert torch.equal(again[1].evaluation.per_episode, points[1].evaluation.per_episode)
    similarity, accuracy = timeline_figure(points).axes
    for i, layer in enumerate(points[0].reuse.layers):
        expected = [point.reuse.layers[i].cka.mean for point in points]
        assert drawn_curves(similarity)[layer.layer] == pytest.approx(expected)
    shown = accuracy.get_lines()[0]
    assert list(shown.get_xdata()) == [1, 2]
    assert list(shown.get_ydata()) == pytest.approx([100 * p.evaluation.mean for p in points])


def test_the_benchmark_writes_rows_with_everything_behind_them_and_tables_read_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reuse_tables, "RESULTS", tmp_path / "reuse.jsonl")
    benchmark.reuse(
        "freezing,similarity,regimes,profile",
        "0,1",
        "anil",
        analysed_tasks=2,
        progress=False,
        runs=str(tmp_path),
        results=str(tmp_path / "reuse.jsonl"),
        **SMALL,
    )
    rows = [json.loads(line) for line in (tmp_path / "reuse.jsonl").read_text().splitlines()]
    assert [row["experiment"] for row in rows] == [
        "freezing",
        "similarity",
        "regimes",
        "profile",
        "profile",
    ]
    for row in rows:
        assert {
            "command",
            "versions",
            "machine",
            "commit",
            "seeds",
            "trained",
            "follows",
            "data",
            "time",
        } <= row.keys()
        assert row["trained"]["anil"][0]["trained_steps"] == 2
        assert f"--experiment {row['experiment']}" in row["command"]
    assert [one["seed"] for one in rows[0]["trained"]["anil"]] == [0, 1]
    assert "standard deviation over 2 seeds" in capsys.readouterr().out
    for name, table in reuse_tables.TABLES.items():
        drawn = table()
        if isinstance(drawn, str):
            continue  # the list of runs
        lines = drawn.to_markdown().splitlines()
        assert len({line.count("|") for line in lines}) == 1, name
        assert (len(lines) > 2) == (
            name
            in (
                "reuse_freezing",
                "reuse_similarity",
                "reuse_regimes",
                "reuse_profile",
                "reuse_heads",
            )
        )
    values = [one["accuracy"]["mean"] for one in rows[0]["runs"][0]["rows"]]
    assert len(values) == 5


@pytest.mark.slow
def test_all_experiments_take_networks_that_were_trained_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark.reuse(
        "train", "0,1", points="1,2", progress=False, runs=str(tmp_path / "there"), **SMALL
    )
    given = ",".join(map(str, (tmp_path / "there").glob("*.safetensors")))
    monkeypatch.setattr("metalearn.experiments.regimes.meta_train", None)
    monkeypatch.setattr("metalearn.experiments.experiment.meta_train", None)
    here = {
        "checkpoints": given,
        "other": "glyphs",
        "progress": False,
        "runs": str(tmp_path / "here"),
        "analysed_tasks": 2,
    }
    benchmark.reuse("all", results=str(tmp_path / "reuse.jsonl"), **here, **SMALL)
    rows = [json.loads(line) for line in (tmp_path / "reuse.jsonl").read_text().splitlines()]
    assert {row["experiment"] for row in rows} == benchmark.EXPERIMENTS.keys()
    assert {(row["seed"], row["step"]) for row in rows if row["experiment"] == "timeline"} == {
        (0, 1),
        (0, 2),
        (1, 1),
        (1, 2),
    }
    assert {seed for row in rows for seed in row["seeds"]} == {0, 1}


@pytest.mark.parametrize(
    ("schedule", "steps", "superseded"), [("cosine", 3, 0), ("constant", 5, 1), ("cosine", 5, 1)]
)
def test_a_longer_run_of_the_same_setting_takes_the_place_of_a_shorter_one(
    schedule: str, steps: int, superseded: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reuse_tables, "RESULTS", tmp_path / "reuse.jsonl")
    row = {
        "experiment": "probes",
        "dataset": "d",
        "ways": 5,
        "shots": 1,
        "preset": "quick",
        "seeds": [0],
        "algorithm": "maml",
    }
    row |= {"queries": 15, "data": {}, "command": "c", "each": [{"classes": 2, "train": 4}]}
    found = [
        {
            **row,
            "trained": {"maml": [{"trained_steps": n, "schedule": schedule}]},
            "accuracy": {"block1": {"mean": mean, "std": None}},
        }
        for n, mean in ((3, 0.1), (steps, 0.2))
    ]
    (tmp_path / "reuse.jsonl").write_text("".join(json.dumps(one) + "\n" for one in found))
    (shown,) = reuse_tables.shown("probes").rows
    assert "20.00 (one seed)" in shown
    history = reuse_tables.history("probes").rows
    assert len(history) == superseded
    assert all("10.00 (one seed)" in line for line in history)


def test_the_benchmark_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no experiment .thawing"):
        benchmark.reuse("thawing")
    run = trained(Experiment(runs=str(tmp_path), **SMALL), "anil", progress=False)
    path = run.experiment.checkpoint("anil")
    with pytest.raises(
        ValueError, match="was trained with ways=5, but 3 is asked for; add --ways 5"
    ):
        benchmark.reuse("freezing", checkpoints=str(path), ways=3, progress=False)


def test_halves_share_no_image() -> None:
    images = LabelledImages(
        torch.arange(14, dtype=torch.uint8)[:, None, None, None], torch.tensor([0] * 9 + [1] * 5)
    )
    first, second = benchmark.halved(images, most=4)
    assert first.images.flatten().tolist() == [0, 2, 4, 6, 9, 11, 13]
    assert second.images.flatten().tolist() == [1, 3, 5, 7, 10, 12]
