"""A learning rate for every row of a table, chosen on validation data."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from metalearn.runtime import provenance
from metalearn.runtime.checks import positive_number, sequence, whole_number
from metalearn.runtime.files import Damaged, Record, open_file, write_atomically
from metalearn.runtime.progress import progress as shown_progress
from metalearn.runtime.statistics import MeanStd
from metalearn.runtime.tables import Table, Tabular, plain
from transfer.finetuning.curve import Curve

RunAtRate: TypeAlias = Callable[[float, int], Curve]
"""Trains at a rate under a seed; its curve has validation scores."""


@dataclass(frozen=True)
class SweptRow:
    """One row: every rate's validation score, and the test scores at the best rate.

    Attributes:
        name: of the row.
        validation: {rate: (seeds,) scores at the evaluation that counts}; NaN for a training that
            was not finite.
        rate: the one with the best mean validation score.
        seeds: of the test scores.
        tests: (seeds,) test scores at `rate`.
        at_edge: whether `rate` is the smallest or largest of the sweep, so that a better one may
            lie outside of it.
    """

    name: str
    validation: Mapping[float, tuple[float, ...]]
    rate: float
    seeds: tuple[int, ...]
    tests: tuple[float, ...]
    at_edge: bool

    @property
    def test(self) -> MeanStd:
        """The test score over seeds."""
        return MeanStd.of(self.tests)


@dataclass(frozen=True)
class RateSweep(Tabular):
    """The result of `sweep_rates`; prints as a table."""

    rows: tuple[SweptRow, ...]

    def __getitem__(self, name: str) -> SweptRow:
        found = {row.name: row for row in self.rows}
        if name not in found:
            raise KeyError(f"there is no row {name!r}; there are {', '.join(found)}")
        return found[name]

    def records(self) -> list[dict[str, Any]]:
        """A record for each row."""
        records = []
        for row in self.rows:
            validation = {f"{rate:g}": list(scores) for rate, scores in row.validation.items()}
            record = {
                "row": row.name,
                "rate": row.rate,
                "at_edge": row.at_edge,
                "validation": validation,
                "seeds": list(row.seeds),
                "tests": list(row.tests),
                "test": row.test._asdict(),
            }
            records.append(plain(record))
        return records

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON-able values."""
        return {"rows": self.records()}

    def table(self) -> Table:
        """Rates and scores as text."""
        lines = []
        for row in self.rows:
            edge = " (edge)" if row.at_edge else ""
            swept = ", ".join(
                f"{rate:g}: {100 * MeanStd.of(scores).mean:.1f}"
                for rate, scores in row.validation.items()
            )
            lines.append((row.name, f"{row.rate:g}{edge}", row.test.text(100, 2, "seed"), swept))
        columns = ("row", "rate", "test, %", "validation of each rate, %")
        return Table(columns, lines, note="edge: the best rate may lie outside of the sweep")

    def __str__(self) -> str:
        return str(self.table())


