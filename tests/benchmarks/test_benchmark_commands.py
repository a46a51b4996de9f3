"""Benchmarks keep figures only in the file that is named, and every command on the pages can be
typed as it is printed.
"""

from __future__ import annotations

import importlib
import json
import re
import shlex
from pathlib import Path

import pytest
from jsonargparse import auto_parser

import transfer.__main__ as transfuse
from benchmarks import measures, rows
from metalearn import __main__ as command_line
from metalearn.runtime.options import Parser
from tests.helpers import ROOT

PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "README.md"]
METALEARN = {
    "reuse": command_line.reuse,
    "train": command_line.train,
    "evaluate": command_line.evaluate_checkpoint,
    "sweep": command_line.sweep,
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


def test_every_printed_command_is_understood() -> None:
    parsers = {
        "metalearn": auto_parser(
            METALEARN, prog="metalearn", as_positional=False, parser_class=Parser
        )
    }
    parsers["transfuse"] = auto_parser(
        {"compare": transfuse.compare}, prog="transfuse", as_positional=False, parser_class=Parser
    )
    commands = printed()
    assert len(commands) > 20
    for command in commands:
        words = shlex.split(command)
        if words[0] == "python":
            name = words[2].partition(".")[2]
            benchmark = getattr(importlib.import_module(words[2]), name)
            parsers.setdefault(name, auto_parser(benchmark, parser_class=Parser))
            words = [name, *words[3:]]
        try:
            parsers[words[0]].parse_args(words[1:])
        except SystemExit:
            pytest.fail(f"not understood: {command}")
        if "--precision tf32" in command:
            assert "--device cuda" in command


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
        "init_strategies",
        "measures",
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
