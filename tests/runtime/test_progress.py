"""Progress of long work where there is no terminal."""

from __future__ import annotations

import time

import pytest

from metalearn.runtime.progress import progress


def test_progress_is_plain_lines_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000, 5))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    with progress("decoding", 6, unit="image") as advance:
        for _ in range(6):
            advance(text="so far so good")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "decoding  3/6  so far so good  0.2 images/s  15 s left",
        "decoding  6/6  so far so good  0.2 images/s  took 30 s",
    ]


def test_nothing_is_written_when_it_is_not_shown_or_over_at_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for shown in (True, False):
        with progress("decoding", 2, shown=shown) as advance:
            advance(2)
    assert capsys.readouterr().err == ""
