"""The tables and the pictures of the page on disagreement, drawn from the results."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np

from benchmarks.harness.markdown import over_seeds, table
from benchmarks.harness.rows import RESULTS as FOLDER
from benchmarks.harness.rows import Row, load
from metalearn.analysis.plotting.maps import strip
from metalearn.analysis.plotting.page import Section, write_page
from metalearn.runtime.statistics import Interval
from metalearn.runtime.tables import Table
from metalearn.tasks import glyphs
from transfer.experts.figures import triage_curves
from transfer.experts.probes import Contest, Prediction, contests_figure

from .common import Runs

RESULTS = FOLDER / "disagreement.jsonl"
PAIRS = {
    "votes": ("regression of the disagreement", "cross-entropy with the votes"),
    "majority": ("classifier of a high disagreement", "cross-entropy with the majority label"),
}
COLUMNS = (
    "AUC direct",
    "AUC via votes",
    "difference",
    "direct better, via better",
    "rank direct",
    "rank via votes",
)
GLYPHS = 6  # of the picture


def rows_of(part: str) -> list[Row]:
    """The newest row of each seed of a part, among those with the settings of the newest."""
    return newest(row for row in load(RESULTS) if row["part"] == part)


def newest(rows: Iterable[Row]) -> list[Row]:
    """The newest row of each seed, of those with the settings of the last one."""
    listed = list(rows)
    by_seed = {row["seed"]: row for row in listed if row["settings"] == listed[-1]["settings"]}
    return [by_seed[seed] for seed in sorted(by_seed)]


def compared(contests: Sequence[Row]) -> tuple[str, ...]:
    """The cells of one contest, measured under several seeds."""
    differences = [contest["auc_difference"] for contest in contests]
    # The interval over test items lies on one side of zero.
    higher = sum((difference["low"] or 0) > 0 for difference in differences)
    lower = sum((difference["high"] or 0) < 0 for difference in differences)
    return (
        _mean(contests, "direct", "auc"),
        _mean(contests, "via", "auc"),
        over_seeds(difference["value"] for difference in differences),
        f"{higher}, {lower} of {len(contests)} seeds",
        _mean(contests, "direct", "rank"),
        _mean(contests, "via", "rank"),
    )


def _mean(contests: Sequence[Row], way: str, score: str) -> str:
    return over_seeds(contest[way][score]["value"] for contest in contests)


def hidden() -> Table:
    """The case in which the theory holds."""
    rows = rows_of("hidden")
    columns = ("raters", *COLUMNS, "mean predicted, direct", "via votes", "true mean", "run")
    runs = Runs(RESULTS)
    lines = []
    for place, case in enumerate(rows[0]["cases"] if rows else []):
        cases = [row["cases"][place] for row in rows]
        contests = [case["contest"] for case in cases]
        means = [
            over_seeds(contest[way]["mean"] for contest in contests) for way in ("direct", "via")
        ]
        truth = over_seeds(case["mean"] for case in cases)
        cells = (str(case["raters"]), *compared(contests), *means, truth, runs.of(*rows))
        lines.append(cells)
    return table(columns, lines)


def probes() -> Table:
    """Every layer of the published network."""
    rows = rows_of("probes")
    runs = Runs(RESULTS)
    lines = []
    for place, layer in enumerate(rows[0]["layers"] if rows else []):
        contests = [row["layers"][place]["contest"] for row in rows]
        lines.append((layer["layer"], *compared(contests), runs.of(*rows)))
    return table(("layer", *COLUMNS, "run"), lines)


def heads() -> Table:
    """Small networks on the last features."""
    rows = rows_of("heads")
    lines = []
    for name, (direct, via) in PAIRS.items():
        if rows:
            cells = compared([row[name] for row in rows])
            lines.append((direct, via, *cells, Runs(RESULTS).of(*rows)))
    return table(("direct", "via votes", *COLUMNS, "run"), lines)


def network() -> Table:
    """A network end to end, from each start."""
    rows = rows_of("network")
    lines = []
    for start in rows[0]["starts"] if rows else []:
        for name, (direct, via) in PAIRS.items():
            cells = compared([row["starts"][start][name] for row in rows])
            lines.append((start, direct, via, *cells, Runs(RESULTS).of(*rows)))
    return table(("start", "direct", "via votes", *COLUMNS, "run"), lines)


def triage() -> Table:
    """Mean losses against the share that the algorithm decides, for every ranking."""
    rows = rows_of("triage")
    shares = (0.0, 0.25, 0.5, 0.75, 1.0)
    shown = [f"loss at {100 * share:.0f} %" for share in shares]
    lines = []
    for name in rows[0]["losses"] if rows else []:
        cells = []
        for share in shares:
            losses = [_at(row, name, share) for row in rows]
            cells.append(over_seeds(losses, digits=4))
        # Random rankings have no best share of their own: a line has its best end.
        best = over_seeds((row["best_share"].get(name) for row in rows), 100, 1)
        least = over_seeds((min(row["losses"][name]) for row in rows), digits=4)
        lines.append((name, *cells, best, least, Runs(RESULTS).of(*rows)))
    return table(("automated first by", *shown, "best share, %", "loss there", "run"), lines)


def _at(row: Row, name: str, share: float) -> float:
    place = int(np.abs(np.array(row["shares"]) - share).argmin())
    return row["losses"][name][place]


def answer() -> str:
    """Both results in two sentences, from the rows."""
    cases = rows_of("hidden")
    real = rows_of("probes")
    if not cases or not real:
        return "Not measured yet."
    contests = [row["cases"][0]["contest"] for row in cases]
    raters = cases[0]["cases"][0]["raters"]
    hidden_difference = over_seeds(contest["auc_difference"]["value"] for contest in contests)
    higher: list[str] = []
    lower: list[str] = []
    for place, layer in enumerate(real[0]["layers"]):
        cells = [row["layers"][place]["contest"]["auc_difference"] for row in real]
        if all((cell["low"] or 0) > 0 for cell in cells):
            higher.append(layer["layer"])
        if all((cell["high"] or 0) < 0 for cell in cells):
            lower.append(layer["layer"])
    return (
        f"Where a feature is hidden from the network, direct prediction has an AUC"
        f" {hidden_difference} higher than prediction via the votes ({raters} raters). On real"
        f" votes, in linear probes of {len(real[0]['layers'])} layers, direct prediction is better"
        f" under every seed in {_listed(higher)} and worse in {_listed(lower)}."
    )


def _listed(names: Sequence[str]) -> str:
    return f"{len(names)} ({', '.join(names)})" if names else "none"


def listing() -> str:
    """The runs behind the tables."""
    return Runs(RESULTS).listing()


TABLES: dict[str, Callable[[], Table | str]] = {
    "disagreement_answer": answer,
    "disagreement_hidden": hidden,
    "disagreement_probes": probes,
    "disagreement_heads": heads,
    "disagreement_triage": triage,
    "disagreement_network": network,
    "disagreement_runs": listing,
}


def report(path: str | PathLike[str], rows: Sequence[Row]) -> None:
    """Write a page with pictures of the parts that were measured, of the first seed of each.

    Args:
        path: the HTML file.
        rows: those of the benchmark.
    """
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row["part"], row)
    sections = [DRAWN[part](row) for part, row in first.items() if part in DRAWN]
    answers = [f"{part}: {row['said']}" for part, row in first.items()]
    write_page(path, "Disagreement of raters", ". ".join(answers), sections)


def _hidden_section(row: Row) -> Section:
    lines = [(f"{case['raters']} raters", *_cells(case["contest"])) for case in row["cases"]]
    images = glyphs("test", classes=GLYPHS, drawers=1).images[:, 0].float() / 255
    cut = images.clone()
    cut[:, :, images.shape[2] // 2 :] = 0
    text = (
        "Raters see a feature that the network does not, as if half of each image were cut away for"
        " it. The votes then are half and half for every input, though raters may agree."
    )
    captions = ["raters"] * GLYPHS + ["network"] * GLYPHS
    picture = strip([*images.numpy(), *cut.numpy()], captions)
    return Section(
        "Where the theory holds",
        [text],
        tables=[table(("votes", *_columns()), lines)],
        pictures={"What raters and the network see": picture},
    )


def _probes_section(row: Row) -> Section:
    layers = [layer["layer"] for layer in row["layers"]]
    contests = [contest_from(layer["contest"]) for layer in row["layers"]]
    lines = [(layer["layer"], *_cells(layer["contest"])) for layer in row["layers"]]
    return Section(
        "Real votes: every layer",
        [f"Trained on {row['train']} images of CIFAR-10N, tested on {row['test']} of CIFAR-10H."],
        tables=[table(("layer", *_columns()), lines)],
        pictures={"Direct and via the votes": contests_figure(layers, contests)},
    )


def _heads_section(row: Row) -> Section:
    lines = [(f"{PAIRS[name][0]}; {PAIRS[name][1]}", *_cells(row[name])) for name in PAIRS]
    return Section("Real votes: end to end", tables=[table(("losses", *_columns()), lines)])


def _network_section(row: Row) -> Section:
    lines = []
    for start, contests in row["starts"].items():
        for name, (direct, via) in PAIRS.items():
            lines.append((start, f"{direct}; {via}", *_cells(contests[name])))
    return Section(
        "Real votes: a whole network", tables=[table(("start", "losses", *_columns()), lines)]
    )


def _triage_section(row: Row) -> Section:
    curves = {name: np.array(losses) for name, losses in row["losses"].items()}
    chosen = (row["plan"]["share"], row["plan"]["loss"])
    figure = triage_curves(np.array(row["shares"]), curves, chosen, 1)
    return Section(
        "Who decides",
        [
            row["said"],
            "The oracle knows which answers of the network are wrong; the others do not.",
        ],
        pictures={"Mean loss against the share that the network decides": figure},
    )


DRAWN: dict[str, Callable[[Row], Section]] = {
    "hidden": _hidden_section,
    "probes": _probes_section,
    "heads": _heads_section,
    "network": _network_section,
    "triage": _triage_section,
}


def _columns() -> tuple[str, ...]:
    return ("AUC direct", "AUC via votes", "difference", "rank direct", "rank via votes")


def _cells(row: Row) -> tuple[str, ...]:
    contest = contest_from(row)
    return (
        contest.direct.auc.shown(),
        contest.via.auc.shown(),
        contest.auc_difference.shown("+.3f"),
        contest.direct.rank.shown(),
        contest.via.rank.shown(),
    )


def contest_from(row: Mapping[str, Any]) -> Contest:
    """The contest that a row records."""

    def interval(record: Mapping[str, Any]) -> Interval:
        # JSON has no NaN; and its keys may be sorted.
        values = [record[name] for name in Interval._fields]
        return Interval(*[math.nan if value is None else value for value in values])

    def prediction(record: Mapping[str, Any]) -> Prediction:
        return Prediction(interval(record["auc"]), interval(record["rank"]), record["mean"])

    return Contest(
        prediction(row["direct"]),
        prediction(row["via"]),
        interval(row["auc_difference"]),
        interval(row["rank_difference"]),
    )
