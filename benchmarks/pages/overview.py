"""The short tables of benchmarks/README.md: at most ten rows and six columns a question."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from benchmarks.harness.markdown import estimate, multiple, percent, seconds, table
from benchmarks.harness.rows import RESULTS, Row, load
from benchmarks.papers.figures import ACCURACY, LAKE, ONE_SHOT, Figure
from metalearn.runtime.tables import Table

from . import costs, few_shot, init_strategies, one_shot, reuse, speed
from .common import problem

Line = tuple[str, ...]
PAPERS_PRESETS = ("finn2017", "raghu2020", "boil2021")
CPU = "cpu, 2 threads"
H100 = "NVIDIA H100 80GB HBM3, 8 threads"
STARTS = ("random", "mean_var", "through bn1", "through layer2", "full")


def accuracy() -> Table:
    """Each learner under the presets of the papers, with its longest training."""
    columns = (
        "data, ways, shots",
        "learner",
        "accuracy, %",
        "minus MAML",
        "outer steps",
        "paper, %",
    )
    lines = []
    for row in few_shot.parted()[0]:
        # The page has our own preset, 20 ways and NIL training.
        others = row["ways"] != 5 or row["algorithm"] == "nil-train"
        if others or row["preset"] not in PAPERS_PRESETS:
            continue
        minus = ""
        if row["minus"]:
            minus = estimate(row["minus"], 100, 1, sign=True)
        cells = (f"{percent(row['accuracy'], 1)} ± {percent(row['interval'], 1)}", minus)
        steps = f"{row['trained_steps']:,}"
        lines.append((problem(row), row["algorithm"], *cells, steps, published(row)))
    return table(columns, sorted(lines, key=lambda line: line[0], reverse=True))


def published(row: Row) -> str:
    """The first figure that a paper gives for a row; nothing if there is none."""
    key = (row["dataset"], row["ways"], row["shots"], row["algorithm"])
    figures: list[Figure] = ACCURACY.get(key, [])
    if not figures:
        return ""
    mean, spread, _, _ = figures[0]
    return f"{mean:g} ± {spread:g}"


def characters() -> Table:
    """The error on Lake et al.'s runs, beside theirs."""
    lines: list[Line] = []
    for row in load(one_shot.RESULTS):
        text = f"{percent(row['error'], 1)} ± {percent(row['interval'], 1)}"
        steps = f"{row['trained_steps'][0]:,}"
        lines.append((row["algorithm"], text, str(len(row["seeds"])), steps))
    for name, error in list(ONE_SHOT.items())[:2]:
        lines.append((f"{name} ({LAKE})", f"{error:g}", "", ""))
    return table(("learner", "error, %", "seeds", "outer steps"), lines)


def worth() -> Table:
    """The worth of adapting MAML's body."""
    columns = ("data", "seeds x steps", "accuracy, %", "worth, points", "verdict")
    lines = []
    for row in reuse.newest("decomposition", "algorithm"):
        if row["algorithm"] != "maml":
            continue
        parts = row["pooled"]["decomposition"]
        scores = {part["name"]: part["score"] for part in parts["conditions"]}
        lines.append(
            (
                problem(row),
                reuse.seeds_and_steps(row),
                estimate(scores["nothing frozen"], 100, 1),
                estimate(parts["worth"], 100, 1),
                row["pooled"]["verdict"]["answer"],
            )
        )
    return table(columns, lines)


def layer_maps() -> Table:
    """The time of a map of every layer against every layer, smallest and largest batch."""
    rows = [row for row in costs.map_times() if row["threads"] == 2]
    # The smallest and the largest batch; the page has those between.
    ends = (min(row["batch"] for row in rows), max(row["batch"] for row in rows))
    lines = []
    for row in rows:
        if row["batch"] in ends:
            networks = row["figure"].split(", ")[1]
            ours = seconds(statistics.median(row["seconds"]["similarity_map"]))
            others = [multiple(row["median_ratios"][name]) for name in ("torch_cka", "pytorch-cka")]
            lines.append((networks, str(row["batch"]), ours, *others))
    return table(("networks", "batch", "ours", "torch_cka", "pytorch-cka"), lines)