def sweep_rates(
    rows: Mapping[str, RunAtRate],
    rates: Iterable[float],
    seeds: Iterable[int],
    *,
    swept: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> RateSweep:
    """Train every row at every rate, choose by validation, report the test.

    A rate that suits one start may ruin another, so rows are only comparable at a rate of their own
    (Rothermel et al. 2021, arXiv:2107.12460).

    Args:
        rows: {name: a function of a rate and a seed that builds, trains and returns the curve};
            `finetune(..., validation=...)` makes curves with validation scores.
        rates: to try.
        seeds: of the trainings.
        swept: how many of the seeds, from the first, try all rates; the others train at the chosen
            rate alone. By default all.
        folder: where finished trainings are kept, a file each: a sweep that was stopped goes on.
        settings: what decides the results besides names, rates and seeds; recorded in the files,
            and compared when a sweep goes on.
        progress: show progress on standard error.

    Returns:
        A row for each.

    Raises:
        ValueError: a curve has no validation scores, all rates of a row fail, or a file is of other
            settings.

    Example:
        >>> def run(rate, seed):
        ...     score = 1 - abs(rate - 0.1)
        ...     return Curve("accuracy", (0,), {"accuracy": (score,)}, validation=(score,))
        >>> sweep_rates({"a": run}, [0.01, 0.1, 1.0], seeds=[0, 1])["a"].rate
        0.1
    """
    tried = [positive_number("rate", rate) for rate in sequence("rates", rates, "[1e-3, 1e-2]")]
    numbers = [whole_number("seed", seed, least=0) for seed in sequence("seeds", seeds, "[0, 1]")]
    if not tried or not numbers or not rows:
        raise ValueError("a sweep needs at least one row, one rate and one seed")
    if len(set(tried)) < len(tried) or len(set(numbers)) < len(numbers):
        raise ValueError(f"rates {tried} or seeds {numbers} repeat; give each once")
    count = len(numbers) if swept is None else min(whole_number("swept", swept), len(numbers))
    store = _Store(None if folder is None else Path(folder), dict(settings or {}))
    total = len(rows) * (len(tried) * count + len(numbers) - count)
    results = []
    with shown_progress("rate sweep", total if progress else 0, unit="run") as advance:
        for name, run in rows.items():

            def score(rate: float, seed: int, name: str = name, run: RunAtRate = run) -> _Scores:
                scores = store.scores(name, rate, seed, run)
                if progress:
                    advance(1, f"{name}, rate {rate:g}, seed {seed}: {scores.test:.3f}")
                return scores

            results.append(_row(name, score, sorted(tried), numbers, count))
    return RateSweep(tuple(results))


def _row(
    name: str,
    score: Callable[[float, int], _Scores],
    rates: Sequence[float],
    seeds: Sequence[int],
    swept: int,
) -> SweptRow:
    """Try all rates, choose, and train the seeds that are left."""
    done: dict[tuple[float, int], _Scores] = {}
    for rate in rates:
        for seed in seeds[:swept]:
            done[rate, seed] = score(rate, seed)
    validation = {
        rate: tuple(done[rate, seed].validation for seed in seeds[:swept]) for rate in rates
    }
    # A rate at which one training was not finite (NaN) is not chosen.
    means = {rate: sum(scores) / len(scores) for rate, scores in validation.items()}
    finite = {rate: mean for rate, mean in means.items() if math.isfinite(mean)}
    if not finite:
        raise ValueError(
            f"no rate of {', '.join(f'{rate:g}' for rate in rates)} gives a finite training of"
            f" {name}; try lower ones"
        )
    best = max(finite, key=lambda rate: finite[rate])
    for seed in seeds[swept:]:
        done[best, seed] = score(best, seed)
    tests = tuple(done[best, seed].test for seed in seeds)
    at_edge = len(rates) > 1 and best in (rates[0], rates[-1])
    return SweptRow(name, validation, best, tuple(seeds), tests, at_edge)


@dataclass(frozen=True)
class _Scores:
    """What counts of one training; NaN if it was not finite."""

    validation: float
    test: float


@dataclass(frozen=True)
class _Store:
    """Finished trainings in a folder, or none."""

    folder: Path | None
    settings: Record

    def scores(self, name: str, rate: float, seed: int, run: RunAtRate) -> _Scores:
        """The scores of a training, from its file if there is one."""
        path = self._path(name, rate, seed)
        settings = plain({**self.settings, "row": name, "rate": rate, "seed": seed})
        if path is not None and path.is_file():
            return self._read(path, settings)
        try:
            curve = run(rate, seed)
        except FloatingPointError:
            scores = _Scores(math.nan, math.nan)
        else:
            if not isinstance(curve, Curve) or not curve.validation:
                raise ValueError(
                    f"the training of {name} has no validation scores to choose a rate by; pass"
                    " validation= to finetune"
                )
            scores = _Scores(curve.validation[curve.best], curve.final)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            record = {"settings": settings, "scores": plain(vars(scores))}
            write_atomically(path, json.dumps(record, sort_keys=True).encode())
        return scores

    def _path(self, name: str, rate: float, seed: int) -> Path | None:
        if self.folder is None:
            return None
        stem = re.sub(r"[^\w.=+-]+", "-", name)
        if stem != name:
            stem = f"{stem}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
        return self.folder / f"{stem}-rate{rate:g}-seed{seed}.json"

    def _read(self, path: Path, settings: Record) -> _Scores:
        with open_file(path) as file:
            try:
                record = json.load(file)
                stored = record["settings"]
                values = [record["scores"][name] for name in ("validation", "test")]
            except (ValueError, KeyError, TypeError) as error:
                raise Damaged(f"{path} is no training of a sweep; delete it") from error
        provenance.check_same(settings, stored, path)
        return _Scores(*(math.nan if value is None else float(value) for value in values))
