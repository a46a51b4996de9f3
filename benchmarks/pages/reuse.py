"""The tables of `python -m benchmarks.reuse`, drawn from its result file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from .papers import BETWEEN, FREEZING, GRADIENTS, OH, PROFILE, RAGHU, REGIMES

RESULTS = Path(__file__).parent / "results" / "reuse.jsonl"
Row = dict[str, Any]


def freezing() -> str:
    """Accuracy with the first k layers frozen at test time, and the paper's beside it."""
    found = newest("freezing", "algorithm")
    layers = list(dict.fromkeys(one["layers"][-1] for row in found for one in row["rows"][1:]))
    lines = [
        head(
            "data, ways, shots",
            "network",
            "seeds x steps",
            "nothing",
            *(f"to {name}" for name in layers),
            "command",
        )
    ]
    for row in found:
        ours = {
            one["layers"][-1] if one["layers"] else "": spread(one["accuracy"], 100, 2)
            for one in row["rows"]
        }
        cells = [ours.get(name, "-") for name in ("", *layers)]
        lines.append(line(problem(row), row["algorithm"], trained(row), *cells, command(row)))
        theirs = FREEZING.get((row["dataset"], row["ways"], row["shots"], row["algorithm"]))
        if theirs:
            lines.append(
                line(
                    "", f"{RAGHU}", "3 seeds", *(f"{mean:g} ± {std:g}" for mean, std in theirs), ""
                )
            )
    return "\n".join(lines)


def similarity() -> str:
    """How alike independently trained networks are, averaged over the body."""
    lines = [
        head(
            "data",
            "networks",
            "pairs",
            "CCA",
            "its floor",
            "CCA, pooled",
            "its floor",
            "CKA",
            "its floor",
            "CKA, biased",
            "its floor",
            f"{RAGHU}: CCA / CKA",
            "command",
        )
    ]
    for row in newest("similarity", "groups"):
        cells: list[str] = []
        for measure in ("cca", "cca_pooled", "cka", "cka_biased"):
            kept = written_as(measure, row["body"])
            cells += (
                [spread(row["body"][kept], unit="pair"), number(row["floor"][kept])]
                if kept
                else ["-", "-"]
            )
        theirs = BETWEEN.get(frozenset(row["groups"]))
        said = f"{theirs[0]:.2f} / {theirs[1]:.2f}" if theirs else ""
        groups = " - ".join(row["groups"]) + ("" if row["apart"] else " (same initial weights)")
        lines.append(line(problem(row), groups, str(row["pairs"]), *cells, said, command(row)))
    return "\n".join(lines)


def regimes() -> str:
    """Accuracy under NIL by what trained the body."""
    lines = [
        head(
            "data, ways, shots",
            "body trained by",
            "seeds x steps",
            "NIL, %",
            "training",
            f"{RAGHU}, %",
            "command",
        )
    ]
    for row in newest("regimes", "algorithm"):
        theirs = REGIMES.get((row["dataset"], row["ways"], row["shots"], row["algorithm"]))
        said = f"{theirs[0]:g} ± {theirs[1]:g}" if theirs else ""
        seconds = [run["training_seconds"] for run in row["trained"][row["algorithm"]]]
        cells = (
            trained(row),
            spread(row["accuracy"], 100, 2),
            f"{sum(seconds) / len(seconds) / 60:.1f} min a seed",
            said,
        )
        lines.append(line(problem(row), row["algorithm"], *cells, command(row)))
    return "\n".join(lines)


def profile() -> str:
    """What the inner loop changes, layer by layer, over seeds; and accuracy with and without the
    head.
    """
    groups = grouped("profile", "algorithm")
    names = layers_of(groups)
    lines = [head("data", "network", "measure", *names, "command")]
    for rows in groups:
        first = rows[0]
        for k, (said, pick) in enumerate(KINDS.items()):
            values = [[pick(layer, row) for layer, row in of_layer(rows, name)] for name in names]
            if said.startswith("CCA") and all(value is None for of in values for value in of):
                continue  # rows of one kind alone have no line of the other
            # A mean over some of the seeds would not be that of the line's number of seeds.
            cells = ["-" if said.startswith("CCA") and None in of else over(of) for of in values]
            cells.append("" if k else command(first))
            lines.append(
                line(problem(first), f"{first['algorithm']}, {len(rows)} seeds", said, *cells)
            )
        for said, theirs in (
            ("the same, biased", PROFILE),
            ("norm of the first inner gradient", GRADIENTS),
        ):
            if first["dataset"] == "mini-imagenet" and first["algorithm"] in theirs:
                lines.append(
                    line(
                        "",
                        f"{OH}, 5-shot",
                        said,
                        *(f"{value:g}" for value in theirs[first["algorithm"]]),
                        "",
                    )
                )
    return "\n".join(lines)


