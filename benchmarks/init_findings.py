"""The Transfusion paper's findings as rows: holds, does not hold, or not decidable at this size, each by a rule on paired seeds.

A finding compares two numbers of every seed. Both need `smallest_p(seeds) <= level`, the least that a sign-flip test can reach: six seeds
at 0.05; with five nothing is decided. Steps to the threshold are compared where every seed of both reached it.

- *less* (a is less than b) holds where the paired t test says so after Holm over the findings of the table; it does not hold where the
  test says the opposite, or where the interval of the difference shows that a is less by no more than the margin; otherwise it is not decidable.
- *same* (a is b within the margin) holds where the interval of the difference lies within the margin on both sides; it does not hold
  where it lies outside of it; otherwise it is not decidable.

Margins, set before the runs: 1 point of a final score; a fifth of random's mean steps to the threshold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.console import Console
from rich.table import Table

from metalearn.analysis import Estimate
from transfer import Comparison
from transfer.statistics import holm, over_seeds, paired, smallest_p

POINT = 0.01  # of a final score
PART = 0.2  # of random's steps
HOLDS, FAILS, OPEN = "holds", "does not hold", "not decidable at this size"
Steps = Sequence[float | None]


@dataclass(frozen=True)
class Measured:
    """The final scores and the steps to the threshold of every start, seed by seed (None: not reached).

    `ladder` is the starts that copy more and more layers, from "random" to "full".
    """

    finals: Mapping[str, Sequence[float]]
    steps: Mapping[str, Steps]
    ladder: tuple[str, ...]

    @classmethod
    def of(cls, found: Comparison, places: Sequence[str]) -> Measured:
        """What a comparison measured; `places` are the layers that it copied through."""
        finals = {name: [run.curve.final for run in found.of(name)] for name in found.strategies}
        steps = {name: [run.curve.steps_to(found.threshold) for run in found.of(name)] for name in found.strategies}
        return cls(finals, steps, ("random", *(f"through {place}" for place in places), "full"))

    def to_dict(self) -> dict[str, Any]:
        """The numbers by name."""
        return asdict(self)


@dataclass(frozen=True)
class Finding:
    """A claim, its answer, the difference with its interval that decides it, p after Holm (of a test), and why where there is no number.

    `unit` is "points" or "steps"; `margin` is in it. `paper` says whether it is the paper's claim or a question of ours.
    """

    claim: str
    answer: str
    unit: str
    margin: float
    difference: Estimate | None = None
    p: float = math.nan
    adjusted: float = math.nan
    note: str = ""
    paper: bool = True

    def __str__(self) -> str:
        return f"{self.claim}: {self.answer} ({self.numbers()})"

    def numbers(self) -> str:
        """The difference and what is behind the answer, in words."""
        if self.difference is None:
            return self.note
        scale, digits = (100, 2) if self.unit == "points" else (1, 1)
        said = f"{scale * self.difference.mean:+.{digits}f} ± {scale * self.difference.interval:.{digits}f} {self.unit}"
        tested = f", p = {self.adjusted:.3g} (Holm)" if not math.isnan(self.adjusted) else f", margin {scale * self.margin:.{digits}f}"
        return said + tested + (f"; {self.note}" if self.note else "")


def findings(measured: Measured, *, few: bool, level: float = 0.05) -> list[Finding]:
    """The paper's findings that these starts can speak to, in its order, with p adjusted over all of them.

    `few` says that only some of the training images were used: then the paper has a full transfer end higher, else the same.
    """
    finals, steps, ladder = measured.finals, measured.steps, measured.ladder
    reached = [value for value in steps["random"] if value is not None]
    margin = PART * sum(reached) / len(reached) if reached else math.nan
    rows = [
        less("full ends higher than random (few images)", finals["random"], finals["full"], POINT, "points", level)
        if few
        else same("full ends within a point of random (all images)", finals["full"], finals["random"], POINT, "points", level)
    ]

    def sooner(claim: str, a: str, b: str, *, paper: bool = True) -> Finding:
        return replace(less(claim, steps[a], steps[b], margin, "steps", level), paper=paper)

    rows += [
        sooner("full is faster than random", "full", "random"),
        sooner("mean_var is faster than random: scale alone helps", "mean_var", "random"),
        sooner("full is faster than mean_var: features help beyond scale", "full", "mean_var"),
        lowest_layers(steps, ladder, margin, level),
        first_gain(steps, ladder, margin, level),
        same(f"gabor is as fast as {ladder[1]}", steps["gabor"], steps[ladder[1]], margin, "steps", level),
    ]
    if "slim" in finals:
        rows += [
            same("slim ends within a point of full", finals["slim"], finals["full"], POINT, "points", level),
            same("slim is as fast as full", steps["slim"], steps["full"], margin, "steps", level),
        ]
    for name in [name for name in finals if " on " in name]:
        rows.append(sooner(f"{name} is faster than random", name, "random", paper=False))
        rows.append(replace(less(f"{name} ends higher than random", finals["random"], finals[name], POINT, "points", level), paper=False))
    return corrected(rows, level)


def smaller_data(few: Measured, whole: Measured, level: float = 0.05) -> Finding:
    """Whether full gains more over random with few images than with all, on the same seeds."""
    gains = [[full - none for full, none in zip(one.finals["full"], one.finals["random"], strict=True)] for one in (few, whole)]
    return corrected([less("full gains more with few images than with all", gains[1], gains[0], POINT, "points", level)], level)[0]


def lowest_layers(steps: Mapping[str, Steps], ladder: Sequence[str], margin: float, level: float) -> Finding:
    """Whether the lowest third of the stages (rounded up) gives more than half of what full saves."""
    place = ladder[math.ceil((len(ladder) - 1) / 3)]
    claim = f"the lowest layers ({place}) give more than half of full's speed-up"
    half = None
    if whole(steps, ("random", "full")):
        half = [(none + full) / 2 for none, full in zip(steps["random"], steps["full"], strict=True)]  # type: ignore[operator]
    return less(claim, steps[place], half or [None], margin, "steps", level)


def first_gain(steps: Mapping[str, Steps], ladder: Sequence[str], margin: float, level: float) -> Finding:
    """Whether the first stage saves more steps than each later one does: all of the tests must say so, so their largest p counts."""
    claim = f"the first stage ({ladder[1]}) has the largest marginal gain"
    if not whole(steps, ladder):
        return Finding(claim, OPEN, "steps", margin, note=missed(steps, ladder))
    gains = [[one - two for one, two in zip(steps[a], steps[b], strict=True)] for a, b in zip(ladder, ladder[1:], strict=False)]  # type: ignore[operator]
    against = [less(claim, gain, gains[0], margin, "steps", level) for gain in gains[1:]]
    worst = max(range(len(against)), key=lambda i: against[i].difference.mean)  # type: ignore[union-attr]
    own = against[worst]
    tests = [one.p if one.difference.mean < 0 else 1.0 for one in against]  # type: ignore[union-attr]
    p = own.p if own.difference.mean > 0 else max(tests)  # type: ignore[union-attr]
    return replace(own, p=p, note=f"the nearest other is {ladder[worst + 2]}")


def less(claim: str, a: Steps, b: Steps, margin: float, unit: str, level: float) -> Finding:
    """Whether a is less than b, seed by seed; `corrected` decides it."""
    return _compared(claim, a, b, margin, unit, level, test=True)


def same(claim: str, a: Steps, b: Steps, margin: float, unit: str, level: float) -> Finding:
    """Whether a is b within the margin, seed by seed."""
    found = _compared(claim, a, b, margin, unit, level, test=False)
    if found.difference is None or smallest_p(len(a)) > level:
        return found
    low, high = bounds(found.difference)
    return replace(found, answer=HOLDS if -margin <= low and high <= margin else FAILS if low > margin or high < -margin else OPEN)


def corrected(rows: Sequence[Finding], level: float) -> list[Finding]:
    """The findings with p adjusted over those that test, and those answered."""
    testing = [i for i, row in enumerate(rows) if not math.isnan(row.p)]
    done = list(rows)
    for i, adjusted in zip(testing, holm([rows[i].p for i in testing]), strict=True):
        row = replace(rows[i], adjusted=adjusted)
        low, high = bounds(row.difference)  # type: ignore[arg-type]
        if "seeds" in row.note:
            answer = OPEN
        elif adjusted < level:
            answer = HOLDS if row.difference.mean < 0 else FAILS  # type: ignore[union-attr]
        else:
            answer = FAILS if low > -row.margin else OPEN
        done[i] = replace(row, answer=answer)
    return done


def _compared(claim: str, a: Steps, b: Steps, margin: float, unit: str, level: float, *, test: bool) -> Finding:
    if not whole({"a": a, "b": b}, ("a", "b")):
        return Finding(claim, OPEN, unit, margin, note="not every seed reached the threshold")
    found = paired(a, b, level)  # type: ignore[arg-type]
    note = f"{found.seeds} seeds cannot reach p < {level:g}" if found.smallest > level else ""
    return Finding(claim, OPEN, unit, margin, found.difference, found.p if test else math.nan, note=note)


def bounds(found: Estimate) -> tuple[float, float]:
    """The ends of an interval."""
    return found.mean - found.interval, found.mean + found.interval


def whole(steps: Mapping[str, Steps], names: Sequence[str]) -> bool:
    """Whether every seed of all of these reached the threshold."""
    return all(value is not None for name in names for value in steps[name])


def missed(steps: Mapping[str, Steps], names: Sequence[str]) -> str:
    """Which of these did not reach the threshold in how many seeds."""
    counts = {name: sum(value is not None for value in steps[name]) for name in names}
    return "; ".join(f"{name} reached the threshold in {n} of {len(steps[name])} seeds" for name, n in counts.items() if n < len(steps[name]))


def printed(rows: Sequence[Finding]) -> str:
    """The findings as a table of text."""
    table = Table(title="findings")
    for column in ("claim", "answer", "difference"):
        table.add_column(column)
    for row in rows:
        table.add_row(row.claim + ("" if row.paper else " (ours)"), row.answer, row.numbers())
    console = Console(width=170)
    with console.capture() as captured:
        console.print(table)
    return captured.get().rstrip()


__all__ = ["Finding", "Measured", "findings", "over_seeds", "smaller_data"]
