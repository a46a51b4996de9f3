"""The tables of `forgetting`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from metalearn.runtime.statistics import MeanStd
from metalearn.runtime.tables import Table
from transfer.continual.anatomy import BOTH, COMPARISONS, LayerAnatomy
from transfer.continual.results import (
    ForgettingResult,
    depth_correlation,
    rank_correlation,
)

NOT_DEFINED = "not defined"


def memories_table(result: ForgettingResult) -> Table:
    """What every memory forgets and learns, and how alike the top layer stays."""
    top = result.layers[-1]
    columns = (
        "memory",
        "task 0 before, %",
        "after, %",
        "forgetting, points",
        "last task, %",
        f"CKA of {top}",
        f"both tasks in {top} (k = {result.k})",
    )
    rows = []
    for name in result.memories:
        rows.append(
            (
                name,
                percent(result.over_seeds(name, lambda run: run.anatomy.before)),
                percent(result.over_seeds(name, lambda run: run.anatomy.after)),
                result.forgetting(name).shown("+.1f", 100),
                percent(result.over_seeds(name, lambda run: run.accuracy[-1][-1])),
                number(result.layer(name, top, lambda row: row.cka)),
                number(result.subspace(name, top, BOTH)),
            )
        )
    note = (
        "(forgetting: accuracy on task 0 after it minus at the end, with the 95 % interval over"
        f" {_units(result)}; other ± are standard deviations over seeds)"
    )
    return Table(columns, rows, title="What is forgotten", note=note)


def matrix_table(result: ForgettingResult, memory: str) -> Table:
    """The accuracy matrix of a memory."""
    columns = ("after", *(f"task {task}, %" for task in range(result.tasks)))
    rows = []
    for after in range(result.tasks):
        cells = [percent(result.accuracy(memory, after, task)) for task in range(result.tasks)]
        rows.append((f"task {after}", *cells))
    return Table(columns, rows, title=f"Accuracy on each task, memory: {memory}")


def layers_table(result: ForgettingResult, memory: str) -> Table:
    """CKA with its controls, resets, freezing and probes, layer by layer."""
    columns = (
        "layer",
        "CKA",
        "ceiling",
        "chance, 95 %",
        "reset from the top, %",
        "from the bottom, %",
        "alone, %",
        "recovery from the top",
        "from the bottom",
        "last task, frozen through, %",
        "probe before, %",
        "after, %",
    )
    rows = []
    for layer in result.layers:

        def shown(value: Callable[[LayerAnatomy], float], layer: str = layer) -> MeanStd:
            return result.layer(memory, layer, value)

        rows.append(
            (
                layer,
                number(shown(lambda row: row.cka)),
                number(shown(lambda row: row.ceiling)),
                number(shown(lambda row: row.floor)),
                percent(shown(lambda row: row.reset_top)),
                percent(shown(lambda row: row.reset_bottom)),
                percent(shown(lambda row: row.reset_single)),
                _recovery(result.recovery(memory, "reset_top", layer)),
                _recovery(result.recovery(memory, "reset_bottom", layer)),
                _frozen(result, memory, result.place(layer) + 1),
                percent(shown(lambda row: row.probe_before)),
                percent(shown(lambda row: row.probe_after)),
            )
        )
    return Table(
        columns, rows, title=f"Layer by layer, memory: {memory}", note=_note(result, memory)
    )


def subspace_table(result: ForgettingResult, memory: str) -> Table:
    """The four comparisons of leading directions, and the overlap of the tasks, layer by layer."""
    columns = ("layer", *COMPARISONS, "chance, 95 %", "overlap of the tasks, before")
    rows = []
    for layer in result.layers:
        spaces = [number(result.subspace(memory, layer, name)) for name in COMPARISONS]
        rows.append(
            (
                layer,
                *spaces,
                number(result.layer(memory, layer, lambda row: row.subspace_floor)),
                number(result.layer(memory, layer, lambda row: row.overlap)),
            )
        )
    title = f"Similarity of the {result.k} leading directions, memory: {memory}"
    note = "(channels are neurons; chance: the neurons of one side shuffled)"
    return Table(columns, rows, title=title, note=note)


def statistics_table(result: ForgettingResult) -> Table | None:
    """What only batch norm's running statistics forgot; None for a network without any."""
    if all(math.isnan(run.anatomy.reestimated) for run in result.runs):
        return None
    columns = (
        "memory",
        "after, %",
        "with statistics measured anew on task 0, %",
        "forgotten by the statistics alone, points",
    )
    rows = []
    for name in result.memories:
        gain = result.over_seeds(name, lambda run: run.anatomy.reestimated - run.anatomy.after)
        rows.append(
            (
                name,
                percent(result.over_seeds(name, lambda run: run.anatomy.after)),
                percent(result.over_seeds(name, lambda run: run.anatomy.reestimated)),
                gain.text(100, 1, "seed"),
            )
        )
    return Table(columns, rows, title="Running statistics of batch norm")


class Criterion(NamedTuple):
    """A statement about the anatomy of forgetting, and whether these runs agree.

    Attributes:
        statement: in words, with its threshold.
        value: what was measured, in words.
        holds: whether it does; None if it cannot be decided.
    """

    statement: str
    value: str
    holds: bool | None


def criteria(result: ForgettingResult) -> list[Criterion]:
    """The statements of Ramasesh et al. 2021 (arXiv:2007.07400) that these runs can be held to."""
    return [
        _falls_with_depth(result),
        *_halves(result),
        _freezing_is_cheap(result),
        *_along_sweeps(result),
        _replay_stores_apart(result),
    ]


