"""The Transfusion paper's findings as rows: holds, does not hold, or not decidable at this size,
each by a rule on paired seeds.

A finding compares two numbers of every seed, by the paired tests and intervals of
`transfer.comparison.statistics`. Nothing is decided with fewer seeds than a sign-flip test needs to
reach the level: six at 0.05. Steps are compared where every seed of both reached the threshold.

- `less`, a is less than b, holds where the paired t test says so after Holm: of a start against
  random over all starts, as in the table of starts (`transfer.comparison.statistics.against`), of
  any other finding over the other findings. It does not hold where the test says the opposite, or
  where the interval of a - b contains zero and does not reach the margin below it. Otherwise it is
  not decidable.
- `same`, a is b within the margin, holds where the interval of a - b lies within the margin, and
  does not hold where it lies outside. Otherwise it is not decidable.

Margins, set before the runs: 1 point of a final score; a fifth of random's mean steps to the
threshold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

from rich.console import Console
from rich.table import Table

from metalearn.analysis import Estimate
from transfer import Comparison
from transfer.comparison.results import LayerRetention
from transfer.comparison.statistics import against, holm, paired

POINT = 0.01  # of a final score
PART = 0.2  # of random's steps
BLIND = 0.999  # a similarity that says that the measure cannot tell
HOLDS, FAILS, OPEN = "holds", "does not hold", "not decidable at this size"
Steps = Sequence[float | None]
KeptByStart = Mapping[str, Sequence[float | None]]


@dataclass(frozen=True)
class Measured:
    """The final scores and the steps to the threshold of every start, seed by seed (None: not
    reached).

    `kept` is how alike each layer is at the start and at the end, seed by seed (None: too few
    examples to say). `ladder` is the starts that copy more and more layers, from "random" to
    "full"; `learned` those that were meta-learned.
    """

    finals: Mapping[str, Sequence[float]]
    steps: Mapping[str, Steps]
    kept: Mapping[str, KeptByStart]
    ladder: tuple[str, ...]
    learned: tuple[str, ...] = ()

    @classmethod
    def of(cls, found: Comparison, places: Sequence[str], learned: Sequence[str] = ()) -> Measured:
        """What a comparison measured; `places` are the layers that it copied through."""
        finals = {name: [run.curve.final for run in found.of(name)] for name in found.strategies}
        steps = {
            name: [run.curve.steps_to(found.threshold) for run in found.of(name)]
            for name in found.strategies
        }
        kept = {name: by_layer([run.kept for run in found.of(name)]) for name in found.strategies}
        return cls(
            finals,
            steps,
            kept,
            ("random", *(f"through {place}" for place in places), "full"),
            tuple(learned),
        )

    @property
    def margin(self) -> float:
        """A difference in steps that is none: a part of random's mean."""
        reached = [value for value in self.steps["random"] if value is not None]
        return PART * sum(reached) / len(reached) if reached else math.nan

    def to_dict(self) -> dict[str, Any]:
        """The numbers by name."""
        return asdict(self)


@dataclass(frozen=True)
class Finding:
    """A claim, its answer, and what decides it: a difference with its interval, and for a test p
    before and after Holm.

    `unit` is "points", "steps" or "similarity"; `margin` is in it, of points a score. `test` says
    that it is `less`, with a p, and not `same`. `smallest` is the least p that so many seeds can
    reach. `paper` says whether the claim is the paper's or ours.
    """

    claim: str
    unit: str
    margin: float
    answer: str = OPEN
    difference: Estimate | None = None
    p: float = math.nan
    adjusted: float = math.nan
    smallest: float = 1.0
    note: str = ""
    test: bool = False
    paper: bool = True

    def numbers(self) -> str:
        """The difference and what is behind the answer, in words.

        Example:
            >>> Finding("full ends higher", "points", 0.01, HOLDS, Estimate(-0.02, 0.01), 0.004, 0.012, test=True).numbers()
            '-2.00 ± 1.00 points, p = 0.012 (Holm)'
        """
        if self.difference is None:
            return self.note
        scale, digits = {"points": (100, 2), "steps": (1, 1), "similarity": (1, 3)}[self.unit]
        said = (
            f"{scale * self.difference.mean:+.{digits}f} ±"
            f" {scale * self.difference.interval:.{digits}f} {self.unit}"
        )
        judged = (
            f"p = {self.adjusted:.2g} (Holm)"
            if self.test
            else f"margin {scale * self.margin:.{digits}f}"
        )
        return f"{said}, {judged}" + (f"; {self.note}" if self.note else "")


