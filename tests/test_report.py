"""The report as text and as a page that needs nothing else."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch

from metalearn import ANIL, MAML, NIL
from metalearn.analysis import Estimate, feature_reuse, report
from metalearn.analysis.plots import (
    accuracy_bars,
    class_cosines,
    freezing_curve,
    layer_profile,
    paired_comparison,
    rendered,
    save,
    summary,
    timeline,
    weights_moved,
)
from metalearn.analysis.together import differences, over_seeds
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
    assert "The rule." in text and "no head, body adapted" in text and "3-way 2-shot, 4 queries" in text
    assert max(len(line) for line in text.split("\n\n")[2].splitlines()) < 120


def test_text_of_a_learner_without_an_inner_loop_says_so(reuses):
    text = str(reuses[2])
    assert text.startswith("NIL: does not adapt") and "nan" not in text and "frozen" not in text.split("CKA:")[0]


def test_the_page_is_whole_and_loads_nothing(reuses, tmp_path):
    reuses[0].report(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not page.open
    assert len(page.links) == 3 + 2 and all(link.startswith("data:image/svg+xml;base64,") for link in page.links)
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
    assert len(page.links) == 3 + 3 + 3


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
    assert list(curves["CCA (tasks pooled)"]) == [layer.cca_pooled for layer in reuses[0].layers]
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


def test_the_tables_of_weights_and_classes_hold_the_numbers(reuses):
    layer = reuses[0].layers[4]
    text = str(reuses[0])
    assert f"{layer.distance.mean:.3f} ± {layer.distance.interval:.3f}" in text
    assert f"{layer.inter.after.mean:.3f} ± {layer.inter.after.interval:.3f}" in text
    assert "Euclidean norm" in text and "at the meta-initialisation" in text and "not centred" in text
    moved = next(block for block in str(reuses[1]).split("\n\n") if block.startswith("layer  ") and "move by" in block)
    assert all("0, no rate" in line for line in moved.splitlines()[1:5])


def test_weights_moved_draws_what_is_not_zero(reuses):
    distances, gradients = weights_moved(reuses).axes
    drawn = {bars.get_label(): bars.lines[0].get_ydata() for bars in distances.containers}
    assert list(drawn["MAML"]) == [layer.relative_distance.mean for layer in reuses[0].layers]
    assert [bool(mean > 0) for mean in drawn["ANIL"]] == [False] * 4 + [True] and set(drawn) == {"MAML", "ANIL"}
    assert gradients.get_yscale() == "log"
    assert "no layer has a rate" in [text.get_text() for text in weights_moved(reuses[2:]).axes[1].texts]


def test_class_cosines_have_a_panel_a_learner_on_one_scale(reuses):
    panels = class_cosines(reuses).axes
    assert len(panels) == 3 and len({axes.get_ylim() for axes in panels}) == 1
    curves = {bars.get_label(): bars.lines[0].get_ydata() for bars in panels[0].containers}
    assert list(curves["two classes, after"]) == [layer.inter.after.mean for layer in reuses[0].layers]
    low, high = panels[0].get_ylim()
    assert all(
        low < mean < high for reuse in reuses for layer in reuse.layers for mean in (layer.intra.before.mean, layer.inter.after.mean)
    )


def test_the_paired_comparison_shows_differences_and_says_where_there_are_none(reuses):
    axes = paired_comparison(reuses).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["MAML minus ANIL", "MAML minus NIL", "ANIL minus NIL"]
    shown = [float(bars.lines[0].get_xdata()[0]) for bars in axes.containers]
    assert shown == pytest.approx([100 * one.estimate.mean for one in differences(reuses)])
    fewer = replace(reuses[1], evaluation=replace(reuses[1].evaluation, per_episode=torch.zeros(2, dtype=torch.float64)))
    assert any("not comparable" in text.get_text() for text in paired_comparison([reuses[0], fewer]).axes[0].texts)


def test_the_timeline_draws_each_layer_and_the_accuracy_and_is_embedded(reuses, tmp_path):
    steps, curve = [0, 100, 5000], [Estimate(1.0, 0.0), Estimate(0.9, 0.1), Estimate(0.8, 0.1)]
    figure = timeline(steps, {"block1": curve, "head": curve[::-1]}, curve)
    lines = {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].get_lines()}
    assert lines["head"] == [0.8, 0.9, 1.0]
    assert list(figure.axes[1].get_lines()[0].get_ydata()) == pytest.approx([100, 90, 80])
    with pytest.raises(ValueError, match="head has 2 points for 3 steps"):
        timeline(steps, {"head": curve[:2]}, curve)
    with warnings.catch_warnings():  # one point has no span to draw it over
        warnings.simplefilter("error")
        timeline([7], {"head": curve[:1]}, curve[:1])
    for name, some in (("one.html", reuses[:1]), ("three.html", reuses)):
        report(some, tmp_path / name, pictures={"How it came about": figure})
        page = Page((tmp_path / name).read_text(encoding="utf-8"))
        assert "How it came about" in " ".join(page.words) and not page.open


def test_a_page_on_pooled_seeds_has_their_table_and_says_what_the_interval_is_over(reuses, tmp_path):
    torch.manual_seed(1)
    other = feature_reuse(MAML(Conv4(3, channels=1, hidden=6, size=16), lr=0.2), tasks(3))
    pooled = over_seeds([reuses[0], other])
    pooled.report(tmp_path / "page.html")
    words = " ".join(Page((tmp_path / "page.html").read_text(encoding="utf-8")).words)
    for piece in ("Over seeds", "standard deviation over 2 seeds", "mean over 2 seeds", "Student's 95 % interval over seeds"):
        assert piece in words
    assert len(layer_profile([pooled]).axes[0].containers) == 2


def test_one_task_has_no_interval_anywhere_on_the_page(tmp_path):
    torch.manual_seed(0)
    model = Conv4(3, channels=1, hidden=6, size=16)
    report([feature_reuse(learner(model, lr=0.2), tasks(1)) for learner in (MAML, ANIL)], tmp_path / "page.html")
    words = " ".join(Page((tmp_path / "page.html").read_text(encoding="utf-8")).words)
    assert "One task gives no interval" in words and "(no interval)" in words and "nan" not in words.lower().split()
