"""The result of `forgetting` in words."""

from __future__ import annotations

from transfer.continual.results import ForgettingResult
from transfer.continual.tables import (
    criteria_table,
    layers_table,
    matrix_table,
    memories_table,
    statistics_table,
    subspace_table,
)


def answer(result: ForgettingResult) -> str:
    """What is forgotten and where, in a few sentences."""
    base = result.baseline
    lost = result.forgetting(base)
    if not result.is_forgotten(base):
        return (
            f"It is not shown that the first task is forgotten: {lost.shown('+.1f', 100)} points,"
            " an interval that holds zero. What a reset of layers brings back is not defined."
        )
    if lost.mean < 0:
        return (
            f"The first task is not forgotten but gains {-100 * lost.mean:.1f} ±"
            f" {100 * lost.interval:.1f} points from the later ones."
        )
    sentences = [
        f"The network forgets {100 * lost.mean:.1f} ± {100 * lost.interval:.1f} points of the first"
        f" task (memory: {base})."
    ]
    half = len(result.layers) // 2
    if half:
        upper = result.recovery(base, "reset_top", result.layers[half])
        lower = result.recovery(base, "reset_bottom", result.layers[half - 1])
        if upper is not None and lower is not None:
            sentences.append(
                f"Putting back the upper half of the layers recovers {100 * upper.mean:.0f} % of"
                f" it, the lower half {100 * lower.mean:.0f} %."
            )
    others = [name for name in result.memories if name != base]
    if others:
        best = min(others, key=lambda name: result.forgetting(name).mean)
        least = result.forgetting(best)
        sentences.append(
            f"With {best} it forgets least: {100 * least.mean:.1f} ± {100 * least.interval:.1f}."
        )
    return " ".join(sentences)


def text(result: ForgettingResult) -> str:
    """All tables, with the answer first."""
    base = result.baseline
    tables = [
        memories_table(result),
        matrix_table(result, base),
        layers_table(result, base),
        subspace_table(result, base),
        statistics_table(result),
        criteria_table(result),
    ]
    return "\n\n".join([answer(result), *(str(table) for table in tables if table is not None)])