def criteria_table(result: ForgettingResult) -> Table:
    """The statements, with yes, no or not decidable."""
    words = {True: "yes", False: "no", None: "not decidable"}
    rows = [(row.statement, row.value, words[row.holds]) for row in criteria(result)]
    return Table(("statement", "measured", "holds"), rows, title="Does it agree with the paper?")


def _falls_with_depth(result: ForgettingResult) -> Criterion:
    memory = result.baseline
    values = [result.layer(memory, layer, lambda row: row.cka).mean for layer in result.layers]
    value = depth_correlation(values)
    holds = None if math.isnan(value) else value < -0.8
    return Criterion("CKA falls with depth: rank correlation below -0.8", _shown(value), holds)


def _halves(result: ForgettingResult) -> list[Criterion]:
    memory = result.baseline
    half = len(result.layers) // 2
    if not half:
        return []
    statements = (
        ("reset_top", result.layers[half], "the upper half brings back more than 0.8", True),
        ("reset_bottom", result.layers[half - 1], "the lower half less than 0.3", False),
    )
    rows = []
    for kind, layer, statement, above in statements:
        value = result.recovery(memory, kind, layer)
        if value is None:
            rows.append(Criterion(statement, NOT_DEFINED, None))
            continue
        holds = value.mean > 0.8 if above else value.mean < 0.3
        rows.append(Criterion(statement, value.text(1, 2, "seed"), holds))
    return rows


def _freezing_is_cheap(result: ForgettingResult) -> Criterion:
    statement = "freezing the lower half costs the last task less than 2 points"
    runs = [run for run in result.of(result.baseline) if run.frozen]
    half = len(result.layers) // 2
    if not runs or not half:
        return Criterion(statement, "-", None)
    cost = MeanStd.of([run.frozen[0] - run.frozen[half] for run in runs])
    return Criterion(statement, f"{cost.text(100, 1, 'seed')} points", cost.mean < 0.02)


def _along_sweeps(result: ForgettingResult) -> list[Criterion]:
    rows = []
    for kind in ("ewc", "replay"):
        names = [name for name, text in result.memories.items() if text.startswith(f"{kind}(")]
        statement = f"along {kind}, forgetting falls as the top layer's CKA rises"
        if len(names) < 3:
            rows.append(Criterion(statement, f"{len(names)} of the 3 settings needed", None))
            continue
        top = result.layers[-1]
        alike = [result.layer(name, top, lambda row: row.cka).mean for name in names]
        forgotten = [result.forgetting(name).mean for name in names]
        value = rank_correlation(alike, forgotten)
        holds = None if math.isnan(value) else value < 0
        rows.append(Criterion(statement, f"rank correlation {_shown(value)}", holds))
    return rows


def _replay_stores_apart(result: ForgettingResult) -> Criterion:
    """The strongest of each kind: EWC uses the same directions for both tasks, replay others."""
    statement = "replay stores the tasks in other directions of the top layer, EWC in the same"
    top = result.layers[-1]
    means: dict[str, float] = {}
    for kind in ("ewc", "replay"):
        names = [name for name, text in result.memories.items() if text.startswith(f"{kind}(")]
        if not names:
            return Criterion(statement, f"no {kind}", None)
        values = [result.subspace(name, top, BOTH).mean for name in names]
        means[kind] = sum(values) / len(values)
    if any(map(math.isnan, means.values())):
        return Criterion(statement, "-", None)
    text = f"replay {means['replay']:.3f}, EWC {means['ewc']:.3f}"
    return Criterion(statement, text, means["replay"] < means["ewc"])


def percent(value: MeanStd) -> str:
    """A share in percent, with its standard deviation over seeds; a dash for none."""
    if math.isnan(value.mean):
        return "-"
    return f"{100 * value.mean:.1f}" + (f" ± {100 * value.std:.1f}" if value.runs > 1 else "")


def number(value: MeanStd) -> str:
    """A similarity, with its standard deviation over seeds; a dash for none."""
    if math.isnan(value.mean):
        return "-"
    return f"{value.mean:.3f}" + (f" ± {value.std:.3f}" if value.runs > 1 else "")


def _recovery(value: MeanStd | None) -> str:
    if value is None:
        return NOT_DEFINED
    return f"{value.mean:.2f}" + (f" ± {value.std:.2f}" if value.runs > 1 else "")


def _frozen(result: ForgettingResult, memory: str, place: int) -> str:
    runs = [run for run in result.of(memory) if run.frozen]
    return percent(MeanStd.of([run.frozen[place] for run in runs])) if runs else "-"


def _note(result: ForgettingResult, memory: str) -> str:
    before = percent(result.over_seeds(memory, lambda run: run.anatomy.before))
    after = percent(result.over_seeds(memory, lambda run: run.anatomy.after))
    lines = [f"(task 0: {before} before, {after} after the last task"]
    runs = [run for run in result.of(memory) if run.frozen]
    if runs:
        free = percent(MeanStd.of([run.frozen[0] for run in runs]))
        lines.append(f"; last task with nothing frozen: {free}")
    lines.append("; ceiling: CKA after as many more steps on task 0")
    if not result.is_forgotten(memory):
        lines.append(
            f"; the forgetting, {result.forgetting(memory).shown('+.1f', 100)} points, has an"
            " interval that holds zero, so no recovery is defined"
        )
    notes: dict[str, None] = {}  # each once, in the order of layers
    for run in result.of(memory):
        for row in run.anatomy.layers:
            if row.note:
                notes[f"\n({row.layer}: {row.note})"] = None
    return "".join(lines) + ")" + "".join(notes)


def _units(result: ForgettingResult) -> str:
    return f"{len(result.seeds)} seeds" if len(result.seeds) > 1 else "the test images"


def _shown(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"
