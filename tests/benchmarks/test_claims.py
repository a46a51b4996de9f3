"""The numbers in the pages' sentences are those of the rows that they rest on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import claims
from benchmarks.pages import reuse

SENTENCES: dict[str, list[str]] = {}  # a claim may stand on several pages
for page in claims.PAGES:
    for claim, sentence in claims.sentences(page.read_text()):
        SENTENCES.setdefault(claim, []).append(sentence)


@pytest.mark.parametrize("name", claims.CLAIMS)
def test_a_sentence_has_the_numbers_of_its_rows(name: str) -> None:
    assert name in SENTENCES, f"no page has <!-- claim {name} -->"
    numbers = claims.CLAIMS[name]()
    assert numbers
    for sentence in SENTENCES[name]:
        assert not claims.missing(sentence, numbers), (
            f"the rows say {', '.join(numbers)}, and the sentence: {sentence}"
        )


def test_every_marked_sentence_has_a_computation() -> None:
    assert SENTENCES.keys() == claims.CLAIMS.keys()


def test_a_row_that_changes_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [json.loads(line) for line in reuse.RESULTS.read_text().splitlines()]
    for row in rows:
        if row["experiment"] == "freezing":
            for run in row["runs"]:
                run["rows"][-1]["cost"]["mean"] += 0.001
    changed = tmp_path / "reuse.jsonl"
    changed.write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setattr(reuse, "RESULTS", changed)
    numbers = claims.CLAIMS["freezing_omniglot"]()
    assert claims.missing(SENTENCES["freezing_omniglot"][0], numbers) == "17.8"


def test_a_table_ends_a_paragraph() -> None:
    page = "<!-- table one -->\n| 1.5 |\n<!-- end -->\nIt costs 2. <!-- claim first -->"
    assert [text.strip() for _, text in claims.sentences(page)] == ["It costs 2."]


def test_a_sentence_reaches_back_to_the_comment_before_it() -> None:
    page = (
        "Of no claim.\n\nIt costs 1.5 points\nhere. <!-- claim first --> It gains 2. <!-- claim"
        " second --> The rest, 3."
    )
    assert [(name, " ".join(text.split())) for name, text in claims.sentences(page)] == [
        ("first", "It costs 1.5 points here."),
        ("second", "It gains 2."),
    ]


@pytest.mark.parametrize(
    ("sentence", "numbers", "first_missing"),
    [
        ("costs 17.7 ± 1.1 points", ["17.7", "1.1"], ""),
        ("costs 17.7 ± 1.1 points.", ["1.1", "17.7"], "17.7"),
        ("costs 17.75 points", ["17.7"], "17.7"),
        ("costs -7.7 points", ["7.7"], "7.7"),
        ("costs -7.7 points", ["-7.7"], ""),
        ("after 12,600 steps", ["600"], "600"),
        ("after 600 steps", ["600"], ""),
        ("ends at 0.5.", ["0.5"], ""),
        ("once 16, then no more", ["16", "16"], "16"),
    ],
)
def test_numbers_are_compared_whole_and_in_order(
    sentence: str, numbers: list[str], first_missing: str
) -> None:
    assert claims.missing(sentence, numbers) == first_missing
