"""The tables of the page on feature reuse, drawn from the results of `benchmarks.reuse`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain, starmap
from typing import Any

from benchmarks.harness.markdown import NONE, estimate, mean_std, number, over_seeds, table
from benchmarks.harness.rows import RESULTS as FOLDER
from benchmarks.harness.rows import Row, load
from benchmarks.papers.figures import BETWEEN, FREEZING, GRADIENTS, OH, PROFILE, RAGHU, REGIMES
from metalearn.runtime.tables import Table

from .common import Runs, problem, shown_and_superseded

RESULTS = FOLDER / "reuse.jsonl"
PROBLEM = ("dataset", "ways", "shots", "preset", "queries")
Line = tuple[str, ...]


# Which rows


def rows(experiment: str) -> list[Row]:
    """The rows of one experiment, oldest first."""
    return [row for row in load(RESULTS) if row["experiment"] == experiment]


def parted(experiment: str, *keys: str) -> tuple[list[Row], list[Row]]:
    """The rows of an experiment that are shown, and those that longer runs supersede.

    Args:
        experiment: freezing, similarity, ...
        keys: what a row stands for besides its problem and its seeds.
    """

    def setting(row: Row) -> str:
        # Some experiments have a row a seed, others a row for all seeds.
        seeds = row.get("seed", row["seeds"])
        return json.dumps([problem_of(row), seeds, *(row[key] for key in keys)])

    return shown_and_superseded(rows(experiment), setting, trained_steps)


def problem_of(row: Row) -> list[Any]:
    """What distinguishes two problems: data, protocol and preset, not the length of training."""
    return [*(row[name] for name in PROBLEM), row["data"].get("protocol")]


def trained_steps(row: Row) -> int:
    """Outer steps of all networks of a row together."""
    runs = chain.from_iterable(row["trained"].values())
    return sum(run["trained_steps"] for run in runs)


def newest(experiment: str, *keys: str) -> list[Row]:
    """The shown rows of an experiment."""
    return parted(experiment, *keys)[0]


def grouped(experiment: str, *keys: str) -> list[list[Row]]:
    """The shown rows of an experiment that has a row a seed: the seeds of one problem together."""
    return by_problem(newest(experiment, *keys), *keys)


def by_problem(chosen: Iterable[Row], *keys: str) -> list[list[Row]]:
    """Rows of one problem and `keys` together."""
    groups: dict[str, list[Row]] = {}
    for row in chosen:
        key = json.dumps([problem_of(row), *(row[key] for key in keys)])
        groups.setdefault(key, []).append(row)
    return list(groups.values())


# Tables, each of the rows that it is given


def freezing(chosen: Sequence[Row]) -> Table:
    """Accuracy with the first k layers frozen at test time, and the paper's beside it."""
    runs = Runs(RESULTS)
    # The first step freezes nothing; each later one freezes a layer more.
    steps = chain.from_iterable(row["rows"][1:] for row in chosen)
    layers = list(dict.fromkeys(step["layers"][-1] for step in steps))
    to = [f"to {name}" for name in layers]
    columns = ("data, ways, shots", "network", "seeds x steps", "nothing", *to, "run")
    lines: list[Line] = []
    for row in chosen:
        accuracies = {last_frozen(step): mean_std(step["accuracy"], 100, 2) for step in row["rows"]}
        cells = [accuracies.get(name, NONE) for name in ("", *layers)]
        named = (problem(row), row["algorithm"], seeds_and_steps(row))
        lines.append((*named, *cells, runs.of(row)))
        paper = FREEZING.get((row["dataset"], row["ways"], row["shots"], row["algorithm"]))
        if paper:
            published = [f"{mean:g} ± {std:g}" for mean, std in paper]
            lines.append(("", RAGHU, "3 seeds", *published, ""))
    return table(columns, lines)


def last_frozen(step: Row) -> str:
    """The last of the frozen layers; nothing if none is."""
    if step["layers"]:
        return str(step["layers"][-1])
    return ""


