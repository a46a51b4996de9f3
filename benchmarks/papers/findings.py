"""The Transfusion paper's findings: each holds, does not hold, or is not decidable at this size.

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

from metalearn.analysis import Estimate
from metalearn.runtime.tables import Table
from transfer import Comparison
from transfer.comparison.results import LayerRetention
from transfer.comparison.statistics import against, holm, paired

POINT = 0.01  # of a final score
PART = 0.2  # of random's steps
BLIND = 0.999  # at this similarity the measure cannot distinguish layers
HOLDS = "holds"
FAILS = "does not hold"
OPEN = "not decidable at this size"
SCALES = {"points": (100, 2), "steps": (1, 1), "similarity": (1, 3)}  # factor and digits
Steps = Sequence[float | None]
KeptByStart = Mapping[str, Sequence[float | None]]


@dataclass(frozen=True)
class Measured:
    """What a comparison measured, seed by seed.

    Args:
        finals: the final scores of every start.
        steps: the steps of every start to the threshold; None if it was not reached.
        kept: the similarity of each layer at the start and at the end; None for too few examples.
        ladder: the starts that copy more and more layers, from "random" to "full".
        learned: the starts that were meta-learned.
    """

    finals: Mapping[str, Sequence[float]]
    steps: Mapping[str, Steps]
    kept: Mapping[str, KeptByStart]
    ladder: tuple[str, ...]
    learned: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, comparison: Comparison, places: Sequence[str], learned: Sequence[str] = ()
    ) -> Measured:
        """What a comparison measured; `places` are the layers that it copied through."""
        finals: dict[str, list[float]] = {}
        steps: dict[str, list[float | None]] = {}
        kept: dict[str, KeptByStart] = {}
        for name in comparison.strategies:
            runs = comparison.of(name)
            finals[name] = [run.curve.final for run in runs]
            steps[name] = [run.curve.steps_to(comparison.threshold) for run in runs]
            kept[name] = by_layer([run.kept for run in runs])
        ladder = ("random", *(f"through {place}" for place in places), "full")
        return cls(finals, steps, kept, ladder, tuple(learned))

    @property
    def margin(self) -> float:
        """The largest difference in steps that counts as none: a part of random's mean."""
        reached = [value for value in self.steps["random"] if value is not None]
        if not reached:
            return math.nan
        return PART * sum(reached) / len(reached)

    def to_dict(self) -> dict[str, Any]:
        """The numbers by name."""
        return asdict(self)


@dataclass(frozen=True)
class Finding:
    """A claim, its answer, and what decides it.

    Args:
        claim: in words.
        unit: "points", "steps" or "similarity".
        margin: in the unit; of points a score.
        answer: holds, does not hold, or not decidable.
        difference: with its interval over paired seeds.
        p: of a test.
        adjusted: the same after Holm.
        smallest: the least p that so many seeds can reach.
        note: what else is behind the answer.
        test: whether it is `less`, with a p, and not `same`.
        paper: whether the claim is the paper's or ours.
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
            >>> difference = Estimate(-0.02, 0.01)
            >>> finding = Finding("a", "points", 0.01, HOLDS, difference, adjusted=0.012, test=True)
            >>> finding.numbers()
            '-2.00 ± 1.00 points, p = 0.012 (Holm)'
        """
        if self.difference is None:
            return self.note
        scale, digits = SCALES[self.unit]
        text = f"{self.difference.shown(f'+.{digits}f', scale)} {self.unit}"
        if self.test:
            text += f", p = {self.adjusted:.2g} (Holm)"
        else:
            text += f", margin {scale * self.margin:.{digits}f}"
        if self.note:
            text += f"; {self.note}"
        return text


def findings(measured: Measured, *, few: bool, level: float = 0.05) -> list[Finding]:
    """The paper's findings that these starts can speak to, then ours about meta-learned ones.

    Args:
        measured: the numbers of a comparison.
        few: whether only some of the training images were used. Then the paper has full end higher
            than random, and else the same.
        level: of the tests.
    """
    questions = Questions(measured, level)
    ladder = measured.ladder
    if few:
        end = questions.higher("few images: full ends higher than random", "full")
    else:
        end = questions.ends_alike("all images: full ends where random does", "random", "full")
    rows = [
        end,
        questions.faster("full is faster than random", "full"),
        questions.faster("mean_var is faster than random (scale alone helps)", "mean_var"),
        questions.sooner(
            "full is faster than mean_var (features help beyond scale)", "full", "mean_var"
        ),
        lowest_layers(measured.steps, ladder, level),
        first_gain(measured.steps, ladder, level),
        questions.sooner(f"gabor is as fast as {ladder[1]}", "gabor", ladder[1], same),
        reuse_is_low(measured.kept, level),
    ]
    if "slim" in measured.finals:
        rows.append(questions.ends_alike("slim ends where full does", "slim", "full"))
        rows.append(questions.sooner("slim is as fast as full", "slim", "full", same))
    for name in measured.learned:
        rows += questions.of_learned(name)
    return answered(rows, level)


