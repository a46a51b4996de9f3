"""The tables of the page on speed: the newest full-size row of each figure, device and threads."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable

from benchmarks.harness.markdown import NONE, mebibytes, multiple, table
from benchmarks.harness.markdown import seconds as said_time
from benchmarks.harness.rows import RESULTS as FOLDER
from benchmarks.harness.rows import Row, load
from benchmarks.speed import BARE, FILES, OURS, SETTINGS, WITH_PEERS
from metalearn.runtime.tables import Table

from .common import Runs

RESULTS = FOLDER / "speed.jsonl"
PEERS = ("learn2learn", "higher", "torchopt")
SCRIPT = "learn2learn's script after its import is changed"
IMAGES = [name for name, setting in SETTINGS.items() if setting.ways]
Line = tuple[str, ...]


# Which rows


def full_rows() -> list[Row]:
    """The full-size rows, oldest first: tasks, queries and width are the settings' own."""
    return [row for row in load(RESULTS) if "setting" not in row or is_full(row)]


def is_full(row: Row) -> bool:
    """Whether a row has the sizes of its setting, and execution was ours to choose or compiled."""
    setting = SETTINGS[row["setting"]]
    sizes = (row["tasks"], row["queries"], row["hidden"])
    as_set = sizes == (setting.tasks, 15, setting.hidden)
    return as_set and row["asked_execution"] in ("auto", "compiled")


def newest(figure: str) -> list[Row]:
    """The newest row of a figure for every place, setting and algorithm, by place and setting."""
    latest = {}
    for row in full_rows():
        if row["figure"] == figure:
            latest[place(row), row.get("setting"), row.get("algorithm")] = row
    order = list(SETTINGS)

    def position(row: Row) -> tuple[str, int]:
        return place(row), order.index(row.get("setting", order[0]))

    return sorted(latest.values(), key=position)


def place(row: Row) -> str:
    """A device, with how many threads, and whether in tf32 or compiled."""
    text = f"{row['device']}, {row['threads']} thread{'s' * (row['threads'] > 1)}"
    if row.get("tf32", False):
        text += ", tf32"
    if row.get("execution") == "compiled":
        text += ", compiled"
    return text


# Tables


def seconds() -> Table:
    """One meta-gradient: ours in seconds, and the peers as multiples of ours."""
    runs = Runs(RESULTS)
    rows = newest("time")
    columns = (
        "where",
        "setting",
        "algorithm",
        f"{OURS}, median (min)",
        "its tasks in",
        *PEERS,
        SCRIPT,
        "bfloat16",
        "x bare convolutions",
        "run",
    )
    lines: list[Line] = []
    for row in rows:
        peers = [peer(row, name) for name in (*PEERS, "compat")]
        ours = (own_time(row), row["execution"])
        rest = (bfloat16(row), bare_convolutions(row), runs.of(row))
        lines.append((*named(row), *ours, *peers, *rest))
    # The means stand below all settings, place by place.
    for where in dict.fromkeys(map(place, rows)):
        lines += means([row for row in rows if place(row) == where], where)
    return table(columns, lines)


def means(rows: Iterable[Row], where: str) -> list[Line]:
    """The geometric means over the image settings, an algorithm a line."""
    runs = Runs(RESULTS)
    setting = f"geometric mean of the {len(IMAGES)} image settings"
    lines = []
    for algorithm in WITH_PEERS:
        chosen = [row for row in rows if row["algorithm"] == algorithm and row["setting"] in IMAGES]
        cells = [geometric_mean(chosen, name) for name in PEERS]
        if any(cell != NONE for cell in cells):
            lines.append((where, setting, algorithm, "", "", *cells, "", "", "", runs.of(*chosen)))
    return lines


def geometric_mean(rows: Iterable[Row], peer_name: str) -> str:
    """The mean of a peer's multiples of our time; a dash unless every image setting has one."""
    ratios = [ratio(row, peer_name) for row in rows if peer_name in row["seconds"]]
    if len(ratios) != len(IMAGES):
        return NONE
    return multiple(statistics.geometric_mean(ratios))


def test() -> Table:
    """Adaptation and prediction at test time."""
    runs = Runs(RESULTS)
    second = "learn2learn, second order"
    columns = (
        "where",
        "setting",
        "algorithm",
        f"{OURS}, median (min)",
        *PEERS,
        "learn2learn as its examples evaluate",
        "run",
    )
    lines = []
    for row in newest("test"):
        as_examples = NONE
        if second in row["seconds"]:
            as_examples = multiple(ratio(row, second))
        peers = [peer(row, name) for name in PEERS]
        lines.append((*named(row), own_time(row), *peers, as_examples, runs.of(row)))
    return table(columns, lines)


def gradients() -> Table:
    """The largest difference of the meta-gradients, as a share of the largest entry."""
    runs = Runs(RESULTS)
    kinds = []
    for name in PEERS:
        kinds += [(name, "float64"), (name, "float32")]
    headers = [f"{name}, {precision}" for name, precision in kinds]
    lines = []
    for row in newest("gradients"):
        cells = [difference(row, name, precision) for name, precision in kinds]
        lines.append((*named(row), str(row["compared_tasks"]), *cells, runs.of(row)))
    return table(("where", "setting", "algorithm", "tasks", *headers, "run"), lines)


def difference(row: Row, name: str, precision: str) -> str:
    """The largest difference from a peer over the ways to run tasks."""
    apart = row["apart"][precision]
    values = [value for way, value in apart.items() if way.startswith(f"{name}, ")]
    if not values:
        return row["missing"].get(name, NONE)
    return f"{max(values):.0e}"