def similarity(chosen: Sequence[Row]) -> Table:
    """Similarity of independently trained networks, averaged over the body."""
    runs = Runs(RESULTS)
    measures = {
        "cca": "CCA",
        "cca_pooled": "CCA, pooled",
        "cka": "CKA",
        "cka_biased": "CKA, biased",
    }
    headers: list[str] = []
    for name in measures.values():
        headers += [name, "by chance"]
    columns = ("data", "networks", "pairs", *headers, f"{RAGHU}: CCA / CKA", "run")
    lines = []
    for row in chosen:
        cells: list[str] = []
        for measure in measures:
            key = written_as(measure, row["body"])
            if key:
                cells += [mean_std(row["body"][key], unit="pair"), number(row["floor"][key])]
            else:
                cells += [NONE, NONE]
        # The paper has these pairs on miniImageNet alone, whatever our data.
        published = ""
        paper = BETWEEN.get(frozenset(row["groups"]))
        if paper:
            published = f"{paper[0]:.2f} / {paper[1]:.2f}"
        groups = " - ".join(row["groups"])
        if not row["apart"]:
            groups += " (same initial weights)"
        lines.append((problem(row), groups, str(row["pairs"]), *cells, published, runs.of(row)))
    return table(columns, lines)


def regimes(chosen: Sequence[Row]) -> Table:
    """Accuracy under NIL by what trained the body."""
    runs = Runs(RESULTS)
    columns = (
        "data, ways, shots",
        "body trained by",
        "seeds x steps",
        "NIL, %",
        "training",
        f"{RAGHU}, %",
        "run",
    )
    lines = []
    for row in chosen:
        published = ""
        paper = REGIMES.get((row["dataset"], row["ways"], row["shots"], row["algorithm"]))
        if paper:
            published = f"{paper[0]:g} ± {paper[1]:g}"
        seconds = [run["training_seconds"] for run in row["trained"][row["algorithm"]]]
        lines.append(
            (
                problem(row),
                row["algorithm"],
                seeds_and_steps(row),
                mean_std(row["accuracy"], 100, 2),
                f"{sum(seconds) / len(seconds) / 60:.1f} min a seed",
                published,
                runs.of(row),
            )
        )
    return table(columns, lines)


def profile(chosen: Sequence[Row]) -> Table:
    """What the inner loop changes, layer by layer, over seeds."""
    runs = Runs(RESULTS)
    groups = by_problem(chosen, "algorithm")
    names = layers_of(groups)
    lines: list[Line] = []
    for group in groups:
        first = group[0]
        network = f"{first['algorithm']}, {len(group)} seed{'s' * (len(group) > 1)}"
        for kind, pick in KINDS.items():
            cells = profile_cells(group, names, kind, pick)
            if cells:
                lines.append((problem(first), network, kind, *cells, runs.of(*group)))
        lines += published_profile(first)
    return table(("data", "network", "measure", *names, "run"), lines)


def profile_cells(
    group: Sequence[Row], names: Sequence[str], kind: str, pick: Callable[[Row, Row], float | None]
) -> list[str]:
    """One measure of each layer over seeds; nothing if no row has it."""
    # (layers, seeds)
    values = [list(starmap(pick, of_layer(group, name))) for name in names]
    if not kind.startswith("CCA"):
        return [over_seeds(seeds) for seeds in values]
    # Rows of one time have one kind of CCA alone.
    if all(seeds.count(None) == len(seeds) for seeds in values):
        return []
    # A mean over some of the seeds would not be that of the line's number of seeds.
    return [NONE if None in seeds else over_seeds(seeds) for seeds in values]


def published_profile(row: Row) -> list[Line]:
    """Oh et al.'s figures for a network on miniImageNet."""
    lines: list[Line] = []
    for kind, figures in (
        ("the same, biased", PROFILE),
        ("norm of the first inner gradient", GRADIENTS),
    ):
        if row["dataset"] == "mini-imagenet" and row["algorithm"] in figures:
            cells = [f"{value:g}" for value in figures[row["algorithm"]]]
            lines.append(("", f"{OH}, 5-shot", kind, *cells, ""))
    return lines


def heads(chosen: Sequence[Row]) -> Table:
    """Accuracy with and without the head, before and after adaptation, over seeds."""
    runs = Runs(RESULTS)
    names = ("head_before", "head_after", "headless_before", "headless_after")
    headers = [name.replace("_", ", ") for name in names]
    lines = []
    for group in by_problem(chosen, "algorithm"):
        first = group[0]
        cells = []
        for name in names:
            seeds = [row["reuse"]["accuracies"][name]["mean"] for row in group]
            cells.append(over_seeds(seeds, 100, 1))
        named = (problem(first), first["algorithm"], str(len(group)))
        lines.append((*named, *cells, runs.of(*group)))
    return table(("data, ways, shots", "network", "seeds", *headers, "run"), lines)


