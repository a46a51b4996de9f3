"""The tables of `python -m benchmarks.speed`, drawn from its result file: the newest full-size row
of each figure, device and threads.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .reuse_tables import head, line
from .speed import BARE, FILES, OURS, SETTINGS, said_time

RESULTS = Path(__file__).parent / "results" / "speed.jsonl"
PEERS = ("learn2learn", "higher", "torchopt")
Row = dict[str, Any]


def seconds() -> str:
    """One meta-gradient: ours in seconds, the peers as multiples of ours, ours as a multiple of the
    bare convolutions.
    """
    found = newest("time")
    halved = f"{OURS}, bfloat16"
    columns = (
        *PEERS,
        "learn2learn's script after its import is changed",
        "bfloat16",
        "x bare convolutions",
    )
    lines = [
        head("where", "setting", "algorithm", f"{OURS}, median (min)", "its tasks in", *columns)
    ]
    for row in found:
        bare = (
            f"{multiple(row, OURS, of=BARE)} ({said_time(median(row, BARE))})"
            if BARE in row["seconds"]
            else "-"
        )
        faster = f"{1 / ratio(row, halved):.2f} x as fast" if halved in row["seconds"] else "-"
        lines.append(
            line(
                *named(row),
                own(row),
                row["execution"],
                *(peer(row, name) for name in (*PEERS, "compat")),
                faster,
                bare,
            )
        )
    return "\n".join([*lines, *(mean for where in places(found) for mean in means(found, where))])


def means(rows: Iterable[Row], where: str) -> list[str]:
    """The geometric means over the image settings, an algorithm a line."""
    images = [setting for setting, about in SETTINGS.items() if about.ways]
    lines = []
    for algorithm in ("maml", "fomaml", "anil"):
        chosen = [
            row
            for row in rows
            if place(row) == where and row["algorithm"] == algorithm and row["setting"] in images
        ]
        cells = []
        for name in PEERS:
            ratios = [ratio(row, name) for row in chosen if name in row["seconds"]]
            whole = len(ratios) == len(images)
            cells.append(
                f"{math.exp(statistics.fmean(map(math.log, ratios))):.2f} x" if whole else "-"
            )
        if any(cell != "-" for cell in cells):
            lines.append(
                line(
                    where,
                    f"geometric mean of the {len(images)} image settings",
                    algorithm,
                    "",
                    "",
                    *cells,
                    "",
                    "",
                    "",
                )
            )
    return lines


def test() -> str:
    """Adaptation and prediction at test time."""
    second = "learn2learn, second order"
    lines = [
        head(
            "where",
            "setting",
            "algorithm",
            f"{OURS}, median (min)",
            *PEERS,
            "learn2learn as its examples evaluate",
        )
    ]
    for row in newest("test"):
        as_examples = multiple(row, second) if second in row["seconds"] else "-"
        lines.append(line(*named(row), own(row), *(peer(row, name) for name in PEERS), as_examples))
    return "\n".join(lines)


def gradients() -> str:
    """The largest difference of the meta-gradients, of the largest entry."""
    lines = [
        head(
            "where",
            "setting",
            "algorithm",
            "tasks",
            *(f"{name}, {kind}" for name in PEERS for kind in ("float64", "float32")),
        )
    ]
    for row in newest("gradients"):
        cells = []
        for name in PEERS:
            for kind in ("float64", "float32"):
                apart = [
                    value
                    for key, value in row["apart"][kind].items()
                    if key.startswith(f"{name}, ")
                ]
                cells.append(f"{max(apart):.0e}" if apart else row["missing"].get(name, "-"))
        lines.append(line(*named(row), str(row["compared_tasks"]), *cells))
    return "\n".join(lines)


def memory() -> str:
    """Peak memory of one meta-gradient."""
    lines = [head("where", "setting", "algorithm", "threads", OURS, *PEERS)]
    for row in newest("memory"):
        for threads, used in row["bytes"].items():
            cells = (
                f"{used[name] / 2**20:.0f} MiB" if name in used else row["missing"].get(name, "-")
                for name in (OURS, *PEERS)
            )
            lines.append(line(*named(row), threads, *cells))
    return "\n".join(lines)


def rest() -> str:
    """Sampling, and a whole run from a cold start."""
    lines = [head("where", "figure", OURS, "learn2learn", "times")]
    for row in newest("sampling"):
        rates = {name: statistics.median(values) for name, values in row["rates"].items()}
        what, where = (
            "episodes per second, 5-way 1-shot, 15 queries a class",
            f"{row['device']}, 1 thread",
        )
        for name, how in (
            ("learn2learn", "the same images in memory"),
            (FILES, "learn2learn's own Omniglot, from its files"),
        ):
            theirs = rates.get(name)
            cells = (
                (f"{theirs:,.0f}", f"{rates[OURS] / theirs:.0f}")
                if theirs
                else (row["missing"].get("learn2learn", "-"), "-")
            )
            lines.append(line(where, f"{what}; {how}", f"{rates[OURS]:,.0f}", *cells))
    for row in newest("start"):
        what = (
            f"{row['steps']} outer steps of {row['tasks']} tasks on Omniglot in a fresh process,"
            " nothing cached"
        )
        times = multiple(row, "learn2learn") if "learn2learn" in row["seconds"] else "-"
        lines.append(line(place(row), what, split(row, OURS), split(row, "learn2learn"), times))
    return "\n".join(lines)


def split(row: Row, side: str) -> str:
    """A whole run with its parts."""
    if side not in row["seconds"]:
        return str(row["missing"].get(side, "-"))
    parts = {
        part: statistics.median(run[part] for run in row["parts"][side])
        for part in row["parts"][side][0]
    }
    return (
        f"{said_time(median(row, side))}"
        f" ({', '.join(f'{part} {said_time(value)}' for part, value in parts.items())})"
    )


def devices() -> str:
    """Where the figures come from: a line a device and number of threads, with the versions."""
    lines = [head("where", "machine", "versions", "commit", "command")]
    found = {place(row): row for row in every()}
    for where, row in found.items():
        stated = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
        gaps = "".join(f"; {name} {why}" for name, why in row["missing"].items())
        lines.append(
            line(where, row["machine"], stated + gaps, row["commit"], f"`{row['command']}`")
        )
    return "\n".join(lines)


def every() -> list[Row]:
    """The full-size rows, oldest first: those whose tasks, queries and width are the settings' own."""
    listed = (
        [json.loads(text) for text in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    )
    return [row for row in listed if "setting" not in row or _full(row)]


def _full(row: Row) -> bool:
    own = SETTINGS[row["setting"]]
    asked = row["asked_execution"] in ("auto", "compiled")
    return asked and (row["tasks"], row["queries"], row["hidden"]) == (own.tasks, 15, own.hidden)


def newest(figure: str) -> list[Row]:
    """The newest row of a figure for every place, setting and algorithm, in the order of the
    settings.
    """
    found = {
        (place(row), row.get("setting"), row.get("algorithm")): row
        for row in every()
        if row["figure"] == figure
    }
    return sorted(
        found.values(),
        key=lambda row: (
            place(row),
            list(SETTINGS).index(row["setting"]) if "setting" in row else 0,
        ),
    )


def place(row: Row) -> str:
    """A device, with how many threads, and whether in tf32 or compiled."""
    how = ", tf32" * row.get("tf32", False) + ", compiled" * (row.get("execution") == "compiled")
    return f"{row['device']}, {row['threads']} thread{'s' * (row['threads'] > 1)}{how}"


def places(rows: Iterable[Row]) -> list[str]:
    """Each place once."""
    return list(dict.fromkeys(place(row) for row in rows))


def named(row: Row) -> tuple[str, str, str]:
    """Place, setting, algorithm."""
    return (
        place(row),
        f"{SETTINGS[row['setting']].title}, {row['tasks']} tasks, {row['inner_steps']} steps",
        row["algorithm"],
    )


def median(row: Row, side: str) -> float:
    """Of the seconds of a side."""
    return statistics.median(row["seconds"][side])


def ratio(row: Row, side: str, of: str = OURS) -> float:
    """The median of one side over that of another."""
    return median(row, side) / median(row, of)


def multiple(row: Row, side: str, of: str = OURS) -> str:
    """That in words."""
    return f"{ratio(row, side, of):.2f} x"


def own(row: Row) -> str:
    """Our median and minimum."""
    return f"{said_time(median(row, OURS))} ({said_time(min(row['seconds'][OURS]))})"


def peer(row: Row, name: str) -> str:
    """A peer's median as a multiple of ours, or why there is none."""
    if name in row["seconds"]:
        return f"{multiple(row, name)} ({said_time(median(row, name))})"
    return (
        str(row["missing"].get(name, "-"))
        if row["algorithm"] in ("maml", "fomaml", "anil")
        else "-"
    )


TABLES: dict[str, Callable[[], str]] = {
    "speed": seconds,
    "speed_test": test,
    "speed_gradients": gradients,
    "speed_memory": memory,
    "speed_rest": rest,
    "speed_devices": devices,
}