def meta_gradients() -> Table:
    """One meta-gradient on the image settings: ours, and learn2learn as a multiple."""
    columns = ("setting", "learner", "CPU, ours", "learn2learn", "H100, ours", "learn2learn")
    rows = {
        (speed.place(row), row["setting"], row["algorithm"]): row for row in speed.newest("time")
    }
    lines = []
    for setting in speed.IMAGES:
        if "20" in speed.SETTINGS[setting].title:
            continue  # 20 ways and first-order MAML are on the page
        for algorithm in ("maml", "anil"):
            cells: list[str] = []
            for where in (CPU, H100):
                row = rows[where, setting, algorithm]
                ours = seconds(speed.median(row, speed.OURS))
                cells += [ours, multiple(speed.ratio(row, "learn2learn"))]
            lines.append((speed.SETTINGS[setting].title, algorithm, *cells))
    return table(columns, lines)


def starts() -> Table:
    """Some starts of ResNet-18 with 500 radiographs: steps to the threshold and final AUC."""
    row = next(row for row in init_strategies.newest() if row["network"] == "resnet18")
    lines = []
    for final, steps in zip(row["final_tests"], row["steps_tests"], strict=True):
        if final["strategy"] in STARTS:
            lines.append(
                (
                    final["strategy"],
                    init_strategies.steps_to_threshold(steps),
                    init_strategies.against_random(steps, 1, 1),
                    estimate(final["estimate"], 100, 1),
                    init_strategies.against_random(final, 100, 1),
                )
            )
    return table(("start", "steps", "minus random", "AUC, %", "minus random"), lines)


def race() -> Table:
    """The newest race: steps and accuracy of each side after the same seconds."""
    ends = {(row["algorithm"], row["side"]): row["points"][-1] for row in costs.races()[0]}
    columns = ("learner", "steps, ours", "learn2learn", "accuracy, ours, %", "learn2learn")
    lines = []
    for algorithm in dict.fromkeys(name for name, _ in ends):
        if algorithm == "fomaml" or (algorithm, "learn2learn") not in ends:
            continue  # on the page
        sides = [ends[algorithm, side] for side in ("metalearn", "learn2learn")]
        steps = [f"{end['steps']:,}" for end in sides]
        accuracies = [
            f"{percent(end['accuracy'], 1)} ± {percent(end['interval'], 1)}" for end in sides
        ]
        lines.append((algorithm, *steps, *accuracies))
    return table(columns, lines)


def growth() -> Table:
    """Time and memory at both ends of each range."""
    newest = {(row["changed"], row["value"]): row for row in load(costs.SCALE)}
    columns = ("changed", "from, to", "time from", "time to", "memory from", "memory to")
    lines = []
    for changed in dict.fromkeys(name for name, _ in newest):
        if changed == "processes, testing":
            continue  # on the page
        values = [value for name, value in newest if name == changed]
        ends = [newest[changed, min(values)], newest[changed, max(values)]]
        times = [f"{row['median']:.2f} s" for row in ends]
        peaks = [costs.memory(row, "peak_bytes") for row in ends]
        lines.append((changed, f"{min(values)}, {max(values)}", *times, *peaks))
    return table(columns, lines)


def stored_figures(name: str, *starts_with: str) -> Table:
    """The newest rows of the figures of a file, in words."""
    newest = {row["figure"]: row["said"] for row in load(RESULTS / f"{name}.jsonl")}
    lines = []
    for figure, text in newest.items():
        if figure.startswith(starts_with):
            lines.append((figure, text))
    return table(("figure", "measured"), lines)


TABLES: dict[str, Callable[[], Table | str]] = {
    "overview_accuracy": accuracy,
    "overview_characters": characters,
    "overview_worth": worth,
    "overview_maps": layer_maps,
    "overview_speed": meta_gradients,
    "overview_starts": starts,
    "overview_race": race,
    "overview_growth": growth,
    "overview_measures": lambda: stored_figures("measures", "peak", "time"),
    "overview_finetuning": lambda: stored_figures("finetuning", ""),
    "overview_engine": lambda: stored_figures("engine", "time of one", "episodes"),
}
