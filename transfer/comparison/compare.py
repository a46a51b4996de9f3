"""Several starts, several seeds, one training: curves, steps to a threshold, kept layers."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from metalearn.network.forward import Inputs
from metalearn.runtime import distributed, parallel, provenance
from metalearn.runtime.checks import whole_number
from metalearn.runtime.files import Record
from transfer.comparison.results import ComparisonResult, EndSimilarity, Run
from transfer.comparison.run import (
    Build,
    Key,
    Plan,
    Train,
    checked_seeds,
    compare_ends,
    digest,
    perform_runs,
    runs_folder,
    started_workers,
)
from transfer.finetuning.data import named_tensors
from transfer.initialisation.strategies import Strategy

from . import statistics

SHARE = 0.98  # of the baseline's final score: the default threshold


@dataclass(frozen=True, repr=False)
class Comparison(ComparisonResult):
    """The result of `compare`.

    It prints as tables. `.plot(path)` draws it, `.report(path)` writes a page, and `.to_dict()`
    gives the numbers.
    """

    def __str__(self) -> str:
        from .text import text

        return text(self)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw curves, steps, final scores and what layers kept.

        Args:
            path: the picture; its ending gives the format (.png, .svg, .pdf).
        """
        from metalearn.analysis.plotting.style import save

        from .figures import summary

        save(summary(self), path)

    def report(
        self, path: str | os.PathLike[str], *, settings: Mapping[str, Any] | None = None
    ) -> None:
        """Write one self-contained HTML page; `settings` are listed at its end."""
        from .page import report

        report(self, path, settings=settings)