@dataclass(frozen=True)
class Questions:
    """Findings about the starts of one comparison, not answered yet.

    Args:
        measured: its numbers.
        level: of the tests.
    """

    measured: Measured
    level: float

    def sooner(
        self, claim: str, a: str, b: str, rule: Callable[..., Finding] | None = None
    ) -> Finding:
        """Whether one start reaches the threshold before another, by `less` or by `rule`."""
        steps = self.measured.steps
        margin = self.measured.margin
        missing = missed(steps, (a, b))
        if missing:
            return Finding(claim, "steps", margin, note=missing)
        compare: Callable[..., Finding] = rule or less
        return compare(claim, steps[a], steps[b], margin, "steps", self.level)

    def faster(self, claim: str, start: str) -> Finding:
        """Whether a start is faster than random, by the test of the table of starts."""
        finding = self.sooner(claim, start, "random")
        return judged(finding, self.measured.steps, start, self.level)

    def higher(self, claim: str, start: str) -> Finding:
        """Whether a start ends higher than random, by the test of the table of starts."""
        finding = self.ends_below(claim, "random", start)
        return judged(finding, self.measured.finals, start, self.level)

    def ends_below(self, claim: str, a: str, b: str) -> Finding:
        """Whether one start ends below another."""
        finals = self.measured.finals
        return less(claim, finals[a], finals[b], POINT, "points", self.level)

    def ends_alike(self, claim: str, a: str, b: str) -> Finding:
        """Whether two starts end within a point."""
        finals = self.measured.finals
        return same(claim, finals[a], finals[b], POINT, "points", self.level)

    def of_learned(self, name: str) -> list[Finding]:
        """Our questions about a meta-learned start."""
        rows = [
            self.higher(f"{name} ends higher than random", name),
            self.faster(f"{name} is faster than random", name),
            self.ends_below(f"{name} ends higher than full", "full", name),
        ]
        return [replace(row, paper=False) for row in rows]


def smaller_data(few: Measured, whole: Measured, level: float = 0.05) -> Finding:
    """Whether full gains more over random with few images than with all, on the same seeds."""
    # (full - random) with few images against (full - random) with all, seed by seed
    few_gains = differences(few.finals["full"], few.finals["random"])
    whole_gains = differences(whole.finals["full"], whole.finals["random"])
    claim = "full gains more with few images than with all"
    finding = less(claim, whole_gains, few_gains, POINT, "points", level)
    return answered([finding], level)[0]


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
    """A finding of a start against random, with the p that it has among all starts.

    Those starts count that have a value for every seed.
    """
    # A start without a value for some seed has no paired test.
    whole: dict[str, Any] = {}
    for name, numbers in values.items():
        if None not in numbers:
            whole[name] = numbers
    tests = against(whole, "random", level)
    if start not in tests:
        return finding
    return replace(finding, adjusted=tests[start][1])


def same(
    claim: str, a: Sequence[float], b: Sequence[float], margin: float, unit: str, level: float
) -> Finding:
    """Whether a is b within the margin, seed by seed; `answered` decides it."""
    test = paired(a, b, level)
    note = ""
    if test.smallest > level:
        note = f"{test.seeds} seeds cannot reach p < {level:g}"
    difference = test.difference
    return Finding(claim, unit, margin, difference=difference, smallest=test.smallest, note=note)


def lowest_layers(steps: Mapping[str, Steps], ladder: Sequence[str], level: float) -> Finding:
    """Whether the lowest third of the stages (rounded up) saves more than half of full's steps."""
    place = ladder[math.ceil((len(ladder) - 1) / 3)]
    claim = f"the lowest layers ({place}) give more than half of full's speed-up"
    if missing := missed(steps, ("random", place, "full")):
        return Finding(claim, "steps", 0.0, note=missing)
    # Half of what full saves: the middle between its steps and random's.
    pairs = zip(steps["random"], steps["full"], strict=True)
    half = [(none + full) / 2 for none, full in pairs]  # type: ignore[operator]
    return less(claim, steps[place], half, 0.0, "steps", level)  # type: ignore[arg-type]


