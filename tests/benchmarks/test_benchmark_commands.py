"""Benchmarks keep figures only in the file that is named, and every command on the pages can be
typed as it is printed.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import auto_parser

import transfer.__main__ as transfuse
from benchmarks import measures, tables
from benchmarks.harness import rows
from benchmarks.harness.recipes import FILE, named_files, recipe_of, recipes
from benchmarks.harness.rows import RESULTS, load
from metalearn import __main__ as command_line
from metalearn.experiments.experiment import Experiment
from metalearn.runtime.options import Parser, listed
from tests.helpers import ROOT

PAGES = [ROOT / "README.md", *tables.PAGES]
METALEARN = {
    "reuse": command_line.reuse,
    "train": command_line.train,
    "evaluate": command_line.evaluate_checkpoint,
    "sweep": command_line.sweep,
    "rl": command_line.rl,
}


def printed() -> list[str]:
    """The commands on the pages, in code or on lines of their own, without those that are
    templates.
    """
    commands = set()
    for page in PAGES:
        for match in re.finditer(
            r"(?:`|^)((?:metalearn|transfuse|python -m benchmarks\.\w+) [^`\n#]*--[^`\n#]*)",
            page.read_text(),
            re.M,
        ):
            commands.add(match[1].strip())
    template = re.compile(r"[<>|…]|\.\.\.|[A-Z]{4,}|--help|--version")
    return sorted(command for command in commands if not template.search(command))


@cache
def parser(name: str) -> Parser:
    """The real parser of metalearn, transfuse, or a benchmark."""
    commands = {
        "metalearn": METALEARN,
        "transfuse": {"compare": transfuse.compare, "forget": transfuse.forget},
    }
    if name in commands:
        return auto_parser(commands[name], prog=name, as_positional=False, parser_class=Parser)
    benchmark = getattr(importlib.import_module(name), name.partition(".")[2])
    return auto_parser(benchmark, parser_class=Parser)


def parsed(command: str) -> Any:
    """The settings of a command, from the parser that it will meet."""
    words = shlex.split(command)
    if words[:2] == ["python", "-m"]:
        words = words[2:]
    try:
        return parser(words[0]).parse_args(words[1:])
    except SystemExit:
        pytest.fail(f"not understood: {command}")


def test_every_printed_command_is_understood() -> None:
    commands = printed()
    assert len(commands) > 100
    for command in commands:
        parsed(command)
        if "--precision tf32" in command:
            assert "--device cuda" in command


def runs() -> list[tuple[str, int, str, list[dict[str, Any]]]]:
    """(file of results, number, command, rows) of every run."""
    found = []
    for path in sorted(RESULTS.glob("*.jsonl")):
        commands: dict[str, list[dict[str, Any]]] = {}
        for row in load(path):
            commands.setdefault(row["command"], []).append(row)
        for number, (command, rows_of_run) in enumerate(commands.items(), 1):
            found.append((path.stem, number, command, rows_of_run))
    return found


def test_every_command_that_names_a_file_has_a_recipe_for_it() -> None:
    checked = 0
    for results, number, command, _ in runs():
        recipe = recipe_of(results, number)
        files = named_files(command)
        assert (recipe is None) == (not files), (results, number)
        if recipe is not None:
            checked += 1
            assert set(files) <= recipe.files.keys(), (results, number)
    assert checked > 30


def test_a_recipe_trains_as_long_as_the_rows_say() -> None:
    for results, number, _, rows_of_run in runs():
        recipe = recipe_of(results, number)
        if recipe is None or results == "init_strategies":
            continue
        trained = lengths(recipe.commands)
        for row in rows_of_run:
            if results == "few_shot":
                networks = [(row["body_trained_by"], row["trained_steps"])]
            else:
                networks = [
                    (name, run["trained_steps"])
                    for name, group in row["trained"].items()
                    for run in group
                    if name != "random"
                ]
            assert set(networks) <= trained, (results, number)


def lengths(commands: Sequence[str]) -> set[tuple[str, int]]:
    """(learner, outer steps) of all that some commands train."""
    found = set()
    for command in commands:
        if command.startswith("metalearn train"):
            settings = parsed(command).train
            found.add((settings.algorithm, settings.steps))
        elif command.startswith("python -m benchmarks.reuse"):
            settings = parsed(command)
            points = listed(settings.points) or [str(settings.steps)]
            for name in listed(settings.algorithms):
                found |= {(name, int(point)) for point in points}
    return found


@pytest.mark.slow  # the name of a checkpoint needs all images of its data set
@pytest.mark.parametrize("name", recipes())
def test_a_recipe_writes_the_files_that_it_names(name: str) -> None:
    recipe = recipes()[name]
    # The name of a checkpoint depends on the images, so these have to be there.
    real = any("--dataset" in command for command in recipe.commands)
    if real and not os.environ.get("METALEARN_DATA"):
        pytest.skip("METALEARN_DATA is not set: it names the folder with the real data sets")
    written = set()
    for command in recipe.commands:
        if command.startswith("python -c"):
            written |= set(FILE.findall(command))
        else:
            written |= checkpoints(command)
    assert set(recipe.files.values()) == written


def checkpoints(command: str) -> set[str]:
    """The checkpoints that a training command writes, by the code that names them."""
    if command.startswith("metalearn"):
        settings = parsed(command).train
        return {str(experiment(settings).checkpoint(settings.algorithm))}
    settings = parsed(command)
    points = listed(settings.points)
    found = set()
    for algorithm in listed(settings.algorithms):
        path = experiment(settings).checkpoint(algorithm)
        found.add(str(path))
        # The last point is the run itself.
        found |= {
            str(path.with_name(f"{path.stem}-step{point}.safetensors")) for point in points[:-1]
        }
    return found


def experiment(settings: Any) -> Experiment:
    """The problem of a command, on this machine's device; the data are not read."""
    names = {field.name for field in fields(Experiment)} & vars(settings).keys()
    values = {name: getattr(settings, name) for name in names}
    return Experiment(**{**values, "device": "cpu"})


def test_a_trial_run_keeps_nothing_unless_a_file_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = ROOT / "benchmarks" / "results" / "measures.jsonl"
    before = kept.read_bytes()
    measures.measures(examples=60, features=3, batch=20, rounds=1, figures=["time"])
    said = capsys.readouterr()
    assert "--results PATH" in said.err and "60 x 3" in said.out
    assert kept.read_bytes() == before
    measures.measures(
        examples=60,
        features=3,
        batch=20,
        rounds=1,
        figures="time",
        results=str(tmp_path / "new" / "rows.jsonl"),
    )
    assert json.loads((tmp_path / "new" / "rows.jsonl").read_text())["benchmark"] == "measures"
    rows.keep_in(None)


@pytest.mark.parametrize(
    "name",
    [
        "accuracy_time",
        "engine",
        "few_shot",
        "finetuning",
        "forgetting",
        "init_strategies",
        "measures",
        "omniglot_splits",
        "one_shot",
        "reuse",
        "scale",
        "similarity_map",
        "speed",
    ],
)
def test_every_benchmark_takes_a_file_of_results(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = auto_parser(
        getattr(importlib.import_module(f"benchmarks.{name}"), name), parser_class=Parser
    )
    assert parser.get_defaults().results is None
    assert getattr(parser.get_defaults(), "device", "auto") == "auto"
