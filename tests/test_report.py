"""The report as text and as a page that needs nothing else."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch

from metalearn import ANIL, MAML, NIL
from metalearn.analysis import feature_reuse, report
from metalearn.analysis.plots import accuracy_bars, freezing_curve, layer_profile, rendered, save, summary
from metalearn.models import Conv4
from tests.test_reuse import tasks


@pytest.fixture(scope="module")
def reuses():
    torch.manual_seed(0)
    model = Conv4(3, channels=1, hidden=6, size=16)
    return [feature_reuse(learner, tasks(3)) for learner in (MAML(model, lr=0.2), ANIL(model, lr=0.2), NIL(model))]


class Page(HTMLParser):
    """The tags of a page, checked to be closed in order, with its links and words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_text_states_verdict_numbers_sizes_norm_and_rule(reuses):
    text = str(reuses[0])
    assert text.startswith(f"MAML: {reuses[0].verdict.answer}\n")
    layer = reuses[0].layers[0]
    assert f"{layer.cka.mean:.3f} ± {layer.cka.interval:.3f}" in text and "12 x 384" in text and "batch statistics" in text
    assert "lies above 0.9" in text and "Removing the head costs" in text and "3-way 2-shot, 4 queries" in text
    assert max(len(line) for line in text.split("\n\n")[2].splitlines()) < 120


def test_text_of_a_learner_without_an_inner_loop_says_so(reuses):
    text = str(reuses[2])
    assert text.startswith("NIL: does not adapt") and "nan" not in text and "frozen" not in text.split("CKA:")[0]


def test_the_page_is_whole_and_loads_nothing(reuses, tmp_path):
    reuses[0].report(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not page.open
    assert len(page.links) == 3 and all(link.startswith("data:image/svg+xml;base64,") for link in page.links)
    assert not re.search(r"https?://|@import|url\(|<script", text)
    words = " ".join(page.words)
    assert f"MAML: {reuses[0].verdict.answer}" in words and "How to read this page" in words and torch.__version__ in words
    assert "nan" not in words.lower().split()


def test_one_page_on_several_learners_has_a_section_each_and_the_results(reuses, tmp_path):
    report(
        reuses, tmp_path / "page.html", results=[{"learner": "MAML", "accuracy": "81.0 ± 0.4 %"}], settings={"command": "metalearn reuse"}
    )
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    words = " ".join(page.words)
    for piece in ("MAML", "ANIL", "NIL: does not adapt", "81.0 ± 0.4 %", "metalearn reuse", "by construction"):
        assert piece in words
    assert len(page.links) == 3 + 3


def test_what_users_name_is_escaped(reuses, tmp_path):
    hostile = replace(reuses[0], name="<script>alert(1)</script>", settings={"model": "<img src=x>"})
    report([hostile], tmp_path / "page.html", results=[{"<b>": "<i>"}], title="<u>")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    for raw in ("<script", "<img src=x", "<i>", "<u>"):
        assert raw not in text
    assert "&lt;script&gt;" in text


def test_an_empty_report_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no learners"):
        report([], tmp_path / "page.html")


def test_plots_are_written_by_their_ending(reuses, tmp_path):
    for kind, start in (("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")):
        reuses[0].plot(tmp_path / f"plot.{kind}")
        assert (tmp_path / f"plot.{kind}").read_bytes().startswith(start)
    with pytest.raises(ValueError, match="does not end in a kind of picture"):
        reuses[0].plot(tmp_path / "plot.txt")


def test_the_same_figure_gives_the_same_bytes(reuses):
    assert rendered(layer_profile(reuses[:1]), "svg") == rendered(layer_profile(reuses[:1]), "svg")


def test_the_pictures_show_the_numbers(reuses):
    axes = layer_profile(reuses[:1]).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["block1", "block2", "block3", "block4", "head"]
    curves = {line.get_label(): line.get_ydata() for line in axes.get_lines()}
    assert list(curves["CCA (tasks pooled)"]) == [layer.cca for layer in reuses[0].layers]
    frozen = freezing_curve(reuses).axes[0]
    shown = {line.get_label(): list(line.get_ydata()) for line in frozen.get_lines()}
    assert shown["MAML"] == pytest.approx([100 * row.accuracy.mean for row in reuses[0].freezing.rows])
    assert set(shown) == {"MAML", "ANIL"}
    bars = [bar.get_height() for bar in accuracy_bars(reuses[:1]).axes[0].patches]
    expected = reuses[0].accuracies
    means = (expected.head_before, expected.head_after, expected.headless_before, expected.headless_after)
    assert bars == pytest.approx([100 * estimate.mean for estimate in means])


def test_pictures_of_a_learner_without_an_inner_loop_and_of_many(reuses, tmp_path):
    save(summary(reuses[2:]), tmp_path / "nil.png")
    save(summary(reuses), tmp_path / "all.png")
    assert (tmp_path / "nil.png").stat().st_size > 10_000