def first_gain(steps: Mapping[str, Steps], ladder: Sequence[str], level: float) -> Finding:
    """Whether the first stage saves more steps than each later one.

    The difference is that to the nearest other. Every test must reject, hence their largest p
    (intersection-union). If another saves more on average, p of that counts, times the number of
    others.
    """
    claim = f"the first stage ({ladder[1]}) has the largest marginal gain"
    if missing := missed(steps, ladder):
        return Finding(claim, "steps", 0.0, note=missing)
    # The steps that each stage saves beyond the one before it.
    gains = [differences(steps[lower], steps[upper]) for lower, upper in pairwise(ladder)]
    others = [less(claim, gain, gains[0], 0.0, "steps", level) for gain in gains[1:]]
    # The least negative difference is that to the nearest other stage.
    means = [other.difference.mean for other in others]  # type: ignore[union-attr]
    worst = means.index(max(means))
    nearest = others[worst]
    p = max(other.p for other in others)
    if nearest.difference.mean > 0:  # type: ignore[union-attr]
        p = min(1.0, nearest.p * len(others))
    notes = [f"the nearest other is {ladder[worst + 2]}"]
    if nearest.note:
        notes.append(nearest.note)
    return replace(nearest, p=p, note="; ".join(notes))


def reuse_is_low(kept: Mapping[str, KeptByStart], level: float) -> Finding:
    """Whether full keeps more beyond random in the lowest layer than in the highest.

    Layers count if the measure has a value in every run. The head starts fresh in both and does not
    count, nor does a layer that is the same at any two ends: CCA ignores linear maps, and so a
    first convolution with more filters than its patches have pixels.
    """
    full = kept["full"]
    random = kept["random"]
    known = []
    for layer in list(full)[:-1]:
        measured = layer in random and None not in (*full[layer], *random[layer])
        if measured and max(random[layer]) < BLIND:  # type: ignore[type-var, operator]
            known.append(layer)
    claim = "what is reused is in the lowest layers"
    if len(known) < 2:
        return Finding(claim, "similarity", 0.0, note="the measure can tell of one layer at most")
    # (similarity of full) - (similarity of random), a layer a list over seeds
    beyond = {layer: differences(full[layer], random[layer]) for layer in known}
    claim += f": {known[0]} is kept beyond random more than {known[-1]}"
    return less(claim, beyond[known[-1]], beyond[known[0]], 0.0, "similarity", level)


def answered(rows: Sequence[Finding], level: float) -> list[Finding]:
    """The findings with their answers; p of tests of no other family are adjusted together."""
    testing = [i for i, row in enumerate(rows) if row.test and math.isnan(row.adjusted)]
    adjusted = dict(zip(testing, holm([rows[i].p for i in testing]), strict=True))
    done = [replace(row, adjusted=adjusted.get(i, row.adjusted)) for i, row in enumerate(rows)]
    return [replace(row, answer=_answer(row, level)) for row in done]


def by_layer(runs: Sequence[Sequence[LayerRetention]]) -> dict[str, list[float | None]]:
    """Layer -> its similarity in every run, None if there is none."""
    similarities: dict[str, list[float | None]] = {}
    for run in runs:
        for layer in run:
            value = layer.similarity
            values = similarities.setdefault(layer.layer, [])
            values.append(None if math.isnan(value) else value)
    return similarities


def differences(a: Sequence[float | None], b: Sequence[float | None]) -> list[float]:
    """`a` minus `b`, seed by seed; neither may have a seed without a number."""
    return [first - second for first, second in zip(a, b, strict=True)]  # type: ignore[operator]


def missed(steps: Mapping[str, Steps], names: Sequence[str]) -> str:
    """Which of these did not reach the threshold under every seed, or "".

    Example:
        >>> missed({"random": [3.0, None], "full": [1.0, 2.0]}, ["random", "full"])
        'threshold reached by random under 1 of 2 seeds'
    """
    parts = []
    for name in names:
        seeds = len(steps[name])
        reached = seeds - list(steps[name]).count(None)
        if reached < seeds:
            parts.append(f"{name} under {reached} of {seeds} seeds")
    if not parts:
        return ""
    return f"threshold reached by {', '.join(parts)}"


def printed(rows: Sequence[Finding]) -> str:
    """The findings as a table of text."""
    lines = []
    for row in rows:
        claim = row.claim
        if not row.paper:
            claim += " (ours)"
        lines.append((claim, row.answer, row.numbers()))
    return str(Table(("claim", "answer", "difference"), lines, title="findings of the paper"))


def _answer(row: Finding, level: float) -> str:
    if row.difference is None or row.smallest > level:
        return OPEN
    # `same` compares the interval with the margin; `less` has a test.
    low = row.difference.low
    high = row.difference.high
    if not row.test:
        if low > row.margin or high < -row.margin:
            return FAILS
        return HOLDS if -row.margin <= low and high <= row.margin else OPEN
    if math.isnan(row.adjusted):  # all differences are one number: the t test has none
        return OPEN
    if row.adjusted < level:
        return HOLDS if row.difference.mean < 0 else FAILS
    # No difference is shown, and the interval excludes one as large as the margin.
    return FAILS if -row.margin < low <= 0 <= high else OPEN