def heads() -> str:
    """Accuracy with and without the head, before and after adaptation, over seeds."""
    columns = ("head_before", "head_after", "headless_before", "headless_after")
    lines = [
        head(
            "data, ways, shots", "network", "seeds", *(name.replace("_", ", ") for name in columns)
        )
    ]
    for rows in grouped("profile", "algorithm"):
        cells = [
            over((row["reuse"]["accuracies"][name]["mean"] for row in rows), 100, 1)
            for name in columns
        ]
        lines.append(line(problem(rows[0]), rows[0]["algorithm"], str(len(rows)), *cells))
    return "\n".join(lines)


def decomposition() -> str:
    """What adapting the body is worth under a head that is given every chance, beside what freezing
    it costs.
    """
    columns = (
        "nothing frozen",
        "body frozen, own steps",
        "body frozen, converged",
        "head frozen",
        "worth of adapting the body",
    )
    lines = [
        head(
            "data, ways, shots",
            "network",
            "seeds x steps",
            *columns,
            "verdict over seeds",
            "of each seed, over tasks",
            "command",
        )
    ]
    for row in newest("decomposition", "algorithm"):
        pooled = row["pooled"]
        name = (problem(row), row["algorithm"], trained(row))
        verdicts = (
            pooled["verdict"]["answer"],
            "; ".join(dict.fromkeys(each["verdict"]["answer"] for each in row["each"])),
        )
        if pooled["decomposition"] is None:
            lines.append(line(*name, *("-" for _ in columns), *verdicts, command(row)))
            continue
        parts = {part["name"]: part for part in pooled["decomposition"]["conditions"]}
        start = {"zeros": "zeros", "initial": "its initialisation"}[
            pooled["decomposition"]["start"]
        ]
        shown = (
            parts["nothing frozen"]["score"],
            parts["body frozen, head by its own steps"]["score"],
            parts[f"body frozen, head converged from {start}"]["score"],
            parts["head frozen, body adapted"]["score"],
        )
        cells = [estimate(score, 100, 1) for score in shown]
        worth = estimate(pooled["decomposition"]["worth"], 100, 2)
        lines.append(line(*name, *cells, worth, *verdicts, command(row)))
    return "\n".join(lines)


def cross_domain() -> str:
    """Accuracy at home and on another data set."""
    lines = [
        head(
            "trained on",
            "tested on",
            "network",
            "seeds x steps",
            "at home, %",
            "there, %",
            "images there",
            "command",
        )
    ]
    for row in newest("cross_domain", "algorithm", "other"):
        about = row["other_data"]
        said = "; ".join(
            str(about[key]) + (" px" if key == "resized" else "")
            for key in ("channels", "resized")
            if key in about
        )
        cells = (
            row["algorithm"],
            trained(row),
            spread(row["home"], 100, 2),
            spread(row["away"], 100, 2),
            said,
        )
        lines.append(line(problem(row), row["other"], *cells, command(row)))
    return "\n".join(lines)


def probes() -> str:
    """Accuracy of a linear probe on each layer."""
    found = newest("probes", "algorithm")
    names = list(dict.fromkeys(name for row in found for name in row["accuracy"]))
    lines = [
        head(
            "data",
            "network",
            "seeds x steps",
            *(f"{name}, %" for name in names),
            "classes, training images",
            "command",
        )
    ]
    for row in found:
        cells = [
            spread(row["accuracy"][name], 100, 2) if name in row["accuracy"] else "-"
            for name in names
        ]
        one = row["each"][0]
        lines.append(
            line(
                row["dataset"],
                row["algorithm"],
                trained(row),
                *cells,
                f"{one['classes']}, {one['train']:,}",
                command(row),
            )
        )
    return "\n".join(lines)


def timeline() -> str:
    """Accuracy and similarity at several points of training."""
    groups = grouped("timeline", "algorithm", "step")
    names = layers_of(groups)
    lines = [
        head(
            "data",
            "network",
            "outer steps",
            "seeds",
            "accuracy, %",
            *(f"CKA {name}" for name in names),
            "freezing the body costs",
            "command",
        )
    ]
    for rows in groups:
        first = rows[0]
        cells = [over(layer["cka"]["mean"] for layer, _ in of_layer(rows, name)) for name in names]
        cost = over(
            (
                (
                    row["reuse"]["freezing"]["rows"][-1]["cost"]["mean"]
                    if row["reuse"]["freezing"]
                    else None
                )
                for row in rows
            ),
            100,
            2,
        )
        accuracy = over((row["evaluation"]["mean"] for row in rows), 100, 2)
        lines.append(
            line(
                problem(first),
                first["algorithm"],
                f"{first['step']:,}",
                str(len(rows)),
                accuracy,
                *cells,
                cost,
                command(first),
            )
        )
    return "\n".join(lines)


