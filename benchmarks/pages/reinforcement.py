"""The tables of the page on meta-reinforcement learning, drawn from its results."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from benchmarks.harness.markdown import NONE, over_seeds, table
from benchmarks.harness.rows import RESULTS as FOLDER
from benchmarks.harness.rows import Row, load
from metalearn.runtime.progress import duration
from metalearn.runtime.statistics import Estimate
from metalearn.runtime.tables import Table

from .common import Runs, device

RESULTS = FOLDER / "reinforcement.jsonl"
STEPS = 4  # columns: before adaptation, and after 1, 2 and 3 gradient steps


def grouped() -> list[list[Row]]:
    """The trainings, together if they differ in their seed alone; the newest of each seed."""
    groups: dict[Hashable, dict[int, Row]] = {}
    for row in load(RESULTS):
        if row["part"] == "returns":
            groups.setdefault((row["algorithm"], training(row)), {})[row["seed"]] = row
    return [list(rows.values()) for rows in groups.values()]


def training(row: Row) -> tuple[Any, ...]:
    """The environment and what else MAML and ANIL share in a fair comparison."""
    settings = row["settings"]
    sizes = [settings[name] for name in ("meta_batch", "episodes", "horizon")]
    return (row["environment"], row["steps"], *sizes, *row["hidden"])


def trained(rows: Sequence[Row]) -> str:
    """How the policies were trained, in a few words."""
    row = rows[0]
    settings = row["settings"]
    rejected = sum(each["rejected"] for each in rows)
    seconds = sum(each["seconds"] for each in rows) / len(rows)
    words = (
        f"{row['steps']:,} steps of {settings['meta_batch']} x {settings['episodes']} x"
        f" {settings['horizon']}, {duration(seconds)} a seed, {device(row)}"
    )
    if rejected:
        words += f"; {rejected} steps of TRPO not accepted"
    return words


def policy_returns() -> Table:
    """The returns of every environment and algorithm after each gradient step."""
    runs = Runs(RESULTS)
    after = [f"after {step}" for step in range(1, STEPS)]
    columns = ("environment", "algorithm", "before", *after, "trained by", "run")
    lines = []
    for rows in grouped():
        cells = [over_seeds(_returns(rows, step), digits=1) for step in range(STEPS)]
        first = rows[0]
        lines.append(
            (first["environment"], first["algorithm"], *cells, trained(rows), runs.of(*rows))
        )
    return table(columns, lines)


def _returns(rows: Sequence[Row], step: int) -> list[Any]:
    """The mean return after so many steps, one a seed."""
    return [row["returns"][step]["return"]["mean"] for row in rows if step < len(row["returns"])]


def pairs() -> dict[tuple[Any, ...], list[tuple[Row, Row]]]:
    """MAML's and ANIL's row of each seed that both have, by their training."""
    maml: dict[tuple[Any, ...], Row] = {}
    for rows in grouped():
        for row in rows:
            if row["algorithm"] == "maml":
                maml[*training(row), row["seed"]] = row
    paired: dict[tuple[Any, ...], list[tuple[Row, Row]]] = {}
    for rows in grouped():
        for row in rows:
            other = maml.get((*training(row), row["seed"]))
            if row["algorithm"] == "anil" and other is not None:
                paired.setdefault(training(row), []).append((other, row))
    return paired


def differences(paired: Sequence[tuple[Row, Row]], step: int) -> list[float]:
    """ANIL's return minus MAML's after so many gradient steps, one value a seed."""
    values = []
    for maml, anil in paired:
        returned = [row["returns"][step]["return"]["mean"] for row in (maml, anil)]
        values.append(returned[1] - returned[0])
    return values


def policy_pairs() -> Table:
    """ANIL's returns minus MAML's, paired by seed."""
    lines = []
    for (environment, steps, *_), paired in pairs().items():
        cells = []
        for step in range(STEPS):
            cells.append(Estimate.of(differences(paired, step)).shown("+.1f"))
        lines.append((environment, f"{steps:,}", *cells, str(len(paired))))
    after = [f"after {step}" for step in range(1, STEPS)]
    return table(("environment", "outer steps", "before", *after, "seeds"), lines)


def policy_layers() -> Table:
    """The similarity of each layer before and after adaptation."""
    runs = Runs(RESULTS)
    columns = ("environment", "algorithm", "layer", "CKA", "chance", "weights moved by", "run")
    lines = []
    for rows in grouped():
        first = rows[0]
        for place, layer in enumerate(first["layers"]):
            cells = [
                over_seeds([row["layers"][place][name]["mean"] for row in rows])
                for name in ("similarity", "chance", "moved")
            ]
            name = layer["layer"].removeprefix("network.")
            lines.append((first["environment"], first["algorithm"], name, *cells, runs.of(*rows)))
    return table(columns, lines)


def policy_body() -> Table:
    """The return that is lost if the body is held during adaptation."""
    runs = Runs(RESULTS)
    columns = (
        "environment",
        "algorithm",
        "all adapts",
        "head's rate times",
        "body held",
        "lost",
        "run",
    )
    lines = []
    for rows in grouped():
        first = rows[0]
        everything = over_seeds([row["all_adapts"] for row in rows], digits=1)
        for place, held in enumerate(first["body_held"]):
            cases = [row["body_held"][place] for row in rows]
            alone = over_seeds([case["return"] for case in cases], digits=1)
            lost = over_seeds([case["lost"]["mean"] for case in cases], digits=1)
            problem = (first["environment"], first["algorithm"], everything)
            lines.append((*problem, f"{held['factor']:g}", alone, lost, runs.of(*rows)))
    return table(columns, lines)


def policy_speed() -> Table:
    """Steps of HalfCheetah a second, of the newest run."""
    runs = Runs(RESULTS)
    columns = ("environments", "at once", "threads", "steps a second", "run")
    newest: dict[tuple[str, int, int], Row] = {}
    for row in load(RESULTS):
        if row["part"] == "speed":
            newest[row["side"], row["environments"], row["threads"]] = row
    lines = [
        (
            row["side"],
            str(row["environments"]),
            str(row["threads"]),
            f"{row['steps_per_second']:,.0f}",
            runs.of(row),
        )
        for row in newest.values()
    ]
    return table(columns, lines)


def listing() -> str:
    """The runs behind the tables."""
    return Runs(RESULTS).listing() or NONE


TABLES: dict[str, Callable[[], Table | str]] = {
    "policy_returns": policy_returns,
    "policy_pairs": policy_pairs,
    "policy_layers": policy_layers,
    "policy_body": policy_body,
    "policy_speed": policy_speed,
    "reinforcement_runs": listing,
}
