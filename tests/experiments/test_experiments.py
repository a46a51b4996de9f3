"""From names to runs, and the command line: its answers, its refusals, and its exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import metalearn as ml
from metalearn import experiments
from metalearn.__main__ import main
from metalearn.experiments.experiment import Experiment, parse
from metalearn.experiments.learners import WITHOUT_INNER_LOOP
from metalearn.experiments.presets import PRESETS, preset
from metalearn.runtime import files
from tests.helpers import Page

TINY = [
    "--steps",
    "2",
    "--hidden",
    "4",
    "--meta_batch",
    "2",
    "--test_tasks",
    "6",
    "--progress",
    "false",
    "--execution",
    "loop",
]


def run(*arguments: str) -> int:
    return main(list(arguments))


@pytest.fixture
def pictures(here: Path) -> Path:
    """A user's own folder of 14 class folders with 6 images each."""
    generator = np.random.default_rng(0)
    for label in range(14):
        folder = here / "pictures" / f"class{label:02}"
        folder.mkdir(parents=True)
        for number in range(6):
            Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(
                folder / f"{number}.png"
            )
    return here / "pictures"


def test_reuse_ends_with_a_verdict_a_page_and_its_numbers(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("reuse", *TINY, "--analysed_tasks", "4") == 0
    printed = capsys.readouterr().out
    assert any(
        f"MAML: {answer}" in printed
        for answer in ("feature reuse", "reuse below", "rapid learning", "undecided", "no verdict")
    )
    assert "± is 95 % over tasks" in printed
    page, facts = (here / "report.html").read_text(), json.loads((here / "report.json").read_text())
    assert all(image.startswith("data:image/svg+xml;base64,") for image in Page(page).links)
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert [row["learner"] for row in facts["results"]] == ["maml", "anil", "nil"]
    assert "does not adapt" in page
    assert all(row["accuracy"] in page and "tasks)" in row["accuracy"] for row in facts["results"])
    assert [one["name"] for one in facts["reuse"]] == ["MAML", "ANIL"]
    assert facts["reuse"][0]["tasks"] == 4
    assert "queries a class; norm: batch statistics" in facts["settings"]["protocol"]


def test_a_second_start_trains_nothing_again_and_more_steps_go_on(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    constant = [*TINY, "--schedule", "constant"]
    assert run("train", *constant) == 0
    (checkpoint,) = (here / "runs").glob("*.safetensors")
    first = files.load(checkpoint)
    assert run("train", *constant) == 0
    assert files.load(checkpoint)[1]["step"] == first[1]["step"] == 2
    assert run("train", *constant, "--steps", "3") == 0
    assert files.load(checkpoint)[1]["step"] == 3
    assert (
        run("evaluate", "--checkpoint", str(checkpoint), "--test_tasks", "6", "--progress", "false")
        == 0
    )
    assert (
        run(
            "reuse",
            "--checkpoint",
            str(checkpoint),
            "--test_tasks",
            "6",
            "--analysed_tasks",
            "3",
            "--progress",
            "false",
        )
        == 0
    )
    assert "maml on glyphs, 5-way 1-shot, test:" in capsys.readouterr().out


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(here: Path) -> None:
    def weights(seed: int, folder: str) -> torch.Tensor:
        experiment = Experiment(
            steps=2, hidden=4, meta_batch=2, seed=seed, runs=folder, execution="loop"
        )
        return torch.cat(
            [p.detach().flatten() for p in experiment.train("maml", progress=False)[0].parameters()]
        )

    assert torch.equal(weights(0, "a"), weights(0, "b"))
    assert not torch.equal(weights(0, "a"), weights(1, "a"))


@pytest.mark.parametrize("algorithm", [name for name in experiments.ALGORITHMS if name != "nil"])
def test_every_algorithm_trains_and_is_tested(algorithm: str, here: Path) -> None:
    experiment = Experiment(steps=1, hidden=4, meta_batch=2, test_tasks=3, execution="loop")
    done = experiments.compare(experiment, [algorithm], progress=False)
    assert len(done.evaluations[algorithm].per_episode) == 3
    assert done.learners[algorithm].steps == (
        0 if algorithm in WITHOUT_INNER_LOOP else experiment.settings(algorithm).test_steps
    )


def test_reuse_takes_the_learners_with_a_head_of_their_own(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["protomaml", "baseline", "baseline++", "r2d2"]
    options = ["--algorithms", ",".join(names), "--analysed_tasks", "2"]
    assert run("reuse", *TINY, *options, "--test_steps", "2") == 0
    facts = json.loads((here / "report.json").read_text())
    assert [row["learner"] for row in facts["results"]] == names
    # Baseline is tested on the body of the training on all classes, Baseline++ on its own.
    assert sorted(facts["settings"]["learners"]) == [
        "baseline++",
        "multiclass",
        "protomaml",
        "r2d2",
    ]


def test_a_checkpoint_of_baseline_plus_plus_is_tested_with_a_fresh_head(here: Path) -> None:
    assert run("train", *TINY, "--algorithm", "baseline++") == 0
    (checkpoint,) = (here / "runs").glob("*.safetensors")
    run_again = experiments.restored(checkpoint, execution="loop", test_steps=3)
    learner = run_again.tested()
    assert isinstance(learner, ml.BaselinePlusPlus) and learner.steps == 3
    assert type(run_again.learner.model.head).__name__ == "CosineHead"


def test_ones_own_folder_draws_the_class_split_by_seed_and_records_it(
    pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "--dataset",
        str(pictures),
        "--ways",
        "2",
        "--queries",
        "2",
        "--train_queries",
        "2",
        *TINY,
    ]
    assert (
        run("reuse", *arguments, "--algorithms", "maml", "--analysed_tasks", "3", "--hidden", "4")
        == 0
    )
    facts = json.loads(Path("report.json").read_text())
    assert facts["settings"]["data"] == str(pictures)
    experiment = Experiment(dataset=str(pictures), ways=2)
    names = [set(experiment.data(split).names) for split in ("train", "validation", "test")]
    assert sum(len(one) for one in names) == len(set.union(*names)) == 14


def test_torchvision_models_and_ones_own(
    pictures: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "mynet.py").write_text(
        "import torch\ndef tiny(ways):\n    return"
        " torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(),"
        " torch.nn.Linear(48, ways))\n"
    )
    monkeypatch.syspath_prepend(str(here))
    common = [
        "--dataset",
        str(pictures),
        "--ways",
        "2",
        "--queries",
        "2",
        "--train_queries",
        "2",
        *TINY,
    ]
    assert run("train", *common, "--model", "mynet:tiny") == 0
    learner = Experiment(dataset=str(pictures), ways=2, model="resnet18").learner("anil")
    assert learner.head == "fc"
    assert learner.model.fc.out_features == 2
    assert learner.settings()["norm"] == "batch statistics"
    grey = Experiment(model="squeezenet1_1").data("train")
    assert grey.images.shape[1] == 3


def test_a_checkpoint_remembers_how_it_is_tested_and_what_it_fixes(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run("train", *TINY, "--ways", "3", "--test_steps", "9", "--queries", "4", "--pool", "false")
        == 0
    )
    (checkpoint,) = map(str, (here / "runs").glob("*.safetensors"))
    trained = re.findall(r"\d+\.\d\d ± \d+\.\d\d", capsys.readouterr().out)
    assert (
        run("evaluate", "--checkpoint", checkpoint, "--test_tasks", "6", "--progress", "false") == 0
    )
    printed = capsys.readouterr().out
    assert "3-way 1-shot" in printed
    assert re.findall(r"\d+\.\d\d % ± \d+\.\d\d", printed) == [trained[0].replace(" ±", " % ±")]
    assert run("reuse", "--checkpoint", checkpoint, "--ways", "4") == 2
    assert "--ways is fixed by the run" in capsys.readouterr().err


def test_a_run_is_tested_on_images_of_another_size_and_kind(
    pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", *TINY, "--ways", "2", "--queries", "2") == 0
    (checkpoint,) = map(str, Path("runs").glob("*.safetensors"))
    assert (
        run(
            "evaluate",
            "--checkpoint",
            checkpoint,
            "--dataset",
            str(pictures),
            "--test_tasks",
            "5",
            "--progress",
            "false",
        )
        == 0
    )
    assert f"maml on {pictures}, 2-way 1-shot, test:" in capsys.readouterr().out


def test_a_run_tells_the_command_that_trains_it(here: Path) -> None:
    experiment = Experiment(
        steps=2, hidden=4, meta_batch=2, seed=3, runs=str(here), execution="loop"
    )
    learner, curve = experiment.train("anil", progress=False)
    trained = experiments.Run(experiment, "anil", learner, curve)
    command = trained.command().split()
    assert command[:2] == ["metalearn", "train"]
    asked = dict(zip(command[2::2], command[3::2], strict=True))
    assert (
        asked.items()
        >= {
            "--algorithm": "anil",
            "--steps": "2",
            "--hidden": "4",
            "--meta_batch": "2",
            "--seed": "3",
        }.items()
    )
    assert experiments.restored(experiment.checkpoint("anil")).command() == trained.command()


def test_settings_come_from_a_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("settings.yaml").write_text(
        "steps: 1\nhidden: 4\nmeta_batch: 2\ntest_tasks: 5\nprogress: false\nalgorithm: protonet\n"
    )
    assert run("train", "--config", "settings.yaml") == 0
    assert "5 test tasks" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--algorithm", "mmal"], "no algorithm .mmal.; choose from maml, fomaml"),
        (["train", "--dataset", "nowhere"], "no data set 'nowhere'"),
        (["train", "--dataset", "omniglot", "--root", "empty"], "--dataset glyphs"),
        (["train", "--ways", "1000"], "classes but ways=1000"),
        (["train", "--shots", "30"], "has 20 images but shots=30"),
        (["train", "--preset", "boil2021"], "no settings for 'glyphs'"),
        (["train", "--preset", "mine"], "no preset 'mine'; choose one of quick"),
        (["train", "--model", "resnet19"], "no model 'resnet19': .*resnet18"),
        (["train", "--model", "nowhere:net"], "'nowhere:net' cannot be imported"),
        (["train", "--lr", "1e30", "--steps", "3", "--hidden", "4"], "not finite"),
        (["train", "--execution", "quickly"], "no execution 'quickly'"),
        (
            ["train", "--precision", "half"],
            "precision='half'; choose float32 or float64 or tf32 or bfloat16",
        ),
        (
            ["train", "--weights", "DEFAULT"],
            "weights='DEFAULT' are torchvision's, but the model is 'conv4'",
        ),
        (["train", "--norm", "frozen"], "norm='frozen' keeps the statistics of pretrained weights"),
        (["train", "--device", "abacus"], "device='abacus' cannot be used here"),
        (
            ["train", "--model", "vit_b_16"],
            "vit_b_16 does not take images of 3 channels and 28x28 pixels .* try another --size",
        ),
        (["train", "--algorithm", "maml,anil"], "train takes one algorithm"),
        (["train", "--queries", "30"], "has 20 images but shots=1 and queries=30"),
        (["evaluate", "--checkpoint", "nothing.safetensors"], "no checkpoint nothing.safetensors"),
    ],
)
def test_input_that_cannot_be_used_is_one_line_that_names_it(
    arguments: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments, "--progress", "false") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("metalearn: ")
    assert re.search(message, error), error


def test_a_damaged_checkpoint_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("broken.safetensors").write_bytes(b"half a file")
    assert run("evaluate", "--checkpoint", "broken.safetensors") == 2
    assert "broken.safetensors is truncated or not a safetensors file" in capsys.readouterr().err


def train_for_long(folder: Path) -> None:
    os.chdir(folder)
    os.dup2(os.open("errors", os.O_WRONLY | os.O_CREAT), 2)
    small = ["--hidden", "4", "--meta_batch", "2", "--test_tasks", "5"]
    sys.exit(run("train", *small, "--steps", "100000"))


def test_ctrl_c_leaves_a_checkpoint_and_exits_with_130(
    here: Path, start: Callable[..., BaseProcess]
) -> None:
    process = start(train_for_long, here)
    until = time.monotonic() + 60
    while time.monotonic() < until:
        logs = list((here / "runs").glob("*.jsonl"))
        if logs and len(logs[0].read_text().splitlines()) > 3:
            break
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    errors = (here / "errors").read_text()
    assert process.exitcode == 130, errors
    assert "goes on from there" in errors
    (checkpoint,) = (here / "runs").glob("*.safetensors")
    assert files.load(checkpoint)[1]["step"] >= 3


def test_presets_say_whom_they_follow_and_scale_a_summed_loss() -> None:
    assert preset("finn2017", "omniglot", 5).lr == pytest.approx(0.4 * 5)
    assert preset("finn2017", "omniglot", 20).lr == pytest.approx(0.1 * 20)
    assert preset("finn2017", "mini-imagenet", 5).lr == pytest.approx(0.01 * 5)
    assert preset("boil2021", "mini-imagenet").lr == 0.5
    for name in PRESETS:
        for dataset in ("omniglot", "mini-imagenet"):
            try:
                assert len(preset(name, dataset).follows) > 20
            except ValueError as error:
                assert "no settings for" in str(error)  # noqa: PT017


def test_batch_norm_stays_put_in_the_inner_loop_where_the_paper_says_so(tmp_path: Path) -> None:
    experiment = Experiment(preset="finn2017", dataset="omniglot")
    learner = experiment.learner("maml", ml.models.Conv4(5, pool=False))
    assert not any(".norm." in name for name in learner.rates)
    assert "block1.conv.weight" in learner.rates


def test_algorithms_are_read_from_a_list() -> None:
    assert parse("MAML, anil,maml") == ["maml", "anil"]
    with pytest.raises(ValueError, match="choose from maml"):
        parse(",")


def test_training_ways_may_differ_where_no_head_is_trained(tmp_path: Path) -> None:
    problem = Experiment(train_ways=9, steps=2, hidden=4, meta_batch=1, runs=str(tmp_path))
    support = problem.training_tasks("protonet")[0].support
    assert len(support.targets.unique()) == 9
    assert len(problem.testing_tasks()[0].support.targets.unique()) == 5
    problem.train("protonet", progress=False)
    again = experiments.restored(problem.checkpoint("protonet"))
    assert again.experiment.settings("protonet").train_ways == 9
    assert "--train_ways 9" in again.command()
    with pytest.raises(ValueError, match=r"train_ways=9, but maml trains a head of 5 outputs"):
        problem.training_tasks("maml")
    # Records of earlier runs do not name them, and all were trained with the ways of the test.
    plain = Experiment(train_ways=5, hidden=4, runs=str(tmp_path))
    assert "train_ways" not in plain.to_dict("protonet")


def test_the_quick_preset_trains_prototypes_on_tasks_of_twenty_ways() -> None:
    chosen = Experiment(dataset="omniglot").settings("protonet")
    assert (chosen.train_ways, chosen.meta_batch) == (20, 1)
    assert Experiment(dataset="omniglot", ways=30).settings("r2d2").train_ways == 30
    assert Experiment(dataset="omniglot").settings("maml").train_ways is None