def compare(
    strategies: Mapping[str, Strategy | tuple[Build, Strategy]],
    build: Build,
    train: Train,
    probe: Inputs,
    seeds: Iterable[int],
    *,
    baseline: str | None = None,
    folder: str | os.PathLike[str] | None = None,
    threshold: float | None = None,
    level: float = 0.05,
    measure: str = "cca",
    processes: int = 1,
    layers: Sequence[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> Comparison:
    """Train every start under every seed and compare them.

    A run is `build()` under `torch.manual_seed(seed)`, `initialize(model, strategy, seed)`, then
    `train(model, seed)`. Its result and its final weights are one file in `folder`, written whole
    or not at all. A comparison that was stopped therefore goes on with the missing runs, and memory
    is that of one run. What each layer kept is `compare_layers` of start and end on `probe`.

    Args:
        strategies: {name: strategy}; or {name: (build, strategy)} for a strategy with a network of
            its own, such as a slim one.
        build: makes the network; all of its start is drawn from torch's global generator.
        train: `(model, seed) -> Curve`, which trains in place; `finetune(...)` makes one.
        probe: inputs (examples, ...) as the network takes them, or a tuple or dictionary of them
            for a network of several inputs. CCA needs more examples (times positions) than
            features.
        seeds: one run of every strategy each; strategies are compared seed by seed.
        baseline: the strategy that the others are compared against; by default "random" if there is
            one, else the first.
        folder: where runs are kept; None keeps them until the comparison is done.
        threshold: the score that steps are counted to; None for 98 % of the baseline's mean final
            score.
        level: of the tests and, as 1 - level, of the intervals.
        measure: "cca", "linear_cka", or another measure of `compare_layers`.
        processes: how many share out the work on this machine, each with its share of torch's
            threads (sums over other numbers of threads may differ in their last digits). All
            arguments must then be picklable. Under torchrun the ranks share the runs.
        layers: the layers to compare; by default all. An entry of a layer's tuple or dictionary is
            named after a colon, "lstm:0".
        settings: anything else that decides the result; recorded, and compared when a comparison
            goes on.
        progress: show progress on standard error.

    Returns:
        The comparison.

    Raises:
        ValueError: seeds repeat, a name does not exist, or `folder` holds runs with other settings
            or another start.
        RuntimeError: a script shares runs out among processes without
            `if __name__ == "__main__":`.

    Example:
        >>> from transfer import everywhere, finetune, fresh, transfusion
        >>> from metalearn.data.labelled_sets import divided
        >>> from metalearn.tasks import glyphs
        >>> parts = divided(glyphs("test", classes=2, drawers=12), 0.5)
        >>> train = finetune(parts.train, parts.test, steps=4, batch=6)
        >>> def build():
        ...     return nn.Sequential(nn.Flatten(), nn.Linear(784, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> strategies = {"random": everywhere(fresh()), "full": transfusion(build())}
        >>> comparison = compare(strategies, build, train, train.probe(12), seeds=[0, 1])
        >>> [row.answer for row in comparison.finals]
        ['', 'not decidable']
    """
    _check_kept(folder, settings)
    # Errors in the arguments are found before hours of training.
    numbers, baseline = check_comparison(
        strategies,
        build,
        train,
        probe,
        seeds,
        baseline=baseline,
        threshold=threshold,
        level=level,
        measure=measure,
        processes=processes,
        layers=layers,
    )
    parallel.check_startable("compare()", processes)
    distributed.join(torch.device("cpu"))
    if distributed.world_size() > 1 and folder is None:
        raise ValueError(
            "under torchrun compare() needs folder=, one that all ranks see: they share out the"
            " runs through it"
        )
    # A run's file records these, so a run with other settings is not taken for this one.
    decisive: Record = {
        "train": getattr(train, "settings", {}),
        "probe": digest(probe),
        "measure": measure,
    }
    if layers is not None:
        decisive["layers"] = list(layers)
    decisive["own"] = dict(settings or {})
    with runs_folder(folder) as place:
        plan = Plan(dict(strategies), build, train, probe, layers, place, measure, decisive)
        runs, alike = _performed(plan, numbers, baseline, processes, progress=progress)
    if distributed.rank():
        # The first rank compares, and all return its result.
        return distributed.broadcast(None)  # type: ignore[return-value]
    rule = "given"
    if threshold is None:
        # The threshold is a share of the baseline's mean final score over seeds.
        finals = [runs[baseline, seed].curve.final for seed in numbers]
        threshold = SHARE * statistics.over_seeds(finals).mean
        rule = f"{100 * SHARE:g} % of the mean final score of {baseline}"
    versions = {**provenance.versions(), "threads": torch.get_num_threads()}
    comparison = Comparison(
        strategies=tuple(strategies),
        seeds=tuple(numbers),
        runs=tuple(runs[key] for key in itertools.product(strategies, numbers)),
        baseline=baseline,
        threshold=threshold,
        threshold_rule=rule,
        level=level,
        measure=measure,
        alike=alike,
        settings={**decisive, "versions": versions},
    )
    return distributed.broadcast(comparison)


def check_comparison(
    strategies: Mapping[str, Strategy | tuple[Build, Strategy]],
    build: Build,
    train: Train,
    probe: Inputs,
    seeds: Iterable[int],
    *,
    baseline: str | None = None,
    threshold: float | None = None,
    level: float = 0.05,
    measure: str = "cca",
    processes: int = 1,
    layers: Sequence[str] | None = None,
) -> tuple[list[int], str]:
    """Check the arguments of `compare`, and try every start on a few inputs; nothing is trained.

    Returns:
        The seeds as a list, and the name of the baseline.

    Raises:
        ValueError: an argument cannot be used.
        TypeError: an argument is of another kind.
    """
    _check_strategies(strategies)
    _check_callables(build=build, train=train)
    numbers = checked_seeds(seeds)
    baseline = _baseline(strategies, baseline)
    _check_numbers(level, threshold)
    _check_probe(probe)
    _check_layers(layers)
    whole_number("processes", processes)
    # No file is read or written in a try, so the plan needs no folder.
    plan = Plan(dict(strategies), build, train, probe, layers, Path(), measure, {})
    plan.try_out(numbers[0])
    return numbers, baseline


def _performed(
    plan: Plan, seeds: list[int], baseline: str, processes: int, *, progress: bool
) -> tuple[dict[Key, Run], tuple[EndSimilarity, ...]]:
    """Do the missing runs; read all of them, and compare their ends, on the first rank."""
    names = list(plan.strategies)
    # Seed by seed, so a comparison that is stopped early has whole seeds.
    keys = [(name, seed) for seed, name in itertools.product(seeds, names)]
    with started_workers(plan, processes) as workers:
        perform_runs(plan, keys, workers, progress=progress)
        if distributed.rank():
            return {}, ()
        runs = {key: plan.read(*key) for key in keys}
        return runs, compare_ends(plan, names, seeds, baseline, workers, progress=progress)


def _check_numbers(level: object, threshold: object) -> None:
    if not _is_number(level) or not 0 < level < 1:
        raise ValueError(f"level={level!r} must lie between 0 and 1, such as 0.05")
    if threshold is not None and not (_is_number(threshold) and math.isfinite(threshold)):
        raise ValueError(
            f"threshold={threshold!r} is no score; give one such as 0.9, or None for"
            f" {100 * SHARE:g} % of the baseline's"
        )


def _check_kept(folder: object, settings: object) -> None:
    if not (folder is None or isinstance(folder, str | os.PathLike)):
        raise TypeError(
            f"folder={folder!r} is a {type(folder).__name__}; give the path of a folder, or None to"
            " keep no runs"
        )
    if not (settings is None or isinstance(settings, Mapping)):
        raise TypeError(
            f"settings is a {type(settings).__name__}; give a dictionary of what else decides the"
            " result"
        )


def _check_strategies(strategies: object) -> None:
    if not isinstance(strategies, Mapping) or not all(isinstance(name, str) for name in strategies):
        raise TypeError(
            f"strategies is a {type(strategies).__name__}, not a dictionary by name; write "
            "{'random': everywhere(fresh()), 'full': transfusion(weights)}"
        )


def _check_callables(**functions: object) -> None:
    for name, function in functions.items():
        if isinstance(function, nn.Module) or not callable(function):
            raise TypeError(
                f"{name} is a {type(function).__name__}; pass a function: build() -> model,"
                " train(model, seed) -> curve"
            )


def _check_probe(probe: Any) -> None:
    tensors = {"inputs": probe}
    if isinstance(probe, Tensor | Mapping | tuple | list):
        tensors = named_tensors(probe)
    wrong = [value for value in tensors.values() if not isinstance(value, Tensor) or not value.ndim]
    if wrong:
        raise TypeError(
            f"probe holds {wrong[0]!r:.60}, not inputs (examples, ...); train.probe(400) makes some"
        )
    if not tensors or not all(len(tensor) for tensor in tensors.values()):
        raise ValueError("probe holds no inputs to compare layers on; train.probe(400) makes some")


def _check_layers(layers: object) -> None:
    if layers is None:
        return
    names = [*layers] if isinstance(layers, Sequence) and not isinstance(layers, str) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"layers={layers!r} is no list of names; write layers=['layer1', 'fc'], or leave it out"
            " for all"
        )


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, Real) and not isinstance(value, bool)


def _baseline(strategies: Mapping[str, Any], baseline: str | None) -> str:
    """The name of the baseline; raises ValueError if there is no such strategy."""
    if len(strategies) < 2:
        raise ValueError(
            f"compare() needs two strategies at least and got {', '.join(strategies) or 'none'}"
        )
    if baseline is None:
        return "random" if "random" in strategies else next(iter(strategies))
    if not isinstance(baseline, str) or baseline not in strategies:
        raise ValueError(f"baseline={baseline!r} is none of the strategies {', '.join(strategies)}")
    return baseline