def decomposition(chosen: Sequence[Row]) -> Table:
    """The worth of adapting the body under a converged head, beside the cost of freezing it."""
    runs = Runs(RESULTS)
    measures = (
        "nothing frozen",
        "body frozen, own steps",
        "body frozen, converged",
        "head frozen",
        "worth of adapting the body",
    )
    columns = (
        "data, ways, shots",
        "network",
        "seeds x steps",
        *measures,
        "verdict over seeds",
        "of each seed, over tasks",
        "run",
    )
    lines = []
    for row in chosen:
        each = dict.fromkeys(seed["verdict"]["answer"] for seed in row["each"])
        verdicts = (row["pooled"]["verdict"]["answer"], "; ".join(each))
        named = (problem(row), row["algorithm"], seeds_and_steps(row))
        lines.append((*named, *decomposition_cells(row), *verdicts, runs.of(row)))
    return table(columns, lines)


def decomposition_cells(row: Row) -> list[str]:
    """The score under each condition, then the worth of adapting the body."""
    parts = row["pooled"]["decomposition"]
    if parts is None:
        return [NONE] * 5
    scores = {part["name"]: part["score"] for part in parts["conditions"]}
    # The condition is named by what the converged head starts from.
    start = {"zeros": "zeros", "initial": "its initialisation"}[parts["start"]]
    names = (
        "nothing frozen",
        "body frozen, head by its own steps",
        f"body frozen, head converged from {start}",
        "head frozen, body adapted",
    )
    return [*(estimate(scores[name], 100, 1) for name in names), estimate(parts["worth"], 100, 2)]


def cross_domain(chosen: Sequence[Row]) -> Table:
    """Accuracy on the data set of training and on another one."""
    runs = Runs(RESULTS)
    columns = (
        "trained on",
        "tested on",
        "network",
        "seeds x steps",
        "on the first, %",
        "on the second, %",
        "images of the second",
        "run",
    )
    lines = []
    for row in chosen:
        about = row["other_data"]
        images = []
        if "channels" in about:
            images.append(str(about["channels"]))
        if "resized" in about:
            images.append(f"{about['resized']} px")
        lines.append(
            (
                problem(row),
                row["other"],
                row["algorithm"],
                seeds_and_steps(row),
                mean_std(row["home"], 100, 2),
                mean_std(row["away"], 100, 2),
                "; ".join(images),
                runs.of(row),
            )
        )
    return table(columns, lines)


def probes(chosen: Sequence[Row]) -> Table:
    """Accuracy of a linear probe on each layer."""
    runs = Runs(RESULTS)
    names = list(dict.fromkeys(chain.from_iterable(row["accuracy"] for row in chosen)))
    layers = [f"{name}, %" for name in names]
    columns = ("data", "network", "seeds x steps", *layers, "classes, training images", "run")
    lines = []
    for row in chosen:
        accuracies = {name: mean_std(value, 100, 2) for name, value in row["accuracy"].items()}
        cells = [accuracies.get(name, NONE) for name in names]
        first = row["each"][0]
        images = f"{first['classes']}, {first['train']:,}"
        named = (row["dataset"], row["algorithm"], seeds_and_steps(row))
        lines.append((*named, *cells, images, runs.of(row)))
    return table(columns, lines)


def timeline(chosen: Sequence[Row]) -> Table:
    """Accuracy and similarity at several points of training."""
    runs = Runs(RESULTS)
    groups = by_problem(chosen, "algorithm", "step")
    names = layers_of(groups)
    columns = (
        "data",
        "network",
        "outer steps",
        "seeds",
        "accuracy, %",
        *(f"CKA {name}" for name in names),
        "freezing the body costs",
        "run",
    )
    lines = []
    for group in groups:
        first = group[0]
        # (layers, seeds)
        layers = [list(starmap(KINDS[CKA], of_layer(group, name))) for name in names]
        lines.append(
            (
                problem(first),
                first["algorithm"],
                f"{first['step']:,}",
                str(len(group)),
                over_seeds((row["evaluation"]["mean"] for row in group), 100, 2),
                *(over_seeds(seeds) for seeds in layers),
                over_seeds((cost_of_freezing(row) for row in group), 100, 2),
                runs.of(*group),
            )
        )
    return table(columns, lines)


def cost_of_freezing(row: Row) -> float | None:
    """The accuracy that freezing the whole body costs; None if it was not measured."""
    if not row["reuse"]["freezing"]:
        return None
    return float(row["reuse"]["freezing"]["rows"][-1]["cost"]["mean"])


