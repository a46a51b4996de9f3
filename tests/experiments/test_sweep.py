"""Many runs into one file: each once, in one process or several, whatever happens to some."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace

import pytest
from torch import nn

import metalearn.training.loop as training
from metalearn.__main__ import main
from metalearn.data.images import LabelledImages
from metalearn.evaluation import evaluate
from metalearn.experiments import sweep
from metalearn.experiments.experiment import Experiment
from metalearn.experiments.runs import restored
from metalearn.experiments.sweep import decisive, perform
from metalearn.experiments.sweep import sweep as run_sweep
from metalearn.runtime import files
from tests.helpers import rank_records

SMALL = {"steps": 2, "hidden": 4, "meta_batch": 2, "test_tasks": 5}


def problems(folder, seeds=(0, 1), **settings):
    return [
        Experiment(seed=seed, runs=str(folder / "runs"), **{**SMALL, **settings}) for seed in seeds
    ]


def lines(folder):
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def dying(ways: int) -> nn.Module:
    """A model whose process is killed while it is built."""
    os.kill(os.getpid(), signal.SIGKILL)
    return nn.Identity()


def test_a_row_for_every_algorithm_and_seed_with_all_that_is_behind_it(tmp_path):
    rows = run_sweep(problems(tmp_path), ["anil", "nil"], tmp_path / "rows.jsonl", progress=False)
    assert [(row["algorithm"], row["seed"], row["trained_by"]) for row in rows] == [
        ("anil", 0, "anil"), ("nil", 0, "anil"), ("anil", 1, "anil"), ("nil", 1, "anil"),
    ]  # fmt: skip
    assert rows == lines(tmp_path)
    for row in rows:
        run = restored(row["checkpoint"])
        tested = evaluate(run.tested(row["algorithm"]), run.experiment.testing_tasks(tasks=5))
        assert row["accuracy"] == pytest.approx(tested.mean)
        assert row["trained_steps"] == 2
        assert row["settings"]["outer_lr"] == 0.003
        assert files.load(row["checkpoint"])[1]["step"] == 2
        assert {
            "versions",
            "machine",
            "time",
            "threads",
            "tasks_run",
            "training_command",
            "training_seconds",
        } <= row.keys()
    assert len(list((tmp_path / "runs").glob("*.safetensors"))) == 2  # nil is tested on anil's body


def test_what_is_done_is_not_repeated_and_what_is_new_is_added(tmp_path, monkeypatch):
    rows = run_sweep(problems(tmp_path), ["protonet"], tmp_path / "rows.jsonl", progress=False)
    performed = []
    monkeypatch.setattr(
        sweep, "perform", lambda job, **options: performed.append(job) or perform(job, **options)
    )
    assert (
        run_sweep(problems(tmp_path), ["protonet"], tmp_path / "rows.jsonl", progress=False) == rows
    )
    assert performed == []
    more = run_sweep(
        problems(tmp_path, seeds=(0, 1, 2)), ["protonet"], tmp_path / "rows.jsonl", progress=False
    )
    assert [job.experiment.seed for job in performed] == [2]
    assert more[:2] == rows
    (tmp_path / "rows.jsonl").write_text(
        (tmp_path / "rows.jsonl").read_text()[:-40]
    )  # torn by a kill
    again = run_sweep(
        problems(tmp_path, seeds=(0, 1, 2)), ["protonet"], tmp_path / "rows.jsonl", progress=False
    )
    assert [job.experiment.seed for job in performed] == [2, 2]
    assert [row["accuracy"] for row in again] == [row["accuracy"] for row in more]
    text = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert len(text) == 4
    assert json.loads(text[-1]) == again[-1]
    other = run_sweep(
        problems(tmp_path, test_tasks=6), ["protonet"], tmp_path / "rows.jsonl", progress=False
    )
    assert [row["test_tasks"] for row in other] == [6, 6]


def test_a_run_that_was_interrupted_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    (whole,) = run_sweep(
        problems(tmp_path / "whole", (0,), steps=6),
        ["maml"],
        tmp_path / "whole.jsonl",
        progress=False,
    )
    asked, runs, stepped = problems(tmp_path, (0,), steps=6), [], []
    recorded, backward = training.record_settings, training.fill_gradients

    def step(*arguments):
        stepped.append(runs[-1].step)
        return backward(*arguments)

    def killed_at_four(*arguments):
        result = step(*arguments)
        if runs[-1].step == 3:
            runs[-1].save(asked[0].checkpoint("maml"))
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(
        training, "record_settings", lambda run, *rest: runs.append(run) or recorded(run, *rest)
    )
    monkeypatch.setattr(training, "fill_gradients", killed_at_four)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(asked, ["maml"], tmp_path / "rows.jsonl", progress=False)
    monkeypatch.setattr(training, "fill_gradients", step)
    (resumed,) = run_sweep(asked, ["maml"], tmp_path / "rows.jsonl", progress=False)
    assert stepped == [0, 1, 2, 3, 3, 4, 5]
    assert resumed["accuracy"] == whole["accuracy"]
    assert resumed["trained_steps"] == 6


def test_several_processes_give_the_figures_of_one_and_a_dead_one_stops_nobody(tmp_path, capsys):
    asked = [
        *problems(tmp_path),
        *problems(tmp_path, (0,), model="tests.experiments.test_sweep:dying"),
        *problems(tmp_path, (0,), dataset="nowhere"),
    ]
    rows = run_sweep(asked, ["protonet"], tmp_path / "rows.jsonl", processes=2)
    said = capsys.readouterr().err
    alone = run_sweep(
        problems(tmp_path / "alone"), ["protonet"], tmp_path / "alone.jsonl", progress=False
    )
    assert [row["accuracy"] for row in rows[:2]] == [row["accuracy"] for row in alone]
    assert rows[0]["threads"] == 1
    assert "process ended with exit code -9" in rows[2]["error"]
    assert "ValueError: there is no data set 'nowhere'" in rows[3]["error"]
    assert len(lines(tmp_path)) == 4
    assert "4 of 4 figures to go" in said
    assert "protonet, nowhere 5-way 1-shot, seed 0: failed: ValueError" in said
    repeated = run_sweep(asked[-1:], ["protonet"], tmp_path / "rows.jsonl", progress=False)
    assert "error" in repeated[0]
    assert len(lines(tmp_path)) == 5  # a failed run is tried again


def test_the_command_prints_a_table_and_its_exit_code_tells_of_failures(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    small = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
    command = [
        "sweep",
        "--algorithms",
        "protonet,nil-train",
        "--seeds",
        "0,1",
        "--ways",
        "3,5",
        *small,
        "--progress",
        "false",
    ]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "glyphs 3-way 1-shot" in out
    assert "(std over seeds)" in out
    assert "8 figures in sweep.jsonl" in out
    assert len((tmp_path / "sweep.jsonl").read_text().splitlines()) == 8
    with pytest.raises(SystemExit) as ended:
        main([*command, "--preset", "boil2021", "--shots", "1"])
    assert ended.value.code == 1
    assert "no settings for 'glyphs'" in capsys.readouterr().err
    assert main(["sweep", "--seeds", "0,one"]) == 2
    assert main(["sweep", "--algorithms", "mmal"]) == 2
    assert main(["sweep", "--processes", "0"]) == 2
    said = capsys.readouterr().err
    assert "seeds='0,one' are not whole numbers" in said
    assert "no algorithm 'mmal'" in said
    assert "processes=0 must be at least 1" in said


def append_many(path, who):
    for i in range(200):
        sweep.append(path, [{"who": who, "i": i, "text": "x" * 500}] * 2)


def test_lines_of_several_processes_do_not_tear_each_other(tmp_path, start):
    both = [start(append_many, tmp_path / "rows.jsonl", who) for who in "ab"]
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    found = lines(tmp_path)
    assert sorted((row["who"], row["i"]) for row in found) == sorted(
        (who, i) for who in "ab" for i in range(200) for _ in "xx"
    )


def sweep_by_command(rank, folder):
    os.chdir(folder)
    small = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
    return main(["sweep", "--algorithms", "protonet", "--seeds", "0,1,2", *small])


@pytest.mark.slow  # starts two ranks, each of which trains
def test_ranks_share_out_the_runs(tmp_path, start_ranks):
    for process in start_ranks(sweep_by_command):
        process.join(300)
    assert rank_records(tmp_path, "result") == [0, 0]
    printed, errors = (
        "".join((tmp_path / f"{name}{rank}").read_text() for rank in (0, 1))
        for name in ("output", "errors")
    )
    assert printed.count("3 figures in sweep.jsonl") == 1
    assert errors.count(": started") == 3
    rows = {
        row["seed"]: row["accuracy"]
        for row in map(json.loads, (tmp_path / "sweep.jsonl").read_text().splitlines())
    }
    alone = run_sweep(
        problems(tmp_path / "alone", (0, 1, 2)),
        ["protonet"],
        tmp_path / "alone.jsonl",
        progress=False,
    )
    assert [rows[seed] for seed in (0, 1, 2)] == [row["accuracy"] for row in alone]


def test_the_images_of_an_experiment_are_not_copied_to_tell_rows_apart(tmp_path, monkeypatch):
    problem = problems(tmp_path)[0]
    problem.data("test")  # loaded, and kept by the experiment
    before = decisive(replace(problem), "protonet")
    monkeypatch.setattr(
        LabelledImages,
        "__deepcopy__",
        lambda *_: pytest.fail("the images were copied"),
        raising=False,
    )
    assert decisive(problem, "protonet") == before
    assert not any(name.startswith("_") for name in before)
