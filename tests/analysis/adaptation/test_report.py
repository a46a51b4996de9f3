"""The report as text and as a page that needs nothing else."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace

import pytest
import torch

from metalearn import ANIL, MAML, NIL
from metalearn.analysis import Estimate, feature_reuse, report
from metalearn.analysis.adaptation.figures import (
    class_cosines,
    decomposition_bars,
    freezing_curve,
    layer_profile,
    paired_comparison,
    summary,
    timeline,
    weights_moved,
)
from metalearn.analysis.adaptation.over_seeds import differences, over_seeds
from metalearn.analysis.adaptation.page import html
from metalearn.analysis.adaptation.tables import layer_by_layer, overview
from metalearn.analysis.adaptation.verdict import does_not_adapt, reused_by_construction, verdict
from metalearn.analysis.plotting.style import rendered
from metalearn.analysis.scales import SCALES
from metalearn.models import Conv4
from tests.helpers import Page, prototype_tasks


@pytest.fixture(scope="module")
def reuses():
    torch.manual_seed(0)
    model = Conv4(3, channels=1, hidden=6, size=16)
    return [
        feature_reuse(learner, prototype_tasks(3))
        for learner in (MAML(model, lr=0.2), ANIL(model, lr=0.2), NIL(model))
    ]


def test_the_text_states_verdict_numbers_sizes_norm_and_rule(reuses):
    text = str(reuses[0])
    assert text.startswith(f"MAML: {reuses[0].verdict.answer}\n")
    layer = reuses[0].layers[0]
    assert (
        f"{layer.cka.mean:.3f} ± {layer.cka.interval:.3f}" in text
        and "12 x 384" in text
        and "batch statistics" in text
    )
    assert (
        "The rule." in text
        and "no head, body adapted" in text
        and "3-way 2-shot, 4 queries" in text
    )
    assert max(len(line) for line in text.split("\n\n")[2].splitlines()) < 120


def test_text_of_a_learner_without_an_inner_loop_says_so(reuses):
    text = str(reuses[2])
    assert (
        text.startswith("NIL: does not adapt")
        and "nan" not in text
        and "frozen" not in text.split("CKA:")[0]
    )


def test_the_page_is_whole_and_loads_nothing(reuses, tmp_path):
    reuses[0].report(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not page.open
    assert len(page.links) == 3 + 2 and all(
        link.startswith("data:image/svg+xml;base64,") for link in page.links
    )
    assert not re.search(r"https?://|@import|url\(|<script", text)
    words = " ".join(page.words)
    assert (
        f"MAML: {reuses[0].verdict.answer}" in words
        and "How to read this page" in words
        and torch.__version__ in words
    )
    assert "nan" not in words.lower().split()


def test_one_page_on_several_learners_has_a_section_each_and_the_results(reuses, tmp_path):
    report(
        reuses,
        tmp_path / "page.html",
        results=[{"learner": "MAML", "accuracy": "81.0 ± 0.4 %"}],
        settings={"command": "metalearn reuse"},
    )
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    words = " ".join(page.words)
    for piece in (
        "MAML",
        "ANIL",
        "NIL: does not adapt",
        "81.0 ± 0.4 %",
        "metalearn reuse",
        "by construction",
    ):
        assert piece in words
    assert len(page.links) == 3 + 3 + 3


@pytest.fixture(scope="module")
def decided(reuses):
    """The same with verdicts, which untrained learners do not get."""
    judged = verdict(
        Estimate(-0.004, 0.002), {"block1": Estimate(0.99, 0.001), "block2": Estimate(0.9, 0.1)}
    )
    answers = (judged, reused_by_construction(["block1"]), does_not_adapt())
    return [replace(reuse, verdict=answer) for reuse, answer in zip(reuses, answers, strict=True)]


RESULTS = [
    {"learner": "MAML", "accuracy": "91.00 ± 1.00 % (600 tasks)", "training": "1 min"},
    {"learner": "ANIL", "accuracy": "92.00 ± 1.00 % (600 tasks)", "training": "1 min"},
    {
        "learner": "NIL",
        "accuracy": "93.00 ± 1.00 % (600 tasks)",
        "training": "1 min",
        "verdict": "does not adapt",
    },
]


@pytest.fixture(scope="module")
def pages(decided):
    """The words of a page on all learners, of one on two with results, and of one on the first
    alone.
    """
    texts = (html(decided), html(decided[:2], results=RESULTS), html(decided[:1]))
    return [[word.strip() for word in Page(text).words] for text in texts]


def test_every_learner_has_one_accuracy_with_its_number_of_tasks(decided, pages):
    accuracies = [re.findall(r"\d+\.\d+ ± \d+\.\d+ %[^|]*", "|".join(words)) for words in pages]
    own = [reuse.accuracies.own.shown(".1f", 100, " %") for reuse in decided]
    assert accuracies[0] == [f"{score} (3 tasks)" for score in own]
    assert accuracies[1] == [row["accuracy"] for row in RESULTS]
    assert "does not adapt" in pages[1]
    assert len(accuracies[2]) == 1 and accuracies[2][0].startswith(f"{own[0]} over 3 tasks")


def test_learners_of_one_name_keep_their_own_answers(decided):
    twins = [
        decided[0],
        replace(decided[0], verdict=verdict(Estimate(0.2, 0.01), {"block1": Estimate(0.5, 0.01)})),
    ]
    table = overview(twins)
    assert [row[table.columns.index("verdict")] for row in table.rows] == [
        "feature reuse",
        "rapid learning",
    ]
    table = overview(
        twins, [{"learner": "MAML", "training": "1 s"}, {"learner": "other", "training": "2 s"}]
    )
    assert [row[table.columns.index("verdict")] for row in table.rows] == [
        "feature reuse",
        "-",
        "rapid learning",
    ]
    assert table.columns[-1] == "training"


def test_the_layer_table_holds_the_numbers_of_the_answer_and_words_of_their_sign(decided, pages):
    reuse = decided[0]
    rows = layer_by_layer(reuse).rows
    assert [row[0] for row in rows] == [layer.layer for layer in reuse.layers]
    tables = (reuse.layers[:-1], reuse.decomposition.converged.rows[1:], reuse.freezing.rows[1:])
    for cells, layer, converged, paper in zip(rows[:-1], *tables, strict=True):
        assert all(cell in pages[2] for cell in cells)
        assert cells[1] == f"{layer.cka.mean:.3f} ± {layer.cka.interval:.3f}"
        for cell, cost in zip(
            cells[3:], (converged.cost, converged.added, paper.cost), strict=True
        ):
            *word, mean, _, interval = cell.split()
            assert float(mean) == pytest.approx(100 * abs(cost.mean), abs=0.006)
            assert float(interval) == pytest.approx(100 * cost.interval, abs=0.006)
            assert word == ([] if float(mean) == 0 else ["loses" if cost.mean > 0 else "gains"])
    assert rows[-1][3:] == ("-", "-", "-")
    frozen = [line.split("  ")[-1] for line in str(reuse.freezing).splitlines()[2:-1]]
    assert frozen == [row[5] for row in rows[:-1]]


def test_no_negative_cost_anywhere(decided, pages):
    for shown in (*map(" ".join, pages), *map(str, decided)):
        assert not re.search(r"costs? [+-]|(gains|loses|adds|removes) -|-0\.00(?!\d)", shown)


def test_the_criteria_have_the_same_status_on_the_page_and_in_the_terminal(decided, pages):
    criteria, terminal = decided[0].verdict.criteria, str(decided[0])
    assert [criterion.status for criterion in criteria] == ["holds", "holds", "open"]
    for criterion in criteria:
        words = pages[2][pages[2].index(criterion.text) :]
        assert next(word for word in words[1:] if word) == criterion.status
        assert re.search(rf"{re.escape(criterion.text)} +{criterion.status}\n", terminal)


def test_the_page_says_no_sentence_twice(pages):
    for words in pages:
        sentences = [word for word in words if len(word) > 60]
        assert len(sentences) == len(set(sentences))
    assert not any("not a finding" in word for word in pages[0])  # the verdict says so already


def test_the_page_has_rules_for_the_dark_for_small_screens_and_for_paper(pages):
    style = next(word for word in pages[2] if word.startswith(":root"))
    for rule in (
        "prefers-color-scheme: dark",
        "@media print",
        "break-after: avoid",
        "break-inside: avoid",
        "max-width: 40rem",
    ):
        assert rule in style


def test_what_users_name_is_escaped(reuses, tmp_path):
    hostile = replace(
        reuses[0], name="<script>alert(1)</script>", settings={"model": "<img src=x>"}
    )
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
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        "block1",
        "block2",
        "block3",
        "block4",
        "head",
    ]
    curves = {line.get_label(): line.get_ydata() for line in axes.get_lines()}
    assert list(curves["CCA (tasks pooled)"]) == [layer.cca_pooled for layer in reuses[0].layers]
    frozen = freezing_curve(reuses).axes[0]
    shown = {line.get_label(): line for line in frozen.get_lines()}
    for reuse in reuses[:2]:
        tables = {
            "converged head": reuse.decomposition.converged,
            "own steps (the paper's)": reuse.freezing,
        }
        for (name, table), style in zip(tables.items(), ("-", "--"), strict=True):
            line = shown.pop(f"{reuse.name}, {name}")
            assert list(line.get_ydata()) == pytest.approx(
                [100 * row.accuracy.mean for row in table.rows]
            )
            assert line.get_linestyle() == style
    assert not shown


def test_bars_to_the_right_are_gains_in_the_words_of_the_tables(reuses):
    axes = decomposition_bars(reuses).axes[0]
    gains = [bar.get_width() for bar in axes.patches]
    conditions = [
        condition for reuse in reuses[:2] for condition in reuse.decomposition.conditions[1:]
    ]
    assert gains == pytest.approx([-100 * condition.cost.mean for condition in conditions])
    words = [text.get_text() for text in axes.texts]
    assert words == [SCALES["accuracy"].against(condition.cost) for condition in conditions]
    for gain, said in zip(gains, words, strict=True):
        assert said.split()[0] == ("gains" if gain > 0 else "loses") or said.startswith("0.00 ")
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert (
        labels[0] == "MAML"
        and labels[1] == conditions[0].name
        and labels[len(labels) // 2] == "ANIL"
    )
    assert "to take apart" in decomposition_bars(reuses[2:]).axes[0].texts[0].get_text()


def test_pictures_of_a_learner_without_an_inner_loop_and_of_many(reuses):
    title, panels = summary(reuses).get_suptitle(), summary(reuses).axes
    assert title == "   ".join(f"{reuse.name}: {reuse.verdict.answer}" for reuse in reuses)
    assert [bool(axes.has_data()) for axes in panels] == [True, True, True]
    # NIL has no inner loop: nothing to freeze, and nothing to take apart.
    nil = summary(reuses[2:])
    assert nil.get_suptitle().startswith("NIL: ")
    similarity, freezing, parts = nil.axes
    assert similarity.get_lines()
    for axes in (freezing, parts):
        assert not axes.get_lines() and not axes.patches and axes.texts


def test_the_tables_of_weights_and_classes_hold_the_numbers(reuses):
    layer = reuses[0].layers[4]
    text = str(reuses[0])
    assert f"{layer.distance.mean:.3f} ± {layer.distance.interval:.3f}" in text
    assert f"{layer.inter.after.mean:.3f} ± {layer.inter.after.interval:.3f}" in text
    assert (
        "Euclidean norm" in text and "at the meta-initialisation" in text and "not centred" in text
    )
    moved = next(block for block in str(reuses[1]).split("\n\n") if "  move by  " in block)
    assert all("0, no rate" in line for line in moved.splitlines()[2:6])


def test_weights_moved_draws_what_is_not_zero(reuses):
    distances, gradients = weights_moved(reuses).axes
    drawn = {bars.get_label(): bars.lines[0].get_ydata() for bars in distances.containers}
    assert list(drawn["MAML"]) == [layer.relative_distance.mean for layer in reuses[0].layers]
    assert [bool(mean > 0) for mean in drawn["ANIL"]] == [False] * 4 + [True] and set(drawn) == {
        "MAML",
        "ANIL",
    }
    assert gradients.get_yscale() == "log"
    assert "no layer has a rate" in [
        text.get_text() for text in weights_moved(reuses[2:]).axes[1].texts
    ]


def test_class_cosines_have_a_panel_a_learner_on_one_scale(reuses):
    panels = class_cosines(reuses).axes
    assert len(panels) == 3 and len({axes.get_ylim() for axes in panels}) == 1
    curves = {bars.get_label(): bars.lines[0].get_ydata() for bars in panels[0].containers}
    assert list(curves["two classes, after"]) == [
        layer.inter.after.mean for layer in reuses[0].layers
    ]
    low, high = panels[0].get_ylim()
    assert all(
        low < mean < high
        for reuse in reuses
        for layer in reuse.layers
        for mean in (layer.intra.before.mean, layer.inter.after.mean)
    )


def test_the_paired_comparison_shows_differences_and_says_where_there_are_none(reuses):
    axes = paired_comparison(reuses).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "MAML minus ANIL",
        "MAML minus NIL",
        "ANIL minus NIL",
    ]
    shown = [float(bars.lines[0].get_xdata()[0]) for bars in axes.containers]
    assert shown == pytest.approx([100 * one.estimate.mean for one in differences(reuses)])
    fewer = replace(
        reuses[1],
        evaluation=replace(reuses[1].evaluation, per_episode=torch.zeros(2, dtype=torch.float64)),
    )
    assert any(
        "not comparable" in text.get_text()
        for text in paired_comparison([reuses[0], fewer]).axes[0].texts
    )


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


def test_a_page_on_pooled_seeds_has_their_table_and_says_what_the_interval_is_over(
    reuses, tmp_path
):
    torch.manual_seed(1)
    other = feature_reuse(MAML(Conv4(3, channels=1, hidden=6, size=16), lr=0.2), prototype_tasks(3))
    pooled = over_seeds([reuses[0], other])
    pooled.report(tmp_path / "page.html")
    words = " ".join(Page((tmp_path / "page.html").read_text(encoding="utf-8")).words)
    for piece in (
        "Over seeds",
        "standard deviation over 2 seeds",
        "mean over 2 seeds",
        "Student's 95 % interval over seeds",
    ):
        assert piece in words
    assert len(layer_profile([pooled]).axes[0].containers) == 2


def test_one_task_has_no_interval_anywhere_on_the_page(tmp_path):
    torch.manual_seed(0)
    model = Conv4(3, channels=1, hidden=6, size=16)
    report(
        [feature_reuse(learner(model, lr=0.2), prototype_tasks(1)) for learner in (MAML, ANIL)],
        tmp_path / "page.html",
    )
    words = " ".join(Page((tmp_path / "page.html").read_text(encoding="utf-8")).words)
    assert (
        "One task gives no interval" in words
        and "(no interval)" in words
        and "nan" not in words.lower().split()
    )