def findings(measured: Measured, *, few: bool, level: float = 0.05) -> list[Finding]:
    """The paper's findings that these starts can speak to, then ours about meta-learned ones, each
    answered.

    `few` says that only some of the training images were used: then the paper has full end higher
    than random, and else the same.
    """
    finals, steps, ladder, margin = (
        measured.finals,
        measured.steps,
        measured.ladder,
        measured.margin,
    )

    def sooner(claim: str, a: str, b: str, rule: Callable[..., Finding] = less) -> Finding:
        missing = missed(steps, (a, b))
        return (
            Finding(claim, "steps", margin, note=missing)
            if missing
            else rule(claim, steps[a], steps[b], margin, "steps", level)
        )

    def faster(claim: str, start: str) -> Finding:
        """Whether a start is faster than random, by the test of the table of starts."""
        return judged(sooner(claim, start, "random"), steps, start, level)

    def higher(claim: str, start: str) -> Finding:
        """Whether a start ends higher than random, by the test of the table of starts."""
        return judged(
            less(claim, finals["random"], finals[start], POINT, "points", level),
            finals,
            start,
            level,
        )

    ends = (finals["random"], finals["full"], POINT, "points", level)
    rows = [
        (
            higher("few images: full ends higher than random", "full")
            if few
            else same("all images: full ends where random does", *ends)
        ),
        faster("full is faster than random", "full"),
        faster("mean_var is faster than random (scale alone helps)", "mean_var"),
        sooner("full is faster than mean_var (features help beyond scale)", "full", "mean_var"),
        lowest_layers(steps, ladder, level),
        first_gain(steps, ladder, level),
        sooner(f"gabor is as fast as {ladder[1]}", "gabor", ladder[1], same),
        reuse_is_low(measured.kept, level),
    ]
    if "slim" in finals:
        rows.append(
            same(
                "slim ends where full does", finals["slim"], finals["full"], POINT, "points", level
            )
        )
        rows.append(sooner("slim is as fast as full", "slim", "full", same))
    for name in measured.learned:
        own = [
            higher(f"{name} ends higher than random", name),
            faster(f"{name} is faster than random", name),
            less(
                f"{name} ends higher than full",
                finals["full"],
                finals[name],
                POINT,
                "points",
                level,
            ),
        ]
        rows += [replace(row, paper=False) for row in own]
    return answered(rows, level)


def smaller_data(few: Measured, whole: Measured, level: float = 0.05) -> Finding:
    """Whether full gains more over random with few images than with all, on the same seeds."""
    gains = [
        [full - none for full, none in zip(one.finals["full"], one.finals["random"], strict=True)]
        for one in (few, whole)
    ]
    return answered(
        [
            less(
                "full gains more with few images than with all",
                gains[1],
                gains[0],
                POINT,
                "points",
                level,
            )
        ],
        level,
    )[0]


def less(
    claim: str, a: Sequence[float], b: Sequence[float], margin: float, unit: str, level: float
) -> Finding:
    """Whether a is less than b, seed by seed; `answered` decides it.

    Example:
        >>> less("a is less", [1.0, 2.0, 4.0], [2.0, 3.0, 4.0], 0.1, "steps", 0.05).difference
        Estimate(mean=-0.66..., interval=1.43...)
    """
    return replace(same(claim, a, b, margin, unit, level), p=paired(a, b, level).p, test=True)


def judged(finding: Finding, values: Mapping[str, Steps], start: str, level: float) -> Finding:
    """A finding of a start against random with the p that it has among all starts (those that have
    a value for every seed).
    """
    whole: dict[str, Any] = {
        name: numbers for name, numbers in values.items() if None not in numbers
    }
    tests = against(whole, "random", level)
    return replace(finding, adjusted=tests[start][1]) if start in tests else finding


def same(
    claim: str, a: Sequence[float], b: Sequence[float], margin: float, unit: str, level: float
) -> Finding:
    """Whether a is b within the margin, seed by seed; `answered` decides it."""
    found = paired(a, b, level)
    note = f"{found.seeds} seeds cannot reach p < {level:g}" if found.smallest > level else ""
    return Finding(
        claim, unit, margin, difference=found.difference, smallest=found.smallest, note=note
    )


def lowest_layers(steps: Mapping[str, Steps], ladder: Sequence[str], level: float) -> Finding:
    """Whether the lowest third of the stages (rounded up) saves more than half of the steps that
    full saves.
    """
    place = ladder[math.ceil((len(ladder) - 1) / 3)]
    claim = f"the lowest layers ({place}) give more than half of full's speed-up"
    if missing := missed(steps, ("random", place, "full")):
        return Finding(claim, "steps", 0.0, note=missing)
    half = [(none + full) / 2 for none, full in zip(steps["random"], steps["full"], strict=True)]  # type: ignore[operator]
    return less(claim, steps[place], half, 0.0, "steps", level)  # type: ignore[arg-type]