def written_as(measure: str, row: Row) -> str:
    """The key of a measure in a row; empty if the row lacks it. Rows from before `cca_pooled` hold
    pooled tasks under "cca".

    Example:
        >>> written_as("cca_pooled", {"cca": 0.5}), written_as("cca", {"cca": 0.5}), written_as("cca", {"cca": 0.7, "cca_pooled": 0.5})
        ('cca', '', 'cca')
    """
    if "cca_pooled" in row:
        return measure
    return {"cca": "", "cca_pooled": "cca"}.get(measure, measure)


def mean_cca(layer: Row) -> float | None:
    """CCA a task, averaged over tasks; None in rows from before it was measured."""
    return layer["cca"]["mean"] if written_as("cca", layer) else None


def pooled_cca(layer: Row) -> float | None:
    """CCA of the tasks pooled, in rows of either kind."""
    return layer[written_as("cca_pooled", layer)]


KINDS: dict[str, Callable[[Row, Row], float | None]] = {
    "CKA before and after, debiased": lambda layer, row: layer["cka"]["mean"],
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
    return list(
        dict.fromkeys(layer["layer"] for same in groups for layer in same[0]["reuse"]["layers"])
    )


def of_layer(rows: Sequence[Row], name: str) -> list[tuple[Row, Row]]:
    """What each row says of a layer, and the row."""
    return [
        (layer, row) for row in rows for layer in row["reuse"]["layers"] if layer["layer"] == name
    ]


def newest(experiment: str, *keys: str) -> list[Row]:
    """The last row of each problem, seeds, training and `keys`, in the order in which they first
    came.
    """
    found: dict[str, Row] = {}
    for row in rows(experiment):
        found[json.dumps([identity(row), row["seeds"], *(row[key] for key in keys)])] = row
    return list(found.values())


def grouped(experiment: str, *keys: str) -> list[list[Row]]:
    """The last row of each seed, the seeds of one problem and `keys` together."""
    found: dict[str, dict[int, Row]] = {}
    for row in rows(experiment):
        found.setdefault(json.dumps([identity(row), *(row[key] for key in keys)]), {})[
            row["seed"]
        ] = row
    return [list(same.values()) for same in found.values()]


def identity(row: Row) -> list[Any]:
    """What distinguishes two problems.

    At a constant outer rate a longer training is the same run gone on.
    """
    runs = [run for same in row["trained"].values() for run in same]
    steps = sorted({run["trained_steps"] for run in runs if run["schedule"] != "constant"})
    protocol = row["data"].get("protocol")
    return [row[key] for key in ("dataset", "ways", "shots", "preset", "queries")] + [
        protocol,
        steps,
    ]


def rows(experiment: str) -> list[Row]:
    """The lines of one experiment, oldest first."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    return [row for row in map(json.loads, lines) if row["experiment"] == experiment]


def spread(one: Row, scale: float = 1, digits: int = 3, unit: str = "seed") -> str:
    """A mean with its standard deviation over seeds; a single one has none."""
    return number(one["mean"], scale, digits) + (
        f" ± {scale * one['std']:.{digits}f}" if one["std"] is not None else f" (one {unit})"
    )


def estimate(value: Row, scale: float = 1, digits: int = 3) -> str:
    """A mean with its 95 % interval over seeds; a single seed has none."""
    mean = number(value["mean"], scale, digits)
    return mean if value["interval"] is None else f"{mean} ± {scale * value['interval']:.{digits}f}"


def over(values: Iterable[float | None], scale: float = 1, digits: int = 3) -> str:
    """The mean and standard deviation (ddof=1) of one value a seed, in words."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean = sum(known) / len(known)
    if len(known) == 1:
        return f"{number(mean, scale, digits)} (one seed)"
    return (
        f"{number(mean, scale, digits)} ±"
        f" {scale * math.sqrt(sum((v - mean) ** 2 for v in known) / (len(known) - 1)):.{digits}f}"
    )


def number(value: float | None, scale: float = 1, digits: int = 3) -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None else f"{scale * value:.{digits}f}"


def trained(row: Row) -> str:
    """How many seeds, and for how many outer steps."""
    steps = sorted({run["trained_steps"] for run in row["trained"][row["algorithm"]]})
    return f"{len(row['seeds'])} x {' or '.join(f'{step:,}' for step in steps)}"


def problem(row: Row) -> str:
    """Data, ways and shots."""
    return f"{row['dataset']} {row['ways']}-way {row['shots']}-shot"


def command(row: Row) -> str:
    """What writes the row anew."""
    return f"`{row['command']}`"


def head(*columns: str) -> str:
    """The first two lines of a table."""
    return f"{line(*columns)}\n{'|---' * len(columns)}|"


def line(*cells: str) -> str:
    """One line of a table."""
    return f"| {' | '.join(cells)} |"


TABLES: dict[str, Callable[[], str]] = {
    "reuse_freezing": freezing,
    "reuse_similarity": similarity,
    "reuse_regimes": regimes,
    "reuse_profile": profile,
    "reuse_decomposition": decomposition,
    "reuse_heads": heads,
    "reuse_cross_domain": cross_domain,
    "reuse_probes": probes,
    "reuse_timeline": timeline,
}