def memory() -> Table:
    """Peak memory of one meta-gradient."""
    runs = Runs(RESULTS)
    sides = (OURS, *PEERS)
    lines = []
    for row in newest("memory"):
        # A row has one thread and all threads.
        for threads, peaks in row["bytes"].items():
            cells = [peak(row, peaks, name) for name in sides]
            lines.append((*named(row), threads, *cells, runs.of(row)))
    return table(("where", "setting", "algorithm", "threads", *sides, "run"), lines)


def peak(row: Row, peaks: dict[str, int], name: str) -> str:
    """The peak of one side, or why there is none."""
    if name in peaks:
        return mebibytes(peaks[name])
    return str(row["missing"].get(name, NONE))


def rest() -> Table:
    """Sampling, and a whole run from a cold start."""
    columns = ("where", "figure", OURS, "learn2learn", "times", "run")
    return table(columns, [*sampling_lines(), *start_lines()])


# Figure -> side -> what is drawn.
SAMPLED = {
    "sampling": {
        "learn2learn": "the same images in memory",
        FILES: "learn2learn's own Omniglot, from its files",
    },
    "transforms": {
        "learn2learn": "random crop, colours and flip of each image of 32 x 32 pixels, normalised",
    },
}


def sampling_lines() -> list[Line]:
    """Episodes per second of ours and of learn2learn's sampler."""
    runs = Runs(RESULTS)
    figure = "episodes per second, 5-way 1-shot, 15 queries a class"
    lines: list[Line] = []
    for kind, sources in SAMPLED.items():
        for row in newest(kind):
            rates = {name: statistics.median(values) for name, values in row["rates"].items()}
            for name, source in sources.items():
                cells = (row["missing"].get("learn2learn", NONE), NONE)
                if name in rates:
                    cells = (f"{rates[name]:,.0f}", f"{rates[OURS] / rates[name]:.0f}")
                where = f"{row['device']}, 1 thread"
                ours = f"{rates[OURS]:,.0f}"
                lines.append((where, f"{figure}; {source}", ours, *cells, runs.of(row)))
    return lines


def start_lines() -> list[Line]:
    """The time of a short run in a fresh process."""
    runs = Runs(RESULTS)
    lines: list[Line] = []
    for row in newest("start"):
        figure = (
            f"{row['steps']} outer steps of {row['tasks']} tasks on Omniglot in a fresh process,"
            " nothing cached"
        )
        times = NONE
        if "learn2learn" in row["seconds"]:
            times = multiple(ratio(row, "learn2learn"))
        sides = (parts(row, OURS), parts(row, "learn2learn"))
        lines.append((place(row), figure, *sides, times, runs.of(row)))
    return lines


def parts(row: Row, side: str) -> str:
    """The time of a whole run with that of its parts."""
    if side not in row["seconds"]:
        return str(row["missing"].get(side, NONE))
    measured = row["parts"][side]
    shares = []
    for part in measured[0]:
        shares.append(f"{part} {said_time(statistics.median(run[part] for run in measured))}")
    return f"{said_time(median(row, side))} ({', '.join(shares)})"


def devices() -> Table:
    """Where the figures come from: a line a device and number of threads, with the versions."""
    runs = Runs(RESULTS)
    lines = []
    # The newest row of each place has its versions.
    for where, row in {place(row): row for row in full_rows()}.items():
        versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
        gaps = "".join(f"; {name} {why}" for name, why in row["missing"].items())
        lines.append((where, row["machine"], versions + gaps, row["commit"], runs.of(row)))
    return table(("where", "machine", "versions", "commit", "run"), lines)


# Cells


def named(row: Row) -> Line:
    """Place, setting, algorithm."""
    title = SETTINGS[row["setting"]].title
    steps = f"{row['inner_steps']} step{'s' * (row['inner_steps'] > 1)}"
    return place(row), f"{title}, {row['tasks']} tasks, {steps}", row["algorithm"]


def median(row: Row, side: str) -> float:
    """The median of the seconds of a side."""
    return statistics.median(row["seconds"][side])


def ratio(row: Row, side: str, of: str = OURS) -> float:
    """The median of one side over that of another; NaN if one was not timed."""
    if side not in row["seconds"] or of not in row["seconds"]:
        return math.nan
    return median(row, side) / median(row, of)


def own_time(row: Row) -> str:
    """Our median and minimum."""
    return f"{said_time(median(row, OURS))} ({said_time(min(row['seconds'][OURS]))})"


def peer(row: Row, name: str) -> str:
    """A peer's median as a multiple of ours, or why there is none."""
    if name in row["seconds"]:
        return f"{multiple(ratio(row, name))} ({said_time(median(row, name))})"
    if row["algorithm"] in WITH_PEERS:
        return str(row["missing"].get(name, NONE))
    return NONE


def bfloat16(row: Row) -> str:
    """How much faster ours is under bfloat16 autocast."""
    # NaN if it was not timed.
    faster = 1 / ratio(row, f"{OURS}, bfloat16")
    if math.isnan(faster):
        return NONE
    return f"{faster:.2f} x as fast"


def bare_convolutions(row: Row) -> str:
    """Ours as a multiple of the bare convolutions."""
    if BARE not in row["seconds"]:
        return NONE
    return f"{multiple(ratio(row, OURS, of=BARE))} ({said_time(median(row, BARE))})"


def listing() -> str:
    """The runs behind the tables."""
    return Runs(RESULTS).listing()


TABLES: dict[str, Callable[[], Table | str]] = {
    "speed": seconds,
    "speed_test": test,
    "speed_gradients": gradients,
    "speed_memory": memory,
    "speed_rest": rest,
    "speed_devices": devices,
    "speed_runs": listing,
}