def first_gain(steps: Mapping[str, Steps], ladder: Sequence[str], level: float) -> Finding:
    """Whether the first stage saves more steps than each later one: the difference to the nearest
    other.

    Every test must say so, hence their largest p (intersection-union). Where another saves more on
    average, p of that counts, times the number of others.
    """
    claim = f"the first stage ({ladder[1]}) has the largest marginal gain"
    if missing := missed(steps, ladder):
        return Finding(claim, "steps", 0.0, note=missing)
    gains = [differences(steps[one], steps[two]) for one, two in pairwise(ladder)]
    others = [less(claim, gain, gains[0], 0.0, "steps", level) for gain in gains[1:]]
    worst = max(range(len(others)), key=lambda i: others[i].difference.mean)  # type: ignore[union-attr]
    nearest = others[worst]
    p = max(one.p for one in others)
    if nearest.difference.mean > 0:  # type: ignore[union-attr]
        p = min(1.0, nearest.p * len(others))
    return replace(
        nearest,
        p=p,
        note="; ".join(filter(None, (f"the nearest other is {ladder[worst + 2]}", nearest.note))),
    )


def reuse_is_low(kept: Mapping[str, KeptByStart], level: float) -> Finding:
    """Whether what full keeps of its start beyond what random keeps of its own is larger in the
    lowest layer than in the highest.

    Layers are those that the measure can tell of in every run. The head, which starts fresh in
    both, is none of them, and neither is one that is the same at any two ends: CCA ignores linear
    maps, and so a first convolution with more filters than its patches have pixels.
    """
    full, random = kept["full"], kept["random"]
    said = [
        layer
        for layer in list(full)[:-1]
        if layer in random and None not in (*full[layer], *random[layer])
    ]
    known = [layer for layer in said if max(random[layer]) < BLIND]  # type: ignore[type-var, operator]
    claim = "what is reused is in the lowest layers"
    if len(known) < 2:
        return Finding(claim, "similarity", 0.0, note="the measure can tell of one layer at most")
    beyond = {layer: differences(full[layer], random[layer]) for layer in known}
    claim += f": {known[0]} is kept beyond random more than {known[-1]}"
    return less(claim, beyond[known[-1]], beyond[known[0]], 0.0, "similarity", level)


def answered(rows: Sequence[Finding], level: float) -> list[Finding]:
    """The findings with their answers; the p of those that test and are of no other family are
    adjusted over them.
    """
    testing = [i for i, row in enumerate(rows) if row.test and math.isnan(row.adjusted)]
    adjusted = dict(zip(testing, holm([rows[i].p for i in testing]), strict=True))
    done = [replace(row, adjusted=adjusted.get(i, row.adjusted)) for i, row in enumerate(rows)]
    return [replace(row, answer=_answer(row, level)) for row in done]


def by_layer(runs: Sequence[Sequence[LayerRetention]]) -> dict[str, list[float | None]]:
    """Layer -> its similarity in every run, None where there is none."""
    return {
        layer[0].layer: [None if math.isnan(one.similarity) else one.similarity for one in layer]
        for layer in zip(*runs, strict=True)
    }


def differences(a: Sequence[float | None], b: Sequence[float | None]) -> list[float]:
    """`a` minus `b`, seed by seed; neither may have a seed without a number."""
    return [first - second for first, second in zip(a, b, strict=True)]  # type: ignore[operator]


def missed(steps: Mapping[str, Steps], names: Sequence[str]) -> str:
    """Which of these did not reach the threshold under every seed, or "".

    Example:
        >>> missed({"random": [3.0, None], "full": [1.0, 2.0]}, ["random", "full"])
        'threshold reached by random under 1 of 2 seeds'
    """
    counts = {
        name: (sum(value is not None for value in steps[name]), len(steps[name])) for name in names
    }
    said = ", ".join(
        f"{name} under {count} of {seeds} seeds"
        for name, (count, seeds) in counts.items()
        if count < seeds
    )
    return f"threshold reached by {said}" if said else ""


def printed(rows: Sequence[Finding]) -> str:
    """The findings as a table of text."""
    table = Table(title="findings of the paper")
    for column in ("claim", "answer", "difference"):
        table.add_column(column)
    for row in rows:
        table.add_row(row.claim + ("" if row.paper else " (ours)"), row.answer, row.numbers())
    console = Console(width=170)
    with console.capture() as captured:
        console.print(table)
    return captured.get().rstrip()


def _answer(row: Finding, level: float) -> str:
    if row.difference is None or row.smallest > level:
        return OPEN
    low, high = (
        row.difference.mean - row.difference.interval,
        row.difference.mean + row.difference.interval,
    )
    if not row.test:
        outside = low > row.margin or high < -row.margin
        return FAILS if outside else HOLDS if -row.margin <= low and high <= row.margin else OPEN
    if math.isnan(row.adjusted):  # all differences are one number: the t test has none
        return OPEN
    if row.adjusted < level:
        return HOLDS if row.difference.mean < 0 else FAILS
    return FAILS if -row.margin < low <= 0 <= high else OPEN