# What a row holds


def written_as(measure: str, row: Row) -> str:
    """The key of a measure in a row; empty if the row lacks it.

    Rows from before `cca_pooled` hold pooled tasks under "cca".

    Example:
        >>> written_as("cca_pooled", {"cca": 0.5}), written_as("cca", {"cca": 0.5})
        ('cca', '')
        >>> written_as("cca", {"cca": 0.7, "cca_pooled": 0.5})
        'cca'
    """
    if "cca_pooled" in row:
        return measure
    return {"cca": "", "cca_pooled": "cca"}.get(measure, measure)


def mean_cca(layer: Row) -> float | None:
    """CCA a task, averaged over tasks; None in rows from before it was measured."""
    if not written_as("cca", layer):
        return None
    return float(layer["cca"]["mean"])


def pooled_cca(layer: Row) -> float | None:
    """CCA of the tasks pooled, in rows of either kind."""
    return layer[written_as("cca_pooled", layer)]


CKA = "CKA before and after, debiased"
# What a line of the profile shows: a number of a layer in a row.
KINDS: dict[str, Callable[[Row, Row], float | None]] = {
    CKA: lambda layer, row: layer["cka"]["mean"],
    "the same, biased": lambda layer, row: row["cka_biased"][layer["layer"]]["mean"],
    "CCA, mean over tasks": lambda layer, row: mean_cca(layer),
    "CCA, tasks pooled": lambda layer, row: pooled_cca(layer),
    "weights moved, relative": lambda layer, row: layer["relative_distance"]["mean"],
    "norm of the first inner gradient": lambda layer, row: layer["gradient"]["mean"],
    "cosine in a class, before": lambda layer, row: layer["intra"]["before"]["mean"],
    "cosine in a class, after": lambda layer, row: layer["intra"]["after"]["mean"],
    "cosine of two classes, before": lambda layer, row: layer["inter"]["before"]["mean"],
    "cosine of two classes, after": lambda layer, row: layer["inter"]["after"]["mean"],
}


def layers_of(groups: Sequence[Sequence[Row]]) -> list[str]:
    """The layers that any row has, in order."""
    layers = chain.from_iterable(group[0]["reuse"]["layers"] for group in groups)
    return list(dict.fromkeys(layer["layer"] for layer in layers))


def of_layer(chosen: Iterable[Row], name: str) -> list[tuple[Row, Row]]:
    """A layer in each row that has it, and the row."""
    layers = []
    for row in chosen:
        layers += [(layer, row) for layer in row["reuse"]["layers"] if layer["layer"] == name]
    return layers


def seeds_and_steps(row: Row) -> str:
    """How many seeds, and for how many outer steps."""
    steps = sorted({run["trained_steps"] for run in row["trained"][row["algorithm"]]})
    return f"{len(row['seeds'])} x {' or '.join(f'{step:,}' for step in steps)}"


# What is drawn

DRAWN: dict[str, tuple[Callable[[Sequence[Row]], Table], tuple[str, ...]]] = {
    "freezing": (freezing, ("freezing", "algorithm")),
    "similarity": (similarity, ("similarity", "groups")),
    "regimes": (regimes, ("regimes", "algorithm")),
    "profile": (profile, ("profile", "algorithm")),
    "decomposition": (decomposition, ("decomposition", "algorithm")),
    "heads": (heads, ("profile", "algorithm")),
    "cross_domain": (cross_domain, ("cross_domain", "algorithm", "other")),
    "probes": (probes, ("probes", "algorithm")),
    "timeline": (timeline, ("timeline", "algorithm", "step")),
}
"""What draws a table, and the experiment and keys of its rows."""


def shown(name: str) -> Table:
    """A table of the rows that are shown."""
    draw, keys = DRAWN[name]
    return draw(parted(*keys)[0])


def history(name: str) -> Table:
    """A table of the rows that longer runs supersede."""
    draw, keys = DRAWN[name]
    return draw(parted(*keys)[1])


def listing() -> str:
    """The runs behind the tables."""
    return Runs(RESULTS).listing()


TABLES: dict[str, Callable[[], Table | str]] = {"reuse_runs": listing}
for _name in DRAWN:
    TABLES[f"reuse_{_name}"] = partial(shown, _name)
    TABLES[f"reuse_{_name}_history"] = partial(history, _name)
